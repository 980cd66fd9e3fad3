"""Hooks on tensors, leaves and nodes, on what is saved, and anomaly detection, as PyTorch has them."""

import warnings

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd.graph import get_gradient_edge, register_multi_grad_hook, saved_tensors_hooks
from tapegrad.engine.runtime import rt
from tests.helpers import nodes_behind, vector


def test_a_hook_on_a_leaf_changes_what_arrives_and_can_be_removed():
    x = vector(1.0, 2.0)
    handle = x.register_hook(lambda g: 2 * g)
    (x * 3).sum().backward()
    assert x.grad.tolist() == [6.0, 6.0]
    handle.remove()
    handle.remove()
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_hooks_on_a_result_run_in_order_and_before_its_retained_gradient():
    x, seen = vector(1.0), []
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
    x, seen = vector(1.0), []
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
    x = vector(1.0, 2.0)
    y = x * 2
    handle = y.register_hook(bad)
    with pytest.raises((RuntimeError, TypeError), match=error):
        y.sum().backward(retain_graph=True)
    handle.remove()
    y.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_a_hook_that_raises_leaves_the_tape_usable():
    x = vector(1.0)
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
        (vector(1.0) * 2).register_post_accumulate_grad_hook(print)


def test_an_optimiser_in_backward():
    x = vector(1.0, 2.0)
    optimizer = tg.optim.SGD([x], lr=0.5)

    def step(parameter):
        optimizer.step()
        optimizer.zero_grad()

    x.register_post_accumulate_grad_hook(step)
    (x * x).sum().backward()
    assert x.tolist() == [0.0, 0.0]
    assert x.grad is None


def test_hooks_and_prehooks_of_nodes():
    x, seen = vector(0.0), []
    y = x.exp()
    y.grad_fn.register_prehook(lambda grads: (grads[0] * 3,))
    y.grad_fn.register_hook(lambda inputs, outputs: seen.append((inputs[0].item(), outputs[0].item())))
    y.grad_fn.register_hook(lambda inputs, outputs: (inputs[0] * 10,))
    y.sum().backward()
    assert seen == [(3.0, 3.0)]
    assert x.grad.item() == 30.0


def test_nodes_show_the_graph():
    x, y = vector(1.0), tg.ones(1, dtype=tg.float64)
    z = x * y
    (first, number), (second, _) = z.grad_fn.next_functions
    assert z.grad_fn.name() == "MulBackward0"
    assert (first.name(), number, second) == ("tapegrad::autograd::AccumulateGrad", 0, None)
    assert first.variable is x or first.variable._id == x._id
    z.grad_fn.metadata["note"] = 1
    assert z.grad_fn.metadata == {"note": 1}


def test_gradient_edges_stand_for_tensors():
    x = vector(3.0)
    y = x * 2
    edge = get_gradient_edge(y)
    z = (y * y).sum()
    assert tg.autograd.grad(z, edge, retain_graph=True)[0].item() == 12.0
    assert tg.autograd.grad(z, get_gradient_edge(x))[0].item() == 24.0


def test_hooks_on_several_tensors():
    a, b, c, seen = vector(1.0), vector(2.0), vector(3.0), []
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
    x, w = vector(1.0), vector(5.0)
    y = x * 2

    @y.register_hook
    def _(g):
        with tg.enable_grad():  # a hook runs in backward's own grad mode
            (w * w).sum().backward()

    (y * 3).sum().backward()
    assert (x.grad.item(), w.grad.item()) == (6.0, 10.0)


