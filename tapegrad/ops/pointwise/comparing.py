"""Comparisons, logic and bits, which have no derivative."""

from __future__ import annotations

from tapegrad import dtypes
from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._rule import ALL, DISCRETE, INTEGERS, Domain, Real


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
