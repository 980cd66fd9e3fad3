"""Every op of the registry: declaration, reference, finite differences, broadcasting, layouts, edges, both dtypes."""

import importlib

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.ops._kernel import KernelOp, ReductionOp
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import DISCRETE, FLOATS, PUBLIC, Op, built_in_ops
from tapegrad.ops._view import ViewOp
from tests.helpers import numeric_gradient

ALL_OPS = built_in_ops()
POINTWISE = [op for op in ALL_OPS if isinstance(op, Pointwise)]
SMOOTH = [
    op for op in POINTWISE if op.derivative is not None and set(FLOATS) <= set(op.dtypes) and op.out is not tg.float32
]
SAMPLED = [
    pytest.param(op, sample, id=f"{op.name}-{k}")
    for op in ALL_OPS
    if isinstance(op, KernelOp | ViewOp) and op.reference is not None
    for k, sample in enumerate(op.samples)
]


def reference_of(op):
    if callable(op.reference):
        return op.reference
    module, name = op.reference.split(":")
    return getattr(importlib.import_module(module), name)


def draw(op, shapes, dtype=np.float64, seed=0):
    """Arrays inside the op's domain, away from the points to avoid and from each other."""
    rng = np.random.default_rng(seed)
    intervals = op.domain.intervals if op.domain is not None else ((-2.0, 2.0),)
    arrays = []
    for k, shape in enumerate(shapes):
        low, high = intervals[min(k, len(intervals) - 1)]
        if np.dtype(dtype).kind in "iu":
            if np.dtype(dtype).kind == "u":
                low, high = max(low, 0), max(high, 0)
            a = rng.integers(int(low), int(high) + 1, shape)
            if "div" in op.name or "fmod" in op.name or op.name == "remainder":
                a = np.where(a == 0, 1, a)
        elif np.dtype(dtype) == bool:
            a = rng.random(shape) < 0.5
        else:
            a = rng.uniform(low, high, shape)
            for point in getattr(op.domain, "avoid", ()):
                a = np.where(np.abs(a - point) < 0.05, point + 0.1, a)
        arrays.append(np.asarray(a, dtype))
    if isinstance(op, Pointwise) and op.kind == 1:
        arrays[0] = rng.random(shapes[0]) < 0.5
    return arrays


def tensors_of(arrays, requires_grad=False):
    return [tg.tensor(a, requires_grad=requires_grad and a.dtype.kind == "f") for a in arrays]


def total(result, seed=1):
    """A scalar that weighs every element of a result, and the weights."""
    weights = np.random.default_rng(seed).uniform(0.5, 1.5, tuple(result.shape))
    return (result * tg.tensor(weights).to(result.dtype)).sum(), weights


def check_gradients(call, arrays, tolerance=2e-5, constant=()):
    tensors = tensors_of(arrays, requires_grad=True)
    for k in constant:
        tensors[k].requires_grad_(False)
    result = call(*tensors)
    scalar, weights = total(result)
    wanted = [t for t in tensors if t.requires_grad]
    found = iter(tg.autograd.grad(scalar, wanted, allow_unused=True))

    def value(moved):
        with tg.no_grad():
            return float((call(*tensors_of(moved)).numpy() * weights).sum())

    for k, t in enumerate(tensors):
        if not t.requires_grad:
            continue
        gradient = next(found)
        gradient = np.zeros(arrays[k].shape) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(gradient, numeric_gradient(value, arrays, k), rtol=tolerance, atol=tolerance)


def constant_inputs(op):
    """Inputs that only ever are numbers: their partial is declared as None."""
    return [k for k in range(op.arity) if k not in op.partial_uses()]


@pytest.mark.parametrize("op", ALL_OPS, ids=lambda op: op.name)
def test_declaration_is_complete(op):
    assert isinstance(op, Op)
    assert op.__doc__.strip()
    if op.grad_name in ("CopySlices", "AsStridedBackward0") or not op.__module__.startswith("tapegrad"):
        return
    if op.covered_by:  # a form of a public function, which the tests of its family cover
        assert hasattr(tg, op.covered_by) or hasattr(tg.nn.functional, op.covered_by)
        return
    assert op.reference is not None, f"{op.name} has no reference"
    assert getattr(op, "domain", None) is not None or getattr(op, "samples", None), (
        f"{op.name} has nothing to test it with"
    )
    if isinstance(op, Pointwise) and op.derivative is None:
        discrete = op.out is not None and not op.out.is_floating_point
        assert discrete or set(op.dtypes) <= set(DISCRETE) or not op.differentiable


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("op", [op for op in POINTWISE if set(FLOATS) <= set(op.dtypes)], ids=lambda op: op.name)
def test_pointwise_matches_reference(op, dtype):
    arrays = draw(op, [(3, 5)] * op.arity, dtype)
    found = op(*tensors_of(arrays)).numpy()
    wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    expected = np.asarray(reference_of(op)(*wide))
    if op.out is None:
        assert found.dtype == dtype
    tolerance = 1e-13 if dtype == np.float64 else 3e-6
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("op", [op for op in POINTWISE if tg.int64 in op.dtypes], ids=lambda op: op.name)
def test_pointwise_on_integers(op, dtype):
    arrays = draw(op, [(4, 3)] * op.arity, dtype)
    if op.name == "neg" and dtype == np.uint8:
        pytest.skip("NumPy and the tape agree modulo 256 only")
    expected = reference_of(op)(*arrays)
    np.testing.assert_array_equal(op(*tensors_of(arrays)).numpy(), expected)


