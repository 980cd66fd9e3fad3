"""autograd.grad and autograd.backward: gradients returned, not accumulated."""

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import const, leaf, raises, same

NAME = tg.__name__
grad = tg.autograd.grad


def unused_message(index):
    # PyTorch 2.13 names the index; the contract here is the wording without it.
    named = NAME == "torch"
    who = f"The differentiated Tensor at index {index}" if named else "One of the differentiated Tensors"
    return f"{who} appears to not have been used in the graph. Set allow_unused=True if this is the desired behavior."


# ---- results ----


def test_result_is_a_tuple_even_for_one_input():
    x = leaf([1.0, 2.0])
    result = grad((x * x).sum(), x)
    assert type(result) is tuple
    assert len(result) == 1
    same(result[0], [2.0, 4.0])


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_inputs_keep_their_order(kind):
    a, b = leaf(2.0), leaf(5.0)
    gb, ga = grad(a * a * b, kind([b, a]))
    same(gb, 4.0)
    same(ga, 20.0)


def test_leaves_keep_their_grad():
    x, other = leaf([1.0, 2.0]), leaf([1.0, 1.0])
    x.grad = const([7.0, 7.0])
    grad((x * other).sum(), x)
    same(x.grad, [7.0, 7.0])
    assert other.grad is None


def test_result_does_not_require_grad():
    x = leaf([1.0, 2.0])
    (g,) = grad((x * x * x).sum(), x)
    assert g.requires_grad is False
    assert g.grad_fn is None


@pytest.mark.parametrize("dtype", [tg.float32, tg.float64])
def test_result_has_the_dtype_of_its_input(dtype):
    x = leaf([1.0, 2.0], dtype)
    (g,) = grad((x * const([3.0, 4.0])).sum(), x)
    assert g.dtype == dtype
    same(g, [3.0, 4.0])


def test_same_input_listed_twice():
    x, y = leaf(3.0), leaf(4.0)
    g1, gy, g2 = grad(x * x * y, [x, y, x])
    same(g1, 24.0)
    same(gy, 9.0)
    same(g2, 24.0)


def test_input_is_the_output():
    x = leaf([1.0, 2.0])
    (g,) = grad(x, x, const([3.0, 4.0]))
    same(g, [3.0, 4.0])
    y = x * 2
    (g,) = grad(y, y, const([5.0, 6.0]))
    same(g, [5.0, 6.0])


# ---- inputs that are intermediates ----


def test_intermediate_input():
    x = leaf([1.0, 2.0])
    h = x * x
    (g,) = grad((h * h).sum(), h)
    same(g, [2.0, 8.0])


def test_intermediate_input_sums_all_its_uses():
    x = leaf(2.0)
    h = x * 3
    (g,) = grad(h * h + h * x, h)
    same(g, 2 * 6 + 2)


def test_intermediate_and_its_leaf():
    x = leaf(2.0)
    h = x * x
    gh, gx = grad(h * x, [h, x])
    same(gh, 2.0)
    same(gx, 12.0)


def test_nested_intermediates():
    x = leaf(2.0)
    a = x * 3
    b = a * a
    c = b.exp()
    gb, ga = grad(c, [b, a])
    same(gb, np.exp(36.0))
    same(ga, 12 * np.exp(36.0))


def test_only_the_needed_part_is_walked():
    x = leaf([1.0, 2.0])
    h = x * x
    (g,) = grad((h * h).sum(), h)
    same(g, [2.0, 8.0])
    h.sum().backward()  # h's own saved operands were not consumed
    same(x.grad, [2.0, 4.0])


# ---- unused inputs ----


def test_unused_input_is_an_error():
    x, unused = leaf(2.0), leaf(1.0)
    with raises(unused_message(1)):
        grad(x * x, [x, unused])
    with raises(unused_message(0)):
        grad(x * x, unused)


def test_unused_error_leaves_no_grad_behind():
    x, unused = leaf(2.0), leaf(1.0)
    with pytest.raises(RuntimeError):
        grad(x * x, [x, unused])
    assert x.grad is None
    (x * x).backward()
    same(x.grad, 4.0)


def test_allow_unused_gives_none():
    x, unused = leaf(2.0), leaf(1.0)
    gx, gu = grad(x * x, [x, unused], allow_unused=True)
    same(gx, 4.0)
    assert gu is None


def test_materialize_grads_gives_zeros():
    x, unused = leaf(2.0), leaf([[1.0, 2.0]], tg.float32)
    gx, gu = grad(x * x, [x, unused], materialize_grads=True)
    same(gx, 4.0)
    assert gu.shape == (1, 2)
    assert gu.dtype == tg.float32
    same(gu, [[0.0, 0.0]])


def test_materialize_grads_against_allow_unused_false():
    x = leaf(2.0)
    with pytest.raises(ValueError, match=r"allow_unused.*materialize_grads"):
        grad(x * x, [x], allow_unused=False, materialize_grads=True)


def test_input_computed_after_the_output_is_unused():
    x = leaf(2.0)
    y = x * x
    later = y * 3
    assert grad(y, [later], allow_unused=True) == (None,)


def test_input_that_does_not_require_grad():
    x, c = leaf(2.0), const(1.0)
    for allow in (False, True):
        with raises("One of the differentiated Tensors does not require grad"):
            grad(x * c, [c], allow_unused=allow)


def test_no_inputs():
    with pytest.raises(RuntimeError, match=r"`inputs` argument to `grad\(\)` cannot be empty"):
        grad(leaf(2.0) * 2, [])


