"""Transformed graphs again: what a graph looks like, and steps that were recorded for one like it.

A derivative run over tensors depends on a graph's structure only: opcodes, layouts, who is whose operand. `describe_graph` writes
that structure down, and `run_steps` records again, for other values, what the Python code of a transformation recorded for the
first graph of that structure.
"""

from tapegrad.engine.modes import mode_of_thread, set_mode
from tapegrad.engine.paths import clear_marks, inputs_on_paths, mark_paths
from tapegrad.engine.record import record, record_kernel, record_view
from tapegrad.engine.replay import free_saved
from tapegrad.engine.structs import (
    DEAD,
    FREED,
    INFERENCE,
    NO_GRAD_MODE,
    NO_GRAD_ROW,
    NO_MEMORY,
    REQUIRES_GRAD,
    RETAIN_GRAD,
    ROW_INPUTS_OFFSET,
    ROW_SIZE,
    ROW_VERSIONS_OFFSET,
    TRACED_ROW,
    TRACKED_VIEW,
    buffer_of,
    i32,
    i64,
    internal_inline,
    internal_words,
    row_at,
    state_at,
    storage_of,
)
from tapegrad.engine.tape import free_block, new_attributes, release

# room for a description, in words; longer graphs are not worth remembering
DESCRIPTION_WORDS = 1 << 15
# added to the number of words: hooks or kept gradients belong to what a graph stops at
WATCHED = 1 << 32
# bits of `mark`: a graph is followed from here; a path leads from here to a wanted buffer
_FOLLOW, _REACHES = 8, 16
# flags that a derivative may depend on
_SHOWN = REQUIRES_GRAD | INFERENCE

# how a step is recorded
STEP_POINTWISE, STEP_VIEW, STEP_KERNEL = range(3)
# words of a step, before the references to further operands, the further attributes, and what nobody needs after it
STEP_WORDS = 13


@internal_words
def _number_of(S, k, ids, slots):
    # the number of a buffer in the description, given at first sight
    number = i32(slots)[k]
    if number == 0:
        number = i64(ids)[0] + 1
        i64(ids)[0] = number
        i64(ids)[number] = k
        i32(slots)[k] = number
    return number


@internal_inline
def _look_of(S, k):
    b = buffer_of(S, k)
    return (b.layout << 16) | ((b.flags & _SHOWN) << 8) | b.dtype


@internal_words
def _describe_row(S, address, need, traced, words, n, ids, slots):
    """Write down one row at word `n`; the next word's number, or -1 if it cannot be recorded again."""
    r = row_at(address)
    w = i64(words)
    out = buffer_of(S, r.out)
    held = r.kept if traced else r.saved
    attributes = 0
    extra = 0
    if r.attr:
        attributes = i64(r.attr)[0] - 2
        extra = i64(r.attr)[1]
    if r.flags & FREED or out.attached or out.flags & RETAIN_GRAD or n + 24 + attributes + extra > DESCRIPTION_WORDS:
        return -1
    inputs = i32(address + ROW_INPUTS_OFFSET)
    versions = i32(address + ROW_VERSIONS_OFFSET)
    w[n] = r.op
    w[n + 1] = (r.flags & (NO_GRAD_ROW | TRACED_ROW)) << 16 | held << 8 | need
    w[n + 2] = _number_of(S, r.out, ids, slots)
    w[n + 3] = _look_of(S, r.out)
    n += 4
    for k in range(4):
        operand = r.out if k == 3 else inputs[k]
        if held >> k & 1 and storage_of(S, buffer_of(S, operand).storage).version != versions[k]:
            return -1
        if k == 3:
            continue
        if traced or (held | need) >> k & 1:
            w[n] = _number_of(S, operand, ids, slots) if operand else 0
            w[n + 1] = _look_of(S, operand) if operand else 0
            if operand and (traced or need >> k & 1):
                buffer_of(S, operand).mark |= _FOLLOW
        else:
            w[n] = 0
            w[n + 1] = _look_of(S, operand) if operand else 0
        n += 2
    w[n] = extra
    w[n + 1] = attributes - extra
    n += 2
    for k in range(extra):
        operand = i64(r.attr)[2 + k]
        w[n] = _number_of(S, operand, ids, slots) if operand else 0
        w[n + 1] = _look_of(S, operand) if operand else 0
        # a traced row also keeps further operands that no gradients flow to
        flows = need & 8 and (not r.flags & TRACED_ROW or buffer_of(S, operand).flags & REQUIRES_GRAD)
        if operand and (traced or flows):
            buffer_of(S, operand).mark |= _FOLLOW
        n += 2
    for k in range(extra, attributes):
        w[n] = i64(r.attr)[2 + k]
        n += 1
    return n


