"""Assignment to square brackets: to views, masks and integer arrays; and `index_put`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes, errors
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META
from tapegrad.ops import _reading
from tapegrad.ops import pointwise as pw
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._operands import constant
from tapegrad.ops._public import export
from tapegrad.ops._reading import runs_again
from tapegrad.ops._write import _records, assign, check_no_overlap
from tapegrad.ops.indexing import (
    TRUTH,
    Entry,
    at_chosen,
    basic_view,
    chosen_by_sample,
    is_whole,
    parsed_index,
    put_at,
    row_numbers,
    row_of_sample,
)
from tapegrad.tensor import Tensor

_S = rt.S


def _setitem(self: Tensor, key: Any, value: Any) -> None:
    if not isinstance(value, Tensor):
        if not isinstance(value, bool | int | float | np.generic):
            raise TypeError(f"can't assign a {type(value).__name__} to a tapegrad.{self.dtype.tensor_type}Tensor")
        value = constant(value.item() if isinstance(value, np.generic) else value, self.dtype)
    if key is False:
        return
    key = key if type(key) is tuple else (key,)
    chosen = chosen_by_sample(key)
    if chosen >= 0:
        part, rest = at_chosen(self, key, chosen)
        part[rest if rest else ...] = value
        index, d = row_of_sample(self, key, chosen)
        assign(self, put_at(self, index, part, d, d + 1, tuple(part.shape), False), fresh=True)
        return
    tokens, arrays = parsed_index(self, key)
    # the view is refreshed with its base: a stale one would write beside the graph
    target = self if is_whole(self, tokens) else basic_view(self, tokens)
    if not arrays:
        assign(target, _fitted(value, target.ndim))
        return
    spans, ranks = zip(*((span, 1 if item.dtype in TRUTH else item.ndim) for _, span, item in arrays), strict=True)
    _put_in_place(target, arrays, _fitted(value, target.ndim - sum(spans) + max(ranks)), False)


def _filled_by_mask(x: Tensor, entries: list[Entry], values: Tensor, accumulate: bool) -> Tensor | None:
    """What puts values wherever a mask that is met again holds, if they do not depend on how often it does."""
    if len(entries) != 1:
        return None
    d, span, mask = entries[0]
    if not isinstance(mask, Tensor) or mask.dtype is not dtypes.bool or not runs_again([mask]):
        return None
    shape = tuple(x.shape)
    inner = len(shape) - d - span
    if values.ndim > inner and values.shape[-inner - 1] != 1:
        return None
    _check_dtypes(x, values)
    _check_values((*shape[:d], 1, *shape[d + span :]), values)
    if values.ndim > inner:
        given = tuple(values.shape)
        values = values.reshape((*given[: -inner - 1], *[1] * span, *given[len(given) - inner :]))  # type: ignore[attr-defined]
    held = mask.reshape((*mask.shape, *[1] * inner))  # type: ignore[attr-defined]
    return pw.where_op(held, pw.add(x, values) if accumulate else values.expand(shape), x)  # type: ignore[attr-defined]


def _fitted(value: Tensor, ndim: int) -> Tensor:
    # leading dims of extent one that the target has not
    shape = tuple(value.shape)
    extra = 0
    while len(shape) - extra > ndim and shape[extra] == 1:
        extra += 1
    return value.view(shape[extra:]) if extra else value  # type: ignore[attr-defined]


def _check_dtypes(target: Tensor, values: Tensor) -> None:
    if values.dtype is not target.dtype:
        raise RuntimeError(
            "Index put requires the source and destination dtypes match, got "
            f"{target.dtype.tensor_type} for the destination and {values.dtype.tensor_type} for the source."
        )


def _check_values(shape: Sequence[int], values: Tensor) -> None:
    given = tuple(values.shape)
    fits = len(given) <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(given), reversed(tuple(shape)), strict=False)
    )
    if not fits:
        raise RuntimeError(
            f"shape mismatch: value tensor of shape {list(given)} cannot be broadcast to indexing result of shape {list(shape)}"
        )


def _put_in_place(target: Tensor, entries: list[Entry], values: Tensor, accumulate: bool) -> None:
    # what samples of a `vmap` put into a view is put into its old elements, which the write itself replaces
    old = target.clone() if target._base_tensor() is not None and _reading.is_sampling() else target  # type: ignore[attr-defined]
    filled = _filled_by_mask(old, entries, values, accumulate)
    if filled is not None:
        assign(target, filled, fresh=True)
        return
    index, first, last, shape = row_numbers(target, entries)
    _check_dtypes(target, values)
    _check_values(shape, values)
    if _records(target, [values, index]):
        assign(target, put_at(old, index, values, first, last, shape, accumulate), fresh=True)
        return
    check_writable(target)
    extents = tuple(target.shape)
    rt.mark_written(_S, target._id, 0, 0)
    memory = target._memory_array()
    if not target.numel() or not math.prod(shape):
        return
    covered = np.unravel_index(index._address_array().ravel(), extents[first:last])
    flat = (*extents[:first], index.numel(), *extents[last:])
    given = np.broadcast_to(values._address_array(), shape).reshape(flat)
    where = (slice(None),) * first + covered
    if accumulate:
        np.add.at(memory, where, given)
    else:
        memory[where] = given


def check_writable(target: Tensor) -> None:
    """Refuse an unrecorded write to a tensor that must not be written.

    Raises:
        RuntimeError: for inference tensors outside inference mode, and tensors whose elements share memory.
    """
    flags = rt.look(_S, target._id, LOOK_META) >> 8
    if flags & structs.INFERENCE and not rt.mode_of_thread(_S) & structs.INFERENCE_MODE:
        raise RuntimeError(errors.INFERENCE_WRITTEN)
    check_no_overlap(target)


def _put_arguments(input: Tensor, indices: Any, values: Any) -> list[Entry]:
    check_tensor("index_put", input)
    if not isinstance(indices, Sequence):
        raise TypeError(f"index_put(): argument 'indices' must be tuple of Tensors, not {type(indices).__name__}")
    if not isinstance(values, Tensor):
        raise TypeError(f"index_put(): argument 'values' must be Tensor, not {type(values).__name__}")
    return parsed_index(input, tuple(slice(None) if k is None else _as_array(k) for k in indices))[1]


def _as_array(index: Any) -> Any:
    # a 0-d integer tensor is an array here, not a place to select
    if isinstance(index, Tensor) and index.ndim == 0 and index.dtype.category == 1:
        return index.reshape(1)  # type: ignore[attr-defined]
    return index


def index_put(input: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    """A copy of the tensor with other elements at places given by arrays.

    Args:
        input: the tensor.
        indices: one array of places, or mask, a dimension.
        values: what to put there, broadcast to the shape of ``input[indices]``.
        accumulate: add to what is there instead.

    >>> import tapegrad as tg
    >>> tg.index_put(tg.zeros(3), (tg.tensor([0, 0]),), tg.tensor(2.0), accumulate=True)
    tensor([4., 0., 0.])
    """
    entries = _put_arguments(input, indices, values)
    filled = _filled_by_mask(input, entries, values, accumulate)
    if filled is not None:
        return filled
    index, first, last, shape = row_numbers(input, entries)
    _check_values(shape, values)
    _check_dtypes(input, values)
    return put_at(input, index, values, first, last, shape, accumulate)


def index_put_(self: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    """In-place version of `index_put`."""
    _put_in_place(self, _put_arguments(self, indices, values), values, accumulate)
    return self


export(index_put)
export(index_put_, public=False)
_setitem.__name__ = "__setitem__"
Tensor.__setitem__ = _setitem
