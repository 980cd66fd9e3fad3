"""Operations declared by a scalar expression: values, derived and declared derivatives, exceptions."""

import math
import types

import numba
import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd import elementwise
from tests.declared import softsquare
from tests.helpers import numeric_gradients, on_tape, state_of_tape, weighted

GAS = 8.314
SCALE = np.float32(0.5)
LIMITS = types.SimpleNamespace(low=-0.5)


# ---------------------------------------------------------------- scalar expressions: values and derivatives


@elementwise
def arrhenius(A, Ea, T):
    return A * math.exp(-Ea / (GAS * T))


@elementwise
def powers(x, p):
    return x**2 + x**3 - x**-2 / 7 + x**0.5 + x**p + 2**x + x**1.3 + x**0 - x**7


@elementwise
def branches(x, y):
    a = x if x > y else y * y
    b = math.log(x) if x > 0.5 and not y < 0 else -x
    return a * b + (1.5 if 0 < x < 1 else SCALE * x) + (x > 1) * y


@elementwise
def functions(x, y):
    inner = np.sin(x) + tg.cos(y) * x.tanh() + tg.nn.functional.silu(x) + tg.nn.functional.softplus(y)
    return (
        inner + math.atan2(x, y) + tg.sigmoid(x * y) - math.hypot(x, y) + math.erf(x) + np.arcsinh(y) + math.log(y, 3)
    )


@elementwise
def choices(x, y):
    low, high = min(x, y, 0.9), max(x, y)
    t = low
    t *= high
    t = tg.where(t > 0.2, t, tg.clamp(x, min=LIMITS.low, max=0.7)) + tg.clamp(y, max=0.3)
    return t + np.maximum(x, 0.1) - x % 0.7 + x // 0.7 + tg.floor(y) + math.fabs(y - 1)


@elementwise
def composed(x, y):
    return softsquare(x, 2.0) * arrhenius(y, 3.0, 1 + x * x) + softsquare(y, x * x + 1)


@elementwise
def constant(x):
    return 3.0


@elementwise
def same(x):
    return x


@elementwise
def collisions(S, r, count):
    i = S * r
    row = i + count
    return row * S - count / (r + 2) + i


DERIVED = [
    (softsquare, [(-2, -0.2), (0.5, 2)]),
    (arrhenius, [(0.5, 2), (1, 5), (0.5, 3)]),
    (powers, [(0.3, 2), (-1, 2)]),
    (branches, [(0.55, 0.95), (0.1, 0.5)]),
    (branches, [(1.1, 2.0), (0.1, 0.5)]),
    (branches, [(0.05, 0.4), (-0.9, -0.5)]),
    (functions, [(0.2, 1.5), (0.3, 2)]),
    (choices, [(0.02, 0.3), (0.4, 0.6)]),
    (choices, [(0.72, 0.85), (0.31, 0.6)]),
    (composed, [(0.2, 1.5), (0.3, 2)]),
    (constant, [(0, 1)]),
    (same, [(0, 1)]),
    (collisions, [(0.3, 1), (0.2, 1), (0.5, 2)]),
]
IDS = [f"{op.__name__}{k}" for k, (op, _) in enumerate(DERIVED)]


def draw(intervals, shape=(4,), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(low, high, shape) for low, high in intervals]


def check_gradients(call, arrays, tolerance=2e-6):
    tensors = on_tape(arrays)
    found = tg.autograd.grad(weighted(call(*tensors)), tensors)
    expected = numeric_gradients(lambda moved: weighted(call(*on_tape(moved, False))).item(), arrays)
    for g, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(g.numpy(), e, rtol=tolerance, atol=tolerance)


