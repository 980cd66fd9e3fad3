"""Making tensors: from data, filled, and counted up."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes, errors
from tapegrad.engine.runtime import rt
from tapegrad.metadata import Size, device
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S


def from_copy(array: np.ndarray) -> Tensor:
    """A tensor with a copy of a NumPy array's elements."""
    dtype = dtypes.of_numpy(array.dtype)
    t = wrap(check_id(rt.new_leaf(_S, rt.layout(array.shape), dtype.code)))
    if array.size:
        t._address_array()[...] = array
    return t


def with_grad(t: Tensor, requires_grad: bool) -> Tensor:
    """A new tensor, set to require grad if that is asked for."""
    if requires_grad:
        if not t.dtype.is_floating_point:
            raise RuntimeError(errors.NOT_FLOATING)
        t.requires_grad_()
    return t


def check_device(chosen: Any) -> None:
    """Refuse a `device` argument that is not the CPU."""
    if chosen is not None:
        device(chosen)


def _nested_shape(data: Any) -> list[int]:
    shape = []
    while isinstance(data, Sequence) and not isinstance(data, str | bytes):
        shape.append(len(data))
        if not data:
            break
        data = data[0]
    return shape


def _check_regular(data: Any, shape: list[int], dim: int = 0) -> None:
    # name the first place where nested lists stop being rectangular
    if dim == len(shape):
        if isinstance(data, Sequence) and not isinstance(data, str | bytes):
            raise TypeError(f"not a sequence of numbers at dim {dim}: {type(data).__name__}")
        return
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        raise TypeError(f"expected a sequence of length {shape[dim]} at dim {dim}, but got {type(data).__name__}")
    if len(data) != shape[dim]:
        raise ValueError(f"expected sequence of length {shape[dim]} at dim {dim} (got {len(data)})")
    for element in data:
        _check_regular(element, shape, dim + 1)


def _numbers(data: Any) -> Any:
    # tensors inside lists become numbers
    if isinstance(data, Tensor):
        return data.detach().numpy() if data.ndim else data.item()
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return [_numbers(d) for d in data]
    return data


def _to_array(data: Any, dtype: dtypes.dtype | None) -> np.ndarray:
    if isinstance(data, Tensor):
        array = data.detach().numpy()
    elif isinstance(data, np.ndarray | np.generic):
        array = np.asarray(data)
    elif isinstance(data, bool | int | float) or (isinstance(data, Sequence) and not isinstance(data, str | bytes)):
        array = _list_array(data)
        if array.dtype == np.float64 and dtype is None:
            array = array.astype(dtypes.get_default_dtype().numpy)
    elif hasattr(data, "__array__") or hasattr(data, "__array_interface__"):
        array = np.asarray(data)
    elif isinstance(data, str | bytes):
        raise TypeError(f"new(): invalid data type '{type(data).__name__}'")
    elif isinstance(data, complex):
        raise TypeError("complex tensors are not supported")
    else:
        raise RuntimeError(f"Could not infer dtype of {type(data).__name__}")
    return array


def _list_array(data: Any) -> np.ndarray:
    data = _numbers(data)
    if isinstance(data, list):
        if not any(isinstance(d, np.ndarray) for d in data):
            _check_regular(data, _nested_shape(data))
        if not data or 0 in _nested_shape(data):
            return np.empty(_nested_shape(data), np.float64)
    try:
        array = np.array(data)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"could not make a tensor from nested sequences: {error}") from None
    if array.dtype.kind in "OU" or array.dtype == np.uint64:
        _refuse_elements(data)
    if array.dtype.kind == "c":
        raise TypeError("complex tensors are not supported")
    return array


def _refuse_elements(data: Any) -> None:
    if isinstance(data, list | np.ndarray):
        for d in data:
            _refuse_elements(d)
        raise TypeError("can't make a tensor from these elements")
    if isinstance(data, str | bytes):
        raise ValueError(f"too many dimensions '{type(data).__name__}'")
    if isinstance(data, int) and not -(1 << 63) <= data < 1 << 63:
        raise ValueError(f"Overflow when unpacking long long: {data}")
    if not isinstance(data, bool | int | float):
        raise RuntimeError(f"Could not infer dtype of {type(data).__name__}")


def _converted(array: np.ndarray, dtype: dtypes.dtype) -> np.ndarray:
    if dtype.category == 1 and array.dtype.kind in "iu" and array.size:
        info = np.iinfo(dtype.numpy)
        low, high = int(array.min()), int(array.max())
        if high > info.max or (low < info.min and (info.min < 0 or low < -int(info.max) - 1)):
            wrong = high if high > info.max else low
            raise RuntimeError(f"value cannot be converted to type {dtype.name} without overflow: {wrong}")
    with np.errstate(all="ignore"):
        return array.astype(dtype.numpy, copy=False)


