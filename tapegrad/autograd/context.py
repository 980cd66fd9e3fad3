"""What a user's function keeps between forward and backward: its `ctx`."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tapegrad import errors
from tapegrad.autograd.graph import innermost_hooks, node_of
from tapegrad.autograd.rows import at_place_of, handle, leaf, modified_value, unpacked
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_PRODUCER
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S


def _check_tensors(tensors: Sequence[Any], message: str, kind: type[Exception]) -> None:
    for position, t in enumerate(tensors):
        if t is not None and not isinstance(t, Tensor):
            raise kind(message.format(position=position, type=type(t).__name__))


class FunctionCtx:
    """What a `Function` keeps between forward and backward; attributes may be set freely.

    Attributes:
        needs_input_grad: for each argument of forward, whether its gradient is needed.
    """

    def __init__(self, function: Any, inputs: Sequence[Any]) -> None:
        self._function = function
        self.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in inputs)
        self._tensors = [isinstance(a, Tensor) for a in inputs]
        self._to_save: Sequence[Tensor | None] = ()
        self._to_save_forward: Sequence[Tensor | None] = ()
        self._saved: list[Callable[[], Tensor | None]] | None = []
        self._saves_graph = False  # whether something saved requires grad
        self._dirty: tuple[Tensor, ...] = ()
        self._constant: tuple[Tensor, ...] = ()
        self._materialize = True
        self._outputs: list[int] = []  # id of each result that has a place on the tape, 0 for others
        self._likes: list[tuple[Any, Any] | None] = []  # shape and dtype of each result
        # adjoints of several results that have arrived, by number, for each sweep
        self._collected: weakref.WeakKeyDictionary[Any, dict[int, Tensor]] = weakref.WeakKeyDictionary()
        self._tangents: Sequence[Tensor | None] = ()
        self._arguments = tuple(None if isinstance(a, Tensor) else a for a in inputs)
        self._batched: Sequence[Tensor] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep inputs or outputs of forward for backward, which reads them as `saved_tensors`; to be called once, in forward.

        Raises:
            TypeError: for anything but a tensor or None.
        """
        _check_tensors(
            tensors, "save_for_backward can only save variables, but argument {position} is of type {type}", TypeError
        )
        self._to_save = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for `jvp`, which reads them as `saved_tensors`."""
        _check_tensors(
            tensors, "save_for_forward can only save variables, but argument {position} is of type {type}", TypeError
        )
        self._to_save_forward = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Say which inputs forward changed in place; they must also be returned.

        Raises:
            RuntimeError: for anything but a tensor.
        """
        _check_tensors(
            tensors, "mark_dirty can only accept variables, but argument {position} is of type {type}", RuntimeError
        )
        self._dirty = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Say which outputs carry no gradient.

        Raises:
            RuntimeError: for anything but a tensor.
        """
        _check_tensors(tensors, "mark_non_differentiable only accepts variable arguments, but got {type}", RuntimeError)
        self._constant = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Whether backward gets zeros (the default) or None for outputs without a gradient."""
        self._materialize = value

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What was saved, checked against changes in place.

        Raises:
            RuntimeError: if it was freed, or changed since.
        """
        if self._saved is None:
            raise RuntimeError(errors.BACKWARD_TWICE)
        return tuple(value() for value in self._saved)

    # bookkeeping

    def _keep(self, inputs: Sequence[Tensor], outputs: Sequence[Any], made: Sequence[Any]) -> None:
        """Turn what is to be saved into functions that give it back.

        Args:
            inputs: the tensors among forward's arguments.
            outputs: what forward returned.
            made: the same at its place in the graph.
        """
        kept = self._to_save or self._to_save_forward
        own = {
            id(o): number
            for number, o in enumerate(outputs)
            if self._outputs[number] and (any(o is d for d in self._dirty) or not any(o is t for t in inputs))
        }
        self._saved = [_nothing if t is None else self._keeper(t, own.get(id(t)), made) for t in kept]
        self._to_save = self._to_save_forward = ()

    def _keeper(self, t: Tensor, number: int | None, made: Sequence[Any]) -> Callable[[], Tensor | None]:
        # of a tensor, or of an own result by its number
        value = t if number is None else made[number]
        self._saves_graph = self._saves_graph or value.requires_grad
        hooks = innermost_hooks()
        if hooks is not None:
            packed = hooks.pack(value, number is not None)
            # an own result is kept in its place by whoever asks for it
            node = node_of(value._id) if number is None and value.requires_grad else None
            place = self._outputs[number] if number is not None else value._id if node is not None else 0
            return functools.partial(_unpacked, packed, value.shape, value.dtype, place, node)
        if number is None:
            return functools.partial(_checked, handle(t._id), t._version)
        # a handle on an own result would keep it alive through itself: its elements are kept under another name
        k = self._outputs[number]
        return functools.partial(_own_result, k, wrap(check_id(rt.share_leaf(_S, k, 2))), value._version)

    def _output_number(self, k: int) -> int:
        return self._outputs.index(k) if k in self._outputs else 0

    def _free(self) -> None:
        if self._saved:
            self._saved = None

    def _collect(self, sweep: Any, number: int, g: Tensor) -> None:
        self._collected.setdefault(sweep, {})[number] = g

    def _take_collected(self, sweep: Any) -> list[Tensor | None]:
        found = self._collected.pop(sweep, {})
        return [found.get(number) for number in range(len(self._likes))]


def _nothing() -> None:
    """What was saved as None."""


def _unpacked(packed: tuple[Any, Callable], shape: Any, dtype: Any, place: int, node: Any) -> Tensor:
    value = unpacked(*packed, shape, dtype)
    if not place:
        return value
    with set_grad_enabled(True):  # to its user it is what was saved, whether backward is recorded or not
        return at_place_of(value, place)


def _checked(t: Tensor, version: int, producer: int = -1) -> Tensor:
    if t._version != version:
        raise RuntimeError(modified_value(t._id, version, producer))
    return leaf(t._id) if t.is_leaf else t


def _own_result(k: int, elements: Tensor, version: int) -> Tensor:
    rt.retain_with(_S, k, elements._id)
    t = wrap(k)
    t._root = t._where = None
    return _checked(t, version, rt.look(_S, k, LOOK_PRODUCER))
