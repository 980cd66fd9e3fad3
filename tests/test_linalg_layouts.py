"""Matrix products and layers of operands in any memory layout and of any shapes that broadcast."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.ops import affine
from tests.helpers import RNG, arrays, unbroadcast

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
        np.testing.assert_allclose(leaf.grad.numpy(), 2 * unbroadcast(part, leaf.shape), atol=1e-10)


def test_expanded_operands_are_copied():
    row = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    rows = row.expand(40, 3)
    y = arrays([(3, 50)], "float32")[0]
    result = rows @ tg.tensor(y)
    np.testing.assert_allclose(result.detach().numpy(), np.broadcast_to([1, 2, 3], (40, 3)) @ y, rtol=1e-5)
    result.sum().backward()
    np.testing.assert_allclose(row.grad.numpy(), 40 * y.sum(1), rtol=1e-4, atol=1e-3)  # sums may cancel


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


@pytest.mark.parametrize("x_shape", [(6, 5), (2, 3, 5), (5,), (2, 0, 5), (64, 300)])
@pytest.mark.parametrize("n", [4, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linear_layer(x_shape, n, dtype):
    x, w, b = arrays([x_shape, (n, x_shape[-1]), (n,)], dtype)
    tensors = [tg.tensor(v, requires_grad=True) for v in (x, w, b)]
    result = affine.linear(*tensors)
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
    result = affine.linear(t.transpose(0, 1)[::2], v.T)
    np.testing.assert_allclose(result.detach().numpy(), x.swapaxes(0, 1)[::2] @ w.T, atol=1e-12)
    result.sum().backward()
    expected = np.zeros_like(x)
    expected[:, ::2] = w.sum(0)
    np.testing.assert_allclose(t.grad.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(v.grad.numpy(), np.repeat(x[:, ::2].sum((0, 1))[:, None], 4, 1), atol=1e-12)
