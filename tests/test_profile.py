"""`profile`: every operation is there as often as it ran, bytes are exact, and nothing else is changed by looking."""

import collections
import gc
import json
import math
import threading
import time

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine.runtime import rt
from tapegrad.profiling import Event
from tests.declared import root
from tests.helpers import raises

HEADINGS = ("operation", "kind", "calls", "time", "share", "mean", "bytes", "GB/s", "allocated", "line")


def profiled(function, *args):
    """The profile of a call, and what it returns."""
    with tg.profile() as p:
        result = function(*args)
    return p, result


def counts(p, kind=None):
    """How often each operation ran."""
    return dict(collections.Counter(e.operation for e in p.events if kind in (None, e.kind)))


def of(p, operation, kind="forward"):
    """The only event of an operation."""
    (found,) = [e for e in p.events if (e.operation, e.kind) == (operation, kind)]
    return found


def leaf(*shape):
    """A float64 tensor that requires grad."""
    return tg.rand(*shape, dtype=tg.float64).requires_grad_()


def made_up(took, operation="exp", line=""):
    """An event that did not happen."""
    return Event(operation, "forward", 0, took, took, 8, 0, (), (), "float64", line)


@pytest.fixture(autouse=True)
def nobody_watches_afterwards():
    before = dict(vars(rt))
    yield
    assert int(rt.state.watched) == 0
    assert rt.record is before.get("record", rt.record)
    assert not hasattr(rt.record, "__wrapped__")
    assert not hasattr(rt.run_program, "__wrapped__")


class TestForward:
    def test_every_call_is_counted(self):
        x, w = tg.ones(4, 3), tg.ones(3, 2)

        def work():
            for _ in range(5):
                y = (x @ w).relu() + 1
                y.softmax(1).sum(0).mul_(2)
            return y.t().reshape(8).max(0)

        p, _ = profiled(work)
        assert counts(p, "forward") == counts(profiled(work)[0], "forward")
        found = counts(p)
        assert {name: found[name] for name in ("mm", "relu", "add", "softmax", "mul_", "t")} == {
            "mm": 5,
            "relu": 5,
            "add": 5,
            "softmax": 5,
            "mul_": 5,
            "t": 1,
        }
        assert counts(p, "view")["t"] == 1

    def test_methods_without_a_python_frame(self):
        x = tg.ones(2)
        for _ in range(1100):  # after which they are installed
            x * x
        p, _ = profiled(lambda: [x * x - 1.0 for _ in range(1500)])
        assert counts(p) == {"mul": 1500, "sub": 1500}

    @pytest.mark.parametrize("off", [tg.no_grad, tg.inference_mode])
    def test_without_gradients(self, off):
        x = leaf(3)
        with off():
            p, _ = profiled(lambda: (x * x).exp())
        assert counts(p) == {"mul": 1, "exp": 1}

    def test_bytes_of_operands_and_result(self):
        x, row, w = leaf(4, 3).detach(), leaf(3).detach(), leaf(3, 5).detach()
        for call, name, moved, allocated in (
            (lambda: x + row, "add", 96 + 24 + 96, 96),
            (lambda: x + x, "add", 96 + 96, 96),
            (lambda: x * 2.0, "mul", 96 + 8 + 96, 96),
            (lambda: x.exp(), "exp", 192, 96),
            (lambda: x @ w, "mm", 96 + 120 + 160, 160),
            (lambda: x.sum(), "sum", 96 + 8, 8),
            (lambda: x.softmax(1), "softmax", 192, 96),
            (lambda: x > 0.5, "gt", 96 + 8 + 12, 12),
            (lambda: row.expand(4, 3) + x, "add", 24 + 96 + 96, 96),
            (lambda: x.clone().add_(row), "add_", 96 + 24 + 96, 0),
            (lambda: tg.cat([x, x, row.expand(1, 3)]), "join", 96 + 24 + 216, 216),
            (lambda: tg.zeros(0, 3) + 1.0, "add", 4, 0),
        ):
            event = of(profiled(call)[0], name)
            assert (event.bytes, event.allocated) == (moved, allocated), name

    def test_shapes_and_dtypes(self):
        event = of(profiled(lambda: tg.ones(4, 3) > tg.ones(3))[0], "gt")
        assert (event.reads, event.writes, event.dtype) == (((4, 3), (3,)), ((4, 3),), "bool")

    def test_views_move_nothing(self):
        event = of(profiled(lambda: tg.ones(4, 3).t())[0], "t", "view")
        assert (event.bytes, event.allocated, event.writes) == (0, 0, ((3, 4),))

    def test_what_a_kernel_fills_beside_its_result_is_written(self):
        x = tg.ones(4, 3)
        event = next(e for e in profiled(lambda: x.max(1))[0].events if e.kind == "forward")
        assert event.bytes == 48 + 16 + 32
        assert event.allocated == 16 + 32

    def test_in_place_with_gradients_stays_in_place(self):
        x = leaf(1000)

        def work():
            y = x * 2
            y.mul_(3.0).add_(1.0)
            return y.sum()

        p, _ = profiled(work)
        assert counts(p) == {"mul": 1, "mul_": 1, "add_": 1, "sum": 1}
        assert of(p, "mul_").allocated == 0

    def test_lines(self):
        def work():
            x = tg.ones(3)
            y = x.exp()
            return y.sin()

        p, _ = profiled(work)
        first = work.__code__.co_firstlineno
        assert of(p, "exp").line == f"test_profile.py:{first + 2}"
        assert of(p, "sin").line == f"test_profile.py:{first + 3}"

    def test_the_line_of_most_time(self):
        p = tg.profile()
        for line, took in (("a.py:1", 30), ("b.py:2", 50), ("a.py:1", 30), ("", 40)):
            p.events.append(made_up(took, line=line))
        (row,) = p.rows
        assert (row.line, row.time_ns, row.mean_ns, row.calls) == ("a.py:1", 150, 37.5, 4)


