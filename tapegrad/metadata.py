"""What tensors are described by: shapes, layouts, dimensions, the device."""

from __future__ import annotations

import math
from typing import Any

from tapegrad.engine.runtime import rt

# (Size, strides, contiguous) by layout id
_layouts: dict[int, tuple[Size, tuple[int, ...], bool]] = {}


class Size(tuple):
    """The shape of a tensor: a tuple with `numel()`."""

    __slots__ = ()

    def numel(self) -> int:
        """Number of elements of a tensor of this shape."""
        return math.prod(self)

    def __repr__(self) -> str:
        return f"tapegrad.Size({list(self)})"

    def __add__(self, other: tuple) -> Size:
        return Size(tuple.__add__(self, other))

    def __getitem__(self, key: Any) -> Any:
        found = tuple.__getitem__(self, key)
        return Size(found) if isinstance(key, slice) else found


class device(str):
    """Where a tensor lives; there is one device, the CPU."""

    __slots__ = ()
    type = "cpu"
    index = None  # type: ignore[assignment]

    def __new__(cls, name: Any = "cpu") -> device:
        if str(name).split(":")[0] != "cpu":
            raise RuntimeError(f"tapegrad runs on the CPU only, but got device '{name}'; use device='cpu'")
        return str.__new__(cls, "cpu")

    def __repr__(self) -> str:
        return "device(type='cpu')"


def layout_facts(layout: int) -> tuple[Size, tuple[int, ...], bool]:
    """Shape, strides in elements, and whether they are contiguous, of an interned layout."""
    facts = _layouts.get(layout)
    if facts is None:
        row = rt.layout_row(layout)
        n = int(row["ndim"])
        shape = Size(int(d) for d in row["shape"][:n])
        facts = _layouts[layout] = (
            shape,
            tuple(int(d) for d in row["strides"][:n]),
            int(row["contiguous"]) == layout,
        )
    return facts


def check_dim(dim: Any, ndim: int) -> int:
    """A dimension counted from the front.

    Raises:
        IndexError: if there is no such dimension.
    """
    try:
        k = dim.__index__()
    except AttributeError:
        raise TypeError(f"dim must be an int, not {type(dim).__name__} {dim!r}") from None
    bound = max(ndim, 1)
    if not -bound <= k < bound:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-bound}, {bound - 1}], but got {k})")
    return k % bound
