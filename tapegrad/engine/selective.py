"""A sweep from several roots, or to wanted buffers only, in one call where nothing asks for Python.

What is asked for comes in a block of words: the number of roots, that of wanted buffers (0 for all leaves), whether to retain the
graph, whether to check first that there is nothing to it that Python would have to see to; the addresses of a one in each floating
dtype; then the roots, the buffers of their adjoints (0 for a one), the wanted buffers, and room for as many adjoints.
"""

from tapegrad.engine.layout import contiguous_of
from tapegrad.engine.paths import clear_marks, enter_sweep, leave_sweep, mark_paths
from tapegrad.engine.replay import seed, sweep
from tapegrad.engine.settle import adjoint_buffer, settle
from tapegrad.engine.structs import (
    CAPTURE,
    DONE,
    DTYPE_SLOTS,
    INFERENCE,
    IS_VIEW,
    MOVE_ADD,
    REQUIRES_GRAD,
    RETAIN_GRAD,
    SWEEP_MEMORY,
    SWEEP_UNUSUAL,
    TRACED,
    buffer_of,
    i64,
    internal_words,
    layout_of,
    row_of,
    state_at,
)

REQUEST_WORDS = 6


@internal_words
def _span(S, block, first):
    # the first, or last, row between the wanted buffers and the roots
    w = i64(block)
    start = REQUEST_WORDS + 2 * w[0] if first else REQUEST_WORDS
    count = w[1] if first else w[0]
    found = buffer_of(S, w[start]).producer
    for k in range(1, count):
        producer = buffer_of(S, w[start + k]).producer
        found = min(found, producer) if first else max(found, producer)
    return max(found, 0) if first else found


@internal_words
def _is_plain(S, block):
    """Whether every buffer asked for requires grad and has no hooks, and adjoints are blocks of the roots' shapes and dtypes."""
    s = state_at(S)
    w = i64(block)
    roots, wanted = w[0], w[1]
    if roots == 0 or wanted == 0:
        return False
    for k in range(roots + wanted):
        root = k < roots
        b = buffer_of(S, w[REQUEST_WORDS + (k if root else k + roots)])
        unusual = IS_VIEW | TRACED | INFERENCE if root else IS_VIEW | RETAIN_GRAD
        if not b.flags & REQUIRES_GRAD or b.flags & unusual or (b.attached and not root):
            return False
        if not root:
            continue
        if roots > 1 and i64(s.forward)[MOVE_ADD * DTYPE_SLOTS + b.dtype] == 0:
            return False
        start = w[REQUEST_WORDS + roots + k]
        if start == 0:
            if layout_of(S, b.layout).elements != 1:
                return False
            continue
        g = buffer_of(S, start)
        if g.flags & (IS_VIEW | TRACED) or g.dtype != b.dtype or g.layout != contiguous_of(S, b.layout):
            return False
    return True


@internal_words
def begin_wanted(S, block):
    """Begin a sweep as the block asks: DONE, SWEEP_MEMORY, or SWEEP_UNUSUAL with nothing done."""
    w = i64(block)
    roots, wanted, retain = w[0], w[1], w[2]
    if w[3] and not _is_plain(S, block):
        return SWEEP_UNUSUAL
    enter_sweep(S, retain, 1 if wanted else 0)
    if wanted:
        for k in range(wanted):
            b = buffer_of(S, w[REQUEST_WORDS + 2 * roots + k])
            b.mark |= 1
            b.flags |= CAPTURE
        mark_paths(S, _span(S, block, 1), _span(S, block, 0), 1)
    for k in range(roots):
        q = w[REQUEST_WORDS + k]
        b = buffer_of(S, q)
        lone = roots == 1 and b.producer >= 0 and row_of(S, b.producer).need != 0
        if wanted and not b.mark & 1 and not lone:
            continue  # it leads to nothing that is wanted; of a lone result hooks run even then
        start = w[REQUEST_WORDS + roots + k]
        if not seed(S, q, buffer_of(S, start).data if start else w[4 + b.dtype]):
            return SWEEP_MEMORY
    return DONE


@internal_words
def sweep_wanted(S, block):
    """Sweep and settle, as the block asks: DONE with the adjoints in the block, or why it stopped, to be resumed, settled and ended
    by `end_wanted`."""
    outcome = begin_wanted(S, block)
    if outcome == DONE:
        outcome = sweep(S, _span(S, block, 0), 0)
    if outcome == DONE:
        outcome = settle(S)
    if outcome == DONE:
        end_wanted(S, block)
    return outcome


@internal_words
def end_wanted(S, block):
    """End such a sweep, with the adjoints of wanted buffers, 0 where there is none, in the block."""
    w = i64(block)
    roots, wanted = w[0], w[1]
    start = REQUEST_WORDS + 2 * roots
    for k in range(wanted):
        b = buffer_of(S, w[start + k])
        b.flags &= ~CAPTURE
        b.mark &= ~1
        w[start + wanted + k] = adjoint_buffer(S, w[start + k])
    if wanted:
        clear_marks(S, _span(S, block, 1), _span(S, block, 0), 1)
    leave_sweep(S)
