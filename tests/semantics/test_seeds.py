"""Every snippet of the five autograd tutorials, in order, printing what the tutorial prints."""

import io
import math
import re
from contextlib import redirect_stdout

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import vals

F = tg.nn.functional


def printed(*args):
    out = io.StringIO()
    with redirect_stdout(out):
        print(*args)
    return out.getvalue()


def bce_gradients(x, y, w, b):
    """Gradients of the mean binary cross-entropy of x @ w + b, by hand."""
    z = vals(x).astype(np.float64) @ vals(w).astype(np.float64) + vals(b)
    gz = (1 / (1 + np.exp(-z)) - vals(y)) / z.size
    return np.outer(vals(x), gz), gz


def one_layer():
    x = tg.ones(5)
    y = tg.zeros(3)
    w = tg.randn(5, 3, requires_grad=True)
    b = tg.randn(3, requires_grad=True)
    z = tg.matmul(x, w) + b
    loss = F.binary_cross_entropy_with_logits(z, y)
    return x, y, w, b, z, loss


# ---- the one-layer network (first, second and fourth tutorial) ----


def test_one_layer_loss_is_the_mean_of_softplus():
    *_, z, loss = one_layer()
    assert z.shape == (3,)
    assert loss.shape == ()
    np.testing.assert_allclose(vals(loss), np.log1p(np.exp(vals(z))).mean(), rtol=1e-5)


def test_one_layer_grad_fn_is_printed():
    *_, z, loss = one_layer()
    assert re.fullmatch(
        r"Gradient function for z = <AddBackward0 object at 0x[0-9a-fA-F]+>\n",
        printed("Gradient function for z =", z.grad_fn),
    )
    assert re.fullmatch(
        r"Gradient function for loss = <BinaryCrossEntropyWithLogitsBackward0 object at 0x[0-9a-fA-F]+>",
        f"Gradient function for loss = {loss.grad_fn}",
    )


