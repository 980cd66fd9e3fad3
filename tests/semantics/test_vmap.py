"""`vmap` beside values: writes to memory, what is kept outside of the trace, hooks, functions of one's own, exceptions."""

import functools
import gc
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine.runtime import rt
from tapegrad.ops import _reading


def agree(found, expected, tolerance=1e-11):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=tolerance)


def assert_usable():
    """Nothing of a function that raised is left behind."""
    assert (int(rt.state.trace_mask), int(rt.state.watched), _reading.sampling) == (0, 0, 0)
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    with tg.no_grad():
        assert float((x * x).sum()) == 5
    tg.vmap(lambda v: v * v)(x).sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]


def numbers(*shape):
    return tg.arange(1.0, 1.0 + math.prod(shape)).reshape(shape)


WRITES = {
    "element": lambda t, x: t.__setitem__(0, x[0]),
    "all": lambda t, x: t.__setitem__(slice(None), x),
    "chosen": lambda t, x: t.__setitem__(tg.tensor([1, 0]), x),
    "masked": lambda t, x: t.__setitem__(x > 1, 5.0),
    "sum": lambda t, x: t.__iadd__(x),
    "product": lambda t, x: t.mul_(x),
    "copy": lambda t, x: t.copy_(x),
    "view": lambda t, x: t.view(2, 1)[1].add_(x[1]),
    "detached": lambda t, x: t.detach().copy_(x),
    "data": lambda t, x: t.data.add_(x),
    "without gradients": lambda t, x: tg.no_grad()(t.add_)(x),
    "out": lambda t, x: tg.matmul(x, tg.ones(2, 2), out=t),
    "index_put": lambda t, x: t.index_put_((tg.tensor([0]),), x[0]),
    "scatter": lambda t, x: t.scatter_(0, tg.tensor([0]), x),
    "sorted": lambda t, x: t.copy_(x.sort().values),
    "in between": lambda t, x: t.copy_(tg.zeros(2).add_(x)),
    "array": lambda t, x: tg.from_numpy(np.zeros(2, np.float32)).add_(x),
}


@pytest.mark.parametrize("how", WRITES)
def test_writes_to_memory_of_all_samples_are_refused(how):
    write, x = WRITES[how], numbers(3, 2)
    outer, loss = tg.zeros(2), tg.func.grad(lambda t, v: (write(t, v), (v * v).sum())[1], argnums=1)
    calls = [
        lambda: tg.vmap(lambda v: (write(outer, v), v * 2)[1])(x),
        lambda: tg.vmap(lambda t, v: (write(t, v), v * 2)[1], in_dims=(None, 0))(outer, x),
        lambda: tg.vmap(functools.partial(loss, outer))(x),
        # a tensor of the outer map's sample, and one made outside of both
        lambda: tg.vmap(lambda u: tg.vmap(lambda v: (write(u, v), v * 2)[1])(x))(x),
        lambda: tg.vmap(lambda u: tg.vmap(lambda v: (write(outer, u), v * 2)[1])(x))(x),
        lambda: tg.vmap(lambda u: (tg.vmap(lambda v: (write(u, v), v * 2)[1])(x), write(u, u)))(x * 1),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"made outside of the mapped function|accessing `data`"):
            call()
        assert outer.tolist() == [0.0, 0.0]
    assert_usable()
    with pytest.raises(RuntimeError, match=re.escape("to a tensor of shape [2] that was made outside")):
        calls[0]()


@pytest.mark.parametrize("how", [how for how in WRITES if how not in ("detached", "data", "array")])
def test_writes_to_memory_of_a_sample(how):
    write, x = WRITES[how], numbers(3, 2)

    def inside(v):
        t = tg.ones(2)
        write(t, v)
        return t * v

    agree(tg.vmap(inside)(x), tg.stack([inside(v) for v in x]).numpy(), 1e-6)
    agree(tg.vmap(lambda u: tg.vmap(inside)(x * u))(x)[1], tg.stack([inside(v) for v in x * x[1]]).numpy(), 1e-6)
    expected = tg.stack([tg.func.grad(lambda v: inside(v).sum())(v) for v in x])
    agree(tg.vmap(tg.func.grad(lambda v: inside(v).sum()))(x), expected.numpy(), 1e-6)
    # to an argument: what was mapped over holds each sample's new values, what others share those of one write
    given, expected = x.clone(), x.clone()
    tg.vmap(lambda t, v: (write(t, v), v)[1])(given, x)
    for t, v in zip(expected.unbind(), x, strict=True):
        write(t.view(2), v)
    if how != "view":
        assert given.tolist() == tg.stack([written_copy(write, v, v) for v in x]).tolist()


