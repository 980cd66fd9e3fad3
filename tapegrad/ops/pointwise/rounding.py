"""Rounding, whose derivatives are zero."""

from __future__ import annotations

import numpy as np

from tapegrad.engine import vecmath
from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._rule import NUMBERS, Real


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
