"""`tg.compile` as users see it: signatures, results, options, threads and memory."""

import copy
import functools
import gc
import pickle
from collections import namedtuple

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine.runtime import rt
from tests.helpers import in_threads, state_of_tape
from tests.program.helpers import leaf, same


class TestSignatures:
    def test_one_program_serves_all_values_of_a_kind(self):
        f = tg.compile(lambda x, y: (x * y).sin())
        for k in range(4):
            x, y = tg.tensor([1.0, k]), tg.tensor([k, 2.0])
            same(f(x, y), (x * y).sin())
        assert f.stats()["programs"] == f.stats()["captures"] == 1
        assert f.stats()["replays"] == 4

    def test_shapes_and_dtypes_have_their_own(self):
        f = tg.compile(lambda x: x * 2)
        for x in (tg.ones(2), tg.ones(3), tg.ones(2).double(), tg.ones(2, 1), tg.tensor([1, 2]), tg.tensor(2.0)):
            same(f(x), x * 2)
            same(f(x + 1), (x + 1) * 2)
        assert f.stats()["programs"] == 6

    def test_trees_in_and_out(self):
        Pair = namedtuple("Pair", "a b")
        f = tg.compile(lambda p, *, scale: {"sum": p.a + p.b["c"], "rest": [p.b["d"] * scale, None, "text"]})
        for k in (1.0, 5.0):
            found = f(Pair(tg.tensor(k), {"c": tg.tensor(2.0), "d": tg.ones(2) * k}), scale=tg.tensor(3.0))
            same(found["sum"], tg.tensor(k + 2))
            same(found["rest"][0], tg.ones(2) * 3 * k)
            assert found["rest"][1:] == [None, "text"]
        assert f.stats()["programs"] == 1

    def test_numbers_and_strings_are_part_of_the_signature(self):
        f = tg.compile(lambda x, n, how: x * n if how == "times" else x**n)
        x = tg.tensor([2.0, 3.0])
        for n, how in ((2, "times"), (3, "times"), (2, "power"), (2.0, "times"), (-0.0, "times"), (0.0, "times")):
            expected = x * n if how == "times" else x**n
            found = f(x, n, how)
            same(found, expected)
            assert np.array_equal(np.signbit(found.numpy()), np.signbit(expected.numpy()))
        assert f.stats()["programs"] == 6

    def test_numpy_in_numpy_out(self):
        f = tg.compile(lambda x, y: (x @ y, x.sum()))
        x, y = np.arange(6.0).reshape(2, 3), np.ones(3)
        for k in range(3):
            a, b = f(x + k, y)
            assert isinstance(a, np.ndarray)
            assert isinstance(b, np.ndarray)
            same(a, (x + k) @ y)
            same(b, np.asarray((x + k).sum()))

    def test_numpy_arrays_of_any_layout(self):
        f = tg.compile(lambda x: x * 2 + 1)
        x = np.arange(24.0).reshape(4, 6)
        for view in (x.T, x[::2, 1::2], x[::-1], np.asfortranarray(x), x.astype(np.float32), x.astype(">f8")):
            if view.dtype.byteorder == ">":
                continue
            same(f(view), view * 2 + 1)
        large = np.arange(20000.0).reshape(100, 200)
        same(f(large.T), large.T * 2 + 1)
        same(f(large), large * 2 + 1)

    def test_results_are_the_callers_own(self):
        f = tg.compile(lambda x: (x * 2, x, tg.ones(2)))
        x = np.array([1.0, 2.0])
        first = f(x)
        kept = [a.copy() for a in first]
        f(x + 1)
        for a, b in zip(first, kept, strict=True):
            same(a, b)
            a[...] = 9
        same(f(x)[0], x * 2)
        same(f(x)[1], np.array([1.0, 2.0]))
        same(f(x)[2], np.ones(2, np.float32))
        assert np.array_equal(x, [1.0, 2.0])

    def test_tensors_that_are_no_contiguous_ones(self):
        f = tg.compile(lambda x: x * tg.arange(3.0))
        x = tg.arange(6.0).reshape(3, 2)
        same(f(x.t()), x.t() * tg.arange(3.0))
        same(f(tg.ones(1, 3).expand(2, 3)), tg.ones(2, 3) * tg.arange(3.0))

    def test_static_arguments(self):
        @tg.compile(static_argnums=1)
        def f(x, options):
            return x * options[0]

        same(f(tg.ones(2), (2.0, "a")), tg.ones(2) * 2)
        same(f(tg.ones(2), (2.0, "a")), tg.ones(2) * 2)
        same(f(tg.ones(2), (3.0, "a")), tg.ones(2) * 3)
        assert f.stats()["captures"] == 2
        with pytest.raises(
            TypeError, match="got an argument of type list, which is neither tensor, array nor hashable"
        ):
            f(tg.ones(2), [2.0])
        with pytest.raises(TypeError, match="got an argument of type ndarray, which is neither"):
            f(np.array([None, 1.0], dtype=object), (2.0, "a"))

    def test_methods(self):
        class Model:
            def __init__(self, w):
                self.w = tg.tensor(w)

            @tg.compile
            def __call__(self, x):
                return x * self.w

            @tg.compile
            def twice(self, x):
                return x * self.w * 2

        a, b = Model(2.0), Model(3.0)
        for _ in range(2):
            same(a(tg.ones(2)), tg.full((2,), 2.0))
            same(b.twice(tg.ones(2)), tg.full((2,), 6.0))

    def test_the_default_dtype_counts(self):
        f = tg.compile(lambda x: x + tg.ones(2))
        same(f(tg.tensor([1, 2])), tg.tensor([2.0, 3.0]))
        tg.set_default_dtype(tg.float64)
        try:
            same(f(tg.tensor([1, 2])), tg.tensor([2.0, 3.0], dtype=tg.float64))
        finally:
            tg.set_default_dtype(tg.float32)

    def test_empty_tensors_and_no_data_at_all(self):
        f = tg.compile(lambda x: (x * 2, x.sum()))
        same(f(tg.ones(0, 3))[0], tg.ones(0, 3))
        same(f(np.ones((0, 3)))[1], np.zeros(()))
        g = tg.compile(lambda n: tg.arange(float(n)) * 2)
        same(g(3), tg.tensor([0.0, 2.0, 4.0]))
        same(g(3), tg.tensor([0.0, 2.0, 4.0]))

    def test_few_programs_are_kept(self):
        f = tg.compile(lambda x, n: x * n, max_programs=3)
        for n in (1, 2, 3, 4, 1, 2, 3, 4):
            same(f(tg.ones(2), n), tg.ones(2) * n)
        assert f.stats()["programs"] == 3
        assert f.stats()["dropped"] == 5
        assert len(f._families) <= 4

    def test_options_are_checked(self):
        with pytest.raises(TypeError, match="expected a function, but got int"):
            tg.compile(3)
        with pytest.raises(TypeError, match="static_argnums must be an int or ints, but got 'x'"):
            tg.compile(abs, static_argnums="x")
        for wrong in (0, -1, 2.5, True):
            with pytest.raises(ValueError, match="max_programs must be a positive int"):
                tg.compile(abs, max_programs=wrong)


