"""Softmax and its logarithm along one dim, each in one kernel forward and one in reverse."""

from __future__ import annotations

import math
from typing import Any

from tapegrad import dtypes
from tapegrad.engine.structs import (
    ADJOINT_OFFSET,
    STORE_OFFSET,
    buffer_of,
    f64,
    i64,
    internal_sum,
    row_at,
    stack_block,
)
from tapegrad.engine.vecmath import exp, log
from tapegrad.ops._fold import PAIR_COLUMNS, check_input, one_dim, plan_of, select_op
from tapegrad.ops._fold_pairs import exponentials
from tapegrad.ops._fold_sums import larger
from tapegrad.ops._operands import cast
from tapegrad.ops.pointwise import exp as exp_of
from tapegrad.tensor import Tensor

P = T = SIZE = G = LOGARITHM = PAIR = SLAB_FOLD = MERGE = None
SLAB = 32


@internal_sum
def _sum_of(x, n):
    total = 0.0
    for i in range(n):
        total += x[i]
    return total


@internal_sum
def _dot(x, y, n):
    total = 0.0
    for i in range(n):
        total += x[i] * y[i]
    return total


def softmax_kernel(S, row, start, stop):
    """Forward kernel of `softmax` and, with LOGARITHM, of `log_softmax`."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = buffer_of(S, r.in0).data
    out = buffer_of(S, r.out).data
    if inner == 1:
        for o in range(start, stop):
            v = P(x + o * run * SIZE)
            y = P(out + o * run * SIZE)
            if LOGARITHM:
                a, b = PAIR(v, run)
                top, rest = T(a), T(log(b))
                for i in range(run):
                    y[i] = (v[i] - top) - rest
            else:
                top = T(-math.inf)
                for i in range(run):
                    top = larger(top, v[i])
                for i in range(run):
                    y[i] = exp(v[i] - top)
                scale = T(1.0 / _sum_of(y, run))
                for i in range(run):
                    y[i] *= scale
        return
    blocks = (inner + PAIR_COLUMNS - 1) // PAIR_COLUMNS
    total = stack_block()
    tops, totals = f64(total), f64(total + 8 * PAIR_COLUMNS)
    part = stack_block()
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * PAIR_COLUMNS
        m = min(PAIR_COLUMNS, inner - c)
        base = o * run * inner + c
        SLAB_FOLD(P(x + base * SIZE), min(run, SLAB), inner, m, tops, totals)
        for first in range(SLAB, run, SLAB):
            rows = min(SLAB, run - first)
            part_tops, part_totals = f64(part), f64(part + 8 * PAIR_COLUMNS)
            SLAB_FOLD(P(x + (base + first * inner) * SIZE), rows, inner, m, part_tops, part_totals)
            for j in range(m):
                tops[j], totals[j] = MERGE(tops[j], totals[j], first, part_tops[j], part_totals[j], rows)
        for j in range(m):
            totals[j] = log(totals[j]) if LOGARITHM else 1.0 / totals[j]
        for q in range(run):
            v = P(x + (base + q * inner) * SIZE)
            y = P(out + (base + q * inner) * SIZE)
            if LOGARITHM:
                for j in range(m):
                    y[j] = (v[j] - T(tops[j])) - T(totals[j])
            else:
                for j in range(m):
                    y[j] = exp(v[j] - T(tops[j])) * T(totals[j])


def softmax_reverse(S, row, start, stop):
    """Reverse kernel: ``out * (g - sum(g * out))``, or ``g - exp(out) * sum(g)`` with LOGARITHM."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    out = buffer_of(S, r.out).data
    adj = buffer_of(S, r.out).adj
    adjoint = i64(S + ADJOINT_OFFSET)[0]
    fresh = i64(S + STORE_OFFSET)[0] == 1
    if inner == 1:
        for o in range(start, stop):
            offset = o * run * SIZE
            y, g, a = P(out + offset), P(adj + offset), P(adjoint + offset)
            if LOGARITHM:
                total = T(_sum_of(g, run))
                if fresh:
                    for i in range(run):
                        a[i] = g[i] - exp(y[i]) * total
                else:
                    for i in range(run):
                        a[i] += g[i] - exp(y[i]) * total
            else:
                total = T(_dot(g, y, run))
                if fresh:
                    for i in range(run):
                        a[i] = y[i] * (g[i] - total)
                else:
                    for i in range(run):
                        a[i] += y[i] * (g[i] - total)
        return
    blocks = (inner + PAIR_COLUMNS - 1) // PAIR_COLUMNS
    totals = f64(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * PAIR_COLUMNS
        m = min(PAIR_COLUMNS, inner - c)
        base = o * run * inner + c
        for j in range(m):
            totals[j] = 0.0
        for q in range(run):
            offset = (base + q * inner) * SIZE
            y, g = P(out + offset), P(adj + offset)
            for j in range(m):
                totals[j] += g[j] if LOGARITHM else g[j] * y[j]
        for q in range(run):
            offset = (base + q * inner) * SIZE
            y, g, a = P(out + offset), P(adj + offset), P(adjoint + offset)
            if fresh:
                for j in range(m):
                    a[j] = 0
            for j in range(m):
                if LOGARITHM:
                    a[j] += g[j] - exp(y[j]) * T(totals[j])
                else:
                    a[j] += y[j] * (g[j] - T(totals[j]))


def _softmax(op: Any, input: Any, dim: Any, dtype: Any) -> Tensor:
    check_input(op.name, input)
    x = input if dtype is None else cast(input, dtypes.as_dtype(dtype))
    if not x.dtype.is_floating_point:
        raise NotImplementedError(f"\"{op.name}_lastdim_kernel_impl\" not implemented for '{x.dtype.tensor_type}'")
    if dim is None:
        # what PyTorch does without a dim, with a warning
        dim = 0 if x.ndim in (0, 1, 3) else 1
    dims = (one_dim(op.name, dim, x.ndim),)[: x.ndim]
    x, plan = plan_of(x, dims, True, plain=True)
    return op.run([x], plan, x.dtype, 8, shape=x.shape, columns=PAIR_COLUMNS)


def _reference(x: Any, dim: int, logarithm: bool = False) -> Any:
    from scipy import special

    return (special.log_softmax if logarithm else special.softmax)(x, axis=dim)


SAMPLES: list[Any] = [
    (((3, 5),), {"args": (1,)}),
    (((3, 5),), {"args": (0,)}),
    (((2, 3, 4),), {"args": (1,)}),
    (((4,),), {"args": (-1,)}),
]


@select_op(
    inputs=["x"],
    choose=lambda dtype: exponentials(dtype) | {"LOGARITHM": False},
    reference=_reference,
    samples=SAMPLES,
)
def softmax(op, input, dim, dtype=None):
    r"""Exponentials along one dim, scaled so that they sum to one.

    .. math:: y_i = \frac{e^{x_i}}{\sum_k e^{x_k}}

    Args:
        input: a floating tensor.
        dim: the dim that sums to one.
        dtype: convert to this first.

    Raises:
        NotImplementedError: for integers.
        IndexError: if there is no such dim.

    >>> import tapegrad as tg
    >>> tg.softmax(tg.tensor([0.0, 0.0]), 0)
    tensor([0.5000, 0.5000])
    """
    return _softmax(op, input, dim, dtype)


@select_op(
    inputs=["x"],
    choose=lambda dtype: exponentials(dtype) | {"LOGARITHM": True},
    reference=lambda x, dim: _reference(x, dim, True),
    samples=SAMPLES,
)
def log_softmax(op, input, dim, dtype=None):
    r"""Logarithm of `softmax`, without overflow.

    .. math:: y_i = x_i - \log \sum_k e^{x_k}
    """
    return _softmax(op, input, dim, dtype)


def _softmax_part(g, out, words):
    shape = tuple(words[1:4])
    y, g = out.reshape(shape), g.reshape(shape)
    return y * (g - (g * y).sum(1, True))


def _log_softmax_part(g, out, words):
    shape = tuple(words[1:4])
    g = g.reshape(shape)
    return g - exp_of(out.reshape(shape)) * g.sum(1, True)


for _op, _part in ((softmax, _softmax_part), (log_softmax, _log_softmax_part)):
    _op.forward(softmax_kernel)
    _op.backward(_part)
    _op.reverse_kernel(softmax_reverse)
