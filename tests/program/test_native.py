"""Compiled functions within a user's own compiled code, and behind C functions."""

import copy
import ctypes
import gc
import pickle

import numba
import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import in_threads

integrate = pytest.importorskip("scipy.integrate")


def price(x, w, k):
    return (k * (x @ w).sin()).sum() + k * x.exp().sum()


def branching(x):
    return (x * x).sum() if x[0] > 0 else x.sin().sum()


W = np.random.default_rng(1).normal(size=(3, 4))


def drawn(size, width=3):
    return np.random.default_rng(size).normal(size=(size, width))


@pytest.fixture(scope="module")
def native():
    return tg.compile(price).native(np.zeros(3), W, 1.0, argnums=(0, 1, 2))


def eager(x, w, k):
    value, grads = tg.value_and_grad(price, (0, 1, 2))(tg.from_numpy(x), tg.from_numpy(w), tg.tensor(k).double())
    return value.item(), [g.numpy() for g in grads]


def gradient_arrays():
    return np.empty(3), np.empty((3, 4)), np.empty(1)


class TestCalls:
    def test_from_python(self, native):
        x, grads = drawn(1)[0], gradient_arrays()
        value, expected = eager(x, W, 0.5)
        assert native(x, W, 0.5, *grads) == pytest.approx(value, rel=1e-14)
        for found, g in zip(grads, expected, strict=True):
            np.testing.assert_allclose(found.reshape(g.shape), g, rtol=1e-13)
        assert repr(native) == "<native price>"

    def test_in_a_parallel_loop(self, native):
        @numba.njit(parallel=True)
        def run(xs, w, ks, values, gx, gw, gk):
            for i in numba.prange(len(xs)):
                values[i] = native(xs[i], w, ks[i], gx[i], gw[i], gk[i : i + 1])

        size = 2000
        xs, ks = drawn(size), np.linspace(-1, 1, size)
        outs = np.empty(size), np.empty((size, 3)), np.empty((size, 3, 4)), np.empty(size)
        run(xs, W, ks, *outs)
        both = tg.vmap(tg.value_and_grad(price, (0, 1, 2)), (0, None, 0))
        values, grads = both(tg.from_numpy(xs), tg.from_numpy(W), tg.from_numpy(ks))
        for found, expected in zip(outs, (values, *grads), strict=True):
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-13)
        assert native.missed == 0

    def test_from_more_threads_than_there_are_replicas(self, native):
        @numba.njit(nogil=True)
        def run(x, w, values, gx, gw, gk):
            for i in range(len(values)):
                values[i] = native(x, w, 0.5, gx, gw, gk)

        x = drawn(1)[0]
        run(x, W, np.empty(1), *gradient_arrays())
        found = [np.empty(3000) for _ in range(12)]
        in_threads(lambda k: run(x, W, found[k], *gradient_arrays()), 12)
        assert {v for values in found for v in values} == {native(x, W, 0.5, *gradient_arrays())}

    def test_an_optimiser_of_ones_own(self):
        f = tg.compile(lambda x, target: ((x - target) ** 2).sum()).native(tg.zeros(2).double(), np.zeros(2))

        @numba.njit
        def descend(x, target, steps):
            g = np.empty_like(x)
            value = np.inf
            for _ in range(steps):
                value = f(x, target, g)
                x -= 0.1 * g
            return value

        x = np.array([5.0, -3.0])
        assert descend(x, np.array([1.0, 2.0]), 200) < 1e-18
        np.testing.assert_allclose(x, [1.0, 2.0])

    def test_the_gradient_may_overwrite_the_argument(self):
        f = tg.compile(lambda x: (x * x.flip(0)).sum()).native(np.zeros(4))
        x = np.arange(4.0)
        assert f(x, x) == pytest.approx(4.0)
        assert x.tolist() == [6.0, 4.0, 2.0, 0.0]

    def test_it_stays_when_nobody_holds_it(self):
        def made():
            f = tg.compile(lambda x: (x * 3).sum()).native(np.zeros(2))

            @numba.njit
            def run(x, g):
                return f(x, g)

            run(np.ones(2), np.empty(2))
            return run

        run = made()
        gc.collect()
        assert run(np.ones(2), np.empty(2)) == 6.0

    def test_readonly_arguments_and_constants(self):
        x = np.ones(3)
        x.flags.writeable = False
        f = tg.compile(lambda x: (x * np.pi).sum()).native(x)
        assert f(x, np.empty(3)) == pytest.approx(3 * np.pi)

    def test_other_arguments_by_number(self):
        f = tg.compile(lambda a, b: a * b.sum()).native(2.0, np.ones(3), argnums=-1)
        g = np.empty(3)
        assert f(3.0, np.ones(3), g) == 9.0
        assert g.tolist() == [3.0, 3.0, 3.0]