class TestSweeps:
    def test_every_row_is_counted(self):
        x, w = leaf(4, 3), leaf(3, 3)

        def loss():
            y = x
            for _ in range(4):
                y = (y @ w).sin()
            return y.sum()

        p, _ = profiled(loss().backward)
        assert counts(p) == {"sum": 1, "sin": 4, "mm": 4}
        assert {e.kind for e in p.events} == {"reverse"}

    def test_only_rows_on_the_way_to_what_is_wanted(self):
        x, y = leaf(3), leaf(3)
        z = (x.sin() * y.cos()).sum()
        p, _ = profiled(lambda: tg.autograd.grad(z, x, retain_graph=True))
        assert counts(p) == {"sum": 1, "mul": 1, "sin": 1}
        p, _ = profiled(lambda: tg.autograd.backward([z, x.exp().sum()]))
        assert counts(p, "reverse") == {"sum": 2, "mul": 1, "sin": 1, "cos": 1, "exp": 1}

    def test_bytes_of_adjoints_and_what_was_saved(self):
        x, y = leaf(5), leaf(5)
        product = x * y
        p, _ = profiled(lambda: product.backward(tg.ones(5, dtype=tg.float64), retain_graph=True))
        event = of(p, "mul", "reverse")
        assert (event.bytes, event.allocated) == (5 * 40, 80)  # the adjoint, both factors, both adjoints
        p, _ = profiled(lambda: product.backward(tg.ones(5, dtype=tg.float64)))
        event = of(p, "mul", "reverse")
        assert (event.bytes, event.allocated) == (200, 0)  # added to the gradients there are
        total = x.sum()
        x.grad = None
        p, _ = profiled(total.backward)
        assert (of(p, "sum", "reverse").bytes, of(p, "sum", "reverse").allocated) == (48, 40)

    def test_an_adjoint_handed_on_is_not_moved(self):
        x = leaf(5)
        y = (x.exp() + 1.0).view(5)
        p, _ = profiled(lambda: y.backward(tg.ones(5, dtype=tg.float64)))
        assert of(p, "view", "reverse").bytes == of(p, "add", "reverse").bytes == 0
        assert of(p, "exp", "reverse").bytes == 120

    def test_lines_of_the_operations_recorded_within_the_block(self):
        x = leaf(3)
        before = x.exp()

        def work():
            y = before.sin()
            y.sum().backward()

        p, _ = profiled(work)
        assert of(p, "sin", "reverse").line == f"test_profile.py:{work.__code__.co_firstlineno + 1}"
        assert of(p, "exp", "reverse").line == ""

    def test_derivatives_of_derivatives(self):
        x = leaf(3)

        def work():
            slope = tg.autograd.grad((x.exp() * x).sum(), x, create_graph=True)[0]
            return tg.autograd.grad(slope.sum(), x)[0]

        for _ in range(4):  # the third of a structure would be recorded again by compiled code
            p, result = profiled(work)
            np.testing.assert_allclose(result.numpy(), (x.exp() * (x + 2)).detach().numpy(), rtol=1e-12)
            over_tensors = [e for e in p.events if e.kind == "reverse" and e.span_ns > e.time_ns]
            assert {e.operation for e in over_tensors} >= {"exp", "mul"}
            assert counts(p, "forward")["mul"] > 1

    def test_a_derivative_in_python_has_what_it_runs_inside_of_it(self):
        class Cube(tg.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x * x

            @staticmethod
            def backward(ctx, g):
                (x,) = ctx.saved_tensors
                return g * x * x * 3.0

        x = leaf(3)

        def work():
            y = Cube.apply(x)
            y.sum().backward()

        p, _ = profiled(work)
        node = of(p, "CubeBackward", "reverse")
        assert node.line == f"test_profile.py:{work.__code__.co_firstlineno + 1}"
        inside = [e for e in p.events if e.kind == "forward" and e.start_ns > node.start_ns]
        assert [e.operation for e in inside] == ["mul"] * 3
        assert all(e.start_ns + e.span_ns <= node.start_ns + node.span_ns for e in inside)
        assert node.time_ns + sum(e.time_ns for e in inside) <= node.span_ns
        np.testing.assert_allclose(x.grad.numpy(), 3 * x.detach().numpy() ** 2)

    def test_hooks(self):
        x = leaf(3)
        y = x * 2.0
        y.register_hook(lambda g: g.cos())
        p, _ = profiled(lambda: y.sum().backward())
        assert counts(p, "forward")["cos"] == 1
        assert counts(p, "reverse") == {"sum": 1, "mul": 1}
        np.testing.assert_allclose(x.grad.numpy(), 2 * np.cos(1.0) * np.ones(3))

    def test_saved_tensors_hooks(self):
        x = leaf(3)
        with tg.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t / 2):
            p, y = profiled(lambda: x.exp().sum())
        assert counts(p) == {"exp": 1, "mul": 1, "sum": 1}
        p, _ = profiled(y.backward)
        assert counts(p, "reverse") == {"sum": 1, "exp": 1}
        assert counts(p, "forward")["true_divide"] == 1
        np.testing.assert_allclose(x.grad.numpy(), np.exp(x.detach().numpy()))

    @pytest.mark.parametrize("wanted", [False, True])
    def test_an_interrupt_between_rows(self, wanted):
        class Interrupting(list):
            def append(self, event):
                if event.operation == "sin":
                    raise KeyboardInterrupt
                super().append(event)

        x = leaf(3)
        y = x.exp().sin().sum()
        with tg.profile() as p:
            p.events = Interrupting()
            with pytest.raises(KeyboardInterrupt):
                tg.autograd.grad(y, x) if wanted else y.backward()
        assert x.grad is None
        assert int(rt.state.sweeping) == int(rt.state.pending) == 0
        x.exp().sin().sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), (x.exp().cos() * x.exp()).detach().numpy())

    def test_an_error_inside_of_a_sweep(self):
        x = leaf(3)
        y = x.exp()
        y.register_hook(lambda g: 1 / 0)
        with tg.profile() as p, pytest.raises(ZeroDivisionError):
            y.sum().backward()
        assert counts(p, "reverse") == {"sum": 1}
        x.exp().sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), np.exp(x.detach().numpy()))


