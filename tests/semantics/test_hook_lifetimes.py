"""Hooks, functions and packed values in great number, in circles and on many threads: nothing piles up and nothing is mixed up."""

import gc
import os
import weakref

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd import Function
from tapegrad.autograd.graph import register_multi_grad_hook, saved_tensors_hooks
from tapegrad.engine.runtime import rt
from tests.helpers import Square, in_threads, nodes_behind, vector

ROUNDS = 2000


class Both(Function):
    @staticmethod
    def forward(ctx, a, b):
        product = a * b
        ctx.save_for_backward(a, b, product)
        return product, a + b

    @staticmethod
    def backward(ctx, g, h):
        a, b, _ = ctx.saved_tensors
        return g * b + h, g * a + h


class Failing(Square):
    @staticmethod
    def backward(ctx, g):
        raise KeyError("backward")


def hooks(x, w):
    y = x * w
    y.retain_grad()
    y.register_hook(lambda g: g * 2)
    y.grad_fn.register_hook(lambda inputs, outputs: None)
    y.grad_fn.register_prehook(lambda outputs: None)
    register_multi_grad_hook([y, w], lambda grads: None).remove()
    with x.register_hook(lambda g: None), x.register_post_accumulate_grad_hook(lambda p: None):
        y.sum().backward()


def functions(x, w):
    p, q = Both.apply(x * 1, Square.apply(w))
    (p * q).sum().backward()
    Both.apply(x, w)[0].sum().backward()
    Both.apply(x, w)


def higher_orders(x, w):
    y = Square.apply(x) * w
    y.register_hook(lambda g: g * 1)
    g, h = tg.autograd.grad(y.sum(), [x, w], create_graph=True)
    g.register_hook(lambda g: None)
    (g * h).sum().backward()
    Square.apply(x).sum().backward(create_graph=True)
    x.grad = w.grad = None


def packed(x, w):
    with saved_tensors_hooks(lambda t: t.detach().numpy().copy(), tg.from_numpy):
        y = (x * w).exp() * Square.apply(x)
    y.sum().backward()
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        y = (x * w).exp() * Square.apply(x)
        (g,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    (g * g).sum().backward()


def failures(x, w):
    for create in (False, True):
        y = Failing.apply(x) * w
        z = x * w
        z.register_hook(lambda g: 1 / 0)
        with pytest.raises(KeyError):
            y.sum().backward(create_graph=create)
        with pytest.raises(ZeroDivisionError):
            z.sum().backward(create_graph=create)


def written(x, w):
    y = x * 1
    view = y[:1]
    for t in (y, view):
        t.register_hook(lambda g: None)
    y.mul_(w)
    view.exp_()
    y.register_hook(lambda g: None)
    y.sum().backward()


def within(x, w):
    y = x * w

    def hook(g):
        with tg.enable_grad():
            Square.apply(x).sum().backward()

    y.register_hook(hook)
    y.sum().backward()


def walked(x, w):
    y = x
    for _ in range(8):
        y = y + y * w
    assert len(nodes_behind(y.grad_fn)) == 18


ALL = [hooks, functions, higher_orders, packed, failures, written, within, walked]


def memory():
    return rt.state.live_buffers + 0, rt.state.attachments + 0, rt.state.live_storages + 0, rt.state.used_bytes + 0


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("graph", ALL, ids=lambda f: f.__name__)
def test_memory_does_not_grow(graph):
    x, w = vector(*np.linspace(-1, 1, 50)), vector(*np.linspace(1, 2, 50))
    gc.collect()
    gc.disable()  # nothing waits for the collector either
    try:
        for _ in range(10):
            graph(x, w)
        before = memory()
        for _ in range(ROUNDS // len(ALL)):
            graph(x, w)
        after = memory()
    finally:
        gc.enable()
    assert all(b - a < 20 for a, b in zip(before[:3], after[:3], strict=True)), (before, after)
    assert after[3] - before[3] < 50_000


# circles


class Held:
    pass


def on_itself(held):
    y = vector(1.0) * 2
    y.register_hook(lambda g, keep=held: y.detach() * g)
    y.sum().backward()


def on_its_node(held):
    y = vector(1.0) * 2
    y.grad_fn.register_hook(lambda inputs, outputs, keep=held: y.numel() and None)
    y.sum().backward()


def node_on_itself(held):
    node = (vector(1.0) * 2).grad_fn
    node.register_prehook(lambda outputs, keep=held: node.name() and None)
    node.metadata["self"] = node


def on_a_leaf(held):
    x = vector(1.0)
    held.optimizer = tg.optim.SGD([x], lr=0.1)
    x.register_post_accumulate_grad_hook(lambda p, keep=held: keep.optimizer.step())
    x.register_hook(lambda g: x.detach() * g)
    (x * x).sum().backward()


def on_a_node_of_a_leaf(held):
    x = vector(1.0)
    node = (x * 2).grad_fn.next_functions[0][0]
    node.register_hook(lambda inputs, outputs, keep=held: node.variable.numel() and None)
    (x * x).sum().backward()


def through_its_handle(held):
    y = vector(1.0) * 2
    held.handle = y.register_hook(lambda g, keep=held: y.numel() and None)


def on_several(held):
    x = vector(1.0)
    a, b = x * 2, x * 3
    register_multi_grad_hook([a, b], lambda grads, keep=held: a.numel() + b.numel() and None)
    (a * b).sum().backward()


CIRCLES = [on_itself, on_its_node, node_on_itself, on_a_leaf, on_a_node_of_a_leaf, through_its_handle, on_several]


@pytest.mark.parametrize("circle", CIRCLES, ids=lambda f: f.__name__)
def test_hooks_that_refer_to_their_tensor_are_collected(circle):
    gc.collect()
    before = memory()[:3]
    refs = []
    for _ in range(20):
        held = Held()
        refs.append(weakref.ref(held))
        circle(held)
    del held
    gc.collect()
    assert [r() for r in refs] == [None] * 20
    assert all(b - a < 10 for a, b in zip(before, memory()[:3], strict=True))


def test_a_collection_leaves_hooks_that_are_in_use():
    x, seen, names = vector(1.0), [], {}
    names["y"] = y = x * 2
    y.register_hook(lambda g: seen.append(("y", names["y"].numel())))
    y.grad_fn.register_hook(lambda inputs, outputs: seen.append("node"))
    x.register_hook(lambda g: seen.append(("x", x.numel())))
    for _ in range(3):
        gc.collect()
    y.sum().backward(retain_graph=True)
    names["y"] = y * 3
    del y  # now only the graph keeps it
    gc.collect()
    names["y"].sum().backward()
    assert seen == 2 * [("y", 1), "node", ("x", 1)]
    assert x.grad.item() == 8.0


def test_a_collection_in_the_midst_of_a_sweep_changes_nothing():
    x, seen, handles = vector(1.0), [], []
    y = x
    for _ in range(20):
        y = y * 1.5
        handles.append(y.register_hook(lambda g, y=y: seen.append(gc.collect() >= 0)))
    y.sum().backward()
    for handle in handles:  # of such a chain one collection takes the last link only
        handle.remove()
    assert len(seen) == 20
    assert x.grad.item() == 1.5**20


# packing


@pytest.mark.parametrize("create", [False, True])
def test_values_are_packed_to_files(tmp_path, create):
    written = []

    def pack(t):
        written.append(tmp_path / f"{len(written)}.npy")
        np.save(written[-1], t.detach().numpy())
        return written[-1]

    x, w = vector(1.0, 2.0), vector(3.0, 4.0)
    with saved_tensors_hooks(pack, lambda path: tg.from_numpy(np.load(path))):
        y = (x * w).exp() * Square.apply(x)
    y.sum().backward(create_graph=create)
    a, b = x.detach().numpy(), w.detach().numpy()
    np.testing.assert_allclose(x.grad.detach().numpy(), np.exp(a * b) * (2 * a + a * a * b))
    np.testing.assert_allclose(w.grad.detach().numpy(), np.exp(a * b) * a**3)
    assert len(os.listdir(tmp_path)) == len(written) > 3


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda t: t[:1], "shape|size"),
        (lambda t: t.long(), "float64"),
        (lambda t: None, "unpack_hook"),
    ],
)
def test_what_an_unpack_hook_gives_back_is_checked(wrong, error):
    x = vector(1.0, 2.0)
    for apply in (tg.exp, Square.apply):
        with saved_tensors_hooks(lambda t: t.detach(), wrong):
            y = apply(x)
        with pytest.raises((RuntimeError, TypeError), match=error):
            y.sum().backward()
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


