"""Ops that copy elements to other places: turning round, rolling, repeating, triangles, diagonals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad.engine.layout import line_offset
from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import (
    ADJOINT_OFFSET,
    STORE_OFFSET,
    buffer_of,
    i64,
    internal,
    layout_of,
    memset,
    row_at,
    shape_of,
    strides_of,
)
from tapegrad.metadata import check_dim
from tapegrad.ops._arguments import check_tensor, distinct_dims, integers
from tapegrad.ops._kernel import KernelOp, kernel_op
from tapegrad.ops._rule import PUBLIC
from tapegrad.ops.shaping import reshape_fresh
from tapegrad.tensor import Tensor

P: Any = None  # pointer to elements
T: Any = None  # scalar type
SIZE: Any = None  # bytes of an element

# moving elements round: each result index names one source index, d by d, as (start + sign * i) mod extent


def _rearrange(
    op: KernelOp, x: Tensor, shape: Sequence[int], rules: Sequence[tuple[int, int, int]], one_to_one: bool
) -> Tensor:
    lines = math.prod(shape[:-1])
    items = max(lines, 1) if one_to_one else 1
    words = [rt.layout(tuple(x.shape)), int(one_to_one), *(w for rule in rules for w in rule)]
    return op.launch([x], shape, x.dtype, words, items, max(1, 2 * math.prod(shape) // items))


@internal
def _rearranged_line(S, strided, extents, rules, j):
    offset = 0
    for d in range(layout_of(S, extents).ndim - 2, -1, -1):
        extent = shape_of(S, extents)[d]
        q = j // extent
        k = (i64(rules)[3 * d] + i64(rules)[3 * d + 1] * (j - q * extent)) % i64(rules)[3 * d + 2]
        offset += k * strides_of(S, strided)[d]
        j = q
    return offset


def _rearrange_kernel(S, row, start, stop):
    r = row_at(row)
    a = buffer_of(S, r.in0)
    out = buffer_of(S, r.out)
    rules = r.attr + 48
    shown = layout_of(S, out.layout)
    last = shown.ndim - 1
    n = shape_of(S, out.layout)[last]
    if shown.elements > 0:
        lines = shown.elements // n
        items = i64(r.attr)[2]
        step = strides_of(S, a.layout)[last]
        extent = i64(rules)[3 * last + 2]
        for j in range(start * lines // items, stop * lines // items):
            x = P(a.data + _rearranged_line(S, a.layout, out.layout, rules, j) * SIZE)
            y = P(out.data + j * n * SIZE)
            k = i64(rules)[3 * last]
            if i64(rules)[3 * last + 1] < 0:
                if step == 1:
                    x = P(a.data + (_rearranged_line(S, a.layout, out.layout, rules, j) + k - n + 1) * SIZE)
                    for i in range(n):
                        y[i] = x[n - 1 - i]
                else:
                    for i in range(n):
                        y[i] = x[(k - i) * step]
            else:
                i = 0
                while i < n:
                    m = min(extent - k, n - i)
                    if step == 1:
                        for t in range(m):
                            y[i + t] = x[k + t]
                    else:
                        for t in range(m):
                            y[i + t] = x[(k + t) * step]
                    i += m
                    k = 0


def _rearrange_reverse(S, row, start, stop):
    r = row_at(row)
    out = buffer_of(S, r.out)
    target = i64(S + ADJOINT_OFFSET)[0]
    write = i64(S + STORE_OFFSET)[0]
    where = i64(r.attr)[4]
    rules = r.attr + 48
    shown = layout_of(S, out.layout)
    last = shown.ndim - 1
    n = shape_of(S, out.layout)[last]
    if write == 1 and i64(r.attr)[5] == 0:
        memset(target, 0, layout_of(S, where).elements * SIZE)
        write = 0
    if shown.elements > 0:
        lines = shown.elements // n
        items = i64(r.attr)[2]
        extent = i64(rules)[3 * last + 2]
        sign = i64(rules)[3 * last + 1]
        for j in range(start * lines // items, stop * lines // items):
            y = P(target + _rearranged_line(S, where, out.layout, rules, j) * SIZE)
            g = P(out.adj + j * n * SIZE)
            k = i64(rules)[3 * last]
            if sign < 0:
                for i in range(n):
                    if write == 1:
                        y[k - i] = g[i]
                    else:
                        y[k - i] += g[i]
            else:
                i = 0
                while i < n:
                    m = min(extent - k, n - i)
                    for t in range(m):
                        if write == 1:
                            y[k + t] = g[i + t]
                        else:
                            y[k + t] += g[i + t]
                    i += m
                    k = 0


def _rearranging(op: KernelOp) -> KernelOp:
    op.forward(_rearrange_kernel)
    op.reverse_kernel(_rearrange_reverse)
    return op


def _flip_rules(shape: Sequence[int], dims: Sequence[int]) -> list[tuple[int, int, int]]:
    return [(n - 1, -1, n) if d in dims else (0, 1, n) for d, n in enumerate(shape)]


@kernel_op(
    inputs=["x"],
    reference=np.flip,
    samples=[((2, 3), {"args": (0,)}), ((2, 3, 4), {"args": ((0, 2),)}), ((5,), {"args": (0,)})],
)
def flip(op, x, *dims):
    """Elements in reverse order along dimensions; a copy.

    Args:
        x: the tensor.
        dims: the dimensions.

    >>> import tapegrad as tg
    >>> tg.flip(tg.tensor([1, 2, 3]), [0])
    tensor([3, 2, 1])
    """
    check_tensor("flip", x)
    found = distinct_dims(integers("flip", dims, "dims"), x.ndim)
    if x.ndim == 0:
        return x.clone()
    return _rearrange(op, x, x.shape, _flip_rules(x.shape, found), True)


@kernel_op(
    inputs=["x"],
    reference=np.flip,
    samples=[((2, 3), {"args": ((0,),)})],
    grad_name="Rot90Backward0",
    method=False,
    public=False,
)
def turn(op, x, dims):
    """The copying half of `rot90`: elements in reverse order along dimensions."""
    return _rearrange(op, x, x.shape, _flip_rules(x.shape, dims), True)


@turn.backward
@flip.backward
def _(g, words):
    return flip(g, [d for d in range(g.ndim) if words[2 + 3 * d + 1] < 0])


@kernel_op(
    inputs=["x"],
    reference=np.roll,
    samples=[((2, 3), {"args": (1,)}), ((2, 3), {"args": (-1, 1)}), ((4, 3), {"args": ((1, 5), (0, 1))})],
)
def roll(op, x, shifts, dims=()):
    """Elements moved along dimensions, those pushed out at the end coming back at the start.

    Args:
        x: the tensor.
        shifts: by how much, for each dimension.
        dims: the dimensions; without them the flattened tensor is rolled.

    >>> import tapegrad as tg
    >>> tg.roll(tg.tensor([1, 2, 3]), 1)
    tensor([3, 1, 2])
    """
    check_tensor("roll", x)
    moves = integers("roll", (shifts,), "shifts")
    where = integers("roll", (dims,), "dims")
    if not where:
        if len(moves) != 1:
            raise RuntimeError(f"shifts and dimensions must align. shifts: {len(moves)}, dims:0")
        flat = x.reshape(-1)
        n = flat.shape[0]
        if n == 0 or x.ndim == 0:
            return x.clone()
        shape = tuple(x.shape)
        if x.ndim == 1:
            return _rearrange(op, x, shape, [((-moves[0]) % n, 1, n)], True)
        return reshape_fresh(_rearrange(op, flat, (n,), [((-moves[0]) % n, 1, n)], True), shape)
    if len(moves) != len(where):
        raise RuntimeError(f"shifts and dimensions must align. shifts: {len(moves)}, dims:{len(where)}")
    total = [0] * x.ndim
    for shift, d in zip(moves, where, strict=True):
        total[check_dim(d, x.ndim)] += shift
    if x.ndim == 0:
        return x.clone()
    return _rearrange(op, x, x.shape, [((-s) % max(n, 1), 1, n) for s, n in zip(total, x.shape)], True)


@roll.backward
def _(g, words):
    return roll(g, tuple(words[2::3]), tuple(range(g.ndim)))


@kernel_op(
    inputs=["x"],
    reference=lambda x, *n: np.tile(x, n),
    samples=[((2, 3), {"args": (2, 1)}), ((3,), {"args": (2, 3)}), ((2, 1), {"args": (1, 1, 4)})],
)
def repeat(op, x, *repeats):
    """The tensor many times over along each dimension.

    Args:
        x: the tensor.
        repeats: how many times, one number a dimension; further ones in front make new dimensions.

    >>> import tapegrad as tg
    >>> tg.tensor([1, 2]).repeat(2, 2)
    tensor([[1, 2, 1, 2],
            [1, 2, 1, 2]])
    """
    times = integers("repeat", repeats, "repeats")
    if any(n < 0 for n in times):
        raise RuntimeError(f"Trying to create tensor with negative dimension: repeats {list(times)}")
    if len(times) < x.ndim:
        raise RuntimeError("Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor")
    if not times:
        return x.clone()
    padded = x if len(times) == x.ndim else x.view((1,) * (len(times) - x.ndim) + tuple(x.shape))
    shape = [n * t for n, t in zip(padded.shape, times, strict=True)]
    return _rearrange(op, padded, shape, [(0, 1, n) for n in padded.shape], all(n == 1 for n in times))


@repeat.backward
def _(g, words):
    # what the native kernel does in one pass: the copies along each dim under one another, added up
    extents = words[4::3]
    copies = [w for n, m in zip(extents, g.shape, strict=True) for w in (m // n if n else 1, n)]
    return g.reshape(copies).sum(list(range(0, len(copies), 2)))


for _op in (flip, turn, roll, repeat):
    _rearranging(_op)
del PUBLIC["repeat"]


# triangles and diagonals


def _triangle(op: KernelOp, x: Tensor, diagonal: int, upper: bool) -> Tensor:
    check_tensor(op.name, x)
    if x.ndim < 2:
        raise RuntimeError(f"{op.name}: input tensor must have at least 2 dimensions")
    lines = math.prod(x.shape[:-1])
    words = [diagonal.__index__(), int(upper)]
    return op.launch([x], x.shape, x.dtype, words, max(lines, 1), x.shape[-1] + 1)


def _triangle_kernel(S, row, start, stop):
    r = row_at(row)
    a = buffer_of(S, r.in0)
    out = buffer_of(S, r.out)
    diagonal, upper = i64(r.attr)[4], i64(r.attr)[5]
    ndim = layout_of(S, out.layout).ndim
    rows, n = shape_of(S, out.layout)[ndim - 2], shape_of(S, out.layout)[ndim - 1]
    step = strides_of(S, a.layout)[ndim - 1]
    if layout_of(S, out.layout).elements > 0:
        for j in range(start, stop):
            x = P(a.data + line_offset(S, a.layout, out.layout, j, -1) * SIZE)
            y = P(out.data + j * n * SIZE)
            edge = j % rows + diagonal
            first = min(max(edge, 0), n) if upper else 0
            last = n if upper else max(min(edge + 1, n), 0)
            for i in range(first):
                y[i] = 0
            for i in range(first, last):
                y[i] = x[i * step]
            for i in range(max(last, first), n):
                y[i] = 0


def _triangle_reverse(S, row, start, stop):
    r = row_at(row)
    out = buffer_of(S, r.out)
    diagonal, upper = i64(r.attr)[4], i64(r.attr)[5]
    ndim = layout_of(S, out.layout).ndim
    rows, n = shape_of(S, out.layout)[ndim - 2], shape_of(S, out.layout)[ndim - 1]
    write = i64(S + STORE_OFFSET)[0]
    if layout_of(S, out.layout).elements > 0:
        for j in range(start, stop):
            g = P(out.adj + j * n * SIZE)
            y = P(i64(S + ADJOINT_OFFSET)[0] + j * n * SIZE)
            edge = j % rows + diagonal
            first = min(max(edge, 0), n) if upper else 0
            last = n if upper else max(min(edge + 1, n), 0)
            if write == 1:
                for i in range(n):
                    y[i] = 0
            for i in range(first, last):
                y[i] += g[i]


@kernel_op(
    inputs=["x"],
    reference=np.tril,
    samples=[((3, 4), {"args": ()}), ((2, 3, 3), {"args": (1,)}), ((3, 2), {"args": (-1,)})],
)
def tril(op, x, diagonal=0):
    """The lower triangle of matrices, zero above a diagonal.

    >>> import tapegrad as tg
    >>> tg.tril(tg.ones(2, 2))
    tensor([[1., 0.],
            [1., 1.]])
    """
    return _triangle(op, x, diagonal, False)


@tril.backward
def _(g, words):
    return tril(g, words[0])


@kernel_op(
    inputs=["x"],
    reference=np.triu,
    samples=[((3, 4), {"args": ()}), ((2, 3, 3), {"args": (1,)}), ((3, 2), {"args": (-1,)})],
)
def triu(op, x, diagonal=0):
    """The upper triangle of matrices, zero below a diagonal."""
    return _triangle(op, x, diagonal, True)


@triu.backward
def _(g, words):
    return triu(g, words[0])


for _op in (tril, triu):
    _op.forward(_triangle_kernel)
    _op.reverse_kernel(_triangle_reverse)


@kernel_op(
    inputs=["x"],
    reference=lambda x, offset=0: np.stack([np.diag(r, offset) for r in x.reshape(-1, x.shape[-1])]).reshape(
        *x.shape[:-1], x.shape[-1] + abs(offset), -1
    ),
    samples=[((3,), {"args": (0,)}), ((2, 3), {"args": (1,)}), ((2, 2), {"args": (-2,)})],
    grad_name="DiagEmbedBackward0",
    method=False,
    public=False,
)
def diagonal_matrices(op, x, offset=0):
    """Square matrices with the lines of a tensor on one diagonal; see `diag_embed`."""
    m = x.shape[-1]
    n = m + abs(offset)
    lines = math.prod(x.shape[:-1])
    shape = (*x.shape[:-1], n, n)
    return op.launch([x], shape, x.dtype, [offset, n], max(lines, 1), n * n + 1)


@diagonal_matrices.forward
def _diagonal_kernel(S, row, start, stop):
    r = row_at(row)
    a = buffer_of(S, r.in0)
    out = buffer_of(S, r.out)
    offset, n = i64(r.attr)[4], i64(r.attr)[5]
    last = layout_of(S, a.layout).ndim - 1
    m = shape_of(S, a.layout)[last]
    step = strides_of(S, a.layout)[last]
    if layout_of(S, out.layout).elements > 0:
        memset(out.data + start * n * n * SIZE, 0, (stop - start) * n * n * SIZE)
        for j in range(start, stop):
            x = P(a.data + line_offset(S, a.layout, a.layout, j, -1) * SIZE)
            y = P(out.data + (j * n * n + max(-offset, 0) * n + max(offset, 0)) * SIZE)
            for i in range(m):
                y[i * (n + 1)] = x[i * step]


@diagonal_matrices.backward
def _(g, words):
    return g.diagonal(words[0], -2, -1)