class TestTransformations:
    def test_maps(self):
        x = tg.rand(6, 3, dtype=tg.float64)
        p, result = profiled(lambda: tg.vmap(lambda r: r.exp().sum())(x))
        np.testing.assert_allclose(result.numpy(), np.exp(x.numpy()).sum(1))
        assert counts(p, "forward")["exp"] == 2  # of the first sample, then of all
        assert max(e.bytes for e in p.events if e.operation == "exp") == 2 * 6 * 3 * 8

    def test_a_kernel_that_runs_once_a_sample(self):
        x = tg.rand(6, 3, 3, dtype=tg.float64)
        p, _ = profiled(lambda: tg.vmap(lambda m: m.tril())(x))
        assert counts(p, "forward")["tril"] == 2
        assert [e.bytes for e in p.events if e.operation == "tril"] == [144, 6 * 144]

    def test_gradients_and_tangents(self):
        x = tg.rand(3, dtype=tg.float64)
        f = lambda x: (x.sin() * x).sum()
        p, slope = profiled(tg.func.grad(f), x)
        np.testing.assert_array_equal(slope.numpy(), tg.func.grad(f)(x).numpy())
        assert counts(p, "reverse") == {"sum": 1, "mul": 1, "sin": 1}
        p, _ = profiled(lambda: tg.func.jvp(f, (x,), (x,)))
        assert counts(p, "forward")["sin"] == 1


