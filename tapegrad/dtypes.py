"""Data types, their promotion rules, and the default floating dtype."""

from __future__ import annotations

import numpy as np


class dtype:
    """The type of a tensor's elements, e.g. ``tapegrad.float32``.

    Attributes:
        name: the NumPy name.
        code: position in the engine's tables.
        itemsize: bytes of one element.
        is_floating_point: whether it is a floating dtype.
        numpy: the NumPy dtype.
    """

    __slots__ = ("category", "code", "is_floating_point", "itemsize", "name", "numpy", "tensor_type")

    def __init__(self, code: int, name: str, category: int, tensor_type: str) -> None:
        self.code = code
        self.name = name
        self.numpy = np.dtype(name)
        self.itemsize = self.numpy.itemsize
        self.category = category
        self.is_floating_point = category == 2
        self.tensor_type = tensor_type

    is_complex = False

    @property
    def is_signed(self) -> bool:
        """Whether negative values can be held."""
        return self.name not in ("uint8", "bool")

    def __repr__(self) -> str:
        return f"tapegrad.{self.name}"

    def __reduce__(self) -> str:
        return "bool" if self.name == "bool" else self.name


float32 = dtype(0, "float32", 2, "Float")
float64 = dtype(1, "float64", 2, "Double")
int8 = dtype(2, "int8", 1, "Char")
int16 = dtype(3, "int16", 1, "Short")
int32 = dtype(4, "int32", 1, "Int")
int64 = dtype(5, "int64", 1, "Long")
uint8 = dtype(6, "uint8", 1, "Byte")
bool = dtype(7, "bool", 0, "Bool")
float16 = dtype(8, "float16", 2, "Half")

float = float32
double = float64
half = float16
short = int16
int = int32
long = int64

ALL = (float32, float64, int8, int16, int32, int64, uint8, bool, float16)
_BY_NUMPY = {d.numpy: d for d in ALL}
_BY_PYTHON = {"float": float32, "int": int64, "bool": bool}

_default = float32


def set_default_dtype(d: dtype) -> None:
    """Set the floating dtype of new tensors, and of integers that meet a Python float.

    Raises:
        TypeError: if `d` is not a floating dtype.
    """
    global _default
    if not isinstance(d, dtype) or not d.is_floating_point:
        raise TypeError(f"only floating-point types are supported as the default type, but got {d}")
    _default = d


def get_default_dtype() -> dtype:
    """The floating dtype of new tensors.

    >>> import tapegrad as tg
    >>> tg.get_default_dtype()
    tapegrad.float32
    """
    return _default


def of_numpy(d: np.dtype) -> dtype:
    """The dtype for a NumPy one.

    Raises:
        TypeError: if tensors cannot hold it.
    """
    found = _BY_NUMPY.get(d if d.isnative else d.newbyteorder("="))
    if found is None:
        held = ", ".join(t.name for t in ALL[:-1])
        raise TypeError(
            f"can't convert np.ndarray of type {d.type.__module__}.{d.type.__name__}. "
            f"The only supported types are: {held} and float16."
        )
    return found


def as_dtype(d: object) -> dtype:
    """The dtype a user means by a dtype, a NumPy dtype, or Python's float, int or bool.

    Raises:
        TypeError: if it is none of these.
    """
    if isinstance(d, dtype):
        return d
    if isinstance(d, type) and d.__name__ in _BY_PYTHON and d.__module__ == "builtins":
        return _BY_PYTHON[d.__name__] if d.__name__ != "float" else _default
    try:
        if isinstance(d, str):
            raise TypeError
        return of_numpy(np.dtype(d))  # type: ignore[call-overload]
    except TypeError:
        raise TypeError(f"dtype must be a tapegrad.dtype, not {type(d).__name__} {d!r}") from None


# order in which two integers give the wider; uint8 with a signed one gives the next signed that holds both
_INTEGERS = {"uint8": 0, "int8": 1, "int16": 2, "int32": 3, "int64": 4}


def promote_types(a: dtype, b: dtype) -> dtype:
    """The smallest dtype both convert to, by PyTorch's lattice.

    >>> import tapegrad as tg
    >>> tg.promote_types(tg.int64, tg.float32)
    tapegrad.float32
    >>> tg.promote_types(tg.uint8, tg.int8)
    tapegrad.int16
    """
    if a is b:
        return a
    if a.category != b.category:
        return a if a.category > b.category else b
    if a.category == 2:
        return a if a.itemsize > b.itemsize else b
    if {a.name, b.name} == {"uint8", "int8"}:
        return int16
    return a if _INTEGERS[a.name] > _INTEGERS[b.name] else b


class finfo:
    """Numerical properties of a floating dtype: ``bits eps max min tiny smallest_normal resolution``."""

    def __init__(self, d: dtype | None = None) -> None:
        d = d or _default
        if not d.is_floating_point:
            raise TypeError(
                f"tapegrad.finfo() requires a floating point input type. Use tapegrad.iinfo to handle '{d}'"
            )
        info = np.finfo(d.numpy)
        self.bits = info.bits
        self.eps = info.eps.item()
        self.max = info.max.item()
        self.min = info.min.item()
        self.tiny = self.smallest_normal = info.tiny.item()
        self.resolution = info.resolution.item()
        self.dtype = d.name


class iinfo:
    """Numerical properties of an integer dtype: ``bits max min``."""

    def __init__(self, d: dtype) -> None:
        if d.category != 1:
            raise TypeError(f"tapegrad.iinfo() requires an integer input type. Use tapegrad.finfo to handle '{d}'")
        info = np.iinfo(d.numpy)
        self.bits, self.max, self.min = info.bits, info.max.__index__(), info.min.__index__()
        self.dtype = d.name
