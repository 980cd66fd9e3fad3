"""Smooth steps and special functions."""

from __future__ import annotations

import importlib
import math

import numpy as np

from tapegrad.engine import structs, vecmath
from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._rule import NUMBERS, Domain, Real

TWO_OVER_ROOT_PI = 1.1283791670955126
ROOT_HALF = 0.7071067811865476
ROOT_TWO_OVER_PI = 0.7978845608028654
INVERSE_ROOT_TWO_PI = 0.3989422804014327


def _reference(path):
    """A reference function, imported when a test calls it."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


# scalar helpers for what is no single expression


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
