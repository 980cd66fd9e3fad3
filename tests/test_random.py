"""Random tensors: seeds, generators, distributions, dtypes, and what is refused."""

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import raises

COUNT = 20_000
DRAWS = {
    "rand": lambda g: tg.rand(3, 2, generator=g),
    "randn": lambda g: tg.randn((3, 2), generator=g),
    "randint": lambda g: tg.randint(2, 9, (3, 2), generator=g),
    "randperm": lambda g: tg.randperm(6, generator=g),
    "normal": lambda g: tg.normal(1.0, 2.0, (3, 2), generator=g),
    "normal of tensors": lambda g: tg.normal(tg.zeros(3, 1), tg.ones(2), generator=g),
    "bernoulli": lambda g: tg.bernoulli(tg.full((30,), 0.5), generator=g),
    "multinomial": lambda g: tg.multinomial(tg.ones(3, 9), 4, generator=g),
    "uniform_": lambda g: tg.zeros(3, 2).uniform_(2, 3, generator=g),
    "normal_": lambda g: tg.zeros(3, 2).normal_(generator=g),
    "bernoulli_": lambda g: tg.zeros(30).bernoulli_(generator=g),
    "random_": lambda g: tg.zeros(3, 2).random_(0, 99, generator=g),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_gives_the_same_numbers_again(name):
    draw = DRAWS[name]
    first, again = (draw(tg.Generator().manual_seed(5)) for _ in range(2))
    assert first.tolist() == again.tolist()
    generator = tg.Generator().manual_seed(5)
    draw(generator)
    assert draw(generator).tolist() != first.tolist()


def test_the_default_generator_is_seeded_and_its_state_restored():
    assert tg.manual_seed(3).initial_seed() == tg.initial_seed() == 3
    first, state = tg.rand(4), tg.get_rng_state()
    second = tg.rand(4)
    tg.set_rng_state(state)
    assert tg.rand(4).tolist() == second.tolist()
    tg.manual_seed(3)
    assert tg.rand(4).tolist() == first.tolist()
    assert tg.seed() == tg.initial_seed()


def test_distributions():
    tg.manual_seed(0)
    uniform, normal = tg.rand(COUNT).numpy(), tg.randn(COUNT).numpy()
    assert 0 <= uniform.min() < uniform.max() < 1
    np.testing.assert_allclose([uniform.mean(), uniform.var()], [1 / 2, 1 / 12], atol=0.02)
    np.testing.assert_allclose([normal.mean(), normal.var()], [0, 1], atol=0.05)
    shifted = tg.normal(3.0, 0.5, (COUNT,)).numpy()
    np.testing.assert_allclose([shifted.mean(), shifted.std()], [3, 0.5], atol=0.05)
    ones = tg.bernoulli(tg.full((COUNT,), 0.3))
    np.testing.assert_allclose(ones.mean().item(), 0.3, atol=0.02)
    assert set(ones.tolist()) == {0, 1}
    picked = tg.multinomial(tg.tensor([1.0, 0.0, 3.0]), COUNT, replacement=True).numpy()
    np.testing.assert_allclose(np.bincount(picked) / COUNT, [0.25, 0, 0.75], atol=0.02)


def test_integers_and_permutations():
    drawn = tg.randint(-2, 3, (COUNT,))
    assert drawn.dtype is tg.int64
    assert sorted(set(drawn.tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(tg.randperm(50).tolist()) == list(range(50))
    assert tg.randperm(0).shape == (0,)
    assert tg.randint_like(tg.zeros(2, 3), 5).shape == (2, 3)
    assert sorted(tg.multinomial(tg.ones(5), 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [tg.float32, tg.float64])
def test_dtypes_and_gradients(dtype):
    for x in (
        tg.rand(2, dtype=dtype, requires_grad=True),
        tg.randn(2, dtype=dtype, requires_grad=True),
        tg.rand_like(tg.zeros(2, dtype=dtype), requires_grad=True),
        tg.randn_like(tg.zeros(2, dtype=dtype), requires_grad=True),
        tg.randint(3, (2,), dtype=dtype, requires_grad=True),
    ):
        assert x.dtype is dtype
        assert x.requires_grad
        assert x.is_leaf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tg.randint(3, (2,), requires_grad=True),
            "Only Tensors of floating point and complex dtype can require gradients",
        ),
        (lambda: tg.rand(2, dtype=tg.int64), "\"rand\" not implemented for 'Long'"),
        (lambda: tg.randint(3, 3, (2,)), "random_ expects 'from' to be less than 'to', but got from=3 >= to=3"),
        (lambda: tg.randperm(-1), "n must be non-negative, got -1"),
        (lambda: tg.normal(0.0, -1.0, (2,)), "normal expects std >= 0.0, but found std -1.0"),
        (
            lambda: tg.bernoulli(tg.tensor([1.5])),
            "Expected p_in >= 0 && p_in <= 1 to be true, but got false.",
        ),
        (
            lambda: tg.multinomial(tg.tensor([1.0, 0.0]), 2),
            "cannot sample n_sample > prob_dist.size(-1) samples without replacement",
        ),
    ],
)
def test_what_is_refused(call, message):
    with raises(message):
        call()
