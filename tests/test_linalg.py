"""Matrix products and what is made of them: values, gradients, errors, strides, and cached kernels."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.ops import contraction, linalg
from tapegrad.ops._product_ops import AffineOp, ProductOp
from tapegrad.ops.einsum import einsum

RNG = np.random.default_rng(7)
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
    linalg.addmm,
    linalg.addmv,
    linalg.baddbmm,
]
COMPOSITES = [
    linalg.matmul,
    linalg.linear,
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


def arrays(shapes, dtype="float64"):
    return [RNG.standard_normal(s).astype(dtype) for s in shapes]


def call(function, operands, case):
    arguments = [*case.get("before", ()), *operands, *case.get("args", ())]
    if function is contraction.multi_dot:
        arguments = [operands]
    return function(*arguments, **case.get("kwargs", {}))


def reference(function, operands, case):
    arguments = [*case.get("before", ()), *operands, *case.get("args", ())]
    return np.asarray(function.reference(*arguments, **case.get("kwargs", {})))


def differences(f, operands, weights, step=1e-6):
    """Gradients of ``sum(weights * f(*operands))`` by central differences."""
    found = []
    for x in operands:
        gradient = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            value = x[index]
            x[index] = value + step
            above = (f(*operands) * weights).sum()
            x[index] = value - step
            below = (f(*operands) * weights).sum()
            x[index] = value
            gradient[index] = (above - below) / (2 * step)
        found.append(gradient)
    return found


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
        part = parts[slot].numpy()
        shape = tensors[slot].shape
        extra = part.ndim - len(shape)
        part = part.sum(tuple(range(extra)))
        part = part.sum(tuple(d for d, n in enumerate(shape) if n == 1 and part.shape[d] != 1), keepdims=True)
        np.testing.assert_allclose(part, tensors[slot].grad.numpy(), atol=1e-12)


SIZES = [
    (1, 1, 1),
    (2, 3, 4),
    (1, 50, 40),
    (40, 50, 1),
    (1, 3000, 1),
    (33, 17, 29),
    (64, 1, 64),
    (5, 0, 6),
    (0, 3, 2),
]


def laid_out(x, how):
    """A tensor with the elements of `x` in some memory layout, and the leaf behind it."""
    if how == "contiguous":
        leaf = tg.tensor(x, requires_grad=True)
        return leaf, leaf
    if how == "transposed":
        leaf = tg.tensor(np.ascontiguousarray(x.swapaxes(-1, -2)), requires_grad=True)
        return leaf.transpose(-1, -2), leaf
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1] + 1))
    wide[..., : 2 * x.shape[-1] : 2] = x
    leaf = tg.tensor(wide.astype(x.dtype), requires_grad=True)
    return leaf[..., : 2 * x.shape[-1] : 2], leaf


@pytest.mark.parametrize("left", ["contiguous", "transposed", "gaps"])
@pytest.mark.parametrize("right", ["contiguous", "transposed", "gaps"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_operands_in_any_memory_layout(size, batch, left, right):
    m, k, n = size
    x, y = arrays([(*batch, m, k), (*batch, k, n)])
    a, leaf_a = laid_out(x, left)
    b, leaf_b = laid_out(y, right)
    result = a @ b
    np.testing.assert_allclose(result.detach().numpy(), x @ y, atol=1e-11)
    weights = RNG.standard_normal(result.shape)
    result.backward(tg.tensor(weights))
    for leaf, how, expected in (
        (leaf_a, left, weights @ y.swapaxes(-1, -2)),
        (leaf_b, right, x.swapaxes(-1, -2) @ weights),
    ):
        found = leaf.grad.numpy()
        if how == "transposed":
            found = found.swapaxes(-1, -2)
        elif how == "gaps":
            assert not found[..., 1::2].any()
            found = found[..., : 2 * expected.shape[-1] : 2]
        np.testing.assert_allclose(found, expected, atol=1e-11)


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 1, 2, 3), (5, 3, 6)),
        ((1, 2, 3), (5, 3, 6)),
        ((5, 2, 3), (1, 3, 6)),
        ((2, 1, 4, 2, 3), (3, 1, 3, 6)),
        ((40, 40), (7, 40, 40)),
        ((7, 3, 40), (40, 50)),
        ((7, 1, 40), (40, 50)),
        ((0, 2, 3), (3, 4)),
        ((0, 2, 3), (1, 3, 4)),
        ((3, 40), (0, 40, 50)),
    ],
    ids=str,
)
def test_batch_dims_broadcast(shapes):
    x, y = arrays(shapes)
    a, b = tg.tensor(x, requires_grad=True), tg.tensor(y, requires_grad=True)
    for _ in range(2):  # the second sweep adds to what the first one wrote
        result = a @ b
        np.testing.assert_allclose(result.detach().numpy(), x @ y, atol=1e-11)
        weights = np.ones(result.shape)
        result.backward(tg.tensor(weights))
    for leaf, part in ((a, weights @ y.swapaxes(-1, -2)), (b, x.swapaxes(-1, -2) @ weights)):
        extra = part.ndim - leaf.ndim
        part = part.sum(tuple(range(extra)))
        shrunk = tuple(d for d, n in enumerate(leaf.shape) if n == 1 and part.shape[d] != 1)
        np.testing.assert_allclose(leaf.grad.numpy(), 2 * part.sum(shrunk, keepdims=True), atol=1e-10)


def test_expanded_operands_are_copied():
    row = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    rows = row.expand(40, 3)
    y = arrays([(3, 50)], "float32")[0]
    result = rows @ tg.tensor(y)
    np.testing.assert_allclose(result.detach().numpy(), np.broadcast_to([1, 2, 3], (40, 3)) @ y, rtol=1e-5)
    result.sum().backward()
    np.testing.assert_allclose(row.grad.numpy(), 40 * y.sum(1), rtol=1e-4)


@pytest.mark.parametrize("n", [3, 40])
def test_one_tensor_as_both_operands(n):
    x = arrays([(n, n)])[0]
    weights = RNG.standard_normal((n, n))
    for product, expected in (
        (lambda t: t @ t, weights @ x.T + x.T @ weights),
        (lambda t: t @ t.T, (weights + weights.T) @ x),
        (lambda t: t.T @ t, x @ (weights + weights.T)),
        (lambda t: tg.addmm(t, t, t), weights + weights @ x.T + x.T @ weights),
    ):
        t = tg.tensor(x, requires_grad=True)
        product(t).backward(tg.tensor(weights))
        np.testing.assert_allclose(t.grad.numpy(), expected, atol=1e-11)


def test_one_tensor_as_both_operands_of_a_batch():
    x = arrays([(9, 3, 3)])[0]
    t = tg.tensor(x, requires_grad=True)
    tg.baddbmm(t, t, t).sum().backward()
    ones = np.ones((9, 3, 3))
    back = x.swapaxes(1, 2)
    np.testing.assert_allclose(t.grad.numpy(), ones + ones @ back + back @ ones, atol=1e-12)


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


@pytest.mark.parametrize("x_shape", [(6, 5), (2, 3, 5), (5,), (2, 0, 5), (64, 300)])
@pytest.mark.parametrize("n", [4, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_layer(x_shape, n, dtype):
    x, w, b = arrays([x_shape, (n, x_shape[-1]), (n,)], dtype)
    tensors = [tg.tensor(v, requires_grad=True) for v in (x, w, b)]
    result = linalg.linear(*tensors)
    np.testing.assert_allclose(result.detach().numpy(), x @ w.T + b, rtol=1e-4, atol=1e-4)
    g = RNG.standard_normal(result.shape).astype(dtype)
    result.backward(tg.tensor(g))
    flat = g.reshape(-1, n)
    rows = x.reshape(-1, x.shape[-1])
    for t, expected in zip(tensors, ((flat @ w).reshape(x.shape), flat.T @ rows, flat.sum(0))):
        np.testing.assert_allclose(t.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_linear_reads_transposed_and_sliced_inputs():
    x, w = arrays([(3, 6, 5), (4, 5)])
    t, v = tg.tensor(x, requires_grad=True), tg.tensor(np.ascontiguousarray(w.T), requires_grad=True)
    result = linalg.linear(t.transpose(0, 1)[::2], v.T)
    np.testing.assert_allclose(result.detach().numpy(), x.swapaxes(0, 1)[::2] @ w.T, atol=1e-12)
    result.sum().backward()
    expected = np.zeros_like(x)
    expected[:, ::2] = w.sum(0)
    np.testing.assert_allclose(t.grad.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(v.grad.numpy(), np.repeat(x[:, ::2].sum((0, 1))[:, None], 4, 1), atol=1e-12)


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


def test_bool_and_half_are_refused():
    with pytest.raises(NotImplementedError, match="\"addmm_impl_cpu_\" not implemented for 'Bool'"):
        tg.ones(2, 2, dtype=tg.bool) @ tg.ones(2, 2, dtype=tg.bool)


ERRORS = [
    ("a(2,3) @ a(4,5)", "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ("a(5,2,3) @ a(4,5)", "mat1 and mat2 shapes cannot be multiplied (10x3 and 4x5)"),
    ("a(4) @ a(3,2)", "mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)"),
    ("a(2,3) @ a(4)", "size mismatch, got input (2), mat (2x3), vec (4)"),
    ("a(5,2,3) @ a(4)", "size mismatch, got input (10), mat (10x3), vec (4)"),
    (
        "a(5,2,3) @ a(5,4,5)",
        "Expected size for first two dimensions of batch2 tensor to be: [5, 3] but got: [5, 4].",
    ),
    (
        "a(5,2,3) @ a(6,3,5)",
        "The size of tensor a (5) must match the size of tensor b (6) at non-singleton dimension 0: "
        "matmul got shapes [5, 2, 3], [6, 3, 5]",
    ),
    ("a() @ a(2,2)", "both arguments to matmul need to be at least 1D, but they are 0D and 2D"),
    (
        "a(3) @ a(4)",
        "inconsistent tensor size, expected tensor [3] and src [4] to have the same number of elements, "
        "but got 3 and 4 elements respectively",
    ),
    ("a(2,3) @ a(3,4).double()", "expected m1 and m2 to have the same dtype, but got: float != double"),
    ("a(3) @ a(3).double()", "dot : expected both vectors to have same dtype, but found Float and Double"),
    (
        "a(2,3) @ a(3).double()",
        "addmv input tensors must have the same dtype, but got Double, Float, and Double",
    ),
    ("a(2,2,3) @ a(2,3,4).double()", "expected scalar type Float but found Double"),
    ("tg.mm(a(2), a(2,2))", "self must be a matrix"),
    ("tg.mv(a(2,3), a(4,4))", "vector + matrix @ vector expected, got 1, 2, 2"),
    ("tg.bmm(a(2,3), a(2,3,4))", "batch1 must be a 3D tensor"),
    ("tg.addmm(a(4), a(3), a(3,4))", "mat1 must be a matrix, got 1-D tensor"),
    (
        "tg.addmm(a(5), a(2,3), a(3,4))",
        "The expanded size of the tensor (4) must match the existing size (5) at non-singleton dimension 1.  "
        "Target sizes: [2, 4].  Tensor sizes: [5]",
    ),
    ("tg.outer(a(2,2), a(3))", "outer: Expected 1-D argument self, but got 2-D"),
    ("tg.trace(a(3))", "trace: expected a matrix, but got tensor with dim 1"),
    ("tg.cross(a(2,4), a(2,4), dim=0)", "linalg.cross: inputs dimension 0 must have length 3. Got 2 and 2"),
    ("tg.tensordot(a(2,3), a(4,5), dims=-1)", "tensordot expects dims >= 0, but got dims=-1"),
    (
        "tg.matrix_power(a(2,3), 2)",
        "linalg.matrix_power: A must be batches of square matrices, but they are 2 by 3 matrices",
    ),
    (
        "tg.einsum('ij,jk->ik', a(2,3), a(4,4))",
        "einsum(): subscript j has size 4 for operand 1 which does not broadcast with previously seen size 3",
    ),
    ("tg.einsum('ii->ii', a(3,3))", "einsum(): output subscript i appears more than once in the output"),
    (
        "tg.einsum('i->j', a(3))",
        "einsum(): output subscript j does not appear in the equation for any input operand",
    ),
    ("tg.einsum('ij,jk', a(2,3))", "einsum(): fewer operands were provided than specified in the equation"),
    ("tg.einsum('i', a(2), a(3))", "einsum(): more operands were provided than specified in the equation"),
]


@pytest.mark.parametrize(("expression", "message"), ERRORS, ids=[e for e, _ in ERRORS])
def test_error_text(expression, message):
    names = {"tg": tg, "a": lambda *shape: tg.ones(shape)}
    for _ in range(2):  # the second time must not find a plan of the first
        with pytest.raises(RuntimeError) as caught:
            eval(expression, names)
        assert str(caught.value) == message


def test_operands_that_are_no_tensors():
    with pytest.raises(TypeError, match="unsupported operand type"):
        tg.ones(2, 2) @ 3
    with pytest.raises(TypeError, match=r"matmul\(\): argument 'other' \(position 2\) must be Tensor, not int"):
        tg.matmul(tg.ones(2, 2), 3)
    with pytest.raises(TypeError, match=r"mm\(\): argument 'mat2' \(position 2\) must be Tensor, not int"):
        tg.mm(tg.ones(2, 2), 3)


EQUATIONS = [
    ("ij,jk", (2, 3), (3, 4)),
    ("ij,kj->ik", (2, 3), (4, 3)),
    ("ij,jk->ki", (2, 3), (3, 4)),
    ("ij,jk->", (2, 3), (3, 2)),
    ("ii", (3, 3)),
    ("ii->i", (3, 3)),
    ("iij->ji", (3, 3, 2)),
    ("ijij->ij", (2, 3, 2, 3)),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("bqhd,bkhd->bhqk", (2, 4, 3, 5), (2, 6, 3, 5)),
    ("i,i->i", (3,), (3,)),
    ("i,j,k->kij", (2,), (3,), (4,)),
    ("...ij,...jk->...ik", (5, 2, 3), (3, 4)),
    ("...i->...", (2, 3)),
    ("b...i,ij->b...j", (2, 4, 3), (3, 5)),
    ("ij,ij->i", (2, 3), (2, 3)),
    ("ab,bc,cd,de->ae", (2, 3), (3, 4), (4, 5), (5, 2)),
    ("ab,cb,db->acd", (2, 3), (4, 3), (5, 3)),
    ("bij,bj->bi", (4, 2, 3), (4, 3)),
    ("ijk,jil->kl", (2, 3, 4), (3, 2, 5)),
    ("ij,j", (2, 3), (1,)),
    ("a...,...a", (2, 3), (3, 2)),
    ("ij->", (2, 3)),
    ("ij->ji", (0, 3)),
    ("ij,jk->ik", (2, 0), (0, 4)),
]


@pytest.mark.parametrize("case", EQUATIONS, ids=lambda c: c[0])
def test_einsum_is_numpys(case):
    equation, *shapes = case
    operands = arrays(shapes)
    tensors = [tg.tensor(x, requires_grad=True) for x in operands]
    result = tg.einsum(equation, *tensors)
    expected = np.einsum(equation, *operands)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result.detach().numpy(), expected, atol=1e-12)
    weights = RNG.standard_normal(result.shape)
    result.backward(tg.tensor(weights))
    for t, e in zip(tensors, differences(lambda *x: np.einsum(equation, *x), operands, weights)):
        np.testing.assert_allclose(t.grad.numpy(), e, atol=1e-7)


def test_einsum_with_lists_of_indices():
    a, b = arrays([(2, 3), (3, 4)])
    for arguments in ([[0, 1], [1, 2]], [[0, 1], [1, 2], [2, 0]]):
        found = tg.einsum(tg.tensor(a), arguments[0], tg.tensor(b), *arguments[1:])
        expected = np.einsum(a, arguments[0], b, *arguments[1:])
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_chains_take_the_cheapest_order():
    assert contraction._chain_order([10, 100, 5, 50])[0][2] == 1
    assert contraction._chain_order([100, 5, 50, 1])[0][2] == 0


NAMES = [
    ("a(2,3) @ a(3,4)", "MmBackward0"),
    ("a(2,3) @ a(3)", "MvBackward0"),
    ("a(3) @ a(3)", "DotBackward0"),
    ("a(3) @ a(3,4)", "SqueezeBackward4"),
    ("a(5,2,3) @ a(5,3,4)", "UnsafeViewBackward0"),
    ("tg.bmm(a(5,2,3), a(5,3,4))", "BmmBackward0"),
    ("tg.addmm(a(4), a(2,3), a(3,4))", "AddmmBackward0"),
    ("tg.addmv(a(2), a(2,3), a(3))", "AddmvBackward0"),
    ("tg.baddbmm(a(4), a(5,2,3), a(5,3,4))", "BaddbmmBackward0"),
    ("tg.outer(a(2), a(3))", "MulBackward0"),
    ("tg.trace(a(2,2))", "TraceBackward0"),
    ("tg.cross(a(2,3), a(2,3))", "LinalgCrossBackward0"),
    ("linear(a(2,3), a(4,3), a(4))", "AddmmBackward0"),
    ("linear(a(2,3), a(4,3))", "MmBackward0"),
    ("linear(a(5,2,3), a(4,3), a(4))", "ViewBackward0"),
]


@pytest.mark.parametrize(("expression", "name"), NAMES, ids=[e for e, _ in NAMES])
def test_name_of_the_gradient_function(expression, name):
    names = {"tg": tg, "linear": linalg.linear, "a": lambda *shape: tg.ones(shape, requires_grad=True)}
    assert eval(expression, names).grad_fn.name() == name


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
        import numpy as np, tapegrad as tg
        from tapegrad.engine import kernels
        x = np.arange(2500.0).reshape(50, 50)
        a = tg.tensor(x, requires_grad=True)
        result = a @ a.T
        result.sum().backward()
        assert np.allclose(result.detach().numpy(), x @ x.T)
        assert np.allclose(a.grad.numpy(), 2 * np.ones((50, 50)) @ x)
        print(kernels.counts["compiled"])
    """
    environment = os.environ | {"TAPEGRAD_CACHE_DIR": str(tmp_path)}
    for expected_compilation in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (int(done.stdout) > 0) is expected_compilation


def test_scipy_linalg_is_intact_after_binding():
    program = """
        import tapegrad as tg
        tg.ones(2, 2) @ tg.ones(2, 2)
        import scipy.linalg
        import scipy.linalg.cython_blas
        assert scipy.linalg.cython_blas.__pyx_capi__
        assert scipy.linalg.blas.ddot([1.0], [2.0]) == 2.0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True)
