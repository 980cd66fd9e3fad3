"""Kernels that take rows of a tensor by number and put rows back, and their kin along one dimension.

A tensor is seen as ``[outer, rows, inner]`` and an index as row numbers in ``[0, rows)``, checked before a kernel runs. Where
rows may repeat, work is split by target rows: sums are added in one order whatever the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tapegrad.engine.layout import line_offset
from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import (
    ADJOINT_OFFSET,
    STORE_OFFSET,
    buffer_of,
    i64,
    layout_of,
    memcpy,
    memset,
    row_at,
    shape_of,
    strides_of,
)
from tapegrad.ops._kernel import KernelOp
from tapegrad.ops._rule import Real
from tapegrad.tensor import Tensor

P: Any = None  # pointer to elements
T: Any = None  # scalar type
SIZE: Any = None  # bytes of an element


def common_stride(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride of some dims seen as one; None if they do not lie in memory as one."""
    found = None
    reach = 0
    for n, s in zip(reversed(shape), reversed(strides), strict=True):
        if n == 1:
            continue
        if found is None:
            found, reach = s, s * n
        elif s != reach:
            return None
        else:
            reach *= n
    return 1 if found is None else found


# the public function of each op that has no reference of its own
_PUBLIC_FORM = {
    "put_at": "index_put",
    "scatter_tensor": "scatter",
    "scatter_number": "scatter",
    "scatter_sum": "scatter_add",
    "add_rows": "index_add",
    "copy_rows": "index_copy",
    "fill_rows": "index_fill",
    "put_masked": "masked_scatter",
}


def _tested_with_indices(op: KernelOp) -> None:
    # samples are shapes and numbers; indices within bounds are chosen by the tests of this family
    op.domain = Real()
    op.covered_by = _PUBLIC_FORM.get(op.name, "")


# taking rows


def take_rows(
    op: KernelOp, x: Tensor, index: Tensor, first: int, last: int, shape: Sequence[int], skipped: int = -1
) -> Tensor:
    """Launch an op made by `taking`.

    Args:
        op: the op.
        x: the tensor.
        index: contiguous int64 numbers of places of dims ``first`` to ``last``, seen as one.
        first: the first indexed dim.
        last: the dim after the last indexed one.
        shape: of the result.
        skipped: a row that gets no gradient.
    """
    extents = tuple(x.shape)
    outer, rows, inner = math.prod(extents[:first]), math.prod(extents[first:last]), math.prod(extents[last:])
    steps = [rows * inner, inner, 1]
    if not x.is_contiguous():
        own = x.stride()
        spans = ((0, first), (first, last), (last, len(extents)))
        found = [common_stride(extents[a:b], own[a:b]) for a, b in spans]
        if None in found:
            x = x.contiguous()  # type: ignore[attr-defined]
        else:
            steps = found  # type: ignore[assignment]
    count = index.numel()
    items, work = _items(outer, count, inner)
    words = [outer, rows, inner, count, *steps, skipped, first, last]
    return op.launch([x, index], shape, x.dtype, words, items, work)