def check_second(call, arrays, tolerance=2e-5):
    """Gradients of a weighted sum of all gradients, against differences of first derivatives."""

    def slopes(tensors, create_graph):
        found = tg.autograd.grad(weighted(call(*tensors)), tensors, create_graph=create_graph, materialize_grads=True)
        return sum(weighted(g) for g in found)

    tensors = on_tape(arrays)
    total = slopes(tensors, True)
    found = [np.zeros(a.shape) for a in arrays]
    if total.requires_grad:
        given = tg.autograd.grad(total, tensors, materialize_grads=True)
        found = [g.numpy() for g in given]
    expected = numeric_gradients(lambda moved: slopes(on_tape(moved), False).item(), arrays)
    for g, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("op", "intervals"), DERIVED, ids=IDS)
def test_derived_gradient(op, intervals):
    check_gradients(op, draw(intervals))


@pytest.mark.parametrize(("op", "intervals"), DERIVED, ids=IDS)
def test_derived_second_derivative(op, intervals):
    check_second(op, draw(intervals))


def test_values_match_python():
    x, y = draw([(0.1, 2), (0.3, 2)], (50,))
    found = softsquare(*on_tape([x, y])).detach().numpy()
    np.testing.assert_allclose(found, x * x / (y + np.abs(x)), rtol=1e-14)
    found = choices(*on_tape([x, y])).detach().numpy()
    low, high = np.minimum(np.minimum(x, y), 0.9), np.maximum(x, y)
    t = np.where(low * high > 0.2, low * high, np.clip(x, -0.5, 0.7)) + np.minimum(y, 0.3)
    expected = t + np.maximum(x, 0.1) - np.mod(x, 0.7) + x // 0.7 + np.floor(y) + np.abs(y - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    expected = x**2 + x**3 - x**-2.0 / 7 + x**0.5 + x**y + 2**x + x**1.3 + 1 - x**7
    np.testing.assert_allclose(powers(*on_tape([x, y])).detach().numpy(), expected, rtol=1e-13)


def test_third_derivative():
    x = tg.tensor([0.3, 1.7], dtype=tg.float64, requires_grad=True)
    y = arrhenius(2.0, x, 1 / GAS)  # 2 exp(-x)
    for sign in (-1, 1, -1):
        (y,) = tg.autograd.grad(y.sum(), x, create_graph=True)
        np.testing.assert_allclose(y.detach().numpy(), sign * 2 * np.exp([-0.3, -1.7]), rtol=1e-14)


def test_gradients_and_second_derivatives_agree_with_pytorch():
    torch = pytest.importorskip("torch")
    arrays = draw([(0.3, 2), (0.3, 2)], (6,))
    found, expected = [], []
    for library, call, results in ((tg, softsquare, found), (torch, softsquare.__wrapped__, expected)):
        x, y = (library.tensor(a, requires_grad=True) for a in arrays)
        first = library.autograd.grad(call(x, y).sum(), (x, y), create_graph=True)
        second = library.autograd.grad((first[0] * first[1]).sum(), (x, y))
        results += [g.detach().numpy() for g in (*first, *second)]
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12)


def test_a_branch_not_taken_does_not_spoil_the_gradient():
    @elementwise
    def safe_log(x):
        return math.log(x) if x > 0 else 0.0

    x = tg.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    safe_log(x).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 0.5]


def test_broadcasting():
    rng = np.random.default_rng(3)
    arrays = [rng.uniform(0.5, 2, s) for s in ((2, 1, 3), (4, 1), ())]
    result = arrhenius(*on_tape(arrays))
    assert result.shape == (2, 4, 3)
    check_gradients(arrhenius, arrays)
    check_second(arrhenius, arrays)
    with pytest.raises(RuntimeError, match=r"The size of tensor a \(3\) must match the size of tensor b \(2\)"):
        softsquare(tg.ones(3), tg.ones(2))


