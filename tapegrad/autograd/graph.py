"""The graph as users see it: nodes over the rows of the tape, and hooks on them and on what they save."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad import errors
from tapegrad.autograd.attached import Attachment, RemovableHandle, attach, attach_through, attachment
from tapegrad.autograd.rows import (
    grad_name_of,
    handle,
    leaf,
    operand_places,
    operands,
    output_number,
    passes_on_to,
    read_row,
)
from tapegrad.autograd.under_way import current_sweep
from tapegrad.autograd.watching import watching
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_NODE, LOOK_OP
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.ops._rule import OPS
from tapegrad.tensor import Tensor

_S = rt.S
_classes: dict[str, type[Node]] = {}


class Node:
    """The recorded operation that computes one tensor, or several; its class is named after the operation.

    A node of a user's `Function` has the attributes of its `ctx`. It keeps its place in the graph, but no elements.
    """

    __slots__ = ("__weakref__", "_attached", "_id", "_tensor")
    _id: int
    _tensor: weakref.ref[Tensor] | None  # whose `grad_fn` this is

    def __new__(cls, k: int) -> Node:
        name = grad_name_of(k)
        if name not in _classes:
            _classes[name] = type(name, (Node,), {"__slots__": (), "__module__": "tapegrad"})
        node = object.__new__(_classes[name])
        node._id = k
        object.__setattr__(node, "_tensor", None)
        rt.retain_place(_S, k)
        return node

    def __del__(self, release: Any = rt, S: int = _S) -> None:
        if release.release_place(S, self._id):
            release.drop_orphans(S)

    def name(self) -> str:
        """The operation's name with ``Backward0``."""
        name = type(self).__name__
        return f"tapegrad::autograd::{name}" if name == "CopySlices" else name

    def _result(self, number: int) -> Tensor:
        context = self._context()
        return handle(self._id if context is None else context._outputs[number])

    def _context(self) -> Any:
        attached = attachment(self._id)
        return None if attached is None else attached.context

    def __getattr__(self, name: str) -> Any:
        context = self._context()
        if context is not None:
            return getattr(context, name)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        context = None if name == "_id" else self._context()
        if context is not None:
            setattr(context, name, value)
        else:
            object.__setattr__(self, name, value)

    def _attach(self) -> Attachment:
        made = attach_through(self, self._id)
        tensor = self._tensor() if self._tensor is not None else None
        if tensor is not None and tensor._id == self._id:
            attach_through(tensor, self._id)
        return made

    @property
    def metadata(self) -> dict[Any, Any]:
        """A dictionary for notes on this node."""
        return self._attach().metadata

    @property
    def next_functions(self) -> tuple[tuple[Node | None, int], ...]:
        """For each operand the node that gradients flow on to, None where none do, and which of its results it is."""
        row = read_row(rt.look(_S, self._id, LOOK_NODE))
        ids = operands(row)
        return tuple(_edge(ids[p]) if passes_on_to(row, p) else (None, 0) for p in operand_places(row))

    def register_hook(self, hook: Callable) -> RemovableHandle:
        """Call ``hook(grad_inputs, grad_outputs)``, tuples of tensors, after the node's derivative; it may return new `grad_inputs`."""
        return RemovableHandle(self._attach().after, hook)

    def register_prehook(self, hook: Callable) -> RemovableHandle:
        """Call ``hook(grad_outputs)`` before the node's derivative; it may return new `grad_outputs`."""
        return RemovableHandle(self._attach().before, hook)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} object at {hex(id(self))}>"


class AccumulateGrad(Node):
    """Where gradients of a leaf arrive.

    Attributes:
        variable: the leaf.
    """

    __slots__ = ("_variable",)
    _variable: Tensor

    def __new__(cls, k: int) -> AccumulateGrad:
        node = object.__new__(cls)
        node._id = k
        rt.retain_place(_S, k)
        variable = leaf(k)
        object.__setattr__(node, "_variable", variable)
        object.__setattr__(node, "_tensor", weakref.ref(variable))
        return node

    def name(self) -> str:
        """The name of this kind of node."""
        return "tapegrad::autograd::AccumulateGrad"

    @property
    def variable(self) -> Tensor:
        """The leaf."""
        return self._variable

    next_functions = ()  # type: ignore[assignment]


