"""Order: sorting, the largest elements, distinct elements, and searching in what is sorted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad.creation import from_copy
from tapegrad.metadata import check_dim
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._kernel import KernelOp
from tapegrad.ops._operands import result_type
from tapegrad.ops._public import export
from tapegrad.ops._reading import computed, reads_values
from tapegrad.ops._rows import gather_along, gathering
from tapegrad.ops.indexing import tensor_of
from tapegrad.tensor import Tensor


class sort_result(NamedTuple):
    """What `sort` gives."""

    values: Tensor
    indices: Tensor


class topk_result(NamedTuple):
    """What `topk` gives."""

    values: Tensor
    indices: Tensor


class kthvalue_result(NamedTuple):
    """What `kthvalue` gives."""

    values: Tensor
    indices: Tensor


def _picking_op(name: str, grad_name: str) -> KernelOp:
    def declared(op, x, dim, index, shape):
        return gather_along(op, x, dim, index, shape)

    declared.__name__ = declared.__qualname__ = name
    declared.__doc__ = "Elements in the order found by sorting."
    return gathering(
        KernelOp(
            declared,
            inputs=["x", "index"],
            reference=lambda x, dim, index: np.take_along_axis(x, index, dim),
            grad_name=grad_name,
            method=False,
            public=False,
        )
    )


_in_order = _picking_op("in_order", "SortBackward0")
_at_top = _picking_op("at_top", "TopkBackward0")
_at_rank = _picking_op("at_rank", "KthvalueBackward0")


def _order(array: np.ndarray, d: int, descending: bool) -> np.ndarray:
    # stable, NaN the largest; the order from above is that of the reversed array read backwards
    if not descending:
        return np.argsort(array, d, kind="stable")
    order = np.flip(np.argsort(np.flip(array, d), d, kind="stable"), d)
    return array.shape[d] - 1 - order


def _first_places(array: np.ndarray, d: int, descending: bool, places: Any) -> np.ndarray:
    # some of the order only
    return np.take(_order(array, d, descending), places, d)


def _line(x: Tensor) -> tuple[Tensor, bool]:
    # a 0-d tensor is sorted as a vector
    return (x.reshape(1), True) if x.ndim == 0 else (x, False)


def _with_order(
    op: KernelOp, x: Tensor, d: int, order: Tensor, shape: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    # the elements an order names, and the order, both under a shape
    shape = order.shape if shape is None else shape
    return op(x, d, order, shape), order.reshape(tuple(shape))  # type: ignore[attr-defined]


@reads_values
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> sort_result:
    """Elements in order along a dimension, and where each was.

    Args:
        input: the tensor; NaN counts as the largest.
        dim: the dimension.
        descending: largest first.
        stable: equal elements always keep their order.

    >>> import tapegrad as tg
    >>> tg.sort(tg.tensor([3.0, 1.0, 2.0])).indices
    tensor([1, 2, 0])
    """
    check_tensor("sort", input)
    d = check_dim(dim, input.ndim)
    x, scalar = _line(input)
    order = computed(functools.partial(_order, d=d, descending=descending), x)
    return sort_result(*_with_order(_in_order, x, d, order, () if scalar else None))


@reads_values
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """Where the elements of a sorted dimension were."""
    check_tensor("argsort", input)
    d = check_dim(dim, input.ndim)
    x, _ = _line(input)
    return computed(functools.partial(_order, d=d, descending=descending), x).reshape(input.shape)  # type: ignore[attr-defined]


def msort(input: Tensor) -> Tensor:
    """Elements in order along dimension 0."""
    return sort(input, 0).values


@reads_values
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> topk_result:
    """The `k` largest (or smallest) elements along a dimension, in order, and where each was.

    >>> import tapegrad as tg
    >>> tg.topk(tg.tensor([3.0, 1.0, 2.0]), 2).values
    tensor([3., 2.])
    """
    check_tensor("topk", input)
    d = check_dim(dim, input.ndim)
    x, scalar = _line(input)
    n = x.shape[d]
    if not 0 <= k <= n:
        raise RuntimeError(f"topk: selected index k out of range: k = {k}, dimension {d} has size {n}")
    order = computed(functools.partial(_first_places, d=d, descending=largest, places=range(k)), x)
    return topk_result(*_with_order(_at_top, x, d, order, () if scalar and k == 1 else None))


@reads_values
def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> kthvalue_result:
    """The `k`-th smallest element along a dimension, and where it was."""
    check_tensor("kthvalue", input)
    d = check_dim(dim, input.ndim)
    x, scalar = _line(input)
    n = x.shape[d]
    if not 1 <= k <= n:
        raise RuntimeError(f"kthvalue(): selected number k out of range for dimension {d}: k = {k}, size {n}")
    order = computed(functools.partial(_first_places, d=d, descending=False, places=[k - 1]), x)
    shape = order.shape if keepdim and not scalar else order.shape[:d] + order.shape[d + 1 :]
    return kthvalue_result(*_with_order(_at_rank, x, d, order, shape))


# distinct elements


@reads_values
def unique(
    input: Tensor,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The distinct elements, in order.

    Args:
        input: the tensor.
        sorted: accepted for PyTorch's sake; the result always is.
        return_inverse: also give which of them each element is.
        return_counts: also give how often each appears.
        dim: compare the places of this dimension instead of single elements.

    >>> import tapegrad as tg
    >>> tg.unique(tg.tensor([2, 1, 2]), return_counts=True)
    (tensor([1, 2]), tensor([1, 2]))
    """
    check_tensor("unique", input)
    d = None if dim is None else check_dim(dim, input.ndim)
    array = input._address_array()
    values, inverse, counts = np.unique(array, return_inverse=True, return_counts=True, axis=d, equal_nan=False)
    inverse = inverse.reshape(array.shape if d is None else -1)
    return _with_extras(values, inverse, counts, return_inverse, return_counts)


