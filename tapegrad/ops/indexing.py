"""Square brackets: basic indexing gives views, masks and integer arrays give copies; and assignment to either."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.creation import from_copy
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META
from tapegrad.ops import _reading
from tapegrad.ops import pointwise as pw
from tapegrad.ops._kernel import empty, kernel_op
from tapegrad.ops._operands import cast, constant
from tapegrad.ops._reading import computed, computed_rows, of_samples, runs_again
from tapegrad.ops._rows import put_rows, putting, take_rows, taking
from tapegrad.ops._view import Geometry, ViewOp, ViewPlan, contiguous_geometry, plan_view, show
from tapegrad.ops.shaping import unsqueeze
from tapegrad.ops.slicing import narrow, one_of, part_of, select
from tapegrad.tensor import Tensor

_S = rt.S
_new = object.__new__
_PLAIN = frozenset((int, type(None)))
TRUTH = (dtypes.bool, np.bool_)
FULL = (slice, None, None, None)
_ZERO_DIM = (
    "invalid index of a 0-dim tensor. Use `tensor.item()` in Python or `tensor.item<T>()` in C++ to convert a 0-dim tensor to a "
    "number"
)


# views


def _indexed(geometry: Geometry, tokens: tuple) -> Geometry:
    """The geometry of a basic index: an int, a ``(slice, start, stop, step)``, None or Ellipsis a token.

    Raises:
        IndexError: for an int out of range, or too many tokens.
    """
    ndim = len(geometry.shape)
    used = sum(1 for t in tokens if t is not None and t is not Ellipsis)
    if used > ndim:
        if ndim == 0:
            raise IndexError(_ZERO_DIM)
        raise IndexError(f"too many indices for tensor of dimension {ndim}")
    d = 0
    seen = False
    for token in tokens:
        if token is None:
            shape, strides, offset = geometry
            step = shape[d] * strides[d] if d < len(shape) else 1
            geometry = Geometry((*shape[:d], 1, *shape[d:]), (*strides[:d], step, *strides[d:]), offset)
            d += 1
        elif token is Ellipsis:
            if not seen:
                d += ndim - used
            seen = True
        elif type(token) is int:
            n = geometry.shape[d]
            if not -n <= token < n:
                raise IndexError(f"index {token} is out of bounds for dimension {d} with size {n}")
            geometry = one_of(geometry, d, token % n)
        else:
            _, start, stop, step = token
            if step is not None and step <= 0:
                raise ValueError("step must be greater than zero")
            n = geometry.shape[d]
            first, last, jump = slice(start, stop, step).indices(n)
            length = max(-(-(last - first) // jump), 0)
            if length != n or first:
                geometry = part_of(geometry, d, first if length else min(first, n), length, jump)
            d += 1
    return geometry


_index_reference = lambda x, tokens: x[tuple(slice(*t[1:]) if type(t) is tuple else t for t in tokens)]
_alias = ViewOp(_indexed, "AliasBackward0", _index_reference, [((2, 3), ((Ellipsis,),))])


def _code_of(tokens: tuple) -> int:
    # the last step that changes something names the view, as if steps were taken one by one
    for token in reversed(tokens):
        if token is None:
            return unsqueeze.code
        if type(token) is int:
            return select.code
        if type(token) is tuple and token != FULL:
            return narrow.code
    return narrow.code if any(type(t) is tuple for t in tokens) else _alias.code


@functools.lru_cache(4096)
def _plan(layout: int, tokens: tuple, named: int) -> ViewPlan:
    plan = plan_view(named or _code_of(tokens), layout, functools.partial(_indexed, tokens=tokens))
    assert plan is not None
    return plan


_step = functools.lru_cache(4096)(_indexed)


def basic_view(x: Tensor, tokens: tuple, named: int = 0) -> Tensor:
    """The view of a basic index (see `_indexed`), under the name of opcode `named` if that is given."""
    meta = rt.look(_S, x._id, LOOK_META)
    plan = _plan(meta >> 16, tokens, named)
    return show(x, meta, plan, lambda geometry: _step(geometry, tokens))


def _token(item: Any) -> Any:
    """The hashable form of a basic index item; NotImplemented for anything else."""
    kind = type(item)
    if kind is int or item is None or item is Ellipsis:
        return item
    if kind is slice:
        start, stop, step = item.start, item.stop, item.step
        if type(start) in _PLAIN and type(stop) in _PLAIN and type(step) in _PLAIN:
            return (slice, start, stop, step)
        return (slice, _bound(start), _bound(stop), _bound(step))
    return NotImplemented


def _bound(value: Any) -> int | None:
    if value is None:
        return None
    try:
        return value.__index__()
    except (AttributeError, TypeError):
        raise TypeError("slice indices must be integers or None or have an __index__ method") from None


def _getitem(self: Tensor, key: Any) -> Tensor:
    kind = type(key)
    if kind is int or kind is slice:
        return basic_view(self, (_token(key),))
    if kind is tuple:
        tokens = tuple([_token(item) for item in key])
        if NotImplemented not in tokens:
            return basic_view(self, tokens)
    elif key is None or key is Ellipsis:
        return basic_view(self, (key,))
    return _elements(self, key)


def _elements(self: Tensor, key: Any) -> Tensor:
    key = key if type(key) is tuple else (key,)
    chosen = chosen_by_sample(key)
    if chosen >= 0:
        part, rest = at_chosen(self, key, chosen)
        return part[rest] if rest else part
    tokens, arrays = parsed_index(self, key)
    x = basic_view(self, tokens) if _changes(tokens) or not arrays else self
    if not arrays:
        return x
    index, first, last, shape = row_numbers(x, arrays)
    return index_rows(x, index, first, last, shape)


def _changes(tokens: tuple) -> bool:
    return any(t != FULL and t is not Ellipsis for t in tokens)


def is_whole(x: Tensor, tokens: tuple) -> bool:
    """Whether a basic index of slices shows all of a tensor, without counting from the end."""
    if not all(t is Ellipsis or (type(t) is tuple and t[1] in (None, 0) and t[3] in (None, 1)) for t in tokens):
        return False
    layout = rt.look(_S, x._id, LOOK_META) >> 16
    plan = _plan(layout, tokens, 0)
    return plan.layout == layout and plan.offset == 0


# arrays as indices

# an array index: the dim it starts at, how many dims it covers, and the places (an array, or a tensor to use as it is)
Entry = tuple[int, int, Any]


def parsed_index(x: Tensor, key: tuple) -> tuple[tuple, list[Entry]]:
    """The basic part of an index, which leaves dims with arrays whole, and the arrays with the dims of its result.

    Raises:
        IndexError: for what is no index, or does not fit the shape.
    """
    items = [_item(item) for item in key]
    used = sum(_covers(item) for item in items)
    ndim = x.ndim
    if used > ndim:
        if ndim == 0:
            raise IndexError(_ZERO_DIM)
        raise IndexError(f"too many indices for tensor of dimension {ndim}")
    tokens: list[Any] = []
    entries: list[Entry] = []
    d = source = 0
    seen = False
    for item in items:
        if item is Ellipsis:
            if not seen:
                tokens += [FULL] * (ndim - used)
                d += ndim - used
                source += ndim - used
            seen = True
        elif item is None:
            tokens.append(None)
            d += 1
        elif type(item) is int:
            tokens.append(item)
            source += 1
        elif type(item) is tuple:
            tokens.append(item)
            d += 1
            source += 1
        else:
            span = _covers(item)
            if span == 0:  # a single truth value: a new dim, taken or not
                tokens.append(None)
                entries.append((d, 1, item.reshape(1)))
                d += 1
                continue
            if item.dtype in TRUTH:
                _check_mask(x, item, source, d)
            entries.append((d, span, item))
            tokens += [FULL] * span
            d += span
            source += span
    return tuple(tokens), entries


def _check_mask(x: Tensor, mask: Any, source: int, d: int) -> None:
    for k, (n, own) in enumerate(zip(mask.shape, x.shape[source:])):
        if n != own:
            raise IndexError(
                f"The shape of the mask {list(mask.shape)} at index {k} does not match the shape of the indexed tensor "
                f"{list(x.shape)} at index {d + k}"
            )


def _item(item: Any) -> Any:
    """An index item as a token, or as a tensor or array of places or truth values."""
    token = _token(item)
    if token is not NotImplemented:
        return token
    if isinstance(item, bool | np.bool_):
        return np.asarray(item)
    if isinstance(item, Tensor):
        kind = item.dtype
        if kind.is_floating_point:
            raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
        if kind is dtypes.uint8:
            return pw.ne(item, 0)
        if item.ndim == 0 and kind is not dtypes.bool:
            return int(item)
        return item
    if hasattr(item, "__index__") and not isinstance(item, np.ndarray):
        return item.__index__()
    if isinstance(item, float) or not isinstance(item, Sequence | np.ndarray | range):
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid indices (got "
            f"{type(item).__name__})"
        )
    array = item
    if not isinstance(item, np.ndarray):
        from tapegrad.creation import tensor

        made = tensor(item)
        array = made._address_array().copy()
        if not array.size and array.dtype.kind == "f":
            array = array.astype(np.int64)
    if array.dtype.kind not in "biu":
        raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
    if array.dtype == np.uint8 and isinstance(item, np.ndarray):
        array = array != 0
    return int(array) if array.ndim == 0 and array.dtype.kind != "b" else array


def _covers(item: Any) -> int:
    # dims of the operand an item uses up
    if item is None or item is Ellipsis:
        return 0
    if type(item) in (int, tuple):
        return 1
    return item.ndim if item.dtype in TRUTH else 1


def checked_places(places: np.ndarray, n: int, d: int) -> np.ndarray:
    """Indices into a dim of extent `n`, counted from the front.

    Raises:
        IndexError: naming the first that is out of range.
    """
    if places.size:
        low, high = int(places.min()), int(places.max())
        if low < -n or high >= n:
            wrong = int(places[(places < -n) | (places >= n)].flat[0])
            raise IndexError(f"index {wrong} is out of bounds for dimension {d} with size {n}")
        if low < 0:
            return np.where(places < 0, places + n, places)
    return places


# a place that differs between the samples of a `vmap`: a 0-d tensor, which elsewhere is the integer in it


def chosen_by_sample(key: tuple) -> int:
    """The first item of an index that is a place which differs between samples, -1 if none is."""
    if _reading.sampling:
        for k, item in enumerate(key):
            if isinstance(item, Tensor) and item.ndim == 0 and item.dtype.category == 1 and of_samples([item]):
                return k
    return -1


def at_chosen(x: Tensor, key: tuple, chosen: int) -> tuple[Tensor, tuple]:
    """What such an item names along its dim, and the rest of the index, which is for that."""
    index, d = row_of_sample(x, key, chosen)
    shape = tuple(x.shape)
    rest = (*key[:chosen], *key[chosen + 1 :])
    return index_rows(x, index, d, d + 1, (*shape[:d], *shape[d + 1 :])), rest


def row_of_sample(x: Tensor, key: tuple, chosen: int) -> tuple[Tensor, int]:
    """Such an item as a checked index, and the dim it is for."""
    before = sum(_covers(_item(item)) for item in key[:chosen])
    if any(item is Ellipsis for item in key[:chosen]):
        before = x.ndim - sum(_covers(_item(item)) for item in key[chosen + 1 :]) - 1
    if before >= x.ndim or before < 0:
        raise IndexError(f"too many indices for tensor of dimension {x.ndim}" if x.ndim else _ZERO_DIM)
    index = cast(key[chosen], dtypes.int64)
    return _checked_rows(index, x.shape[before], before), before


def _checked_rows(index: Tensor, n: int, d: int) -> Tensor:
    return computed(functools.partial(checked_places, n=n, d=d), index, stretches=(0,))


def row_numbers(x: Tensor, entries: list[Entry]) -> tuple[Tensor, int, int, tuple[int, ...]]:
    """One index over the dims that arrays cover, seen as one.

    Returns:
        The index, the first dim, the dim after the last, and the shape of the result.
    """
    shape = tuple(x.shape)
    if len(entries) == 1:
        d, span, item = entries[0]
        if isinstance(item, Tensor) and item.dtype is dtypes.int64 and item.is_contiguous():
            return _checked_rows(item, shape[d], d), d, d + 1, (*shape[:d], *item.shape, *shape[d + 1 :])
        if span > 1 or item.dtype in TRUTH:
            found = computed_rows(
                "indexing with a mask", np.flatnonzero, item if isinstance(item, Tensor) else from_copy(item)
            )
            return found, d, d + span, (*shape[:d], found.numel(), *shape[d + span :])
    places: list[tuple[int, Any]] = []
    again = runs_again([item for _, _, item in entries if isinstance(item, Tensor)])
    for d, _, item in entries:
        places += _places_of_tensor(shape, d, item) if again else _places_of_array(shape, d, _array(item))
    numbers, first, last, result = _joined_places(shape, places)
    return (numbers.contiguous() if again else tensor_of(numbers)), first, last, result


def _places_of_array(shape: tuple[int, ...], d: int, array: np.ndarray) -> list[tuple[int, np.ndarray]]:
    # the places an array names, for each dim it covers
    if array.dtype == bool:
        return [(d + k, found) for k, found in enumerate(np.nonzero(array))]
    return [(d, checked_places(array, shape[d], d))]


def _places_of_tensor(shape: tuple[int, ...], d: int, item: Any) -> list[tuple[int, Tensor]]:
    # as before, to be found again from other values
    t = item if isinstance(item, Tensor) else from_copy(item)
    if t.dtype is dtypes.bool:
        found = computed_rows("indexing with a mask", np.argwhere, t)
        return [(d + k, column) for k, column in enumerate(found.unbind(1))]  # type: ignore[attr-defined]
    return [(d, _checked_rows(cast(t, dtypes.int64), shape[d], d))]


def _joined_places(shape: tuple[int, ...], places: list[tuple[int, Any]]) -> tuple[Any, int, int, tuple[int, ...]]:
    # from arrays or tensors, for each dim covered
    dims = [d for d, _ in places]
    try:
        extents = np.broadcast_shapes(*(tuple(p.shape) for _, p in places))
    except ValueError:
        listed = ", ".join(str(list(p.shape)) for _, p in places)
        raise IndexError(
            f"shape mismatch: indexing tensors could not be broadcast together with shapes {listed}"
        ) from None
    first, last = dims[0], dims[-1] + 1
    adjacent = len(dims) == last - first
    if not adjacent:
        first = 0
    strides = contiguous_geometry(shape[first:last]).strides
    whole = [] if adjacent else [d for d in range(last) if d not in dims]
    numbers: Any = 0
    for d, p in places:
        numbers = (
            numbers
            + p.reshape((1,) * (len(extents) - p.ndim) + tuple(p.shape) + (1,) * len(whole)) * strides[d - first]
        )
    for k, d in enumerate(whole):
        along = (np.arange(shape[d]) * strides[d]).reshape((-1,) + (1,) * (len(whole) - 1 - k))
        numbers = numbers + (tensor_of(along) if isinstance(numbers, Tensor) else along)
    rest = tuple(shape[d] for d in whole)
    result = (*extents, *rest, *shape[last:]) if not adjacent else (*shape[:first], *extents, *shape[last:])
    return numbers, first, last, result


def _array(item: Any) -> np.ndarray:
    return item._address_array() if isinstance(item, Tensor) else item


def tensor_of(numbers: np.ndarray) -> Tensor:
    """An int64 tensor with a copy of an array of indices."""
    t = empty(numbers.shape, dtypes.int64)
    if numbers.size:
        t._address_array()[...] = numbers
    return t


@taking
@kernel_op(
    inputs=["x", "index"],
    reference=lambda x, index: x[index],
    grad_name="IndexBackward0",
    method=False,
    public=False,
)
def index_rows(op, x, index, first, last, shape):
    """Elements at places given by arrays; see `Tensor.__getitem__`."""
    return take_rows(op, x, index, first, last, shape)


@putting
@kernel_op(
    inputs=["x", "index", "values"],
    reference=None,
    grad_name="IndexPutBackward0",
    method=False,
    public=False,
)
def put_at(op, x, index, values, first, last, shape, accumulate):
    """The tensor with other elements at places given by arrays; see `index_put`."""
    return put_rows(op, x, index, values, first, last, shape, accumulate)


# derivatives of ops made of rows, over tensors


def put_back(g: Tensor, index: Tensor, words: Sequence[int]) -> Tensor:
    """The adjoint of taking rows: every row's gradient added where it came from."""
    outer, rows, inner, count = words[:4]
    blank = _zeros((outer, rows, inner), g)
    flat, lines, skipped = index.view(-1), g.reshape(outer, count, inner), words[7]
    if skipped >= 0:
        lines = lines.masked_fill((flat == skipped).view(1, count, 1), 0.0)
    return put_at(blank, flat, lines, 1, 2, (outer, count, inner), True)


def keep_rest(g: Tensor, index: Tensor, words: Sequence[int]) -> Tensor:
    """The adjoint of what was overwritten: zero at the rows put."""
    first, last, ndim = words[6:9]
    shape = tuple(words[9 + ndim :])
    return put_at(g, index, constant(0, g.dtype), first, last, shape, False)


def take_back(g: Tensor, index: Tensor, words: Sequence[int]) -> Tensor:
    """The adjoint of the rows put."""
    first, last, ndim = words[6:9]
    return index_rows(g, index, first, last, tuple(words[9 + ndim :]))


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    from tapegrad.creation import zeros

    return zeros(shape, dtype=like.dtype)


_getitem.__name__ = "__getitem__"
Tensor.__getitem__ = _getitem
