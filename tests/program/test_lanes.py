"""`vmap` of compiled functions: recorded programs over blocks of samples, beside the eager `vmap` and beside loops."""

import tracemalloc

import numpy as np
import pytest

import tapegrad as tg
import tapegrad.nn.functional as F
from tapegrad.engine.runtime import rt
from tapegrad.program import Lanes
from tests.helpers import in_threads
from tests.program.helpers import W, agree, branching, only_lanes, samples


def price(w, x):
    return ((w * x).sin() * tg.exp(-x)).sum()


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
