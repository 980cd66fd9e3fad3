"""Pointwise operations: a declaration is the scalar expression and its partials."""

from __future__ import annotations

import importlib
import math

import numpy as np

from tapegrad import dtypes
from tapegrad.engine import structs, vecmath
from tapegrad.ops._rule import ALL, DISCRETE, FLOATS, INTEGERS, NUMBERS, Domain, Real, pointwise

TWO_OVER_ROOT_PI = 1.1283791670955126
LN2 = 0.6931471805599453
LN10 = 2.302585092994046
ROOT_HALF = 0.7071067811865476
ROOT_TWO_OVER_PI = 0.7978845608028654
INVERSE_ROOT_TWO_PI = 0.3989422804014327
PI = 3.141592653589793


def _reference(path):
    """A reference function, imported when a test calls it."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


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


@structs.internal
def _logaddexp(x, y):
    if x == y:
        return x + LN2
    high = x if x > y or x != x else y
    low = y if x > y or x != x else x
    return high + vecmath.log1p(vecmath.exp(low - high))


@structs.internal
def _power_below(r, p):
    # the power p - 1, of p from two on
    result = r
    for _ in range(2, p):
        result *= r
    return result


@structs.internal
def _hurwitz_zeta(p, x):
    # the sum of (x + k)**-p over k >= 0: single terms, then the Euler-Maclaurin series in Bernoulli numbers
    total = 0.0
    while x < 9 + p:
        r = 1 / x
        total += _power_below(r, p) * r
        x += 1
    r = 1 / x
    before = _power_below(r, p)
    term = before * r
    total += before / (p - 1) + term / 2
    term *= p * r * (1 / 12)
    r *= r
    total += term
    term *= (p + 1) * (p + 2) * r * (1 / 60)
    total -= term
    term *= (p + 3) * (p + 4) * r * (1 / 42)
    total += term
    term *= (p + 5) * (p + 6) * r * (1 / 40)
    total -= term
    term *= (p + 7) * (p + 8) * r * (5 / 198)
    total += term
    term *= (p + 9) * (p + 10) * r * (691 / 27300)
    total -= term
    return total + (p + 11) * (p + 12) * r * (35 / 1382) * term


@structs.internal
def _polygamma(n, x):
    n, x = int(n), np.float64(x)
    sign = 1.0 if n % 2 else -1.0
    factorial = 1.0
    for k in range(n):
        factorial *= k + 1
    if x > 0 or x != x:
        return sign * factorial * _hurwitz_zeta(n + 1, x)
    # the sum over all integers has period one; take off those below zero
    rest = x - math.floor(x)
    below = _hurwitz_zeta(n + 1, 1 - rest) - _hurwitz_zeta(n + 1, 1 - x)
    return sign * factorial * (_hurwitz_zeta(n + 1, rest) + sign * below)


# arithmetic


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


# exponentials and logarithms


@pointwise(domain=Real(), reference="numpy:exp")
def exp(x):
    r"""Exponential, :math:`e^x`."""
    return vecmath.exp(x)


@exp.backward
def _(g, out):
    return g * out


@pointwise(domain=Real(), reference="numpy:exp2")
def exp2(x):
    r"""Power of two, :math:`2^x`."""
    return vecmath.exp2(x)


@exp2.backward
def _(g, out):
    return g * out * LN2


@pointwise(domain=Real(), reference="numpy:expm1")
def expm1(x):
    r"""Exponential less one, :math:`e^x - 1`, exact near zero."""
    return vecmath.expm1(x)


@expm1.backward
def _(g, out):
    return g * (out + 1)


@pointwise(domain=Real(0.2, 5.0), reference="numpy:log")
def log(x):
    r"""Natural logarithm, :math:`\ln x`."""
    return vecmath.log(x)


@log.backward
def _(g, x):
    return g / x


@pointwise(domain=Real(0.2, 5.0), reference="numpy:log2")
def log2(x):
    r"""Logarithm to base 2."""
    return vecmath.log2(x)


@log2.backward
def _(g, x):
    return g / (x * LN2)


@pointwise(domain=Real(0.2, 5.0), reference="numpy:log10")
def log10(x):
    r"""Logarithm to base 10."""
    return vecmath.log10(x)


@log10.backward
def _(g, x):
    return g / (x * LN10)


@pointwise(domain=Real(-0.8, 5.0), reference="numpy:log1p")
def log1p(x):
    r"""Logarithm of :math:`1 + x`, exact near zero."""
    return vecmath.log1p(x)


@log1p.backward
def _(g, x):
    return g / (1 + x)


@pointwise(domain=Real(), reference="numpy:logaddexp", cost=8)
def logaddexp(x, y):
    r""":math:`\ln(e^x + e^y)` without overflow."""
    return _logaddexp(x, y)


@logaddexp.backward
def _(g, x, y):
    return g * vecmath.sigmoid(x - y), g * vecmath.sigmoid(y - x)


# trigonometry


@pointwise(domain=Real(), reference="numpy:sin")
def sin(x):
    r"""Sine."""
    return vecmath.sin(x)


@sin.backward
def _(g, x):
    return g * cos(x)


@pointwise(domain=Real(), reference="numpy:cos")
def cos(x):
    r"""Cosine."""
    return vecmath.cos(x)


@cos.backward
def _(g, x):
    return -g * sin(x)


@pointwise(domain=Real(-1.2, 1.2), reference="numpy:tan")
def tan(x):
    r"""Tangent."""
    return vecmath.tan(x)


@tan.backward
def _(g, out):
    return g * (1 + out * out)


@pointwise(domain=Real(-0.9, 0.9), reference="numpy:arcsin")
def asin(x):
    r"""Arc sine."""
    return vecmath.asin(x)


@asin.backward
def _(g, x):
    return g / vecmath.sqrt(1 - x * x)


@pointwise(domain=Real(-0.9, 0.9), reference="numpy:arccos")
def acos(x):
    r"""Arc cosine."""
    return vecmath.acos(x)


@acos.backward
def _(g, x):
    return -g / vecmath.sqrt(1 - x * x)


@pointwise(domain=Real(), reference="numpy:arctan")
def atan(x):
    r"""Arc tangent."""
    return vecmath.atan(x)


@atan.backward
def _(g, x):
    return g / (1 + x * x)


@pointwise(domain=Real(0.3, 3.0), reference="numpy:arctan2", cost=8)
def atan2(y, x):
    r"""Angle of the point :math:`(x, y)`."""
    return vecmath.atan2(y, x)


@atan2.backward
def _(g, y, x):
    square_of_radius = x * x + y * y
    return (
        g * (0 if square_of_radius == 0 else x / square_of_radius),
        g * (0 if square_of_radius == 0 else -y / square_of_radius),
    )


@pointwise(domain=Real(), reference="numpy:sinh")
def sinh(x):
    r"""Hyperbolic sine."""
    return vecmath.sinh(x)


@sinh.backward
def _(g, x):
    return g * cosh(x)


@pointwise(domain=Real(), reference="numpy:cosh")
def cosh(x):
    r"""Hyperbolic cosine."""
    return vecmath.cosh(x)


@cosh.backward
def _(g, x):
    return g * sinh(x)


@pointwise(domain=Real(), reference="numpy:tanh")
def tanh(x):
    r"""Hyperbolic tangent."""
    return vecmath.tanh(x)


@tanh.backward
def _(g, out):
    return g * (1 - out * out)


@pointwise(domain=Real(), reference="numpy:arcsinh", cost=8)
def asinh(x):
    r"""Inverse hyperbolic sine."""
    return vecmath.asinh(x)


@asinh.backward
def _(g, x):
    return g / vecmath.sqrt(x * x + 1)


@pointwise(domain=Real(1.2, 4.0), reference="numpy:arccosh", cost=8)
def acosh(x):
    r"""Inverse hyperbolic cosine."""
    return vecmath.acosh(x)


@acosh.backward
def _(g, x):
    return g / vecmath.sqrt(x * x - 1)


@pointwise(domain=Real(-0.9, 0.9), reference="numpy:arctanh", cost=8)
def atanh(x):
    r"""Inverse hyperbolic tangent."""
    return vecmath.atanh(x)


@atanh.backward
def _(g, x):
    return g / (1 - x * x)


# smooth steps and special functions


@pointwise(domain=Real(), reference="scipy.special:expit")
def sigmoid(x):
    r"""Logistic function, :math:`1 / (1 + e^{-x})`."""
    return vecmath.sigmoid(x)


@sigmoid.backward
def _(g, out):
    return g * out * (1 - out)


@pointwise(domain=Real(avoid=(0.0,)), reference=lambda x: np.maximum(x, 0), dtypes=NUMBERS, cost=2)
def relu(x):
    r"""Positive part, :math:`\max(x, 0)`; its derivative at zero is zero."""
    return 0 if x <= 0 else x


@relu.backward
def _(g, out):
    return g if out > 0 else 0


@pointwise(
    domain=Domain((-4.0, 4.0), (0.5, 2.0), (20.0, 20.0)),
    reference=lambda x, beta, threshold: np.logaddexp(0, x * beta) / beta,
    cost=8,
    method=False,
    public=False,
)
def softplus(x, beta, threshold):
    r"""Smooth positive part, :math:`\ln(1 + e^{\beta x}) / \beta`, linear where :math:`\beta x` exceeds the threshold."""
    return x if x * beta > threshold else vecmath.log1p(vecmath.exp(x * beta)) / beta


@softplus.backward
def _(g, x, beta, threshold):
    return g if x * beta > threshold else g * vecmath.sigmoid(x * beta)


@pointwise(domain=Real(), reference=lambda x: x / (1 + np.exp(-x)), method=False, public=False)
def silu(x):
    r""":math:`x \, \sigma(x)`."""
    return x * vecmath.sigmoid(x)


@silu.backward
def _(g, x):
    s = vecmath.sigmoid(x)
    return g * s * (1 + x * (1 - s))


@pointwise(
    domain=Real(),
    reference=lambda x: x * _reference("scipy.special:ndtr")(x),
    cost=8,
    method=False,
    public=False,
)
def gelu(x):
    r"""Gaussian error linear unit, :math:`x \, \Phi(x)`."""
    return x * 0.5 * (1 + vecmath.erf(x * ROOT_HALF))


@gelu.backward
def _(g, x):
    return g * (0.5 * (1 + vecmath.erf(x * ROOT_HALF)) + x * INVERSE_ROOT_TWO_PI * vecmath.exp(-0.5 * x * x))


@pointwise(
    domain=Real(),
    reference=lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    grad_name="GeluBackward0",
    cost=8,
    method=False,
    public=False,
)
def gelu_tanh(x):
    r"""The tanh approximation of `gelu`."""
    return 0.5 * x * (1 + vecmath.tanh(ROOT_TWO_OVER_PI * (x + 0.044715 * x * x * x)))


@gelu_tanh.backward
def _(g, x):
    t = vecmath.tanh(ROOT_TWO_OVER_PI * (x + 0.044715 * x * x * x))
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * ROOT_TWO_OVER_PI * (1 + 0.134145 * x * x))


@pointwise(domain=Real(), reference="scipy.special:erf", cost=8)
def erf(x):
    r"""Error function."""
    return vecmath.erf(x)


@erf.backward
def _(g, x):
    return g * TWO_OVER_ROOT_PI * vecmath.exp(-x * x)


@pointwise(domain=Real(), reference="scipy.special:erfc", cost=8)
def erfc(x):
    r"""Complementary error function."""
    return vecmath.erfc(x)


@erfc.backward
def _(g, x):
    return -g * TWO_OVER_ROOT_PI * vecmath.exp(-x * x)


@pointwise(domain=Real(0.3, 5.0), reference="scipy.special:gammaln", cost=40)
def lgamma(x):
    r"""Logarithm of the absolute value of the gamma function."""
    return vecmath.lgamma(x)


@lgamma.backward
def _(g, x):
    return g * digamma(x)


@pointwise(domain=Real(0.3, 5.0), reference="scipy.special:psi", cost=40)
def digamma(x):
    r"""Derivative of `lgamma`."""
    return vecmath.digamma(x)


@digamma.backward
def _(g, x):
    return g * polygamma(1, x)


@pointwise(
    domain=Domain((1.0, 1.0), (0.3, 5.0)),
    reference=lambda n, x: _reference("scipy.special:polygamma")(n, x),
    cost=40,
    method=False,
    public=False,
)
def polygamma(n, x):
    r"""The `n`-th derivative of `digamma`, for whole :math:`n \ge 1`: :math:`(-1)^{n+1} n! \sum_{k \ge 0} (x + k)^{-n-1}`."""
    return _polygamma(n, x)


@polygamma.backward
def _(g, n, x):
    return None, g * polygamma(n + 1, x)


# rounding; derivatives are zero


@pointwise(
    domain=Real(avoid=(-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4)),
    reference="numpy:floor",
    cost=2,
    same_on_integers=True,
)
def floor(x):
    r"""Largest integer not above."""
    return vecmath.floor(x)


@floor.backward
def _(g):
    return 0


@pointwise(
    domain=Real(avoid=(-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4)),
    reference="numpy:ceil",
    cost=2,
    same_on_integers=True,
)
def ceil(x):
    r"""Smallest integer not below."""
    return vecmath.ceil(x)


@ceil.backward
def _(g):
    return 0


@pointwise(
    domain=Real(avoid=(-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4)),
    reference="numpy:trunc",
    cost=2,
    same_on_integers=True,
)
def trunc(x):
    r"""Integer part."""
    return vecmath.trunc(x)


@trunc.backward
def _(g):
    return 0


@pointwise(
    domain=Real(avoid=(-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4)),
    reference="numpy:rint",
    dtypes=NUMBERS,
    grad_name="RoundBackward0",
    cost=2,
    method=False,
    public=False,
)
def round_even(x):
    r"""Nearest integer, halves to even."""
    return vecmath.rint(x)


@round_even.backward
def _(g):
    return 0


@pointwise(domain=Real(avoid=(-4, -3, -2, -1, 0, 1, 2, 3, 4)), reference=lambda x: x - np.trunc(x), cost=2)
def frac(x):
    r"""Fractional part, with the sign of the argument."""
    return x - vecmath.trunc(x)


@frac.backward
def _(g):
    return g


# choosing


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


# comparisons


@pointwise(domain=Real(), reference="numpy:equal", dtypes=ALL, out=dtypes.bool, cost=2)
def eq(x, y):
    r"""Whether equal."""
    return x == y


@pointwise(domain=Real(), reference="numpy:not_equal", dtypes=ALL, out=dtypes.bool, cost=2)
def ne(x, y):
    r"""Whether different."""
    return x != y


@pointwise(domain=Real(), reference="numpy:less", dtypes=ALL, out=dtypes.bool, cost=2)
def lt(x, y):
    r"""Whether less."""
    return x < y


@pointwise(domain=Real(), reference="numpy:less_equal", dtypes=ALL, out=dtypes.bool, cost=2)
def le(x, y):
    r"""Whether less or equal."""
    return x <= y


@pointwise(domain=Real(), reference="numpy:greater", dtypes=ALL, out=dtypes.bool, cost=2)
def gt(x, y):
    r"""Whether greater."""
    return x > y


@pointwise(domain=Real(), reference="numpy:greater_equal", dtypes=ALL, out=dtypes.bool, cost=2)
def ge(x, y):
    r"""Whether greater or equal."""
    return x >= y


@pointwise(domain=Real(), reference="numpy:isnan", dtypes=ALL, out=dtypes.bool, cost=2)
def isnan(x):
    r"""Whether NaN."""
    return x != x


@pointwise(domain=Real(), reference="numpy:isinf", dtypes=ALL, out=dtypes.bool, cost=2)
def isinf(x):
    r"""Whether infinite."""
    return x == x and x - x != x - x


@pointwise(domain=Real(), reference="numpy:isfinite", dtypes=ALL, out=dtypes.bool, cost=2)
def isfinite(x):
    r"""Whether neither infinite nor NaN."""
    return x - x == x - x


# logic and bits


@pointwise(domain=Real(), reference="numpy:logical_and", dtypes=ALL, out=dtypes.bool, cost=2)
def logical_and(x, y):
    r"""Whether both are true."""
    return x != 0 and y != 0


@pointwise(domain=Real(), reference="numpy:logical_or", dtypes=ALL, out=dtypes.bool, cost=2)
def logical_or(x, y):
    r"""Whether either is true."""
    return x != 0 or y != 0


@pointwise(domain=Real(), reference="numpy:logical_xor", dtypes=ALL, out=dtypes.bool, cost=2)
def logical_xor(x, y):
    r"""Whether exactly one is true."""
    return (x != 0) != (y != 0)


@pointwise(domain=Real(), reference="numpy:logical_not", dtypes=ALL, out=dtypes.bool, cost=2)
def logical_not(x):
    r"""Whether false."""
    return x == 0


@pointwise(domain=Real(), reference="numpy:bitwise_and", dtypes=DISCRETE, cost=2)
def bitwise_and(x, y):
    r"""Bits set in both."""
    return x & y


@pointwise(domain=Real(), reference="numpy:bitwise_or", dtypes=DISCRETE, cost=2)
def bitwise_or(x, y):
    r"""Bits set in either."""
    return x | y


@pointwise(domain=Real(), reference="numpy:bitwise_xor", dtypes=DISCRETE, cost=2)
def bitwise_xor(x, y):
    r"""Bits set in one of two."""
    return x ^ y


@pointwise(domain=Real(), reference="numpy:invert", dtypes=INTEGERS, cost=2, method=False, public=False)
def bitwise_not(x):
    r"""Every bit flipped; of a bool, its negation."""
    return ~x


@pointwise(domain=Domain((0.0, 4.0), (0.0, 4.0)), reference="numpy:left_shift", dtypes=INTEGERS, cost=2)
def bitwise_left_shift(x, y):
    r"""Bits shifted to the left."""
    return x << y


@pointwise(domain=Domain((0.0, 4.0), (0.0, 4.0)), reference="numpy:right_shift", dtypes=INTEGERS, cost=2)
def bitwise_right_shift(x, y):
    r"""Bits shifted to the right."""
    return x >> y
