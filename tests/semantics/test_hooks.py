"""Hooks on tensors, leaves and nodes, on what is saved, and anomaly detection, as PyTorch has them."""

import warnings

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd.graph import get_gradient_edge, register_multi_grad_hook, saved_tensors_hooks
from tapegrad.engine.runtime import rt


def leaf(*values):
    return tg.tensor(list(values), dtype=tg.float64, requires_grad=True)


def test_a_hook_on_a_leaf_changes_what_arrives_and_can_be_removed():
    x = leaf(1.0, 2.0)
    handle = x.register_hook(lambda g: 2 * g)
    (x * 3).sum().backward()
    assert x.grad.tolist() == [6.0, 6.0]
    handle.remove()
    handle.remove()
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_hooks_on_a_result_run_in_order_and_before_its_retained_gradient():
    x, seen = leaf(1.0), []
    y = x * 3
    y.retain_grad()
    y.register_hook(lambda g: seen.append(("first", g.item())))
    y.register_hook(lambda g: g + 1)
    with y.register_hook(lambda g: seen.append(("third", g.item()))):
        y.sum().backward(retain_graph=True)
    y.sum().backward()
    assert seen == [("first", 1.0), ("third", 2.0), ("first", 1.0)]
    assert y.grad.item() == 4.0
    assert x.grad.item() == 12.0


def test_hooks_run_for_autograd_grad_too():
    x, seen = leaf(1.0), []
    x.register_hook(lambda g: seen.append("leaf") or g * 10)
    y = x * 2
    y.register_hook(lambda g: seen.append("result"))
    assert tg.autograd.grad(y.sum(), x)[0].item() == 20.0
    assert seen == ["result", "leaf"]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (lambda g: g[:1], "has changed the size of value"),
        (lambda g: g.float(), "has changed the type of value"),
        (lambda g: 3, "returned 'int'"),
    ],
)
def test_a_hook_that_returns_something_else_is_refused_and_leaves_the_tape_usable(bad, error):
    x = leaf(1.0, 2.0)
    y = x * 2
    handle = y.register_hook(bad)
    with pytest.raises((RuntimeError, TypeError), match=error):
        y.sum().backward(retain_graph=True)
    handle.remove()
    y.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_a_hook_that_raises_leaves_the_tape_usable():
    x = leaf(1.0)
    y = x.exp() * x
    y.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        y.sum().backward(retain_graph=True)
    assert x.grad is None
    z = x * 2
    z.sum().backward()
    assert x.grad.item() == 2.0


def test_hooks_need_a_gradient():
    with pytest.raises(RuntimeError, match="cannot register a hook on a tensor that doesn't require gradient"):
        tg.ones(1).register_hook(print)
    with pytest.raises(RuntimeError, match="post accumulate grad hooks cannot be registered on non-leaf tensors"):
        (leaf(1.0) * 2).register_post_accumulate_grad_hook(print)


def test_an_optimiser_in_backward():
    x = leaf(1.0, 2.0)
    optimizer = tg.optim.SGD([x], lr=0.5)

    def step(parameter):
        optimizer.step()
        optimizer.zero_grad()

    x.register_post_accumulate_grad_hook(step)
    (x * x).sum().backward()
    assert x.tolist() == [0.0, 0.0]
    assert x.grad is None


def test_hooks_and_prehooks_of_nodes():
    x, seen = leaf(0.0), []
    y = x.exp()
    y.grad_fn.register_prehook(lambda grads: (grads[0] * 3,))
    y.grad_fn.register_hook(lambda inputs, outputs: seen.append((inputs[0].item(), outputs[0].item())))
    y.grad_fn.register_hook(lambda inputs, outputs: (inputs[0] * 10,))
    y.sum().backward()
    assert seen == [(3.0, 3.0)]
    assert x.grad.item() == 30.0


