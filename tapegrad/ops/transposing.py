"""Views with their dimensions in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad.metadata import check_dim
from tapegrad.ops._arguments import check_tensor, integers
from tapegrad.ops._public import export
from tapegrad.ops._view import Geometry, view_op
from tapegrad.tensor import Tensor


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


Tensor.T = property(lambda self: permute(self, range(self.ndim - 1, -1, -1)), doc="With its dimensions reversed.")
Tensor.mT = property(lambda self: _matrix_transpose("mT", self), doc="With its last two dimensions exchanged.")
Tensor.H = property(_hermitian, doc="A matrix transposed.")
Tensor.mH = property(lambda self: _matrix_transpose("mH", self), doc="With its last two dimensions exchanged.")


export(transpose, "swapaxes", "swapdims")
export(movedim, "moveaxis")
export(adjoint)
