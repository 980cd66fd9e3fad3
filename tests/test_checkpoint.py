"""Checkpointing: the same gradients with less memory."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine.runtime import rt
from tapegrad.utils.checkpoint import CheckpointError, checkpoint, checkpoint_sequential

SIZE = 4096


def layer(weight):
    def apply(x):
        return tg.tanh(x * weight + 0.1)

    return apply


def chain(count):
    weights = [tg.tensor(1.0 + 0.001 * (k % 7), dtype=tg.float64, requires_grad=True) for k in range(count)]
    return weights, [layer(w) for w in weights]


def start():
    return tg.linspace(-1, 1, SIZE, dtype=tg.float64).requires_grad_()


def gradients(output, leaves):
    output.sum().backward()
    found = [leaf.grad.numpy().copy() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("segments", [1, 2, 5])
def test_same_gradients(reentrant, segments):
    weights, layers = chain(20)
    x = start()
    plain = x
    for apply in layers:
        plain = apply(plain)
    expected = gradients(plain, [x, *weights])
    found = gradients(checkpoint_sequential(layers, segments, x, use_reentrant=reentrant), [x, *weights])
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def peak_of(run):
    before = int(rt.state.used_bytes)
    rt.state["peak_bytes"] = before
    run()
    return int(rt.state.peak_bytes) - before


def test_a_thousand_layers_train_in_the_memory_of_about_sixty():
    _, layers = chain(1000)
    x = start()

    def step(count, segments):
        output = checkpoint_sequential(layers[:count], segments, x) if segments > 1 else x
        if segments == 1:
            for apply in layers[:count]:
                output = apply(output)
        output.sum().backward()

    step(10, 1)  # gradients of the leaves are there from now on
    sixty = peak_of(lambda: step(60, 1))
    thousand = peak_of(lambda: step(1000, 32))
    assert thousand < 1.5 * sixty
    assert peak_of(lambda: step(1000, 1)) > 10 * sixty


def test_autograd_grad_and_create_graph_and_retain_graph():
    weight = tg.tensor(1.3, dtype=tg.float64, requires_grad=True)
    x = tg.tensor([0.2, -0.4], dtype=tg.float64, requires_grad=True)
    output = checkpoint(layer(weight), x).sum()
    plain = layer(weight)(x).sum()
    for _ in range(2):
        (slope,) = tg.autograd.grad(output, x, create_graph=True)
        (expected,) = tg.autograd.grad(plain, x, create_graph=True)
        np.testing.assert_allclose(slope.detach().numpy(), expected.detach().numpy())
    np.testing.assert_allclose(
        tg.autograd.grad(slope.sum(), weight)[0].item(), tg.autograd.grad(expected.sum(), weight)[0].item()
    )


def test_nesting_keywords_and_structures():
    x = tg.tensor([0.5, 2.0], requires_grad=True)

    def inner(a, *, power):
        return {"y": a**power, "n": 3}

    def outer(a):
        return checkpoint(inner, a.exp(), power=2)["y"] * checkpoint(inner, a, power=3)["n"]

    checkpoint(outer, x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 6 * np.exp(2 * x.detach().numpy()), rtol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_random_numbers_are_the_same_again(reentrant):
    x = tg.ones(1000, requires_grad=True)
    tg.manual_seed(3)
    y = checkpoint(lambda t: tg.nn.functional.dropout(t, 0.5) * t, x, use_reentrant=reentrant)
    after = tg.rand(3)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * y.detach().numpy())
    tg.manual_seed(3)
    tg.rand(1000)
    assert after.tolist() == tg.rand(3).tolist()


def test_a_function_that_changes_is_found_out():
    shapes = iter([(3,), (1,)])
    x = tg.ones(3, requires_grad=True)
    y = checkpoint(lambda t: (t * tg.full(next(shapes), 2.0)).exp(), x)
    with pytest.raises(CheckpointError, match="different metadata"):
        y.sum().backward()


def test_a_function_that_saves_less_is_found_out():
    calls = []

    def function(t):
        calls.append(1)
        return t.exp() * t.sin() if len(calls) == 1 else t * 1

    x = tg.ones(3, requires_grad=True)
    y = checkpoint(function, x)
    with pytest.raises(CheckpointError, match="different number of tensors"):
        y.sum().backward()


@pytest.mark.parametrize("inside", [False, True])
def test_an_argument_that_was_written_to_is_refused(inside):
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    y = x * 1
    z = checkpoint((lambda t: t.mul_(2).sin()) if inside else tg.sin, y, use_reentrant=False)
    if not inside:
        y.mul_(2)
    with pytest.raises(RuntimeError, match=r"an argument of shape \[2\] was written to since the call"):
        z.sum().backward()


def test_an_unknown_check_and_too_many_segments_are_refused():
    with pytest.raises(ValueError, match="determinism_check"):
        checkpoint(tg.sin, tg.ones(1), determinism_check="always")
    with pytest.raises(ValueError, match="segments"):
        checkpoint_sequential([tg.sin], 2, tg.ones(1))


def test_without_gradients_nothing_is_kept():
    with tg.no_grad():
        assert not checkpoint(tg.sin, tg.ones(2, requires_grad=True)).requires_grad
