"""The tape: buffers, rows, and what keeps them alive.

A buffer has two counts. `refs` counts everything that names it (handles, and rows it is an operand of): while it is positive
the row stays. `data_refs` counts handles and rows that *need its elements*: when it reaches zero the memory goes, though
gradients may still flow through the buffer. A row dies with its output, and lets go of its operands; the tape compacts, in
order, once more than half of it is dead.
"""

import numpy as np

from tapegrad.engine.layout import intern
from tapegrad.engine.memory import adopt_storage, allocate, deallocate, release_storage
from tapegrad.engine.structs import (
    ADJ_IS_GRAD,
    BUFFER_SIZE,
    CONST_BUFFER_OFFSET,
    DEAD,
    IS_VIEW,
    LAYOUT_SIZE,
    OLDER,
    REQUIRES_GRAD,
    RETAIN_GRAD,
    ROW_INPUTS_OFFSET,
    ROW_SIZE,
    ROW_VERSIONS_OFFSET,
    STORAGE_SIZE,
    TRACED,
    TRACED_ROW,
    UNFOLLOWED,
    USER_FLAGS,
    buffer_of,
    i32,
    i64,
    internal_inline,
    internal_words,
    itemsize,
    layout_of,
    malloc,
    memcpy,
    memset,
    realloc,
    row_at,
    row_of,
    state_at,
    storage_of,
)


@internal_inline
def nbytes_of(S, layout, dtype):
    """Bytes of a contiguous block for a layout."""
    return layout_of(S, layout).elements * itemsize(dtype)


@internal_words
def reserve_buffer(S):
    """Make sure one more buffer fits; False if there is no memory. Moves the table: reload addresses after it."""
    s = state_at(S)
    if s.free_buffer == 0 and s.buffer_count == s.buffer_capacity:
        table = realloc(s.buffers, 2 * s.buffer_capacity * BUFFER_SIZE)
        if table == 0:
            return False
        s.buffers = table
        s.buffer_capacity *= 2
    return True


@internal_words
def new_buffer(S, storage, data, layout, dtype):
    """Id of a new buffer with one handle on it; `reserve_buffer` must have succeeded."""
    s = state_at(S)
    k = s.free_buffer
    if k:
        s.free_buffer = buffer_of(S, k).adj
    else:
        k = s.buffer_count
        s.buffer_count = k + 1
    s.live_buffers += 1
    b = buffer_of(S, k)
    b.data = data
    b.adj = 0
    b.storage = storage
    b.layout = layout
    b.producer = -1
    b.refs = 1
    b.data_refs = 1
    b.grad = 0
    b.link = 0
    b.stamp = 0
    b.dtype = dtype
    b.flags = 0
    b.mark = 0
    b.attached = 0
    return k


@internal_words
def release_data(S, k):
    """Drop one need for the elements of buffer `k`."""
    b = buffer_of(S, k)
    b.data_refs -= 1
    if b.data_refs == 0:
        release_storage(S, b.storage)
        b.storage = 0
        b.data = 0


@internal_words
def _drop(S, k):
    """Drop one reference to buffer `k`; queue it in `dying` when it was the last."""
    s = state_at(S)
    b = buffer_of(S, k)
    b.refs -= 1
    if b.refs == 0:
        if b.adj:
            deallocate(S, b.adj, nbytes_of(S, b.layout, b.dtype))
        b.adj = s.dying
        s.dying = k


@internal_words
def free_block(S, attr):
    """Free an attribute block (its first word is its size in words)."""
    if attr:
        deallocate(S, attr, i64(attr)[0] * 8)


@internal_words
def release_saved(S, row):
    """Let go of the values a row saved for its backward, or kept for a trace."""
    r = row_at(row)
    inputs = i32(row + ROW_INPUTS_OFFSET)
    held = r.saved | r.kept
    for k in range(3):
        if held >> k & 1:
            release_data(S, inputs[k])
    if held & 8:
        release_data(S, r.out)