def _items(outer: int, count: int, inner: int) -> tuple[int, int]:
    items = max(outer * count if inner >= 16 else outer, 1)
    return items, max(1, outer * count * inner * 4 // items)


def _take_kernel(S, row, start, stop):
    r = row_at(row)
    words = i64(r.attr)
    outer, inner, count = words[4], words[6], words[7]
    step_outer, step_row, step = words[8], words[9], words[10]
    items = words[2]
    index = i64(buffer_of(S, r.in1).data)
    data = buffer_of(S, r.in0).data
    out = buffer_of(S, r.out).data
    first = start * (outer * count) // items
    last = stop * (outer * count) // items
    if inner == 1:
        x = P(data)
        y = P(out)
        if outer == 1:
            for p in range(first, last):
                y[p] = x[index[p] * step_row]
        elif count > 0:
            for p in range(first, last):
                o = p // count
                y[p] = x[o * step_outer + index[p - o * count] * step_row]
    elif count > 0:
        for p in range(first, last):
            o = p // count
            x = P(data + (o * step_outer + index[p - o * count] * step_row) * SIZE)
            y = P(out + p * inner * SIZE)
            if step == 1:
                for i in range(inner):
                    y[i] = x[i]
            else:
                for i in range(inner):
                    y[i] = x[i * step]


def _take_reverse(S, row, start, stop):
    r = row_at(row)
    words = i64(r.attr)
    outer, rows, inner, count = words[4], words[5], words[6], words[7]
    skipped = words[11]
    items = words[2]
    index = i64(buffer_of(S, r.in1).data)
    target = i64(S + ADJOINT_OFFSET)[0]
    g = buffer_of(S, r.out).adj
    first = start * (outer * rows) // items
    last = stop * (outer * rows) // items
    if i64(S + STORE_OFFSET)[0] == 1 and last > first:
        memset(target + first * inner * SIZE, 0, (last - first) * inner * SIZE)
    if last > first:
        for o in range(first // rows, (last - 1) // rows + 1):
            low, high = first - o * rows, last - o * rows
            for q in range(count):
                k = index[q]
                if low <= k < high and k != skipped:
                    x = P(g + (o * count + q) * inner * SIZE)
                    y = P(target + (o * rows + k) * inner * SIZE)
                    for i in range(inner):
                        y[i] += x[i]


def taking(op: KernelOp) -> KernelOp:
    """Give an op that takes rows its kernels and its derivative."""
    _tested_with_indices(op)
    op.forward(_take_kernel)

    @op.backward
    def _(g, index, words):
        # what the native kernel does without a second block
        from tapegrad.ops.indexing import put_back

        return put_back(g, index, words)

    op.reverse_kernel(_take_reverse)
    return op


# putting rows


def put_rows(
    op: KernelOp,
    x: Tensor,
    index: Tensor,
    values: Tensor,
    first: int,
    last: int,
    shape: Sequence[int],
    accumulate: bool,
) -> Tensor:
    """Launch an op made by `putting`; `shape` is that of the rows taken, which `values` broadcast to."""
    extents = tuple(x.shape)
    outer, rows, inner = math.prod(extents[:first]), math.prod(extents[first:last]), math.prod(extents[last:])
    single = values.numel() == 1
    if not single:
        if tuple(values.shape) != tuple(shape):
            values = values.expand(shape)  # type: ignore[attr-defined]
        values = values.contiguous()  # type: ignore[attr-defined]
    count = index.numel()
    items, work = (max(outer, 1), 1) if inner < 16 else (max(outer * rows, 1), 1)
    work = max(1, (outer * rows * inner * 2 + outer * count * inner * 4) // items)
    words = [
        outer,
        rows,
        inner,
        count,
        int(accumulate),
        int(single),
        first,
        last,
        len(extents),
        *extents,
        *shape,
    ]
    return op.launch([x.contiguous(), index, values], extents, x.dtype, words, items, work)  # type: ignore[attr-defined]


def _put_kernel(S, row, start, stop):
    r = row_at(row)
    words = i64(r.attr)
    outer, rows, inner, count = words[4], words[5], words[6], words[7]
    accumulate, single = words[8], words[9]
    items = words[2]
    data = buffer_of(S, r.in0).data
    index = i64(buffer_of(S, r.in1).data)
    values = buffer_of(S, r.in2).data
    out = buffer_of(S, r.out).data
    first = start * (outer * rows) // items
    last = stop * (outer * rows) // items
    if last > first and inner > 0:
        memcpy(out + first * inner * SIZE, data + first * inner * SIZE, (last - first) * inner * SIZE)
        step = 0 if single else 1
        for o in range(first // rows, (last - 1) // rows + 1):
            low, high = first - o * rows, last - o * rows
            for q in range(count):
                k = index[q]
                if low <= k < high:
                    x = P(values + (o * count + q) * inner * step * SIZE)
                    y = P(out + (o * rows + k) * inner * SIZE)
                    if accumulate:
                        for i in range(inner):
                            y[i] += x[i * step]
                    else:
                        for i in range(inner):
                            y[i] = x[i * step]


def putting(op: KernelOp) -> KernelOp:
    """Give an op that puts rows its kernel and its derivative."""
    _tested_with_indices(op)
    op.forward(_put_kernel)

    @op.backward
    def _(g, index, need, words):
        from tapegrad.ops.indexing import keep_rest, take_back

        accumulate = words[4]
        to_x = None
        if need & 1:
            to_x = g if accumulate else keep_rest(g, index, words)
        return to_x, None, take_back(g, index, words) if need & 4 else None

    return op


# along one dimension: each line of the index names places of that dimension


def _split(x: Tensor, index: Tensor, dim: int) -> int:
    # leading dims shared by both are work items: their targets never meet
    lead = tuple(index.shape[:dim])
    return max(math.prod(lead), 1) if lead == tuple(x.shape[:dim]) else 1


def gather_along(op: KernelOp, x: Tensor, dim: int, index: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Launch an op made by `gathering`; the index is contiguous int64 and within bounds, the result has its shape or another."""
    items = _split(x, index, dim)
    words = [dim, rt.layout(tuple(x.shape))]
    shape = index.shape if shape is None else shape
    return op.launch([x, index], shape, x.dtype, words, items, max(1, index.numel() * 8 // items))


def _gather_kernel(S, row, start, stop):
    r = row_at(row)
    dim = i64(r.attr)[4]
    items = i64(r.attr)[2]
    a = buffer_of(S, r.in0)
    shown = buffer_of(S, r.in1).layout
    index = i64(buffer_of(S, r.in1).data)
    y = P(buffer_of(S, r.out).data)
    last = layout_of(S, shown).ndim - 1
    n = shape_of(S, shown)[last]
    along = strides_of(S, a.layout)[dim]
    step = 0 if dim == last else strides_of(S, a.layout)[last]
    if layout_of(S, shown).elements > 0:
        lines = layout_of(S, shown).elements // n
        for j in range(start * lines // items, stop * lines // items):
            x = P(a.data + line_offset(S, a.layout, shown, j, dim) * SIZE)
            for i in range(n):
                y[j * n + i] = x[index[j * n + i] * along + i * step]


def _gather_reverse(S, row, start, stop):
    r = row_at(row)
    dim, where = i64(r.attr)[4], i64(r.attr)[5]
    items = i64(r.attr)[2]
    shown = buffer_of(S, r.in1).layout
    index = i64(buffer_of(S, r.in1).data)
    g = P(buffer_of(S, r.out).adj)
    target = i64(S + ADJOINT_OFFSET)[0]
    last = layout_of(S, shown).ndim - 1
    n = shape_of(S, shown)[last]
    along = strides_of(S, where)[dim]
    step = 0 if dim == last else strides_of(S, where)[last]
    block = layout_of(S, where).elements // items
    if i64(S + STORE_OFFSET)[0] == 1:
        memset(target + start * block * SIZE, 0, (stop - start) * block * SIZE)
    if layout_of(S, shown).elements > 0:
        lines = layout_of(S, shown).elements // n
        for j in range(start * lines // items, stop * lines // items):
            y = P(target + line_offset(S, where, shown, j, dim) * SIZE)
            for i in range(n):
                y[index[j * n + i] * along + i * step] += g[j * n + i]


def gathering(op: KernelOp) -> KernelOp:
    """Give an op that picks elements along a dimension its kernels and its derivative."""
    _tested_with_indices(op)
    op.forward(_gather_kernel)

    @op.backward
    def _(g, index, words):
        # what the native kernel does without a second block
        from tapegrad.ops.selecting import scatter_back

        return scatter_back(g, index, words)

    op.reverse_kernel(_gather_reverse)
    return op


def scatter_along(op: KernelOp, x: Tensor, dim: int, index: Tensor, source: Tensor, accumulate: bool) -> Tensor:
    """Launch an op made by `scattering`; `source` has at least the extents of the index, or one element."""
    items = _split(x, index, dim)
    single = source.numel() == 1 and source.ndim == 0
    words = [dim, rt.layout(tuple(x.shape)), int(accumulate), int(single)]
    work = max(1, (2 * x.numel() + 8 * index.numel()) // items)
    return op.launch([x.contiguous(), index, source], x.shape, x.dtype, words, items, work)  # type: ignore[attr-defined]


def _scatter_kernel(S, row, start, stop):
    r = row_at(row)
    dim, where = i64(r.attr)[4], i64(r.attr)[5]
    accumulate, single = i64(r.attr)[6], i64(r.attr)[7]
    items = i64(r.attr)[2]
    source = buffer_of(S, r.in2)
    shown = buffer_of(S, r.in1).layout
    index = i64(buffer_of(S, r.in1).data)
    out = buffer_of(S, r.out).data
    last = layout_of(S, shown).ndim - 1
    n = shape_of(S, shown)[last]
    along = strides_of(S, where)[dim]
    step = 0 if dim == last else strides_of(S, where)[last]
    block = layout_of(S, where).elements // items
    data = buffer_of(S, r.in0).data
    memcpy(out + start * block * SIZE, data + start * block * SIZE, (stop - start) * block * SIZE)
    if layout_of(S, shown).elements > 0:
        lines = layout_of(S, shown).elements // n
        for j in range(start * lines // items, stop * lines // items):
            y = P(out + line_offset(S, where, shown, j, dim) * SIZE)
            v = P(source.data)
            s = 0
            if not single:
                v = P(source.data + line_offset(S, source.layout, shown, j, -1) * SIZE)
                s = strides_of(S, source.layout)[last]
            if accumulate:
                for i in range(n):
                    y[index[j * n + i] * along + i * step] += v[i * s]
            else:
                for i in range(n):
                    y[index[j * n + i] * along + i * step] = v[i * s]


def scattering(op: KernelOp) -> KernelOp:
    """Give an op that writes elements along a dimension its kernel and its derivative."""
    _tested_with_indices(op)
    op.forward(_scatter_kernel)

    @op.backward
    def _(g, index, need, words):
        from tapegrad.ops.selecting import gather_from, zero_at

        to_x = None
        if need & 1:
            to_x = g if words[2] else zero_at(g, index, words)
        return to_x, None, gather_from(g, index, words) if need & 4 else None

    return op
