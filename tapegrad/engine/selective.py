"""A sweep from several roots, or to wanted buffers only, in one call where nothing asks for Python.

What is asked for comes in a block of words: the number of roots, that of wanted buffers (0 for all leaves), whether to retain the
graph; then the roots, the addresses of their adjoints (contiguous), the wanted buffers, and room for as many adjoints.
"""

from tapegrad.engine.paths import clear_marks, enter_sweep, leave_sweep, mark_paths
from tapegrad.engine.replay import seed, sweep
from tapegrad.engine.settle import adjoint_buffer, settle
from tapegrad.engine.structs import (
    CAPTURE,
    DONE,
    SWEEP_MEMORY,
    buffer_of,
    i64,
    internal_words,
    row_of,
)

REQUEST_WORDS = 3


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
def sweep_wanted(S, block):
    """Sweep and settle, as the block asks: DONE with the adjoints in the block, or why it stopped, to be resumed, settled and ended
    by `end_wanted`."""
    w = i64(block)
    roots, wanted, retain = w[0], w[1], w[2]
    enter_sweep(S, retain, 1 if wanted else 0)
    top = _span(S, block, 0)
    if wanted:
        for k in range(wanted):
            b = buffer_of(S, w[REQUEST_WORDS + 2 * roots + k])
            b.mark |= 1
            b.flags |= CAPTURE
        mark_paths(S, _span(S, block, 1), top, 1)
    for k in range(roots):
        q = w[REQUEST_WORDS + k]
        b = buffer_of(S, q)
        lone = roots == 1 and b.producer >= 0 and row_of(S, b.producer).need != 0
        if wanted and not b.mark & 1 and not lone:
            continue  # it leads to nothing that is wanted; of a lone result hooks run even then
        if not seed(S, q, w[REQUEST_WORDS + roots + k]):
            return SWEEP_MEMORY
    outcome = sweep(S, top)
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
