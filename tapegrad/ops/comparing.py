"""Tensors compared with a tolerance, or as a whole; names of comparisons."""

from __future__ import annotations

from tapegrad import dtypes
from tapegrad.ops import pointwise as pw
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._public import alias, export
from tapegrad.tensor import Tensor


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
    check_tensor("equal", other, "other", None)
    return input.shape == other.shape and bool((input == other).all())


def bitwise_not(input: Tensor) -> Tensor:
    """Every bit flipped; of a bool, its negation."""
    return pw.logical_not(input) if input.dtype is dtypes.bool else pw.bitwise_not(input)


for _function in (isclose, allclose, equal, bitwise_not):
    export(_function)
for _alias, _name in (
    ("greater", "gt"),
    ("greater_equal", "ge"),
    ("less", "lt"),
    ("less_equal", "le"),
    ("not_equal", "ne"),
):
    alias(_alias, _name)
