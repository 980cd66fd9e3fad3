"""Views that show a part: places of a dimension, diagonals, windows, any strides."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapegrad.metadata import check_dim
from tapegrad.ops._arguments import check_tensor, integers
from tapegrad.ops._public import export
from tapegrad.ops._view import Geometry, view_op
from tapegrad.tensor import Tensor


def part_of(geometry: Geometry, d: int, start: int, length: int, step: int = 1) -> Geometry:
    """The geometry of `length` places of dimension `d`."""
    shape, strides, offset = geometry
    return Geometry(
        (*shape[:d], length, *shape[d + 1 :]),
        (*strides[:d], strides[d] * step, *strides[d + 1 :]),
        offset + start * strides[d],
    )


def one_of(geometry: Geometry, d: int, index: int) -> Geometry:
    """The geometry of one place of dimension `d`."""
    shape, strides, offset = geometry
    return Geometry((*shape[:d], *shape[d + 1 :]), (*strides[:d], *strides[d + 1 :]), offset + index * strides[d])


@view_op(
    reference=lambda x, d, s, n: np.take(x, np.arange(s, s + n), d),
    samples=[((2, 3), (1, 1, 2)), ((4,), (0, 0, 0))],
    grad_name="SliceBackward0",
)
def narrow(geometry, dim, start, length):
    """`length` places of a dimension, from `start` on.

    >>> import tapegrad as tg
    >>> tg.narrow(tg.arange(5), 0, 1, 3)
    tensor([1, 2, 3])
    """
    if not geometry.shape:
        raise RuntimeError("narrow() cannot be applied to a 0-dim tensor.")
    d = check_dim(dim, len(geometry.shape))
    n = geometry.shape[d]
    start, length = start.__index__(), length.__index__()
    if length < 0:
        raise RuntimeError("narrow(): length must be non-negative.")
    if not -n <= start <= n:
        raise IndexError(f"start out of range (expected to be in range of [{-n}, {n}], but got {start})")
    start += n if start < 0 else 0
    if start + length > n:
        raise RuntimeError(f"start ({start}) + length ({length}) exceeds dimension size ({n}).")
    return part_of(geometry, d, start, length)


@view_op(reference=lambda x, d, i: np.take(x, i, d), samples=[((2, 3), (0, 1)), ((2, 3), (1, -1))])
def select(geometry, dim, index):
    """One place of a dimension, without that dimension."""
    if not geometry.shape:
        raise IndexError("select() cannot be applied to a 0-dim tensor.")
    d = check_dim(dim, len(geometry.shape))
    n, k = geometry.shape[d], index.__index__()
    if not -n <= k < n:
        raise IndexError(f"select(): index {k} out of range for tensor of size {list(geometry.shape)} at dimension {d}")
    return one_of(geometry, d, k % n)


@view_op(reference=np.diagonal, samples=[((3, 4), (0,)), ((2, 3, 4), (1, 0, 2)), ((3, 3), (-1,))])
def diagonal(geometry, offset=0, dim1=0, dim2=1):
    """A diagonal of two dimensions, as a last dimension.

    >>> import tapegrad as tg
    >>> tg.diagonal(tg.arange(4).view(2, 2))
    tensor([0, 3])
    """
    shape, strides, at = geometry
    a, b = check_dim(dim1, len(shape)), check_dim(dim2, len(shape))
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    k = offset.__index__()
    length = max(min(shape[a] + min(k, 0), shape[b] - max(k, 0)), 0)
    if length:
        at += k * strides[b] if k > 0 else -k * strides[a]
    kept = [d for d in range(len(shape)) if d not in (a, b)]
    return Geometry((*(shape[d] for d in kept), length), (*(strides[d] for d in kept), strides[a] + strides[b]), at)


@view_op(
    reference=lambda x, d, n, s: np.lib.stride_tricks.sliding_window_view(x, n, d)[
        tuple(slice(None, None, s) if k == d else slice(None) for k in range(x.ndim))
    ],
    samples=[((5,), (0, 2, 1)), ((5, 3), (0, 3, 2))],
    public=False,
)
def unfold(geometry, dimension, size, step):
    """Every window of `size` places of a dimension, `step` apart, as a last dimension."""
    shape, strides, offset = geometry
    d = check_dim(dimension, len(shape))
    n, own = (shape[d], strides[d]) if shape else (1, 1)
    if size < 0:
        raise RuntimeError(f"size is {size} but must be >= 0")
    if size > n:
        raise RuntimeError(f"maximum size for tensor at dimension {d} is {n} but size is {size}")
    if step <= 0:
        raise RuntimeError(f"step is {step} but must be > 0")
    if not shape:
        return Geometry((size,), (1,), offset)
    count = (n - size) // step + 1
    return Geometry(
        (*shape[:d], count, *shape[d + 1 :], size), (*strides[:d], own * step, *strides[d + 1 :], own), offset
    )


def as_strided(input: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    """Elements of the tensor's memory at any strides.

    Args:
        input: the tensor; to be differentiated it must be contiguous.
        size: the extents.
        stride: elements between neighbours along each dimension.
        storage_offset: first element, counted from the start of the memory; that of the tensor if not given.

    Raises:
        RuntimeError: if the elements are not all in the memory.
    """
    check_tensor("as_strided", input)
    shape, strides = integers("as_strided", (size,)), integers("as_strided", (stride,), "stride")
    if len(shape) != len(strides):
        raise RuntimeError(f"mismatch in length of strides and shape: {list(strides)} and {list(shape)}")
    if any(s < 0 for s in strides):
        raise RuntimeError(f"as_strided: Negative strides are not supported, got strides: {list(strides)}")
    own = input.storage_offset()
    shift = 0 if storage_offset is None else storage_offset - own
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
    held = (
        input.numel()
        if input.is_contiguous()
        else 1 + sum((n - 1) * s for n, s in zip(input.shape, input.stride(), strict=True))
    )
    if reach and (shift < 0 or shift + reach > held):
        raise RuntimeError(
            f"setStorage: sizes {list(shape)}, strides {list(strides)}, storage offset {own + shift} are out of bounds for a tensor "
            f"whose elements span {held} places from offset {own} on"
        )
    if not input.is_contiguous():
        if input.requires_grad:
            raise RuntimeError("as_strided of a tensor that is not contiguous cannot be differentiated")
        return as_strided_view(input.detach(), shape, strides, shift)
    return as_strided_view(input, shape, strides, shift)


@view_op(
    reference=lambda x, n, s, o: np.lib.stride_tricks.as_strided(x.ravel()[o:], n, [k * x.itemsize for k in s]),
    samples=[((6,), ((2, 2), (2, 1), 1))],
    grad_name="AsStridedBackward0",
    method=False,
    public=False,
)
def as_strided_view(geometry, shape, strides, offset):
    """Elements at any strides; see `as_strided`."""
    return Geometry(shape, strides, geometry.offset + offset)


export(as_strided)