# threads


def test_hooks_and_functions_of_several_threads():
    def work(number):
        for turn in range(40):
            once(number, turn)

    def once(number, turn):
        x, w, seen = vector(1.0 + number, 2.0), vector(3.0, 4.0), []
        with saved_tensors_hooks(lambda t: t.detach().numpy().copy(), tg.from_numpy):
            y = Square.apply(x) * w
        y.register_hook(lambda g: seen.append("y") or g * 2)
        y.retain_grad()
        x.register_post_accumulate_grad_hook(lambda p: seen.append("x"))
        p, q = Both.apply(y, w)
        (p + q).sum().backward(create_graph=turn % 2 == 1)
        a, b = x.detach().numpy(), w.detach().numpy()
        np.testing.assert_allclose(y.grad.detach().numpy(), 2 * (b + 1))
        np.testing.assert_allclose(x.grad.detach().numpy(), 2 * (b + 1) * b * 2 * a)
        np.testing.assert_allclose(w.grad.detach().numpy(), a * a * b + 1 + 2 * (b + 1) * a * a)
        assert seen == ["y", "x"]
        x.grad = w.grad = None

    in_threads(work, 4)


def test_a_leaf_shared_by_threads_gets_every_gradient():
    x, seen = vector(1.0, 2.0), []
    x.register_hook(lambda g: seen.append(1))
    x.register_post_accumulate_grad_hook(lambda p: seen.append(2))

    def work(number):
        for _ in range(25):
            y = x * (number + 1.0)
            y.register_hook(lambda g: g * 2)
            y.sum().backward()

    in_threads(work, 4)
    assert x.grad.tolist() == [500.0, 500.0]
    assert (seen.count(1), seen.count(2)) == (100, 100)


def test_one_graph_differentiated_by_several_threads():
    x, seen = vector(2.0), []
    y = Square.apply(x) * x
    y.register_hook(lambda g: seen.append(1))
    results = []

    def work(number):
        for _ in range(10):
            results.append(tg.autograd.grad(y.sum(), x, retain_graph=True, create_graph=number % 2 == 1)[0].item())

    in_threads(work, 4)
    assert results == [12.0] * 40
    assert len(seen) == 40