# ---- outputs and grad_outputs ----


def test_several_outputs_are_summed():
    x = leaf([1.0, 2.0])
    (g,) = grad([(x * 2).sum(), (x * x).sum()], x)
    same(g, [4.0, 6.0])


def test_grad_outputs_weight_each_output():
    x = leaf([1.0, 2.0])
    (g,) = grad([x * 2, (x * x).sum()], x, [const([1.0, 10.0]), const(100.0)])
    same(g, [2 + 200.0, 20 + 400.0])


def test_none_in_grad_outputs_means_one_for_a_scalar():
    x = leaf([1.0, 2.0])
    (g,) = grad([x.sum(), x * x], [x], [None, const([1.0, 10.0])])
    same(g, [3.0, 41.0])


def test_single_grad_outputs_need_no_list():
    x = leaf([1.0, 2.0])
    (g,) = grad(x * x, x, grad_outputs=const([1.0, 10.0]))
    same(g, [2.0, 40.0])


def test_same_output_twice_counts_twice():
    x = leaf(3.0)
    y = x * x
    (g,) = grad([y, y], x)
    same(g, 12.0)


def test_output_that_is_also_part_of_another_output():
    x = leaf(3.0)
    h = x * x
    (g,) = grad([h, h * x], x)
    same(g, 6 + 27.0)


def test_grad_outputs_are_cast_to_the_output():
    x = leaf([1.0, 2.0], tg.float32)
    (g,) = grad(x * 2, x, const([1.0, 3.0]))
    assert g.dtype == tg.float32
    same(g, [2.0, 6.0])


@pytest.mark.parametrize(
    ("grad_outputs", "kind", "message"),
    [
        (None, RuntimeError, "grad can be implicitly created only for scalar outputs"),
        ([3.0], TypeError, "gradients can be either Tensors or None, but got float"),
        ([[1.0, 1.0]], TypeError, "gradients can be either Tensors or None, but got list"),
        (
            [tg.ones(3, dtype=tg.float64)],
            RuntimeError,
            f"Mismatch in shape: grad_output[0] has a shape of {NAME}.Size([3]) "
            f"and output[0] has a shape of {NAME}.Size([2]).",
        ),
    ],
    ids=["none", "float", "list", "shape"],
)
def test_bad_grad_outputs_are_refused(grad_outputs, kind, message):
    x = leaf([1.0, 2.0])
    y = x * x
    with raises(message, kind):
        grad(y, [x], grad_outputs)
    (g,) = grad(y, [x], const([1.0, 1.0]))  # the graph is still whole
    same(g, [2.0, 4.0])


def test_mismatch_names_the_second_output():
    x = leaf([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"grad_output\[1\].*\[3\].*output\[1\].*\[1\]"):
        grad([x.sum(), x[:1] * 2], x, [None, const([1.0, 1.0, 1.0])])


def test_output_without_graph():
    x = leaf(2.0)
    with raises("element 0 of tensors does not require grad and does not have a grad_fn"):
        grad(const(1.0) * 2, x)
    with raises("element 1 of tensors does not require grad and does not have a grad_fn"):
        grad([x * 2, const(1.0)], x)


# ---- retain_graph ----


def test_grad_frees_the_graph():
    x = leaf(3.0)
    y = x * x
    grad(y, x)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        grad(y, x)


def test_grad_with_retain_graph():
    x = leaf(3.0)
    y = x * x
    grad(y, x, retain_graph=True)
    (g,) = grad(y, x)
    same(g, 6.0)


# ---- autograd.backward, inputs= ----


def test_autograd_backward_on_one_tensor():
    x = leaf([1.0, 2.0])
    tg.autograd.backward((x * x).sum())
    same(x.grad, [2.0, 4.0])


def test_autograd_backward_on_many_roots():
    x = leaf([1.0, 2.0])
    tg.autograd.backward([(x * k).sum() for k in range(50)])
    same(x.grad, [1225.0, 1225.0])


def test_autograd_backward_with_gradients():
    x = leaf([1.0, 2.0])
    tg.autograd.backward([x.sum(), x * x], [None, const([1.0, 10.0])])
    same(x.grad, [3.0, 41.0])


def test_autograd_backward_needs_as_many_gradients():
    x = leaf([1.0, 2.0])
    with pytest.raises(RuntimeError, match="got 2 tensors and 1 gradients"):
        tg.autograd.backward([x * 1, x * 2], [const([1.0, 1.0])])
    assert x.grad is None


@pytest.mark.parametrize("listed", [True, False])
def test_backward_with_inputs_touches_only_those(listed):
    a, b = leaf(2.0), leaf(5.0)
    (a * b).backward(inputs=[a] if listed else a)
    same(a.grad, 5.0)
    assert b.grad is None


def test_backward_with_inputs_accumulates():
    a = leaf(2.0)
    a.grad = const(100.0)
    tg.autograd.backward(a * a, inputs=[a])
    same(a.grad, 104.0)


def test_backward_with_an_intermediate_input_sets_its_grad():
    x = leaf(2.0)
    h = x * x
    (h * h).backward(inputs=[h])
    same(h.grad, 8.0)
    assert x.grad is None


def test_backward_with_no_inputs_is_refused():
    x = leaf(2.0)
    with pytest.raises(RuntimeError, match=r"`inputs` argument to `backward\(\)` cannot be empty"):
        (x * x).backward(inputs=[])
    assert x.grad is None
