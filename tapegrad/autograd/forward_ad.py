"""Forward mode: dual tensors carry a tangent through whatever is computed from them.

Within a level what is computed from a dual tensor is recorded; `unpack_dual` pushes the tangents along that record. So forward
mode costs the memory of the record, and works through views, in-place writes and any control flow.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, NamedTuple

from tapegrad.autograd.tangents import push_forward
from tapegrad.autograd.tracing import alias, is_traced, mark, rows_between, transforming, unmark
from tapegrad.tensor import Tensor

_local = threading.local()


class _Level:
    def __init__(self) -> None:
        self.tangents: dict[int, Tensor] = {}
        self.handles: list[Tensor] = []  # so that ids stay what they are
        self.block = contextlib.ExitStack()

    def keep(self, t: Tensor, tangent: Tensor) -> None:
        self.tangents[t._id] = tangent
        self.handles.append(alias_handle(t))


def alias_handle(t: Tensor) -> Tensor:
    """Another handle on the same buffer."""
    from tapegrad.autograd.rows import handle

    return handle(t._id)


class UnpackedDualTensor(NamedTuple):
    """What `unpack_dual` returns.

    Attributes:
        primal: the value.
        tangent: its tangent, None if it has none.
    """

    primal: Tensor
    tangent: Tensor | None


def _level() -> _Level | None:
    return getattr(_local, "level", None)


def enter_dual_level() -> int:
    """Start a level by hand; `dual_level` is safer.

    Raises:
        RuntimeError: inside another level.
    """
    if _level() is not None:
        raise RuntimeError("Nested forward mode AD is not supported at the moment")
    _local.level = level = _Level()
    level.block.enter_context(transforming())
    return 0


def exit_dual_level(*, level: int | None = None) -> None:
    """End the level: duals lose their tangents.

    Raises:
        RuntimeError: outside of one.
    """
    current = _level()
    if current is None:
        raise RuntimeError("Trying to exit a forward AD level but no level is currently active")
    _local.level = None
    for t in current.handles:
        unmark(t)
    current.block.close()


class dual_level(contextlib.AbstractContextManager):
    """A block in which dual tensors may be made.

    >>> import tapegrad as tg
    >>> import tapegrad.autograd.forward_ad as fwAD
    >>> x = tg.tensor(2.0)
    >>> with fwAD.dual_level():
    ...     y = fwAD.make_dual(x, tg.tensor(1.0)) ** 3
    ...     fwAD.unpack_dual(y).tangent
    tensor(12.)
    """

    def __enter__(self) -> int:
        return enter_dual_level()

    def __exit__(self, *exception: Any) -> None:
        exit_dual_level()


def make_dual(tensor: Tensor, tangent: Tensor, *, level: int | None = None) -> Tensor:
    """A tensor with a tangent; it shares memory with `tensor`.

    Args:
        tensor: the primal, of a floating dtype.
        tangent: of its shape and dtype.
        level: the current one.

    Raises:
        RuntimeError: outside a level, or if shapes differ.
        ValueError: for dtypes that are not floating.
    """
    current = _level()
    if current is None:
        raise RuntimeError(
            "Trying to create a dual Tensor for forward AD but no level exists, make sure to enter_dual_level() first."
        )
    if not tensor.dtype.is_floating_point:
        raise ValueError(f"Expected primal to be floating point or complex, but got: {tensor.dtype}")
    if not tangent.dtype.is_floating_point:
        raise ValueError(f"Expected tangent to be floating point or complex, but got: {tangent.dtype}")
    if tensor.shape != tangent.shape:
        raise RuntimeError(
            f"Expected tensor and tangent to have the same shape, but got {list(tensor.shape)} and {list(tangent.shape)}"
        )
    if tensor.dtype is not tangent.dtype:
        raise RuntimeError(
            f"Expected tensor and tangent to have the same dtype, but got {tensor.dtype} and {tangent.dtype}"
        )
    dual = mark(alias(tensor))
    current.keep(dual, tangent)
    return dual


def unpack_dual(tensor: Tensor, *, level: int | None = None) -> UnpackedDualTensor:
    """The primal and the tangent of a tensor; the tangent is None if it depends on no dual tensor.

    Args:
        tensor: any tensor.
        level: the current one.
    """
    current = _level()
    if current is None or not is_traced(tensor):
        return UnpackedDualTensor(tensor, None)
    tensor._refresh()
    # only duals are remembered: ids of results may be given to others
    known = dict(current.tangents)
    push_forward(rows_between([tensor._id], known), known)
    return UnpackedDualTensor(unmark(alias(tensor)), known.get(tensor._id))
