"""The public face of pointwise operations: operators, optional arguments, aliases, NumPy ufuncs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import REVERSED
from tapegrad.ops import pointwise as pw
from tapegrad.ops._operands import result_type
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import PUBLIC, built_in_ops
from tapegrad.ops._view import as_method
from tapegrad.tensor import Tensor

_S = rt.S
_new = object.__new__


def public(function: Callable, *names: str, in_place: Callable | None = None) -> Callable:
    """Make a function public and a method of tensors, under its own and further names."""
    for name in (function.__name__, *names):
        PUBLIC[name] = function
        setattr(Tensor, name, as_method(function))
        if in_place is not None:
            setattr(Tensor, name + "_", in_place)
    return function


def _operand(value: Any) -> Any:
    # what an operator accepts beside tensors and numbers; None refuses
    if isinstance(value, Tensor | bool | int | float):
        return value
    if isinstance(value, np.ndarray | np.generic):
        from tapegrad.creation import as_tensor

        return as_tensor(np.asarray(value)) if np.ndim(value) else value.item()
    return None


def _operator(op: Pointwise, call: Callable | None = None) -> Callable:
    code = op.code
    general = call or op

    def method(self: Tensor, other: Any) -> Tensor:
        kind = type(other)
        if kind is Tensor:
            k = rt.record(_S, code, self._id, other._id, 0)
        elif kind is float or kind is int:
            k = rt.record_scalar(_S, code, self._id, other)
        else:
            k = 0
        if k > 0:
            t = _new(Tensor)
            t._id = k
            return t
        other = _operand(other)
        return NotImplemented if other is None else general(self, other)

    return method


def _reflected(op: Pointwise, call: Callable | None = None) -> Callable:
    code = op.code | REVERSED
    general = call or op

    def method(self: Tensor, other: Any) -> Tensor:
        kind = type(other)
        if kind is float or kind is int:
            k = rt.record_scalar(_S, code, self._id, other)
            if k > 0:
                t = _new(Tensor)
                t._id = k
                return t
        other = _operand(other)
        return NotImplemented if other is None else general(other, self)

    return method


def _updating(op: Pointwise, call: Callable | None = None) -> Callable:
    def method(self: Tensor, other: Any) -> Tensor:
        other = _operand(other)
        if other is None:
            return NotImplemented
        if call is not None and result_type(self, other) is dtypes.bool and self.dtype is dtypes.bool:
            return self.copy_(call(self, other))  # type: ignore[attr-defined]
        return op.in_place(self, other)

    return method


# sums and products


def add(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """Sum of two operands, the second times `alpha`.

    >>> import tapegrad as tg
    >>> tg.add(tg.tensor([1.0, 2.0]), 10, alpha=2)
    tensor([21., 22.])
    """
    if alpha == 1:
        return pw.add(input, other, out=out)
    _check_alpha(alpha, input, other)
    return pw.add_scaled(input, other, alpha, out=out)


def _check_alpha(alpha: Any, *operands: Any) -> None:
    if isinstance(alpha, float) and not result_type(*operands).is_floating_point:
        raise RuntimeError("For integral input tensors, argument alpha must not be a floating point number.")


def _add_in_place(self: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    """In-place version of `add`."""
    if alpha == 1:
        return pw.add.in_place(self, other)
    _check_alpha(alpha, self, other)
    return pw.add_scaled.in_place(self, other, alpha)


def sub(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """Difference of two operands, the second times `alpha`."""
    _refuse_bools("-", input, other)
    if alpha == 1:
        return pw.sub(input, other, out=out)
    return pw.add_scaled(input, other, -alpha, out=out)


def _refuse_bools(sign: str, *operands: Any) -> None:
    if all(isinstance(o, bool) or (isinstance(o, Tensor) and o.dtype is dtypes.bool) for o in operands):
        raise RuntimeError(
            f"Subtraction, the `{sign}` operator, with two bool tensors is not supported. "
            "Use the `^` or `logical_xor()` operator instead."
        )


def _sub_in_place(self: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    """In-place version of `sub`."""
    return pw.sub.in_place(self, other) if alpha == 1 else pw.add_scaled.in_place(self, other, -alpha)


def div(input: Any, other: Any, *, rounding_mode: str | None = None, out: Tensor | None = None) -> Tensor:
    """Quotient of two operands.

    Args:
        input: the dividend.
        other: the divisor.
        rounding_mode: None for true division, ``"floor"`` or ``"trunc"``.
        out: where to put the result.
    """
    return _division(rounding_mode)(input, other, out=out)


def _division(rounding_mode: str | None) -> Any:
    if rounding_mode is None:
        return pw.true_divide
    if rounding_mode == "floor":
        return floor_divide
    if rounding_mode == "trunc":
        return _trunc_divide
    raise RuntimeError(f"div expected rounding_mode to be one of None, 'trunc', or 'floor' but found '{rounding_mode}'")


def _div_in_place(self: Tensor, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """In-place version of `div`."""
    ops = {None: pw.true_divide, "floor": pw.floor_divide, "trunc": pw.trunc_divide}
    _division(rounding_mode)
    return ops[rounding_mode].in_place(self, other)


def _integer_division(op: Pointwise, on_integers: Pointwise | None = None) -> Callable:
    # integers have no infinity to give for a division by zero
    def divide(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
        if result_type(input, other).is_floating_point:
            return op(input, other, out=out)
        zero = bool((other == 0).any()) if isinstance(other, Tensor) else other == 0
        if zero:
            raise RuntimeError("ZeroDivisionError")
        return (on_integers or op)(input, other, out=out)

    divide.__name__ = divide.__qualname__ = op.name
    divide.__doc__ = op.__doc__
    return divide


floor_divide = _integer_division(pw.floor_divide)
_trunc_divide = _integer_division(pw.trunc_divide)
remainder = _integer_division(pw.remainder)
fmod = _integer_division(pw.fmod, pw.integer_fmod)


# powers


def pow(input: Any, exponent: Any, *, out: Tensor | None = None) -> Tensor:
    r"""Power, :math:`x^y`, of tensors and numbers.

    Raises:
        RuntimeError: for integers to negative powers.

    >>> import tapegrad as tg
    >>> tg.pow(tg.tensor([1.0, 2.0, 3.0]), 2)
    tensor([1., 4., 9.])
    """
    if type(exponent) in (int, float) and isinstance(input, Tensor):
        if exponent == 2 and input.dtype is not dtypes.bool:
            return pw.square(input, out=out)
        if exponent == 0.5:
            return pw.pow_half(input, out=out)
        if exponent == -1 and input.dtype.is_floating_point:
            return pw.pow_minus_one(input, out=out)
    if result_type(input, exponent).is_floating_point:
        return pw.pow(input, exponent, out=out)
    negative = bool((exponent < 0).any()) if isinstance(exponent, Tensor) else exponent < 0
    if negative:
        raise RuntimeError("Integers to negative integer powers are not allowed.")
    return pw.integer_pow(input, exponent, out=out)


def _pow_in_place(self: Tensor, exponent: Any) -> Tensor:
    """In-place version of `pow`."""
    op = pw.pow if result_type(self, exponent).is_floating_point else pw.integer_pow
    return pw.square.in_place(self) if type(exponent) is int and exponent == 2 else op.in_place(self, exponent)


def float_power(input: Any, exponent: Any) -> Tensor:
    """Power computed in float64."""
    base = input.double() if isinstance(input, Tensor) else float(input)
    return pow(base, exponent.double() if isinstance(exponent, Tensor) else float(exponent))


# choosing


def clamp(input: Tensor, min: Any = None, max: Any = None, *, out: Tensor | None = None) -> Tensor:
    """Values limited to an interval; each bound a number, a tensor, or None for no bound.

    >>> import tapegrad as tg
    >>> tg.clamp(tg.tensor([-2.0, 0.5, 2.0]), -1, 1)
    tensor([-1.0000,  0.5000,  1.0000])
    """
    op, bounds = _clamp(min, max)
    return op(input, *bounds, out=out)


def _clamp(low: Any, high: Any) -> tuple[Pointwise, tuple]:
    if low is None and high is None:
        raise RuntimeError("clamp: At least one of 'min' or 'max' must not be None")
    numbers = not any(isinstance(b, Tensor) for b in (low, high))
    if high is None:
        return (pw.clamp_low_number if numbers else pw.clamp_low), (low,)
    if low is None:
        return (pw.clamp_high_number if numbers else pw.clamp_high), (high,)
    return (pw.clamp_numbers if numbers else pw.clamp_both), (low, high)


def _clamp_in_place(self: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """In-place version of `clamp`."""
    op, bounds = _clamp(min, max)
    return op.in_place(self, *bounds)


def clamp_min(input: Tensor, min: Any) -> Tensor:
    """Values not below a bound."""
    return clamp(input, min)


def clamp_max(input: Tensor, max: Any) -> Tensor:
    """Values not above a bound."""
    return clamp(input, None, max)


def where(condition: Tensor, input: Any = None, other: Any = None, *, out: Tensor | None = None) -> Any:
    """`input` where the condition holds, else `other`; with the condition alone, the indices where it holds.

    >>> import tapegrad as tg
    >>> tg.where(tg.tensor([True, False]), 1.0, tg.zeros(2))
    tensor([1., 0.])
    """
    if not isinstance(condition, Tensor):
        raise TypeError(f"where(): argument 'condition' (position 1) must be Tensor, not {type(condition).__name__}")
    if input is None and other is None:
        return condition.nonzero(as_tuple=True)  # type: ignore[attr-defined]
    if condition.dtype not in (dtypes.bool, dtypes.uint8):
        raise RuntimeError(
            f"where expected condition to be a boolean tensor, but got a tensor with dtype {condition.dtype.tensor_type}"
        )
    return pw.where_op(condition, input, other, out=out)


def _where_method(self: Tensor, condition: Tensor, other: Any) -> Tensor:
    """The tensor where a condition holds, else `other`."""
    return where(condition, self, other)


def lerp(input: Tensor, end: Any, weight: Any, *, out: Tensor | None = None) -> Tensor:
    r"""Linear interpolation, :math:`x + w (y - x)`."""
    return pw.lerp_op(input, end, weight, out=out)


def _lerp_in_place(self: Tensor, end: Any, weight: Any) -> Tensor:
    """In-place version of `lerp`."""
    return pw.lerp_op.in_place(self, end, weight)


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1, out: Tensor | None = None) -> Tensor:
    r""":math:`x + v\, t_1 t_2`."""
    return pw.multiply_add(input, tensor1 if value == 1 else tensor1 * value, tensor2, out=out)


def _addcmul_in_place(self: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """In-place version of `addcmul`."""
    return pw.multiply_add.in_place(self, tensor1 if value == 1 else tensor1 * value, tensor2)


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1, out: Tensor | None = None) -> Tensor:
    r""":math:`x + v\, t_1 / t_2`."""
    return pw.divide_add(input, tensor1 if value == 1 else tensor1 * value, tensor2, out=out)


def _addcdiv_in_place(self: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """In-place version of `addcdiv`."""
    return pw.divide_add.in_place(self, tensor1 if value == 1 else tensor1 * value, tensor2)


# rounding


def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """Nearest integers, halves to even; or the nearest with some decimals."""
    if decimals == 0:
        return pw.round_even(input)
    scale = 10.0 ** builtin_abs(decimals)
    return pw.round_even(input * scale) / scale if decimals > 0 else pw.round_even(input / scale) * scale


def _round_in_place(self: Tensor, *, decimals: int = 0) -> Tensor:
    """In-place version of `round`."""
    if decimals == 0 and self.dtype.is_floating_point:
        return pw.round_even.in_place(self)
    return self.copy_(round(self, decimals=decimals))  # type: ignore[attr-defined]


builtin_abs = abs


# filling


def copy_(self: Tensor, source: Any, non_blocking: bool = False) -> Tensor:
    """Write another tensor's elements, broadcast and converted; gradients flow to it."""
    from tapegrad.ops._write import assign

    if not isinstance(source, Tensor):
        raise TypeError(f"copy_(): argument 'other' (position 1) must be Tensor, not {type(source).__name__}")
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


