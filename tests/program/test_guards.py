"""Values that a function looks at: every path is recorded, and the answer is always that of the function itself."""

import math

import numpy as np
import pytest

import tapegrad as tg
import tapegrad.nn.functional as F
from tests.program.helpers import collatz, leaf, same


def branching(x):
    if x.sum() > 0:
        return x * 2 if x[0] > 1 else x.exp()
    return x.sin()


INPUTS = ([2.0, 1.0], [-2.0, 1.0], [0.5, 1.0], [3.0, 3.0], [-1.0, 0.0], [0.1, 0.1], [2.0, 1.0])


def test_each_path_is_recorded_once():
    f = tg.compile(branching)
    for _ in range(2):
        for values in INPUTS:
            same(f(tg.tensor(values)), branching(tg.tensor(values)))
    stats = f.stats()
    assert stats["programs"] == stats["captures"] == 3
    assert stats["recaptures"] == 2
    assert stats["replays"] == 14
    assert stats["guards"] == 5


def test_gradients_follow_the_path():
    f = tg.compile(branching)
    for _ in range(2):
        for values in INPUTS:
            x, y = leaf(*values), leaf(*values)
            f(x).sum().backward()
            branching(y).sum().backward()
            same(x.grad, y.grad)
            same(tg.compile(branching, max_programs=1)(x), branching(y))
            array = np.array(values)
            value, grad = f2.value_and_grad(array)
            same(value, branching(tg.tensor(array)).sum())
            z = tg.tensor(array, requires_grad=True)
            branching(z).sum().backward()
            same(grad, z.grad)


f2 = tg.compile(lambda x: branching(x).sum())


def test_loops_that_run_as_long_as_values_say():
    f = tg.compile(collatz)
    for n in (1.0, 6.0, 7.0, 6.0, 8.0, 3.0, 7.0):
        same(f(tg.tensor(n)), collatz(tg.tensor(n)))
    assert f.stats()["programs"] == 5


def test_nan_takes_the_path_it_takes_in_python():
    def g(x):
        if x > 0:
            return x * 2
        if x <= 0:
            return x * 3
        return x.nan_to_num(7.0)

    f = tg.compile(g)
    for value in (1.0, math.nan, -1.0, math.nan, math.inf, -math.inf, -0.0, 0.0):
        same(f(tg.tensor(value)), g(tg.tensor(value)))
    assert f.stats()["programs"] == 3


@pytest.mark.parametrize(
    "read",
    [
        lambda t: bool(t > 1),
        lambda t: int(t),
        lambda t: float(t),
        lambda t: t.item(),
        lambda t: t.round().long().tolist(),
        lambda t: int(t.detach().numpy()),
        lambda t: [1, 2, 3][t.long()],
        lambda t: len(range(t.long())),
        lambda t: np.asarray(t.detach()).sum().item(),
        lambda t: len(str(t)) + len(f"{t.detach():.2f}"),
        lambda t: round(t.item()) + math.floor(t) + math.sin(t),
        lambda t: 2 if 0.5 < t < 2.5 else 3,
        lambda t: 2 if t in (1.0, 3.0) else 3,
        lambda t: np.sin(t.detach()).item(),
        lambda t: np.float64(t.detach()),
    ],
)
def test_every_way_to_read_is_guarded(read):
    def g(x):
        return x * read(x[1])

    f = tg.compile(g)
    for values in ([1.0, 1.0], [2.0, 1.0], [2.0, 2.0], [3.0, 0.0], [3.0, 1.0]):
        same(f(tg.tensor(values)), g(tg.tensor(values)))
        x, y = leaf(*values), leaf(*values)
        f(x).sum().backward()
        g(y).sum().backward()
        same(x.grad, y.grad)


def test_arguments_and_tensors_outside_are_guarded_too():
    flag = tg.tensor(True)
    index = tg.tensor([0, 2])

    def g(x, k):
        return x[index] * (k if flag else -k) if k > 0 else x.sum()

    f = tg.compile(g)
    x = tg.tensor([1.0, 2.0, 3.0])
    for k in (1.0, -1.0, 2.0):
        same(f(x, tg.tensor(k)), g(x, tg.tensor(k)))
    flag.fill_(False)
    same(f(x, tg.tensor(1.0)), g(x, tg.tensor(1.0)))
    index[0] = 1
    same(f(x, tg.tensor(1.0)), tg.tensor([-2.0, -3.0]))


def test_values_that_always_differ_are_given_up_on():
    f = tg.compile(lambda x: x * x.sum().item(), max_programs=2)
    for k in range(20):
        x = np.array([1.0, k])
        same(f(x), x * x.sum())
        t = leaf(1.0, float(k))
        f(t).sum().backward()
        same(t.grad, tg.full((2,), 1.0 + k))
    stats = f.stats()
    assert stats["eager"] > 10
    assert stats["programs"] <= 4


