"""Gradients of compiled calls of any order, and transformations of and in compiled functions."""

import numpy as np
import pytest

import tapegrad as tg
from tests.program.helpers import leaf, same


def own_backward(x):
    z = x.detach().requires_grad_()
    (z * z).sum().backward()
    return z.grad


class TestGradients:
    def test_of_arguments(self):
        def g(x, y):
            return (x.sin() * y).sum() / y.prod()

        f = tg.compile(g)
        for shift in (0.0, 0.5, -1.0):
            found, expected = [], []
            for function, into in ((f, found), (g, expected)):
                x, y = leaf(0.1 + shift, 0.7), leaf(2.0, 3.0 + shift)
                value = function(x, y)
                value.backward()
                into += [value, x.grad, y.grad]
            for a, b in zip(found, expected, strict=True):
                same(a, b)

    def test_of_second_and_third_order(self):
        def g(x):
            return (x**3 * x.cos()).sum()

        f = tg.compile(g)
        for start in (0.3, 1.7):
            rows = []
            for function in (f, g):
                x = leaf(start, 2.0, dtype=tg.float64)
                one = tg.autograd.grad(function(x), x, create_graph=True)[0]
                two = tg.autograd.grad(one.sum(), x, create_graph=True)[0]
                three = tg.autograd.grad(two.sum(), x)[0]
                rows.append((one, two, three))
            for a, b in zip(*rows, strict=True):
                same(a, b, 1e-12)

    def test_gradcheck(self):
        w = leaf(0.4, 0.9, dtype=tg.float64)
        f = tg.compile(lambda x: (x * w).exp().sum(0) + (x / w).norm())
        x = leaf(0.3, 1.2, dtype=tg.float64)
        assert tg.autograd.gradcheck(f, (x,))
        assert tg.autograd.gradgradcheck(f, (x,))

    def test_some_arguments_only(self):
        f = tg.compile(lambda x, y, n: (x * y * n).sum())
        x, y = leaf(1.0, 2.0), tg.tensor([3.0, 4.0])
        f(x, y, 2).backward()
        same(x.grad, tg.tensor([6.0, 8.0]))
        assert y.grad is None
        y2 = leaf(3.0, 4.0)
        f(x.detach(), y2, 2).backward()
        same(y2.grad, tg.tensor([2.0, 4.0]))

    def test_results_that_carry_none(self):
        f = tg.compile(lambda x: (x * 2, x.argmax(), (x * 3).detach()))
        a, b, c = f(leaf(1.0, 2.0))
        assert a.requires_grad
        assert not b.requires_grad
        assert not c.requires_grad
        assert b.dtype is tg.int64

    def test_nothing_is_recorded_without_grad(self):
        f = tg.compile(lambda x: x * 2)
        x = leaf(1.0)
        with tg.no_grad():
            assert not f(x).requires_grad
        assert f(x).requires_grad
        with tg.inference_mode():
            assert f(x).is_inference()

    def test_recorded_in_inference_mode(self):
        w = leaf(1.0, 2.0)
        f = tg.compile(lambda x: x * w.exp())
        with tg.inference_mode():
            assert f(tg.ones(2)).is_inference()
        x = leaf(1.0, 1.0)
        f(x).sum().backward()
        same(x.grad, w.exp())

    def test_of_captured_tensors(self):
        w, b = leaf(1.0, 2.0), leaf(0.5)
        f = tg.compile(lambda x: (x * w + b).sum())
        for x in (tg.tensor([1.0, 2.0]), tg.tensor([5.0, 7.0])):
            w.grad = b.grad = None
            f(x).backward()
            same(w.grad, x)
            same(b.grad, tg.tensor([2.0]))
        grads = tg.autograd.grad(f(tg.ones(2)), [w, b], create_graph=True)
        same(grads[0], tg.ones(2))

    def test_of_results_that_are_captured(self):
        w = leaf(2.0)
        doubled = w * 2
        f = tg.compile(lambda x: (x * doubled).sum())
        same(tg.autograd.grad(f(tg.tensor([3.0])), w)[0], tg.tensor([6.0]))

    def test_graph(self):
        f = tg.compile(lambda x, y: (x * y, x.exp(), y.argmax()))
        x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
        a, b, c = f(x, y)
        assert type(a.grad_fn).__name__ == "CompiledCallBackward"
        assert a.grad_fn is b.grad_fn
        assert (a.output_nr, b.output_nr, c.grad_fn) == (0, 1, None)
        assert [n.variable for n, _ in a.grad_fn.next_functions] == [x, y]
        seen = []
        b.register_hook(seen.append)
        a.grad_fn.register_hook(lambda after, before: seen.append(before))
        (a.sum() + 2 * b.sum()).backward()
        same(seen[0], tg.full((2,), 2.0))
        same(seen[1][0], tg.ones(2))
        with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
            a.sum().backward()

    def test_saved_tensors(self):
        f = tg.compile(lambda x, y: (x * y).sum())
        x, y, packed = leaf(1.0, 2.0), leaf(3.0, 4.0), []
        with tg.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or len(packed) - 1, lambda k: packed[k]):
            value = f(x, y)
        assert len(packed) == 2
        value.backward()
        same(x.grad, y)
        value = f(x, y)
        with tg.no_grad():
            y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()

    def test_tensors_outside_that_begin_or_cease_to_require_grad(self):
        w = tg.tensor([1.0, 2.0])
        f = tg.compile(lambda x: (x * w).sum())
        x = tg.tensor([3.0, 4.0])
        for wanted in (False, True, False, True):
            w.requires_grad_(wanted)
            assert f(x).requires_grad == wanted
        f(x).backward()
        same(w.grad, x)
        doubled = w * 2
        g = tg.compile(lambda x: (x * doubled).sum())
        assert g(x).requires_grad
        doubled.detach_()
        assert not g(x).requires_grad

    def test_arrays_written_to_before_backward(self):
        f = tg.compile(lambda x, a: (x * a).sum())
        x, a = leaf(1.0, 2.0, dtype=tg.float64), np.array([3.0, 4.0])
        value = f(x, a)
        a[:] = 7
        value.backward()
        same(x.grad, np.array([3.0, 4.0]))

    def test_leaves_that_the_function_makes(self):
        f = tg.compile(lambda x: ((x * 2).detach().requires_grad_(), x * tg.ones(2, requires_grad=True), x))
        for a, b, _ in (f(tg.ones(2)), f(tg.ones(2)), f(leaf(1.0, 1.0))):
            assert a.requires_grad
            assert b.requires_grad

    def test_training(self):
        def loss(x, y, w, b):
            return ((x @ w + b - y) ** 2).mean()

        losses = []
        for function in (loss, tg.compile(loss)):
            rng = np.random.default_rng(0)
            x, y = tg.tensor(rng.normal(size=(20, 3))), tg.tensor(rng.normal(size=20))
            w, b = leaf(0.1, 0.2, 0.3, dtype=tg.float64), leaf(0.0, dtype=tg.float64)
            optimizer = tg.optim.Adam([w, b], lr=0.1)
            for _ in range(20):
                optimizer.zero_grad()
                value = function(x, y, w, b)
                value.backward()
                optimizer.step()
            losses.append(value)
        same(*losses, 1e-9)

    def test_value_and_grad(self):
        def g(p, x):
            return ((x * p["w"]).sum() + p["b"]) ** 2, {"aux": x * 2}

        f = tg.compile(g)
        for k in (1.0, 2.0):
            p, x = {"w": np.array([1.0, k]), "b": np.array(k)}, np.array([3.0, 4.0])
            (value, aux), grads = f.value_and_grad(p, x, has_aux=True)
            (v, a), e = tg.value_and_grad(g, has_aux=True)({n: tg.tensor(t) for n, t in p.items()}, tg.tensor(x))
            same(value, v)
            same(aux["aux"], a["aux"])
            for n in p:
                same(grads[n], e[n])
        one = tg.compile(lambda x, y: (x * y**2).sum())
        x, y = np.array([1.0, 2.0]), np.array([3.0, 4.0])
        value, (gx, gy) = one.value_and_grad(x, y, argnums=(0, 1))
        same(gx, y**2)
        same(gy, 2 * x * y)
        same(one.value_and_grad(x, y, argnums=1)[1], 2 * x * y)
        with pytest.raises(RuntimeError, match="scalar"):
            tg.compile(lambda x: x * 2).value_and_grad(x)

    def test_value_and_grad_of_tensors_can_be_differentiated(self):
        f = tg.compile(lambda x: (x**3).sum())
        x = leaf(2.0, dtype=tg.float64)
        _, g = f.value_and_grad(x)
        same(tg.autograd.grad(g.sum(), x)[0], tg.tensor([12.0], dtype=tg.float64))

    def test_gradients_inside(self):
        """What a function differentiates on the way is recorded like all else."""

        def g(x):
            y = tg.func.grad(lambda t: (t**3).sum())(x)
            z = x.detach().requires_grad_()
            return y.sum() + tg.autograd.grad((z**2).sum(), z)[0].sum()

        f = tg.compile(g)
        own = tg.compile(own_backward)
        for k in (1.0, 2.0):
            same(own(tg.tensor([k])), tg.tensor([2 * k]))
            x = leaf(k, 2 * k)
            y = leaf(k, 2 * k)
            f(x).backward()
            g(y).backward()
            same(f(x), g(y))
            same(x.grad, y.grad)

    def test_hessians_inside(self):
        g = tg.func.hessian(lambda x: (x.sin() * x.sum()).sum())
        f = tg.compile(g)
        f(tg.tensor([0.3, 0.4]))
        same(f(tg.tensor([0.7, 1.4])), g(tg.tensor([0.7, 1.4])))

    def test_custom_functions(self):
        class Cube(tg.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x**3, x * 2

            @staticmethod
            def backward(ctx, g, h):
                (x,) = ctx.saved_tensors
                return 3 * x**2 * g + 2 * h

        def g(x):
            a, b = Cube.apply(x.sin())
            return (a * b).sum()

        f = tg.compile(g)
        for k in (0.3, 0.9):
            x, y = leaf(k, 1.0), leaf(k, 1.0)
            f(x).backward()
            g(y).backward()
            same(f(x), g(y))
            same(x.grad, y.grad)

    def test_checkpoints(self):
        def g(x):
            return tg.utils.checkpoint.checkpoint(lambda t: t.sin().exp(), x, use_reentrant=False).sum()

        f = tg.compile(g)
        for k in (0.3, 0.9):
            x, y = leaf(k, 1.0), leaf(k, 1.0)
            f(x).backward()
            g(y).backward()
            same(x.grad, y.grad)


class TestTransformations:
    def test_of_compiled_functions(self):
        def g(x):
            return (x.sin() * x).sum()

        f = tg.compile(g)
        x = tg.tensor([0.3, 0.8, 1.4])
        f(x)
        same(tg.func.grad(f)(x), tg.func.grad(g)(x))
        same(tg.func.hessian(f)(x), tg.func.hessian(g)(x))
        same(tg.func.jvp(f, (x,), (x,))[1], tg.func.jvp(g, (x,), (x,))[1])
        rows = tg.stack([x, x * 2])
        same(tg.vmap(f)(rows), tg.vmap(g)(rows))
        same(tg.vmap(tg.value_and_grad(f))(rows)[1], tg.vmap(tg.value_and_grad(g))(rows)[1])

    @pytest.mark.filterwarnings("ignore:vmap. a tensor that")
    @pytest.mark.parametrize("again", [False, True])
    def test_over_tensors_it_refers_to(self, again):
        """What a transformation traces reaches a compiled function not only by its arguments."""
        box = []
        kept = tg.compile(lambda x: (x * box[0]).sin())

        def through(w, compiled=True):
            made = tg.compile(lambda x: (x * w).sin())
            if again:
                made, box[:] = kept, [w]
            return (made if compiled else made.function)(tg.ones(2))

        w = tg.tensor([0.1, 0.7, 2.0])
        rows = []
        for compiled in (True, False):
            one = lambda t, c=compiled: through(t, c)
            total = lambda t, c=compiled: through(t, c).sum()
            rows.append(
                [
                    tg.vmap(one)(w),
                    tg.vmap(tg.func.grad(total))(w),
                    tg.func.grad(lambda t, f=one: tg.vmap(f)(t).sum())(w),
                    tg.func.jvp(one, (w[1],), (w[2],))[1],
                    tg.func.jacrev(one)(w[1]),
                    tg.func.hessian(total)(w[1]),
                ]
            )
        for found, expected in zip(*rows, strict=True):
            same(found, expected)

    def test_forward_mode(self):
        f = tg.compile(lambda x: x.sin())
        with tg.autograd.forward_ad.dual_level():
            dual = tg.autograd.forward_ad.make_dual(tg.tensor(0.3), tg.tensor(2.0))
            same(tg.autograd.forward_ad.unpack_dual(f(dual)).tangent, tg.tensor(2 * np.cos(0.3), dtype=tg.float32))

    def test_compiled_functions_that_call_each_other(self):
        inner = tg.compile(lambda x: x.sin() * 2)
        outer = tg.compile(lambda x: inner(x) + inner(x * 2))
        for k in (0.1, 0.7):
            x = tg.tensor([k])
            same(outer(x), (x.sin() + (2 * x).sin()) * 2)
        assert inner.stats()["programs"] == 0

    def test_maps_inside(self):
        def g(x, w):
            return tg.vmap(lambda row: (row * w).sum().sin())(x)

        f = tg.compile(g)
        f(tg.ones(2, 3), tg.ones(3))
        x, w = tg.arange(6.0).reshape(2, 3), tg.tensor([0.1, 0.2, 0.3])
        same(f(x, w), g(x, w))

    @pytest.mark.parametrize(
        "mapped",
        [
            lambda row, w: row.cumsum(0) * w,
            lambda row, w: row.cumprod(0).sum() + (row * w).logsumexp(0),
            lambda row, w: tg.nn.functional.pad(row, (1, 2), value=3.0).sum() * w.max(),
            lambda row, w: tg.nn.functional.softmax(row * w, 0) @ w,
            lambda row, w: (row * w).max(0).values + row.var(),
            lambda row, w: tg.func.grad(lambda r: (r.cumsum(0) * w).prod())(row),
            lambda row, w: tg.stack([row, w]).flip(1) @ w,
            lambda row, w: tg.diag_embed(row + 3).cumsum(0) @ w,
        ],
    )
    def test_maps_of_kernels_that_run_once_a_sample(self, mapped):
        def g(x, w):
            return tg.vmap(mapped, in_dims=(1, None))(x, w)

        f = tg.compile(g)
        rng = np.random.default_rng(0)
        for _ in range(2):
            a, b = rng.normal(size=(3, 5)), rng.normal(size=3)
            rows = []
            for function in (f, g):
                x, w = tg.tensor(a, requires_grad=True), tg.tensor(b, requires_grad=True)
                value = function(x, w)
                rows.append((value, *tg.autograd.grad((value * value).sum(), [x, w])))
            for found, expected in zip(*rows, strict=True):
                same(found, expected, 1e-10)
        assert f.stats()["captures"] == 2

    def test_gradients_of_a_batch(self):
        def loss(w, x, y):
            return tg.nn.functional.cross_entropy(tg.tanh(x @ w), y)

        f = tg.compile(lambda w, x, y: tg.vmap(tg.value_and_grad(loss), in_dims=(None, 0, 0))(w, x, y))
        rng = np.random.default_rng(0)
        for _ in range(2):
            w, x, y = rng.normal(size=(3, 4)), rng.normal(size=(6, 3)), rng.integers(0, 4, 6)
            values, grads = f(w, x, y)
            for k in range(6):
                value, grad = tg.value_and_grad(loss)(tg.tensor(w), tg.tensor(x[k]), tg.tensor(y[k]))
                same(values[k], value, 1e-12)
                same(grads[k], grad, 1e-12)