@internal_words
def _kill_row(S, index):
    s = state_at(S)
    address = s.rows + index * ROW_SIZE
    r = row_at(address)
    r.flags |= DEAD
    s.dead_rows += 1
    release_saved(S, address)
    r.saved = 0
    r.kept = 0
    inputs = i32(address + ROW_INPUTS_OFFSET)
    for k in range(3):
        if inputs[k]:
            _drop(S, inputs[k])
    if r.attr:
        extra = i64(r.attr)
        for k in range(extra[1]):
            if r.flags & TRACED_ROW:
                release_data(S, extra[2 + k])
            if extra[2 + k]:
                _drop(S, extra[2 + k])
    free_block(S, r.attr)
    r.attr = 0


@internal_words
def bury(S):
    """Free every buffer in `dying`, the rows that computed them, and what only those rows kept."""
    s = state_at(S)
    while s.dying:
        k = s.dying
        b = buffer_of(S, k)
        s.dying = b.adj
        if b.producer >= 0:
            _kill_row(S, b.producer)
        if b.grad:
            release_handle(S, b.grad)
        if b.attached:
            release_storage(S, b.attached)
            b.attached = 0
            s.attachments -= 1
        b.flags = 0
        b.data = 0
        b.refs = 0
        b.data_refs = 0
        b.adj = s.free_buffer
        s.free_buffer = k
        s.live_buffers -= 1


@internal_words
def release_handle(S, k):
    """Queue what one handle on buffer `k` kept; `bury` does the rest."""
    release_data(S, k)
    _drop(S, k)


@internal_words
def settle_rows(S):
    """Drop dead rows at the tape's end; compact when more than half of a long tape is dead."""
    s = state_at(S)
    if s.sweeping:
        return
    while s.row_count and row_of(S, s.row_count - 1).flags & DEAD:
        s.row_count -= 1
        s.dead_rows -= 1
    if s.row_count < 4096 or 2 * s.dead_rows <= s.row_count:
        return
    kept = 0
    for index in range(s.row_count):
        source = s.rows + index * ROW_SIZE
        r = row_at(source)
        if r.flags & DEAD:
            continue
        if kept != index:
            memcpy(s.rows + kept * ROW_SIZE, source, ROW_SIZE)
            buffer_of(S, r.out).producer = kept
        kept += 1
    s.row_count = kept
    s.dead_rows = 0


@internal_words
def release(S, k):
    """A handle on buffer `k` is gone. Returns 1 if foreign owners wait in `orphans`."""
    s = state_at(S)
    b = buffer_of(S, k)
    b.data_refs -= 1
    if b.data_refs == 0:
        release_storage(S, b.storage)
        b.storage = 0
        b.data = 0
    b.refs -= 1
    if b.refs == 0:
        if b.adj:
            deallocate(S, b.adj, nbytes_of(S, b.layout, b.dtype))
        b.adj = s.dying
        s.dying = k
        bury(S)
        if s.dead_rows:
            settle_rows(S)
    return 1 if s.orphans else 0


@internal_words
def reserve_row(S):
    """Make sure one more row fits; False if there is no memory."""
    s = state_at(S)
    if s.row_count == s.row_capacity:
        settle_rows(S)
    if s.row_count == s.row_capacity:
        table = realloc(s.rows, 2 * s.row_capacity * ROW_SIZE)
        if table == 0:
            return False
        s.rows = table
        s.row_capacity *= 2
    return True


