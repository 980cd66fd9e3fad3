"""Kernels that carry an adjoint from one shape to another: add, sum over broadcast dims, scatter a view into its base.

They are not part of the sweep's own code but called through the kernel table, per dtype and built at first use like any other. The
pointer and scalar types `P` and `T` are filled in when one is built.
"""

from typing import Any

from tapegrad.engine.layout import outer_offset
from tapegrad.engine.structs import (
    MOVE_ADD,
    MOVE_ADD_STRIDED,
    MOVE_NARROW,
    MOVE_SCATTER,
    MOVE_SUM,
    STEP_OFFSET,
    f64,
    i64,
    internal_sum,
    state_at,
)

P: Any = None  # pointer to elements
T: Any = None  # scalar type
SIZE: Any = None  # bytes of an element


@internal_sum
def _total(pointer, n, step):
    total = 0.0
    for i in range(n):
        total += pointer[i * step]
    return total


def add(S, row, start, stop):
    """Add elements ``start`` to ``stop`` of block `move_source` to `move_target`."""
    s = state_at(S)
    x, y = P(s.move_source), P(s.move_target)
    for i in range(start, stop):
        y[i] += x[i]


def add_strided(S, row, start, stop):
    """Add a strided block to a contiguous one: operand 0 is the target, operand 1 the source."""
    s = state_at(S)
    step = i64(S + STEP_OFFSET)
    for j in range(start, stop):
        y = P(s.move_target + outer_offset(S, 0, j) * SIZE)
        x = P(s.move_source + outer_offset(S, 1, j) * SIZE)
        for i in range(s.inner):
            y[i * step[0]] += x[i * step[1]]


def sum_to(S, row, start, stop):
    """Sum a contiguous block (operand 0) over the dims it was broadcast along, into float64 sums (operand 1)."""
    s = state_at(S)
    step = i64(S + STEP_OFFSET)
    for j in range(start, stop):
        x = P(s.move_source + outer_offset(S, 0, j) * SIZE)
        y = f64(s.move_target + outer_offset(S, 1, j) * 8)
        if step[1] == 0:
            y[0] += _total(x, s.inner, step[0])
        elif step[1] == 1:
            for i in range(s.inner):
                y[i] += x[i]
        else:
            for i in range(s.inner):
                y[i * step[1]] += x[i]


def narrow(S, row, start, stop):
    """Write (or, with ``move_write`` 0, add) float64 sums to an adjoint."""
    s = state_at(S)
    x, y = f64(s.move_source), P(s.move_target)
    if s.move_write == 1:
        for i in range(start, stop):
            y[i] = x[i]
    else:
        for i in range(start, stop):
            y[i] += x[i]


def scatter(S, row, start, stop):
    """Add the contiguous adjoint of a view (operand 0) where the view lies in its base (operand 1)."""
    s = state_at(S)
    step = i64(S + STEP_OFFSET)
    for j in range(start, stop):
        x = P(s.move_source + outer_offset(S, 0, j) * SIZE)
        y = P(s.move_target + outer_offset(S, 1, j) * SIZE)
        if s.move_write == 1:
            for i in range(s.inner):
                y[i * step[1]] = x[i]
        elif step[1] == 0:
            y[0] += _total(x, s.inner, 1)
        elif step[1] == 1:
            for i in range(s.inner):
                y[i] += x[i]
        else:
            for i in range(s.inner):
                y[i * step[1]] += x[i]


# what fills the rows of the kernel table that belong to no op
MOVES = {
    MOVE_ADD: add,
    MOVE_ADD_STRIDED: add_strided,
    MOVE_SUM: sum_to,
    MOVE_NARROW: narrow,
    MOVE_SCATTER: scatter,
}