def test_sorted_values_and_masks():
    def g(x):
        y = x.sort().values
        return (y[: len(y) // 2] * x[x > 0].sum()).sum()

    f = tg.compile(g)
    for seed in range(4):
        values = np.random.default_rng(seed).normal(size=6)
        x, y = leaf(*values, dtype=tg.float64), leaf(*values, dtype=tg.float64)
        f(x).backward()
        g(y).backward()
        same(f(x), g(y), 1e-12)
        same(x.grad, y.grad, 1e-12)


def test_random_paths_equal_eager():
    """Functions that branch on values, at random inputs: value and gradient as eager's, whatever is kept."""

    def g(x, y):
        z = x
        for k in range(4):
            z = z * y + 0.1 * k if (z.sum() * (k + 1)).sin() > 0 else z - y.cos()
        return z.sum()

    f = tg.compile(g, max_programs=4)
    rng = np.random.default_rng(0)
    for _ in range(40):
        a, b = rng.normal(size=3), rng.normal(size=3)
        value, grads = f.value_and_grad(a, b, argnums=(0, 1))
        x, y = (tg.tensor(v, requires_grad=True) for v in (a, b))
        expected = g(x, y)
        expected.backward()
        same(value, expected, 1e-12)
        same(grads[0], x.grad, 1e-12)
        same(grads[1], y.grad, 1e-12)
    assert f.stats()["programs"] <= 4


def test_order_and_places_are_found_again():
    """What NumPy computes of values is computed again at each run: one program serves all orders and indices."""
    table = tg.arange(12.0, dtype=tg.float64).reshape(4, 3)

    def g(x, k):
        y = x.sort(0, descending=True)
        z = x.topk(2, 0).values.sum(0) + x.kthvalue(1, 0).values * x.argsort(0)[0]
        w = table[k] * table[k, :1] + table.index_select(0, k) + F.embedding(k, table)
        v = x[k, k % 3] + x.take(k) + x.t().gather(1, k.expand(3, 2))[0]
        u = tg.searchsorted(tg.tensor([0.0, 0.5], dtype=tg.float64), x).sum() + tg.isin(k, tg.tensor([1])).sum()
        t = x * 1
        t[k] = 0.0
        s = tg.zeros(4, dtype=tg.float64)
        s[k] = 2.0
        return ((y.values * y.indices).sum() + z.sum() + w.sum() + v.sum() + u + (t * t).sum() + s.cumsum(0).sum()) * x[
            0, 0
        ]

    f = tg.compile(g)
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, k = rng.normal(size=(4, 3)), rng.integers(0, 4, 2)
        x, y = tg.tensor(a, requires_grad=True), tg.tensor(a, requires_grad=True)
        k = tg.tensor(k)
        found, expected = f(x, k), g(y, k)
        found.backward()
        expected.backward()
        same(found, expected, 1e-12)
        same(x.grad, y.grad, 1e-12)
    assert f.stats()["programs"] == f.stats()["captures"] == 2
    negative = tg.tensor([-1, -3])
    h = tg.compile(lambda x, k: x[k][:, :2] + x.take(k))
    same(h(table, negative), table[negative][:, :2] + table.take(negative))
    with pytest.raises(IndexError, match="index 7 is out of"):
        f(x, tg.tensor([0, 7]))
    assert f.stats()["programs"] == 2


def test_classes_are_checked_at_each_run():
    f = tg.compile(lambda x, target: F.cross_entropy(x, target))
    x = tg.tensor(np.random.default_rng(0).normal(size=(3, 4)), requires_grad=True)
    for target in ([0, 1, 2], [3, 3, 0], [-100, 1, 1]):
        t = tg.tensor(target)
        same(f(x, t), F.cross_entropy(x, t), 1e-12)
        same(tg.autograd.grad(f(x, t), x)[0], tg.autograd.grad(F.cross_entropy(x, t), x)[0], 1e-12)
    with pytest.raises(IndexError, match="Target 4 is out of bounds"):
        f(x, tg.tensor([0, 4, 1]))
    assert f.stats()["captures"] == 2


def test_losses_whose_arguments_are_checked():
    f = tg.compile(lambda p, y: F.binary_cross_entropy(p, y))
    rng = np.random.default_rng(0)
    for _ in range(6):
        p, y = rng.uniform(0.1, 0.9, 5), rng.uniform(size=5)
        same(f(p, y), F.binary_cross_entropy(tg.tensor(p), tg.tensor(y)), 1e-12)
    assert f.stats()["programs"] == 1
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        f(p * 3, y)
    same(f(p, y), F.binary_cross_entropy(tg.tensor(p), tg.tensor(y)), 1e-12)


def fills(x):
    y = x * 1
    y[y > 0.5] = x.sum()
    return (y * y).sum()


def fills_rows(x):
    y = tg.outer(x, x)
    y[x > 0.5] = x
    return (y * y).sum()


def picks(x):
    return x[x > 0.5].sin().sum() + x.masked_select(x < 0.3).sum()


@pytest.mark.parametrize(("f", "most"), [(fills, 1), (fills_rows, 1), (picks, 12)])
def test_masks_are_guarded_by_how_often_they_hold(f, most):
    compiled = tg.compile(f)
    rng = np.random.default_rng(0)
    for _ in range(30):
        x = tg.tensor(rng.uniform(size=5))
        for found, expected in zip(compiled.value_and_grad(x), tg.func.value_and_grad(f)(x), strict=True):
            same(found, expected, 1e-12)
    assert compiled.stats()["captures"] <= most
    assert compiled.stats()["eager"] == 0