def test_hooks_take_part_in_higher_orders():
    x = vector(2.0)
    y = x**2
    y.register_hook(lambda g: g * x.detach() * 3)
    (slope,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    assert slope.item() == 24.0
    assert tg.autograd.grad(slope.sum(), x)[0].item() == 12.0


def test_hooks_die_with_their_tensors():
    before = int(rt.state.live_buffers)
    x, held = vector(1.0), np.zeros(100)
    for _ in range(2000):
        y = x * 2
        y.register_hook(lambda g, keep=held: g)
        y.grad_fn.register_hook(lambda *grads: None)
        y.sum().backward()
    del y
    assert int(rt.state.live_buffers) - before < 20


def test_saved_values_are_packed_and_unpacked():
    x, calls = vector(1.0, 2.0), []

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
    x = vector(1.0)
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
    x = vector(0.0)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        refused = pytest.raises(RuntimeError, match="Function 'SqrtBackward0' returned nan values in its 0th output")
        with refused, tg.autograd.detect_anomaly():
            (x.sqrt() * 0.0).sum().backward()
    text = "".join(str(w.message) for w in shown)
    assert "Traceback of forward call that caused the error" in text
    assert "x.sqrt() * 0.0" in text
    assert not tg.autograd.is_anomaly_enabled()


# tensors written in place, and views


def told(seen, name):
    return lambda g: seen.append((name, g.tolist()))


def test_a_hook_stays_where_the_tensor_was_when_it_was_registered():
    x, seen = vector(1.0, 2.0), []
    y = x * 2
    before = y.register_hook(told(seen, "before"))
    y.register_hook(lambda g: g * 10)
    y.mul_(3)
    y.register_hook(told(seen, "after"))
    y.sum().backward(retain_graph=True)
    assert seen == [("after", [1.0, 1.0]), ("before", [3.0, 3.0])]
    assert x.grad.tolist() == [60.0, 60.0]
    before.remove()
    y.sum().backward()
    assert seen[2:] == [("after", [1.0, 1.0])]


def test_a_retained_gradient_follows_a_tensor_that_is_written_to_and_its_hooks_do_not():
    x, seen = vector(1.0), []
    y = x * 2
    y.retain_grad()
    y.register_hook(told(seen, "before"))
    y.mul_(3)
    (y * y).sum().backward()
    assert y.grad.item() == 12.0
    assert seen == [("before", [36.0])]


@pytest.mark.parametrize("create", [False, True])
def test_hooks_of_a_view_that_is_written_to_are_passed_by(create):
    x, seen = vector(1.0, 2.0, 3.0), []
    base = x * 1
    view = base[:2]
    base.register_hook(told(seen, "base"))
    view.register_hook(told(seen, "view"))
    other = view * 5
    view[0] = 4.0
    view.mul_(2)
    view.register_hook(told(seen, "written"))
    (base.sum() + view.sum() * 10 + other.sum()).backward(create_graph=create)
    assert seen == [("written", [10.0, 10.0]), ("view", [5.0, 5.0]), ("base", [5.0, 27.0, 1.0])]
    assert x.grad.tolist() == [5.0, 27.0, 1.0]


def test_hooks_of_a_view_run_whether_its_base_is_written_to_or_not():
    for write in (False, True):
        x, seen = vector(1.0, 2.0), []
        base = x * 1
        view = base[:1]
        view.register_hook(told(seen, "view"))
        once = view * 3
        if write:
            base.mul_(2)
        (once.sum() + view.sum()).backward()
        assert seen == ([("view", [3.0])] if write else [("view", [4.0])])
        assert x.grad.tolist() == ([5.0, 0.0] if write else [4.0, 0.0])


# hooks that change hooks, the gradient, or the graph


def test_hooks_registered_while_hooks_run_count_from_the_next_value_on():
    x, seen = vector(1.0), []
    y = x * 2
    z = y * 3

    def outer(g):
        seen.append("outer")
        y.register_hook(lambda g: seen.append("upstream"))
        z.register_hook(lambda g: seen.append("same"))
        x.register_post_accumulate_grad_hook(lambda p: seen.append(("leaf", p.grad.item())))
        z.grad_fn.register_hook(lambda *grads: seen.append("node"))

    handle = z.register_hook(outer)
    z.sum().backward(retain_graph=True)
    assert seen == ["outer", "node", "upstream", ("leaf", 6.0)]
    handle.remove()
    seen.clear()
    z.sum().backward()
    assert seen == ["same", "node", "upstream", ("leaf", 12.0)]


def test_hooks_removed_while_hooks_run_still_run_once():
    x, seen, handles = vector(1.0), [], []
    y = x * 2

    def remove_all(g):
        seen.append("first")
        for handle in handles:
            handle.remove()

    handles.append(y.register_hook(remove_all))
    handles.append(y.register_hook(lambda g: seen.append("second")))
    y.sum().backward(retain_graph=True)
    assert seen == ["first", "second"]
    y.sum().backward()
    assert seen == ["first", "second"]


@pytest.mark.parametrize("create", [False, True])
def test_a_gradient_changed_in_place_is_what_later_hooks_and_the_graph_see_and_nobody_else(create):
    x, w, seen = vector(1.0, 2.0), vector(3.0, 4.0), []
    y, v = x * 2, w * 3

    def change(g):
        g.mul_(10)

    y.register_hook(change)
    y.register_hook(told(seen, "later"))
    start = tg.ones(2, dtype=tg.float64)
    (y + v).backward(start, create_graph=create)
    assert seen == [("later", [10.0, 10.0])]
    assert x.grad.tolist() == [20.0, 20.0]
    assert w.grad.tolist() == [3.0, 3.0]
    assert start.tolist() == [1.0, 1.0]


def test_a_gradient_that_a_hook_kept_is_not_accumulated_into():
    x, kept = vector(1.0), []
    x.register_hook(kept.append)
    (x * 2).sum().backward()
    (x * 2).sum().backward()
    assert [g.item() for g in kept] == [2.0, 2.0]
    assert x.grad.item() == 4.0


def test_a_hook_may_differentiate_the_graph_it_is_in():
    x, seen = vector(3.0), []
    y = x * x
    z = y * 2
    z.register_hook(lambda g: seen.append(tg.autograd.grad(y, x, g, retain_graph=True)[0].item()))
    z.sum().backward()
    assert seen == [6.0]
    assert x.grad.item() == 12.0


def test_a_hook_that_frees_the_graph_it_is_in():
    x = vector(3.0)
    y = x * x
    z = y.exp()
    z.register_hook(lambda g: y.backward(g))
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        z.sum().backward()
    assert x.grad.item() == 6.0


@pytest.mark.parametrize("create", [False, True])
def test_a_hook_may_accumulate_into_a_leaf_of_the_graph_it_is_in(create):
    x = vector(3.0)
    x.grad = tg.tensor([100.0], dtype=tg.float64)
    y = x * x

    def hook(g):
        with tg.enable_grad():
            (x * 5).sum().backward()

    y.register_hook(hook)
    (y + x * 7).sum().backward(create_graph=create)
    assert x.grad.item() == 118.0


@pytest.mark.parametrize(
    ("result", "error"),
    [(lambda p: 3, "expected Variable, but hook returned 'int'"), (lambda p: p.grad, "hooks should return None")],
)
def test_post_accumulate_hooks_return_nothing(result, error):
    x = vector(1.0)
    x.register_post_accumulate_grad_hook(result)
    with pytest.raises((TypeError, RuntimeError), match=error):
        (x * 2).sum().backward()
    assert x.grad.item() == 2.0


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (lambda grads: grads[0], "expected tuple, but hook returned 'Tensor'"),
        (lambda grads: (grads[0],) * 3, "incorrect number of values"),
        (lambda grads: (3, *grads[1:]), "expected Variable, but hook returned 'int'"),
        (lambda grads: (grads[0][:1], *grads[1:]), "has changed the size of value"),
        (lambda grads: (grads[0].float(), *grads[1:]), "has changed the type of value"),
    ],
)
@pytest.mark.parametrize("create", [False, True])
def test_hooks_of_nodes_that_return_something_else_are_refused(result, error, create):
    for register in (
        lambda node: node.register_prehook(result),
        lambda node: node.register_hook(lambda inputs, outputs: result(inputs)),
    ):
        x = vector(1.0, 2.0)
        y = x * x.detach()
        handle = register(y.grad_fn)
        with pytest.raises((TypeError, RuntimeError), match=error):
            y.sum().backward(retain_graph=True, create_graph=create)
        handle.remove()
        y.sum().backward()
        assert x.grad.tolist() == [1.0, 2.0]


