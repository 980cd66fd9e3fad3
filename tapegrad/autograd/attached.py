"""What Python attaches to a value on the tape: hooks, saved values packed by the user, a function's context, where it was recorded.

The buffer keeps the attachment and lets go of it when it dies, so it lives exactly as long as its place in the graph. Hooks may refer to
the tensor they are on. So that such a circle is collected, whoever hooks were registered through keeps the attachment too, and a buffer
that is known to nobody else lets go of it while Python's collector looks for circles.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_ATTACHED
from tapegrad.tensor import Tensor

_S = rt.S
_numbers = itertools.count()
_NOTHING = id(None)  # what a buffer keeps in place of an attachment it has let go of

# adjoints of a node's results, or of its operands; None where there is none
Adjoints = Sequence[Tensor | None]


class Attachment:
    """What is attached to one value.

    Attributes:
        hooks: of the tensor, called with its adjoint.
        before: of the node, called with the adjoints of its results.
        after: of the node, called with the adjoints of its operands and of its results.
        accumulated: called with the leaf once its gradient has been added to.
        metadata: the user's notes on the node.
        recorded_at: the call stack that recorded the row, under anomaly detection.
        packed: by position, what a pack hook made of a saved value and the hook that unpacks it.
        context: of the user's function that made the value.
        buffer: id of the buffer it is attached to.
        holders: the tensors and nodes that hooks were registered through.
    """

    __slots__ = (
        "__weakref__",
        "accumulated",
        "after",
        "before",
        "buffer",
        "context",
        "holders",
        "hooks",
        "metadata",
        "packed",
        "recorded_at",
    )

    def __init__(self, buffer: int) -> None:
        self.buffer = buffer
        self.holders: list[weakref.ref[Any]] = []
        self.hooks: dict[int, Callable] = {}
        self.before: dict[int, Callable] = {}
        self.after: dict[int, Callable] = {}
        self.accumulated: dict[int, Callable] = {}
        self.metadata: dict[Any, Any] = {}
        self.recorded_at = ""
        self.packed: dict[int, tuple[Any, Callable]] | None = None
        self.context: Any = None


def attachment(k: int) -> Attachment | None:
    """What is attached to a buffer."""
    address = rt.look(_S, k, LOOK_ATTACHED)
    if not address:
        return None
    return _lent[k]() if address == _NOTHING else ctypes.cast(address, ctypes.py_object).value


def attach(k: int) -> Attachment:
    """What is attached to a buffer, made if there is nothing yet."""
    made = attachment(k)
    if made is None:
        made = Attachment(k)
        owner = ctypes.py_object(made)
        ctypes.pythonapi.Py_IncRef(owner)
        if not rt.attach(_S, k, id(made)):
            ctypes.pythonapi.Py_DecRef(owner)
            raise MemoryError("no memory for a hook")
    return made


def attach_through(holder: Any, k: int) -> Attachment:
    """What is attached to a buffer, also kept by the tensor or node through which the user gets at it."""
    made = attach(k)
    if not any(known() is holder for known in made.holders):
        made.holders.append(weakref.ref(holder))
        object.__setattr__(holder, "_attached", made)
        _held.add(made)
        if _collecting not in gc.callbacks:
            gc.callbacks.append(_collecting)
    return made


# those with holders; and by buffer those that buffers have let go of for the time of a collection
_held: weakref.WeakSet[Attachment] = weakref.WeakSet()
_lent: dict[int, weakref.ref[Attachment]] = {}


def _collecting(phase: str, facts: dict[str, int]) -> None:
    if facts["generation"] < 2 or not (_held or _lent):
        return
    if phase == "start":
        for attached in _held:
            k = attached.buffer
            if rt.look(_S, k, LOOK_ATTACHED) != id(attached):
                continue
            holders = [t for t in (known() for known in attached.holders) if t is not None and t._id == k]
            if holders and len(holders) == int(rt.buffer(k)["refs"]):
                _lent[k] = weakref.ref(attached)
                _exchange(k, attached, None)
        return
    while _lent:
        k, known = _lent.popitem()
        survivor = known()
        if survivor is not None and rt.look(_S, k, LOOK_ATTACHED) == _NOTHING:
            _exchange(k, None, survivor)


def _exchange(k: int, old: Attachment | None, new: Attachment | None) -> None:
    # what a buffer keeps
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(new))
    rt.storage(int(rt.buffer(k)["attached"]))["owner"] = id(new)
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(old))


class RemovableHandle:
    """Takes a hook back with `remove`, or at the end of a ``with`` block."""

    def __init__(self, hooks: dict[int, Callable], hook: Callable) -> None:
        self.id = next(_numbers)
        self._hooks = hooks
        hooks[self.id] = hook

    def remove(self) -> None:
        """Take the hook back; doing so again changes nothing."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()


def _name(hook: Callable) -> str:
    return getattr(hook, "__name__", "<unknown>")


def _checked(hook: Callable, given: Tensor | None, result: Any) -> Tensor | None:
    # what a hook makes of one adjoint
    if result is None:
        return None
    if given is None:
        raise RuntimeError("can't replace a None gradient with a non-None value")
    if not isinstance(result, Tensor):
        raise TypeError(f"expected Variable, but hook returned '{type(result).__name__}'")
    if result.dtype is not given.dtype:
        raise RuntimeError(
            f"hook '{_name(hook)}' has changed the type of value (was {given.type()} got {result.type()})"
        )
    if result.shape != given.shape:
        raise RuntimeError(f"hook '{_name(hook)}' has changed the size of value")
    return result


def _checked_all(hook: Callable, given: Adjoints, result: Any) -> tuple[Tensor | None, ...]:
    if not isinstance(result, tuple):
        raise TypeError(f"expected tuple, but hook returned '{type(result).__name__}'")
    if len(result) != len(given):
        raise RuntimeError(
            f"hook '{_name(hook)}' has returned an incorrect number of values (got {len(result)}, but expected {len(given)})"
        )
    return tuple(_checked(hook, g, r) for g, r in zip(given, result, strict=True))


def run_hooks(attached: Attachment, g: Tensor) -> Tensor:
    """The adjoint of a value after its tensor's hooks.

    Raises:
        TypeError, RuntimeError: naming a hook that returned something else than an adjoint of the same shape and dtype.
    """
    for hook in list(attached.hooks.values()):
        changed = _checked(hook, g, hook(g))
        g = g if changed is None else changed
    return g


def run_before(attached: Attachment, arrived: Adjoints) -> Adjoints:
    """The adjoints of a node's results after its prehooks; errors as `run_hooks`."""
    for hook in list(attached.before.values()):
        result = hook(tuple(arrived))
        if result is not None:
            arrived = _checked_all(hook, arrived, result)
    return arrived


def run_after(attached: Attachment, parts: Adjoints, arrived: Adjoints) -> Adjoints:
    """What a node passes on to its operands after its hooks, which also see what arrived; errors as `run_hooks`."""
    for hook in list(attached.after.values()):
        result = hook(tuple(parts), tuple(arrived))
        if result is not None:
            parts = _checked_all(hook, parts, result)
    return parts


def run_accumulated(attached: Attachment, t: Tensor) -> None:
    """Tell the hooks of a leaf that its gradient was added to.

    Raises:
        TypeError, RuntimeError: if one returned something.
    """
    for hook in list(attached.accumulated.values()):
        result = hook(t)
        if isinstance(result, Tensor):
            raise RuntimeError("Tensor post accumulate grad hooks should return None.")
        if result is not None:
            raise TypeError(f"expected Variable, but hook returned '{type(result).__name__}'")
