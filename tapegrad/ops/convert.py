"""Conversions between dtypes, and copies."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._reading import computed
from tapegrad.ops._rule import ALL, Real
from tapegrad.tensor import Tensor


@pointwise(domain=Real(), reference="numpy:copy", dtypes=ALL, cost=2)
def clone(x):
    """A copy in memory of its own, through which gradients flow."""
    return x


@clone.backward
def _(g):
    return g


def _conversion(target: dtypes.dtype) -> Any:
    def body(x):
        """The same values in another dtype."""
        return x

    body.__name__ = body.__qualname__ = f"to_{target.name}"
    op = pointwise(
        domain=Real(),
        reference=lambda x: x.astype(target.numpy),
        dtypes=ALL,
        out=target,
        grad_name="ToCopyBackward0",
        method=False,
        public=False,
        cost=2,
    )(body)
    if target.is_floating_point:

        @op.backward
        def _(g):
            return g

    return op


def _to_bool(x):
    """Whether each element differs from zero."""
    return x != 0


_to_bool.__name__ = "to_bool"
_CONVERSIONS = {d: _conversion(d) for d in ALL if d is not dtypes.bool}
_CONVERSIONS[dtypes.bool] = pointwise(
    domain=Real(), reference=lambda x: x != 0, dtypes=ALL, out=dtypes.bool, method=False, public=False, cost=2
)(_to_bool)


def convert(t: Tensor, dtype: dtypes.dtype) -> Tensor:
    """The tensor in another dtype; gradients between floating dtypes flow.

    float16 is for storage: it converts from and to other dtypes outside the graph.
    """
    if t.dtype is dtype:
        return t
    if dtypes.float16 in (t.dtype, dtype):
        return computed(functools.partial(_converted, kind=dtype.numpy), t, stretches=(0,))
    return _CONVERSIONS[dtype](t)


def _converted(array: np.ndarray, kind: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(kind)


def to(self: Tensor, *args: Any, dtype: Any = None, device: Any = None, copy: bool = False, **ignored: Any) -> Tensor:
    """The tensor with another dtype (or that of another tensor); itself if nothing changes.

    Args:
        args: a dtype, a device, a tensor to match, or several of them.
        dtype: the dtype.
        device: must be the CPU.
        copy: copy even if nothing changes.
    """
    from tapegrad.metadata import device as device_type

    for a in args:
        if isinstance(a, Tensor):
            dtype = a.dtype
        elif isinstance(a, str):
            device_type(a)
        elif isinstance(a, bool):
            continue
        else:
            dtype = a
    if device is not None:
        device_type(device)
    wanted = self.dtype if dtype is None else dtypes.as_dtype(dtype)
    if wanted is self.dtype:
        return clone(self) if copy else self
    return convert(self, wanted)


def contiguous(self: Tensor) -> Tensor:
    """The tensor itself if its elements lie in row-major order, else a copy in which they do."""
    return self if self.is_contiguous() else clone(self)


def _shortcut(name: str, dtype: dtypes.dtype) -> Any:
    def method(self: Tensor) -> Tensor:
        return convert(self, dtype)

    method.__name__ = name
    method.__qualname__ = f"Tensor.{name}"
    method.__doc__ = f"The tensor as {dtype.name}."
    return method


_SHORTCUTS = {
    "float": dtypes.float32,
    "double": dtypes.float64,
    "half": dtypes.float16,
    "char": dtypes.int8,
    "short": dtypes.int16,
    "int": dtypes.int32,
    "long": dtypes.int64,
    "byte": dtypes.uint8,
    "bool": dtypes.bool,
}
for _name, _dtype in _SHORTCUTS.items():
    setattr(Tensor, _name, _shortcut(_name, _dtype))
Tensor.to = to
Tensor.contiguous = contiguous


def _clone_method(self: Tensor, *, memory_format: Any = None) -> Tensor:
    return clone(self)


_clone_method.__doc__ = clone.__doc__
Tensor.clone = _clone_method
del Tensor.clone_


def type_as(self: Tensor, other: Tensor) -> Tensor:
    """The tensor with the dtype of another."""
    return convert(self, other.dtype)


Tensor.type_as = type_as
