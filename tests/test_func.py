"""`tg.func` beside `torch.func`: the same functions run by both, alone and nested in every order."""

import itertools

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import _tree
from tapegrad.engine.runtime import rt

torch = pytest.importorskip("torch")
# of torch.func.linearize
pytestmark = pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")

RNG = np.random.default_rng(0)
X, A, W, V = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 3)), RNG.normal(size=(3, 4)), RNG.normal(size=3)
INDICES = np.array([[0, 1], [2, 1], [1, 1], [0, 0], [2, 2]])


def T(t, array):
    return t.tensor(array)


CASES = {
    "vmap sin": lambda t, f: t.vmap(t.sin)(T(t, X)),
    "vmap dot": lambda t, f: t.vmap(t.dot)(T(t, X), T(t, X)),
    "vmap matvec": lambda t, f: t.vmap(lambda x: T(t, A) @ x + x)(T(t, X)),
    "vmap out1": lambda t, f: t.vmap(lambda x: x * 2, in_dims=1, out_dims=1)(T(t, X)),
    "vmap sum,mean,max": lambda t, f: t.vmap(
        lambda x: (x.sum(), x.mean(), x.amax(), x.prod(), x.var(), t.logsumexp(x, 0))
    )(T(t, X)),
    "vmap idx": lambda t, f: t.vmap(lambda x: x[1:] * x[0] + t.stack([x[0], x[2]]))(T(t, X)),
    "vmap softmax": lambda t, f: t.vmap(lambda x: t.softmax(x, 0).cumsum(0))(T(t, X)),
    "vmap max dim": lambda t, f: t.vmap(lambda x: t.max(x.reshape(3, 1), 0))(T(t, X)),
    "vmap inplace": lambda t, f: t.vmap(lambda x: x.clone().mul_(2).add_(x))(T(t, X)),
    "grad": lambda t, f: f.grad(lambda x: (x**3).sum())(T(t, V)),
    "vmap grad": lambda t, f: t.vmap(f.grad(lambda x: (x**3).sum() * x[0]))(T(t, X)),
    "persample": lambda t, f: t.vmap(f.grad(lambda W, x: t.tanh(x @ W).sum()), in_dims=(None, 0))(T(t, W), T(t, X)),
    "grad grad": lambda t, f: f.grad(lambda x: f.grad(lambda y: (y**3 * x).sum())(x).sum())(T(t, V)),
    "perturb": lambda t, f: f.grad(lambda x: x * f.grad(lambda y: x + y)(T(t, np.array(1.0))))(T(t, np.array(2.0))),
    "jvp": lambda t, f: f.jvp(lambda x: t.tanh(T(t, A) @ x), (T(t, V),), (T(t, V * 2),)),
    "jvp jvp": lambda t, f: f.jvp(
        lambda x: f.jvp(lambda y: (y**3).sum() * x[0], (x,), (x,))[1], (T(t, V),), (T(t, V * 2),)
    ),
    "vjp": lambda t, f: f.vjp(lambda x: t.tanh(T(t, A) @ x), T(t, V))[1](T(t, V)),
    "jacrev": lambda t, f: f.jacrev(lambda x: t.tanh(T(t, A) @ x) * x[0])(T(t, V)),
    "jacfwd": lambda t, f: f.jacfwd(lambda x: t.tanh(T(t, A) @ x) * x[0])(T(t, V)),
    "hessian": lambda t, f: f.hessian(lambda x: t.tanh(T(t, A) @ x).sum() * x[0])(T(t, V)),
    "hess rr": lambda t, f: f.jacrev(f.jacrev(lambda x: t.tanh(T(t, A) @ x).sum() * x[0]))(T(t, V)),
    "hess ff": lambda t, f: f.jacfwd(f.jacfwd(lambda x: t.tanh(T(t, A) @ x).sum() * x[0]))(T(t, V)),
    "hess rf": lambda t, f: f.jacrev(f.jacfwd(lambda x: t.tanh(T(t, A) @ x).sum() * x[0]))(T(t, V)),
    "vmap vmap": lambda t, f: t.vmap(lambda x: t.vmap(lambda y: x * y)(T(t, X)))(T(t, X)),
    "vmap vmap matmul": lambda t, f: t.vmap(lambda x: t.vmap(lambda y: (T(t, A) @ y) @ x)(T(t, X)))(T(t, X)),
    "grad vmap": lambda t, f: f.grad(lambda x: t.vmap(lambda y: t.sin(y) * x.sum())(T(t, X)).sum())(T(t, V)),
    "vmap hessian": lambda t, f: t.vmap(f.hessian(lambda x: (x**3).sum() * x[1]))(T(t, X)),
    "dict": lambda t, f: f.grad(lambda p: (p["a"] * p["b"]).sum())({"a": T(t, V), "b": T(t, V * 2)}),
    "aux": lambda t, f: f.grad(lambda x: ((x * x).sum(), x * 2), has_aux=True)(T(t, V)),
    "vmap cumsum vmap": lambda t, f: t.vmap(t.vmap(lambda x: t.cumsum(x, 0)))(T(t, np.arange(24.0).reshape(2, 3, 4))),
    "vmap grad softmax": lambda t, f: t.vmap(f.grad(lambda x: (t.softmax(x, 0) ** 2).sum()))(T(t, X)),
    "vmap cat flip": lambda t, f: t.vmap(lambda x: t.cat([x, t.flip(x, [0])]))(T(t, X)),
    "vmap grad cat": lambda t, f: t.vmap(
        f.grad(lambda x: (t.cat([x, t.flip(x, [0])]) ** 3 * T(t, np.arange(6.0))).sum())
    )(T(t, X)),
    "chunk": lambda t, f: t.vmap(lambda x: x.sum(), chunk_size=2)(T(t, X)),
    "zeros write": lambda t, f: f.jvp(lambda x: t.stack([x[0], x[1] ** 2]), (T(t, V),), (T(t, V),)),
    "ce": lambda t, f: t.vmap(lambda x: t.nn.functional.cross_entropy(x, t.tensor(1)))(T(t, X)),
    "linearize": lambda t, f: f.linearize(lambda x: t.sin(x) * x[0], T(t, V))[1](T(t, V)),
    "sort": lambda t, f: t.vmap(lambda x: t.sort(x)[0] * x)(T(t, X)),
    "argsort idx": lambda t, f: t.vmap(lambda x: x[t.argsort(x)])(T(t, X)),
    "grad sort": lambda t, f: t.vmap(f.grad(lambda x: (t.sort(x)[0] * T(t, V)).sum()))(T(t, X)),
    "topk": lambda t, f: t.vmap(lambda x: t.topk(x, 2))(T(t, X)),
    "gather": lambda t, f: t.vmap(lambda x, i: t.gather(x, 0, i))(T(t, X), T(t, INDICES)),
    "grad gather": lambda t, f: f.grad(lambda y: (t.vmap(lambda x, i: t.gather(x, 0, i) ** 2)(y, T(t, INDICES))).sum())(
        T(t, X)
    ),
    "vmap where": lambda t, f: t.vmap(lambda x: t.where(x > 0, x, -x))(T(t, X)),
    "hess sort": lambda t, f: f.hessian(lambda x: (t.sort(x)[0] ** 3 * T(t, V)).sum())(T(t, V)),
    "grad cumsum vmap": lambda t, f: t.vmap(f.grad(lambda x: (t.cumprod(x, 0) ** 2).sum()))(T(t, X)),
    "vmap grad in grad flip": lambda t, f: f.grad(
        lambda y: t.vmap(f.grad(lambda x: (t.roll(x, 1) ** 3).sum() * x[0]))(y).sum()
    )(T(t, X)),
}


