"""The graph as users see it: nodes over the rows of the tape, and hooks on them and on what they save."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad.autograd.attached import RemovableHandle, attach, attachment
from tapegrad.autograd.rows import handle, operand_places, operands, read_row
from tapegrad.autograd.watching import watching
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_NODE, LOOK_OP
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.ops._rule import OPS
from tapegrad.tensor import Tensor

_S = rt.S
_classes: dict[str, type[Node]] = {}


def grad_name_of(k: int) -> str:
    """The name of the node that makes a buffer."""
    attached = attachment(k)
    if attached is not None and attached.context is not None:
        return type(attached.context).__name__
    op = OPS[rt.look(_S, k, LOOK_OP)]
    assert op is not None
    return op.grad_name


class Node:
    """The recorded operation that computes one tensor; its class is named after the operation.

    A node of a user's `Function` has the attributes of its `ctx`.
    """

    __slots__ = ("_tensor",)
    _tensor: Tensor

    def __new__(cls, k: int) -> Node:
        name = grad_name_of(k)
        if name not in _classes:
            _classes[name] = type(name, (Node,), {"__slots__": (), "__module__": "tapegrad"})
        node = object.__new__(_classes[name])
        node._tensor = handle(k)
        return node

    def name(self) -> str:
        """The operation's name with ``Backward0``."""
        return type(self).__name__

    def _result(self, number: int) -> Tensor:
        return self._tensor

    def __getattr__(self, name: str) -> Any:
        attached = attachment(self._tensor._id) if name != "_tensor" else None
        if attached is not None and attached.context is not None:
            return getattr(attached.context, name)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    @property
    def metadata(self) -> dict[Any, Any]:
        """A dictionary for notes on this node."""
        return attach(self._tensor._id).metadata

    @property
    def next_functions(self) -> tuple[tuple[Node | None, int], ...]:
        """For each operand the node that gradients flow on to, None where none do, and which of its results it is."""
        row = read_row(rt.look(_S, self._tensor._id, LOOK_NODE))
        need = int(rt.row(row.index)["need"])
        ids = operands(row)
        return tuple(_edge(ids[p]) if need >> min(p, 3) & 1 else (None, 0) for p in operand_places(row))

    def register_hook(self, hook: Callable) -> RemovableHandle:
        """Call ``hook(grad_inputs, grad_outputs)``, tuples of tensors, after the node's derivative; it may return new `grad_inputs`."""
        return RemovableHandle(attach(self._tensor._id).after, hook)

    def register_prehook(self, hook: Callable) -> RemovableHandle:
        """Call ``hook(grad_outputs)`` before the node's derivative; it may return new `grad_outputs`."""
        return RemovableHandle(attach(self._tensor._id).before, hook)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and other._tensor._id == self._tensor._id

    def __hash__(self) -> int:
        return hash((Node, self._tensor._id))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} object at {hex(self._tensor._id)}>"


class AccumulateGrad(Node):
    """Where gradients of a leaf arrive.

    Attributes:
        variable: the leaf.
    """

    __slots__ = ()

    def __new__(cls, k: int) -> AccumulateGrad:
        node = object.__new__(cls)
        node._tensor = handle(k)
        return node

    def name(self) -> str:
        """The name of this kind of node."""
        return "tapegrad::autograd::AccumulateGrad"

    @property
    def variable(self) -> Tensor:
        """The leaf."""
        return self._tensor

    next_functions = ()  # type: ignore[assignment]


def node_of(k: int) -> Node:
    """The node that computes buffer `k`, or collects its gradient."""
    return AccumulateGrad(k) if rt.look(_S, k, LOOK_NODE) < 0 else Node(k)


def _output_number(k: int) -> int:
    attached = attachment(k)
    context = attached.context if attached is not None else None
    return 0 if context is None else context._output_number(k)


def _edge(k: int) -> tuple[Node | None, int]:
    return (node_of(k), _output_number(k)) if handle(k).requires_grad else (None, 0)


def _output_nr(self: Tensor) -> int:
    """Which result of `grad_fn` this is; only a user's function has more than one."""
    return _output_number(self._id)


Tensor.output_nr = property(_output_nr)  # type: ignore[attr-defined]


class GradientEdge(NamedTuple):
    """One result of a node, wherever `autograd.grad` and `backward` take a tensor.

    Attributes:
        node: the node.
        output_nr: which of its results.
    """

    node: Node
    output_nr: int


def get_gradient_edge(tensor: Tensor) -> GradientEdge:
    """The edge that gradients of a tensor flow along, also after the tensor is rewritten in place.

    Raises:
        RuntimeError: if the tensor does not require grad.
    """
    if not tensor.requires_grad:
        raise RuntimeError("It is not possible to get the gradient edge for a Tensor that does not require gradients")
    return GradientEdge(node_of(tensor._id), tensor.output_nr)


def register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call ``hook(grad)`` whenever the gradient with respect to this tensor is computed.

    Args:
        hook: may return a tensor of the same shape and dtype to be used in place of the gradient; must not change its argument.

    Returns:
        A handle whose `remove()` takes the hook back.

    Raises:
        RuntimeError: if the tensor does not require grad.

    >>> import tapegrad as tg
    >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
    >>> handle = x.register_hook(lambda g: 2 * g)
    >>> (3 * x).sum().backward()
    >>> x.grad
    tensor([6., 6.])
    """
    if not self.requires_grad:
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    return RemovableHandle(attach(self._id).hooks, hook)


def register_post_accumulate_grad_hook(self: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Call ``hook(tensor)`` after a gradient was accumulated into this leaf.

    Raises:
        RuntimeError: if the tensor does not require grad or is no leaf.
    """
    if not self.requires_grad:
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    if not self.is_leaf:
        raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
    return RemovableHandle(attach(self._id).accumulated, hook)


