"""Every operation is there as often as it ran, with its bytes, shapes and line."""

import numpy as np
import pytest

import tapegrad as tg
from tests.profiling.helpers import counts, leaf, of, profiled


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
        assert of(p, "exp").line == f"test_operations.py:{first + 2}"
        assert of(p, "sin").line == f"test_operations.py:{first + 3}"


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
