"""Sine, cosine, tangent and their inverses; see vecmath."""

import math

from tapegrad.engine import vecmath_coefficients as c
from tapegrad.engine.vecmath_ir import (
    both_widths,
    copysign,
    fabs,
    flip_if_odd,
    fma,
    inline,
    is_odd,
    keep_tiny,
    literal,
    select,
    sqrt,
    with_libm_beyond,
)

_guard_sin = with_libm_beyond({64: 1e9, 32: 1e5}, "sin")
_guard_cos = with_libm_beyond({64: 1e9, 32: 1e5}, "cos")
_guard_tan = with_libm_beyond({64: 1e9, 32: 1e5}, "tan")


@inline
def _subtract_product(a, k, b):
    """a - k*b as a rounded difference and what rounding dropped, even when the two cancel."""
    product = k * b
    difference = a - product
    back = difference - a
    dropped = (a - (difference - back)) - (product + back)
    return difference, dropped - fma(k, b, -product)


@inline
def _sin_reduced(r, r_low):
    """sin(r + r_low), |r| up to slightly over pi/2."""
    z = r * r
    cube = r * z
    head = fma(cube, c.SIN_CUBE, r)
    head_low = fma(cube, c.SIN_CUBE, r - head)
    return head + fma(cube, c.SIN_TAIL(z), fma(r_low, fma(z, -0.5, literal(1.0, r)), head_low))


@both_widths
def sin(x):
    """(-1)**k * sin(x - k*pi), pi in three parts; libm beyond 1e9 (float32: 1e5)."""
    shifted = fma(x, 0.3183098861837907, c.MAGIC(x))
    k = shifted - c.MAGIC(x)
    exact = fma(k, -c.PI(x), x)
    r, r_low = _subtract_product(exact, k, c.PI_LOW(x))
    r_low = fma(k, -c.PI_LOWEST(x), r_low)
    result = flip_if_odd(_sin_reduced(r, r_low), shifted)
    return _guard_sin(x, keep_tiny(x, 2.0**-30, result))


@both_widths
def cos(x):
    """(-1)**k * sin((2*k + 1)*pi/2 - x), pi/2 in three parts; libm beyond 1e9 (float32: 1e5)."""
    shifted = fma(x, 0.3183098861837907, literal(-0.5, x)) + c.MAGIC(x)
    q = fma(shifted - c.MAGIC(x), 2.0, literal(1.0, x))
    exact = fma(q, c.HALF_PI(x), -x)
    # For small x the first step rounds, with q*pi/2 = +-pi/2 exact; later it does not.
    product = q * c.HALF_PI(x)
    dropped = select(fabs(x) < literal(1.5, x), (product - exact) - x, literal(0.0, x))
    r, r_low = _subtract_product(exact, -q, c.HALF_PI_LOW(x))
    r_low = fma(q, c.HALF_PI_LOWEST(x), r_low + dropped)
    return _guard_cos(x, flip_if_odd(_sin_reduced(r, r_low), shifted))


@both_widths
def tan(x):
    """sin(r)/cos(r) or -cos(r)/sin(r), r = x - k*pi/2, each in two parts; libm beyond 1e9 (float32: 1e5)."""
    shifted = fma(x, 0.6366197723675814, c.MAGIC(x))
    k = shifted - c.MAGIC(x)
    exact = fma(k, -c.HALF_PI(x), x)
    r, r_low = _subtract_product(exact, k, c.HALF_PI_LOW(x))
    r_low = fma(k, -c.HALF_PI_LOWEST(x), r_low)
    one, half = literal(1.0, x), literal(0.5, x)
    z = r * r
    small = fma(r * z, c.SHORT_SIN_TAIL(z), r_low * fma(z, -0.5, one))
    sine = r + small
    sine_low = (r - sine) + small
    flat = fma(z, -0.5, one)
    dropped = fma(z, -0.5, one - flat) - fma(r, r_low, half * fma(r, r, -z))
    small = fma(z * z, c.SHORT_COS_TAIL(z), dropped)
    cosine = flat + small
    cosine_low = (flat - cosine) + small
    odd = is_odd(shifted)
    top, top_low = select(odd, -cosine, sine), select(odd, -cosine_low, sine_low)
    bottom, bottom_low = select(odd, sine, cosine), select(odd, sine_low, cosine_low)
    inverse = one / bottom
    quotient = top * inverse
    correction = fma(-quotient, bottom_low, fma(-quotient, bottom, top) + top_low)
    return _guard_tan(x, keep_tiny(x, 2.0**-30, fma(correction, inverse, quotient)))


