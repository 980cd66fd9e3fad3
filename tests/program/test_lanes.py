"""`vmap` of compiled functions: recorded programs over blocks of samples, beside the eager `vmap` and beside loops."""

import tracemalloc

import numpy as np
import pytest

import tapegrad as tg
import tapegrad.nn.functional as F
from tapegrad.engine.runtime import rt
from tapegrad.program import Lanes
from tests.helpers import in_threads
from tests.program.helpers import collatz
from tests.test_higher_order import CASES as DIFFERENTIABLE
from tests.test_vmap import CASES, samples_of

# all of them take minutes; each op is in one of a stride's cases anyway
STRIDE = 3


def arrays_of(result):
    leaves = result if isinstance(result, tuple | list) else [result]
    return [t.detach().numpy() if isinstance(t, tg.Tensor) else t for t in leaves]


def agree(found, expected, tolerance=1e-12):
    for a, b in zip(arrays_of(found), arrays_of(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def only_lanes(compiled):
    """The paths recorded for a compiled function that was mapped."""
    (lanes,) = compiled.lanes.values()
    return lanes.programs()


def only_programs(lanes):
    """The recorded paths, where nothing ran in another way."""
    assert lanes.programs()
    assert not any(kind.mapped_only for kind in lanes._kinds.values())
    return lanes.programs()


def price(w, x):
    return ((w * x).sin() * tg.exp(-x)).sum()


def branching(w, x):
    if x[0] > 0.5:
        return (w * x).sum()
    return (w * x).sin().sum() if x[1] > 0.3 else x.exp().sum()


def samples(size, width=5):
    return np.random.default_rng(size).uniform(0, 1, (size, width))


W = np.linspace(0.5, 2.0, 5)


@pytest.mark.parametrize(("call", "arrays"), CASES[::STRIDE])
def test_equals_vmap(call, arrays):
    operands = [tg.tensor(b) for b in samples_of(arrays)]
    agree(tg.vmap(tg.compile(call))(*operands), tg.vmap(call)(*operands))


@pytest.mark.parametrize(("call", "arrays", "still"), DIFFERENTIABLE[::STRIDE])
def test_gradients_equal_those_of_vmap(call, arrays, still):
    moving = [n for n, a in enumerate(arrays) if a.dtype.kind == "f" and n not in still]

    def loss(*operands):
        return call(*operands).sum()

    operands = [tg.tensor(b) for b in samples_of(arrays)]
    argnums = tuple(moving)
    agree_trees = tg.vmap(tg.func.grad(loss, argnums))(*operands)
    agree(tg.vmap(tg.func.grad(tg.compile(loss), argnums))(*operands), agree_trees)


class TestSizes:
    def test_every_number_of_blocks(self):
        compiled = tg.compile(price)
        found = tg.vmap(tg.value_and_grad(compiled, (0, 1)), (None, 0))
        expected = tg.vmap(tg.value_and_grad(price, (0, 1)), (None, 0))
        for size in (1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 1000, 4099, 20000):
            x = samples(size)
            value, grads = found(W, x)
            value2, grads2 = expected(tg.from_numpy(W), tg.from_numpy(x))
            agree([value, *grads], [value2, *grads2])
        blocks = [p.block for p in only_lanes(compiled)]
        assert len(blocks) == len(set(blocks)) <= 9
        assert compiled.stats()["captures"] == len(blocks)

    def test_no_samples_are_refused_as_by_vmap(self):
        with pytest.raises(ValueError, match="mapped dimension of size 0"):
            tg.vmap(tg.compile(price), (None, 0))(W, samples(0))

    def test_a_block_fits_the_cache(self):
        compiled = tg.compile(lambda x: (x @ x).sin().sum())
        tg.vmap(compiled)(np.ones((100, 64, 64)))
        assert {p.block for p in only_lanes(compiled)} == {16}

    def test_empty_samples(self):
        agree(tg.vmap(tg.compile(lambda x: x * 2))(tg.ones(4, 0)), tg.ones(4, 0))


class TestArguments:
    def test_tensors_in_tensors_out(self):
        x = tg.from_numpy(samples(40))
        found = tg.vmap(tg.compile(price), (None, 0))(tg.from_numpy(W), x)
        assert isinstance(found, tg.Tensor)
        agree(found, tg.vmap(price, (None, 0))(tg.from_numpy(W), x))
        assert isinstance(tg.vmap(tg.compile(price), (None, 0))(W, samples(4)), np.ndarray)

    def test_other_dims_and_layouts(self):
        compiled = tg.compile(lambda a, b: (a * b, a.sum(), b))
        a, b = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 20, 4))), np.ones((4, 40))[:, ::2]
        found = tg.vmap(compiled, (1, -1), (1, 0, -1))(a, b)
        expected = tg.vmap(lambda a, b: (a * b, a.sum(), b), (1, -1), (1, 0, -1))(a, b)
        agree(found, expected)

    def test_trees_and_names(self):
        def f(p, *, y, k):
            return {"a": p["u"] * y * k, "b": (p["v"] - y.sum(),)}

        p = {"u": np.ones(3), "v": samples(7, 3)}
        found = tg.vmap(tg.compile(f), ({"u": None, "v": 0},))(p, y=samples(7, 3), k=2.0)
        expected = tg.vmap(f, ({"u": None, "v": 0},))(p, y=samples(7, 3), k=2.0)
        agree([found["a"], *found["b"]], [expected["a"], *expected["b"]])

    def test_results_that_are_not_mapped(self):
        f = lambda w, x: (w * 2, (w * x).sum())
        found = tg.vmap(tg.compile(f), (None, 0), (None, 0))(W, samples(50))
        agree(found, tg.vmap(f, (None, 0), (None, 0))(W, samples(50)))
        with pytest.raises(ValueError, match="can not return a BatchedTensor when out_dim is None"):
            tg.vmap(tg.compile(f), (None, 0), None)(W, samples(50))

    def test_branches_do_not_pass_for_results_that_are_not_mapped(self):
        f = tg.compile(lambda x: tg.tensor(1.0) if x > 0.5 else tg.tensor(2.0))
        with pytest.raises(ValueError, match="can not return a BatchedTensor when out_dim is None"):
            tg.vmap(f, 0, None)(np.array([0.0, 1.0]))

    @pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, np.int8])
    def test_dtypes(self, dtype):
        x = (samples(20) * 3).astype(dtype)
        agree(tg.vmap(tg.compile(lambda x: x.flip(0)))(x), x[:, ::-1])

    def test_what_vmap_refuses(self):
        f = tg.compile(price)
        with pytest.raises(ValueError, match="same size in the mapped dimension"):
            tg.vmap(f)(samples(3), samples(4))
        with pytest.raises(ValueError, match="must only return Tensors"):
            tg.vmap(tg.compile(lambda x: (x, "text")))(samples(3))
        with pytest.raises(ValueError, match="expected `in_dims` to be int"):
            tg.vmap(f, in_dims=False)(W, samples(3))

    def test_tensors_from_outside_are_followed(self):
        w = tg.tensor([1.0, 2.0])
        f = tg.vmap(tg.compile(lambda x: (w * x).sum()))
        agree(f(np.ones((3, 2), np.float32)), tg.full((3,), 3.0))
        w.mul_(2)
        agree(f(np.ones((3, 2), np.float32)), tg.full((3,), 6.0))

    def test_names_that_change_meaning(self):
        for factor in (2.0, 3.0, 2.0):
            globals()["FACTOR"] = factor
            agree(TRIPLE(np.ones(4)), np.full(4, factor))

    def test_writes_to_its_argument_reach_it(self):
        x = tg.ones(4, 2)
        tg.vmap(tg.compile(lambda x: x.mul_(2)))(x)
        agree(x, tg.full((4, 2), 2.0))


