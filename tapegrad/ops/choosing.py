"""Values limited to an interval, or chosen by a condition."""

from __future__ import annotations

from typing import Any

from tapegrad import dtypes
from tapegrad.ops import pointwise as pw
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._public import export
from tapegrad.tensor import Tensor


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
    check_tensor("where", condition, "condition")
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


def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 for negative, 1 for positive elements, `values` at zero."""
    return where(pw.eq(input, 0), values, pw.gt(input, 0).to(input.dtype))  # type: ignore[attr-defined]


export(clamp, "clip", in_place=_clamp_in_place)
export(clamp_min, in_place=lambda self, min: _clamp_in_place(self, min))
export(clamp_max, in_place=lambda self, max: _clamp_in_place(self, None, max))
export(where, method=False)
Tensor.where = _where_method
for _function in (nan_to_num, heaviside):
    export(_function)
