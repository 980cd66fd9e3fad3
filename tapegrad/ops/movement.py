"""Views: other shapes, orders and parts of a tensor's elements, without copying them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import IS_VIEW
from tapegrad.ops._operands import broadcast_shapes
from tapegrad.ops._public import export
from tapegrad.ops._view import Geometry, contiguous_geometry, view_op
from tapegrad.ops.convert import clone
from tapegrad.ops.joining import check_tensor, distinct_dims, integers
from tapegrad.ops.joining import stack as stack
from tapegrad.tensor import Tensor, check_dim

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


# order of dimensions


def _ordered(geometry: Geometry, order: Sequence[int]) -> Geometry:
    shape, strides, offset = geometry
    return Geometry(tuple(shape[d] for d in order), tuple(strides[d] for d in order), offset)


@view_op(reference=np.swapaxes, samples=[((2, 3), (0, 1)), ((2, 3, 4), (0, -1))])
def transpose(geometry, dim0, dim1):
    """Two dimensions exchanged.

    >>> import tapegrad as tg
    >>> tg.transpose(tg.zeros(2, 3), 0, 1).shape
    tapegrad.Size([3, 2])
    """
    n = len(geometry.shape)
    a, b = check_dim(dim0, n), check_dim(dim1, n)
    order = list(range(n))
    if n:
        order[a], order[b] = b, a
    return _ordered(geometry, order)


@view_op(reference=np.transpose, samples=[((2, 3, 4), ((2, 0, 1),)), ((2, 3), ((-1, 0),))])
def permute(geometry, *dims):
    """Dimensions in another order.

    >>> import tapegrad as tg
    >>> tg.permute(tg.zeros(2, 3, 4), (2, 0, 1)).shape
    tapegrad.Size([4, 2, 3])
    """
    wanted = integers("permute", dims, "dims")
    n = len(geometry.shape)
    if len(wanted) != n:
        raise RuntimeError(
            "permute(): number of dimensions in the tensor input does not match the length of the desired ordering of dimensions "
            f"i.e. input.dim() = {n} is not equal to len(dims) = {len(wanted)}"
        )
    order = [check_dim(d, n) for d in wanted]
    if len(set(order)) != n:
        raise RuntimeError("permute(): duplicate dims are not allowed.")
    return _ordered(geometry, order)


@view_op(reference=np.transpose, samples=[((2, 3), ()), ((3,), ())], grad_name="TBackward0")
def t(geometry):
    """A matrix transposed; vectors and scalars as they are."""
    n = len(geometry.shape)
    if n > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {n}D")
    return _ordered(geometry, range(n - 1, -1, -1))


def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """Dimensions moved to other places, the rest keeping their order."""
    check_tensor("movedim", input)
    old, new = integers("movedim", (source,), "source"), integers("movedim", (destination,), "destination")
    n = input.ndim
    if len(old) != len(new):
        raise RuntimeError(
            f"movedim: Invalid source or destination dims: source ({list(old)} dims) should contain the same number of dims as "
            f"destination ({list(new)} dims)"
        )
    start, end = [check_dim(d, n) for d in old], [check_dim(d, n) for d in new]
    for what, dims, given in (("source", start, old), ("destination", end, new)):
        if len(set(dims)) != len(dims):
            raise RuntimeError(f"movedim: repeated dim in `{what}` ({list(given)})")
    rest = iter(d for d in range(n) if d not in start)
    places = dict(zip(end, start, strict=True))
    return permute(input, [places[d] if d in places else next(rest) for d in range(n)])


def adjoint(self: Tensor) -> Tensor:
    """Matrices transposed (and conjugated, which changes nothing here)."""
    return _matrix_transpose("adjoint()", self)


def _matrix_transpose(name: str, x: Tensor) -> Tensor:
    if x.ndim < 2:
        raise RuntimeError(
            f"tensor.{name} is only supported on matrices or batches of matrices. Got {x.ndim}-D tensor."
        )
    return transpose(x, -2, -1)


def _hermitian(x: Tensor) -> Tensor:
    if x.ndim not in (0, 2):
        raise RuntimeError(f"tensor.H is only supported on matrices (2-D tensors). Got {x.ndim}-D tensor.")
    return transpose(x, 0, 1)


# extents that repeat, and parts


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


Tensor.T = property(lambda self: permute(self, range(self.ndim - 1, -1, -1)), doc="With its dimensions reversed.")
Tensor.mT = property(lambda self: _matrix_transpose("mT", self), doc="With its last two dimensions exchanged.")
Tensor.H = property(_hermitian, doc="A matrix transposed.")
Tensor.mH = property(lambda self: _matrix_transpose("mH", self), doc="With its last two dimensions exchanged.")

for _function, _names in (
    (flatten, ()),
    (unflatten, ()),
    (ravel, ()),
    (squeeze, ()),
    (transpose, ("swapaxes", "swapdims")),
    (movedim, ("moveaxis",)),
    (adjoint, ()),
    (broadcast_to, ()),
    (as_strided, ()),
):
    export(_function, *_names)
for _function in (view_as, reshape_as, expand_as):
    export(_function, public=False)
export(broadcast_tensors, method=False)
