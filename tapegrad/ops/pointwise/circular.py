"""Trigonometric and hyperbolic functions and their inverses."""

from __future__ import annotations

from tapegrad.engine import vecmath
from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._rule import Real


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
