"""Masks: filling, picking and placing elements where a condition holds, and the places where it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._kernel import kernel_op
from tapegrad.ops._operands import broadcast_shapes, constant
from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._public import export
from tapegrad.ops._reading import computed_rows
from tapegrad.ops._rows import put_rows, putting, take_rows, taking
from tapegrad.ops._rule import ALL, Real
from tapegrad.ops._write import in_place_of
from tapegrad.ops.selecting import same_dtype
from tapegrad.tensor import Tensor


def _check_bool(name: str, mask: Any) -> Tensor:
    check_tensor(name, mask, "mask", None)
    if mask.dtype is not dtypes.bool:
        raise RuntimeError(f"{name} only supports boolean masks, but got mask with dtype {mask.dtype.name}")
    return mask


@pointwise(
    domain=Real(),
    reference=lambda mask, value, x: np.where(mask, value, x),
    dtypes=ALL,
    grad_name="MaskedFillBackward0",
    cost=2,
    method=False,
    public=False,
    select=True,
)
def fill_where(mask, value, x):
    """The value where the mask holds, else the tensor; see `masked_fill`."""
    return value if mask else x


@fill_where.backward
def _(g, mask):
    return g if mask else 0, 0 if mask else g


def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """A copy with one value wherever a mask holds.

    >>> import tapegrad as tg
    >>> tg.masked_fill(tg.tensor([1, 2]), tg.tensor([True, False]), 9)
    tensor([9, 2])
    """
    check_tensor("masked_fill", input)
    mask = _check_bool("masked_fill", mask)
    if isinstance(value, Tensor):
        if value.ndim:
            raise RuntimeError(
                f"masked_fill only supports a 0-dimensional value tensor, but got tensor with {value.ndim} dimension(s)."
            )
        value = value.to(input.dtype)
    else:
        value = constant(value, input.dtype)
    return fill_where(mask, value, input)


@taking
@kernel_op(
    inputs=["x", "index"],
    reference=lambda x, index: x.ravel()[index],
    grad_name="MaskedSelectBackward0",
    method=False,
    public=False,
)
def masked_elements(op, x, index):
    """Elements of the flattened tensor; see `masked_select`."""
    return take_rows(op, x, index, 0, x.ndim, (index.numel(),))


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where a mask holds, as a vector.

    >>> import tapegrad as tg
    >>> tg.masked_select(tg.tensor([1, 2, 3]), tg.tensor([True, False, True]))
    tensor([1, 3])
    """
    check_tensor("masked_select", input)
    mask = _check_bool("masked_select", mask)
    shape = broadcast_shapes("masked_select", input.shape, mask.shape)
    wide = input if tuple(input.shape) == shape else input.expand(shape)
    return masked_elements(wide, _places_of("masked_select", mask, shape))


def _places_of(name: str, mask: Tensor, shape: Sequence[int]) -> Tensor:
    # where a mask broadcast to a shape holds, counted along all dims
    return computed_rows(name, np.flatnonzero, mask if tuple(mask.shape) == tuple(shape) else mask.expand(shape))  # type: ignore[attr-defined]


@putting
@kernel_op(
    inputs=["x", "index", "source"],
    reference=None,
    grad_name="MaskedScatterBackward0",
    method=False,
    public=False,
)
def put_masked(op, x, index, source):
    """Elements put into the flattened tensor; see `masked_scatter`."""
    return put_rows(op, x, index, source, 0, x.ndim, (index.numel(),), False)


def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """A copy with the elements of `source`, in order, wherever a mask holds."""
    check_tensor("masked_scatter", input)
    mask = _check_bool("masked_scatter", mask)
    same_dtype("masked_scatter", input, source)
    shape = broadcast_shapes("masked_scatter", input.shape, mask.shape)
    wide = input if tuple(input.shape) == shape else input.expand(shape)
    places = _places_of("masked_scatter", mask, shape)
    if source.numel() < places.numel():
        raise RuntimeError(
            f"masked_scatter: expected self and source to have same number of elements, but source has {source.numel()} and the "
            f"mask selects {places.numel()}"
        )
    return put_masked(wide, places, source.reshape(-1).narrow(0, 0, places.numel()))


# places


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """The indices of elements that are not zero.

    Args:
        input: the tensor.
        as_tuple: give one vector a dimension, fit for indexing, instead of a matrix with a row an element.

    >>> import tapegrad as tg
    >>> tg.nonzero(tg.tensor([0, 5, 7]))
    tensor([[1],
            [2]])
    """
    check_tensor("nonzero", input)
    if as_tuple:
        return (input.reshape(1) if input.ndim == 0 else input).nonzero().unbind(1)  # type: ignore[attr-defined]
    return computed_rows("nonzero", np.argwhere, input)


def argwhere(input: Tensor) -> Tensor:
    """The indices of elements that are not zero, a row an element."""
    return nonzero(input)


for _function in (masked_fill, masked_scatter):
    export(_function, in_place=in_place_of(_function))
for _function in (masked_select, nonzero, argwhere):
    export(_function)
