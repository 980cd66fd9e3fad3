"""Views under another shape: extents joined, split, of one, and repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import IS_VIEW
from tapegrad.metadata import check_dim
from tapegrad.ops._arguments import check_tensor, distinct_dims, integers
from tapegrad.ops._operands import broadcast_shapes
from tapegrad.ops._public import export
from tapegrad.ops._view import Geometry, contiguous_geometry, view_op
from tapegrad.ops.convert import clone
from tapegrad.tensor import Tensor

# shapes


def _inferred(shape: tuple[int, ...], elements: int) -> tuple[int, ...]:
    """A requested shape with its -1 filled in.

    Raises:
        RuntimeError: if the elements do not fit.
    """
    unknown = [d for d, n in enumerate(shape) if n == -1]
    if not unknown and math.prod(shape) == elements and all(n >= 0 for n in shape):
        return shape
    if len(unknown) > 1:
        raise RuntimeError("only one dimension can be inferred")
    for n in shape:
        if n < -1:
            raise RuntimeError(f"invalid shape dimension {n}")
    known = math.prod(n for n in shape if n != -1)
    if unknown and known == 0 and elements == 0:
        raise RuntimeError(
            f"cannot reshape tensor of 0 elements into shape {list(shape)} because the unspecified dimension size -1 can be any "
            "value and is ambiguous"
        )
    if not unknown or known == 0 or elements % known:
        raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {elements}")
    d = unknown[0]
    return (*shape[:d], elements // known, *shape[d + 1 :])


def _viewed(geometry: Geometry, shape: tuple[int, ...]) -> Geometry | None:
    # the strides of the same elements under another shape, None if no strides show them
    old, strides, offset = geometry
    if tuple(old) == shape:
        return geometry
    if 0 in shape:
        return Geometry(shape, contiguous_geometry(shape).strides, offset)
    found = [0] * len(shape)
    at = len(shape) - 1
    chunk, base = 1, strides[-1] if old else 1
    for d in range(len(old) - 1, -1, -1):
        chunk *= old[d]
        # a run of dims that lie in memory as one
        if d == 0 or (old[d - 1] != 1 and strides[d - 1] != chunk * base):
            filled = 1
            while at >= 0 and (filled < chunk or shape[at] == 1):
                found[at] = filled * base
                filled *= shape[at]
                at -= 1
            if filled != chunk:
                return None
            if d:
                chunk, base = 1, strides[d - 1]
    while at >= 0:
        found[at] = base
        at -= 1
    return Geometry(shape, tuple(found), offset)


_SHAPES = [((2, 3), (6,)), ((2, 3), (3, -1)), ((4,), (2, 1, 2)), ((1,), ((),))]


@view_op(reference=lambda x, *s: x.reshape(*s), samples=_SHAPES, grad_name="ViewBackward0", public=False)
def view(geometry, *shape):
    """The same elements under another shape.

    Args:
        geometry: the tensor.
        shape: the extents; one may be -1 and is worked out.

    Raises:
        RuntimeError: if the number of elements differs, or they cannot be shown without a copy.

    >>> import tapegrad as tg
    >>> tg.arange(4).view(2, -1)
    tensor([[0, 1],
            [2, 3]])
    """
    wanted = _inferred(integers("view", shape), math.prod(geometry.shape))
    return _viewed(geometry, wanted)


@view_op(
    reference=lambda x, *s: x.reshape(*s),
    samples=_SHAPES,
    grad_name="UnsafeViewBackward0",
    method=False,
    public=False,
)
def unsafe_view(geometry, *shape):
    """The shape given to a fresh copy by `reshape`."""
    return _viewed(geometry, _inferred(integers("reshape", shape, "shape"), math.prod(geometry.shape)))


@view_op(reference=lambda x, *s: x.reshape(*s), samples=_SHAPES, grad_name="ViewBackward0")
def reshape(geometry, *shape):
    """The same elements under another shape: a view where that is possible, else a copy.

    Args:
        geometry: the tensor.
        shape: the extents; one may be -1 and is worked out.

    >>> import tapegrad as tg
    >>> tg.reshape(tg.arange(4), (-1, 2)).shape
    tapegrad.Size([2, 2])
    """
    wanted = _inferred(integers("reshape", shape, "shape"), math.prod(geometry.shape))
    return _viewed(geometry, wanted)


def reshape_fresh(x: Tensor, *shape: Any) -> Tensor:
    """A contiguous tensor that nobody else holds, under another shape: to users no view of it."""
    fresh = unsafe_view(x, *shape)
    rt.set_flag(rt.S, fresh._id, IS_VIEW, 0)
    fresh._root = None
    return fresh


def _reshape_by_copy(x: Tensor, *shape: Any) -> Tensor:
    return reshape_fresh(clone(x), *shape)


reshape.without_view = unsafe_view.without_view = _reshape_by_copy


def view_as(self: Tensor, other: Tensor) -> Tensor:
    """The tensor under the shape of another."""
    return view(self, other.shape)


def reshape_as(self: Tensor, other: Tensor) -> Tensor:
    """The tensor reshaped to the shape of another."""
    return reshape(self, other.shape)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions `start_dim` to `end_dim` joined into one.

    >>> import tapegrad as tg
    >>> tg.flatten(tg.zeros(2, 3, 4), 1).shape
    tapegrad.Size([2, 12])
    """
    check_tensor("flatten", input)
    shape = tuple(input.shape)
    first, last = check_dim(start_dim, len(shape)), check_dim(end_dim, len(shape))
    if first > last:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    if not shape:
        return reshape(input, (1,))
    if first == last:
        return input
    joined = math.prod(shape[first : last + 1])
    return reshape(input, (*shape[:first], joined, *shape[last + 1 :]))