def _with_extras(values: Any, inverse: Any, counts: Any, return_inverse: bool, return_counts: bool) -> Any:
    found = [from_copy(values)]
    if return_inverse:
        found.append(tensor_of(inverse))
    if return_counts:
        found.append(tensor_of(counts))
    return found[0] if len(found) == 1 else tuple(found)


@reads_values
def unique_consecutive(
    input: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The elements with runs of equal ones reduced to one."""
    check_tensor("unique_consecutive", input)
    array = input._address_array()
    lines = array.reshape(-1, 1) if dim is None else np.moveaxis(array, check_dim(dim, array.ndim), 0)
    n = lines.shape[0]
    differs = (lines[1:] != lines[:-1]).reshape(max(n - 1, 0), -1).any(1)
    starts = np.concatenate([np.ones(min(n, 1), bool), differs])
    places = np.flatnonzero(starts)
    inverse = np.cumsum(starts) - 1
    counts = np.diff(np.append(places, n))
    values = array.reshape(-1)[places] if dim is None else np.take(array, places, check_dim(dim, array.ndim))
    inverse = inverse.reshape(array.shape) if dim is None else inverse
    return _with_extras(values, inverse, counts, return_inverse, return_counts)


# searching


@reads_values
def searchsorted(
    sorted_sequence: Tensor,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Where values would go into a sorted sequence.

    Args:
        sorted_sequence: a vector, or lines in order along the last dimension.
        input: the values; with lines, of the same shape except the last dimension.
        out_int32: give int32 instead of int64.
        right: behind equal elements rather than before them.
        side: ``"left"`` or ``"right"``, another way to say so.
        sorter: the order that sorts the sequence.

    >>> import tapegrad as tg
    >>> tg.searchsorted(tg.tensor([1, 3, 5]), tg.tensor([3, 6]))
    tensor([1, 3])
    """
    check_tensor("searchsorted", sorted_sequence)
    if side not in (None, "left", "right"):
        raise RuntimeError(f"searchsorted(): side can only be 'left' or 'right' but got {side}")
    if side == "left" and right:
        raise RuntimeError(
            "searchsorted(): side and right can't be set to opposites, got side of left while right was True"
        )
    where = side or ("right" if right else "left")
    values = input if isinstance(input, Tensor) else from_copy(np.asarray(input))
    lines = sorted_sequence
    if lines.ndim != 1 and (lines.ndim == 0 or lines.shape[:-1] != values.shape[:-1]):
        raise RuntimeError(
            "searchsorted(): boundaries tensor should be 1 dimension or the first N-1 dimensions of boundaries tensor and "
            f"input value tensor must match, but we got boundaries tensor {list(lines.shape)} and input value tensor "
            f"{list(values.shape)}"
        )
    kind = np.int32 if out_int32 else np.int64
    given = (lines, values) if sorter is None else (lines, values, sorter)
    return computed(functools.partial(_places_in, where=where, kind=kind), *given)


def _places_in(
    lines: np.ndarray, values: np.ndarray, sorter: np.ndarray | None = None, *, where: Any, kind: Any
) -> np.ndarray:
    # where values would go into each line
    if sorter is not None:
        lines = np.take_along_axis(lines, sorter, -1)
    if lines.ndim == 1:
        return np.asarray(np.searchsorted(lines, values, where)).astype(kind)
    found = np.empty(values.shape, kind)
    for place in np.ndindex(lines.shape[:-1]):
        found[place] = np.searchsorted(lines[place], values[place], where)
    return found


def bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Which interval between sorted boundaries each value is in."""
    check_tensor("bucketize", boundaries)
    if boundaries.ndim != 1:
        raise RuntimeError(f"bucketize(): boundaries tensor must be 1 dimension, but got dim({boundaries.ndim})")
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


@reads_values
def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Whether each element is one of others.

    >>> import tapegrad as tg
    >>> tg.isin(tg.tensor([1, 2, 3]), tg.tensor([2, 5]))
    tensor([False,  True, False])
    """
    common = result_type(elements, test_elements).numpy
    given = [t if isinstance(t, Tensor) else from_copy(np.asarray(t, common)) for t in (elements, test_elements)]

    def is_in(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        others = second.astype(common).ravel()
        return np.isin(first.astype(common), others, assume_unique=assume_unique, invert=invert)

    return computed(is_in, *given)


for _function in (sort, argsort, msort, topk, kthvalue, unique, unique_consecutive):
    export(_function)
for _function in (searchsorted, bucketize, isin):
    export(_function, method=False)