@tg.compile
def doubled(x):
    return x * 2


class TestCopies:
    def test_pickled_by_name(self):
        assert pickle.loads(pickle.dumps(doubled)) is doubled
        assert copy.deepcopy([doubled])[0] is doubled

    def test_compiled_again(self):
        made = pickle.loads(pickle.dumps(tg.compile(branch, max_programs=3)))
        assert made.function is branch
        assert made._most == 3
        same(made(tg.ones(2)), tg.full((2,), 3.0))
        assert copy.deepcopy(tg.compile(lambda x: x * 3))(np.ones(2)).tolist() == [3, 3]


def branch(x):
    return x * 3 if x.sum() > 0 else x


class TestResults:
    @pytest.mark.parametrize("made", [None, 3, "text", 2.5])
    def test_must_hold_a_tensor(self, made):
        with pytest.raises(TypeError, match="returned no tensor"):
            tg.compile(lambda x: made)(tg.ones(2))

    def test_that_are_tensors_from_outside_or_constants(self):
        w, c = leaf(1.0, 2.0), tg.ones(2)
        f = tg.compile(lambda x: (w, c, x * w))
        a, b, _ = f(tg.ones(2))
        same(a, w)
        same(b, c)
        a.sum().backward()
        same(w.grad, tg.ones(2))

    def test_an_exception_leaves_nothing_behind(self):
        def g(x):
            if x.shape[0] == 3:
                raise ValueError("three")
            return x @ tg.ones(2)

        f = tg.compile(g)
        with pytest.raises(ValueError, match="three"):
            f(tg.ones(3))
        with pytest.raises(RuntimeError):
            f(tg.ones(4))
        same(f(tg.ones(2)), tg.tensor(2.0))
        assert f.stats()["programs"] == 1
        assert int(rt.state.trace_mask) == 0
        assert int(rt.state.watched) == 0