def unflatten(input: Tensor, dim: int, sizes: Any) -> Tensor:
    """One dimension split into several."""
    check_tensor("unflatten", input)
    shape = tuple(input.shape)
    dim = check_dim(dim, len(shape))
    parts = integers("unflatten", (sizes,), "sizes")
    if not parts:
        raise RuntimeError("unflatten: sizes must be non-empty")
    known = math.prod(n for n in parts if n != -1)
    if parts.count(-1) > 1:
        raise RuntimeError("only one dimension can be inferred")
    if shape[dim] != known if -1 not in parts else known == 0 or shape[dim] % known:
        raise RuntimeError(
            f"unflatten: Provided sizes {list(parts)} don't multiply up to the size of dim {dim} ({shape[dim]}) in the input tensor"
        )
    parts = tuple(shape[dim] // known if n == -1 else n for n in parts)
    return view(input, (*shape[:dim], *parts, *shape[dim + 1 :]))


def ravel(input: Tensor) -> Tensor:
    """The tensor as one dimension."""
    check_tensor("ravel", input)
    return reshape(input, (-1,) if input.numel() else (0,))


# dimensions of extent one


def _without(geometry: Geometry, dims: Sequence[int]) -> Geometry:
    kept = [d for d, n in enumerate(geometry.shape) if n != 1 or d not in dims]
    return Geometry(tuple(geometry.shape[d] for d in kept), tuple(geometry.strides[d] for d in kept), geometry.offset)


_ONES = [((1, 3, 1), ())]


@view_op(reference=np.squeeze, samples=_ONES, grad_name="SqueezeBackward0", method=False, public=False)
def squeeze_all(geometry):
    """Without its dimensions of extent one."""
    return _without(geometry, range(len(geometry.shape)))


@view_op(
    reference=np.squeeze,
    samples=[((1, 3, 1), (0,))],
    grad_name="SqueezeBackward1",
    method=False,
    public=False,
)
def squeeze_one(geometry, dim):
    """Without one dimension, if its extent is one."""
    return _without(geometry, (check_dim(dim, len(geometry.shape)),))


@view_op(
    reference=np.squeeze,
    samples=[((1, 3, 1), ((0, 2),))],
    grad_name="SqueezeBackward2",
    method=False,
    public=False,
)
def squeeze_several(geometry, dims):
    """Without those of some dimensions whose extent is one."""
    return _without(geometry, distinct_dims(dims, len(geometry.shape)))


def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    """Without dimensions of extent one.

    Args:
        input: the tensor.
        dim: one dimension or several; all if not given. Those of another extent stay.

    >>> import tapegrad as tg
    >>> tg.squeeze(tg.zeros(1, 2, 1)).shape
    tapegrad.Size([2])
    """
    if dim is None:
        return squeeze_all(input)
    return squeeze_several(input, tuple(dim)) if isinstance(dim, Sequence) else squeeze_one(input, dim)


@view_op(reference=np.expand_dims, samples=[((2, 3), (1,)), ((2, 3), (-1,)), ((), (0,))])
def unsqueeze(geometry, dim):
    """With a new dimension of extent one before dimension `dim`."""
    shape, strides, offset = geometry
    d = check_dim(dim, len(shape) + 1)
    step = shape[d] * strides[d] if d < len(shape) else 1
    return Geometry((*shape[:d], 1, *shape[d:]), (*strides[:d], step, *strides[d:]), offset)


# extents that repeat


@view_op(reference=lambda x, *s: np.broadcast_to(x, s), samples=[((3, 1), (3, 4)), ((3,), (2, 3))])
def expand(geometry, *size):
    """Dimensions of extent one shown many times; new dimensions in front.

    Args:
        geometry: the tensor.
        size: the extents; -1 keeps one.

    >>> import tapegrad as tg
    >>> tg.tensor([[1], [2]]).expand(2, 3)
    tensor([[1, 1, 1],
            [2, 2, 2]])
    """
    shape, strides, offset = geometry
    wanted = integers("expand", size)
    new = len(wanted) - len(shape)
    if new < 0:
        raise RuntimeError(
            f"expand(tensor of shape {list(shape)}, size={list(wanted)}): the number of sizes provided ({len(wanted)}) must be "
            f"greater or equal to the number of dimensions in the tensor ({len(shape)})"
        )
    extents, steps = list(wanted), [0] * len(wanted)
    for d, n in enumerate(wanted):
        if d < new:
            if n < 0:
                raise RuntimeError(
                    f"The expanded size of the tensor ({n}) isn't allowed in a leading, non-existing dimension {d}"
                )
            continue
        own, step = shape[d - new], strides[d - new]
        if n == -1 or n == own:
            extents[d], steps[d] = own, step
        elif own != 1 or n < 0:
            raise RuntimeError(
                f"The expanded size of the tensor ({n}) must match the existing size ({own}) at non-singleton dimension {d}.  "
                f"Target sizes: {list(wanted)}.  Tensor sizes: {list(shape)}"
            )
    return Geometry(tuple(extents), tuple(steps), offset)


def expand_as(self: Tensor, other: Tensor) -> Tensor:
    """The tensor expanded to the shape of another."""
    return expand(self, other.shape)


def broadcast_to(input: Tensor, size: Any) -> Tensor:
    """The tensor expanded to a shape."""
    return expand(input, size)


def broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    """Tensors expanded to the shape they broadcast to."""
    if len(tensors) == 1 and isinstance(tensors[0], Sequence):
        tensors = tuple(tensors[0])
    shape = broadcast_shapes("broadcast_tensors", *[x.shape for x in tensors])
    return tuple(expand(x, shape) for x in tensors)


for _function in (flatten, unflatten, ravel, squeeze, broadcast_to):
    export(_function)
for _function in (view_as, reshape_as, expand_as):
    export(_function, public=False)
export(broadcast_tensors, method=False)
