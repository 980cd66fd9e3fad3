"""What one sweep is asked for: the paths that lead to wanted values, and rows as Python reads them."""

from tapegrad.engine.memory import drop_orphans
from tapegrad.engine.structs import (
    CAPTURE,
    DEAD,
    REQUIRES_GRAD,
    ROW_INPUTS_OFFSET,
    ROW_SIZE,
    ROW_VERSIONS_OFFSET,
    buffer_of,
    i32,
    i64,
    internal_words,
    row_at,
    row_of,
    state_at,
    storage_of,
)
from tapegrad.engine.tape import meta_of

# words of `describe_row`
ROW_WORDS = 1024
(
    ROW_OP,
    ROW_FLAGS,
    ROW_SAVED,
    ROW_NEED,
    ROW_STALE,
    ROW_ATTACHED,
    ROW_OUT,
    ROW_OUT_META,
    ROW_IN0,
    ROW_EXTRA,
    ROW_COUNT,
    ROW_FIRST_WORD,
) = (0, 1, 2, 3, 4, 5, 6, 7, 8, 14, 15, 16)


@internal_words
def inputs_on_paths(S, address, bit):
    """The need mask of the row at an address, less the operands that do not bear a bit of `mark`."""
    r = row_at(address)
    need = r.need
    inputs = i32(address + ROW_INPUTS_OFFSET)
    for k in range(3):
        if need >> k & 1 and not buffer_of(S, inputs[k]).mark & bit:
            need &= ~(1 << k)
    if need & 8:
        found = False
        for k in range(i64(r.attr)[1]):
            found = found or buffer_of(S, i64(r.attr)[2 + k]).mark & bit != 0
        if not found:
            need &= ~8
    return need


@internal_words
def wanted_inputs(S, index):
    """The need mask of a row, less what a selective sweep does not ask for."""
    s = state_at(S)
    address = s.rows + index * ROW_SIZE
    return inputs_on_paths(S, address, 1) if s.selective else row_at(address).need


@internal_words
def mark_paths(S, first, last, bit):
    """Mark every buffer that rows `first` to `last` compute from one that bears this bit of `mark`."""
    s = state_at(S)
    for index in range(first, last + 1):
        address = s.rows + index * ROW_SIZE
        r = row_at(address)
        if r.flags & DEAD:
            continue
        inputs = i32(address + ROW_INPUTS_OFFSET)
        found = False
        for k in range(3):
            if r.need >> k & 1:
                found = found or buffer_of(S, inputs[k]).mark & bit != 0
        if r.need & 8:
            for k in range(i64(r.attr)[1]):
                found = found or buffer_of(S, i64(r.attr)[2 + k]).mark & bit != 0
        if found:
            buffer_of(S, r.out).mark |= bit


@internal_words
def clear_marks(S, first, last, bit):
    """Undo `mark_paths`."""
    for index in range(first, last + 1):
        r = row_of(S, index)
        if not r.flags & DEAD:
            buffer_of(S, r.out).mark &= ~bit


@internal_words
def find_paths(S, wanted, count, first, last, found):
    """Write the ids of what rows `first` to `last` compute from `count` wanted buffers to address `found`; how many there are."""
    for k in range(count):
        buffer_of(S, i64(wanted)[k]).mark |= 2
    mark_paths(S, first, last, 2)
    n = 0
    for index in range(first, last + 1):
        r = row_of(S, index)
        if not r.flags & DEAD and buffer_of(S, r.out).mark & 2:
            i64(found)[n] = r.out
            n += 1
    clear_marks(S, first, last, 2)
    for k in range(count):
        buffer_of(S, i64(wanted)[k]).mark &= ~2
    return n


@internal_words
def reaches_other_leaf(S, k):
    """Whether buffer `k` was computed from a leaf that requires grad and is not marked CAPTURE."""
    s = state_at(S)
    first = buffer_of(S, k).producer
    found = 0
    buffer_of(S, k).mark |= 4
    for index in range(first, -1, -1):
        address = s.rows + index * ROW_SIZE
        r = row_at(address)
        if r.flags & DEAD or buffer_of(S, r.out).mark & 4 == 0:
            continue
        buffer_of(S, r.out).mark &= ~4
        inputs = i32(address + ROW_INPUTS_OFFSET)
        extra = i64(r.attr)[1] if r.attr and r.need & 8 else 0
        for q in range(3 + extra):
            if q < 3 and not r.need >> q & 1:
                continue
            operand = inputs[q] if q < 3 else i64(r.attr)[2 + q - 3]
            b = buffer_of(S, operand)
            if b.flags & CAPTURE or not b.flags & REQUIRES_GRAD:
                continue
            if b.producer < 0:
                found = 1
            else:
                b.mark |= 4
    buffer_of(S, k).mark &= ~4
    return found


@internal_words
def describe_row(S, index, block):
    """Write what Python asks of a row into a block of ROW_WORDS words; the number of words the whole takes.

    Opcode, flags, saved mask, need mask, mask of the held values that were written to since, whether anything is attached to the
    result, the result and its META, the three operands each with its META, the number of further operands, the number of attribute
    words after the block's size, and those words.
    """
    s = state_at(S)
    address = s.rows + index * ROW_SIZE
    r = row_at(address)
    w = i64(block)
    out = buffer_of(S, r.out)
    w[ROW_OP] = r.op
    w[ROW_FLAGS] = r.flags
    w[ROW_SAVED] = r.saved
    w[ROW_NEED] = r.need
    w[ROW_STALE] = 0
    w[ROW_ATTACHED] = out.attached
    w[ROW_OUT] = r.out
    w[ROW_OUT_META] = meta_of(S, r.out)
    inputs = i32(address + ROW_INPUTS_OFFSET)
    versions = i32(address + ROW_VERSIONS_OFFSET)
    for k in range(3):
        w[ROW_IN0 + 2 * k] = inputs[k]
        w[ROW_IN0 + 2 * k + 1] = meta_of(S, inputs[k]) if inputs[k] else 0
    held = r.saved | r.kept
    for k in range(4):
        if held >> k & 1:
            b = buffer_of(S, r.out if k == 3 else inputs[k])
            if storage_of(S, b.storage).version != versions[k]:
                w[ROW_STALE] |= 1 << k
    w[ROW_EXTRA] = 0
    w[ROW_COUNT] = 0
    if r.attr:
        attributes = i64(r.attr)
        count = attributes[0] - 1
        w[ROW_EXTRA] = attributes[1]
        w[ROW_COUNT] = count - 1
        if ROW_FIRST_WORD + count - 1 > ROW_WORDS:
            return ROW_FIRST_WORD + count - 1
        for k in range(count - 1):
            w[ROW_FIRST_WORD + k] = attributes[2 + k]
    return ROW_FIRST_WORD + w[ROW_COUNT]


@internal_words
def enter_sweep(S, retain, selective):
    """Begin a sweep; rows do not move before `leave_sweep`."""
    s = state_at(S)
    s.pending = 0
    s.touched = 0
    s.selective = selective
    s.retain = retain
    s.hooked = -1
    s.sweeping += 1


@internal_words
def keep_rows(S):
    """Have rows not move before `leave_sweep`, for a sweep over tensors."""
    state_at(S).sweeping += 1


@internal_words
def leave_sweep(S):
    """A sweep ends."""
    state_at(S).sweeping -= 1
    drop_orphans(S)
