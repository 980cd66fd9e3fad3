"""Tensor.backward(): what is accumulated where, what is refused, and with which words."""

import gc
import random

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import leaf, raises, same, vals

NAME = tg.__name__
FREED = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have "
    "already been freed). Saved intermediate values of the graph are freed when you call .backward() or "
    "autograd.grad(). Specify retain_graph=True if you need to backward through the graph a second time or "
    "if you need to access saved tensors after calling backward."
)
NO_GRAD_FN = "element 0 of tensors does not require grad and does not have a grad_fn"


# ---- accumulation ----


def test_two_backwards_accumulate():
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    (x * x).sum().backward()
    same(x.grad, [5.0, 7.0])
    assert x.grad.requires_grad is False
    assert x.grad.grad_fn is None


def test_accumulation_is_in_place():
    x = leaf([1.0, 2.0])
    x.sum().backward()
    g = x.grad
    x.sum().backward()
    assert x.grad is g
    same(g, [2.0, 2.0])


def test_grad_set_to_none_starts_again():
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    old = x.grad
    x.grad = None
    assert x.grad is None
    x.sum().backward()
    assert x.grad is not old
    same(x.grad, [1.0, 1.0])
    same(old, [3.0, 3.0])


def test_assigned_grad_is_added_to_in_place():
    x = leaf([1.0, 2.0])
    g = tg.tensor([10.0, 20.0], dtype=tg.float64)
    x.grad = g
    assert x.grad is g
    x.sum().backward()
    same(g, [11.0, 21.0])


def test_gradients_of_two_leaves_do_not_alias():
    a, b = leaf([1.0]), leaf([2.0])
    (a + b).sum().backward()
    a.grad.zero_()
    same(b.grad, [1.0])


def test_grad_does_not_alias_the_gradient_argument():
    x = leaf([1.0, 2.0])
    g = tg.ones(2, dtype=tg.float64)
    x.clone().backward(g)
    g.fill_(7)
    same(x.grad, [1.0, 1.0])


# ---- gradient= ----


def test_gradient_argument_weights_the_rows():
    x = leaf([1.0, 2.0, 3.0])
    (x * x).backward(tg.tensor([1.0, 10.0, 100.0], dtype=tg.float64))
    same(x.grad, [2.0, 40.0, 600.0])


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
def test_one_element_needs_no_gradient(shape):
    x = leaf(np.full(shape, 2.0))
    (x * x).backward()
    same(x.grad, np.full(shape, 4.0))


@pytest.mark.parametrize("values", [[1.0, 2.0], []])
def test_other_than_one_element_needs_a_gradient(values):
    x = leaf(values)
    with raises("grad can be implicitly created only for scalar outputs"):
        (x * 2).backward()
    assert x.grad is None


@pytest.mark.parametrize(
    ("grad_shape", "out_shape"), [((2,), (2, 2)), ((), (2,)), ((1,), ()), ((2, 1), (2, 2)), ((4,), (2, 2))]
)
def test_gradient_of_another_shape_is_refused(grad_shape, out_shape):
    x = leaf(np.ones(out_shape))
    y = x * 2
    size = f"{NAME}.Size"
    with raises(
        f"Mismatch in shape: grad_output[0] has a shape of {size}({list(grad_shape)}) "
        f"and output[0] has a shape of {size}({list(out_shape)})."
    ):
        y.backward(tg.ones(grad_shape, dtype=tg.float64))
    assert x.grad is None
    y.backward(tg.ones(out_shape, dtype=tg.float64))
    same(x.grad, np.full(out_shape, 2.0))


def test_gradient_must_be_a_tensor():
    x = leaf([1.0, 2.0])
    with raises("gradients can be either Tensors or None, but got int", TypeError):
        tg.autograd.backward([x * 2], [3])
    with pytest.raises(TypeError):
        (x * 2).backward(1.0)


