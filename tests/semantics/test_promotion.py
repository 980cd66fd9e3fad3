"""Which dtype a result has: tensors, zero-dimensional tensors and Python numbers."""

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import raises

NAME = tg.__name__
KINDS = {
    "bool": 0,
    "uint8": 1,
    "int8": 1,
    "int16": 1,
    "int32": 1,
    "int64": 1,
    "float32": 2,
    "float64": 2,
}
INTEGERS = [d for d, k in KINDS.items() if k == 1]
each_dtype = pytest.mark.parametrize("dtype", KINDS)


def dt(name):
    return getattr(tg, name)


def ones(name, *shape):
    return tg.ones(shape, dtype=dt(name))


def numpy_result(a, b):
    """NumPy promotes two arrays as PyTorch does, but for integers with float32, where float32 stays."""
    if max(KINDS[a], KINDS[b]) == 2:
        return "float64" if "float64" in (a, b) else "float32"
    return np.result_type(np.dtype(a), np.dtype(b)).name


def higher(a, b):
    """The result of an array-like a with a scalar-like b: b counts only if its kind is higher."""
    return numpy_result(a, b) if KINDS[b] > KINDS[a] else a


# ---- tensor with tensor ----


@each_dtype
@pytest.mark.parametrize("other", KINDS)
def test_tensor_with_tensor(dtype, other):
    expected = dt(numpy_result(dtype, other))
    assert (ones(dtype, 2) * ones(other, 2)).dtype == expected
    assert (ones(other, 1) + ones(dtype, 2)).dtype == expected
    assert tg.maximum(ones(dtype, 2), ones(other, 2)).dtype == expected
    assert tg.promote_types(dt(dtype), dt(other)) == expected
    assert tg.result_type(ones(dtype, 2), ones(other, 2)) == expected


def test_the_lattice_in_full():
    b, u, i8, i16, i32, i64, f32, f64 = KINDS
    table = {
        (b, u): u, (b, i8): i8, (b, f32): f32, (u, i8): i16, (u, i16): i16, (u, i64): i64, (i8, i16): i16,
        (i16, i32): i32, (i32, i64): i64, (i64, f32): f32, (u, f64): f64, (f32, f64): f64,
    }  # fmt: skip
    for (x, y), expected in table.items():
        assert (ones(x, 2) * ones(y, 2)).dtype == dt(expected), (x, y)


@each_dtype
@pytest.mark.parametrize("other", KINDS)
def test_a_zero_dimensional_tensor_counts_only_by_a_higher_kind(dtype, other):
    expected = dt(higher(dtype, other))
    assert (ones(dtype, 2) * ones(other)).dtype == expected
    assert (ones(other) + ones(dtype, 2)).dtype == expected
    assert tg.result_type(ones(other), ones(dtype, 1)) == expected


@each_dtype
@pytest.mark.parametrize("other", KINDS)
def test_two_zero_dimensional_tensors_promote_fully(dtype, other):
    assert (ones(dtype) * ones(other)).dtype == dt(numpy_result(dtype, other))


def test_a_dimension_beats_a_zero_dimensional_tensor_and_that_beats_a_number():
    assert (ones("float32", 2) * ones("float64")).dtype == tg.float32
    assert (ones("int8") * 2).dtype == tg.int8
    assert (ones("int8", 2) * ones("int32") * 5).dtype == tg.int8
    assert tg.result_type(ones("int32"), 1.5) == tg.float32


# ---- tensor with a Python number ----


@each_dtype
@pytest.mark.parametrize("shape", [(2,), ()], ids=["1-d", "0-d"])
def test_tensor_with_a_python_number(dtype, shape):
    x = ones(dtype, *shape)
    for number in (True, False):
        assert (x * number).dtype == x.dtype
        assert (number + x).dtype == x.dtype
    with_int = tg.int64 if dtype == "bool" else x.dtype
    assert (x * 3).dtype == with_int
    assert (3 + x).dtype == with_int
    with_float = x.dtype if KINDS[dtype] == 2 else tg.float32
    assert (x * 3.0).dtype == with_float
    assert (3.0 + x).dtype == with_float


def test_a_number_does_not_widen_float32_or_lose_float64():
    x = tg.tensor([1.0], dtype=tg.float32) * 0.1
    assert x.numpy()[0] == np.float32(0.1)
    y = tg.tensor([1.0], dtype=tg.float64) * 0.1
    assert y.item() == 0.1


def test_integer_arithmetic_wraps_in_its_own_dtype():
    x = tg.tensor([200], dtype=tg.uint8)
    assert (x + 100).tolist() == [44]
    assert (tg.tensor([100], dtype=tg.int8) * 2).tolist() == [-56]


# ---- division and powers ----