# comparing


def isclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Tensor:
    r"""Whether :math:`|x - y| \le a + r |y|`, or both are equal infinities."""
    if input.dtype is not other.dtype:
        raise RuntimeError(f"{input.dtype.name} did not match {other.dtype.name}")
    close = pw.eq(input, other)
    gap, bound = pw.abs(input - other), atol + pw.abs(rtol * other)
    close = close | (pw.isfinite(gap) & pw.le(gap, bound))
    return close | (pw.isnan(input) & pw.isnan(other)) if equal_nan else close


def allclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """Whether all elements are close (see `isclose`)."""
    return bool(isclose(input, other, rtol, atol, equal_nan).all())  # type: ignore[attr-defined]


def equal(input: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape and elements."""
    if not isinstance(other, Tensor):
        raise TypeError(f"equal(): argument 'other' must be Tensor, not {type(other).__name__}")
    return input.shape == other.shape and bool((input == other).all())


def bitwise_not(input: Tensor) -> Tensor:
    """Every bit flipped; of a bool, its negation."""
    return pw.logical_not(input) if input.dtype is dtypes.bool else pw.bitwise_not(input)


def _bool_aware(op: Pointwise, on_bools: Pointwise) -> Callable:
    # two bools add as "or" and multiply as "and"
    def general(x: Any, y: Any, **named: Any) -> Tensor:
        if result_type(x, y) is dtypes.bool:
            return on_bools(x, y, **named)
        return op(x, y, **named)

    general.__name__ = op.name
    return general


_add_bools = _bool_aware(pw.add, pw.logical_or)
_mul_bools = _bool_aware(pw.mul, pw.logical_and)


def mul(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
    """Product of two operands."""
    return _mul_bools(input, other, out=out)


def nan_to_num(input: Tensor, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """NaN and infinities replaced by numbers (the largest finite ones unless given)."""
    if not input.dtype.is_floating_point:
        return input.clone()  # type: ignore[attr-defined]
    limits = dtypes.finfo(input.dtype)
    high = limits.max if posinf is None else posinf
    low = limits.min if neginf is None else neginf
    finite = where(pw.isnan(input), nan, input)
    finite = where(pw.eq(input, float("inf")), high, finite)
    return where(pw.eq(input, float("-inf")), low, finite)


def xlogy(input: Any, other: Tensor) -> Tensor:
    r""":math:`x \ln y`, zero where :math:`x` is zero."""
    # only an infinite or undefined logarithm needs replacing, so that a zero has its derivative by x
    replaced = (other <= 0) | (other == float("inf"))
    return input * where((input == 0) & replaced, 0.0, pw.log(other))


def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 for negative, 1 for positive elements, `values` at zero."""
    return where(pw.eq(input, 0), values, pw.gt(input, 0).to(input.dtype))  # type: ignore[attr-defined]


def hypot(input: Tensor, other: Tensor) -> Tensor:
    r""":math:`\sqrt{x^2 + y^2}`."""
    return pw.sqrt(input * input + other * other)


def deg2rad(input: Tensor) -> Tensor:
    """Degrees to radians."""
    return input * (math.pi / 180)


def rad2deg(input: Tensor) -> Tensor:
    """Radians to degrees."""
    return input * (180 / math.pi)


def logit(input: Tensor, eps: float | None = None) -> Tensor:
    r"""Inverse of the logistic function, :math:`\ln(x / (1 - x))`."""
    x = input if eps is None else clamp(input, eps, 1 - eps)
    return pw.log(x / (1 - x))


public(add, in_place=_add_in_place)
public(sub, "subtract", in_place=_sub_in_place)
public(mul, "multiply", in_place=_updating(pw.mul, _mul_bools))
public(div, "divide", in_place=_div_in_place)
for _function, _op in ((floor_divide, pw.floor_divide), (remainder, pw.remainder), (fmod, pw.fmod)):
    public(_function, in_place=_updating(_op))
public(pow, in_place=_pow_in_place)
public(float_power)
public(clamp, "clip", in_place=_clamp_in_place)
public(clamp_min, in_place=lambda self, min: _clamp_in_place(self, min))
public(clamp_max, in_place=lambda self, max: _clamp_in_place(self, None, max))
public(lerp, in_place=_lerp_in_place)
public(addcmul, in_place=_addcmul_in_place)
public(addcdiv, in_place=_addcdiv_in_place)
public(round, in_place=_round_in_place)
for _function in (
    isclose,
    allclose,
    equal,
    bitwise_not,
    nan_to_num,
    xlogy,
    heaviside,
    hypot,
    deg2rad,
    rad2deg,
    logit,
):
    public(_function)
PUBLIC["where"] = where
Tensor.where = _where_method
for _function in (copy_, fill_, zero_):
    setattr(Tensor, _function.__name__, _function)
for _alias, _name in (
    ("absolute", "abs"),
    ("negative", "neg"),
    ("arcsin", "asin"),
    ("arccos", "acos"),
    ("arctan", "atan"),
    ("arctan2", "atan2"),
    ("arcsinh", "asinh"),
    ("arccosh", "acosh"),
    ("arctanh", "atanh"),
    ("fix", "trunc"),
    ("greater", "gt"),
    ("greater_equal", "ge"),
    ("less", "lt"),
    ("less_equal", "le"),
    ("not_equal", "ne"),
):
    PUBLIC[_alias] = PUBLIC[_name]
    setattr(Tensor, _alias, getattr(Tensor, _name))

_OPERATORS: dict[str, tuple[Pointwise, Callable | None]] = {
    "add": (pw.add, _add_bools),
    "sub": (pw.sub, sub),
    "mul": (pw.mul, _mul_bools),
    "truediv": (pw.true_divide, None),
    "floordiv": (pw.floor_divide, floor_divide),
    "mod": (pw.remainder, remainder),
    "and": (pw.bitwise_and, None),
    "or": (pw.bitwise_or, None),
    "xor": (pw.bitwise_xor, None),
    "lshift": (pw.bitwise_left_shift, None),
    "rshift": (pw.bitwise_right_shift, None),
}
for _name, (_op, _call) in _OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _operator(_op, _call))
    setattr(Tensor, f"__r{_name}__", _reflected(_op, _call))
    setattr(Tensor, f"__i{_name}__", _updating(_op, _call if _name in ("add", "mul") else None))
