"""Elements of a tensor written over: by another tensor's, by one value."""

from __future__ import annotations

from typing import Any

from tapegrad.ops import pointwise as pw
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._write import assign
from tapegrad.tensor import Tensor


def copy_(self: Tensor, source: Any, non_blocking: bool = False) -> Tensor:
    """Write another tensor's elements, broadcast and converted; gradients flow to it."""
    check_tensor("copy_", source, "other")
    return assign(self, source)


def fill_(self: Tensor, value: Any) -> Tensor:
    """Write one value everywhere."""
    if isinstance(value, Tensor) and value.ndim:
        raise RuntimeError(f"fill_ only supports 0-dimension value tensor but got tensor with {value.ndim} dimensions.")
    if isinstance(value, Tensor):
        value = value.to(self.dtype)  # type: ignore[attr-defined]
    elif not self.dtype.is_floating_point and isinstance(value, float):
        value = int(value)
    pw.fill.in_place(_unexpanded(self), value)
    return self


def zero_(self: Tensor) -> Tensor:
    """Write zero everywhere."""
    pw.zero.in_place(_unexpanded(self))
    return self


def _unexpanded(t: Tensor) -> Tensor:
    # one element of each run of elements that share memory: writing one value to all of them is well defined
    for d, (n, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        if stride == 0 and n > 1 and t.numel():
            t = t.narrow(d, 0, 1)  # type: ignore[attr-defined]
    return t


for _function in (copy_, fill_, zero_):
    setattr(Tensor, _function.__name__, _function)
