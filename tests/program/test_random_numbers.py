"""Random numbers inside compiled functions: fresh at each call, the ones an eager run would draw."""

import numpy as np
import pytest

import tapegrad as tg
import tapegrad.nn.functional as F
from tests.program.helpers import leaf, same


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: tg.rand(2),
        lambda x: tg.randn_like(x),
        lambda x: tg.randint(0, 10, (2,)),
        lambda x: tg.randperm(2),
        lambda x: tg.normal(0.0, 2.0, (2,)),
        lambda x: tg.normal(x.exp(), 1.0),
        lambda x: tg.bernoulli(tg.full((2,), 0.5)),
        lambda x: tg.multinomial(tg.tensor([0.2, 0.3, 0.5]), 2),
        lambda x: tg.zeros(2).uniform_(1, 2),
        lambda x: F.dropout(x, 0.5),
    ],
)
def test_every_kind_is_as_eager(draw):
    def g(x):
        return draw(x) * x + tg.rand(2)

    f = tg.compile(g)
    x = tg.tensor([1.0, 2.0])
    results = []
    for function in (f, g):
        tg.manual_seed(3)
        results.append([function(x * (1 + k)) for k in range(3)] + [tg.rand(1)])
    for a, b in zip(*results, strict=True):
        same(a, b)
    assert not np.array_equal(results[0][0].numpy(), results[0][1].numpy())


def test_other_paths_draw_what_eager_draws():
    def g(x):
        a = tg.rand(())
        if a + x > 0.6:
            return a * 2 + tg.rand(())
        return a - tg.rand(2).sum() + tg.rand(())

    f = tg.compile(g)
    results = []
    for function in (f, g):
        tg.manual_seed(1)
        results.append(tg.stack([function(tg.tensor(0.1 * (k % 3))) for k in range(30)]))
    same(*results)
    assert f.stats()["programs"] == 2


def test_generators_given():
    def run(compiled):
        generator = tg.Generator().manual_seed(5)

        def g(x):
            return x * tg.rand(2, generator=generator)

        f = tg.compile(g) if compiled else g
        return tg.stack([f(tg.ones(2)) for _ in range(3)])

    same(run(True), run(False))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: (tg.manual_seed(0), tg.rand(2))[1],
        lambda: tg.rand(2, generator=tg.Generator()),
        lambda: (tg.set_rng_state(tg.get_rng_state()), tg.rand(2))[1],
    ],
)
def test_generators_seeded_inside_are_refused(draw):
    with pytest.raises(RuntimeError, match=r"a generator whose state it has set \(test_random_numbers.py:\d+\)"):
        tg.compile(lambda x: x * draw())(tg.ones(2))


def test_gradients_use_the_numbers_of_their_run():
    """The backward of a call runs the function again: it must see the numbers the forward saw."""
    f = tg.compile(lambda x: (x * tg.rand(3)).sum())
    for _ in range(3):
        x = leaf(1.0, 1.0, 1.0)
        value = f(x)
        value.backward()
        same(x.grad.sum(), value)
    value, grad = f.value_and_grad(np.ones(3, np.float32))
    same(grad.sum(), value)


def test_repeated_backward_gives_the_same():
    f = tg.compile(lambda x: (x * tg.rand(3)).sum())
    x = leaf(1.0, 2.0, 3.0)
    value = f(x)
    first = tg.autograd.grad(value, x, retain_graph=True)[0]
    tg.rand(5)
    same(tg.autograd.grad(value, x)[0], first)
