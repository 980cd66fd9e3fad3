"""Matrix products and what is made of them: values, gradients, dtypes, and what they leave intact."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.ops import affine, contraction, linalg
from tapegrad.ops._product_ops import AffineOp, ProductOp
from tapegrad.ops.einsum import einsum
from tests.helpers import RNG, arrays, differences, unbroadcast
from tests.processes import run

FLOATS = ("float32", "float64")
TOLERANCE = {"float32": 2e-5, "float64": 1e-11}

PRODUCTS = [
    linalg.mm,
    linalg.mv,
    linalg.dot,
    linalg.vdot,
    linalg.bmm,
    linalg.batched_matmul,
    linalg.vecmat,
    affine.addmm,
    affine.addmv,
    affine.baddbmm,
]
COMPOSITES = [
    linalg.matmul,
    affine.linear,
    contraction.outer,
    contraction.inner,
    contraction.tensordot,
    contraction.multi_dot,
    contraction.chain_matmul,
    contraction.matrix_power,
    contraction.bilinear,
    contraction.trace,
    contraction.cross,
    einsum,
]
CASES = [(f, *sample) for f in PRODUCTS + COMPOSITES for sample in f.samples]


def call(function, operands, case):
    arguments = [*case.get("before", ()), *operands, *case.get("args", ())]
    if function is contraction.multi_dot:
        arguments = [operands]
    return function(*arguments, **case.get("kwargs", {}))


def reference(function, operands, case):
    arguments = [*case.get("before", ()), *operands, *case.get("args", ())]
    return np.asarray(function.reference(*arguments, **case.get("kwargs", {})))


def label(case):
    return f"{case[0].__name__}-{case[1]}-{case[2] or ''}"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", CASES, ids=label)
def test_value_is_the_references(case, dtype):
    function, shapes, options = case
    operands = arrays(shapes, dtype)
    found = call(function, [tg.tensor(x) for x in operands], options)
    expected = reference(function, operands, options)
    assert found.dtype is getattr(tg, dtype)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("case", CASES, ids=label)
def test_gradient_is_that_of_differences(case):
    function, shapes, options = case
    operands = arrays(shapes)
    tensors = [tg.tensor(x, requires_grad=True) for x in operands]
    result = call(function, tensors, options)
    weights = RNG.standard_normal(result.shape)
    result.backward(tg.tensor(weights))
    expected = differences(lambda *x: reference(function, x, options), operands, weights)
    for t, e in zip(tensors, expected):
        found = np.zeros(t.shape) if t.grad is None else t.grad.numpy()
        np.testing.assert_allclose(found, e, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if isinstance(c[0], ProductOp)], ids=label)
def test_derivative_over_tensors_is_the_native_one(case):
    op, shapes, options = case
    tensors = [tg.tensor(x, requires_grad=True) for x in arrays(shapes)]
    result = call(op, tensors, options)
    g = tg.tensor(RNG.standard_normal(result.shape))
    result.backward(g)
    count = 3 if isinstance(op, AffineOp) else 2
    factors = options.get("kwargs", {})
    words = [0, 0, 0, *(np.float64(factors.get(n, 1)).view(np.int64).item() for n in ("alpha", "beta"))]
    for slot in range(count):
        kept = [t.detach() for t in tensors]
        kept[slot] = None
        parts = op.reverse(g, 1 << slot, [*kept, None, None][:4], words)
        part = unbroadcast(parts[slot].numpy(), tensors[slot].shape)
        np.testing.assert_allclose(part, tensors[slot].grad.numpy(), atol=1e-12)


def test_a_product_saves_only_what_it_needs():
    a, b = tg.ones(2, 3), tg.ones(3, 4, requires_grad=True)
    result = (a @ b).sum()
    with tg.no_grad():
        b.mul_(2.0)  # not needed for its own gradient
    result.backward()
    assert b.grad.tolist() == [[2.0] * 4] * 3
    result = (a @ b).sum()
    a.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


@pytest.mark.parametrize(
    ("input_shape", "shape"),
    [((), (3, 4)), ((4,), (3, 4)), ((1, 4), (3, 4)), ((3, 1), (3, 4)), ((3, 4), (3, 4))],
)
def test_added_operand_broadcasts(input_shape, shape):
    x, a, b = arrays([input_shape, (3, 5), (5, 4)])
    t = tg.tensor(x, requires_grad=True)
    for _ in range(2):
        tg.addmm(t, tg.tensor(a), tg.tensor(b), beta=0.5).sum().backward()
    np.testing.assert_allclose(t.grad.numpy(), np.full(input_shape, 12 / max(x.size, 1)), atol=1e-12)


def test_beta_zero_ignores_the_added_operand():
    nan = tg.full((2, 2), float("nan"))
    assert tg.addmm(nan, tg.ones(2, 3), tg.ones(3, 2), beta=0).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_addmm_in_place():
    t = tg.ones(2, 2)
    assert t.addmm_(tg.ones(2, 3), tg.ones(3, 2), alpha=2) is t
    assert t.tolist() == [[7.0, 7.0], [7.0, 7.0]]
    with pytest.raises(RuntimeError, match="Bad in-place call"):
        tg.ones(2).addmm_(tg.ones(2, 3), tg.ones(3, 2))


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "int64", "uint8"])
def test_integers_multiply_and_wrap(name):
    x = RNG.integers(0, 100, (7, 30)).astype(name)
    y = RNG.integers(0, 100, (30, 9)).astype(name)
    found = tg.tensor(x) @ tg.tensor(y)
    assert found.dtype is getattr(tg, name)
    np.testing.assert_array_equal(found.numpy(), x @ y)
    np.testing.assert_array_equal((tg.tensor(y).T @ tg.tensor(x).T).numpy(), (x @ y).T)


def test_nan_and_infinity_pass_through():
    for n in (2, 40):
        x = np.zeros((n, n))
        x[0, 0] = np.nan
        y = np.full((n, n), np.inf)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal((tg.tensor(x) @ tg.tensor(y)).numpy(), x @ y)


def test_chains_take_the_cheapest_order():
    assert contraction._chain_order([10, 100, 5, 50])[0][2] == 1
    assert contraction._chain_order([100, 5, 50, 1])[0][2] == 0


def test_as_pytorch():
    torch = pytest.importorskip("torch")
    for shapes in (
        ((30, 40), (40, 20)),
        ((3, 30, 40), (40, 20)),
        ((4, 1, 30, 40), (5, 40, 20)),
        ((40,), (3, 40, 5)),
    ):
        operands = arrays(shapes, "float32")
        ours = [tg.tensor(x, requires_grad=True) for x in operands]
        theirs = [torch.tensor(x, requires_grad=True) for x in operands]
        found, expected = ours[0] @ ours[1], theirs[0] @ theirs[1]
        found.sum().backward()
        expected.sum().backward()
        np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-4)
        for a, b in zip(ours, theirs):
            np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-4, atol=1e-3)


def test_cached_kernels_work_in_another_process(tmp_path):
    program = """
import json
import numpy as np, tapegrad as tg
from tapegrad.engine import kernels

x = np.arange(2500.0).reshape(50, 50)
a = tg.tensor(x, requires_grad=True)
result = a @ a.T
result.sum().backward()
assert np.allclose(result.detach().numpy(), x @ x.T)
assert np.allclose(a.grad.numpy(), 2 * np.ones((50, 50)) @ x)
print(json.dumps(kernels.counts["compiled"]))
"""
    first, second = (run(program, TAPEGRAD_CACHE_DIR=tmp_path)[0] for _ in range(2))
    assert first > 0
    assert second == 0


def test_scipy_linalg_is_intact_after_binding():
    program = """
import json
import tapegrad as tg

tg.ones(2, 2) @ tg.ones(2, 2)
import scipy.linalg
import scipy.linalg.cython_blas

assert scipy.linalg.cython_blas.__pyx_capi__
print(json.dumps(scipy.linalg.blas.ddot([1.0], [2.0])))
"""
    assert run(program)[0] == 2.0