def leaves_of(tree):
    return [leaf.detach().numpy() for leaf in _tree.flatten(tuple(tree) if isinstance(tree, tuple) else tree)[0]]


@pytest.mark.parametrize("name", CASES)
def test_beside_torch(name):
    ours, theirs = CASES[name](tg, tg.func), CASES[name](torch, torch.func)
    for a, b in zip(leaves_of(ours), leaves_of(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def _mapped(t, f, g):
    return lambda x: t.vmap(lambda sample: g(x * sample))(T(t, X[:2]))


def _pushed(t, f, g):
    return lambda x: f.jvp(g, (x,), (T(t, V),))[1]


def _pulled(t, f, g):
    def pulled(x):
        value, back = f.vjp(g, x)
        return back(t.ones_like(value))[0]

    return pulled


STEPS = {
    "grad": lambda t, f, g: f.grad(g),
    "jacrev": lambda t, f, g: f.jacrev(g),
    "jacfwd": lambda t, f, g: f.jacfwd(g),
    "hessian": lambda t, f, g: f.hessian(g),
    "vmap": _mapped,
    "jvp": _pushed,
    "vjp": _pulled,
}
ORDERS = [*itertools.product(STEPS, repeat=2), *list(itertools.product(STEPS, repeat=3))[::12]]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_nesting(order):
    def nested(t, f):
        def g(x):
            return (t.tanh(T(t, A) @ x) * x[0]).sum() * x.prod()

        for name in order:
            step = STEPS[name](t, f, g)
            g = lambda x, step=step: (step(x) ** 2).sum()
        return g(T(t, V * 0.5)).detach().numpy()

    np.testing.assert_allclose(nested(tg, tg.func), nested(torch, torch.func), rtol=1e-7)


def test_random_numbers_in_vmap():
    x = tg.zeros(4, 3)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        tg.vmap(lambda row: row + tg.rand(3))(x)
    same = tg.vmap(lambda row: row + tg.rand(3), randomness="same")(x)
    assert (same == same[0]).all()
    different = tg.vmap(lambda row: row + tg.rand(3), randomness="different")(x)
    assert not (different[0] == different[1]).any()


@pytest.mark.parametrize(
    "function",
    [lambda x: x if x.sum() > 0 else -x, lambda x: tg.tensor(x.detach().numpy()), lambda x: x * x[0].item()],
)
def test_values_do_not_steer_a_mapped_function(function):
    with pytest.raises(RuntimeError, match="vmap: "):
        tg.vmap(function)(tg.tensor(X))
    assert int(rt.state.trace_mask) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tg.vmap(tg.sin, in_dims=(0, 0))(tg.ones(2)), "in_dims is not compatible with the structure of inputs"),
        (lambda: tg.vmap(tg.sin)(), "got no inputs"),
        (lambda: tg.vmap(tg.sin)(3), "We cannot vmap over non-Tensor arguments"),
        (lambda: tg.vmap(tg.sin, in_dims=1)(tg.ones(2)), "satisfy -1 <= in_dim < 1"),
        (
            lambda: tg.vmap(tg.add)(tg.ones(2), tg.ones(3)),
            "Expected all tensors to have the same size in the mapped dimension",
        ),
        (lambda: tg.vmap(lambda x: 3)(tg.ones(2)), "must only return Tensors"),
    ],
)
def test_wrong_arguments_of_vmap(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tg.func.grad(lambda x: x)(tg.ones(2)), "got tensor with 1 dims"),
        (lambda: tg.func.grad(lambda x: 3.0)(tg.ones(2)), "to return a Tensor"),
        (lambda: tg.func.grad(tg.sin)(tg.tensor(1)), "cannot differentiate a tensor of dtype"),
        (lambda: tg.func.grad(tg.sin, argnums=1)(tg.tensor(1.0)), "got argnum=1"),
        (lambda: tg.func.jvp(tg.sin, (tg.ones(2),), (tg.ones(3),)), "a tangent must have the shape and dtype"),
    ],
)
def test_wrong_arguments_of_derivatives(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


def test_captured_tensors_get_gradients_and_others_leave_no_graph():
    c = tg.tensor(2.0, requires_grad=True)
    slope = tg.func.grad(lambda x: c * x**3)(tg.tensor(1.0))
    slope.backward()
    assert (slope.item(), c.grad.item()) == (6.0, 3.0)
    assert not tg.func.grad(lambda x: x**3)(tg.tensor(1.0)).requires_grad
    assert not tg.func.hessian(lambda x: (x**3).sum())(tg.ones(2)).requires_grad


def test_modes_of_the_caller_change_nothing():
    for mode in (tg.no_grad, tg.inference_mode):
        with mode():
            assert tg.func.grad(lambda x: (x**3).sum())(tg.tensor([1.0, 2.0])).tolist() == [3.0, 12.0]


def test_custom_functions_are_mapped():
    class Square(tg.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    x = tg.tensor(X)
    np.testing.assert_allclose(tg.vmap(Square.apply)(x).numpy(), X**2)
    np.testing.assert_allclose(tg.vmap(tg.func.grad(lambda row: Square.apply(row).sum()))(x).numpy(), 2 * X)


def test_nothing_grows():
    f = tg.vmap(tg.func.hessian(lambda x: (tg.softmax(x, 0) ** 2).sum()))
    x = tg.tensor(X)
    f(x)
    before = int(rt.state.live_buffers)
    for _ in range(50):
        f(x)
    assert int(rt.state.live_buffers) - before < 10
