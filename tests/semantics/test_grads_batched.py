"""`autograd.grad(..., is_grads_batched=True)`: one sweep for a batch of starts gives what one after the other does."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd import grads_batched, sampling

COUNT = 5


class Ways:
    """Counts the sweeps made for a batch, and decides how many starts they take."""

    def __init__(self, monkeypatch):
        self.sizes, right = [], sampling.map_samples
        self._patch = monkeypatch

        def seen(function, values, batched, size):
            self.sizes.append(size)
            return right(function, values, batched, size)

        monkeypatch.setattr(sampling, "map_samples", seen)

    def always(self):
        for name, value in (("_FIXED_STARTS", 1), ("_ROWS_A_START", 1 << 30), ("_RECORDED_STARTS", 1)):
            self._patch.setattr(grads_batched, name, value)

    def never(self):
        self._patch.setattr(grads_batched, "_CACHED_ELEMENTS", 0)


@pytest.fixture
def ways(monkeypatch):
    return Ways(monkeypatch)


def leaves():
    numbers = np.random.default_rng(0)
    shapes = ((3, 4), (4, 3), (3,))
    return [tg.tensor(numbers.uniform(0.5, 1.5, s), requires_grad=True) for s in shapes]


CASES = {
    "elementwise": lambda x, w, b: [x.exp() * x.sin()],
    "product": lambda x, w, b: [tg.tanh(x @ w + b)],
    "sum": lambda x, w, b: [x.sum(), (x * x).mean(0)],
    "same start": lambda x, w, b: [x + x * 1, b * 1],
    "indexed": lambda x, w, b: [x[[0, 2, 2]], x.gather(1, tg.tensor([[1, 0], [0, 0], [3, 3]]))],
    "sorted": lambda x, w, b: [x.sort(1).values * w.T, x.amax(0)],
    "written": lambda x, w, b: [written(x, b)],
    "views": lambda x, w, b: [x.T[1:].reshape(-1), *x.unbind(0)],
    "scans": lambda x, w, b: [x.cumsum(1), x.cumprod(0), tg.logsumexp(x, 1)],
    "converted": lambda x, w, b: [(x.float() * 2).double() @ w],
    "the leaf": lambda x, w, b: [x, x @ w],
}


def written(x, b):
    y = x * 2
    y[:, 0] = b
    y.mul_(x)
    return y


def gradients(outputs, wanted, **options):
    numbers = np.random.default_rng(1)
    starts = [tg.tensor(numbers.normal(size=(COUNT, *y.shape))) for y in outputs]
    return starts, tg.autograd.grad(outputs, wanted, starts, is_grads_batched=True, allow_unused=True, **options)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_at_once_as_one_by_one(ways, name, create_graph):
    found = []
    for choose in (ways.never, ways.always):
        ways._patch.undo()
        ways.__init__(ways._patch)
        choose()
        wanted = leaves()
        starts, parts = gradients(CASES[name](*wanted), wanted, create_graph=create_graph)
        assert len(ways.sizes) == (choose == ways.always)
        for g in parts:
            assert g is None or (g.is_contiguous() and g.data_ptr() not in [s.data_ptr() for s in starts])
        values = [None if g is None else g.detach().numpy() for g in parts]
        if create_graph:
            total = sum((g**2).sum() for g in parts if g is not None)
            assert total.requires_grad == any(g.requires_grad for g in parts if g is not None)
            if total.requires_grad:
                second = tg.autograd.grad(total, wanted, materialize_grads=True)
                values += [g.numpy() for g in second]
        found.append(values)
    for one, together in zip(*found, strict=True):
        assert (one is None) == (together is None)
        if one is not None:
            assert one.shape == together.shape
            np.testing.assert_allclose(together, one, rtol=1e-12, atol=1e-13)


def test_the_choice(ways):
    x = tg.ones(4, requires_grad=True)

    def sizes(y, count, **options):
        ways.sizes.clear()
        (found,) = tg.autograd.grad(y, x, tg.ones(count, *y.shape), is_grads_batched=True, **options)
        assert tuple(found.shape) == (count, 4)
        return ways.sizes

    assert sizes(x * 2, 5) == []
    assert sizes(x * 2, 20) == [20]
    deep = x
    for _ in range(100):
        deep = deep * 1.01
    assert sizes(deep, 20, retain_graph=True) == []
    assert sizes(deep, 20, retain_graph=True, create_graph=True) == [20]
    assert sizes(deep, 200) == [200]
    # adjoints that would leave the cache: some at a time, or one
    wide = lambda n: x.repeat(n // 4) * 2
    assert sizes(wide(1 << 14), 40) == [16, 16, 8]
    assert sizes(wide(1 << 17), 20) == []


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in SqrtBackward0")
def test_users_code_is_called_for_each_start(ways):
    class Double(tg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            assert g.item() >= 0  # one start's values
            return 2 * g

    seen = []
    starts = tg.arange(30.0)
    x = tg.tensor(1.0, requires_grad=True)
    (found,) = tg.autograd.grad(Double.apply(x), x, starts, is_grads_batched=True)
    assert found.tolist() == (2 * starts).tolist()
    y = x * 3
    y.register_hook(lambda g: seen.append(g.item()))
    tg.autograd.grad(y, x, starts, is_grads_batched=True)
    assert seen == starts.tolist()
    x.register_hook(lambda g: g * 10)
    assert tg.autograd.grad(x * 3, x, starts, is_grads_batched=True)[0].tolist() == (30 * starts).tolist()
    with (
        tg.autograd.detect_anomaly(),
        pytest.raises(RuntimeError, match="nan values"),
    ):
        tg.autograd.grad((x * 0).sqrt() * 0, x, starts, is_grads_batched=True)
    assert ways.sizes == []


def test_graphs_are_freed_and_kept(ways):
    ways.always()
    x, w = tg.ones(3, requires_grad=True), tg.ones(3, requires_grad=True)
    y, starts = x * w, tg.eye(3)
    for _ in range(2):
        assert tg.autograd.grad(y, x, starts, retain_graph=True, is_grads_batched=True)[0].tolist() == starts.tolist()
    tg.autograd.grad(y, x, starts, is_grads_batched=True)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        tg.autograd.grad(y, x, starts, is_grads_batched=True)
    y = x * w
    with tg.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        tg.autograd.grad(y, x, starts, is_grads_batched=True)
    assert len(ways.sizes) == 5


def test_unused_inputs_and_missing_starts(ways):
    ways.always()
    x, w = tg.ones(2, requires_grad=True), tg.ones(3, requires_grad=True)
    starts = tg.eye(2)
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        tg.autograd.grad(x * 2, [x, w], starts, is_grads_batched=True)
    found = tg.autograd.grad(x * 2, [x, w, x], starts, is_grads_batched=True, allow_unused=True)
    assert found[0].tolist() == found[2].tolist() == (2 * starts).tolist()
    assert found[1] is None
    found = tg.autograd.grad(x * 2, [x, w], starts, is_grads_batched=True, materialize_grads=True)
    assert found[1].tolist() == [[0.0] * 3] * 2
    # a root without a start of its own has the same in all rows
    found = tg.autograd.grad([x * 2, w.sum()], [x, w], [starts, None], is_grads_batched=True)
    assert found[1].tolist() == [[1.0] * 3] * 2
    found[1][0] = 5.0
    assert found[1].tolist() == [[5.0] * 3, [1.0] * 3]
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        tg.autograd.grad([x * 2, w * 2], [x, w], [starts, None], is_grads_batched=True)


def test_within_other_transformations(ways):
    ways.always()
    x = tg.tensor([1.0, 2.0, 3.0], dtype=tg.float64)
    starts = tg.eye(3, dtype=tg.float64)

    def jacobian(v):
        v = v.clone().requires_grad_()
        return tg.autograd.grad(v**3 * v[0], v, starts, is_grads_batched=True, create_graph=True)[0]

    expected = tg.func.jacrev(lambda v: v**3 * v[0])
    np.testing.assert_allclose(jacobian(x).detach().numpy(), expected(x).numpy())
    batch = tg.stack([x, x * 2])
    np.testing.assert_allclose(tg.vmap(jacobian)(batch).numpy(), tg.vmap(expected)(batch).numpy())
    np.testing.assert_allclose(tg.func.jacrev(jacobian)(x).numpy(), tg.func.jacrev(expected)(x).numpy())
    np.testing.assert_allclose(tg.func.jacfwd(jacobian)(x).numpy(), tg.func.jacfwd(expected)(x).numpy())