class TestThreadsAndMemory:
    def test_threads_replay_at_once(self):
        f = tg.compile(lambda x: ((x @ x).sin() + x).sum(0))
        arrays = [np.random.default_rng(k).normal(size=(30, 30)) for k in range(4)]
        expected = [np.sin(a @ a).sum(0) + a.sum(0) for a in arrays]

        def work(k):
            for _ in range(100):
                np.testing.assert_allclose(f(arrays[k]), expected[k], rtol=1e-5, atol=1e-8)

        in_threads(work, 4)
        assert f.stats()["programs"] <= 4

    def test_threads_take_different_paths_while_others_capture(self):
        w = leaf(0.5, 1.5, 2.5, dtype=tg.float64)

        def g(x, n):
            y = x * w
            if y.sum() > 0:
                y = y.sin()
            for _ in range(int(x[0].abs() * 3) % 4):
                y = y * x
            z = y * 1
            z[0] = y[1]
            return (z * n).sum()

        f = tg.compile(g)

        def work(seed):
            rng = np.random.default_rng(seed)
            for k in range(25):
                x, n = tg.tensor(rng.normal(size=3), requires_grad=True), int(rng.integers(1, 3))
                function = tg.compile(g) if k % 5 == 0 else f
                expected, found = g(x, n), function(x, n)
                same(found, expected, 1e-12)
                grads = tg.autograd.grad(found, [x, w])
                for a, b in zip(grads, tg.autograd.grad(expected, [x, w]), strict=True):
                    same(a, b, 1e-12)
                same(f.value_and_grad(x.detach().numpy(), n)[1], grads[0], 1e-12)

        in_threads(work, 6)

    def test_threads_capture_at_once(self):
        def work(k):
            f = tg.compile(lambda x: (x * k).sin())
            w = leaf(float(k))
            for _ in range(5):
                value = f(w * 1)
                value.backward()
            return value.item(), w.grad.item()

        for k, found in enumerate(in_threads(work, 6)):
            assert np.allclose(found, (np.sin(k * k), 5 * k * np.cos(k * k)), atol=1e-5)

    def test_memory_does_not_grow(self):
        w = leaf(1.0, 2.0)
        f = tg.compile(lambda x: (x * w).sin().sum())
        array = np.ones(2)
        x = leaf(1.0, 3.0)

        def step():
            f.value_and_grad(array)
            f(x).backward()

        for _ in range(20):
            step()
        _, *before = state_of_tape()
        for _ in range(2000):
            step()
        for _ in range(20000):
            f.value_and_grad(array)
        _, *after = state_of_tape()
        assert all(b <= a + 200 for a, b in zip(before[:2], after[:2], strict=True))
        assert after[2] <= before[2] + 20000

    def test_capture_lets_go_of_everything(self):
        f = tg.compile(lambda x: (x.sin() * 2).exp().sum())
        x = tg.ones(1000)
        f(x)
        gc.collect()
        before = int(rt.state.live_buffers)
        f = tg.compile(lambda x: (x.sin() * 2).exp().sum())
        f(x)
        del f
        gc.collect()
        assert int(rt.state.live_buffers) <= before + 2


def test_partial_and_callable_objects():
    class Scale:
        def __call__(self, x):
            return x * 3

    same(tg.compile(Scale())(tg.ones(2)), tg.full((2,), 3.0))
    same(tg.compile(functools.partial(tg.mul, tg.tensor(4.0)))(tg.ones(2)), tg.full((2,), 4.0))
