"""Tensors joined along a dimension, an old one or a new one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.engine.layout import line_offset
from tapegrad.engine.structs import (
    buffer_of,
    i64,
    layout_of,
    memcpy,
    row_at,
    shape_of,
    strides_of,
)
from tapegrad.metadata import check_dim
from tapegrad.ops._arguments import check_tensors
from tapegrad.ops._kernel import KernelOp, kernel_op
from tapegrad.ops._operands import cast
from tapegrad.ops._public import export
from tapegrad.ops._rule import Real
from tapegrad.tensor import Tensor

P: Any = None  # pointer to elements
T: Any = None  # scalar type
SIZE: Any = None  # bytes of an element


def _tensor_list(name: str, tensors: Any) -> list[Tensor]:
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(
            f"{name}(): argument 'tensors' (position 1) must be tuple of Tensors, not {type(tensors).__name__}"
        )
    check_tensors(tensors, 0)
    return list(tensors)


def _promoted(tensors: Sequence[Tensor]) -> list[Tensor]:
    common = tensors[0].dtype
    for t in tensors[1:]:
        common = dtypes.promote_types(common, t.dtype)
    return [cast(t, common) for t in tensors]


def _join(op: KernelOp, tensors: Sequence[Tensor], dim: int, shape: Sequence[int], extents: Sequence[int]) -> Tensor:
    # the result is `outer` blocks, each one block of every tensor after another
    tensors = _promoted(tensors)
    outer = math.prod(shape[:dim])
    tail = math.prod(shape[dim + 1 :])
    by_tensor = outer == 1
    items = len(tensors) if by_tensor else max(outer, 1)
    work = max(1, math.prod(shape) // items)
    words = [dim, outer, int(by_tensor), *(n * tail for n in extents), *extents]
    return op.launch(tensors[:1], shape, tensors[0].dtype, words, items, work, tensors[1:])


def _join_kernel(S, row, start, stop):
    r = row_at(row)
    extra = i64(r.attr)[1]
    words = r.attr + (4 + extra) * 8
    outer = i64(words)[1]
    by_tensor = i64(words)[2]
    out = buffer_of(S, r.out).data
    total = 0
    for k in range(extra + 1):
        total += i64(words)[3 + k]
    before = 0
    for k in range(extra + 1):
        block = i64(words)[3 + k]
        first, last = (0, outer) if by_tensor else (start, min(stop, outer))
        if block > 0 and (not by_tensor or start <= k < stop):
            b = buffer_of(S, r.in0 if k == 0 else i64(r.attr)[1 + k])
            layout = layout_of(S, b.layout)
            if layout.contiguous == b.layout:
                if block == 1:
                    x = P(b.data)
                    y = P(out + before * SIZE)
                    for o in range(first, last):
                        y[o * total] = x[o]
                elif block > 4:
                    for o in range(first, last):
                        memcpy(out + (o * total + before) * SIZE, b.data + o * block * SIZE, block * SIZE)
                else:
                    for o in range(first, last):
                        x = P(b.data + o * block * SIZE)
                        y = P(out + (o * total + before) * SIZE)
                        for i in range(block):
                            y[i] = x[i]
            else:
                run = 1
                step = 0
                if layout.ndim > 0:
                    run = shape_of(S, b.layout)[layout.ndim - 1]
                    step = strides_of(S, b.layout)[layout.ndim - 1]
                e = first * block
                while e < last * block:
                    j = e // run
                    o = e // block
                    m = min(min(run - (e - j * run), (o + 1) * block - e), last * block - e)
                    x = P(b.data + (line_offset(S, b.layout, b.layout, j, -1) + (e - j * run) * step) * SIZE)
                    y = P(out + (o * total + before + e - o * block) * SIZE)
                    for i in range(m):
                        y[i] = x[i * step]
                    e += m
        before += block


@kernel_op(
    inputs=["first"],
    reference=lambda *arrays, dim=0: np.concatenate(arrays, dim),
    domain=Real(),
    grad_name="CatBackward0",
    method=False,
    public=False,
)
def join(op, tensors, dim, shape, extents):
    """Tensors after one another along a dimension; see `cat`."""
    return _join(op, tensors, dim, shape, extents)


@join.backward
def _(g, words):
    dim, sizes = words[0], words[3:]
    extents = sizes[len(sizes) // 2 :]
    parts, at = [], 0
    for n in extents:
        parts.append(g.narrow(dim, at, n))
        at += n
    return [parts[0], None, None, *parts[1:]]


@kernel_op(
    inputs=["first"],
    reference=lambda *arrays, dim=0: np.stack(arrays, dim),
    domain=Real(),
    grad_name="StackBackward0",
    method=False,
    public=False,
)
def pile(op, tensors, dim, shape, extents):
    """Tensors of one shape along a new dimension; see `stack`."""
    return _join(op, tensors, dim, shape, extents)


@pile.backward
def _(g, words):
    parts = [g.select(words[0], k) for k in range((len(words) - 3) // 2)]
    return [parts[0], None, None, *parts[1:]]


join.forward(_join_kernel)
pile.forward(_join_kernel)


def cat(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None, out: Any = None) -> Tensor:
    """Tensors joined along a dimension they have.

    Args:
        tensors: of equal extents in the other dimensions; 1-D tensors without elements among others are skipped.
        dim: the dimension.
        axis: another name for `dim`.
        out: a tensor to write the result to.

    Raises:
        RuntimeError: if shapes do not fit.

    >>> import tapegrad as tg
    >>> tg.cat([tg.tensor([1, 2]), tg.tensor([3])])
    tensor([1, 2, 3])
    """
    given = _tensor_list("cat", tensors)
    if not given:
        raise ValueError("cat(): expected a non-empty list of Tensors")
    for position, t in enumerate(given):
        if t.ndim == 0:
            raise RuntimeError(f"zero-dimensional tensor (at position {position}) cannot be concatenated")
    lines = all(t.ndim == 1 for t in given)
    numbered = [(k, t) for k, t in enumerate(given) if lines or t.shape != (0,)]
    kept = [t for _, t in numbered]
    if len(kept) != len(given):
        common = _promoted(given)[0].dtype
        kept = [cast(t, common) for t in kept] or [cast(given[0], common)]
        numbered = numbered or [(0, kept[0])]
    first = kept[0].shape
    dim = check_dim(dim if axis is None else axis, len(first))
    for k, t in numbered:
        if t.ndim != len(first):
            raise RuntimeError(f"Tensors must have same number of dimensions: got {len(first)} and {t.ndim}")
        for d, (a, b) in enumerate(zip(first, t.shape, strict=True)):
            if d != dim and a != b:
                raise RuntimeError(
                    f"Sizes of tensors must match except in dimension {dim}. Expected size {a} but got size {b} for tensor "
                    f"number {k} in the list."
                )
    # gradients, without elements too, flow to what was skipped
    none = (*first[:dim], 0, *first[dim + 1 :])
    kept += [t.reshape(none) for t in given if t.shape != first and t.shape == (0,) and t.requires_grad]
    extents = [t.shape[dim] for t in kept]
    joined = join(kept, dim, (*first[:dim], sum(extents), *first[dim + 1 :]), extents)
    return joined if out is None else out.copy_(joined)


def stack(tensors: Sequence[Tensor], dim: int = 0, *, out: Any = None) -> Tensor:
    """Tensors of one shape joined along a new dimension.

    Args:
        tensors: of equal shape.
        dim: where the new dimension goes.
        out: a tensor to write the result to.

    Raises:
        RuntimeError: if shapes differ.

    >>> import tapegrad as tg
    >>> tg.stack([tg.tensor([1, 2]), tg.tensor([3, 4])], dim=1)
    tensor([[1, 3],
            [2, 4]])
    """
    given = _tensor_list("stack", tensors)
    if not given:
        raise RuntimeError("stack expects a non-empty TensorList")
    shape = given[0].shape
    dim = check_dim(dim, len(shape) + 1)
    for k, t in enumerate(given):
        if t.shape != shape:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(shape)} at entry 0 and {list(t.shape)} at entry {k}"
            )
    piled = pile(given, dim, (*shape[:dim], len(given), *shape[dim:]), [1] * len(given))
    return piled if out is None else out.copy_(piled)


for _function, _names in ((cat, ("concat", "concatenate")), (stack, ())):
    export(_function, *_names, method=False)