@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: op.name)
def test_pointwise_gradient(op):
    check_gradients(op, draw(op, [(2, 3)] * op.arity), constant=constant_inputs(op))


@pytest.mark.parametrize("op", [op for op in SMOOTH if op.arity > 1], ids=lambda op: op.name)
def test_pointwise_gradient_under_broadcasting(op):
    shapes = [(2, 1, 3), (4, 1), ()][: op.arity]
    check_gradients(op, draw(op, shapes, seed=3), constant=constant_inputs(op))


@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: op.name)
def test_pointwise_gradient_of_non_contiguous_inputs(op):
    arrays = draw(op, [(3, 4)] * op.arity, seed=4)

    def call(*tensors):
        return op(*(t.t().contiguous().t() for t in tensors))

    assert not tg.tensor(arrays[0]).t().contiguous().t().is_contiguous()
    check_gradients(call, arrays, constant=constant_inputs(op))


@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: op.name)
def test_pointwise_float32_gradient_agrees_with_float64(op):
    arrays = draw(op, [(7,)] * op.arity)
    gradients = []
    for dtype in (np.float64, np.float32):
        tensors = tensors_of([a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays], requires_grad=True)
        scalar, _ = total(op(*tensors))
        found = tg.autograd.grad(scalar, [t for t in tensors if t.requires_grad], materialize_grads=True)
        assert all(g.numpy().dtype == dtype for g in found)
        gradients.append([g.numpy() for g in found])
    for wide, narrow in zip(*gradients, strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: op.name)
def test_pointwise_on_0d_and_empty(op, shape):
    tensors = tensors_of(draw(op, [shape] * op.arity), requires_grad=True)
    result = op(*tensors)
    assert tuple(result.shape) == shape
    result.sum().backward()
    for t in tensors:
        assert t.grad is None or t.grad.shape == t.shape


@pytest.mark.parametrize(
    "op",
    [
        op
        for op in SMOOTH
        if op.out is None and op.kind == 0 and op.name in PUBLIC and hasattr(tg.Tensor, op.name + "_")
    ],
    ids=lambda op: op.name,
)
def test_in_place_equals_out_of_place(op):
    arrays = draw(op, [(2, 3)] * op.arity)

    def call(x, *others):
        y = x * 1
        getattr(y, op.name + "_")(*others)
        return y

    plain = op(*tensors_of(arrays)).numpy()
    np.testing.assert_allclose(call(*tensors_of(arrays)).numpy(), plain, rtol=1e-12)
    check_gradients(call, arrays, constant=constant_inputs(op))


@pytest.mark.parametrize("op", [op for op in SMOOTH if op.arity == 1], ids=lambda op: op.name)
def test_pointwise_special_values_match_reference(op):
    if op.name in ("sign", "lgamma", "digamma", "gelu_tanh", "silu", "gelu"):
        pytest.skip("PyTorch's convention differs from NumPy's at NaN or infinities")
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0])
    with np.errstate(all="ignore"):
        expected = reference_of(op)(values)
    np.testing.assert_allclose(op(tg.tensor(values)).numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("op", SMOOTH, ids=lambda op: op.name)
def test_large_arrays_on_all_cores_equal_small_ones(op):
    arrays = draw(op, [(40_000,)] * op.arity)
    whole = op(*tensors_of(arrays)).numpy()
    parts = [op(*tensors_of([a[k : k + 1000] for a in arrays])).numpy() for k in range(0, 40_000, 10_000)]
    for k, part in enumerate(parts):
        np.testing.assert_array_equal(whole[10_000 * k : 10_000 * k + 1000], part)


def sample_parts(op, sample):
    shapes, options = sample
    if isinstance(op, ViewOp):
        return [tuple(shapes)], tuple(options), {}
    shapes = [shapes] if not shapes or isinstance(shapes[0], int) else list(shapes)
    return shapes, tuple(options.get("args", ())), options.get("kwargs", {})


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("op", "sample"), SAMPLED)
def test_sampled_op_matches_reference(op, sample, dtype):
    shapes, args, kwargs = sample_parts(op, sample)
    rng = np.random.default_rng(2)
    arrays = [rng.uniform(0.2, 2.0, s).astype(dtype) for s in shapes]
    found = op(*tensors_of(arrays), *args, **kwargs)
    expected = reference_of(op)(*arrays, *args, **kwargs)
    tolerance = 1e-11 if dtype == np.float64 else 2e-4
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dense", [True, False], ids=["contiguous", "strided"])
@pytest.mark.parametrize(("op", "sample"), SAMPLED)
def test_sampled_op_gradient(op, sample, dense):
    if op.derivative is None and not isinstance(op, ViewOp):
        pytest.skip("not differentiable")
    shapes, args, kwargs = sample_parts(op, sample)
    rng = np.random.default_rng(5)
    arrays = [rng.permutation(np.linspace(0.3, 2.0, int(np.prod(s)))).reshape(s) for s in shapes]

    def call(*tensors):
        if not dense:
            if op.name in ("view", "view_as"):
                pytest.skip("view refuses strided inputs")
            tensors = [t.mT.contiguous().mT if t.ndim > 1 else t for t in tensors]
        return op(*tensors, *args, **kwargs)

    check_gradients(call, arrays)


def test_reductions_are_in_the_registry():
    assert any(isinstance(op, ReductionOp) for op in ALL_OPS)