def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of the given numbers.

    Args:
        data: a number, nested sequences of numbers, a NumPy array or a tensor. Python floats get the default dtype, integers
            int64; arrays keep theirs.
        dtype: convert to this.
        device: must be the CPU.
        requires_grad: whether gradients are wanted.

    Raises:
        ValueError: for ragged sequences and integers that do not fit.
        TypeError: for data that are no numbers.

    >>> import tapegrad as tg
    >>> tg.tensor([1.0, 2.0], requires_grad=True)
    tensor([1., 2.], requires_grad=True)
    """
    check_device(device)
    wanted = None if dtype is None else dtypes.as_dtype(dtype)
    array = _to_array(data, wanted)
    if wanted is not None:
        array = _converted(array, wanted)
    return with_grad(from_copy(array), requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor over the memory of a NumPy array: writing to one writes to the other.

    Args:
        array: of a dtype tensors can hold, with strides that are not negative.

    Raises:
        TypeError: if it is no such array.
        ValueError: for negative strides.

    >>> import numpy as np, tapegrad as tg
    >>> a = np.zeros(2)
    >>> t = tg.from_numpy(a)
    >>> a[0] = 5
    >>> t
    tensor([5., 0.], dtype=tapegrad.float64)
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(array).__name__})")
    dtype = dtypes.of_numpy(array.dtype)
    if not array.dtype.isnative:
        raise ValueError("given numpy array has byte order different from the native byte order. Use .astype() first.")
    if any(s < 0 for s in array.strides):
        raise ValueError(
            "At least one stride in the given numpy array is negative, and tensors with negative strides are not currently "
            "supported. (You can probably work around this by making a copy of your array with array.copy().)"
        )
    if any(s % dtype.itemsize for s in array.strides):
        raise ValueError(
            "given numpy array strides not a multiple of the element byte size. Copy the numpy array to reallocate the memory."
        )
    if not array.size:
        return from_copy(array)
    if not array.flags.writeable:
        # an unwritable array cannot share memory that in-place operations may write
        return from_copy(array)
    strides = tuple(s // dtype.itemsize for s in array.strides)
    reach = 1 + sum((n - 1) * s for n, s in zip(array.shape, strides, strict=True))
    address = array.__array_interface__["data"][0]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(array))
    layout = rt.strided_layout(tuple(array.shape), strides)
    if array.flags.c_contiguous:
        layout = rt.layout(tuple(array.shape))
    k = rt.adopt_leaf(_S, address, address, reach * dtype.itemsize, id(array), layout, dtype.code)
    return wrap(check_id(k))


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of the data, sharing memory where it can: tensors are returned as they are, arrays shared."""
    check_device(device)
    if isinstance(data, Tensor):
        return data if dtype is None else data.to(dtype)
    if isinstance(data, np.ndarray) and (dtype is None or dtypes.of_numpy(data.dtype) is dtypes.as_dtype(dtype)):
        try:
            return from_numpy(data)
        except ValueError:
            return from_copy(data)
    return tensor(data, dtype=dtype)


def asarray(
    obj: Any, *, dtype: Any = None, device: Any = None, copy: bool | None = None, requires_grad: bool = False
) -> Tensor:
    """`as_tensor`, with a choice to copy."""
    made = tensor(obj, dtype=dtype, device=device) if copy else as_tensor(obj, dtype, device)
    return with_grad(made, requires_grad)


def shape_argument(name: str, size: Sequence[Any]) -> tuple[int, ...]:
    """A shape from ``f(2, 3)`` or ``f((2, 3))``.

    Raises:
        TypeError: for extents that are not integers.
        RuntimeError: for negative ones.
    """
    if len(size) == 1 and isinstance(size[0], Sequence | Size):
        size = size[0]
    shape = []
    for position, n in enumerate(size):
        try:
            if isinstance(n, float):
                raise TypeError
            extent = n.__index__()
        except (AttributeError, TypeError):
            raise TypeError(
                f"{name}(): argument 'size' must be tuple of ints, but found element of type {type(n).__name__} at pos {position}"
            ) from None
        if extent < 0:
            raise RuntimeError(f"Trying to create tensor with negative dimension {extent}: {list(size)}")
        shape.append(extent)
    if math.prod(n for n in shape if n) > 2**59:
        raise RuntimeError(f"{name}(): a tensor of shape {shape} is too large")
    return tuple(shape)


