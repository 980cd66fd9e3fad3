"""Every instruction of a recorded program is there, and the same paths are taken."""

import math

import numpy as np

import tapegrad as tg
from tests.profiling.helpers import counts, leaf, of, profiled


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
        assert {r.line for r in p.rows} == {f"test_replays.py:{f.function.__code__.co_firstlineno}"}

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