class TestPaths:
    def test_all_recorded_paths_are_in_it(self):
        compiled = tg.compile(branching)
        compiled.value_and_grad(np.array([-1.0, 2.0]))
        f = compiled.native(np.array([1.0, 2.0]))
        for x in drawn(20, 2):
            g = np.empty(2)
            value, expected = tg.value_and_grad(branching)(tg.from_numpy(x))
            assert f(x, g) == pytest.approx(value.item(), rel=1e-13)
            np.testing.assert_allclose(g, expected.numpy(), rtol=1e-13)
        assert f.missed == 0

    def test_a_path_that_is_not_gives_nan_and_counts(self):
        f = tg.compile(branching).native(np.array([1.0, 2.0]))
        g = np.empty(2)
        assert np.isnan(f(np.array([-1.0, 2.0]), g))
        assert np.isnan(g).all()
        assert f.missed == 1
        assert f(np.array([1.0, 2.0]), g) == 5.0
        assert f.missed == 1

    def test_tensors_from_outside_have_the_values_they_had(self):
        w = tg.tensor([1.0, 2.0], dtype=tg.float64)
        f = tg.compile(lambda x: (w * x).sum()).native(np.zeros(2))
        w.mul_(10)
        assert f(np.ones(2), np.empty(2)) == 3.0