def test_all_hooks_of_a_leaf_in_order():
    x, seen = vector(1.0), []
    y = x * 2
    node = y.grad_fn.next_functions[0][0]
    node.register_prehook(lambda grads: seen.append(("before", grads[0].item())) or (grads[0] * 3,))
    x.register_hook(lambda g: seen.append(("tensor", g.item())) or g * 2)
    node.register_hook(lambda inputs, outputs: seen.append(("after", len(inputs), outputs[0].item())))
    x.register_post_accumulate_grad_hook(lambda p: seen.append(("accumulated", p.grad.item())))
    y.sum().backward()
    assert seen == [("tensor", 2.0), ("before", 4.0), ("accumulated", 12.0), ("after", 0, 12.0)]
    assert tg.autograd.grad((x * 2).sum(), x)[0].item() == 4.0


def test_nodes_are_the_same_as_long_as_somebody_holds_them():
    x = vector(1.0)
    y = x
    for _ in range(30):
        y = y + y
    first = y.grad_fn
    assert first is y.grad_fn
    assert first.next_functions[0][0] is first.next_functions[1][0]
    assert len(nodes_behind(first)) == 31
    y.mul_(2)
    assert y.grad_fn is not first
    assert y.grad_fn.next_functions[0][0] is first


def test_what_a_hook_raises_is_raised_once_whatever_it_is():
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    y = x * x
    calls = []

    def hook(g):
        calls.append(g)
        raise AttributeError("the hook's own")

    handle = y.register_hook(hook)
    with pytest.raises(AttributeError, match="the hook's own"):
        tg.autograd.grad(y.sum(), x)
    assert len(calls) == 1
    handle.remove()