def blank(shape: tuple[int, ...], dtype: Any) -> Tensor:
    """A tensor with uninitialised memory, of the default dtype if none is given."""
    d = dtypes.get_default_dtype() if dtype is None else dtypes.as_dtype(dtype)
    return wrap(check_id(rt.new_leaf(_S, rt.layout(shape), d.code)))


def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with uninitialised elements."""
    check_device(device)
    return with_grad(blank(shape_argument("empty", size), dtype), requires_grad)


def filled(shape: tuple[int, ...], values: Any, dtype: Any, requires_grad: bool) -> Tensor:
    """A tensor with values that broadcast to its shape, of the default dtype if none is given."""
    t = blank(shape, dtype)
    t._address_array()[...] = values
    return with_grad(t, requires_grad)


def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros.

    >>> import tapegrad as tg
    >>> tg.zeros(2, 3)
    tensor([[0., 0., 0.],
            [0., 0., 0.]])
    """
    check_device(device)
    return filled(shape_argument("zeros", size), 0, dtype, requires_grad)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones."""
    check_device(device)
    return filled(shape_argument("ones", size), 1, dtype, requires_grad)


def full(size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of one value; its dtype follows the value unless given."""
    check_device(device)
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    if dtype is None:
        kinds = {bool: dtypes.bool, int: dtypes.int64}
        dtype = kinds.get(type(value), dtypes.get_default_dtype())
    shape = shape_argument("full", (size,))
    return filled(shape, value, dtype, requires_grad)


def _like(name: str, value: Any) -> Any:
    def like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        check_device(device)
        if not isinstance(input, Tensor):
            raise TypeError(f"{name}(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}")
        return filled(input.shape, value, dtype or input.dtype, requires_grad)

    like.__name__ = like.__qualname__ = name
    like.__doc__ = f"A tensor of {'zeros' if value == 0 else 'ones'} with the shape and dtype of another."
    return like


zeros_like = _like("zeros_like", 0)
ones_like = _like("ones_like", 1)


def empty_like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with uninitialised elements and the shape and dtype of another."""
    check_device(device)
    return with_grad(blank(input.shape, dtype or input.dtype), requires_grad)


def full_like(
    input: Tensor, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of one value with the shape and dtype of another."""
    check_device(device)
    return filled(input.shape, fill_value, dtype or input.dtype, requires_grad)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """An `n` by `m` matrix with ones on its diagonal."""
    check_device(device)
    rows, columns = shape_argument("eye", (n, n if m is None else m))
    t = filled((rows, columns), 0, dtype, False)
    np.fill_diagonal(t._address_array(), 1)
    return with_grad(t, requires_grad)


def arange(*bounds: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **named: Any) -> Tensor:
    """Numbers from a start (0) up to, but not including, an end, in steps (1).

    >>> import tapegrad as tg
    >>> tg.arange(1, 7, 2)
    tensor([1, 3, 5])
    """
    check_device(device)
    values = [b.item() if isinstance(b, Tensor) else b for b in bounds]
    if len(values) == 1:
        values = [0, *values]
    start, end = (
        named.get("start", values[0] if values else 0),
        named.get("end", values[1] if len(values) > 1 else None),
    )
    step = named.get("step", values[2] if len(values) > 2 else 1)
    if end is None:
        raise TypeError("arange() needs an end")
    if step == 0:
        raise RuntimeError("step must be nonzero")
    if (end - start) * step < 0:
        raise RuntimeError(
            f"upper bound and lower bound inconsistent with step sign: start {start}, end {end}, step {step}"
        )
    if dtype is None:
        integral = all(isinstance(v, int) for v in (start, end, step))
        dtype = dtypes.int64 if integral else dtypes.get_default_dtype()
    count = int(np.ceil((end - start) / step))
    return filled((count,), start + step * np.arange(count), dtype, requires_grad)


def linspace(
    start: Any, end: Any, steps: int, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """`steps` numbers from `start` to `end`, evenly spaced, both ends included."""
    _check_spacing(device, steps)
    return filled((steps,), np.linspace(float(start), float(end), steps), dtype, requires_grad)


def logspace(
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` powers of `base`, their exponents evenly spaced from `start` to `end`."""
    _check_spacing(device, steps)
    return filled((steps,), np.logspace(float(start), float(end), steps, base=base), dtype, requires_grad)


def _check_spacing(device: Any, steps: int) -> None:
    check_device(device)
    if steps < 0:
        raise RuntimeError(f"number of steps must be non-negative, but got {steps}")