class TestRefusals:
    def test_shapes_are_checked(self):
        f = tg.compile(branching).native(np.ones(2))
        with pytest.raises(ValueError, match=r"argument 0 must have the shape \[2\] of the example"):
            f(np.ones(3), np.empty(2))
        with pytest.raises(ValueError, match=r"the gradient of argument 0 must have the shape \[2\] of the example"):
            f(np.ones(2), np.empty(1))
        wanted = r"takes a float64 array of shape \[2\], one of \[2\] for the gradient of argument 0, but got "
        frozen = np.empty(2)
        frozen.flags.writeable = False
        for given, named in [
            ((np.ones(2, np.float32), np.empty(2)), r"a float32 array of shape \[2\], a float64 array of shape \[2\];"),
            ((np.ones(4)[::2], np.empty(2)), r"a strided float64 array"),
            ((np.ones(2), frozen), r"a float64 array of shape \[2\], a read-only float64 array"),
            ((tg.ones(2), np.empty(2)), "a Tensor"),
            ((np.ones((2, 1)), np.empty(2)), r"a float64 array of shape \[2, 1\]"),
            ((np.ones(2),), r"a float64 array of shape \[2\];"),
            ((), "nothing"),
        ]:
            with pytest.raises(TypeError, match=wanted + named):
                f(*given)

    def test_code_that_calls_it_is_not_cached(self, tmp_path, monkeypatch):
        """It holds addresses: Numba leaves the cache alone, or refuses where it would have to pickle it."""
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
        f = tg.compile(branching).native(np.ones(2))

        @numba.njit(cache=True)
        def twice(x):
            return 2 * f(x, np.empty(2))

        with pytest.raises(TypeError, match=r"cannot be copied or pickled.*leave out cache=True"):
            twice(np.ones(2))
        source = tmp_path / "calls_native.py"
        source.write_text("import numpy as np\n\ndef twice(x):\n    return 2 * f(x, np.empty(2))\n")
        space = {"f": f}
        exec(compile(source.read_text(), str(source), "exec"), space)
        twice = numba.njit(cache=True)(space["twice"])
        with pytest.warns(numba.errors.NumbaWarning, match="Cannot cache compiled function"):
            assert twice(np.ones(2)) == 4.0
        assert not list(tmp_path.rglob("*.nbc"))

    def test_wrong_shapes_in_compiled_code(self):
        f = tg.compile(branching).native(np.ones(2))

        @numba.njit
        def one(x):
            return f(x, np.empty(2))

        @numba.njit(parallel=True)
        def several(x):
            total = 0.0
            for _ in numba.prange(8):
                total += f(x, np.empty(2))
            return total

        with pytest.raises(ValueError, match=r"argument 0 must have the shape \[2\]"):
            one(np.ones(3))
        with pytest.raises((ValueError, SystemError)):  # Numba's parallel loops lose which exception it was
            several(np.ones(3))
        with pytest.raises(numba.TypingError):
            one(np.ones(2, np.float32))
        assert several(np.ones(2)) == 16.0

    def test_copies_are_refused(self):
        f = tg.compile(branching).native(np.ones(2))
        for made in (copy.deepcopy, pickle.dumps):
            with pytest.raises(
                TypeError, match="<native branching> cannot be copied or pickled, since it holds addresses"
            ):
                made(f)

    @pytest.mark.parametrize(
        ("example", "kind"), [(np.ones(2, np.float32), "float32 ndarray"), (3, "int"), ([1.0], "list"), ("a", "str")]
    )
    def test_arguments(self, example, kind):
        with pytest.raises(TypeError, match=f"argument 0 of branching is a {kind}; compiled code passes float64"):
            tg.compile(branching).native(example)

    def test_what_needs_python(self):
        with pytest.raises(RuntimeError, match="draws random numbers; draw them before"):
            tg.compile(lambda x: (x * tg.rand(2)).sum()).native(np.ones(2))
        with pytest.raises(RuntimeError, match="to return a scalar tensor"):
            tg.compile(lambda x: x * 2).native(np.ones(2))
        with pytest.raises(TypeError, match="must return a float64 scalar, but got dtype"):
            tg.compile(lambda x: x.float().sum()).native(np.ones(2))
        compiled = tg.compile(lambda x: (x * x[0].item()).sum(), max_programs=1)
        for x in drawn(12, 2):
            compiled.value_and_grad(x)
        with pytest.raises(RuntimeError, match="looks at values that differ at nearly every call"):
            compiled.native(np.ones(2))


class TestC:
    def test_quad(self):
        bell = tg.compile(lambda x, width: tg.exp(-x * x / width)).native(0.0, 2.0)
        found, error = integrate.quad(bell.low_level_callable(), -20, 20, args=(2.0,))
        assert found == pytest.approx(np.sqrt(2 * np.pi), abs=error + 1e-12)

    def test_nquad(self):
        f = tg.compile(lambda x, y, c: c * x * y.sin()).native(0.0, 0.0, 1.0)
        found, _ = integrate.nquad(f.low_level_callable(), [[0, 2], [0, np.pi]], args=(3.0,))
        assert found == pytest.approx(12.0)

    def test_from_ctypes(self):
        f = tg.compile(branching).native(np.ones(2))
        numbers = (ctypes.c_double * 2)(3.0, 4.0)
        assert f.ctypes(2, numbers) == 25.0
        assert np.isnan(f.ctypes(3, numbers))
        assert np.isnan(f.ctypes(2, (ctypes.c_double * 2)(-3.0, 4.0)))
        assert f.missed == 1