def test_one_layer_gradients():
    x, y, w, b, _, loss = one_layer()
    loss.backward()
    gw, gb = bce_gradients(x, y, w, b)
    np.testing.assert_allclose(vals(w.grad), gw, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(vals(b.grad), gb, rtol=1e-5, atol=1e-7)
    assert all((row == vals(b.grad)).all() for row in vals(w.grad))


def test_one_layer_gradient_lines_up_when_printed():
    w = tg.tensor([[0.3233, 0.1993, 0.1272]] * 5)
    assert printed(w) == (
        "tensor([[0.3233, 0.1993, 0.1272],\n"
        "        [0.3233, 0.1993, 0.1272],\n"
        "        [0.3233, 0.1993, 0.1272],\n"
        "        [0.3233, 0.1993, 0.1272],\n"
        "        [0.3233, 0.1993, 0.1272]])\n"
    )
    assert printed(tg.tensor([0.0038, 0.0018, 0.0311])) == "tensor([0.0038, 0.0018, 0.0311])\n"


def test_one_layer_disabling_gradient_tracking():
    x, _, w, b, *_ = one_layer()
    z = tg.matmul(x, w) + b
    assert printed(z.requires_grad) == "True\n"
    with tg.no_grad():
        z = tg.matmul(x, w) + b
    assert printed(z.requires_grad) == "False\n"
    z = tg.matmul(x, w) + b
    z_det = z.detach()
    assert printed(z_det.requires_grad) == "False\n"
    np.testing.assert_array_equal(vals(z_det), vals(z))


# ---- "Autograd: Automatic Differentiation" (third tutorial) ----


def test_autograd_tutorial_first_operations():
    x = tg.ones(2, 2)
    assert x.requires_grad is False
    x = tg.ones(2, 2, requires_grad=True)
    assert repr(x) == "tensor([[1., 1.],\n        [1., 1.]], requires_grad=True)"
    y = x + 2.0
    assert repr(y) == "tensor([[3., 3.],\n        [3., 3.]], grad_fn=<AddBackward0>)"
    assert re.fullmatch(r"<AddBackward0 object at 0x[0-9a-fA-F]+>", repr(y.grad_fn))
    z = y * y * 3
    out = z.mean()
    assert repr(z) == "tensor([[27., 27.],\n        [27., 27.]], grad_fn=<MulBackward0>)"
    assert repr(out) == "tensor(27., grad_fn=<MeanBackward0>)"


def test_autograd_tutorial_requires_grad_():
    a = tg.randn(2, 2)
    before = vals(a).copy()
    a = (a * 3) / (a - 1)
    np.testing.assert_allclose(vals(a), before * 3 / (before - 1), rtol=1e-4)
    assert printed(f"a.requires_grad = {a.requires_grad}") == "a.requires_grad = False\n"
    a.requires_grad_(True)
    assert printed(f"a.requires_grad = {a.requires_grad}") == "a.requires_grad = True\n"
    b = (a * a).sum()
    np.testing.assert_allclose(vals(b), (vals(a).astype(np.float64) ** 2).sum(), rtol=1e-5)
    assert repr(b).endswith(", grad_fn=<SumBackward0>)")
    assert re.fullmatch(r"<SumBackward0 object at 0x[0-9a-fA-F]+>", repr(b.grad_fn))


def test_autograd_tutorial_printed_columns():
    a = tg.tensor([[-0.1872, -0.3778], [0.9566, -0.0559]])
    assert repr(a) == "tensor([[-0.1872, -0.3778],\n        [ 0.9566, -0.0559]])"
    a = tg.tensor([[0.4731, 0.8227], [-66.0768, 0.1589]])
    assert repr(a) == "tensor([[  0.4731,   0.8227],\n        [-66.0768,   0.1589]])"
    assert repr(tg.tensor(4367.0708)) == "tensor(4367.0708)"


def test_autograd_tutorial_backward():
    x = tg.ones(2, 2, requires_grad=True)
    y = x + 2.0
    z = y * y * 3
    out = z.mean()
    out.backward(gradient=tg.tensor(1.0))
    assert repr(x.grad) == "tensor([[4.5000, 4.5000],\n        [4.5000, 4.5000]])"


@pytest.mark.filterwarnings("ignore")
def test_autograd_tutorial_intermediates_have_no_grad():
    x = tg.ones(2, 2, requires_grad=True)
    y = x + 2.0
    z = y * y * 3
    z.mean().backward()
    assert y.grad is None
    assert z.grad is None


def test_autograd_tutorial_second_backward_raises():
    x = tg.ones(2, 2, requires_grad=True)
    y = x + 2.0
    out = (y * y * 3).mean()
    out.backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        out.backward()


# ---- Jacobian products (fourth tutorial) ----


def eye_print(diagonal, other):
    rows = [", ".join(f"{diagonal if i == j else other}." for j in range(5)) for i in range(4)]
    return "tensor([[" + "],\n        [".join(rows) + "]])"


def test_jacobian_product_three_calls():
    inp = tg.eye(4, 5, requires_grad=True)
    out = (inp + 1).pow(2).t()
    out.backward(tg.ones_like(out), retain_graph=True)
    assert f"First call\n{inp.grad}" == (
        "First call\n"
        "tensor([[4., 2., 2., 2., 2.],\n"
        "        [2., 4., 2., 2., 2.],\n"
        "        [2., 2., 4., 2., 2.],\n"
        "        [2., 2., 2., 4., 2.]])"
    )
    out.backward(tg.ones_like(out), retain_graph=True)
    assert f"\nSecond call\n{inp.grad}" == "\nSecond call\n" + eye_print(8, 4)
    inp.grad.zero_()
    out.backward(tg.ones_like(out), retain_graph=True)
    assert f"\nCall after zeroing gradients\n{inp.grad}" == ("\nCall after zeroing gradients\n" + eye_print(4, 2))


def test_jacobian_product_output_is_transposed():
    out = (tg.eye(4, 5, requires_grad=True) + 1).pow(2).t()
    assert out.shape == (5, 4)
    assert re.fullmatch(r"<TBackward0 object at 0x[0-9a-fA-F]+>", str(out.grad_fn))
    np.testing.assert_array_equal(vals(out), (np.eye(5, 4) + 1) ** 2)


# ---- worked examples (fifth tutorial) ----


def test_example_1_square():
    assert 2 * 3 == 6  # dy_dx(3) by hand
    x = tg.tensor(3.0, requires_grad=True)
    assert repr(x) == "tensor(3., requires_grad=True)"
    y = x**2
    assert repr(y) == "tensor(9., grad_fn=<PowBackward0>)"
    y.backward()
    assert repr(y) == "tensor(9., grad_fn=<PowBackward0>)"
    assert repr(x.grad) == "tensor(6.)"


def test_example_2_sine_of_square():
    by_hand = 2 * 4 * math.cos(4**2)
    assert by_hand == pytest.approx(-7.661275842587077, abs=1e-14)
    x = tg.tensor(4.0, requires_grad=True)
    assert repr(x) == "tensor(4., requires_grad=True)"
    y = x**2
    assert repr(y) == "tensor(16., grad_fn=<PowBackward0>)"
    z = tg.sin(y)
    assert repr(z) == "tensor(-0.2879, grad_fn=<SinBackward0>)"
    z.backward()
    assert repr(z) == "tensor(-0.2879, grad_fn=<SinBackward0>)"
    assert repr(x.grad) == "tensor(-7.6613)"
    assert x.grad.item() == pytest.approx(by_hand, rel=1e-6)


def binary_cross_entropy_loss(prediction, target):
    epsilon = 1e-8
    prediction = tg.clamp(prediction, epsilon, 1 - epsilon)
    return -(target * tg.log(prediction) + (1 - target) * tg.log(1 - prediction))


def test_example_3_manual_gradients():
    x = tg.tensor(6.7)
    y = tg.tensor(0.0)
    w = tg.tensor(1.0)
    b = tg.tensor(0.0)
    z = w * x + b
    y_pred = tg.sigmoid(z)
    loss = binary_cross_entropy_loss(y_pred, y)
    assert repr(loss) == "tensor(6.7012)"
    dloss_dy_pred = (y_pred - y) / (y_pred * (1 - y_pred))
    dy_pred_dz = y_pred * (1 - y_pred)
    dz_dw = x
    dz_db = 1
    dL_dw = dloss_dy_pred * dy_pred_dz * dz_dw
    dL_db = dloss_dy_pred * dy_pred_dz * dz_db
    assert f"Manual Gradient of loss w.r.t weight (dw): {dL_dw}" == (
        "Manual Gradient of loss w.r.t weight (dw): 6.691762447357178"
    )
    assert f"Manual Gradient of loss w.r.t bias (db): {dL_db}" == (
        "Manual Gradient of loss w.r.t bias (db): 0.998770534992218"
    )


def test_example_3_autograd():
    x = tg.tensor(6.7)
    y = tg.tensor(0.0)
    assert printed(x) + printed(y) == "tensor(6.7000)\ntensor(0.)\n"
    w = tg.tensor(1.0, requires_grad=True)
    b = tg.tensor(0.0, requires_grad=True)
    assert printed(w) == "tensor(1., requires_grad=True)\n"
    assert printed(b) == "tensor(0., requires_grad=True)\n"
    z = w * x + b
    assert repr(z) == "tensor(6.7000, grad_fn=<AddBackward0>)"
    y_pred = tg.sigmoid(z)
    assert repr(y_pred) == "tensor(0.9988, grad_fn=<SigmoidBackward0>)"
    loss = binary_cross_entropy_loss(y_pred, y)
    assert repr(loss) == "tensor(6.7012, grad_fn=<NegBackward0>)"
    loss.backward()
    assert f"By using autograd function (dw): {w.grad}" == ("By using autograd function (dw): 6.6917619705200195")
    assert f"By using autograd function (db): {b.grad}" == ("By using autograd function (db): 0.9987704753875732")


def test_example_4_vector_input():
    x = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    assert repr(x) == "tensor([1., 2., 3.], requires_grad=True)"
    y = (x**2).mean()
    assert repr(y) == "tensor(4.6667, grad_fn=<MeanBackward0>)"
    y.backward()
    assert repr(x.grad) == "tensor([0.6667, 1.3333, 2.0000])"


def test_clearing_gradients():
    x = tg.tensor(2.0, requires_grad=True)
    assert repr(x) == "tensor(2., requires_grad=True)"
    y = x**2
    assert repr(y) == "tensor(4., grad_fn=<PowBackward0>)"
    y.backward()
    assert repr(x.grad) == "tensor(4.)"
    assert repr(x.grad.zero_()) == "tensor(0.)"
    assert repr(x.grad) == "tensor(0.)"


def test_disabling_by_requires_grad_false():
    x = tg.tensor(2.0, requires_grad=True)
    y = x**2
    y.backward()
    assert repr(x.grad) == "tensor(4.)"
    assert repr(x.requires_grad_(False)) == "tensor(2.)"
    assert repr(x) == "tensor(2.)"
    y = x**2
    assert repr(y) == "tensor(4.)"
    with pytest.raises(RuntimeError, match="does not require grad and does not have a grad_fn"):
        y.backward()


def test_disabling_by_detach():
    x = tg.tensor(2.0, requires_grad=True)
    z = x.detach()
    assert repr(z) == "tensor(2.)"
    y = x**2
    assert repr(y) == "tensor(4., grad_fn=<PowBackward0>)"
    y1 = z**2
    assert repr(y1) == "tensor(4.)"
    y.backward()
    assert x.grad.item() == 4.0
    with pytest.raises(RuntimeError, match="does not require grad and does not have a grad_fn"):
        y1.backward()


def test_disabling_by_no_grad():
    x = tg.tensor(2.0, requires_grad=True)
    assert repr(x) == "tensor(2., requires_grad=True)"
    with tg.no_grad():
        y = x**2
    assert repr(y) == "tensor(4.)"
    with pytest.raises(RuntimeError, match="does not require grad and does not have a grad_fn"):
        y.backward()
