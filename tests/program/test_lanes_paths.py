"""Mapped functions that look at values: each sample takes its own path, and raises what it raises by itself."""

import numpy as np
import pytest

import tapegrad as tg
import tapegrad.nn.functional as F
from tapegrad.program import Lanes
from tests.program.helpers import W, agree, branching, only_programs, samples


class TestBranches:
    @pytest.mark.parametrize("size", [1, 2, 37, 1000])
    def test_each_sample_takes_its_own_path(self, size):
        compiled = tg.compile(branching)
        both = tg.vmap(tg.value_and_grad(compiled, (0, 1)), (None, 0))
        for shift in (0.0, 0.2):
            x = samples(size) + shift
            value, grads = both(W, x)
            for k in range(0, size, max(size // 30, 1)):
                v, g = tg.value_and_grad(branching, (0, 1))(tg.from_numpy(W), tg.from_numpy(x[k]))
                agree([value[k], *(a[k] for a in grads)], [v, *g])
        assert compiled.stats()["captures"] <= 9

    def test_loops_that_run_as_long_as_values_say(self):
        def collatz(n):
            steps = tg.zeros(())
            while n > 1:
                n = n / 2 if n % 2 == 0 else 3 * n + 1
                steps = steps + 1
            return steps

        n = np.array([1.0, 6.0, 7.0, 6.0, 8.0, 3.0, 7.0, 27.0])
        compiled = tg.compile(collatz)
        for _ in range(2):
            agree(tg.vmap(compiled)(n), np.array([0, 8, 16, 8, 3, 7, 16, 111], np.float32))

    def test_values_that_differ_everywhere(self):
        x = samples(150, 1)[:, 0]
        agree(tg.vmap(tg.compile(lambda x: x * float(x)))(x), x * x)

    def test_indices_and_kept_results(self):
        def f(x):
            best, where = x.max(0)
            return best * 2 if where == 2 else x.sum()

        x = samples(64, 4)
        agree(tg.vmap(tg.compile(f))(x), np.where(x.argmax(1) == 2, x.max(1) * 2, x.sum(1)))

    def test_what_is_written_in_place(self):
        def f(x):
            y = x.clone()
            if y[0] > 0.5:
                y[0] = 7.0
            y += 1
            return y * 2 if y.sum() > 8 else y

        x = samples(33)
        expected = np.stack([f(tg.from_numpy(row)).numpy() for row in x])
        agree(tg.vmap(tg.compile(f))(x), expected)

    def test_a_shared_value_that_steers(self):
        f = tg.compile(lambda flag, x: x * 2 if flag else -x)
        mapped = tg.vmap(f, (None, 0))
        for flag in (True, False, True):
            agree(mapped(tg.tensor(flag), tg.arange(20.0)), tg.arange(20.0) * (2 if flag else -1))
        assert f.stats()["captures"] == 2

    def test_nan_takes_the_path_it_takes_in_python(self):
        f = tg.compile(lambda x: x * 2 if x > 0 else (x * 3 if x <= 0 else x.nan_to_num(7.0)))
        agree(tg.vmap(f)(np.array([1.0, np.nan, -1.0, np.nan, -0.0])), np.array([2.0, 7.0, -3.0, 7.0, -0.0]))

    def test_results_of_different_kinds_are_refused(self):
        f = tg.compile(lambda x: x if x.sum() > 1 else x[:1])
        with pytest.raises(RuntimeError, match="samples take paths whose results differ"):
            tg.vmap(f)(np.array([[1.0, 1.0], [0.0, 0.0]]))

    def test_a_nested_map_still_refuses(self):
        f = tg.compile(lambda x: tg.vmap(lambda y: y * 2 if y > 0 else y)(x))
        with pytest.raises(RuntimeError, match="values cannot steer it"):
            tg.vmap(f)(samples(3))

    def test_gradients_to_outside(self):
        w = tg.tensor(2.0, requires_grad=True)
        f = tg.vmap(tg.compile(lambda x: w * x if x > 0 else x))
        found = f(tg.tensor([1.0, -1.0, 3.0]))
        agree(found, tg.tensor([2.0, -1.0, 6.0]))
        found.sum().backward()
        assert w.grad == 4
        assert isinstance(f(np.array([1.0, -1.0])), np.ndarray)
        with tg.no_grad():
            assert not f(tg.tensor([1.0])).requires_grad


def of_paths(w, x):
    if x[0] > 0.5:
        return (w * x).sum(), x * w[0]
    return ((w * x).sin().sum(), w) if x[1] > 0.3 else ((x.log() * w).prod(), x**2)


def alone(w, x):
    """The function as it stands, one sample after the other."""
    return [tg.stack(column) for column in zip(*(of_paths(w, row) for row in x), strict=True)]


def derivatives(f, *arrays):
    """Results, gradients, and gradients of these."""
    tensors = [tg.tensor(a, requires_grad=True) for a in arrays]
    results = f(*tensors)
    first = tg.autograd.grad(sum((r**2).sum() for r in results), tensors, create_graph=True)
    return [*results, *first, *tg.autograd.grad(sum((g * g).sum() for g in first), tensors)]


class TestGradientsThroughBranches:
    @pytest.mark.parametrize("size", [1, 2, 40])
    def test_equal_those_of_a_loop(self, size):
        mapped = tg.vmap(tg.compile(of_paths), (None, 0))
        for shift in (0.0, 0.1):
            x = samples(size) + shift
            agree(derivatives(mapped, W, x), derivatives(alone, W, x), 1e-9)

    def test_along_other_dims(self):
        mapped = tg.vmap(tg.compile(of_paths), (None, 1), (0, -1))
        x = samples(30)
        found = derivatives(lambda w, x: [t if t.ndim == 1 else t.mT for t in mapped(w, x.mT)], W, x)
        agree(found, derivatives(alone, W, x), 1e-9)

    def test_of_transformations(self):
        x, w = tg.from_numpy(samples(30)), tg.from_numpy(W)
        total = lambda f: lambda w: sum((r**2).sum() for r in f(w, x))
        mapped = tg.vmap(tg.compile(of_paths), (None, 0))
        agree(tg.func.grad(total(mapped))(w), tg.func.grad(total(alone))(w), 1e-9)
        agree(tg.func.hessian(total(mapped))(w), tg.func.hessian(total(alone))(w), 1e-9)
        agree(tg.func.jvp(lambda w: mapped(w, x)[0], (w,), (w,)), tg.func.jvp(lambda w: alone(w, x)[0], (w,), (w,)))

    def test_where_nothing_can_be_recorded(self):
        def f(w, x):
            if w > 0:
                x.mul_(2)
            return x.sum() * w if x[0] > 1 else w**2

        w, x = tg.tensor(3.0, dtype=tg.float64, requires_grad=True), samples(7)
        rows = tg.tensor(x)
        found = Lanes(f, (None, 0))(w, rows)
        doubled = tg.tensor(x * 2)
        expected = tg.stack([r.sum() * w if r[0] > 1 else w**2 for r in doubled])
        agree([found, rows], [expected, doubled])
        agree(tg.autograd.grad(found.sum(), w), tg.autograd.grad(expected.sum(), w))

    def test_results_of_different_kinds_are_refused(self):
        w = tg.tensor(2.0, requires_grad=True)
        with pytest.raises(RuntimeError, match="samples take paths whose results differ"):
            tg.vmap(tg.compile(lambda x: w * x if x.sum() > 1 else x[:1]))(tg.tensor([[1.0, 1.0], [0.0, 0.0]]))


def after_a_write(x):
    y = tg.zeros(3, dtype=x.dtype)
    y[0] = x[0]
    if y.sum() > 0.5:
        y[1] = x[1] * 2
    return (y * y).sum()


def by_a_detached_value(x):
    with tg.no_grad():
        y = (x * x).sum()
    return x.sum() if y > 1.5 else x.detach().sin().sum() * x[0]


def by_a_gradient(x):
    return x.sum() if tg.func.grad(lambda z: (z**3).sum())(x)[0] > 1 else x.sin().sum()


def by_an_order(x):
    values, where = x.sort()
    return values.sum() * 2 if where[0] == 0 else values.prod()


def by_a_norm(x):
    n = 0
    while x.norm() > 0.5 and n < 10:
        x, n = x * 0.7, n + 1
    return x.sum() * n


@pytest.mark.parametrize(
    "f", [after_a_write, by_a_detached_value, by_a_gradient, by_an_order, by_a_norm, lambda x: x[int(x.argmax())] * 2]
)
def test_what_steers_is_told_apart(f):
    x = samples(50, 3)
    values, grads = tg.vmap(tg.value_and_grad(tg.compile(f)))(x)
    for k in range(50):
        agree([values[k], grads[k]], tg.value_and_grad(f)(tg.from_numpy(x[k])))


INDEXED = [
    (lambda x, k: F.cross_entropy(x, k), IndexError, "Target 9 is out of bounds"),
    (lambda x, k: tg.func.grad(F.cross_entropy)(x, k), IndexError, "Target 9 is out of bounds"),
    (lambda x, k: x[k], IndexError, "index 9 is out of bounds for dimension 0 with size 5"),
    (
        lambda x, k: x.sort().values[k.reshape(1)] * 2,
        IndexError,
        "index 9 is out of bounds for dimension 0 with size 5",
    ),
    (lambda x, k: x.gather(0, k.reshape(1)), RuntimeError, "index 9 is out of bounds for dimension 0 with size 5"),
    (lambda x, k: F.one_hot(k, 5) * x, RuntimeError, "Class values must be smaller than num_classes"),
    (lambda x, k: x.index_add(0, k.reshape(1), x[:1]), RuntimeError, "index 9 is out of bounds"),
]


class TestIndicesOutOfRange:
    @pytest.mark.parametrize(("f", "error", "message"), INDEXED)
    def test_one_sample_raises_for_all(self, f, error, message):
        x, good = samples(50), np.arange(50) % 5
        bad = np.where(np.arange(50) == 37, 9, good)
        lanes = Lanes(f)
        expected = tg.vmap(f)(tg.from_numpy(x), tg.from_numpy(good))
        with pytest.raises(error, match=message):
            tg.vmap(f)(tg.from_numpy(x), tg.from_numpy(bad))
        with pytest.raises(error, match=message):
            Lanes(f)(x, bad)
        agree(lanes(x, good), expected)
        with pytest.raises(error, match=message):
            lanes(x, bad)
        agree(lanes(x, good), expected)
        only_programs(lanes)

    def test_not_on_a_path_that_the_sample_does_not_take(self):
        f = lambda x, k: x[k] * 2 if x[0] > 0.5 else x.sum()
        x = samples(60)
        k = np.where(x[:, 0] > 0.5, np.arange(60) % 5, 9)
        lanes = Lanes(f)
        for _ in range(2):
            agree(lanes(x, k), np.where(x[:, 0] > 0.5, x[np.arange(60), k % 5] * 2, x.sum(1)))
        only_programs(lanes)
        with pytest.raises(IndexError, match="index 9 is out of bounds"):
            lanes(x, np.full(60, 9))

    def test_shared_indices(self):
        lanes = Lanes(lambda x, k: x[k], (0, None))
        for k in ([1, 2], [-1, 0]):
            agree(lanes(samples(40), np.array(k)), samples(40)[:, k])
        assert lanes.captures == 1
        with pytest.raises(IndexError, match="index 7 is out of bounds"):
            lanes(samples(40), np.array([7, 0]))


def test_masks_that_hold_for_different_numbers_of_elements():
    x = samples(100)
    for f in (lambda x: x[x > 0.5].sum(), lambda x: tg.func.grad(lambda x: x.masked_select(x > 0.5).sin().sum())(x)):
        lanes = Lanes(f)
        agree(lanes(x), np.stack([f(row).numpy() for row in tg.from_numpy(x)]))
        assert len(only_programs(lanes)) >= 4  # numbers of elements
