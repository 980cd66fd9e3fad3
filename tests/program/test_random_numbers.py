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


SAMPLED = [
    lambda x: x * tg.rand(4),
    lambda x: F.dropout(x, 0.5).sum() + tg.randn(()) * tg.randint(1, 9, (2,)).sum(),
    lambda x: tg.func.grad(lambda x: (F.dropout(x, 0.5) ** 2).sum())(x),
    lambda x: tg.randperm(4) + tg.normal(0.0, 2.0, (4,)) * x,
    lambda x: tg.bernoulli(x) * tg.normal(x, x + 1),
    lambda x: tg.vmap(lambda y: y + tg.rand(()), randomness="different")(x),
    lambda x: tg.vmap(lambda y: y + tg.rand(()), randomness="same")(x),
]


@pytest.mark.parametrize("randomness", ["different", "same"])
@pytest.mark.parametrize("f", SAMPLED)
def test_mapped_functions_draw_what_eager_vmap_draws(f, randomness):
    compiled, x = tg.compile(f), tg.rand(100, 4)
    results = []
    for mapped in (tg.vmap(compiled, randomness=randomness), tg.vmap(f, randomness=randomness)):
        tg.manual_seed(1)
        results.append([mapped(x) for _ in range(3)] + [tg.rand(1)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)
    assert not np.array_equal(results[0][0].numpy(), results[0][1].numpy())
    (lanes,) = compiled.lanes.values()
    assert lanes.programs()
    assert compiled.stats()["captures"] == len(lanes.programs())


@pytest.mark.parametrize("carries", [False, True])
def test_samples_keep_their_numbers_on_all_paths(carries):
    def f(x):
        u = tg.rand(())
        if u > 0.5:
            return x.sum() * u
        v = tg.randn(())
        return x.prod() + v if v > 0 else u * x[0]

    x = tg.rand(100, 4).requires_grad_(carries)
    mapped = tg.vmap(tg.compile(f), randomness="different")
    for seed in range(3):
        tg.manual_seed(seed)
        found = mapped(x).detach()
        tg.manual_seed(seed)
        u, v = tg.rand(100), tg.randn(100)
        expected = tg.where(u > 0.5, x.sum(1) * u, tg.where(v > 0, x.prod(1) + v, u * x[:, 0]))
        np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), rtol=1e-5)


def test_mapped_functions_refuse_to_draw_unless_told_how():
    x = tg.rand(50, 4)
    for f in (lambda x: x * tg.rand(4), lambda x: x * 2 if x.sum() > 2 else x * tg.rand(4)):
        with pytest.raises(RuntimeError, match="randomness error mode"):
            tg.vmap(tg.compile(f))(x)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        tg.vmap(lambda x: tg.vmap(lambda y: y + tg.rand(()), randomness="same")(x))(x)


@pytest.mark.parametrize("outer", ["same", "different"])
@pytest.mark.parametrize("inner", ["same", "different"])
def test_randomness_of_nested_maps(outer, inner):
    def both(x):
        return tg.vmap(lambda y: y * 0 + tg.rand(()), randomness=inner)(x)

    for f in (both, tg.compile(both)):
        found = tg.vmap(f, randomness=outer)(tg.ones(3, 4)).numpy()
        assert len(np.unique(found)) == (3 if outer == "different" else 1) * (4 if inner == "different" else 1)
        assert np.array_equal(found[0], found[1]) == (outer == "same")
        assert (found[:, 0] == found[:, 1]).all() == (inner == "same")