@each_dtype
def test_true_division_gives_floats(dtype):
    x = ones(dtype, 2)
    expected = x.dtype if KINDS[dtype] == 2 else tg.float32
    assert (x / x).dtype == expected
    assert (x / 2).dtype == expected
    assert (1 / x).dtype == expected
    np.testing.assert_array_equal((x / 2).numpy(), [0.5, 0.5])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_floor_division_and_remainder_keep_integers(dtype):
    x = tg.tensor([7, 8], dtype=dt(dtype))
    assert (x // 3).dtype == (x % 3).dtype == x.dtype
    assert (x // 3).tolist() == [2, 2]
    assert (x % 3).tolist() == [1, 2]
    assert (x // 2.0).dtype == tg.float32


def test_floor_division_and_remainder_of_negatives_follow_python():
    x = tg.tensor([-7, 7, -7, 7])
    y = tg.tensor([3, 3, -3, -3])
    assert (x // y).tolist() == [-3, 2, 2, -3]
    assert (x % y).tolist() == [2, 1, -1, -2]
    assert tg.div(x, y, rounding_mode="trunc").tolist() == [-2, 2, 2, -2]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_powers(dtype):
    x = tg.tensor([2, 3], dtype=dt(dtype))
    assert (x**2).dtype == x.dtype
    assert (x**2).tolist() == [4, 9]
    assert (x**x).tolist() == [4, 27]
    assert (x**0.5).dtype == tg.float32
    assert (2**x).dtype == x.dtype
    assert (2.0**x).dtype == tg.float32


def test_integer_to_a_negative_integer_power_is_refused():
    with pytest.raises(RuntimeError, match=r"^Integers to negative integer powers are not allowed\.$"):
        tg.tensor([2]) ** -1
    assert (tg.tensor([2.0]) ** -1).item() == 0.5


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_functions_of_integers_give_the_default_float(dtype):
    for f in (tg.sin, tg.exp, tg.sqrt, tg.sigmoid, tg.log):
        assert f(ones(dtype, 2)).dtype == tg.float32
    np.testing.assert_allclose(tg.exp(ones(dtype, 1)).numpy(), [np.e], rtol=1e-6)


# ---- comparisons and reductions ----


@each_dtype
def test_comparisons_give_bool(dtype):
    x = ones(dtype, 2)
    for y in (x == x, x != 0, x < 2, x <= x, x > 0.5, x >= x, tg.isnan(x), tg.logical_not(x)):
        assert y.dtype == tg.bool


def test_comparison_happens_in_the_promoted_dtype():
    assert (tg.tensor([1]) < tg.tensor([1.5])).tolist() == [True]
    assert (tg.tensor([1], dtype=tg.int32) == 1.5).tolist() == [False]
    assert (tg.tensor([255], dtype=tg.uint8) == tg.tensor([-1], dtype=tg.int8)).tolist() == [False]


@each_dtype
def test_sum_and_prod_of_integers_give_int64(dtype):
    x = ones(dtype, 300)
    expected = x.dtype if KINDS[dtype] == 2 else tg.int64
    for y in (x.sum(), x.sum(0), x.prod(), x.cumsum(0)):
        assert y.dtype == expected
    assert x.sum().item() == 300
    assert x.sum(dtype=tg.float64).dtype == tg.float64


@each_dtype
def test_max_keeps_and_argmax_gives_int64(dtype):
    x = ones(dtype, 3)
    assert x.max().dtype == x.dtype
    assert x.max(0).values.dtype == x.dtype
    if dtype != "bool":
        assert x.argmax().dtype == tg.int64
    assert x.max(0).indices.dtype == tg.int64
    assert x.any().dtype == x.all().dtype == (tg.uint8 if dtype == "uint8" else tg.bool)


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_mean_of_integers_is_refused(dtype):
    x = ones(dtype, 3)
    with pytest.raises(RuntimeError, match=r"mean\(\): could not infer output dtype"):
        x.mean()
    assert x.mean(dtype=tg.float32).item() == 1.0
    with pytest.raises(RuntimeError, match="std and var only support floating point"):
        x.var()


def test_bool_arithmetic():
    t, f = tg.tensor([True]), tg.tensor([False])
    assert (t + t).tolist() == [True]
    assert (t * f).dtype == tg.bool
    for g in (lambda: t - f, lambda: -t, lambda: t - True):
        with pytest.raises(RuntimeError, match=r"[Bb]ool"):
            g()
    assert (~t).tolist() == [False]
    assert (t & f).tolist() == [False]
    assert (t ^ f).tolist() == [True]


@pytest.mark.parametrize("values", [[1.0], [True, 2.5]])
def test_bit_operations_on_floats_are_refused(values):
    x = tg.tensor(values)
    for g in (lambda: x & x, lambda: ~x, lambda: x << 1):
        with pytest.raises((TypeError, NotImplementedError)):
            g()


# ---- joining, choosing, writing ----


def test_where_cat_and_stack_promote():
    i, d = ones("int32", 2), ones("float64", 2)
    assert tg.where(tg.tensor([True, False]), i, d).dtype == tg.float64
    assert tg.where(tg.tensor([True, False]), ones("float32", 2), 1).dtype == tg.float32
    assert tg.cat([i, d]).dtype == tg.float64
    assert tg.stack([ones("uint8", 2), ones("int8", 2)]).dtype == tg.int16


@each_dtype
@pytest.mark.parametrize("other", KINDS)
def test_in_place_results_must_not_climb_to_a_higher_kind(dtype, other):
    x = ones(dtype, 2)
    if KINDS[other] <= KINDS[dtype]:
        x *= ones(other, 2)
        assert x.dtype == dt(dtype)
    else:
        with pytest.raises(RuntimeError, match=r"^result type .* can't be cast to the desired output type"):
            x *= ones(other, 2)
    assert x.tolist() == [1, 1]


def test_in_place_errors_name_both_dtypes():
    names = {
        "uint8": "Byte",
        "int8": "Char",
        "int16": "Short",
        "int32": "Int",
        "int64": "Long",
        "bool": "Bool",
    }
    for dtype, name in names.items():
        for number, result in ((1.5, "Float"), (tg.ones(2, dtype=tg.float64), "Double")):
            message = f"result type {result} can't be cast to the desired output type {name}"
            with raises(message):
                ones(dtype, 2).add_(number)


@each_dtype
def test_assignment_casts_to_the_target(dtype):
    x = ones(dtype, 3)
    x[0] = 0.0
    x[1:].copy_(tg.tensor([2.7, 0.0], dtype=tg.float64))
    assert x.dtype == dt(dtype)
    expected = {0: [False, True, False], 1: [0, 2, 0], 2: [0.0, pytest.approx(2.7), 0.0]}[KINDS[dtype]]
    assert x.tolist() == expected


# ---- gradients ----


@pytest.mark.parametrize("dtype", KINDS)
def test_gradients_pass_through_promotion(dtype):
    c = tg.tensor([1, 0, 1], dtype=dt(dtype))
    x = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x * c
    assert y.requires_grad
    y.sum().backward()
    assert x.grad.dtype == tg.float32
    np.testing.assert_array_equal(x.grad.numpy(), [1.0, 0.0, 1.0])


def test_casts_pass_gradients_back_in_the_source_dtype():
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    (x.double() * tg.tensor([3.0, 4.0], dtype=tg.float64)).sum().backward()
    assert x.grad.dtype == tg.float32
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, 4.0])


# ---- creation and the default dtype ----


def test_dtypes_of_literals():
    assert tg.tensor([1, 2]).dtype == tg.tensor([1, True]).dtype == tg.int64
    assert tg.tensor([1, 2.5]).dtype == tg.tensor([True, 2.5]).dtype == tg.tensor([]).dtype == tg.float32
    assert tg.tensor([True]).dtype == tg.bool
    assert tg.tensor(np.float64(2)).dtype == tg.float64
    assert tg.arange(3).dtype == tg.int64
    assert tg.arange(3.0).dtype == tg.zeros(1).dtype == tg.full((1,), 2.5).dtype == tg.float32
    assert tg.full((1,), 2).dtype == tg.int64
    assert tg.full((1,), True).dtype == tg.bool


@each_dtype
def test_numpy_arrays_keep_their_dtype(dtype):
    a = np.ones(2, dtype=dtype)
    assert tg.tensor(a).dtype == tg.from_numpy(a).dtype == tg.as_tensor(a).dtype == dt(dtype)
    assert tg.tensor(a).numpy().dtype == a.dtype
    assert repr(dt(dtype)) == f"{NAME}.{dtype}"


def test_set_default_dtype():
    assert tg.get_default_dtype() == tg.float32
    tg.set_default_dtype(tg.float64)
    try:
        assert tg.get_default_dtype() == tg.float64
        assert tg.tensor([1.0]).dtype == tg.ones(1).dtype == tg.float64
        assert (tg.tensor([1]) / 2).dtype == tg.sin(tg.tensor([1])).dtype == tg.float64
        assert (tg.tensor([1]) * 1.5).dtype == tg.float64
        assert (tg.ones(1, dtype=tg.float32) * 1.5).dtype == tg.float32
        assert repr(tg.tensor([1.0])) == "tensor([1.])"
    finally:
        tg.set_default_dtype(tg.float32)
    assert tg.tensor([1.0]).dtype == tg.float32
    with pytest.raises(TypeError, match="only floating-point types are supported"):
        tg.set_default_dtype(tg.int64)
    assert tg.get_default_dtype() == tg.float32