Tensor.register_hook = register_hook  # type: ignore[attr-defined]
Tensor.register_post_accumulate_grad_hook = register_post_accumulate_grad_hook  # type: ignore[attr-defined]


class _ManyHandles:
    def __init__(self, handles: Sequence[RemovableHandle]) -> None:
        self._handles = list(handles)

    def remove(self) -> None:
        """Take the hook back."""
        for one in self._handles:
            one.remove()

    def __enter__(self) -> _ManyHandles:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()


def register_multi_grad_hook(tensors: Sequence[Tensor], fn: Callable, *, mode: str = "all") -> _ManyHandles:
    """Call a hook once the gradients of several tensors have been computed.

    Args:
        tensors: those that require grad count.
        fn: with mode "all", called in each backward with a list of the gradients, None for tensors that got none, when those of
            all the tensors that take part are there; with mode "any", with the first gradient computed.
        mode: "all" or "any".

    Returns:
        A handle whose `remove()` takes the hook back.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("all", "any"):
        raise ValueError(f"Expects mode to be one of ('all', 'any') but got {mode}")
    state: dict[str, Any] = {"sweep": None, "grads": {}}
    lock = threading.Lock()

    def collected(position: int, g: Tensor) -> None:
        from tapegrad.autograd.backward import current_sweep

        sweep = current_sweep()
        with lock:
            if state["sweep"] is not sweep:
                state.update(sweep=sweep, grads={}, waiting=None, called=False)
            if mode == "any":
                first, state["called"] = not state["called"], True
            else:
                if state["waiting"] is None:
                    state["waiting"] = {p for p, t in enumerate(tensors) if t.requires_grad and t._id in sweep.reached}
                state["grads"][position] = g
                first = state["waiting"] <= set(state["grads"])
        if first:
            fn(g if mode == "any" else [state["grads"].get(p) for p in range(len(tensors))])

    return _ManyHandles(
        [register_hook(t, functools.partial(collected, p)) for p, t in enumerate(tensors) if t.requires_grad]
    )


# saved values

_disabled = threading.local()


def innermost_hooks() -> Any:
    """The `saved_tensors_hooks` block that packs what this thread saves now, None outside of one."""
    hooks = getattr(_disabled, "hooks", ())
    return hooks[-1] if hooks else None


class saved_tensors_hooks(contextlib.AbstractContextManager):
    """Within this block, have what operations save for backward packed, and unpacked when backward needs it.

    Args:
        pack_hook: called with a detached tensor when it is saved; what it returns is kept instead.
        unpack_hook: called with that in backward; must return a tensor of the same elements.

    >>> import tapegrad as tg
    >>> x = tg.ones(3, requires_grad=True)
    >>> with tg.autograd.graph.saved_tensors_hooks(lambda t: t.numpy().copy(), lambda a: tg.from_numpy(a)):
    ...     y = tg.exp(x).sum()
    >>> y.backward()
    >>> x.grad
    tensor([2.7183, 2.7183, 2.7183])
    """

    def __init__(self, pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]) -> None:
        self.pack_hook, self.unpack_hook = pack_hook, unpack_hook
        self._open: list[contextlib.AbstractContextManager] = []

    def __enter__(self) -> None:
        reason = getattr(_disabled, "reason", None)
        if reason is not None:
            raise RuntimeError(reason)
        before = getattr(_disabled, "hooks", ())
        _disabled.hooks = (*before, self)
        block = watching(self._pack_row)
        block.__enter__()
        self._open.append(block)

    def __exit__(self, *exception: Any) -> None:
        self._open.pop().__exit__(*exception)
        _disabled.hooks = _disabled.hooks[:-1]

    def _pack_row(self, index: int, out: int) -> None:
        if innermost_hooks() is not self:  # the innermost block packs
            return
        recorded = rt.row(index)
        saved = int(recorded["saved"])
        if not saved or int(recorded["kept"]):
            return
        row = read_row(index)
        packed = {}
        with set_grad_enabled(False):
            for position, k in enumerate((*row.inputs, row.out)):
                if saved >> position & 1 and k not in _constants():
                    value = handle(k).detach()
                    version = value._version
                    packed[position] = (self.pack_hook(value), self.unpack_hook)
                    if value._version != version:
                        raise RuntimeError(
                            "A saved tensor pack hook is modifying its input in place. Tensors provided as input to pack hook can "
                            "not be modified by in-place operations as this can lead to unexpected side-effects. Please open an "
                            "issue if you need to perform in-place operations on the input to a pack hook."
                        )
        if not packed:
            return
        for position, k in enumerate((*row.inputs, row.out)):
            if saved >> position & 1 and position not in packed:
                kept = handle(k).detach()
                packed[position] = (kept, _itself)
        attach(out).packed = packed
        rt.free_saved(_S, index)
        recorded = rt.row(index)
        recorded["flags"] &= ~structs.FREED


def _itself(value: Tensor) -> Tensor:
    return value


def _constants() -> set[int]:
    return set(np.asarray(rt.state["const_buffer"]).tolist())


@contextlib.contextmanager
def disable_saved_tensors_hooks(error_message: str) -> Iterator[None]:
    """Refuse `saved_tensors_hooks` within this block, with a message."""
    before = getattr(_disabled, "reason", None)
    _disabled.reason = error_message
    try:
        yield
    finally:
        _disabled.reason = before


class save_on_cpu(saved_tensors_hooks):
    """Save copies of what operations need for backward; there is one device, so this only parts them from later writes.

    Args:
        pin_memory: has no meaning on the CPU.
    """

    def __init__(self, pin_memory: bool = False, device_type: str = "cpu") -> None:
        super().__init__(lambda t: t.clone(), _itself)