@internal_words
def commit_row(S, address, need, saved, traced):
    """Make the row at the tape's end part of the tape: it keeps what its backward names, and its operands' identity.

    A traced row keeps all of its operands and its result, to be run again.
    """
    s = state_at(S)
    r = row_at(address)
    inputs = i32(address + ROW_INPUTS_OFFSET)
    versions = i32(address + ROW_VERSIONS_OFFSET)
    r.need = need
    r.saved = saved
    r.kept = 0
    held = saved
    if traced:
        held = 8
        for k in range(3):
            if inputs[k]:
                held |= 1 << k
        r.kept = held
        r.flags |= TRACED_ROW
        if r.attr:
            for k in range(i64(r.attr)[1]):
                buffer_of(S, i64(r.attr)[2 + k]).data_refs += 1
    for k in range(3):
        if need >> k & 1 or held >> k & 1:
            b = buffer_of(S, inputs[k])
            b.refs += 1
            if held >> k & 1:
                b.data_refs += 1
                versions[k] = storage_of(S, b.storage).version
        else:
            inputs[k] = 0
    if need & 8 and not traced:
        # further operands that no gradient flows to now; later they may require one
        for k in range(i64(r.attr)[1]):
            b = buffer_of(S, i64(r.attr)[2 + k])
            if not b.flags & REQUIRES_GRAD:
                b.refs -= 1  # never the last: the caller has a handle
                i64(r.attr)[2 + k] = 0
    out = buffer_of(S, r.out)
    if held & 8:
        out.data_refs += 1
        versions[3] = storage_of(S, out.storage).version
    out.producer = s.row_count
    if need:
        out.flags |= REQUIRES_GRAD
    out.flags |= traced
    s.row_count += 1


@internal_words
def new_attributes(S, words):
    """Address of an attribute block of `words` words, its size in the first."""
    block = allocate(S, words * 8)
    if block:
        i64(block)[0] = words
    return block


@internal_words
def copy_attributes(S, block):
    """Address of a copy of an attribute block, 0 without memory: one call instead of one for each word."""
    size = i64(block)[0] * 8
    copy = allocate(S, size)
    if copy:
        memcpy(copy, block, size)
    return copy


@internal_words
def view_attributes(S, where, offset):
    """Address of a view's attribute block: where it lies in its operand's logical elements; 0 without memory."""
    block = new_attributes(S, 4)
    if block:
        i64(block)[1] = 0
        i64(block)[2] = where
        i64(block)[3] = offset
    return block


@internal_words
def start(S, rows, buffers, layouts):
    """Allocate the tables of an empty tape; layout 1 is the 0-d one."""
    s = state_at(S)
    s.rows = malloc(rows * ROW_SIZE)
    s.row_capacity = rows
    s.buffers = malloc(buffers * BUFFER_SIZE)
    s.buffer_capacity = buffers
    s.buffer_count = 1
    s.storages = malloc(buffers * STORAGE_SIZE)
    s.storage_capacity = buffers
    s.storage_count = 1
    s.layouts = malloc(layouts * LAYOUT_SIZE)
    s.layout_capacity = layouts
    s.layout_count = 1
    s.layout_index_size = 4 * layouts
    s.layout_index = malloc(s.layout_index_size * 8)
    memset(s.layout_index, 0, s.layout_index_size * 8)
    intern(S, 0, S, S)


# what `look` answers
LOOK_META, LOOK_PRODUCER, LOOK_GRAD, LOOK_VERSION, LOOK_DATA, LOOK_OP, LOOK_STORAGE, LOOK_STALE = range(8)
LOOK_TRACED, LOOK_ATTACHED, LOOK_NODE, LOOK_UNFOLLOWED, LOOK_OLDER = 8, 9, 10, 11, 12


@internal_inline
def meta_of(S, k):
    """Layout << 16 | flags << 8 | dtype code of buffer `k`."""
    b = buffer_of(S, k)
    return (np.int64(b.layout) << 16) | ((b.flags & USER_FLAGS) << 8) | b.dtype


@internal_words
def look(S, k, what):
    """One fact about buffer `k`; META is layout << 16 | flags << 8 | dtype code."""
    b = buffer_of(S, k)
    if what == LOOK_META:
        return meta_of(S, k)
    if what == LOOK_PRODUCER:
        return b.producer
    if what == LOOK_GRAD:
        return b.grad
    if what == LOOK_VERSION:
        return storage_of(S, b.storage).version
    if what == LOOK_DATA:
        return b.data
    if what == LOOK_OP:
        return row_of(S, b.producer).op if b.producer >= 0 else -1
    if what == LOOK_STORAGE:
        return b.storage
    if what == LOOK_NODE:
        # the row a gradient flows into: a traced row need not pass any on
        return b.producer if b.producer >= 0 and row_of(S, b.producer).need else -1
    if what == LOOK_TRACED:
        return b.flags & TRACED
    if what == LOOK_UNFOLLOWED:
        # whose memory others show too
        return b.flags & UNFOLLOWED and storage_of(S, b.storage).refs > 1
    if what == LOOK_OLDER:
        return b.flags & OLDER
    if what == LOOK_ATTACHED:
        return storage_of(S, b.attached).owner if b.attached else 0
    if b.flags & IS_VIEW and b.storage:
        return storage_of(S, b.storage).graph_version - b.stamp
    return 0


