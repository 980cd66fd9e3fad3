"""Exponentials and logarithms."""

from __future__ import annotations

from tapegrad.engine import structs, vecmath
from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._rule import Real

LN2 = 0.6931471805599453
LN10 = 2.302585092994046


# scalar helpers for what is no single expression


@structs.internal
def _logaddexp(x, y):
    if x == y:
        return x + LN2
    high = x if x > y or x != x else y
    low = y if x > y or x != x else x
    return high + vecmath.log1p(vecmath.exp(low - high))


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
