"""Order: sorting, the largest elements, distinct elements, and searching in what is sorted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad.creation import from_copy
from tapegrad.metadata import check_dim
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._kernel import KernelOp
from tapegrad.ops._operands import result_type
from tapegrad.ops._public import export
from tapegrad.ops._reading import computed, computed_rows, runs_again
from tapegrad.ops._rows import gather_along, gathering
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


def _order_along(x: Tensor, d: int, descending: bool, places: Sequence[int] | None = None) -> Tensor:
    # the order of a dimension, or some of it; the dimension is counted from the end, as others may come in front
    found = functools.partial(_order, d=d - x.ndim, descending=descending, places=places)
    return computed(found, x, stretches=(0,))


def _order(array: np.ndarray, d: int, descending: bool, places: Sequence[int] | None) -> np.ndarray:
    # stable, NaN the largest; the order from above is that of the reversed array read backwards
    if descending:
        order = array.shape[d] - 1 - np.flip(np.argsort(np.flip(array, d), d, kind="stable"), d)
    else:
        order = np.argsort(array, d, kind="stable")
    return order if places is None else np.take(order, places, d)


def _line(x: Tensor) -> tuple[Tensor, bool]:
    # a 0-d tensor is sorted as a vector
    return (x.reshape(1), True) if x.ndim == 0 else (x, False)


def _with_order(
    op: KernelOp, x: Tensor, d: int, order: Tensor, shape: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    # the elements an order names, and the order, both under a shape
    shape = order.shape if shape is None else shape
    return op(x, d, order, shape), order.reshape(tuple(shape))  # type: ignore[attr-defined]


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
    order = _order_along(x, d, descending)
    return sort_result(*_with_order(_in_order, x, d, order, () if scalar else None))


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """Where the elements of a sorted dimension were."""
    check_tensor("argsort", input)
    d = check_dim(dim, input.ndim)
    x, _ = _line(input)
    return _order_along(x, d, descending).reshape(input.shape)  # type: ignore[attr-defined]


def msort(input: Tensor) -> Tensor:
    """Elements in order along dimension 0."""
    return sort(input, 0).values


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
    order = _order_along(x, d, largest, range(k))
    return topk_result(*_with_order(_at_top, x, d, order, () if scalar and k == 1 else None))


def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> kthvalue_result:
    """The `k`-th smallest element along a dimension, and where it was."""
    check_tensor("kthvalue", input)
    d = check_dim(dim, input.ndim)
    x, scalar = _line(input)
    n = x.shape[d]
    if not 1 <= k <= n:
        raise RuntimeError(f"kthvalue(): selected number k out of range for dimension {d}: k = {k}, size {n}")
    order = _order_along(x, d, False, [k - 1])
    shape = order.shape if keepdim and not scalar else order.shape[:d] + order.shape[d + 1 :]
    return kthvalue_result(*_with_order(_at_rank, x, d, order, shape))


# distinct elements


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
    return _distinct("unique", functools.partial(_sorted_rows, dim=d), input, d, return_inverse, return_counts)


# the distinct rows along axis 0, which of them each row is, and how often each appears
_Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def _sorted_rows(array: np.ndarray, dim: int | None) -> _Found:
    values, inverse, counts = np.unique(array, return_inverse=True, return_counts=True, axis=dim, equal_nan=False)
    return np.moveaxis(values, dim or 0, 0), inverse.reshape(array.shape if dim is None else -1), counts


def _rows_in_runs(array: np.ndarray, dim: int | None) -> _Found:
    lines = array.reshape(-1, 1) if dim is None else np.moveaxis(array, dim, 0)
    n = lines.shape[0]
    differs = (lines[1:] != lines[:-1]).reshape(max(n - 1, 0), -1).any(1)
    starts = np.concatenate([np.ones(min(n, 1), bool), differs])
    places = np.flatnonzero(starts)
    inverse, counts = np.cumsum(starts) - 1, np.diff(np.append(places, n))
    if dim is None:
        return array.reshape(-1)[places], inverse.reshape(array.shape), counts
    return lines[places], inverse, counts


def _distinct(
    name: str, find: Callable[[np.ndarray], _Found], x: Tensor, d: int | None, return_inverse: bool, return_counts: bool
) -> Any:
    wanted = [0, *([1] if return_inverse else []), *([2] if return_counts else [])]
    if runs_again((x,)):
        parts = [computed_rows(name, functools.partial(_one_of, find, k), x) for k in wanted]
    else:
        found = find(x._address_array())
        parts = [from_copy(found[k]) for k in wanted]
    if d:
        parts[0] = parts[0].movedim(0, d).contiguous()  # type: ignore[attr-defined]
    return parts[0] if len(parts) == 1 else tuple(parts)


def _one_of(find: Callable[[np.ndarray], _Found], k: int, array: np.ndarray) -> np.ndarray:
    return find(array)[k]


def unique_consecutive(
    input: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The elements with runs of equal ones reduced to one."""
    check_tensor("unique_consecutive", input)
    d = None if dim is None else check_dim(dim, input.ndim)
    find = functools.partial(_rows_in_runs, dim=d)
    return _distinct("unique_consecutive", find, input, d, return_inverse, return_counts)


# searching


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
    # values of any shape go into one line
    stretches = (1,) if lines.ndim == 1 and sorter is None else ()
    return computed(functools.partial(_places_in, where=where, kind=kind), *given, stretches=stretches)


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

    return computed(is_in, *given, stretches=(0,))


for _function in (sort, argsort, msort, topk, kthvalue, unique, unique_consecutive):
    export(_function)
for _function in (searchsorted, bucketize, isin):
    export(_function, method=False)