# the nodes that the user holds, by the buffer they are at
_nodes: weakref.WeakValueDictionary[int, Node] = weakref.WeakValueDictionary()


def node_of(k: int) -> Node:
    """The node that computes buffer `k`, or collects its gradient."""
    index = rt.look(_S, k, LOOK_NODE)
    if index >= 0 and getattr(OPS[rt.look(_S, k, LOOK_OP)], "part_of_node", False):
        return node_of(read_row(index).inputs[0])
    node = _nodes.get(k)
    if node is None or (index < 0) != isinstance(node, AccumulateGrad):
        node = _nodes[k] = AccumulateGrad(k) if index < 0 else Node(k)
    return node


def _grad_fn(self: Tensor) -> Node | None:
    """The node of the graph that computes this tensor, None for a leaf."""
    if self.is_leaf:
        return None
    node = node_of(self._id)
    object.__setattr__(node, "_tensor", weakref.ref(self))
    return node


Tensor.grad_fn = property(_grad_fn)  # type: ignore[attr-defined]


def _edge(k: int) -> tuple[Node, int]:
    return node_of(k), output_number(k)


def _output_nr(self: Tensor) -> int:
    """Which result of `grad_fn` this is; only a user's function has more than one."""
    return output_number(self._id)


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
        raise RuntimeError(errors.HOOK_NO_GRAD)
    return RemovableHandle(attach_through(self, self._id).hooks, hook)


