"""Sums, products, quotients, remainders and powers."""

from __future__ import annotations

import math

import numpy as np

from tapegrad.engine import structs, vecmath
from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._rule import FLOATS, INTEGERS, NUMBERS, Domain, Real

# scalar helpers for what is no single expression


@structs.internal
def _trunc_divide(x, y):
    q = x // y
    return q + 1 if q < 0 and q * y != x else q


@structs.internal
def _fmod(x, y):
    r = (x if x > 0 else -x) % (y if y > 0 else -y)
    return -r if x < 0 else r


@structs.internal
def _integer_fmod(x, y):
    return x - y * _trunc_divide(x, y)


@structs.internal
def _integer_pow(x, y):
    result = 1
    while y > 0:
        if y & 1:
            result *= x
        x *= x
        y >>= 1
    return result


@pointwise(domain=Real(), reference="numpy:add", dtypes=NUMBERS, cost=2)
def add(x, y):
    r"""Sum, :math:`x + y`."""
    return x + y


@add.backward
def _(g):
    return g, g


@pointwise(domain=Real(), reference="numpy:subtract", dtypes=NUMBERS, cost=2)
def sub(x, y):
    r"""Difference, :math:`x - y`."""
    return x - y


@sub.backward
def _(g):
    return g, -g


@pointwise(domain=Real(), reference="numpy:multiply", dtypes=NUMBERS, cost=2)
def mul(x, y):
    r"""Product, :math:`x y`."""
    return x * y


@mul.backward
def _(g, x, y):
    return g * y, g * x


@pointwise(domain=Domain((-4.0, 4.0), (0.5, 4.0)), reference="numpy:divide", grad_name="DivBackward0")
def true_divide(x, y):
    r"""Quotient, :math:`x / y`; of integers in floating point."""
    return x / y


@true_divide.backward
def _(g, x, y):
    return g / y, -g * (x / y) / y


@pointwise(
    domain=Domain((-4.0, 4.0), (0.5, 4.0)),
    reference="numpy:floor_divide",
    dtypes=NUMBERS,
    grad_name="DivBackward1",
)
def floor_divide(x, y):
    r"""Quotient rounded down, :math:`\lfloor x / y \rfloor`; its derivative is zero."""
    return x // y


@floor_divide.backward
def _(g):
    return 0, 0


@pointwise(
    domain=Domain((-4.0, 4.0), (0.5, 4.0)),
    reference=lambda x, y: np.trunc(x / y).astype(x.dtype),
    dtypes=NUMBERS,
    grad_name="DivBackward1",
    public=False,
    method=False,
)
def trunc_divide(x, y):
    r"""Quotient rounded towards zero; its derivative is zero."""
    return _trunc_divide(x, y)


@trunc_divide.backward
def _(g):
    return 0, 0


@pointwise(domain=Domain((-4.0, 4.0), (0.5, 4.0)), reference="numpy:remainder", dtypes=NUMBERS)
def remainder(x, y):
    r"""Remainder of :math:`\lfloor x / y \rfloor`, with the sign of :math:`y`."""
    return x % y


@remainder.backward
def _(g, x, y):
    return g, -g * vecmath.floor(x / y)


@pointwise(domain=Domain((-4.0, 4.0), (0.5, 4.0)), reference="numpy:fmod", dtypes=FLOATS)
def fmod(x, y):
    r"""Remainder of the truncated quotient, with the sign of :math:`x`."""
    return _fmod(x, y)


@fmod.backward
def _(g, x, y):
    return g, -g * vecmath.trunc(x / y)


@pointwise(domain=Domain((-4.0, 4.0), (0.5, 4.0)), reference="numpy:fmod", dtypes=INTEGERS, method=False, public=False)
def integer_fmod(x, y):
    r"""`fmod` of integers."""
    return _integer_fmod(x, y)


@pointwise(
    domain=Domain((0.2, 3.0), (-2.0, 3.0)),
    reference="numpy:power",
    grad_name="PowBackward0",
    cost=16,
    method=False,
    public=False,
)
def pow(x, y):
    r"""Power, :math:`x^y`."""
    return vecmath.pow(x, y)


@pow.backward
def _(g, x, y, out):
    # no infinite power or logarithm where a partial is zero: it would make the next derivative NaN
    return (
        g * (y * vecmath.pow(x, y if y == 0 and abs(1 / x) == math.inf else y - 1)),
        g * (out * vecmath.log(1 if x == 0 and y >= 0 else x)),
    )


@pointwise(
    domain=Domain((-4.0, 4.0), (0.0, 3.0)),
    reference="numpy:power",
    dtypes=INTEGERS,
    cost=20,
    method=False,
    public=False,
)
def integer_pow(x, y):
    r"""Power of integers, by squaring."""
    return _integer_pow(x, y)


@pointwise(domain=Real(), reference="numpy:negative", dtypes=NUMBERS, cost=2)
def neg(x):
    r"""Negative, :math:`-x`."""
    return -x


@neg.backward
def _(g):
    return -g


@pointwise(domain=Real(), reference="numpy:positive", dtypes=NUMBERS, cost=2, method=False, public=False)
def positive(x):
    r"""The value itself."""
    return x


@positive.backward
def _(g):
    return g


@pointwise(domain=Real(avoid=(0.0,)), reference="numpy:absolute", dtypes=NUMBERS, cost=2)
def abs(x):
    r"""Absolute value, :math:`|x|`; its derivative at zero is zero."""
    return x if x > 0 else 0 - x


@abs.backward
def _(g, x):
    return g if x > 0 else (-g if x < 0 else g * 0)


@pointwise(domain=Real(avoid=(0.0,)), reference="numpy:sign", dtypes=NUMBERS, cost=2)
def sign(x):
    r"""Sign: -1, 0 or 1; its derivative is zero."""
    return (1 if x > 0 else 0) - (1 if x < 0 else 0)


@sign.backward
def _(g):
    return 0


@pointwise(domain=Real(0.3, 4.0), reference="numpy:reciprocal")
def reciprocal(x):
    r"""Reciprocal, :math:`1 / x`."""
    return 1 / x


@reciprocal.backward
def _(g, out):
    return -g * out * out


@pointwise(domain=Real(0.1, 4.0), reference="numpy:sqrt")
def sqrt(x):
    r"""Square root, :math:`\sqrt x`."""
    return vecmath.sqrt(x)


@sqrt.backward
def _(g, out):
    return g / (2 * out)


@pointwise(domain=Real(0.2, 4.0), reference=lambda x: 1 / np.sqrt(x))
def rsqrt(x):
    r"""Reciprocal square root, :math:`1 / \sqrt x`."""
    return 1 / vecmath.sqrt(x)


@rsqrt.backward
def _(g, out):
    return -g * out * out * out / 2


@pointwise(domain=Real(), reference="numpy:square", dtypes=NUMBERS, grad_name="PowBackward0", cost=2)
def square(x):
    r"""Square, :math:`x^2`."""
    return x * x


@square.backward
def _(g, x):
    return 2 * g * x


pow_half = sqrt.twin("pow_half", "PowBackward0")
pow_minus_one = reciprocal.twin("pow_minus_one", "PowBackward0")