@inline
def _arc(low, high):
    """atan(low/high) for 0 <= low <= high as (on_diagonal, q, rest): q + rest, plus pi/4 if on_diagonal.

    Above tan(pi/8) the ratio turns by pi/4 to (low - high)/(low + high).
    """
    on_diagonal = low > literal(0.41421356237309503, low) * high
    top = select(on_diagonal, low - high, low)
    top_low = select(on_diagonal, low - (top + high), 0.0)
    bottom = select(on_diagonal, high + low, high)
    bottom_low = select(on_diagonal, (high - bottom) + low, 0.0)
    inverse = literal(1.0, low) / bottom
    q = top * inverse
    q_low = fma(-q, bottom_low, fma(-q, bottom, top) + top_low) * inverse
    z = q * q
    return on_diagonal, q, fma(q * z, c.ATAN_TAIL(z), q_low)


@inline
def _turn(quarters, sign, q, rest):
    """quarters*pi/2 + sign*(q + rest)."""
    q, rest = sign * q, fma(quarters, c.HALF_PI_LOW(q), sign * rest)
    base = quarters * c.HALF_PI(q)
    total = base + q
    dropped = (base - total) + q
    return select(base == literal(0.0, q), q + rest, total + (dropped + rest))


@both_widths
def atan(x):
    """Arc tangent; |x| > 1 through pi/2 - atan(1/|x|)."""
    a = fabs(x)
    one = literal(1.0, x)
    steep = a > one
    infinite = a == literal(math.inf, x)
    high = select(infinite, one, select(steep, a, one))
    low = select(infinite, 0.0, select(steep, one, a))
    on_diagonal, q, rest = _arc(low, high)
    quarters = select(on_diagonal, 0.5, literal(0.0, x))
    quarters = select(steep, one - quarters, quarters)
    result = _turn(quarters, select(steep, -one, one), q, rest)
    return keep_tiny(x, 2.0**-30, copysign(result, x))


@both_widths
def atan2(y, x):
    """Angle of the point (x, y), from the smaller over the larger coordinate."""
    a, b = fabs(x), fabs(y)
    one, zero, infinity = literal(1.0, x), literal(0.0, x), literal(math.inf, x)
    steep = b > a
    high, low = select(steep, b, a), select(steep, a, b)
    # Keep sums finite and remainders normal; infinities and the origin become plain directions.
    rescale = select(high < c.SMALL_RADIUS(x), c.STRETCH(x), one)
    rescale = select(high > c.LARGE_RADIUS(x), c.SHRINK(x), rescale)
    high, low = high * rescale, low * rescale
    low = select(high == infinity, select(low == infinity, one, zero), low)
    high = select((high == infinity) | (high == zero), one, high)
    on_diagonal, q, rest = _arc(low, high)
    backward = copysign(one, x) < zero
    quarters = select(on_diagonal, 0.5, zero)
    quarters = select(steep, one - quarters, quarters)
    quarters = select(backward, literal(2.0, x) - quarters, quarters)
    result = _turn(quarters, select(steep != backward, -one, one), q, rest)
    return select((x != x) | (y != y), x + y, copysign(result, y))


@inline
def _asin_parts(x):
    """(outer, s, rest) with asin(s') = s + rest, where s' is |x|, or sqrt((1 - |x|)/2) when |x| > 1/2."""
    a = fabs(x)
    half = literal(0.5, x)
    outer = a > half
    z = select(outer, fma(a, -0.5, half), a * a)
    root = sqrt(z)
    root_low = fma(-root, root, z) / select(root > literal(0.0, x), root + root, 1.0)
    s = select(outer, root, a)
    return outer, s, fma(s * z, c.ASIN_TAIL(z), select(outer, root_low, 0.0))


@both_widths
def asin(x):
    """s + s*z*P(z), z = s**2; pi/2 - 2*asin(sqrt((1 - |x|)/2)) beyond 1/2."""
    outer, s, rest = _asin_parts(x)
    one, zero = literal(1.0, x), literal(0.0, x)
    result = _turn(select(outer, one, zero), select(outer, -2.0, one), s, rest)
    return keep_tiny(x, 2.0**-30, copysign(result, x))


@both_widths
def acos(x):
    """pi/2 - asin(x), without cancellation near 1: 2*asin(sqrt((1 - x)/2))."""
    outer, s, rest = _asin_parts(x)
    one, zero = literal(1.0, x), literal(0.0, x)
    negative = x < zero
    quarters = select(outer, select(negative, 2.0, zero), one)
    factor = select(outer, 2.0, -one)
    return _turn(quarters, select(negative, -factor, factor), s, rest)