def register_post_accumulate_grad_hook(self: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Call ``hook(tensor)`` after a gradient was accumulated into this leaf.

    Raises:
        RuntimeError: if the tensor does not require grad or is no leaf.
    """
    if not self.requires_grad:
        raise RuntimeError(errors.HOOK_NO_GRAD)
    if not self.is_leaf:
        raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
    return RemovableHandle(attach_through(self, self._id).accumulated, hook)


Tensor.register_hook = register_hook  # type: ignore[attr-defined]
Tensor.register_post_accumulate_grad_hook = register_post_accumulate_grad_hook  # type: ignore[attr-defined]


class _ManyHandles(RemovableHandle):
    def __init__(self, handles: Sequence[RemovableHandle]) -> None:
        self._handles = list(handles)

    def remove(self) -> None:
        """Take the hook back."""
        for one in self._handles:
            one.remove()


def register_multi_grad_hook(tensors: Sequence[Tensor], fn: Callable, *, mode: str = "all") -> _ManyHandles:
    """Call a hook once the gradients of several tensors have been computed in a backward.

    Args:
        tensors: tensors that require grad.
        fn: with mode "all", called with a list of the gradients, None for tensors that got none, when those of all the tensors
            that take part are there; with mode "any", with the first gradient computed.
        mode: "all" or "any".

    Returns:
        A handle whose `remove()` takes the hook back.

    Raises:
        ValueError: for another mode.
        RuntimeError: if a tensor does not require grad.
    """
    if mode not in ("all", "any"):
        raise ValueError(f"Expects mode to be one of ('all', 'any') but got {mode}")
    tensors = tuple(tensors)
    if not all(t.requires_grad for t in tensors):
        raise RuntimeError(errors.HOOK_NO_GRAD)
    ids = [t._id for t in tensors]  # which an in-place write to one of them would change
    handles: list[RemovableHandle] = []
    sweeps: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
    lock = threading.Lock()

    def waited_for(sweep: Any) -> set[int]:
        # tensors that take part; one that died may have left its id to another
        attached = {p: attachment(k) for p, k in enumerate(ids) if k in sweep.reached}
        return {p for p, a in attached.items() if a is not None and a.hooks is handles[p]._hooks}

    def collected(position: int, g: Tensor) -> None:
        sweep = current_sweep()
        with lock:
            seen = sweeps.setdefault(sweep, {"grads": {}, "waiting": None})
            called = bool(seen["grads"])
            seen["grads"][position] = g
            if mode == "all" and seen["waiting"] is None:
                seen["waiting"] = waited_for(sweep)
        if mode == "any":
            if not called:
                fn(g)
        elif seen["waiting"] == set(seen["grads"]):
            fn([seen["grads"].get(p) for p in range(len(ids))])

    handles += [register_hook(t, functools.partial(collected, p)) for p, t in enumerate(tensors)]
    return _ManyHandles(handles)


# saved values

_local = threading.local()


def innermost_hooks() -> Any:
    """The `saved_tensors_hooks` block that packs what this thread saves now, None outside of one."""
    hooks = getattr(_local, "hooks", ())
    return hooks[-1] if hooks else None


class saved_tensors_hooks(contextlib.AbstractContextManager):
    """Within this block, have what operations save for backward packed, and unpacked when backward needs it.

    Args:
        pack_hook: called with a tensor when it is saved, not to be written to; what it returns is kept instead.
        unpack_hook: called with that in backward; must return a tensor of the same elements.

    Raises:
        TypeError: if a hook cannot be called.
        RuntimeError: within `disable_saved_tensors_hooks`.

    >>> import tapegrad as tg
    >>> x = tg.ones(3, requires_grad=True)
    >>> with tg.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), lambda a: tg.from_numpy(a)):
    ...     y = tg.exp(x).sum()
    >>> y.backward()
    >>> x.grad
    tensor([2.7183, 2.7183, 2.7183])
    """

    def __init__(self, pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]) -> None:
        for hook in (pack_hook, unpack_hook):
            if not callable(hook):
                raise TypeError(f"saved_tensors_hooks takes two functions, but got {type(hook).__name__}")
        self.pack_hook, self.unpack_hook = pack_hook, unpack_hook
        self._open: list[contextlib.AbstractContextManager] = []

    def __enter__(self) -> None:
        reason = getattr(_local, "reason", None)
        if reason is not None:
            raise RuntimeError(reason)
        before = getattr(_local, "hooks", ())
        _local.hooks = (*before, self)
        block = watching(self._pack_row)
        block.__enter__()
        self._open.append(block)

    def __exit__(self, *exception: Any) -> None:
        self._open.pop().__exit__(*exception)
        _local.hooks = _local.hooks[:-1]

    def _pack_row(self, index: int, out: int) -> None:
        if innermost_hooks() is not self:  # the innermost block packs
            return
        row = read_row(index)
        # a trace keeps its values itself, to run the row again
        if not row.saved or row.flags & structs.TRACED_ROW:
            return
        constants = np.asarray(rt.state["const_buffer"])
        packed = {}
        for position, k in enumerate((*row.inputs, row.out)):
            if not row.saved >> position & 1:
                continue
            # a Python number among the operands is no tensor to the user
            number = position < 3 and bool((constants == k).any())
            packed[position] = (handle(k).detach(), _itself) if number else self.pack(leaf(k), k == out)
        attach(out).packed = packed
        rt.free_saved(_S, index)
        rt.row(index)["flags"] &= ~structs.FREED

    def pack(self, value: Tensor, result: bool = False) -> tuple[Any, Callable[[Any], Tensor]]:
        """Pack one saved value; with `result`, one that the operation itself computed.

        Returns:
            What the pack hook made of it, and the hook that unpacks it.

        Raises:
            RuntimeError: if the pack hook wrote to it.
        """
        version = value._version
        with set_grad_enabled(False):
            packed = self.pack_hook(value)
            if packed is value and result:
                packed = value.detach()  # a result that keeps itself would never die
        if value._version != version:
            raise RuntimeError(
                "A saved tensor pack hook is modifying its input in place. Tensors provided as input to pack hook cannot be modified "
                "by in-place operations as this can lead to unexpected side-effects. Please open an issue if you need to perform "
                "in-place operations on the input to a pack hook."
            )
        return packed, self.unpack_hook


def _itself(value: Tensor) -> Tensor:
    return value


@contextlib.contextmanager
def disable_saved_tensors_hooks(error_message: str) -> Iterator[None]:
    """Refuse `saved_tensors_hooks` within this block, with a message."""
    before = getattr(_local, "reason", None)
    _local.reason = error_message
    try:
        yield
    finally:
        _local.reason = before


class save_on_cpu(saved_tensors_hooks):
    """Save copies of what operations need for backward; there is one device, so this only parts them from later writes.

    Args:
        pin_memory: has no meaning on the CPU.
    """

    def __init__(self, pin_memory: bool = False, device_type: str = "cpu") -> None:
        super().__init__(lambda t: t.clone(), _itself)