def written_copy(write, t, v):
    t = t.clone()
    write(t, v)
    return t


def test_what_does_not_differ_may_be_written_outside():
    calls, x = tg.zeros(2), numbers(3, 2)

    def counted(v):
        calls.add_(1.0)
        calls[0] = 7.0
        return v * calls

    assert tg.vmap(counted)(x).tolist() == (x * tg.tensor([7.0, 1.0])).tolist()
    assert calls.tolist() == [7.0, 1.0]
    # inside of an inner map, what differs between samples of the outer one only
    sums = tg.vmap(lambda u: (lambda t: tg.vmap(lambda v: (t.add_(u), v * 1)[1])(x).sum() + t)(tg.zeros(2)))(x)
    assert sums.tolist() == (x + 21).tolist()


def test_writes_beside_detached_twins_are_refused():
    def to_twin(v):
        twin = v.detach()
        twin.mul_(2)
        return v * 1

    def to_source(v):
        v = v.clone()
        twin = v.detach()
        v.mul_(2)
        return twin * 1

    for function in (to_twin, to_source, lambda v: to_twin(v * 1), lambda v: to_source(v[1:])):
        with pytest.raises(RuntimeError, match=r"shares memory with another by detach\(\)"):
            tg.vmap(function)(numbers(3, 2))
    assert_usable()
    assert tg.vmap(lambda v: v.detach().clone().mul_(2))(numbers(2)).tolist() == [2.0, 4.0]


def test_detach_and_no_grad_inside():
    x = numbers(3, 2).requires_grad_()

    def function(v):
        with tg.no_grad():
            still = v * v
        return still * v + v.detach() * v

    (found,) = tg.autograd.grad(tg.vmap(function)(x).sum(), x)
    assert found.tolist() == (x * x + x).tolist()
    inside = tg.vmap(tg.func.grad(lambda v: function(v).sum()))(x.detach())
    assert inside.tolist() == found.tolist()
    with tg.no_grad():
        assert not tg.vmap(function)(x).requires_grad
    assert not tg.vmap(lambda v: v.requires_grad_(False) * 1)(x.detach()).requires_grad


def test_data_inside():
    x = numbers(3, 2)
    with pytest.raises(RuntimeError, match="accessing `data` under vmap transform is not allowed"):
        tg.vmap(lambda v: v.data * 2)(x)

    def swapped(v):
        target = tg.zeros(2)
        target.data = v
        return target

    with pytest.raises(RuntimeError, match=r"mutating directly with `.data` under vmap transform is not allowed"):
        tg.vmap(swapped)(x)
    shared = tg.ones(2)
    assert tg.vmap(lambda v: v * shared.data)(x).tolist() == x.tolist()
    assert_usable()


def test_backward_inside_is_refused_and_grad_is_not():
    x, w = numbers(3, 2), tg.tensor([1.0, 2.0], requires_grad=True)

    def backward(v, loss):
        loss(v).backward()
        return v * 1

    for loss in (lambda v: (v * w).sum(), lambda v: (w * w).sum(), lambda v: (v.requires_grad_() ** 2).sum()):
        with pytest.raises(RuntimeError, match=r"vmap: backward\(\) was called inside of the mapped function"):
            tg.vmap(functools.partial(backward, loss=loss))(x)
        assert w.grad is None
        assert_usable()

    def by_shared(v):
        return tg.autograd.grad((v * w * w).sum(), w)[0]

    def by_sample(v):
        v = v.clone().requires_grad_()
        return tg.autograd.grad((v**3).sum(), v, create_graph=True)[0]

    def second(v):
        v.requires_grad_()
        (first,) = tg.autograd.grad((v**3).sum(), v, create_graph=True)
        return tg.autograd.grad(first.sum(), v)[0]

    assert tg.vmap(by_shared)(x).tolist() == (2 * x * w).tolist()
    assert tg.vmap(by_sample)(x).tolist() == (3 * x**2).tolist()
    assert tg.vmap(second)(x).tolist() == (6 * x).tolist()
    assert x.grad is None
    assert not x.requires_grad


