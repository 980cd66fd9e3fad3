"""Vector functions: error in units in the last place, special values, and that loops over them vectorise."""

import functools
import math
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import scipy.special
from numba import njit

from tapegrad.engine import vecmath

N = 150
FLOATS = (np.float32, np.float64)

EXACT = {
    "acos": mpmath.acos,
    "acosh": mpmath.acosh,
    "asin": mpmath.asin,
    "asinh": mpmath.asinh,
    "atan": mpmath.atan,
    "atanh": mpmath.atanh,
    "cos": mpmath.cos,
    "cosh": mpmath.cosh,
    "erf": mpmath.erf,
    "erfc": mpmath.erfc,
    "exp": mpmath.exp,
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log10": mpmath.log10,
    "log1p": mpmath.log1p,
    "log2": lambda x: mpmath.log(x, 2),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "sin": mpmath.sin,
    "sinh": mpmath.sinh,
    "tan": mpmath.tan,
    "tanh": mpmath.tanh,
}
NUMPY = {
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "erf": scipy.special.erf,
    "erfc": scipy.special.erfc,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
ROUNDING = ("ceil", "floor", "rint", "trunc")


def numpy_function(name):
    return NUMPY.get(name) or getattr(np, name)


@functools.cache
def loop_over(name):
    """A compiled loop of the named function over arrays."""
    function = getattr(vecmath, name)
    if name in ("atan2", "pow"):

        @njit
        def loop(x, y, out):
            for i in range(out.size):
                out[i] = function(x[i], y[i])
    else:

        @njit
        def loop(x, out):
            for i in range(out.size):
                out[i] = function(x[i])

    return loop


def evaluate(name, *arrays):
    out = np.empty_like(arrays[0])
    loop_over(name)(*arrays, out)
    return out


def ulp_errors(results, exact_values):
    """|result - exact| in units in the last place of the exact value."""
    errors = []
    for result, exact in zip(results.tolist(), exact_values):
        rounded = float(exact)
        if result == rounded:
            errors.append(0.0)
        elif math.isfinite(result) and math.isfinite(rounded):
            errors.append(float(abs(mpmath.mpf(result) - exact) / math.ulp(rounded)))
        else:
            errors.append(math.inf)
    return np.array(errors)


# ---------------------------------------------------------------- where to look

rng = np.random.default_rng(20)
uniform = rng.uniform


def magnitudes(low, high):
    """Random numbers with decimal exponents between low and high."""
    return 10.0 ** uniform(low, high, N)


def both_signs(x):
    return np.concatenate([x, -x])


def around_multiples(step, largest):
    """Multiples of step, small and large, with their neighbours: where argument reduction cancels most."""
    k = np.concatenate([np.arange(1, N // 3), rng.integers(1, largest, N // 3)]) * step
    return np.concatenate([k, np.nextafter(k, 0), np.nextafter(k, math.inf)])


def regions(name):
    """Arguments for the named function: ordinary, near zeros and singularities, tiny, huge."""
    tiny = both_signs(magnitudes(-320, -5))
    common = [uniform(-1, 1, N), both_signs(magnitudes(-8, 0)), tiny]
    if name in ("exp", "exp2", "expm1", "sigmoid"):
        low, high = (-1080, 1023.9) if name == "exp2" else (-750, 709.7)
        return [
            *common,
            uniform(-40, 40, N),
            uniform(low, high, 2 * N),
            around_multiples(math.log(2) / 2, 1000),
        ]
    if name in ("log", "log2", "log10"):
        return [
            uniform(0.5, 2, N),
            1 + both_signs(magnitudes(-16, -1)),
            magnitudes(-323, 308),
            2.0 ** rng.integers(-1074, 1023, N),
            magnitudes(-323.5, -307),
        ]
    if name == "log1p":
        return [*common, magnitudes(-2, 308), magnitudes(-16, -0.1) - 1, both_signs(magnitudes(-17, -0.01))]
    if name in ("sin", "cos", "tan"):
        return [
            *common,
            uniform(-20, 20, N),
            uniform(-1e5, 1e5, N),
            magnitudes(0, 9),
            magnitudes(9, 308)[:20],
            around_multiples(math.pi / 2, 10**4),
            around_multiples(math.pi / 2, 6 * 10**8),
            around_multiples(math.pi / 4, 1000),
        ]
    if name in ("asin", "acos", "atanh"):
        ends = [1.0, -1.0] if name != "atanh" else []
        return [*common, both_signs(1 - magnitudes(-16, -0.1)), np.array([0.5, np.nextafter(0.5, 1), *ends])]
    if name == "atan":
        return [
            *common,
            uniform(-3, 3, N),
            both_signs(magnitudes(0, 308)),
            around_multiples(math.sqrt(2) - 1, 20),
        ]
    if name in ("sinh", "cosh"):
        return [
            *common,
            uniform(-5, 5, N),
            uniform(-710.4, 710.4, N),
            around_multiples(math.log(2) / 2, 1000),
        ]
    if name == "tanh":
        return [*common, uniform(-25, 25, N), around_multiples(math.log(2) / 4, 60)]
    if name == "asinh":
        return [*common, uniform(-3, 3, N), both_signs(magnitudes(0, 308.2))]
    if name == "acosh":
        return [uniform(1, 3, N), 1 + magnitudes(-15.5, 1), magnitudes(0, 308.2)]
    assert name in ("erf", "erfc")
    return [*common, uniform(-6.5, 6.5, N), uniform(0, 27.3, N)]


# ---------------------------------------------------------------- accuracy


@pytest.mark.parametrize("name", sorted(EXACT))
def test_float64_is_within_two_ulp(name):
    x = np.concatenate(regions(name))
    exact = []
    for value in x.tolist():
        # Huge arguments need all the digits of pi they span, tiny ones those between them and 1.
        with mpmath.workprec(1300 if abs(value) > 1e15 or abs(value) < 1e-30 else 160):
            exact.append(EXACT[name](mpmath.mpf(value)))
    errors = ulp_errors(evaluate(name, x), exact)
    worst = errors.argmax()
    assert errors[worst] <= 2, f"{name}({x[worst]!r})"


@pytest.mark.parametrize("name", sorted(EXACT))
def test_float32_is_within_two_ulp(name):
    x = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, uniform(-4, 4, 100_000).astype(np.float32)])
    x = x[np.isfinite(x)]
    with np.errstate(all="ignore"):
        exact = numpy_function(name)(x.astype(np.float64))
        rounded = exact.astype(np.float32)
        result = evaluate(name, x)
        errors = np.abs(result.astype(np.float64) - exact) / np.spacing(np.abs(rounded)).astype(np.float64)
    errors[(result == rounded) | (np.isnan(result) & np.isnan(exact))] = 0
    worst = errors.argmax()
    assert result.dtype == np.float32
    assert errors[worst] <= 2, f"{name}({x[worst]!r})"


def test_pow_float64_is_within_two_ulp():
    x = np.concatenate(
        [
            magnitudes(-3, 3),
            magnitudes(-300, 300),
            uniform(0.9, 1.1, N),
            1 + both_signs(magnitudes(-16, -3)),
            magnitudes(-323, -300),
        ]
    )
    log2_x = np.log2(x)
    log2_x[log2_x == 0] = 1
    y = uniform(-1074, 1024, x.size) / log2_x
    y[:N] = uniform(-10, 10, N)
    with mpmath.workprec(200):
        exact = [mpmath.mpf(a) ** mpmath.mpf(b) for a, b in zip(x.tolist(), y.tolist())]
        assert ulp_errors(evaluate("pow", x, y), exact).max() <= 2


def test_atan2_float64_is_within_two_ulp():
    y = np.concatenate([uniform(-2, 2, 4 * N), both_signs(magnitudes(-320, 308))])
    x = rng.permutation(np.concatenate([uniform(-2, 2, 4 * N), both_signs(magnitudes(-320, 308))]))
    with mpmath.workprec(1300):
        exact = [mpmath.atan2(mpmath.mpf(a), mpmath.mpf(b)) for a, b in zip(y.tolist(), x.tolist())]
        assert ulp_errors(evaluate("atan2", y, x), exact).max() <= 2


@pytest.mark.parametrize(("name", "exact_function"), [("pow", np.power), ("atan2", np.arctan2)])
def test_two_arguments_float32_are_within_two_ulp(name, exact_function):
    x = (10.0 ** uniform(-12, 12, 100_000)).astype(np.float32)
    y = (uniform(-5, 5, x.size) * 10.0 ** uniform(-5, 1, x.size)).astype(np.float32)
    with np.errstate(all="ignore"):
        exact = exact_function(x.astype(np.float64), y.astype(np.float64))
        rounded = exact.astype(np.float32)
        result = evaluate(name, x, y)
        errors = np.abs(result.astype(np.float64) - exact) / np.spacing(np.abs(rounded)).astype(np.float64)
    errors[result == rounded] = 0
    assert errors.max() <= 2


# ---------------------------------------------------------------- special values


def special_values(dtype):
    info = np.finfo(dtype)
    positive = [
        0.0,
        info.smallest_subnormal,
        info.tiny,
        1e-10,
        0.5,
        1.0,
        1.5,
        2.0,
        2.5,
        3.0,
        50.0,
        89.0,
        104.0,
        150.0,
        710.0,
        746.0,
        1024.0,
        1075.0,
        2.0**23,
        2.0**24 + 2,
        info.max,
        math.inf,
    ]
    return np.array([math.nan, *positive, *(-value for value in positive)], dtype=dtype)


def assert_same_up_to_two_ulp(result, expected):
    """Same NaNs, infinities and signs of zero; finite values within two units in the last place."""
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    kept = ~np.isnan(expected)
    result, expected = result[kept], expected[kept]
    np.testing.assert_array_equal(np.signbit(result), np.signbit(expected))
    np.testing.assert_array_equal(np.isinf(result), np.isinf(expected))
    finite = np.isfinite(expected)
    np.testing.assert_array_max_ulp(result[finite], expected[finite], maxulp=3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", sorted((*EXACT, *ROUNDING)))
def test_special_values_are_numpys(name, dtype):
    x = special_values(dtype)
    with np.errstate(all="ignore"):
        expected = numpy_function(name)(x.astype(np.float64)).astype(dtype)
    if name == "sigmoid" and dtype is np.float64:
        # The naive formula overflows where the true value is a subnormal number.
        with np.errstate(all="ignore"):
            expected = np.where(x < -700, np.exp(x), expected)
    assert_same_up_to_two_ulp(evaluate(name, x), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "reference"), [("pow", np.power), ("atan2", np.arctan2)])
def test_special_pairs_are_numpys(name, reference, dtype):
    x, y = (grid.ravel() for grid in np.meshgrid(special_values(dtype), special_values(dtype)))
    with np.errstate(all="ignore"):
        expected = reference(x.astype(np.float64), y.astype(np.float64)).astype(dtype)
    assert_same_up_to_two_ulp(evaluate(name, x, y), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_one_huge_argument_leaves_its_neighbours_alone(name, dtype):
    x = np.linspace(-3, 3, 101).astype(dtype)
    alone = evaluate(name, x)
    x[50] = 1e22
    mixed = evaluate(name, x)
    np.testing.assert_array_equal(np.delete(mixed, 50), np.delete(alone, 50))
    with mpmath.workprec(400):
        exact = float(EXACT[name](mpmath.mpf(float(x[50]))))
    np.testing.assert_allclose(mixed[50], exact, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "scipy_name"), [("lgamma", "gammaln"), ("digamma", "psi")])
def test_gamma_functions_are_scipys(name, scipy_name, dtype):
    x = np.concatenate([uniform(-5, 20, 200), magnitudes(-8, 8), [1, 2, 0.5, math.inf, math.nan]]).astype(dtype)
    expected = getattr(scipy.special, scipy_name)(x.astype(np.float64)).astype(dtype)
    np.testing.assert_array_equal(evaluate(name, x), expected)


# ---------------------------------------------------------------- types and compilation


def test_integers_and_mixed_widths_compute_in_float64():
    assert vecmath.exp(1) == vecmath.exp(1.0) == pytest.approx(math.e, rel=1e-15)

    @njit
    def mixed(x):
        return vecmath.pow(x, 0.5)

    assert mixed(np.float32(2)) == pytest.approx(math.sqrt(2), rel=1e-15)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", sorted((*EXACT, *ROUNDING, "pow", "atan2")))
def test_loops_become_vector_code(name, dtype):
    ones = np.ones(3, dtype)
    loop = loop_over(name)
    evaluate(name, *(ones,) * (2 if name in ("atan2", "pow") else 1))
    element = "x float>" if dtype is np.float32 else "x double>"
    for signature, code in loop.inspect_llvm().items():
        if signature[0].dtype.bitwidth == 8 * np.dtype(dtype).itemsize:
            assert element in code


@pytest.mark.parametrize("name", ["cos", "expm1", "tan", "tanh"])
def test_a_callers_fastmath_changes_nothing(name):
    loop = njit(fastmath=True)(loop_over(name).py_func)
    x = np.linspace(-30, 30, 10_001)
    out = np.empty_like(x)
    loop(x, out)
    np.testing.assert_array_equal(out, evaluate(name, x))


CACHED_PROGRAM = """
import numpy as np
from numba import njit
from tapegrad.engine import vecmath
vecmath.bind_symbols()

@njit(cache=True)
def loop(x, out):
    for i in range(out.size):
        out[i] = vecmath.sin(x[i]) * vecmath.digamma(x[i])

x = np.linspace(1, 2, 9)
x[3] = 1e10
out = np.empty_like(x)
loop(x, out)
print(sum(loop.stats.cache_hits.values()), out.tolist())
"""


def test_cached_code_is_valid_in_another_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(CACHED_PROGRAM)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    (first_hits, first), (second_hits, second) = (
        subprocess.check_output([sys.executable, program], env=environment, text=True).split(maxsplit=1)
        for _ in range(2)
    )
    assert (first_hits, second_hits) == ("0", "1")
    assert first == second
