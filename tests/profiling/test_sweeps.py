"""Every row of a sweep is there, with the bytes of adjoints and saved values, however the sweep is run."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine.runtime import rt
from tests.profiling.helpers import counts, leaf, of, profiled


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
        assert of(p, "sin", "reverse").line == f"test_sweeps.py:{work.__code__.co_firstlineno + 1}"
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
        assert node.line == f"test_sweeps.py:{work.__code__.co_firstlineno + 1}"
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