@pytest.mark.parametrize("dtype", [tg.float32, tg.int64])
def test_gradient_of_another_dtype_is_cast(dtype):
    x = leaf([1.0, 2.0])
    (x * 2).backward(tg.tensor([1, 3], dtype=dtype))
    assert x.grad.dtype == tg.float64
    same(x.grad, [2.0, 6.0])


# ---- a second backward ----


def test_second_backward_through_saved_values_raises():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward()
    with raises(FREED):
        y.backward()
    with raises(FREED):
        (y + 1).backward()
    same(x.grad, [2.0, 4.0])


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: x.sum(), 2.0),
        (lambda x: (x + x).sum(), 4.0),
        (lambda x: x.t().reshape(2, 1)[1, 0], [0.0, 2.0]),
    ],
    ids=["sum", "add", "views"],
)
def test_second_backward_with_nothing_saved_is_allowed(f, expected):
    x = leaf([1.0, 2.0])
    y = f(x)
    y.backward()
    y.backward()
    same(x.grad, np.broadcast_to(expected, (2,)))


def test_retain_graph_keeps_the_graph():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    same(x.grad, [6.0, 12.0])
    with raises(FREED):
        y.backward()


def test_an_untouched_part_is_not_freed():
    x = leaf([1.0, 2.0])
    (x * x).sum().backward()
    other = (x * x * x).sum()
    (x * x).sum().backward()
    other.backward()
    same(x.grad, [2 + 2 + 3, 4 + 4 + 12])


# ---- what gets a grad ----


def test_grad_of_a_non_leaf_is_none_and_warns():
    y = leaf([1.0]) * 2
    y.sum().backward()
    with pytest.warns(UserWarning, match=r"\.grad attribute of a Tensor that is not a leaf Tensor"):
        assert y.grad is None


def test_retain_grad_accumulates_the_grad_of_a_non_leaf():
    x = leaf([1.0, 2.0])
    y = x * 2
    y.retain_grad()
    assert y.retains_grad
    (y * y).sum().backward(retain_graph=True)
    same(y.grad, [4.0, 8.0])
    y.sum().backward()
    same(y.grad, [5.0, 9.0])
    same(x.grad, [10.0, 18.0])


def test_retain_grad_on_a_leaf_changes_nothing():
    x = leaf([1.0])
    x.retain_grad()
    assert x.retains_grad is False
    x.sum().backward()
    same(x.grad, [1.0])


def test_retain_grad_needs_requires_grad():
    with raises("can't retain_grad on Tensor that has requires_grad=False"):
        tg.ones(1).retain_grad()


def test_unused_leaf_and_leaf_without_requires_grad_keep_none():
    x, c = leaf([1.0, 2.0]), tg.tensor([3.0, 4.0], dtype=tg.float64)
    unused = leaf([1.0])
    _ = unused * 2
    (x * c).sum().backward()
    same(x.grad, [3.0, 4.0])
    assert c.grad is None
    assert unused.grad is None


def test_partly_used_leaf_has_zeros_elsewhere():
    x = leaf([1.0, 2.0, 3.0])
    (x[1] * 5).backward()
    same(x.grad, [0.0, 5.0, 0.0])


# ---- shapes of graphs ----


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: x * x, 6.0),
        (lambda x: x + x, 2.0),
        (lambda x: x - x, 0.0),
        (lambda x: x / x, 0.0),
        (lambda x: x**x, 27.0 * (1 + np.log(3.0))),
        (lambda x: tg.maximum(x, x), 1.0),
        (lambda x: tg.cat([x.reshape(1), x.reshape(1)]).sum(), 2.0),
        (lambda x: (x * 3) * (x * x), 81.0),
        (lambda x: x * x.detach(), 3.0),
        (lambda x: x.clone() * 1.5 * 1.5 * 1.5 + x, 4.375),
    ],
    ids=["mul", "add", "sub", "div", "pow", "maximum", "cat", "diamond", "detach", "long and short path"],
)
def test_same_operand_twice(f, expected):
    x = leaf(3.0)
    f(x).backward()
    np.testing.assert_allclose(vals(x.grad), expected, rtol=1e-12, atol=1e-12)


