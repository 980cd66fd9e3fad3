"""Sums, products, quotients, powers and rounding as users call them: optional arguments, in-place forms, other names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tapegrad import dtypes
from tapegrad.ops import pointwise as pw
from tapegrad.ops._operands import result_type
from tapegrad.ops._pointwise import Pointwise, updating
from tapegrad.ops._public import alias, export
from tapegrad.ops.choosing import clamp, where
from tapegrad.tensor import Tensor

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


def rsub(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    """`other` less `alpha` times the tensor."""
    return sub(other, input, alpha=alpha)


def _bool_aware(op: Pointwise, on_bools: Pointwise) -> Callable:
    # two bools add as "or" and multiply as "and"
    def general(x: Any, y: Any, **named: Any) -> Tensor:
        if result_type(x, y) is dtypes.bool:
            return on_bools(x, y, **named)
        return op(x, y, **named)

    general.__name__ = op.name
    return general


add_bools = _bool_aware(pw.add, pw.logical_or)
mul_bools = _bool_aware(pw.mul, pw.logical_and)


def mul(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
    """Product of two operands."""
    return mul_bools(input, other, out=out)


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


# combined


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


def pow_in_place(self: Tensor, exponent: Any) -> Tensor:
    """In-place version of `pow`."""
    op = pw.pow if result_type(self, exponent).is_floating_point else pw.integer_pow
    return pw.square.in_place(self) if type(exponent) is int and exponent == 2 else op.in_place(self, exponent)


def float_power(input: Any, exponent: Any) -> Tensor:
    """Power computed in float64."""
    base = input.double() if isinstance(input, Tensor) else float(input)
    return pow(base, exponent.double() if isinstance(exponent, Tensor) else float(exponent))


# rounding


def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """Nearest integers, halves to even; or the nearest with some decimals."""
    if decimals == 0:
        return pw.round_even(input)
    scale = 10.0 ** abs(decimals)
    return pw.round_even(input * scale) / scale if decimals > 0 else pw.round_even(input / scale) * scale


def _round_in_place(self: Tensor, *, decimals: int = 0) -> Tensor:
    """In-place version of `round`."""
    if decimals == 0 and self.dtype.is_floating_point:
        return pw.round_even.in_place(self)
    return self.copy_(round(self, decimals=decimals))  # type: ignore[attr-defined]


def xlogy(input: Any, other: Tensor) -> Tensor:
    r""":math:`x \ln y`, zero where :math:`x` is zero."""
    # only an infinite or undefined logarithm needs replacing, so that a zero has its derivative by x
    replaced = (other <= 0) | (other == float("inf"))
    return input * where((input == 0) & replaced, 0.0, pw.log(other))


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


export(add, in_place=_add_in_place)
export(sub, "subtract", in_place=_sub_in_place)
export(mul, "multiply", in_place=updating(pw.mul, mul_bools))
export(div, "divide", in_place=_div_in_place)
for _function, _op in ((floor_divide, pw.floor_divide), (remainder, pw.remainder), (fmod, pw.fmod)):
    export(_function, in_place=updating(_op))
export(pow, in_place=pow_in_place)
export(float_power)
export(lerp, in_place=_lerp_in_place)
export(addcmul, in_place=_addcmul_in_place)
export(addcdiv, in_place=_addcdiv_in_place)
export(round, in_place=_round_in_place)
for _function in (rsub, xlogy, hypot, deg2rad, rad2deg, logit):
    export(_function)
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
):
    alias(_alias, _name)