def test_nodes_show_the_graph():
    x, y = leaf(1.0), tg.ones(1, dtype=tg.float64)
    z = x * y
    (first, number), (second, _) = z.grad_fn.next_functions
    assert z.grad_fn.name() == "MulBackward0"
    assert (first.name(), number, second) == ("tapegrad::autograd::AccumulateGrad", 0, None)
    assert first.variable is x or first.variable._id == x._id
    z.grad_fn.metadata["note"] = 1
    assert z.grad_fn.metadata == {"note": 1}


def test_gradient_edges_stand_for_tensors():
    x = leaf(3.0)
    y = x * 2
    edge = get_gradient_edge(y)
    z = (y * y).sum()
    assert tg.autograd.grad(z, edge, retain_graph=True)[0].item() == 12.0
    assert tg.autograd.grad(z, get_gradient_edge(x))[0].item() == 24.0


def test_hooks_on_several_tensors():
    a, b, c, seen = leaf(1.0), leaf(2.0), leaf(3.0), []
    handle = register_multi_grad_hook([a, b, c], seen.append)
    (a * b).sum().backward()
    assert [None if g is None else g.item() for g in seen[0]] == [2.0, 1.0, None]
    handle.remove()
    register_multi_grad_hook([a, b], lambda g: seen.append("any"), mode="any")
    (a * b).sum().backward()
    assert seen[1:] == ["any"]
    with pytest.raises(ValueError, match="mode"):
        register_multi_grad_hook([a], print, mode="some")


def test_a_hook_may_run_a_backward_of_its_own():
    x, w = leaf(1.0), leaf(5.0)
    y = x * 2

    @y.register_hook
    def _(g):
        with tg.enable_grad():  # a hook runs in backward's own grad mode
            (w * w).sum().backward()

    (y * 3).sum().backward()
    assert (x.grad.item(), w.grad.item()) == (6.0, 10.0)


def test_hooks_take_part_in_higher_orders():
    x = leaf(2.0)
    y = x**2
    y.register_hook(lambda g: g * x.detach() * 3)
    (slope,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    assert slope.item() == 24.0
    assert tg.autograd.grad(slope.sum(), x)[0].item() == 12.0


def test_hooks_die_with_their_tensors():
    before = int(rt.state.live_buffers)
    x, held = leaf(1.0), np.zeros(100)
    for _ in range(2000):
        y = x * 2
        y.register_hook(lambda g, keep=held: g)
        y.grad_fn.register_hook(lambda *grads: None)
        y.sum().backward()
    del y
    assert int(rt.state.live_buffers) - before < 20


def test_saved_values_are_packed_and_unpacked():
    x, calls = leaf(1.0, 2.0), []

    def pack(t):
        calls.append("pack")
        return t.detach().numpy().copy()

    def unpack(array):
        calls.append("unpack")
        return tg.from_numpy(array)

    with saved_tensors_hooks(pack, unpack):
        y = (x * x).exp().sum()
    assert set(calls) == {"pack"}
    y.backward()
    assert calls.count("pack") == calls.count("unpack")
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.array([1, 2]) * np.exp([1, 4]))
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_errors_of_pack_and_unpack_arrive():
    x = leaf(1.0)
    with pytest.raises(ZeroDivisionError), saved_tensors_hooks(lambda t: 1 / 0, lambda t: t):
        x * x
    with saved_tensors_hooks(lambda t: t, lambda t: "text"):
        y = x * x
    with pytest.raises(TypeError, match="unpack_hook"):
        y.backward()


def test_saved_tensor_hooks_can_be_switched_off():
    off = tg.autograd.graph.disable_saved_tensors_hooks("not here")
    with pytest.raises(RuntimeError, match="not here"), off, saved_tensors_hooks(lambda t: t, lambda t: t):
        pass


def test_anomaly_detection_names_the_operation_and_the_line():
    x = leaf(0.0)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        refused = pytest.raises(RuntimeError, match="Function 'SqrtBackward0' returned nan values in its 0th output")
        with refused, tg.autograd.detect_anomaly():
            (x.sqrt() * 0.0).sum().backward()
    text = "".join(str(w.message) for w in shown)
    assert "Traceback of forward call that caused the error" in text
    assert "x.sqrt() * 0.0" in text
    assert not tg.autograd.is_anomaly_enabled()