def test_ladder_of_diamonds_is_linear_work():
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    same(x.grad, 2.0**60)


def test_shared_subgraph_of_two_roots():
    x = leaf(2.0)
    h = x * x
    h.mul(3).backward(retain_graph=True)
    (h * h).backward()
    same(x.grad, 3 * 4 + 4 * 8)


@pytest.mark.parametrize("dropped", [False, True])
def test_deep_chain(dropped):
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y + 1
    if dropped:
        y = x * 20_001
    y.backward()
    same(y, 20_001.0)
    same(x.grad, 20_001.0 if dropped else 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_handles_dropped_in_any_order(seed):
    x = leaf([1.0, 2.0])
    handles = [x * 1]
    for k in range(1, 40):
        handles.append(handles[k - 1] + handles[k // 2] * 0.5)
    expected = [1.0]
    for k in range(1, 40):
        expected.append(expected[k - 1] + expected[k // 2] * 0.5)
    root = handles.pop()
    random.Random(seed).shuffle(handles)
    while handles:
        handles.pop()
        gc.collect(0)
    root.sum().backward()
    same(x.grad, [expected[-1]] * 2)


# ---- nothing to differentiate ----


@pytest.mark.parametrize(
    "f",
    [
        lambda x: tg.ones(()),
        lambda x: (x * x).sum().detach(),
        lambda x: x.long().sum(),
        lambda x: x.argmax(),
        lambda x: (x > 1).sum(),
    ],
    ids=["constant", "detached", "integer", "argmax", "count"],
)
def test_nothing_requires_grad(f):
    y = f(leaf([1.0, 2.0]))
    assert y.requires_grad is False
    with raises(NO_GRAD_FN):
        y.backward()


# ---- shapes and dtypes of gradients ----


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_zero_size_tensors(shape):
    x = leaf(np.ones(shape))
    (x * x).sum().backward()
    assert x.grad.shape == shape
    (x * 2).backward(tg.ones(shape, dtype=tg.float64))
    assert x.grad.shape == shape


@pytest.mark.parametrize("dtype", [tg.float32, tg.float64])
def test_gradient_has_the_dtype_of_its_leaf(dtype):
    x, other = leaf([1.0, 2.0], dtype), leaf([3.0, 4.0], tg.float64)
    (x * other).sum().backward()
    assert x.grad.dtype == dtype
    assert other.grad.dtype == tg.float64
    same(x.grad, [3.0, 4.0])
    same(other.grad, [1.0, 2.0])


def test_gradient_of_a_broadcast_leaf_is_summed():
    x, row, one = leaf(np.ones((2, 3))), leaf([1.0, 2.0, 3.0]), leaf(np.full((2, 1), 5.0))
    (x * row * one).sum().backward()
    same(row.grad, [10.0, 10.0, 10.0])
    same(one.grad, [[6.0], [6.0]])


# ---- assigning .grad ----


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (lambda x: tg.ones(3, dtype=tg.float64), RuntimeError, r"size '\[3\]' to a tensor of size '\[2\]'"),
        (lambda x: tg.ones(2, dtype=tg.float32), RuntimeError, "dtype"),
        (lambda x: 1.0, TypeError, "Tensor or None.*float"),
        (lambda x: np.ones(2), TypeError, "Tensor or None"),
        (lambda x: x, RuntimeError, "its own grad"),
    ],
    ids=["shape", "dtype", "float", "array", "itself"],
)
def test_assigning_a_bad_grad_is_refused(value, kind, message):
    x = leaf([1.0, 2.0])
    x.grad = tg.ones(2, dtype=tg.float64)
    with pytest.raises(kind, match=message):
        x.grad = value(x)
    same(x.grad, [1.0, 1.0])
    x.sum().backward()
    same(x.grad, [2.0, 2.0])


def test_an_empty_tensor_is_written_in_place():
    x = tg.zeros(3, 0)
    x.add_(tg.ones(3, 0))
    assert x.shape == (3, 0)