for _name, _op in (("lt", pw.lt), ("le", pw.le), ("gt", pw.gt), ("ge", pw.ge), ("eq", pw.eq), ("ne", pw.ne)):
    setattr(Tensor, f"__{_name}__", _operator(_op))


def rsub(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    """`other` less `alpha` times the tensor."""
    return sub(other, input, alpha=alpha)


public(rsub)


def _power(self: Tensor, exponent: Any) -> Tensor:
    if type(exponent) is int and exponent == 2:
        k = rt.record(_S, pw.square.code, self._id, 0, 0)
        if k > 0:
            t = _new(Tensor)
            t._id = k
            return t
    exponent = _operand(exponent)
    return NotImplemented if exponent is None else pow(self, exponent)


def _reflected_power(self: Tensor, base: Any) -> Tensor:
    base = _operand(base)
    return NotImplemented if base is None else pow(base, self)


Tensor.__pow__ = _power
Tensor.__rpow__ = _reflected_power
Tensor.__ipow__ = _pow_in_place
Tensor.__neg__ = Tensor.neg
Tensor.__pos__ = lambda self: pw.positive(self)
Tensor.__abs__ = Tensor.abs
Tensor.__invert__ = lambda self: bitwise_not(self)
Tensor.__array_priority__ = 1000

_UFUNCS = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "power": "pow",
    "negative": "neg",
    "absolute": "abs",
    "equal": "eq",
    "not_equal": "ne",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arctan2": "atan2",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "invert": "bitwise_not",
    "left_shift": "bitwise_left_shift",
    "right_shift": "bitwise_right_shift",
    "rint": "round",
}


