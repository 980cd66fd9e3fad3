"""Choosing between values: extremes, clamping, `where`."""

from __future__ import annotations

import numpy as np

from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._rule import ALL, NUMBERS, Domain, Real


@pointwise(domain=Real(), reference="numpy:minimum", dtypes=ALL, cost=2)
def minimum(x, y):
    r"""The smaller of two; NaN if either is. Equal values share the gradient."""
    return x if x < y or x != x else y


@minimum.backward
def _(g, x, y):
    return g if x < y else (g / 2 if x == y else 0), g if y < x else (g / 2 if x == y else 0)


@pointwise(domain=Real(), reference="numpy:maximum", dtypes=ALL, cost=2)
def maximum(x, y):
    r"""The larger of two; NaN if either is. Equal values share the gradient."""
    return x if x > y or x != x else y


@maximum.backward
def _(g, x, y):
    return g if x > y else (g / 2 if x == y else 0), g if y > x else (g / 2 if x == y else 0)


@pointwise(
    domain=Domain((-4.0, 4.0), (-2.0, -1.0), (1.0, 2.0)),
    reference="numpy:clip",
    dtypes=NUMBERS,
    grad_name="ClampBackward1",
    cost=2,
    method=False,
    public=False,
)
def clamp_both(x, low, high):
    r"""Values limited to an interval."""
    raised = x if x > low or x != x else low
    return raised if raised < high or raised != raised else high


@clamp_both.backward
def _(g, x, low, high):
    return (
        g if x >= low and x <= high else 0,
        g if x < low and low < high else 0,
        g if x > high or high < low else 0,
    )


@pointwise(
    domain=Real(),
    reference="numpy:maximum",
    dtypes=NUMBERS,
    grad_name="ClampMinBackward1",
    cost=2,
    method=False,
    public=False,
)
def clamp_low(x, low):
    r"""Values not below a bound."""
    return x if x > low or x != x else low


@clamp_low.backward
def _(g, x, low):
    return g if x >= low else 0, g if x < low else 0


@pointwise(
    domain=Real(),
    reference="numpy:minimum",
    dtypes=NUMBERS,
    grad_name="ClampMaxBackward1",
    cost=2,
    method=False,
    public=False,
)
def clamp_high(x, high):
    r"""Values not above a bound."""
    return x if x < high or x != x else high


@clamp_high.backward
def _(g, x, high):
    return g if x <= high else 0, g if x > high else 0


# the same with bounds that are numbers


clamp_numbers = clamp_both.twin("clamp_numbers", "ClampBackward0")
clamp_low_number = clamp_low.twin("clamp_low_number", "ClampBackward0")
clamp_high_number = clamp_high.twin("clamp_high_number", "ClampBackward0")


@pointwise(
    domain=Real(),
    reference="numpy:where",
    dtypes=ALL,
    grad_name="WhereBackward0",
    cost=2,
    method=False,
    public=False,
    select=True,
)
def where_op(condition, x, y):
    r"""`x` where the condition holds, else `y`."""
    return x if condition else y


@where_op.backward
def _(g, condition):
    return g if condition else 0, 0 if condition else g


@pointwise(
    domain=Real(),
    reference=lambda x, y, weight: x + weight * (y - x),
    grad_name="LerpBackward0",
    cost=2,
    method=False,
    public=False,
)
def lerp_op(x, y, weight):
    r"""Linear interpolation, :math:`x + w (y - x)`."""
    return x + weight * (y - x)


@lerp_op.backward
def _(g, x, y, weight):
    return g * (1 - weight), g * weight, g * (y - x)


@pointwise(
    domain=Real(),
    reference=lambda x, y, alpha: x + alpha * y,
    dtypes=NUMBERS,
    grad_name="AddBackward0",
    cost=2,
    method=False,
    public=False,
)
def add_scaled(x, y, alpha):
    r"""Sum with a factor, :math:`x + \alpha y`."""
    return x + alpha * y


@add_scaled.backward
def _(g, y, alpha):
    return g, g * alpha, g * y


@pointwise(
    domain=Real(),
    reference=lambda x, y, z: x + y * z,
    dtypes=NUMBERS,
    grad_name="AddcmulBackward0",
    cost=2,
    method=False,
    public=False,
)
def multiply_add(x, y, z):
    r""":math:`x + y z`."""
    return x + y * z


@multiply_add.backward
def _(g, y, z):
    return g, g * z, g * y


@pointwise(
    domain=Real(0.5, 4.0),
    reference=lambda x, y, z: x + y / z,
    grad_name="AddcdivBackward0",
    method=False,
    public=False,
)
def divide_add(x, y, z):
    r""":math:`x + y / z`."""
    return x + y / z


@divide_add.backward
def _(g, y, z):
    return g, g / z, -g * (y / z) / z


@pointwise(
    domain=Real(),
    reference=lambda x, source: source,
    dtypes=ALL,
    grad_name="CopyBackwards",
    cost=2,
    method=False,
    public=False,
)
def copy(x, source):
    r"""The second operand, broadcast to the first."""
    return source


@copy.backward
def _(g):
    return 0, g


@pointwise(
    domain=Real(),
    reference=lambda x, value: np.broadcast_to(value, x.shape),
    dtypes=ALL,
    cost=2,
    method=False,
    public=False,
)
def fill(x, value):
    r"""A value everywhere."""
    return value


@fill.backward
def _(g):
    return 0, g


@pointwise(domain=Real(), reference="numpy:zeros_like", dtypes=ALL, cost=2, method=False, public=False)
def zero(x):
    r"""Zero everywhere."""
    return 0


@zero.backward
def _(g):
    return 0