def test_dtypes_promote_as_those_of_the_registry():
    x32, x64 = tg.tensor([0.5, 2.0]), tg.tensor([0.5, 2.0], dtype=tg.float64)
    whole = tg.tensor([1, 2])
    for a, b in (
        (x32, x32),
        (x32, x64),
        (x64, 2.0),
        (x32, 2),
        (whole, x32),
        (whole, whole),
        (whole, 1.5),
        (x32, tg.tensor(1.0, dtype=tg.float64)),
    ):
        assert softsquare(a, b).dtype is tg.true_divide(a, b).dtype
    narrow, wide = (powers(t.requires_grad_(), t.detach() * 0.5) for t in (x32.clone(), x64.clone()))
    np.testing.assert_allclose(narrow.detach().numpy(), wide.detach().numpy(), rtol=1e-6)
    with pytest.raises((RuntimeError, NotImplementedError)):
        softsquare(x32.half(), 1.0)


def test_float32_gradient_agrees_with_float64():
    for op, intervals in DERIVED:
        arrays = draw(intervals, (9,))
        gradients = []
        for dtype in (np.float64, np.float32):
            tensors = on_tape([a.astype(dtype) for a in arrays])
            found = tg.autograd.grad(op(*tensors).sum(), tensors)
            assert all(g.numpy().dtype == dtype for g in found)
            gradients.append([g.numpy() for g in found])
        for wide, narrow in zip(*gradients, strict=True):
            np.testing.assert_allclose(narrow, wide, rtol=3e-4, atol=3e-5)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,)], ids=str)
def test_0d_and_empty(shape):
    x = tg.ones(shape, requires_grad=True)
    y = softsquare(x, 1.0)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape


def test_non_contiguous_and_shared_operands():
    a = np.random.default_rng(1).uniform(0.5, 2, (3, 4))

    def call(x):
        return (
            softsquare(x.t(), x.t().contiguous()[:, ::1]) + softsquare(x[:, ::2].t(), 1.0).sum() + softsquare(x, x).t()
        )

    check_gradients(call, [a])


def test_large_operands_on_all_cores():
    x = tg.rand(300_000, dtype=tg.float64, requires_grad=True)
    y = arrhenius(x, 1.0, 1 + x)
    y.sum().backward()
    v = x.detach().numpy()
    rate = np.exp(-1 / (GAS * (1 + v)))
    np.testing.assert_allclose(y.detach().numpy(), v * rate, rtol=1e-13)
    np.testing.assert_allclose(x.grad.numpy(), rate * (1 + v / (GAS * (1 + v) ** 2)), rtol=1e-12)


def test_how_an_operation_is_called():
    x = tg.tensor([1.0, 2.0])

    @elementwise
    def damped(x, rate=0.5):
        """Some decay."""
        return x * math.exp(-rate * x)

    assert damped.__name__ == "damped"
    assert damped.__doc__ == "Some decay."
    assert "damped" in repr(damped)
    assert damped(x).tolist() == damped(x, 0.5).tolist() == damped(rate=0.5, x=x).tolist()
    out = tg.empty(2)
    assert damped(x, 1.0, out=out) is out
    assert out.tolist() == damped(x, 1.0).tolist()
    assert damped(x.requires_grad_()).grad_fn.name() == "DampedBackward0"
    with pytest.raises(TypeError, match=r"damped\(\): missing a required argument: 'x'"):
        damped(rate=1.0)
    with pytest.raises(TypeError, match="too many positional"):
        damped(x, x, x)
    with pytest.raises(TypeError, match="must be Tensor, not float"):
        damped(1.0)
    with pytest.raises(TypeError, match="must be Tensor or Number, not ndarray"):
        damped(x, np.ones(2))


def test_an_operand_written_to_since_is_noticed():
    x = tg.ones(3, requires_grad=True)
    y = x * 1
    z = softsquare(y, 1.0)
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    z = softsquare(x, 1.0).sum()
    z.backward()
    with pytest.raises(RuntimeError, match="second time"):
        z.backward()


# ---------------------------------------------------------------- declared derivatives and compiled functions


@numba.njit
def newton_root(a, steps):
    """Square root by Newton's method."""
    if a < 0:
        raise ValueError("a root of a negative number")
    y = a
    for _ in range(steps):
        y = 0.5 * (y + a / y)
    return y


@numba.njit
def checked(g):
    if g > 100:
        raise OverflowError("a gradient too large")
    return g