def _array_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **named: Any) -> Any:
    # NumPy's ufuncs on tensors are tapegrad's ops where there is one
    function = PUBLIC.get(_UFUNCS.get(ufunc.__name__, ufunc.__name__))
    if method == "__call__" and function is not None and not named:
        operands = [_operand(x) for x in inputs]
        if any(o is None for o in operands):
            return NotImplemented
        return function(*operands)
    arrays = [x.numpy() if isinstance(x, Tensor) else x for x in inputs]
    return getattr(ufunc, method)(*arrays, **named)


Tensor.__array_ufunc__ = _array_ufunc


def install_native_methods() -> None:
    """Let operators and unary methods run without a Python frame (see engine/native.py)."""
    from tapegrad.engine import native

    plain = ("add", "sub", "mul", "truediv", "lt", "le", "gt", "ge", "eq", "ne")
    ops = {name: op for name, (op, _) in _OPERATORS.items()} | {
        n: getattr(pw, n) for n in ("lt", "le", "gt", "ge", "eq", "ne")
    }
    binary = {f"__{name}__": ops[name].code for name in plain}
    binary |= {f"__r{name}__": ops[name].code | REVERSED for name in ("add", "sub", "mul", "truediv")}
    declared = [op for op in built_in_ops() if isinstance(op, Pointwise) and op.arity == 1]
    unary = {op.name: op.code for op in declared if PUBLIC.get(op.name) is op}
    native.install(Tensor, binary, unary | {"__neg__": pw.neg.code, "__abs__": pw.abs.code})