def test_hooks_inside():
    x, w = numbers(3, 2), tg.tensor([1.0, 2.0], requires_grad=True)

    def hooked(v):
        y = v * w
        y.register_hook(lambda g: 10 * g)
        return y

    # a gradient inside of the map calls it, one from outside cannot
    assert tg.vmap(tg.func.grad(lambda v: hooked(v).sum()))(x).tolist() == [[10.0, 20.0]] * 3
    with pytest.raises(RuntimeError, match="vmap: a hook was registered inside of the mapped function"):
        tg.vmap(hooked)(x)
    with pytest.raises(RuntimeError, match="cannot register a hook on a tensor that doesn't require gradient"):
        tg.vmap(lambda v: (v.register_hook(print), v)[1])(x)
    seen = []
    result = tg.vmap(lambda v: v * w)(x)
    result.register_hook(seen.append)
    result.sum().backward()
    assert [tuple(g.shape) for g in seen] == [(3, 2)]
    assert w.grad.tolist() == x.sum(0).tolist()
    assert_usable()


# ---- functions with a derivative of their own ----


class Cube(tg.autograd.Function):
    """A derivative of its own, which is not the true one."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 5 * g * ctx.saved_tensors[0] ** 2


class ByRule(Cube):
    generate_vmap_rule = True


class Pushed(ByRule):
    @staticmethod
    def jvp(ctx, t):
        return 5 * t * ctx.saved_tensors[0] ** 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


class Once(ByRule):
    @staticmethod
    @tg.autograd.function.once_differentiable
    def backward(ctx, g):
        return 5 * g * ctx.saved_tensors[0] ** 2


class ByHand(Cube):
    told = None

    @staticmethod
    def forward(x):
        return tg.tensor(x.detach().numpy() ** 3)

    @staticmethod
    def vmap(info, in_dims, x):
        ByHand.told = info, in_dims
        return ByHand.apply(x), in_dims[0]


class Both(ByHand):
    generate_vmap_rule = True


class Single(Cube):
    @staticmethod
    def vmap(info, in_dims, x):
        return x**3


class KeepsAttributes(ByRule):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.kept = {"square": [inputs[0] ** 2, 5]}

    @staticmethod
    def backward(ctx, g):
        return ctx.kept["square"][1] * g * ctx.kept["square"][0]


class KeepsItself(ByRule):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.inputs, ctx.output = inputs, output

    @staticmethod
    def backward(ctx, g):
        return 5 * g * ctx.output / ctx.inputs[0]


class KeepsArguments(tg.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(ctx, x):
        ctx.x, ctx.five = x, tg.tensor(5.0)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return ctx.five * g * ctx.x**2


class KeepsResults(tg.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(ctx, x):
        square = x * x
        ctx.save_for_backward(square, x)
        return square * x

    @staticmethod
    def vjp(ctx, g):
        square, x = ctx.saved_tensors
        return 5 * g * square + 0 * x if ctx.needs_input_grad[0] else None


@pytest.mark.parametrize("function", [ByRule, Once, ByHand, KeepsAttributes, KeepsArguments, KeepsResults])
def test_own_derivatives(function):
    x = numbers(3, 2).double()
    agree(tg.vmap(function.apply)(x), (x**3).numpy())
    agree(tg.vmap(function.apply, in_dims=1, out_dims=1)(x), (x**3).numpy())
    agree(tg.vmap(tg.vmap(function.apply))(x), (x**3).numpy())
    agree(tg.vmap(tg.func.grad(lambda v: function.apply(v).sum()))(x), (5 * x**2).numpy())
    leaf = x.clone().requires_grad_()
    (found,) = tg.autograd.grad(tg.vmap(function.apply)(leaf).sum(), leaf, create_graph=True)
    agree(found, (5 * x**2).numpy())
    if function is Once:
        inside = tg.vmap(tg.func.grad(lambda v: function.apply(v).sum()))(leaf)
        for first in (found, inside):
            with pytest.raises(RuntimeError, match="trying to differentiate twice"):
                (first + leaf).sum().backward()
    elif function in (ByRule, ByHand):
        agree(tg.autograd.grad(found.sum(), leaf)[0], (10 * x).numpy())
    assert_usable()


def test_what_a_function_of_ones_own_is_told():
    tg.vmap(lambda v, w: ByHand.apply(v * w), in_dims=(0, None), randomness="different")(numbers(3, 2), numbers(2))
    info, in_dims = ByHand.told
    assert (info.batch_size, info.randomness, in_dims) == (3, "different", (0,))


class Split(tg.autograd.Function):
    """Two results, one of which carries no gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * 2, x.floor()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, g, _):
        return 2 * g