FACTOR = 1.0
COUNTED = tg.zeros((), dtype=tg.float64)
TRIPLE = tg.vmap(tg.compile(lambda x: x * FACTOR))


def test_a_program_of_a_map_over_kernels():
    def mapped(x):
        return tg.vmap(tg.func.grad(lambda r: (tg.outer(r, r).tril() @ r.flip(0)).sum()))(x * 2)

    x = tg.from_numpy(samples(6, 4))
    compiled = tg.compile(mapped)
    for k in (1.0, 0.5):
        agree(compiled(x * k), mapped(x * k))
    assert compiled.stats()["captures"] == 1
    assert compiled.stats()["guards"] == 0


def test_a_program_of_a_map_over_other_labels():
    def mapped(x, j):
        return tg.vmap(F.cross_entropy)(x, j)

    compiled, x = tg.compile(mapped), tg.from_numpy(samples(3, 4))
    for labels in ([0, 2, 1], [3, 3, 0]):
        agree(compiled(x, tg.tensor(labels)), mapped(x, tg.tensor(labels)))


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


class TestTransformations:
    def test_derivatives(self):
        x = tg.from_numpy(samples(30, 3))
        f = lambda x: (x.sin() * x.sum()).prod()
        for transform in (tg.func.grad, tg.func.hessian, tg.func.jacfwd, tg.func.jacrev):
            agree(tg.vmap(transform(tg.compile(f)))(x), tg.vmap(transform(f))(x))
        nested = x.reshape(5, 6, 3)
        agree(tg.vmap(tg.vmap(tg.func.grad(tg.compile(f))))(nested), tg.vmap(tg.vmap(tg.func.grad(f)))(nested))

    def test_a_transformation_made_anew_is_the_same(self):
        compiled = tg.compile(price)
        for _ in range(3):
            for argnums in (0, 1, (0, 1)):
                tg.vmap(tg.value_and_grad(compiled, argnums), (None, 0))(W, samples(8))
        assert len(compiled.lanes) == 3
        assert compiled.stats()["captures"] == 3

    def test_gradients_flow_through(self):
        w = tg.tensor(W, requires_grad=True)
        w2 = tg.tensor(W, requires_grad=True)
        x = tg.from_numpy(samples(10))
        tg.vmap(tg.compile(price), (None, 0))(w, x).sum().backward()
        tg.vmap(price, (None, 0))(w2, x).sum().backward()
        agree(w.grad, w2.grad)
        closed = tg.compile(lambda x: (w * x).sum())
        w.grad = None
        tg.vmap(closed)(x).sum().backward()
        agree(w.grad, x.sum(0))
        outer = tg.func.grad(lambda w: tg.vmap(tg.compile(price), (None, 0))(w, x).sum())
        agree(outer(w.detach()), w2.grad)
        with tg.no_grad():
            assert not tg.vmap(closed)(x).requires_grad

    def test_within_a_compiled_function(self):
        inner = tg.compile(price)
        outer = tg.compile(lambda w, x: tg.vmap(inner, (None, 0))(w, x).sum())
        x = samples(6)
        for k in (1.0, 2.0):
            agree(outer(W * k, x), tg.vmap(price, (None, 0))(tg.from_numpy(W * k), tg.from_numpy(x)).sum())


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


