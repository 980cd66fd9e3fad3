"""Profiles of blocks within each other, in threads, left by exceptions; looking changes nothing."""

import gc
import threading

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine.runtime import rt
from tests.declared import root
from tests.helpers import raises
from tests.profiling.helpers import counts, leaf, profiled


class TestBlocks:
    def test_within_each_other(self):
        x = tg.ones(3)
        with tg.profile() as outer:
            x.exp()
            with tg.profile() as inner:
                x.sin()
            x.cos()
        assert counts(outer) == {"exp": 1, "sin": 1, "cos": 1}
        assert counts(inner) == {"sin": 1}

    def test_that_overlap(self):
        x = tg.ones(3)
        a, b = tg.profile(), tg.profile()
        a.__enter__()
        x.exp()
        b.__enter__()
        x.sin()
        a.__exit__(None, None, None)
        x.cos()
        b.__exit__(None, None, None)
        assert (counts(a), counts(b)) == ({"exp": 1, "sin": 1}, {"sin": 1, "cos": 1})

    def test_one_that_begins_within_an_operation(self):
        x = leaf(3)
        y = x.exp()
        inner = []

        def hook(g):
            with tg.profile() as p:
                g.sin()
            inner.append(p)

        y.register_hook(hook)
        p, _ = profiled(lambda: y.sum().backward())
        assert counts(inner[0]) == {"sin": 1}
        assert counts(p)["sin"] == 1
        assert counts(p, "reverse") == {"sum": 1, "exp": 1}

    def test_exceptions_pass(self):
        def work():
            tg.ones(3).exp()
            raise KeyError

        with pytest.raises(KeyError), tg.profile() as p:
            work()
        assert counts(p)["exp"] == 1
        assert p.wall_ns == p.wall_ns > 0

    def test_the_profile_may_be_read_within_the_block(self):
        with tg.profile() as p:
            tg.ones(3).exp()
            assert counts(p)["exp"] == 1
            first = p.wall_ns
            assert p.wall_ns > first > 0

    def test_a_profile_is_of_one_block(self):
        message = "profile: a profile is of one block of code, and this one was entered before; make another one with tapegrad.profile()"
        p, _ = profiled(lambda: None)
        with raises(message), p:
            pass
        with tg.profile() as p, raises(message), p:
            pass

    def test_other_threads_are_not_seen(self):
        x = tg.ones(3)
        results = {}

        def other():
            x.sin()
            with tg.profile() as p:
                barrier.wait()
                for _ in range(50):
                    x.cos()
                barrier.wait()
            results["other"] = p

        barrier = threading.Barrier(2)
        thread = threading.Thread(target=other)
        with tg.profile() as p:
            thread.start()
            barrier.wait()
            for _ in range(50):
                x.exp()
            barrier.wait()
            thread.join()
        assert counts(p) == {"exp": 50}
        assert counts(results["other"]) == {"cos": 50}

    def test_a_block_left_by_another_thread(self):
        p = tg.profile()
        p.__enter__()
        problems = []

        def leave():
            try:
                p.__exit__(None, None, None)
            except RuntimeError as error:
                problems.append(str(error))

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        assert problems == [
            "profile: the block was left by another thread than the one that entered it; enter and leave a profile in one thread"
        ]
        p.__exit__(None, None, None)

    def test_many_threads_that_replay(self):
        f = tg.compile(lambda x: x.exp().sum())
        x = tg.ones(4)
        f(x)
        found = []

        def work():
            with tg.profile() as p:
                for _ in range(20):
                    f(x)
            found.append(counts(p))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert found == [{"exp": 20, "sum": 20}] * 4


def make_functions():
    def inplace(x):
        y = x * 2
        y[0] = x[1]
        y[1:].mul_(x[1:])
        return (y * x.exp()).sum()

    def indexing(x):
        return (x[tg.tensor([0, 0, 2])] * x.sort()[0]).cumsum(0).sum()

    def network(x):
        hidden = tg.tanh(tg.nn.functional.linear(x, tg.ones(4, 3, dtype=tg.float64)))
        return hidden.softmax(0).log().var() + x.norm()

    def nested(x):
        (g,) = tg.autograd.grad((x**3).sum(), x, create_graph=True)
        return (g * tg.func.grad(lambda y: (y * y).prod())(x)).sum()

    def noise(x):
        return (x * tg.randn(3, dtype=tg.float64)).sum() + tg.nn.functional.softplus(x).max()

    return {f.__name__: f for f in (inplace, indexing, network, nested, noise)}


class TestNothingElseChanges:
    @pytest.mark.parametrize("way", ["eager", "compiled"])
    @pytest.mark.parametrize("name", make_functions())
    def test_values_and_gradients(self, name, way):
        function = make_functions()[name]
        function = tg.compile(function) if way == "compiled" else function
        results = []
        for look in (False, True, False, True):
            tg.manual_seed(3)
            x = tg.tensor([0.3, 0.8, 1.7], dtype=tg.float64, requires_grad=True)
            if look:
                with tg.profile() as p:
                    value = function(x)
                    value.backward()
                assert p.events
            else:
                value = function(x)
                value.backward()
            results.append((value.detach().numpy(), x.grad.numpy()))
        for value, slope in results[1:]:
            np.testing.assert_array_equal(value, results[0][0])
            np.testing.assert_array_equal(slope, results[0][1])

    def test_memory_is_given_back(self):
        x = leaf(100)

        def work():
            (x.exp() * x).sum().backward()
            x.grad = None

        for _ in range(3):
            work()
            profiled(work)
        gc.collect()
        before = int(rt.state.used_bytes), int(rt.state.row_count), int(rt.state.live_buffers)
        for _ in range(5):
            profiled(work)
        gc.collect()
        assert (int(rt.state.used_bytes), int(rt.state.row_count), int(rt.state.live_buffers)) == before

    def test_kernels_that_fail(self):
        x = tg.tensor([4.0, -4.0], dtype=tg.float64)
        f = tg.compile(lambda x: root(x) * 2)
        f(x.abs())
        for call in (root, f):
            with tg.profile() as p:
                with pytest.raises(ValueError, match="a root of a negative number"):
                    call(x)
                call(x.abs())
            assert counts(p)["root"] == 1
        assert f.stats()["programs"] == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda: tg.ones(3) + tg.ones(2),
            lambda: tg.ones(3, requires_grad=True).add_(1),
            lambda: tg.ones(2).backward(),
            lambda: tg.ones(3, requires_grad=True).exp().backward(),
        ],
    )
    def test_refusals(self, wrong):
        with pytest.raises(RuntimeError) as expected:
            wrong()
        with tg.profile() as p, raises(str(expected.value)):
            wrong()
        assert "add" not in counts(p)

    def test_backward_twice(self):
        x = leaf(3)
        y = (x * x).sum()
        with tg.profile() as p:
            y.backward()
            with pytest.raises(RuntimeError, match="second time"):
                y.backward()
        assert counts(p, "reverse") == {"sum": 2, "mul": 1}

    def test_anomaly_detection(self):
        x = tg.tensor(0.0, requires_grad=True)
        with (
            pytest.warns(UserWarning, match="Anomaly"),
            tg.profile() as p,
            tg.autograd.detect_anomaly(),
            pytest.raises(RuntimeError, match="returned nan values"),
            pytest.warns(UserWarning, match="Error detected in SqrtBackward0"),
        ):
            (tg.sqrt(x) * 0.0).backward()
        assert counts(p)["sqrt"] == 1
