"""Values that no recorded kernel computes: constants, new and foreign memory, other names for memory there is."""

from tapegrad.engine.layout import contiguous_of
from tapegrad.engine.memory import adopt_storage, new_storage, release_storage
from tapegrad.engine.modes import mode_of_thread
from tapegrad.engine.structs import (
    CONST_BUFFER_OFFSET,
    CONST_KEY_OFFSET,
    DETACHED,
    INFERENCE,
    INFERENCE_MODE,
    IS_VIEW,
    NO_MEMORY,
    ROW_SIZE,
    TRACED,
    buffer_of,
    f32,
    float_of,
    i8,
    i16,
    i32,
    i64,
    internal_words,
    itemsize,
    layout_of,
    row_at,
    row_of,
    state_at,
    storage_of,
    u8,
)
from tapegrad.engine.tape import commit_row, new_buffer, release, reserve_buffer, reserve_row, retain, view_attributes


@internal_words
def constant(S, bits, dtype):
    """Id of a 0-d buffer with the float64 (floating dtypes) or int64 `bits`; kept in a direct-mapped cache."""
    slot = ((bits * 0x9E3779B97F4A7C1 + dtype) >> 17) & 1023
    keys = i64(S + CONST_KEY_OFFSET)
    known = i64(S + CONST_BUFFER_OFFSET)
    if known[slot]:
        if keys[slot] == bits and buffer_of(S, known[slot]).dtype == dtype:
            return known[slot]
        release(S, known[slot])
        known[slot] = 0
    if not reserve_buffer(S):
        return NO_MEMORY
    storage = new_storage(S, 8)
    if storage == 0:
        return NO_MEMORY
    data = storage_of(S, storage).base
    if dtype == 0:
        f32(data)[0] = float_of(bits)
    elif dtype == 1 or dtype == 5:
        i64(data)[0] = bits
    elif dtype == 4:
        i32(data)[0] = bits
    elif dtype == 3:
        i16(data)[0] = bits
    elif dtype == 2:
        i8(data)[0] = bits
    else:
        u8(data)[0] = bits
    known[slot] = new_buffer(S, storage, data, 1, dtype)
    keys[slot] = bits
    return known[slot]


@internal_words
def new_constant(S, bits, dtype):
    """`constant` with a handle for the caller."""
    k = constant(S, bits, dtype)
    if k > 0:
        retain(S, k)
    return k


@internal_words
def new_leaf(S, layout, dtype):
    """Id of a new buffer with uninitialised memory of its own, contiguous as `layout` is."""
    if not reserve_buffer(S):
        return NO_MEMORY
    storage = new_storage(S, layout_of(S, layout).elements * itemsize(dtype))
    if storage == 0:
        return NO_MEMORY
    k = new_buffer(S, storage, storage_of(S, storage).base, layout, dtype)
    if mode_of_thread(S) & INFERENCE_MODE:
        buffer_of(S, k).flags |= INFERENCE
    return k


@internal_words
def adopt_leaf(S, data, base, nbytes, owner, layout, dtype):
    """Id of a new buffer over foreign memory that `owner` (a referenced PyObject*) keeps alive."""
    if not reserve_buffer(S):
        return NO_MEMORY
    storage = adopt_storage(S, base, nbytes, owner, 0)
    if storage == 0:
        return NO_MEMORY
    return new_buffer(S, storage, data, layout, dtype)


@internal_words
def share_leaf(S, a, own_version):
    """Id of a new leaf over the memory of buffer `a`.

    Args:
        S: the state.
        a: the buffer.
        own_version: 1 for in-place writes to one not to count for the other; 2 for no record of it even where `a` is traced.
    """
    if not reserve_buffer(S):
        return NO_MEMORY
    A = buffer_of(S, a)
    storage = A.storage
    storage_of(S, storage).refs += 1
    if own_version == 1:
        shared = storage_of(S, storage)
        alias = adopt_storage(S, shared.base, shared.bytes, 0, storage)
        if alias == 0:
            release_storage(S, storage)
            return NO_MEMORY
        storage = alias
    A = buffer_of(S, a)
    k = new_buffer(S, storage, A.data, A.layout, A.dtype)
    A = buffer_of(S, a)
    K = buffer_of(S, k)
    K.flags = A.flags & INFERENCE
    K.stamp = storage_of(S, storage).graph_version
    if A.flags & state_at(S).trace_mask and own_version != 2:
        if not reserve_row(S):
            release(S, k)
            return NO_MEMORY
        attr = view_attributes(S, contiguous_of(S, A.layout), 0)
        if attr == 0:
            release(S, k)
            return NO_MEMORY
        s = state_at(S)
        row = s.rows + s.row_count * ROW_SIZE
        r = row_at(row)
        r.op = DETACHED
        r.flags = 0
        r.attr = attr
        r.out = k
        r.in0 = a
        r.in1 = 0
        r.in2 = 0
        commit_row(S, row, 0, 0, TRACED)
    return k


@internal_words
def take_memory(S, a, k):
    """Exchange the memory of buffers `a` and `k`: each keeps its place on the tape and takes the other's elements."""
    A = buffer_of(S, a)
    K = buffer_of(S, k)
    A.storage, K.storage = K.storage, A.storage
    A.data, K.data = K.data, A.data
    A.layout, K.layout = K.layout, A.layout


@internal_words
def mark_written(S, k, recorded, view):
    """Count an in-place write to the storage of buffer `k`; a recorded one makes other views of it stale."""
    b = buffer_of(S, k)
    storage = storage_of(S, b.storage)
    storage.version += 1
    if recorded:
        storage.graph_version += 1
        if view:
            b.flags |= IS_VIEW
        b.stamp = storage.graph_version
        if b.producer >= 0:
            r = row_of(S, b.producer)
            if (r.saved | r.kept) & 8:
                r.version3 = storage.version
