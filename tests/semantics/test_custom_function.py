"""`autograd.Function`: the whole `ctx`, both styles, and what is refused."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd import Function
from tapegrad.autograd.function import once_differentiable
from tapegrad.engine.runtime import rt
from tests.helpers import Square, vector


class Exp(Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * y


class Two(Function):
    @staticmethod
    def forward(a, b, n):
        return a * b, a + b * n, n + 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, ctx.n = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx, first, second, third):
        assert third is None
        a, b = ctx.saved_tensors
        return first * b + second, first * a + second * ctx.n, None


def test_a_saved_result_and_higher_orders():
    x = vector(0.0, 1.0)
    y = Exp.apply(x)
    assert repr(y.grad_fn).startswith("<ExpBackward")
    (slope,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = tg.autograd.grad(slope.sum(), x)
    np.testing.assert_allclose(second.numpy(), np.exp([0, 1]))


def test_several_results_and_arguments_that_are_no_tensors():
    a, b = vector(2.0), vector(3.0)
    product, total, number = Two.apply(a, b, 4)
    assert (number, product.output_nr, total.output_nr) == (5, 0, 1)
    (product * 2).sum().backward(retain_graph=True)
    assert (a.grad.item(), b.grad.item()) == (6.0, 4.0)
    (product + total).sum().backward()
    assert (a.grad.item(), b.grad.item()) == (10.0, 10.0)
    with pytest.raises(RuntimeError, match="second time"):
        total.sum().backward()


def test_needs_input_grad_and_none_for_missing_gradients():
    seen = []

    class Seen(Two):
        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.set_materialize_grads(False)
            seen.append(ctx.needs_input_grad)

        @staticmethod
        def backward(ctx, first, second, third):
            seen.append((first is None, second is None))
            return second, None, None

    Seen.apply(vector(1.0), tg.ones(1, dtype=tg.float64), 1)[1].sum().backward()
    assert seen == [(True, False, False), (False, False) if False else (True, False)]


def test_an_input_changed_in_place():
    class Triple(Function):
        @staticmethod
        def forward(ctx, x):
            x.mul_(3)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, g):
            return 3 * g

    x = vector(1.0, 2.0)
    w = x * 1
    assert Triple.apply(w) is w
    (w * w).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 18 * x.detach().numpy())
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad has been used in an in-place operation"):
        Triple.apply(vector(1.0))


def test_results_without_gradients():
    class Sorted(Function):
        @staticmethod
        def forward(ctx, x):
            values, order = x.sort()
            rest = x * 2
            ctx.mark_non_differentiable(rest)
            ctx.save_for_backward(order)
            return values, order, rest

        @staticmethod
        def backward(ctx, g, *others):
            (order,) = ctx.saved_tensors
            return tg.zeros_like(g).scatter(0, order, g)

    x = vector(3.0, 1.0, 2.0)
    values, order, rest = Sorted.apply(x)
    assert (values.requires_grad, order.requires_grad, rest.requires_grad) == (True, False, False)
    (values * tg.tensor([1.0, 10.0, 100.0], dtype=tg.float64)).sum().backward()
    assert x.grad.tolist() == [100.0, 1.0, 10.0]


def returning(*grads):
    class Bad(Function):
        @staticmethod
        def forward(ctx, x, y, n):
            return x * y

        @staticmethod
        def backward(ctx, g):
            return tuple(f(g) if callable(f) else f for f in grads)

    return Bad


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ((lambda g: g,), r"function BadBackward returned an incorrect number of gradients \(expected 3, got 1\)"),
        ((lambda g: g[:1], None, None), r"Function BadBackward returned an invalid gradient at index 0 - got \[1\]"),
        ((None, None, lambda g: g), "returned a gradient different than None at position 3"),
        ((2.0, None, None), "expected Variable or None"),
    ],
)
def test_wrong_gradients_are_refused_by_name(grads, message):
    x, y = vector(1.0, 2.0), vector(3.0, 4.0)
    z = returning(*grads).apply(x, y, 1)
    with pytest.raises((RuntimeError, TypeError), match=message):
        z.sum().backward(retain_graph=True)
    (x * y).sum().backward()
    assert x.grad.tolist() == [3.0, 4.0]


def test_extra_nones_are_allowed():
    x, y = vector(1.0, 2.0), vector(3.0, 4.0)
    returning(lambda g: g, None, None, None, None).apply(x, y, 1).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]
    assert y.grad is None


def test_a_saved_input_changed_since_is_refused():
    x = vector(1.0, 2.0)
    w = x * 1
    y = Square.apply(w)
    w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_once_differentiable():
    class Once(Square):
        backward = staticmethod(once_differentiable(Square.backward))

    x = vector(3.0)
    (slope,) = tg.autograd.grad(Once.apply(x).sum(), x, create_graph=True)
    assert slope.item() == 6.0
    with pytest.raises(RuntimeError, match="trying to differentiate twice a function that was marked with @once_diff"):
        slope.sum().backward()


def test_exceptions_leave_the_tape_usable():
    class Failing(Function):
        @staticmethod
        def forward(ctx, x, early):
            if early:
                raise KeyError("forward")
            return x * 2

        @staticmethod
        def backward(ctx, g):
            raise KeyError("backward")

    x = vector(1.0)
    with pytest.raises(KeyError, match="forward"):
        Failing.apply(x, True)
    y = Failing.apply(x * 1, False)
    with pytest.raises(KeyError, match="backward"):
        y.sum().backward()
    (x * 5).sum().backward()
    assert x.grad.item() == 5.0


def test_without_gradients_nothing_is_recorded():
    x = vector(1.0)
    with tg.no_grad():
        assert not Exp.apply(x).requires_grad
    assert not Exp.apply(x.detach()).requires_grad
    with pytest.raises(RuntimeError, match="should not be instantiated"):
        Exp()


def test_an_input_returned_as_it_is():
    class Same(Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 7

    x = vector(1.0)
    y = Same.apply(x)
    assert y is not x
    y.sum().backward()
    assert x.grad.item() == 7.0


def test_calls_do_not_pile_up():
    x, before = vector(1.0, 2.0), int(rt.state.live_buffers)
    for _ in range(2000):
        Exp.apply(x)
        Exp.apply(x).sum().backward()
        Two.apply(x, x, 2)
    assert int(rt.state.live_buffers) - before < 20


# what is not allowed, or easily done


def with_backward(backward, forward=lambda ctx, x: x * 1):
    """A function with such a backward, that keeps its argument."""

    class Made(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return forward(ctx, x)

    Made.backward = staticmethod(backward)
    return Made.apply


CREATE = pytest.mark.parametrize("create", [False, True], ids=["", "create_graph"])


@CREATE
def test_a_backward_that_changes_what_arrives_changes_nothing_else(create):
    def backward(ctx, g):
        g.mul_(10)
        return g

    x, w = vector(1.0, 2.0), vector(3.0, 4.0)
    start = tg.ones(2, dtype=tg.float64)
    (with_backward(backward)(x) + w).backward(start, create_graph=create)
    assert [t.tolist() for t in (x.grad, w.grad, start)] == [[10.0, 10.0], [1.0, 1.0], [1.0, 1.0]]


def test_gradients_that_are_one_tensor_are_apart_afterwards():
    class Sum(Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, g):
            return g, g

    x, w, start = vector(1.0), vector(2.0), tg.ones(1, dtype=tg.float64)
    Sum.apply(x, w).backward(start)
    x.grad.mul_(5)
    assert [t.item() for t in (x.grad, w.grad, start)] == [5.0, 1.0, 1.0]
    y = vector(3.0)
    with_backward(lambda ctx, g: ctx.saved_tensors[0])(y).sum().backward()
    y.grad.mul_(5)
    assert (y.grad.item(), y.item()) == (15.0, 3.0)


@CREATE
def test_a_backward_that_changes_what_was_saved_is_found_out(create):
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        x.mul_(2)
        return g

    x = vector(1.0, 2.0)
    w = x * 1
    y = with_backward(backward)(w)
    y.sum().backward(retain_graph=True, create_graph=create)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*is at version 1; expected version 0"):
        y.sum().backward(create_graph=create)
    v = x * 1
    square = v * v
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (square + with_backward(backward)(v)).sum().backward(create_graph=create)


@CREATE
@pytest.mark.parametrize("write", [lambda y: y.mul_(2), lambda y: y[:1].mul_(2)])
def test_a_saved_result_written_to_since_is_refused(write, create):
    x = vector(0.0, 1.0)
    y = Exp.apply(x)
    write(y)
    with pytest.raises(RuntimeError, match="output 0 of ExpBackward, is at version 1; expected version 0"):
        y.sum().backward(create_graph=create)


def test_what_is_saved_is_what_there_is_when_forward_ends():
    def forward(ctx, x):
        between = x * 3
        ctx.save_for_backward(between)
        between.add_(1)
        return x * x

    x = vector(1.0, 2.0)
    with_backward(lambda ctx, g: g * ctx.saved_tensors[0], forward)(x).sum().backward()
    assert x.grad.tolist() == [4.0, 7.0]


def test_a_leaf_written_to_without_recording_is_refused_too():
    x = vector(1.0, 2.0)
    y = with_backward(lambda ctx, g: g * ctx.saved_tensors[0])(x)
    with tg.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@CREATE
def test_a_backward_may_run_another_backward(create):
    w = vector(2.0)

    def backward(ctx, g):
        with tg.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            (x**3).sum().backward()
            (w * w).sum().backward()
        return g * x.grad

    x = vector(1.0, 2.0)
    with_backward(backward)(x).sum().backward(create_graph=create)
    assert x.grad.tolist() == [3.0, 12.0]
    assert w.grad.tolist() == [4.0]


def test_functions_within_functions():
    class Nested(Function):
        @staticmethod
        def forward(ctx, x, depth):
            ctx.depth = depth
            ctx.save_for_backward(x)
            return x * x if depth == 0 else Nested.apply(x, depth - 1)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            if ctx.depth == 0:
                return 2 * g * x, None
            with tg.enable_grad():
                x = x.detach().requires_grad_()
                y = Nested.apply(x, ctx.depth - 1).sum()
            y.backward()
            return g * x.grad, None

    x = vector(1.0, 2.0)
    Nested.apply(x, 6).sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_saved_tensors_can_be_read_from_the_node_until_they_are_freed():
    x = vector(1.0, 2.0)
    y = Exp.apply(x)
    assert y.grad_fn.saved_tensors[0].tolist() == y.tolist()
    y.sum().backward()
    with pytest.raises(RuntimeError, match=r"second time .or directly access saved tensors after they have already"):
        print(y.grad_fn.saved_tensors)


def test_hooks_on_the_results_and_the_node_of_a_function():
    a, b, seen = vector(2.0), vector(3.0), []
    product, total, _ = Two.apply(a, b, 4)
    assert product.grad_fn is total.grad_fn
    product.register_hook(lambda g: g * 2)
    total.register_hook(lambda g: g * 3)
    product.retain_grad()
    product.grad_fn.register_prehook(lambda grads: seen.append([None if g is None else g.item() for g in grads]))
    product.grad_fn.register_hook(lambda inputs, outputs: seen.append([g.item() for g in inputs if g is not None]))
    (product + total).sum().backward()
    assert seen == [[2.0, 3.0, None], [9.0, 16.0]]
    assert (a.grad.item(), b.grad.item(), product.grad.item()) == (9.0, 16.0, 2.0)


def test_a_function_without_a_backward_says_so():
    class NoBackward(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

    with pytest.raises(NotImplementedError, match="either the backward or vjp method"):
        NoBackward.apply(vector(1.0)).sum().backward()