class TestLanes:
    def test_any_function_and_given_arrays(self):
        lanes = Lanes(tg.value_and_grad(branching), (None, 0))
        x = samples(300)
        values, grads = np.empty(300), np.empty((300, 5))
        assert lanes(W, x, out=[values, grads])[0] is values
        agree(lanes(W, x), [values, grads])
        expected = tg.value_and_grad(branching)(tg.from_numpy(W), tg.from_numpy(x[299]))
        agree([values[299], grads[299]], expected)

    def test_arrays_that_do_not_fit(self):
        lanes = Lanes(lambda x: x * 2)
        for out in ([np.empty(3)], [np.empty((4, 5), np.float32)], [], [np.empty((4, 10))[:, ::2]]):
            with pytest.raises(ValueError, match=r"out must be contiguous arrays .* float64\[4, 5\]"):
                lanes(samples(4), out=out)

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: tg.cat([x, x.flip(0) * 2]).roll(3).prod(),
            lambda x: (tg.outer(x, x).mT.tril() @ tg.diag(x)).cummax(0).values.sum(),
            lambda x: F.mse_loss(x[1:], x[:-1]) + F.huber_loss(x, x.flip(0), reduction="none").prod(),
            lambda x: F.pad(tg.outer(x, x), (1, 2), value=3.0).logcumsumexp(1).trace(),
            lambda x: tg.stack([x, x * 2]).mT.reshape(2, 5).triu().sum() if x[0] > 0.5 else tg.outer(x, x).trace(),
        ],
    )
    def test_kernels_that_run_once_a_sample_are_recorded(self, f):
        lanes = Lanes(tg.func.grad(f))
        for size in (70, 71):
            x = samples(size)
            expected = np.stack([tg.func.grad(f)(tg.from_numpy(row)).numpy() for row in x])
            np.testing.assert_allclose(lanes(x), expected, rtol=1e-9, atol=1e-9)
        assert lanes.programs()

    def test_earlier_calls_change_no_bit(self):
        def f(w, x):
            if x[0] > 0.7:
                return tg.tanh(x @ w).sum()
            return (x @ w).sin().sum() if x[1] > 0.3 else (x @ w).sum()

        w = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
        x = samples(9000, 32).astype(np.float32)
        found = []
        for earlier in ((), (x[5001:],), (x[x[:, 0] < 0.5], x[1:])):  # other paths, in another order
            lanes = Lanes(tg.value_and_grad(f, 1), (None, 0))
            lanes(w, x[:100])
            for before in earlier:
                lanes(w, before)
            found.append(lanes(w, x[:5000]))
        for value, gradient in found[1:]:
            assert value.tobytes() == found[0][0].tobytes()
            assert gradient.tobytes() == found[0][1].tobytes()

    def test_samples_on_which_the_function_fails(self):
        def f(x):
            if x[0] > 0.9:
                raise ArithmeticError("too large")
            return x.sum() if x[1] > 0.5 else x.prod()

        lanes, x = Lanes(tg.func.grad(f)), samples(600)
        failed, out = {}, [np.full((600, 5), 7.0)]
        lanes(x, out=out, failed=failed)
        assert sorted(failed) == np.flatnonzero(x[:, 0] > 0.9).tolist()
        assert all(isinstance(e, ArithmeticError) for e in failed.values())
        for k in range(0, 600, 37):
            if k not in failed:
                agree([out[0][k]], [tg.func.grad(f)(tg.from_numpy(x[k]))])
        with pytest.raises(ArithmeticError, match="too large"):
            lanes(x)
        failing = np.ones((5, 5))
        lanes(failing, out=[np.empty((5, 5))], failed=(failed := {}))
        assert sorted(failed) == list(range(5))

    def test_a_path_of_its_own_for_each_sample_is_not_captured_for_all(self):
        lanes = Lanes(tg.value_and_grad(lambda x: x * float(x)))
        x = samples(400, 1)[:, 0]
        for _ in range(2):
            agree(lanes(x), (x * x, x))
        assert lanes.captures <= 20
        assert lanes.singles > 2 * 380

    def test_what_is_worth_compiling_for_many_samples_is_compiled_at_once(self):
        lanes, x = Lanes(tg.value_and_grad(price), (None, 0)), samples(1000)
        value, gradient = lanes(W, x)
        lanes.expect(10**9)
        assert [p.is_fused() for p in lanes.programs() if p.block > 16] == [True]
        again = lanes(W, x)
        assert again[0].tobytes() == value.tobytes()
        assert again[1].tobytes() == gradient.tobytes()

    @pytest.mark.parametrize("joined", [lambda x: tg.cat([x, x[:2]]), lambda x: tg.stack([x, x * 2], 1)])
    def test_tensors_are_joined_for_a_whole_block(self, joined):
        lanes, x = Lanes(joined), samples(40)
        agree(lanes(x), tg.stack([joined(tg.from_numpy(row)) for row in x]))
        assert all(p.code.steps[-1].samples is None for p in lanes.programs())

    def test_what_cannot_be_recorded_is_mapped(self):
        lanes = Lanes(lambda x: x * COUNTED.add_(1))
        x, out = samples(9), [np.empty((9, 5))]
        for calls in (1, 2):
            lanes(x, out=out)
            agree(out, [x * calls])
        assert not lanes.programs()

    def test_threads_at_once(self):
        lanes = Lanes(tg.value_and_grad(branching), (None, 0))
        x = samples(3000)
        expected = lanes(W, x)
        for result in in_threads(lambda _: [lanes(W, x) for _ in range(5)][-1], 4):
            assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))

    def test_the_number_of_threads_does_not_matter(self):
        x = samples(30000)
        before = int(rt.state.threads)
        found = []
        for threads in (1, 2, 3):
            rt.state.threads = threads
            found.append(Lanes(tg.value_and_grad(price), (None, 0))(W, x))
        rt.state.threads = before
        assert all(np.array_equal(a, b) for other in found for a, b in zip(other, found[0], strict=True))

    def test_memory_does_not_grow(self):
        mapped = tg.vmap(tg.value_and_grad(tg.compile(branching)), (None, 0))
        x = samples(500)
        mapped(W, x), mapped(W, x)
        tracemalloc.start()
        buffers = int(rt.state.buffer_count)
        mapped(W, x)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            mapped(W, x)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown < 20000
        assert int(rt.state.buffer_count) <= buffers + 64