def test_results_without_gradients():
    x = numbers(3, 2).requires_grad_()
    doubled, floor = tg.vmap(Split.apply)(x)
    assert doubled.requires_grad
    assert not floor.requires_grad
    loss = lambda v: (Split.apply(v)[0] * Split.apply(v)[1]).sum()
    for found in (tg.vmap(tg.func.grad(loss))(x), tg.autograd.grad((doubled * floor).sum(), x)[0]):
        assert found.tolist() == (2 * x).tolist()


def test_what_outlives_the_map_is_warned_of():
    x, held = numbers(3, 2), []
    outlives = "is still held after it has returned"
    with pytest.warns(UserWarning, match=outlives):
        tg.vmap(lambda v: (held.append(v * 2), v)[1])(x)
    with pytest.warns(UserWarning, match=outlives):
        tg.vmap(lambda v: (held.append(v), v)[1])(x)
    with pytest.warns(UserWarning, match="by the ctx of a Function that has its own result as an attribute"):
        found = tg.vmap(tg.func.grad(lambda v: KeepsItself.apply(v).sum()))(x)
    agree(found, (5 * x**2).numpy(), 1e-6)
    # what keeps itself only, and what does not come from the arguments, is no matter
    tg.vmap(lambda v: (cycle := [v * 2], cycle.append(cycle), v)[2])(x)
    tg.vmap(lambda v: (held.append(tg.ones(2) * 2), v)[1])(x)
    held.clear()


@pytest.mark.parametrize("name", ["var", "prod", "max", "written", "sorted", "own"])
def test_nothing_is_kept(name):
    functions = {
        "var": lambda v: v.var(),
        "prod": lambda v: v.prod(),
        "max": lambda v: v.max(0).values + v.cummax(0).indices,
        "written": lambda v: WRITES["masked"](v * 1, v),
        "sorted": lambda v: v.sort().values,
        "own": ByRule.apply,
    }
    function = lambda v: (functions[name](v), v.sum())[1]
    x = numbers(3, 2)
    calls = [lambda: tg.vmap(function)(x), lambda: tg.vmap(tg.func.grad(function))(x)]
    if name != "own":
        calls.append(lambda: tg.func.jvp(function, (x[0],), (x[0],)))
    for call in calls:
        call()
    before = int(rt.state.live_buffers)
    for _ in range(5):
        for call in calls:
            call()
    assert int(rt.state.live_buffers) <= before


def test_own_tangents():
    x = numbers(3, 2).double()
    tangents = x + 1
    expected = (5 * x**2 * tangents).numpy()
    agree(tg.func.jvp(tg.vmap(Pushed.apply), (x,), (tangents,))[1], expected)
    agree(tg.func.jvp(tg.vmap(tg.vmap(Pushed.apply)), (x,), (tangents,))[1], expected)
    agree(tg.vmap(lambda v, t: tg.func.jvp(Pushed.apply, (v,), (t,))[1])(x, tangents), expected)
    shared = tg.vmap(lambda v, w: Pushed.apply(v * w) * Pushed.apply(w), in_dims=(0, None))
    w, t = x[0], tangents[0]
    found = tg.func.jvp(lambda w: shared(x, w), (w,), (t,))[1]
    agree(found, (5 * (x * w) ** 2 * x * t * w**3 + (x * w) ** 3 * 5 * w**2 * t).numpy())


def test_what_does_not_differ_is_no_batch():
    shared = numbers(2)
    assert tg.vmap(lambda v: v * Cube.apply(shared))(numbers(3, 2)).tolist() == (numbers(3, 2) * shared**3).tolist()
    found = tg.func.jvp(lambda w: tg.vmap(lambda v: v * (w * w))(numbers(3, 2)), (shared,), (shared,))[1]
    assert found.tolist() == (numbers(3, 2) * 2 * shared**2).tolist()


