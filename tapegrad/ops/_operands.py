"""What operands become before an op sees them: shapes that broadcast, a common dtype, numbers as tensors."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.engine.runtime import rt
from tapegrad.tensor import Tensor, wrap

_S = rt.S


def broadcast_shapes(name: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape all broadcast to.

    Raises:
        RuntimeError: naming the op and the shapes.
    """
    ndim = max((len(s) for s in shapes), default=0)
    result = [1] * ndim
    for shape in shapes:
        for d, n in enumerate(shape, ndim - len(shape)):
            if n != 1:
                if result[d] not in (1, n):
                    raise RuntimeError(broadcast_problem(name, shapes))
                result[d] = n
    return tuple(result)


def broadcast_problem(name: str, shapes: Sequence[Sequence[int]]) -> str:
    """The message for shapes that do not broadcast."""
    shapes = [tuple(s) for s in shapes]
    for k, a in enumerate(shapes):
        for b in shapes[k + 1 :]:
            for d in range(1, min(len(a), len(b)) + 1):
                if a[-d] != b[-d] and a[-d] != 1 and b[-d] != 1:
                    at = max(len(a), len(b)) - d
                    return (
                        f"The size of tensor a ({a[-d]}) must match the size of tensor b ({b[-d]}) at non-singleton dimension "
                        f"{at}: {name} got shapes {', '.join(str(list(s)) for s in shapes)}"
                    )
    return f"{name}: shapes {', '.join(str(list(s)) for s in shapes)} do not broadcast to a tensor that could exist"


def result_type(*operands: Any) -> dtypes.dtype:
    """The dtype that operands promote to: tensors with dimensions before 0-d tensors before Python numbers.

    >>> import tapegrad as tg
    >>> tg.result_type(tg.tensor([1, 2]), 1.0)
    tapegrad.float32
    """
    ranks: list[dtypes.dtype | None] = [None, None, None]
    for operand in operands:
        if isinstance(operand, Tensor):
            rank, d = (0 if operand.ndim else 1), operand.dtype
        else:
            rank = 2
            d = number_dtype(operand)
        seen = ranks[rank]
        ranks[rank] = d if seen is None else dtypes.promote_types(seen, d)
    found = None
    for d in ranks:
        if d is not None and (found is None or d.category > found.category):
            found = d
    assert found is not None
    return found


def number_dtype(value: Any) -> dtypes.dtype:
    """The dtype a Python or NumPy number has as an operand.

    Raises:
        TypeError: if it is not a number.
    """
    if isinstance(value, bool):
        return dtypes.bool
    if isinstance(value, int):
        return dtypes.int64
    if isinstance(value, float):
        return dtypes.get_default_dtype()
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("b", "i", "u", "f") and getattr(value, "shape", None) == ():
        return {"b": dtypes.bool, "f": dtypes.get_default_dtype()}.get(kind, dtypes.int64)
    raise TypeError(f"expected a Tensor or a number, but got {type(value).__name__}")


def check_operand(name: str, argument: str, value: Any) -> None:
    """Refuse anything but tensors and numbers.

    Raises:
        TypeError: naming the function and the argument.
    """
    if not isinstance(value, Tensor):
        try:
            number_dtype(value)
        except TypeError:
            raise TypeError(
                f"{name}(): argument {argument} must be Tensor or Number, not {type(value).__name__}"
            ) from None


def constant(value: Any, dtype: dtypes.dtype) -> Tensor:
    """A 0-d tensor for a Python number; the engine keeps recent ones.

    Raises:
        RuntimeError: if an integer does not fit the dtype.
    """
    if dtype.is_floating_point:
        if dtype is dtypes.float16:
            raise RuntimeError("float16 tensors are for storage only; convert with .float() first")
        try:
            number = float(value)
        except OverflowError:
            raise RuntimeError(f"value cannot be converted to type {dtype.name} without overflow: {value}") from None
        bits = struct_bits(number)
    else:
        bits = int(value)
        if not -(1 << 63) <= bits < 1 << 63:
            raise RuntimeError("Overflow when unpacking long long")
        info = (0, 1) if dtype.name == "bool" else (dtypes.iinfo(dtype).min, dtypes.iinfo(dtype).max)
        if not info[0] <= bits <= info[1]:
            raise RuntimeError(f"value cannot be converted to type {dtype.name} without overflow: {value}")
    k = rt.new_constant(_S, bits, dtype.code)
    if k < 0:
        raise MemoryError("no memory for a constant")
    return wrap(k)


def struct_bits(number: float) -> int:
    """The 64 bits of a float as a signed integer."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


def float_of_bits(bits: int) -> float:
    """The float that `struct_bits` gave the bits of."""
    return struct.unpack("<d", struct.pack("<q", bits))[0]


def operand(value: Any) -> Any:
    """What an operator takes an operand for: arrays as tensors, NumPy's scalars as numbers, None for what it refuses."""
    if isinstance(value, Tensor | bool | int | float):
        return value
    if isinstance(value, np.ndarray | np.generic):
        from tapegrad.creation import as_tensor

        return as_tensor(np.asarray(value)) if np.ndim(value) else value.item()
    return None


def cast(t: Tensor, dtype: dtypes.dtype) -> Tensor:
    """The tensor in another dtype, through the graph; itself if it has it."""
    if t.dtype is dtype:
        return t
    from tapegrad.ops.convert import convert

    return convert(t, dtype)
