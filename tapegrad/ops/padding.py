"""Borders around a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad.engine.structs import ADJOINT_OFFSET, STORE_OFFSET, buffer_of, f64, i64, internal, row_at
from tapegrad.ops._kernel import kernel_op
from tapegrad.ops._operands import struct_bits
from tapegrad.tensor import Tensor

P = T = None

# attribute words: dims, the constant, then extents of the operand, widths before, and extents of the result


@internal
def _source_row(words, row):
    """First element of the operand's row that lies in one row of the result, -1 if none does."""
    ndim = words[4]
    offset, step = 0, words[6 + ndim - 1]
    for d in range(ndim - 2, -1, -1):
        extent = words[6 + 2 * ndim + d]
        q = row // extent
        place = row - q * extent - words[6 + ndim + d]
        if place < 0 or place >= words[6 + d]:
            return -1
        offset += place * step
        step *= words[6 + d]
        row = q
    return offset


def _pad_kernel(S, row, start, stop):
    r = row_at(row)
    words = i64(r.attr)
    ndim = words[4]
    value = T(f64(r.attr)[5])
    x, out = P(buffer_of(S, r.in0).data), P(buffer_of(S, r.out).data)
    width, before, length = words[6 + 3 * ndim - 1], words[6 + 2 * ndim - 1], words[6 + ndim - 1]
    for k in range(start, stop):
        source = _source_row(words, k)
        base = k * width
        for i in range(width):
            j = i - before
            if source >= 0 and j >= 0 and j < length:
                out[base + i] = x[source + j]
            else:
                out[base + i] = value


def _pad_reverse(S, row, start, stop):
    # the first chunk of items does all the work: a block of zeros has to be there before rows are added
    if start > 0:
        return
    r = row_at(row)
    words = i64(r.attr)
    ndim = words[4]
    g = P(buffer_of(S, r.out).adj)
    adjoint = P(i64(S + ADJOINT_OFFSET)[0])
    width, before, length = words[6 + 3 * ndim - 1], words[6 + 2 * ndim - 1], words[6 + ndim - 1]
    if i64(S + STORE_OFFSET)[0] == 1:
        elements = 1
        for d in range(ndim):
            elements *= words[6 + d]
        for i in range(elements):
            adjoint[i] = 0
    for k in range(words[2]):
        source = _source_row(words, k)
        if source >= 0:
            for j in range(max(0, -before), min(length, width - before)):
                adjoint[source + j] += g[k * width + before + j]


@kernel_op(
    inputs=["x"],
    reference=lambda x, pairs, value=0: np.pad(x, pairs, constant_values=value),
    samples=[(((2, 3),), {"args": ([(1, 2), (0, 1)],)}), (((4,),), {"args": ([(2, 0)], 1.5)})],
    grad_name="ConstantPadNdBackward0",
    method=False,
    public=False,
)
def constant_pad(op, input: Tensor, pairs: Sequence[tuple[int, int]], value: Any = 0) -> Tensor:
    """A tensor with a border of a constant.

    Args:
        input: the tensor.
        pairs: widths before and after each dim; negative ones cut.
        value: of the border.

    Raises:
        RuntimeError: if nothing of an extent were left.
    """
    if not input.ndim:
        return input.clone()  # type: ignore[attr-defined]
    shape = [n + a + b for n, (a, b) in zip(input.shape, pairs, strict=True)]
    if min(shape) < 0:
        raise RuntimeError("narrow(): length must be non-negative.")
    x = input.contiguous()  # type: ignore[attr-defined]
    bits = struct_bits(float(value))
    words = [x.ndim, bits, *x.shape, *(a for a, _ in pairs), *shape]
    rows = math.prod(shape[:-1])
    return op.launch([x], shape, x.dtype, words, rows, shape[-1] * 2)


constant_pad.forward(_pad_kernel)


@constant_pad.backward
def _(g, words):
    ndim = words[0]
    extents, before, padded = (words[2 + k * ndim : 2 + (k + 1) * ndim] for k in range(3))
    return constant_pad(g, [(-a, a + n - m) for n, a, m in zip(extents, before, padded, strict=True)])


constant_pad.reverse_kernel(_pad_reverse)
