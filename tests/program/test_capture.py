"""What a captured function may refer to and write to, and what is refused."""

import numpy as np
import pytest

import tapegrad as tg
from tests.program.helpers import leaf, same


class TestWhatIsOutside:
    def test_captured_tensors_are_read_anew(self):
        w = tg.tensor([1.0, 2.0])
        f = tg.compile(lambda x: x * (w * 2).exp())
        x = tg.ones(2)
        same(f(x), (w * 2).exp())
        w += 1
        same(f(x), (w * 2).exp())
        w[0] = 0.5
        same(f(x), (w * 2).exp())
        w.data = tg.tensor([3.0, 3.0])
        same(f(x), (w * 2).exp())
        assert f.stats()["captures"] == 1

    def test_of_another_shape_then(self):
        box = [tg.tensor([1.0, 2.0])]
        f = tg.compile(lambda x: x * box[0])
        same(f(tg.ones(2)), box[0])
        box[0].data = tg.tensor(5.0)
        same(f(tg.ones(2)), tg.tensor([5.0, 5.0]))

    def test_trained_parameters(self):
        w = leaf(1.0, 2.0)
        f = tg.compile(lambda x: (x * w).sum())
        optimizer = tg.optim.SGD([w], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            value = f(tg.ones(2))
            same(value, w.sum())
            value.backward()
            optimizer.step()
        same(w, tg.tensor([0.7, 1.7]))

    def test_written_by_recorded_operations(self):
        w = leaf(1.0, 2.0)
        state = w * 1
        f = tg.compile(lambda x: (x * state).sum())
        same(f(tg.ones(2)), state.sum())
        state.mul_(w)
        same(f(tg.ones(2)), state.sum())
        same(tg.autograd.grad(f(tg.ones(2)), w)[0], 2 * w)

    def test_views_of_what_is_written(self):
        base = tg.zeros(3)
        view = base[1:]
        f = tg.compile(lambda x: x * view)
        same(f(tg.ones(2)), tg.zeros(2))
        base.add_(2)
        same(f(tg.ones(2)), tg.full((2,), 2.0))

    def test_names_that_mean_something_else(self):
        global scale
        scale = 2.0
        w = tg.tensor([1.0])

        def helper(x):
            return x * scale

        f = tg.compile(lambda x: helper(x) + w)
        same(f(tg.ones(1)), tg.tensor([3.0]))
        scale = 3.0
        same(f(tg.ones(1)), tg.tensor([4.0]))
        w = tg.tensor([5.0])
        same(f(tg.ones(1)), tg.tensor([8.0]))
        assert f.stats()["captures"] == 3
        x = leaf(1.0)
        f(x).backward()
        scale = 7.0
        f(x).backward()
        same(x.grad, tg.tensor([10.0]))

    def test_arrays_outside(self):
        array = np.array([1.0, 2.0])
        f = tg.compile(lambda x: x * tg.from_numpy(array))
        same(f(np.ones(2)), array)
        array[0] = 7
        same(f(np.ones(2)), array)

    def test_writes_to_it_are_refused(self):
        total = tg.zeros(2)
        before = total.clone()

        def accumulates(x):
            total.add_(x)
            return total * 2

        def assigns(x):
            total[0] = x.sum()
            return x

        def keeps(x):
            total[1] = 5.0
            return x

        def rebinds(x):
            total.data = tg.ones(2)
            return x

        for function in (accumulates, assigns, keeps, rebinds):
            with pytest.raises(RuntimeError, match=r"writes to a tensor of shape \[2\] that it did not make itself"):
                tg.compile(function)(tg.ones(2))
            same(total, before)

    def test_writes_to_arguments_are_refused(self):
        def g(x):
            x.mul_(2)
            return x

        x = tg.ones(2)
        with pytest.raises(
            RuntimeError, match=r"writes to its argument of shape \[2\] in place \(test_capture.py:\d+\)"
        ):
            tg.compile(g)(x)
        same(x, tg.ones(2))

        def h(x):
            x.detach()[0] = 5
            return x

        with pytest.raises(RuntimeError, match="writes to its argument"):
            tg.compile(h)(np.ones(2))

    def test_gradients_left_behind_are_refused(self):
        w = leaf(1.0)

        def g(x):
            loss = (x * w).sum()
            loss.backward()
            return loss

        with pytest.raises(
            RuntimeError, match=r"leaves a gradient of shape \[1\] in .grad of a tensor that it did not make itself"
        ):
            tg.compile(g)(tg.ones(1))
        assert w.grad is None


class TestWritesInside:
    @pytest.mark.parametrize(
        "body",
        [
            "y = x * 1; y += x; y *= y; return y",
            "y = x * 1; y[0] = 5; y[1:] = x[:-1]; return y * x",
            "y = x * 1; v = y[1:]; v.mul_(3); return y + v.sum()",
            "y = x * 1; v = y[1:]; y.mul_(3); return v * 2, y",
            "y = x * 1; v = y.view(3, 1); w = v[1:]; w.zero_(); y[2] = x[0]; return w, v, y",
            "y = tg.zeros(3); y[1] = x[2]; z = y * 1; y[0] = x[1]; return y, z",
            "t = tg.tensor(0.0); y = x\nfor k in range(3):\n  t += 0.5\n  y = y + t - x * x\nreturn y",
            "t = tg.zeros(3); t[0] = 1; y = x + t; t[1] = 2; return y, x * t",
            "y = tg.empty(3); y.copy_(x); y.clamp_(min=1.5); return y",
            "y = x.clone(); y[y > 1.5] = 0; return y",
            "y = x.repeat(2, 1).t(); y = y.clone(); y[:, 0] += x; return y.cumsum(0)",
            "y = x * 1; v = y.view(3, 1); y.view(1, 3).sin_(); return v.detach(), v.view(3).detach() * x",
            "y = x.expand(2, 3).clone(); y[0].fill_(x.sum()); return y.flip(1)",
            "y = x * 1; y.index_add_(0, tg.tensor([0, 0, 2]), x); return y",
            "y = x * 1; y.masked_fill_(x > 1.5, 0.0); y.sub_(x, alpha=2); return y",
            "a, b = x.sort(descending=True); a[0] = 7; return a, b",
        ],
    )
    def test_are_as_eager(self, body):
        lines = body.replace("; ", "\n").split("\n")
        source = "def g(x):\n" + "\n".join("    " + line for line in lines)
        space = {"tg": tg}
        exec(source, space)
        g = space["g"]
        f = tg.compile(g)
        f(tg.tensor([1.0, 2.0, 3.0]))
        for values in ([3.0, 1.0, 1.2], [0.5, -1.0, 4.0]):
            x, y = leaf(*values), leaf(*values)
            found, expected = f(x), g(y)
            for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (found, expected)), strict=True):
                same(a, b)
            totals = [
                sum(t.sum() for t in (v if isinstance(v, tuple) else (v,)) if t.requires_grad)
                for v in (found, expected)
            ]
            if isinstance(totals[1], tg.Tensor):
                totals[0].backward()
                totals[1].backward()
                same(x.grad, y.grad)

    def test_through_other_tensors_of_the_same_memory_are_refused(self):
        def g(x):
            y = x * 1
            y.detach().mul_(3)
            return y * 2

        with pytest.raises(RuntimeError, match="was written to through another tensor that shares its memory"):
            tg.compile(g)(tg.ones(2))

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("y = x * 1; y.data[0] = 5; return y * 2", "was written to through another tensor"),
            ("y = x * 1; d = y.data; y.mul_(2); return d * 2", "was written to through another tensor"),
            ("y = x * 1; y.data = x * 3; return y", r"assigns to or from .data of a tensor of shape \[2\]"),
            ("y = tg.ones(2); y.data = x; return y", "assigns to or from .data"),
        ],
    )
    def test_through_data_are_refused(self, body, message):
        space = {"tg": tg}
        exec("def g(x):\n    " + body, space)
        with pytest.raises(RuntimeError, match=message):
            tg.compile(space["g"])(tg.ones(2))

    def test_through_data_of_what_nobody_uses(self):
        def g(x):
            y = x.clone().data
            y[0] = 7
            return y * x.data

        same(tg.compile(g)(leaf(1.0, 2.0)), tg.tensor([7.0, 4.0]))

    def test_to_memory_shared_with_numpy_are_refused(self):
        array = np.ones(2)

        def g(x):
            y = x * tg.from_numpy(array)
            array[0] = 7
            return y

        with pytest.raises(RuntimeError, match=r"writes to a tensor of shape \[2\] that it did not make itself"):
            tg.compile(g)(tg.ones(2))

    def test_that_no_gradient_would_know_of_are_refused(self):
        def g(x):
            y = x * 1
            with tg.no_grad():
                y.mul_(2)
            return y * x

        same(tg.compile(g)(tg.ones(2)), tg.full((2,), 2.0))
        with pytest.raises(RuntimeError, match="requires grad while gradients are switched off"):
            tg.compile(g)(leaf(1.0, 2.0))

    def test_views_that_no_gradient_would_know_of_are_refused(self):
        def g(x):
            y = x * 1
            with tg.no_grad():
                v = y[1:]
            y.mul_(2)
            return v * 2

        same(tg.compile(g)(tg.ones(2)), tg.tensor([4.0]))
        with pytest.raises(
            RuntimeError, match="taken while gradients are switched off is used after its base was written to"
        ):
            tg.compile(g)(leaf(1.0, 2.0))

    def test_to_arrays_of_traced_values_are_refused(self):
        def g(x):
            y = x * 2
            y.numpy()[0] = 5
            return y

        with pytest.raises(ValueError, match="read-only"):
            tg.compile(g)(tg.ones(2))