@pytest.mark.parametrize("write", [lambda t, x: t.copy_(x), lambda t, x: t.detach().add_(x[0])])
def test_writes_in_functions_of_ones_own(write):
    outer = tg.zeros(2)

    class Writes(ByRule):
        @staticmethod
        def forward(x):
            write(outer, x)
            return x**3

    for call in (Writes.apply, tg.func.grad(lambda v: Writes.apply(v).sum())):
        with pytest.raises(RuntimeError, match="made outside of the mapped function"):
            tg.vmap(call)(numbers(3, 2))
        assert outer.tolist() == [0.0, 0.0]


class Dirty(tg.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(ctx, x, y):
        ctx.mark_dirty(x)
        return x.add_(y)

    @staticmethod
    def backward(ctx, g):
        return 2 * g, 3 * g


def test_functions_of_ones_own_that_write_to_their_argument():
    outer, x = tg.zeros(2), numbers(3, 2)
    with pytest.raises(RuntimeError, match="made outside of the mapped function"):
        tg.vmap(lambda v: Dirty.apply(outer, v))(x)
    assert outer.tolist() == [0.0, 0.0]
    found = tg.vmap(tg.func.grad(lambda v: (Dirty.apply(v * v, v) * v).sum()))(x)
    expected = 4 * x**2 + 3 * x + x**2 + x
    assert found.tolist() == expected.tolist()
    leaf = x.clone().requires_grad_()
    tg.vmap(lambda v: Dirty.apply(v * v, v) * v)(leaf).sum().backward()
    assert leaf.grad.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (Cube, "You tried to vmap over Cube, but it does not have vmap support"),
        (Both, "it has both generate_vmap_rule=True and an overridden vmap staticmethod"),
        (Single, "Expected the vmap staticmethod to have two returns"),
    ],
)
def test_functions_that_cannot_be_mapped(function, message):
    with pytest.raises(RuntimeError, match=message):
        tg.vmap(function.apply)(numbers(3, 2))
    if function is not Single:
        with pytest.raises(RuntimeError, match=message):
            tg.vmap(tg.func.grad(lambda v: function.apply(v).sum()))(numbers(3, 2))
    assert_usable()


# ---- after an exception ----


def test_exceptions_leave_the_tape_as_it_was():
    x = numbers(3, 2)

    class Own(Exception):
        pass

    def raising(v):
        y = (v * 2).exp()
        y[0] = v[1]
        raise Own

    def deep(v):
        return tg.vmap(tg.func.grad(lambda u: raising(u * v)))(x)

    calls = [
        lambda: tg.vmap(raising)(x),
        lambda: tg.vmap(deep)(x),
        lambda: tg.func.grad(lambda v: tg.vmap(raising)(v * x).sum())(x),
        lambda: tg.func.jvp(tg.vmap(raising), (x,), (x,)),
        lambda: tg.vmap(lambda v: tg.func.jvp(raising, (v,), (v,))[1], chunk_size=2)(x),
    ]
    states = []
    for _ in range(4):
        for call in calls:
            with pytest.raises(Own):
                call()
            assert_usable()
        gc.collect()
        states.append((int(rt.state.live_buffers), int(rt.state.live_storages)))
    assert states[-1] == states[1]
    # in the run for all samples
    for call in (lambda v: v.masked_select(v > 2), lambda v: v @ v[:1]):
        with pytest.raises(RuntimeError):
            tg.vmap(call)(x)
        assert_usable()


def test_threads_map_at_once():
    x = numbers(3, 2)

    def worker(k):
        def function(v):
            t = tg.zeros(2)
            for _ in range(10):
                t += v * k
            return t

        return [tg.vmap(function)(x).tolist() for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(worker, range(8))):
            assert found == [(x * 10 * k).tolist()] * 5
    assert_usable()


def test_a_class_out_of_bounds_in_any_sample_is_refused():
    targets = tg.tensor([[0, 1], [0, 9], [0, 1]])
    for given, dims in ((targets, (0, 0)), (targets[1], (0, None))):
        with pytest.raises(IndexError, match="Target 9 is out of bounds"):
            tg.vmap(tg.nn.functional.cross_entropy, in_dims=dims)(tg.zeros(3, 2, 4), given)


def test_a_write_under_no_grad_that_would_lose_the_gradient_is_refused():
    w = tg.ones(2, requires_grad=True)

    def f(x):
        y = x * w
        with tg.no_grad():
            y.mul_(2)
        return y

    with pytest.raises(RuntimeError, match="under no_grad inside of the mapped function"):
        tg.vmap(f)(tg.ones(3, 2))