@elementwise
def root(x, scale):
    return scale * newton_root(x, 30)


@root.backward
def _(g, x, scale, out):
    return checked(g) * scale / (2 * newton_root(x, 30)), g * out / scale


def test_a_compiled_function_with_a_declared_derivative():
    arrays = draw([(0.5, 9), (1, 2)])
    np.testing.assert_allclose(root(*on_tape(arrays)).detach().numpy(), arrays[1] * np.sqrt(arrays[0]), rtol=1e-14)
    check_gradients(root, arrays)
    x = tg.tensor([4.0, 9.0], requires_grad=True)
    (g,) = tg.autograd.grad(root(x, 1.0).sum(), x, create_graph=True)
    np.testing.assert_allclose(g.detach().numpy(), [0.25, 1 / 6], rtol=1e-6)
    with pytest.raises(RuntimeError, match=r"derivative of the @njit function (newton_root|checked) is not known"):
        g.sum().backward()


def test_a_compiled_function_without_a_declared_derivative_is_refused():
    @elementwise
    def bare(x):
        return newton_root(x, 3)

    with pytest.raises(
        TypeError, match=r"bare calls the @njit function newton_root, .* declare the derivative with @bare.backward"
    ):
        bare(tg.ones(3))


@pytest.mark.parametrize("count", [3, 200_000])
def test_an_exception_in_the_forward_leaves_the_tape_as_it_was(count):
    x = tg.ones(count, requires_grad=True)
    root(x, 1.0)
    bad = tg.full((count,), -1.0, requires_grad=True)
    before = state_of_tape()
    for _ in range(3):
        with pytest.raises(ValueError, match="a root of a negative number"):
            root(bad, 1.0)
    assert state_of_tape() == before
    root(x, 1.0).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 0.5)


@pytest.mark.parametrize("scale_shape", [(), (3,)])
def test_an_exception_in_reverse_is_raised_by_backward(scale_shape):
    x = tg.ones(3, requires_grad=True)
    scale = tg.ones(scale_shape, requires_grad=True)
    y = root(x, scale)
    before = state_of_tape()
    for _ in range(3):
        with pytest.raises(OverflowError, match="a gradient too large"):
            (y.sum() * 1000).backward()
    assert x.grad is None
    assert state_of_tape() == before
    y.sum().backward()
    assert x.grad.tolist() == [0.5, 0.5, 0.5]


def test_a_partial_declared_as_none():
    @elementwise
    def shifted(x, n):
        return x + n

    @shifted.backward
    def _(g):
        return g, None

    x, n = tg.ones(2, requires_grad=True), tg.ones(2)
    shifted(x, n).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]
    n.requires_grad_()
    with pytest.raises(RuntimeError, match="argument 'n' requires grad, but its partial is declared as None"):
        shifted(x, n)
    with tg.no_grad():
        shifted(x, n)

    @elementwise
    def outer(x):
        return shifted(1.0, x)

    with pytest.raises(TypeError, match="with respect to operand 2 is declared as None"):
        outer(x)


def test_a_declared_derivative_need_not_be_the_true_one():
    @elementwise
    def straight_through(x):
        return tg.sign(x)

    @straight_through.backward
    def _(g, x):
        return g if -1 < x < 1 else 0

    @elementwise
    def around(x, w):
        return straight_through(x * w) * w

    x = tg.tensor([0.5, -3.0], requires_grad=True)
    straight_through(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]
    x.grad = None
    around(x, 2.0).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]
    x.grad = None
    around(x, 1.5).sum().backward()
    assert x.grad.tolist() == [2.25, 0.0]


def test_wrong_declarations_of_a_derivative():
    @elementwise
    def product(x, y):
        return x * y

    with pytest.raises(TypeError, match=r"product.backward: parameter 'grad' is none of g, out, x, y"):

        @product.backward
        def _(grad, x):
            return grad, x

    with pytest.raises(TypeError, match=r"product.backward returns 1 partials for 2 inputs"):

        @product.backward
        def _(g, y):
            return g * y