class TestReplays:
    def test_every_instruction_of_every_run(self):
        f = tg.compile(lambda x: ((x * 2.0).exp() + x).sum())
        x = tg.ones(10)
        f(x)
        p, _ = profiled(lambda: [f(x) for _ in range(7)])
        assert counts(p) == counts(p, "replayed") == {"mul": 7, "exp": 7, "add": 7, "sum": 7}
        assert f.stats()["replays"] == 8
        by_name = {e.operation: (e.bytes, e.allocated, e.reads, e.writes) for e in p.events}
        assert by_name == {
            "mul": (40 + 4 + 40, 0, ((10,), ()), ((10,),)),
            "exp": (80, 0, ((10,),), ((10,),)),
            "add": (120, 0, ((10,), (10,)), ((10,),)),
            "sum": (44, 0, ((10,),), ((),)),
        }
        assert {r.line for r in p.rows} == {f"test_profile.py:{f.function.__code__.co_firstlineno}"}

    def test_instructions_that_share_a_loop(self):
        f = tg.compile(lambda x: ((x * 2.0).exp() + x).sum())
        x = tg.ones(10)
        f(x)
        f.programs()[0].fuse(math.inf)
        assert f.stats()["fused"] == 1
        p, _ = profiled(f, x)
        assert counts(p) == {"mul+exp+add": 1, "sum": 1}
        loop = of(p, "mul+exp+add", "replayed")
        assert loop.bytes == 40 + 4 + 40  # what is in between stays in registers
        assert (loop.reads, loop.writes) == (((10,), ()), ((10,),))

    def test_values_and_gradients(self):
        f = tg.compile(lambda x: (x.sin() * x).sum())
        x = np.linspace(0, 1, 5)
        expected = f.value_and_grad(x)
        p, found = profiled(f.value_and_grad, x)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert counts(p)["cos"] == counts(p)["sin"] == 1
        program = f.derivative(0).programs()[0]
        assert len(p.events) == len(program.code.steps)

    def test_tensors_that_require_grad(self):
        f = tg.compile(lambda x: x.sin().sum())
        x = leaf(4)
        f(x).backward()
        expected, x.grad = x.grad, None
        p, _ = profiled(lambda: f(x).backward())
        np.testing.assert_array_equal(x.grad.numpy(), expected.numpy())
        assert counts(p, "replayed")["sin"] == counts(p, "replayed")["cos"] == 1
        (node,) = [e for e in p.events if e.kind == "reverse"]
        assert any(e.kind == "replayed" and e.start_ns > node.start_ns for e in p.events)

    def test_a_write_to_a_part(self):
        def g(x):
            y = x * 2.0
            y[1:3] = x[:2]
            return y

        f = tg.compile(g)
        x = tg.rand(5, dtype=tg.float64)
        f(x)
        p, result = profiled(f, x)
        np.testing.assert_array_equal(result.numpy(), g(x).numpy())
        assert of(p, "copy_slices", "replayed").bytes == 2 * 40 + 2 * 16  # to the result's own memory, then the part
        f = tg.compile(lambda x: g(x).exp())
        f(x)
        p, _ = profiled(f, x)
        assert of(p, "copy_slices", "replayed").bytes == 2 * 16

    def test_guards_choose_the_same_paths(self):
        def g(x):
            return x.exp() if x.sum() > 0 else x.sin()

        f = tg.compile(g)
        for value in (1.0, -1.0):
            f(tg.full((3,), value))
        p, results = profiled(lambda: [f(tg.full((3,), v)) for v in (1.0, -1.0, 2.0)])
        for v, result in zip((1.0, -1.0, 2.0), results, strict=True):
            np.testing.assert_array_equal(result.numpy(), g(tg.full((3,), v)).numpy())
        found = counts(p, "replayed")
        assert (found["exp"], found["sin"]) == (2, 1)
        assert found["guard"] > 3  # those that met another value are among them
        assert f.stats()["captures"] == 2

    def test_a_path_that_is_recorded_within_the_block(self):
        f = tg.compile(lambda x: x.exp() if x.sum() > 0 else x.sin())
        f(tg.ones(3))
        p, result = profiled(f, tg.full((3,), -1.0))
        np.testing.assert_array_equal(result.numpy(), tg.full((3,), -1.0).sin().numpy())
        assert counts(p, "forward")["sin"] == counts(p, "replayed")["sin"] == 1
        assert f.stats()["captures"] == 2

    def test_random_numbers(self):
        f = tg.compile(lambda x: x * tg.rand(3))
        g = lambda: [f(tg.ones(3)) for _ in range(3)]
        g()
        tg.manual_seed(1)
        expected = g()
        tg.manual_seed(1)
        p, found = profiled(g)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert counts(p, "replayed") == {"mul": 3}

    def test_steps_that_python_does(self):
        f = tg.compile(lambda x: x.exp().sort()[0] * 2.0)
        x = tg.rand(50)
        f(x)
        p, result = profiled(f, x)
        np.testing.assert_array_equal(result.numpy(), np.sort(x.exp().numpy()) * 2)
        (program,) = f.programs()
        assert len(p.events) == len(program.code.steps)
        assert [e.start_ns for e in p.events] == sorted(e.start_ns for e in p.events)

    def test_lanes(self):
        f = tg.compile(lambda w, x: ((w * x).sum() - 1.0) ** 2)
        slopes = tg.vmap(tg.value_and_grad(f), in_dims=(None, 0))
        w, xs = np.ones(3), np.random.default_rng(0).normal(size=(50_000, 3))
        expected = slopes(w, xs)
        p, found = profiled(slopes, w, xs)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        (lanes,) = f.lanes.values()
        (path,) = [path for path in lanes.programs() if path.block > 16]
        blocks = -(-len(xs) // path.block)
        assert len(p.events) == blocks * len(path.native.code.steps)
        assert max(e.reads[0] for e in p.events if e.reads)[0] == path.block

    def test_kernels_that_all_cores_share(self):
        f = tg.compile(lambda x: x.exp().sin().sum(0))
        x = tg.rand(1200, 1100)
        expected = f(x)
        p, found = profiled(f, x)
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
        assert counts(p) == {"exp": 1, "sin": 1, "sum_along": 1}

    def test_nothing_to_do(self):
        f = tg.compile(lambda x: tg.ones(2))
        f(tg.ones(3))
        p, result = profiled(f, tg.ones(3))
        np.testing.assert_array_equal(result.numpy(), [1, 1])
        assert set(counts(p)) <= {"clone"}

    def test_within_another_derivative_of_python(self):
        slope = tg.compile(lambda x: x.cos())

        class Sine(tg.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.sin()

            @staticmethod
            def backward(ctx, g):
                return g * slope(ctx.saved_tensors[0])

        x = leaf(3)
        slope(x.detach())
        p, _ = profiled(lambda: Sine.apply(x).sum().backward())
        node, inner = of(p, "SineBackward", "reverse"), of(p, "cos", "replayed")
        assert node.start_ns < inner.start_ns
        assert node.time_ns + inner.time_ns <= node.span_ns


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


class TestTimes:
    def test_sums_are_within_the_time_of_the_block(self):
        x = leaf(50, 50)
        f = tg.compile(lambda x: (x.exp() @ x).sum())
        f(x.detach())

        def work():
            (x @ x.sin()).sum().backward()
            tg.autograd.grad((x**2).sum(), x, create_graph=True)
            f(x.detach())

        work()
        start = time.perf_counter_ns()
        p, _ = profiled(work)
        wall = time.perf_counter_ns() - start
        assert all(e.time_ns >= 1 for e in p.events)
        assert all(e.span_ns >= e.time_ns for e in p.events)
        assert 0 < sum(e.time_ns for e in p.events) <= p.wall_ns <= wall
        assert p.overhead_ns > 0
        for e in p.events:
            assert p.start_ns <= e.start_ns <= e.start_ns + e.span_ns <= p.start_ns + p.wall_ns + p.overhead_ns

    def test_more_work_takes_more_time(self):
        small, large = tg.rand(10), tg.rand(1000, 1000)
        f = tg.compile(lambda a, b: (a.sin(), b.exp()))
        for call in (f, lambda a, b: (a.sin(), b.exp())):
            call(small, large)
            p, _ = profiled(lambda call=call: [call(small, large) for _ in range(5)])
            least = {name: min(e.time_ns for e in p.events if e.operation == name) for name in ("sin", "exp")}
            assert least["exp"] > 5 * least["sin"]

    def test_rows_are_sums_of_events(self):
        x = leaf(5)
        p, _ = profiled(lambda: [(x * x).sum().backward() for _ in range(3)])
        rows = p.rows
        assert [r.time_ns for r in rows] == sorted((r.time_ns for r in rows), reverse=True)
        assert sum(r.calls for r in rows) == len(p.events) == 12
        assert sum(r.share for r in rows) == pytest.approx(1)
        for row in rows:
            events = [e for e in p.events if (e.operation, e.kind) == (row.operation, row.kind)]
            assert row.calls == 3
            assert row.time_ns == sum(e.time_ns for e in events)
            assert row.mean_ns == row.time_ns / 3
            assert row.bytes == sum(e.bytes for e in events)
            assert row.allocated == sum(e.allocated for e in events)


class TestShowing:
    def example(self):
        x = leaf(5)
        return profiled(lambda: [(x * x).sum().backward() for _ in range(3)])[0]

    def test_table(self):
        p = self.example()
        lines = p.table("operation").splitlines()
        assert lines[0].split() == list(HEADINGS)
        assert [line.split()[:3] for line in lines[1:5]] == [
            ["mul", "forward", "3"],
            ["mul", "reverse", "3"],
            ["sum", "forward", "3"],
            ["sum", "reverse", "3"],
        ]
        assert set(lines[5]) == {"-"}
        assert lines[6].split()[:2] == ["all", "12"]
        assert " of " in lines[7]
        assert str(p) == p.table() == p.table(sort="time")
        assert repr(p).startswith("<profile of 12 calls, ")

    @pytest.mark.parametrize("sort", ["time", "calls", "mean", "bytes", "allocated"])
    def test_sorting(self, sort):
        p = self.example()
        field = {"time": "time_ns", "mean": "mean_ns"}.get(sort, sort)
        names = [tuple(line.split()[:2]) for line in p.table(sort).splitlines()[1:5]]
        values = {(r.operation, r.kind): getattr(r, field) for r in p.rows}
        assert [values[n] for n in names] == sorted(values.values(), reverse=True)

    def test_long_names_are_cut(self):
        name = "+".join(["mul"] * 20)
        p = tg.profile()
        p.events.append(made_up(10, operation=name))
        assert p.rows[0].operation == name
        assert p.table().splitlines()[1].split()[0] == name[:29] + "..."

    def test_a_limit(self):
        lines = self.example().table(limit=1).splitlines()
        assert len(lines) == 6
        assert lines[-2] == "and 3 more operations"
        assert lines[-3].split()[:2] == ["all", "12"]

    def test_wrong_arguments(self):
        p = tg.profile()
        with raises(
            "table: sort must be one of 'time', 'calls', 'mean', 'bytes', 'allocated', 'operation', but got 'x'",
            ValueError,
        ):
            p.table("x")
        for limit in (0, -1, 1.5, True):
            with raises(f"table: limit must be a positive int or None, but got {limit!r}", ValueError):
                p.table(limit=limit)

    def test_an_empty_profile(self, tmp_path):
        p, _ = profiled(lambda: None)
        assert p.rows == p.events == []
        assert p.table().splitlines()[0].split()[0] == "operation"
        assert p.table().startswith("operation  kind  calls")
        assert repr(p) == "<profile of 0 calls, 0 ns in operations>"
        p.chrome_trace(tmp_path / "trace.json")
        assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []

    def test_trace(self, tmp_path):
        x = leaf(5)
        f = tg.compile(lambda x: x.cos().sum())
        f(x.detach())

        def work():
            (x * x).sum().backward()
            tg.autograd.grad(x.exp().sum(), x, create_graph=True)
            return f(x.detach())

        p, _ = profiled(work)
        path = tmp_path / "trace.json"
        p.chrome_trace(str(path))
        trace = json.loads(path.read_text())
        events = trace["traceEvents"]
        assert len(events) == len(p.events)
        assert {e["cat"] for e in events} == {"forward", "view", "reverse", "replayed"}
        for e in events:
            assert set(e) == {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}
            assert e["ph"] == "X"
            assert e["tid"] == threading.get_native_id()
            assert 0 <= e["ts"] <= e["ts"] + e["dur"] <= (p.wall_ns + p.overhead_ns) / 1000
            assert set(e["args"]) == {"time_ns", "bytes", "allocated", "shapes", "dtype", "line"}
        assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
        for row in p.rows:
            found = [e for e in events if (e["name"], e["cat"]) == (row.operation, row.kind)]
            assert len(found) == row.calls
            assert sum(e["args"]["time_ns"] for e in found) == row.time_ns
            assert sum(e["args"]["bytes"] for e in found) == row.bytes
            if all(event.span_ns == event.time_ns for event in p.events if event.operation == row.operation):
                assert sum(e["dur"] for e in found) * 1000 == pytest.approx(row.time_ns)
        # one thread's events are within each other or apart
        open_until = []
        for e in events:
            while open_until and open_until[-1] <= e["ts"] + 1e-3:
                open_until.pop()
            assert not open_until or e["ts"] + e["dur"] <= open_until[-1] + 1e-3
            open_until.append(e["ts"] + e["dur"])
        (mul,) = [e for e in events if (e["name"], e["cat"]) == ("mul", "forward") and e["args"]["bytes"] == 80]
        assert mul["args"]["shapes"] == {"read": [[5]], "written": [[5]]}

    def test_a_trace_that_cannot_be_written(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            tg.profile().chrome_trace(tmp_path / "missing" / "trace.json")


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