@internal_words
def describe_graph(S, given, stops, ends, others, traced, block, slots, room):
    """Write down the structure of the rows that lead from some buffers to others, the last row first.

    Args:
        S: the state.
        given: address of ids, first of `stops`, then of `ends`, then of `others`.
        stops: how many buffers to stop at; unless `traced`, only rows on paths to them count if there are any.
        ends: how many buffers to start from.
        others: how many more buffers there are to describe.
        traced: whether to follow all operands of traced rows, or those that gradients flow on to.
        block: address of three times DESCRIPTION_WORDS words: the structure; the number of buffers met and their ids; the number of
            rows and their places.
        slots: address of `room` int32, all zero, one a buffer.

    Returns:
        The number of words of the structure, plus WATCHED if so; -1 if the rows are too many, or cannot be recorded again; -2 for too few slots.
    """
    s = state_at(S)
    if s.buffer_count > room:
        return -2
    words, ids, places = block, block + 8 * DESCRIPTION_WORDS, block + 16 * DESCRIPTION_WORDS
    i64(ids)[0] = 0
    i64(places)[0] = 0
    selective = stops > 0 and not traced
    top = -1
    bottom = 0
    last_stop = 0
    hooked = False
    watched = False
    i64(words)[0] = stops
    i64(words)[1] = ends
    i64(words)[2] = others
    n = 3
    if 2 * (stops + ends + others) + n > DESCRIPTION_WORDS:
        return -1
    for k in range(stops + ends + others):
        q = i64(given)[k]
        i64(words)[n] = _number_of(S, q, ids, slots)
        i64(words)[n + 1] = _look_of(S, q)
        n += 2
        if k < stops:
            last_stop = i64(ids)[0]
            watched = watched or buffer_of(S, q).attached or buffer_of(S, q).flags & RETAIN_GRAD
        elif k < stops + ends:
            b = buffer_of(S, q)
            hooked = hooked or (not traced and (b.attached or b.flags & RETAIN_GRAD))
            b.mark |= _FOLLOW
            top = max(top, b.producer)
    if selective:
        bottom = s.row_count
        for k in range(stops):
            b = buffer_of(S, i64(given)[k])
            b.mark |= _REACHES
            bottom = min(bottom, b.producer)
        bottom = max(bottom, 0)
        mark_paths(S, bottom, top, _REACHES)
    for index in range(top, bottom - 1, -1):
        address = s.rows + index * ROW_SIZE
        r = row_at(address)
        if r.flags & DEAD or not buffer_of(S, r.out).mark & _FOLLOW:
            continue
        need = 0
        if traced:
            if not r.flags & TRACED_ROW or 0 < i32(slots)[r.out] <= last_stop:
                continue
        else:
            need = inputs_on_paths(S, address, _REACHES) if selective else r.need
            if need == 0:
                continue
        n = _describe_row(S, address, need, traced, words, n, ids, slots)
        if n < 0:
            break
        i64(places)[0] += 1
        i64(places)[i64(places)[0]] = index
    if selective:
        clear_marks(S, bottom, top, _REACHES)
        for k in range(stops):
            buffer_of(S, i64(given)[k]).mark &= ~_REACHES
    for k in range(1, i64(ids)[0] + 1):
        i32(slots)[i64(ids)[k]] = 0
        buffer_of(S, i64(ids)[k]).mark &= ~_FOLLOW
    if hooked or n < 0:
        return -1
    return n + WATCHED if watched else n


@internal_words
def free_rows(S, places):
    """Free what rows saved for their derivative: their number, and their places on the tape, at an address."""
    for k in range(i64(places)[0]):
        free_saved(S, i64(places)[1 + k])


@internal_words
def _run_step(S, step, table):
    # record one step; its answer
    w = i64(step)
    values = i64(table)
    kind, op, a, b, c = w[1], w[2], values[w[3]], values[w[4]], values[w[5]]
    if kind == STEP_POINTWISE:
        return record(S, op, a, b, c)
    if kind == STEP_VIEW:
        k = record_view(S, op, a, w[6], w[8], w[9], w[10])
        return k & ~TRACKED_VIEW if k > 0 else k
    extra, more = w[11], w[12]
    attributes = new_attributes(S, 2 + extra + more)
    if attributes == 0:
        return NO_MEMORY
    block = i64(attributes)
    block[1] = extra
    for k in range(extra):
        block[2 + k] = values[w[STEP_WORDS + 1 + k]]
    for k in range(extra, extra + more):
        block[2 + k] = w[STEP_WORDS + 1 + k]
    k = record_kernel(S, op, a, b, c, w[6], w[7], attributes)
    if k <= 0:
        free_block(S, attributes)
    return k


@internal_words
def run_steps(S, steps, count, table, first):
    """Record steps with other operands.

    Args:
        S: the state.
        steps: address of the steps, each ``[words, kind, opcode, three operands, layout, dtype, offset, where, its offset, further
            operands, further attributes, off the tape?, further operands ..., further attributes ..., results that it is the last
            to use ...]``; operands are numbers of entries of the table.
        count: how many.
        table: address of buffer ids: 0, those the steps start from, and room for one result a step.
        first: number of the first step's result.

    Returns:
        Zero, or the answer of a step that could not be recorded; then there are no results.
    """
    values = i64(table)
    step = steps
    on_tape = mode_of_thread(S) == 0
    for index in range(count):
        w = i64(step)
        off = on_tape and w[STEP_WORDS]
        if off:
            set_mode(S, NO_GRAD_MODE)
        k = _run_step(S, step, table)
        if off:
            set_mode(S, 0)
        if k <= 0:
            for q in range(first, first + index):
                if values[q]:
                    release(S, values[q])
            return k
        values[first + index] = k
        for q in range(STEP_WORDS + 1 + w[11] + w[12], w[0]):
            release(S, values[w[q]])
            values[w[q]] = 0
        step += w[0] * 8
    return 0
