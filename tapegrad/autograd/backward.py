"""`backward` and `grad`: check the arguments, sweep, hand out the results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tapegrad import errors
from tapegrad.autograd.accumulate import add_to_leaf
from tapegrad.autograd.anomaly_mode import is_anomaly_enabled
from tapegrad.autograd.grads_batched import batched_gradients
from tapegrad.autograd.sampling import is_sampling
from tapegrad.autograd.sweeping import SCALAR, from_scalar, run, run_plain
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META, LOOK_TRACED
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.metadata import layout_facts
from tapegrad.ops import _reading
from tapegrad.tensor import Tensor

_S = rt.S

_KIND = ~0xFF00  # of what `look` says of a buffer, its layout and dtype


def _as_tuple(value: Any) -> tuple:
    # one or several tensors, for some of which edges may stand
    kind = type(value)
    if kind is Tensor:
        return (value,)
    if kind is tuple or kind is list:
        for v in value:
            if type(v) is not Tensor and v is not None:
                break
        else:
            return tuple(value)
    edge = isinstance(value, tuple) and len(value) == 2 and hasattr(value, "output_nr")
    values = (value,) if isinstance(value, Tensor) or value is None or edge else tuple(value)
    return tuple(v.node._result(v.output_nr) if hasattr(v, "output_nr") and hasattr(v, "node") else v for v in values)


def _requires_grad(t: Tensor) -> int:
    # as the property, in one call
    flags = rt.look(_S, t._id, LOOK_META) >> 8
    return t.requires_grad if flags & structs.IS_VIEW else flags & structs.REQUIRES_GRAD


def _check_roots(tensors: Sequence[Tensor]) -> None:
    for k, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(f"element {k} of tensors must be a Tensor, but got {type(t).__name__}")
        if not _requires_grad(t):
            raise RuntimeError(errors.NO_GRAPH.format(k))


def _gradients(given: Any, count: int) -> tuple:
    if given is None:
        return (None,) * count
    if not isinstance(given, (Tensor, Iterable)):
        raise TypeError(errors.GRADIENT_TYPE.format(type(given).__name__))
    return _as_tuple(given)


def _check_wanted(inputs: Sequence[Tensor]) -> None:
    for t in inputs:
        if not isinstance(t, Tensor):
            raise RuntimeError(errors.INPUT_TYPE.format(type(t).__name__))
        if not _requires_grad(t):
            raise RuntimeError(errors.INPUT_NO_GRAD)


def _checked_gradients(tensors: Sequence[Tensor], gradients: Sequence[Any]) -> list[Tensor | None]:
    # the adjoints to start from, in the dtypes of the roots; None for ones
    for g in gradients:
        if g is not None and not isinstance(g, Tensor):
            raise TypeError(errors.GRADIENT_TYPE.format(type(g).__name__))
    if len(gradients) != len(tensors):
        raise RuntimeError(f"got {len(tensors)} tensors and {len(gradients)} gradients")
    found: list[Tensor | None] = []
    for k, (t, g) in enumerate(zip(tensors, gradients, strict=True)):
        if g is None:
            layout = rt.look(_S, t._id, LOOK_META) >> 16
            if layout != SCALAR and math.prod(layout_facts(layout)[0]) != 1:
                raise RuntimeError(errors.NOT_SCALAR)
            found.append(None)
            continue
        if (rt.look(_S, g._id, LOOK_META) ^ rt.look(_S, t._id, LOOK_META)) & _KIND:
            if g.shape != t.shape:
                raise RuntimeError(errors.GRADIENT_SHAPE.format(k=k, given=g.shape, expected=t.shape))
            g = g.to(t.dtype)
        found.append(g)
    return found


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Accumulate the gradients of tensors into the leaves they were computed from.

    Args:
        tensors: one or several roots.
        grad_tensors: the adjoints to start from; None for roots of one element.
        retain_graph: keep the saved values, so that backward may run again.
        create_graph: record the derivative computation too.
        inputs: accumulate into these tensors only.

    Raises:
        RuntimeError: if a root does not require grad or has more than one element and no gradient, if something saved was
            freed or modified, or if shapes differ.

    >>> import tapegrad as tg
    >>> x = tg.tensor(3.0, requires_grad=True)
    >>> tg.autograd.backward(x * x)
    >>> x.grad
    tensor(6.)
    """
    if is_sampling():
        raise RuntimeError(errors.BACKWARD_IN_VMAP)
    roots = _as_tuple(tensors)
    _check_roots(roots)
    retain = create_graph if retain_graph is None else bool(retain_graph)
    gradients = _gradients(grad_tensors, len(roots))
    starts = _checked_gradients(roots, gradients)
    if inputs is None:
        run(roots, starts, retain, None, create_graph)
        return
    wanted = _as_tuple(inputs)
    if not wanted:
        raise RuntimeError("`inputs` argument to `backward()` cannot be empty.")
    _check_wanted(wanted)
    given = list(dict.fromkeys(t for t in wanted if t.is_leaf))
    results = list(dict.fromkeys(t for t in wanted if not t.is_leaf))
    for t in results:
        t.retain_grad()
    found = run(roots, starts, retain, [*given, *results], create_graph)
    with set_grad_enabled(create_graph):
        for t, g in zip(given, found, strict=False):
            if g is not None:
                add_to_leaf(t, g)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of outputs with respect to inputs, without touching `.grad`.

    Args:
        outputs: one or several tensors.
        inputs: one or several tensors that require grad, leaves or results.
        grad_outputs: the adjoints to start from; None for outputs of one element.
        retain_graph: keep the saved values, so that the graph may be used again.
        create_graph: record the derivative computation too.
        allow_unused: give None, instead of an error, for inputs the outputs do not depend on.
        is_grads_batched: whether `grad_outputs` have a leading batch dimension.
        materialize_grads: give zeros for them.

    Returns:
        One gradient an input.

    Raises:
        RuntimeError: as `backward`; and if an input was not used.

    >>> import tapegrad as tg
    >>> x = tg.tensor(2.0, requires_grad=True)
    >>> tg.autograd.grad(x**3, x)
    (tensor(12.),)
    """
    if materialize_grads and allow_unused is False:
        raise ValueError(
            "Expected allow_unused to be True or not passed when materialize_grads=True, but got: allow_unused=False."
        )
    roots, wanted = _as_tuple(outputs), _as_tuple(inputs)
    retain = create_graph if retain_graph is None else bool(retain_graph)
    gradients = _gradients(grad_outputs, len(roots))
    if not (create_graph or is_grads_batched or is_anomaly_enabled()):
        found = run_plain(roots, gradients, retain, wanted)
        if found is not None:
            return _handed_out(found, wanted, allow_unused, materialize_grads, False)
    if not wanted:
        raise RuntimeError("`inputs` argument to `grad()` cannot be empty.")
    _check_roots(roots)
    _check_wanted(wanted)
    if is_grads_batched:

        def sweep(part: Sequence[Any], keep: bool) -> tuple[Tensor | None, ...]:
            return grad(roots, wanted, part, keep, create_graph, allow_unused, False, materialize_grads)

        return batched_gradients(sweep, roots, wanted, gradients, retain, create_graph)
    found = run(roots, _checked_gradients(roots, gradients), retain, wanted, create_graph)
    return _handed_out(found, wanted, allow_unused, materialize_grads, create_graph)


def _handed_out(
    found: list[Tensor | None], wanted: tuple, allow_unused: bool | None, materialize: bool, create_graph: bool
) -> tuple[Tensor | None, ...]:
    for k, g in enumerate(found):
        if g is not None:
            continue
        if materialize:
            from tapegrad.creation import zeros_like

            found[k] = zeros_like(wanted[k], requires_grad=create_graph)
        elif not allow_unused:
            raise RuntimeError(errors.UNUSED_INPUT)
    return tuple(found)


def _tensor_backward(
    self: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Accumulate the gradients of this tensor into the leaves it was computed from.

    Args:
        gradient: the adjoint to start from, of this tensor's shape; optional for one element.
        retain_graph: keep the saved values, so that backward may run again.
        create_graph: record the derivative computation too.
        inputs: accumulate into these tensors only.

    Raises:
        RuntimeError: see `tapegrad.autograd.backward`.
    """
    plain = gradient is None and inputs is None and not create_graph
    seen = is_anomaly_enabled() or _reading.sampling or rt.look(_S, self._id, LOOK_TRACED)
    if plain and self.requires_grad and not seen:
        from_scalar(self, bool(retain_graph))
    else:
        backward(self, gradient, retain_graph, create_graph, inputs)


_tensor_backward.__name__, _tensor_backward.__qualname__ = "backward", "Tensor.backward"
Tensor.backward = _tensor_backward  # type: ignore[attr-defined]