@internal_words
def retain(S, k):
    """Add a handle to buffer `k`."""
    b = buffer_of(S, k)
    b.refs += 1
    b.data_refs += 1


@internal_words
def retain_with(S, k, source):
    """Add a handle to buffer `k`, which takes over the elements of buffer `source` if it has none any more."""
    b = buffer_of(S, k)
    if b.data_refs == 0:
        other = buffer_of(S, source)
        b.storage = other.storage
        b.data = other.data
        storage_of(S, b.storage).refs += 1
    retain(S, k)


@internal_words
def retain_place(S, k):
    """Have buffer `k` keep its place in the graph, whether its elements are needed or not."""
    buffer_of(S, k).refs += 1


@internal_words
def release_place(S, k):
    """Undo `retain_place`. Returns 1 if foreign owners wait in `orphans`."""
    s = state_at(S)
    _drop(S, k)
    if s.dying:
        bury(S)
        settle_rows(S)
    return 1 if s.orphans else 0


@internal_words
def set_flag(S, k, flag, value):
    """Set or clear one flag of buffer `k`."""
    b = buffer_of(S, k)
    if value:
        b.flags |= flag
    else:
        b.flags &= ~flag


@internal_words
def attach(S, k, owner):
    """Have buffer `k` keep a Python object (one reference is taken over) until it dies; False without memory."""
    storage = adopt_storage(S, 0, 0, owner, 0)
    if storage:
        buffer_of(S, k).attached = storage
        state_at(S).attachments += 1
    return storage != 0


@internal_words
def mark_older(S, value):
    """Set or clear OLDER on every buffer there is; the engine's own constants never bear it."""
    s = state_at(S)
    for k in range(1, s.buffer_count):
        b = buffer_of(S, k)
        if value and b.refs > 0:
            b.flags |= OLDER
        else:
            b.flags &= ~OLDER
    known = i64(S + CONST_BUFFER_OFFSET)
    for slot in range(1024):
        if known[slot]:
            buffer_of(S, known[slot]).flags &= ~OLDER


@internal_words
def set_grad(S, k, grad):
    """Make buffer `grad` (0: none) the gradient of buffer `k`, which takes over the caller's handle on it."""
    b = buffer_of(S, k)
    old = b.grad
    if b.flags & ADJ_IS_GRAD:
        # a sweep that is adding to the old gradient goes on in a block of its own
        size = nbytes_of(S, b.layout, b.dtype)
        block = allocate(S, size)
        if block == 0:
            return
        memcpy(block, b.adj, size)
        b.adj = block
        b.flags &= ~ADJ_IS_GRAD
    b.grad = grad
    if old:
        release_handle(S, old)
        bury(S)


@internal_words
def move_grad(S, old, new):
    """Let the gradient that the user keeps of a tensor follow it from buffer `old` to `new`, its value after an in-place write."""
    a = buffer_of(S, old)
    b = buffer_of(S, new)
    b.flags |= a.flags & RETAIN_GRAD
    a.flags &= ~RETAIN_GRAD
    b.grad = a.grad
    a.grad = 0


@internal_words
def cut(S, k):
    """Detach buffer `k` from what computed it; its row, which has lost its output, dies."""
    b = buffer_of(S, k)
    index = b.producer
    b.producer = -1
    b.flags &= ~REQUIRES_GRAD
    if index >= 0:
        _kill_row(S, index)
        bury(S)
        settle_rows(S)
