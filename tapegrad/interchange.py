"""Tensors for others: NumPy arrays and DLPack over the same memory, copies, and pickles."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapegrad import errors, tensor
from tapegrad.creation import from_copy
from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import REQUIRES_GRAD
from tapegrad.engine.tape import LOOK_DATA, LOOK_META, LOOK_TRACED
from tapegrad.metadata import layout_facts
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S


class _MemoryHandle:
    """Keeps a buffer's memory alive for NumPy arrays over it."""

    __slots__ = ("__array_interface__", "_id")

    def __init__(self, k: int, interface: dict[str, Any]) -> None:
        self._id = k
        self.__array_interface__ = interface

    def __del__(self) -> None:
        if rt.release(_S, self._id):
            rt.drop_orphans(_S)


def numpy(self: Tensor, *, force: bool = False) -> np.ndarray:
    """A NumPy array over the same memory; it keeps the memory alive.

    Args:
        force: detach first if the tensor requires grad.

    Raises:
        RuntimeError: if the tensor requires grad.
    """
    if self._flags() & REQUIRES_GRAD and not force:
        raise RuntimeError(errors.NUMPY_GRAD)
    kept = False
    if tensor.recorders or rt.look(_S, self._id, LOOK_TRACED):
        from tapegrad.autograd.sampling import before_reading

        kept = before_reading(self)
    shape, strides, _ = layout_facts(rt.look(_S, self._id, LOOK_META) >> 16)
    d = self.dtype
    if 0 in shape:
        return np.empty(shape, d.numpy)
    k = check_id(rt.share_leaf(_S, self._id, 0))
    interface = {
        "data": (rt.look(_S, k, LOOK_DATA), False),
        "shape": tuple(shape),
        "strides": tuple(s * d.itemsize for s in strides),
        "typestr": d.numpy.str,
        "version": 3,
    }
    array = np.asarray(_MemoryHandle(k, interface))
    if kept:
        array.flags.writeable = False
    return array


def __array__(self: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    array = self.numpy()
    if dtype is not None and array.dtype != dtype:
        return array.astype(dtype)
    return array.copy() if copy else array


def __dlpack__(self: Tensor, **options: Any) -> Any:
    return self.numpy().__dlpack__(**options)


def __dlpack_device__(self: Tensor) -> tuple[int, int]:
    return (1, 0)


def __copy__(self: Tensor) -> Tensor:
    twin = wrap(check_id(rt.share_leaf(_S, self._id, 0)))
    if self.requires_grad:
        if not self.is_leaf:
            rt.release(_S, twin._id)
            rt.retain(_S, self._id)
            twin._id = self._id
        else:
            twin.requires_grad_()
    return twin


def __deepcopy__(self: Tensor, memo: dict) -> Tensor:
    if not self.is_leaf:
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at the moment. "
            "Use detach() or clone() for a result of operations."
        )
    if id(self) in memo:
        return memo[id(self)]
    twin = memo[id(self)] = self.detach().clone()
    if self.grad is not None:
        twin.grad = self.grad.__deepcopy__(memo)
    return twin.requires_grad_(self.requires_grad)


def __reduce_ex__(self: Tensor, protocol: Any) -> Any:
    if not self.is_leaf:
        raise RuntimeError("Only leaf tensors can be pickled; call detach() on a result of operations first")
    return _unpickle, (np.ascontiguousarray(self._address_array()).reshape(self.shape), self.requires_grad)


def _unpickle(array: np.ndarray, requires_grad: bool) -> Tensor:
    return from_copy(array).requires_grad_(requires_grad)


for _method in (
    numpy,
    __array__,
    __dlpack__,
    __dlpack_device__,
    __copy__,
    __deepcopy__,
    __reduce_ex__,
):
    setattr(Tensor, _method.__name__, _method)
