"""autograd.functional beside PyTorch's: values, shapes, nesting, what requires grad, and every message."""

import numpy as np
import pytest

import tapegrad as tg

A = [[0.3, -1.2, 2.0], [0.7, 1.1, -0.4]]
B = [1.5, -0.5, 2.5]
C = [[1.0, 0.2], [-2.0, 0.5], [-1.0, 3.0]]

# functions of any shape of result; the tests run the same ones on both libraries' tensors
MAPS = {
    "exp and sum": (lambda x: x.exp().sum(1), [A]),
    "two inputs": (lambda x, y: 2 * x.exp() + 3 * y, [A, B]),
    "matrix product": (lambda x, y: (x @ y).tanh(), [A, C]),
    "product with a view": (lambda x, y: x @ x.t() @ y.t()[:2], [A, C]),
    "outputs of many shapes": (lambda x, y: (x * y, x.sum(), y**2), [A, B]),
    "independent output": (lambda x: (x.detach() * 2, x.sin()), [B]),
    "independent of an input": (lambda x, y: x * x, [B, A]),
    "independent pair": (lambda x, y: (x.exp(), y.cos()), [B, [1.0, 2.0]]),
    "0-d to 0-d": (lambda x: x**3, [0.5]),
    "0-d to many": (lambda x: (x.sin().reshape(1, 1), x * x), [0.5]),
    "tuple of one": (lambda x: (x.sqrt(),), [[4.0, 9.0]]),
    "elements": (lambda x: x[1:] * x[0], [B]),
    "views": (lambda x: x.t().reshape(-1)[::2] * x[0, 1], [A]),
    "expanded": (lambda x: x.expand(2, 3).sin() * x, [B]),
    "clamped": (lambda x: x.clamp(-1.0, 1.0) * x, [A]),
    "constant factor": (lambda x: x * x.detach(), [B]),
    "identity": (lambda x: x, [B]),
    "integers beside": (lambda x: (x.long(), x * x), [B]),
}

# functions with one value
VALUES = {
    "cubes": (lambda x: (x**3).sum(), [A]),
    "two inputs": (lambda x, y: (2 * x * x + 3 * y * y).sum(), [B, [0.5, 2.0, 1.0]]),
    "mixed": (lambda x, y: ((x * y).sin() * x).sum(), [A, B]),
    "quadratic form": (lambda x, y: (x @ y).tanh().sum(), [A, C]),
    "rosenbrock": (lambda x: ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum(), [B]),
    "linear": (lambda x: (3 * x).sum(), [B]),
    "linear in one": (lambda x, y: (x.sum() * 2 + y * y).sum(), [B, [1.0, 3.0]]),
    "constant": (lambda x: x.detach().sum(), [B]),
    "independent of an input": (lambda x, y: x.exp().sum(), [B, A]),
    "0-d": (lambda x: x.sin(), [0.7]),
    "one element": (lambda x: x.exp().reshape(1, 1), [[0.7]]),
}


def inputs_of(lib, values, requires_grad=False):
    found = tuple(lib.tensor(v, dtype=lib.float64, requires_grad=requires_grad) for v in values)
    return found[0] if len(found) == 1 else found


def like(lib, value, seed=0):
    """Numbers in the shapes of a nest of tensors."""
    if isinstance(value, tuple):
        return tuple(like(lib, v, seed + k) for k, v in enumerate(value))
    return lib.tensor(np.random.default_rng(seed).normal(size=tuple(value.shape)).tolist(), dtype=lib.float64)


def assert_same(ours, theirs):
    """The same nest with the same dtypes, shapes, numbers and requires_grad."""
    theirs = tuple(theirs) if isinstance(theirs, list) else theirs  # PyTorch's forward mode returns lists
    assert isinstance(ours, tuple) == isinstance(theirs, tuple)
    if isinstance(ours, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            assert_same(a, b)
        return
    assert str(ours.dtype).split(".")[1] == str(theirs.dtype).split(".")[1]
    assert tuple(ours.shape) == tuple(theirs.shape)
    assert ours.requires_grad == theirs.requires_grad
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def flat(value):
    return [t for v in value for t in flat(v)] if isinstance(value, tuple | list) else [value]


def both(torch, run):
    ours, theirs = run(tg), run(torch)
    assert_same(ours, theirs)
    return ours


create = pytest.mark.parametrize("create_graph", [False, True])


# ---- beside PyTorch ----


@create
@pytest.mark.parametrize("name", MAPS)
def test_vjp(torch, name, create_graph):
    f, values = MAPS[name]

    def run(lib):
        x = inputs_of(lib, values, create_graph)
        out = f(*x) if isinstance(x, tuple) else f(x)
        return lib.autograd.functional.vjp(f, x, like(lib, out), create_graph=create_graph)

    both(torch, run)


@create
@pytest.mark.parametrize("name", sorted(set(MAPS) - {"integers beside"}))
def test_jvp(torch, name, create_graph):
    f, values = MAPS[name]

    def run(lib):
        x = inputs_of(lib, values, create_graph)
        return lib.autograd.functional.jvp(f, x, like(lib, x), create_graph=create_graph)

    both(torch, run)


@create
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_jacobian(torch, name, vectorize, create_graph):
    f, values = MAPS[name]

    def run(lib):
        x = inputs_of(lib, values, create_graph)
        return lib.autograd.functional.jacobian(f, x, create_graph, vectorize=vectorize)

    if vectorize and create_graph:
        # vmap gives PyTorch's zeros a history that they need not have
        ours, theirs = run(tg), run(torch)
        for a, b in zip(flat(ours), flat(theirs)):
            assert_same(a.detach(), b.detach())
    else:
        both(torch, run)


@pytest.mark.parametrize("name", sorted(set(MAPS) - {"integers beside"}))
def test_jacobian_in_forward_mode(torch, name):
    f, values = MAPS[name]

    def run(lib):
        return lib.autograd.functional.jacobian(f, inputs_of(lib, values), vectorize=True, strategy="forward-mode")

    both(torch, run)


@pytest.mark.parametrize("name", ["two inputs", "outputs of many shapes", "expanded"])
def test_forward_mode_without_vectorize_and_with_a_graph(name):
    f, values = MAPS[name]
    x = inputs_of(tg, values, True)
    jacobian = tg.autograd.functional.jacobian
    by_columns = jacobian(f, x, create_graph=True, strategy="forward-mode")
    by_rows = jacobian(f, x, create_graph=True)
    total, expected = ((t**2).sum() for t in (flat(by_columns)[0], flat(by_rows)[0]))
    inputs = flat(x)
    for a, b in zip(
        tg.autograd.grad(total, inputs, allow_unused=True), tg.autograd.grad(expected, inputs, allow_unused=True)
    ):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12)


@create
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_hessian(torch, name, vectorize, create_graph):
    f, values = VALUES[name]

    def run(lib):
        x = inputs_of(lib, values, create_graph)
        found = lib.autograd.functional.hessian(f, x, create_graph, vectorize=vectorize)
        return tuple(t.detach() for t in flat(found)) if create_graph and vectorize else found

    both(torch, run)


@pytest.mark.parametrize("name", sorted(set(VALUES) - {"constant"}))
def test_hessian_by_forward_over_reverse(torch, name):
    f, values = VALUES[name]

    def run(lib):
        found = lib.autograd.functional.hessian(
            f, inputs_of(lib, values), vectorize=True, outer_jacobian_strategy="forward-mode"
        )
        return tuple(t.detach() for t in flat(found))

    both(torch, run)


@create
@pytest.mark.parametrize("product", ["vhp", "hvp"])
@pytest.mark.parametrize("name", VALUES)
def test_products_with_the_hessian(torch, name, product, create_graph):
    f, values = VALUES[name]

    def run(lib):
        x = inputs_of(lib, values, create_graph)
        return getattr(lib.autograd.functional, product)(f, x, like(lib, x), create_graph=create_graph)

    both(torch, run)


@pytest.mark.parametrize("name", ["vjp", "jvp", "vhp", "hvp"])
def test_one_element_needs_no_vector(torch, name):
    both(torch, lambda lib: getattr(lib.autograd.functional, name)(lambda x: (x**3).sum(), inputs_of(lib, [[2.0]])))


@pytest.mark.parametrize("name", ["vjp", "jvp"])
def test_results_can_be_differentiated_again(torch, name):
    def run(lib):
        x, y = inputs_of(lib, [A, B], True)
        v = like(lib, (x,))[0].requires_grad_()
        given = v if name == "vjp" else (v, lib.ones(3, dtype=lib.float64))
        _, product = getattr(lib.autograd.functional, name)(lambda x, y: x.exp() * y, (x, y), given, create_graph=True)
        first = product[0] if name == "vjp" else product
        return lib.autograd.grad((first**2).sum(), (x, y, v))

    both(torch, run)


@pytest.mark.parametrize("name", ["jacobian", "hessian"])
def test_jacobians_can_be_differentiated_again(torch, name):
    def run(lib):
        x, y = inputs_of(lib, [B, [0.5, 1.0, 2.0]], True)
        f = (lambda x, y: x**3 * y) if name == "jacobian" else (lambda x, y: (x**4 * y).sum())
        found = flat(getattr(lib.autograd.functional, name)(f, (x, y), create_graph=True))
        return lib.autograd.grad(sum((t**2).sum() for t in found), (x, y))

    both(torch, run)


# ---- what is kept apart ----


def test_results_carry_no_graph_unless_asked():
    x = tg.tensor(B, requires_grad=True)
    out, product = tg.autograd.functional.vjp(lambda x: x * x, x, tg.ones(3))
    assert not out.requires_grad
    assert not product.requires_grad
    assert x.grad is None


def test_an_input_that_the_function_holds_is_a_constant_there(torch):
    def run(lib):
        x = lib.tensor(B, requires_grad=True)
        return lib.autograd.functional.jacobian(lambda y: x * y, x)

    both(torch, run)


def test_the_graph_of_captured_values_survives():
    w = tg.tensor(B, requires_grad=True)
    square = w * w
    tg.autograd.functional.jacobian(lambda x: x * square, tg.ones(3))
    tg.autograd.functional.vhp(lambda x: (x**2 * square).sum(), tg.ones(3), tg.ones(3))
    square.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * np.array(B))


@pytest.mark.parametrize("name", ["vjp", "jvp", "hvp", "vhp", "jacobian", "hessian"])
def test_under_no_grad(torch, name):
    def run(lib):
        x = inputs_of(lib, [B])
        vector = lib.ones((), dtype=lib.float64) if name == "vjp" else like(lib, x)
        v = () if name in ("jacobian", "hessian") else (vector,)
        with lib.no_grad():
            found = getattr(lib.autograd.functional, name)(lambda x: (x**3).sum(), x, *v)
            assert not lib.is_grad_enabled()
        return found

    both(torch, run)


def test_dtypes_follow_inputs_and_outputs(torch):
    def f(x, y):
        return x.double() * y, y.float()

    def inputs(lib):
        return lib.tensor([1.0, 2.0]), lib.tensor([3.0, 4.0], dtype=lib.float64)

    both(torch, lambda lib: lib.autograd.functional.jacobian(f, inputs(lib)))
    both(torch, lambda lib: lib.autograd.functional.jacobian(f, inputs(lib), vectorize=True, strategy="forward-mode"))
    both(torch, lambda lib: lib.autograd.functional.jvp(f, inputs(lib), inputs(lib)))


def test_nothing_in_or_out():
    jacobian = tg.autograd.functional.jacobian
    x = tg.tensor(B)
    for options in ({}, {"vectorize": True}, {"strategy": "forward-mode"}):
        assert jacobian(lambda x: x[:0], x, **options).shape == (0, 3)
        assert jacobian(lambda x: x.sum() + tg.ones(2), x[:0], **options).shape == (2, 0)
        assert jacobian(lambda x: (), x, **options) == ()


# ---- messages ----


def message_of(lib, run):
    with pytest.raises((RuntimeError, TypeError, AssertionError)) as caught:
        run(lib)
    return caught.type, str(caught.value).replace("torch.", "tapegrad.")


def disconnected(x):
    # requires grad, but has nothing to do with the argument
    return x.long().double().requires_grad_().clone()


STRICT = {
    "output without gradient": lambda x: x.detach(),
    "output of something else": disconnected,
    "linear": lambda x: 3 * x,
}


@create
@pytest.mark.parametrize("f", STRICT.values(), ids=STRICT)
@pytest.mark.parametrize("name", ["vjp", "jvp", "jacobian", "hessian", "vhp", "hvp"])
def test_strict(torch, name, f, create_graph):
    of_value = name in ("hessian", "vhp", "hvp")
    linear = f is STRICT["linear"]
    g = (lambda x: f(x).sum()) if of_value else f

    def run(lib):
        x = inputs_of(lib, [B], create_graph)
        v = () if name in ("jacobian", "hessian") else (like(lib, x),)
        return getattr(lib.autograd.functional, name)(g, x, *v, create_graph=create_graph, strict=True)

    if linear and not create_graph and not of_value:
        both(torch, run)
    else:
        assert message_of(tg, run) == message_of(torch, run)


@pytest.mark.parametrize("name", ["vjp", "jvp", "jacobian", "hessian", "vhp", "hvp"])
def test_strict_names_the_input(torch, name):
    def run(lib):
        x = inputs_of(lib, [B, [1.0, 2.0]])
        v = {"vjp": (like(lib, x[0]),), "jvp": (like(lib, x),), "vhp": (like(lib, x),), "hvp": (like(lib, x),)}
        f = (lambda x, y: x**2) if name in ("vjp", "jvp", "jacobian") else (lambda x, y: (x**2).sum())
        return getattr(lib.autograd.functional, name)(f, x, *v.get(name, ()), strict=True)

    kind, message = message_of(tg, run)
    assert (kind, message) == message_of(torch, run)
    assert "input 1 " in message or "input 1." in message


@pytest.mark.parametrize("name", ["hessian", "vhp", "hvp"])
def test_strict_hessian_without_mixed_terms(torch, name):
    def run(lib):
        x = inputs_of(lib, [B, [1.0, 2.0]])
        v = () if name == "hessian" else (like(lib, x),)
        return getattr(lib.autograd.functional, name)(lambda x, y: (x**2).sum() + (y**3).sum(), x, *v, strict=True)

    if name == "hessian":
        assert message_of(tg, run) == message_of(torch, run)
    else:
        both(torch, run)


@pytest.mark.parametrize("name", ["hessian", "vhp", "hvp"])
def test_strict_constant_hessian_with_a_graph(torch, name):
    def run(lib):
        x = inputs_of(lib, [B], True)
        v = () if name == "hessian" else (like(lib, x),)
        return getattr(lib.autograd.functional, name)(lambda x: (x * x).sum(), x, *v, strict=True, create_graph=True)

    assert message_of(tg, run) == message_of(torch, run)


REFUSED = {
    "inputs in a list": lambda F, x, v: F([x], v),
    "an input that is no tensor": lambda F, x, v: F((x, 2.0), v),
    "v that is no tensor": lambda F, x, v: F(x, 1.0),
    "v with one that is no tensor": lambda F, x, v: F(x, (v, "a")),
    "v of another shape": lambda F, x, v: F(x, v[:1].expand(2)),
    "v too long": lambda F, x, v: F(x, (v, v)),
    "no v": lambda F, x, v: F(x),
    "v too short": lambda F, x, v: F((x, x), v),
    "v of another shape in a tuple": lambda F, x, v: F((x, x), (v, v[:1].expand(2))),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("name", ["jvp", "vhp", "hvp"])
def test_refused_inputs_and_vectors(torch, name, how):
    f = (lambda *x: x[0] * x[-1]) if name == "jvp" else (lambda *x: (x[0] * x[-1]).sum())

    def run(lib):
        function = getattr(lib.autograd.functional, name)
        x = inputs_of(lib, [B])
        return REFUSED[how](lambda x, *v: function(f, x, *v), x, x)

    assert message_of(tg, run) == message_of(torch, run)


@pytest.mark.parametrize("how", REFUSED)
def test_refused_vectors_of_vjp(torch, how):
    def run(lib):
        def call(x, *v):
            # as many outputs as inputs
            return lib.autograd.functional.vjp(lambda *x: x if len(x) > 1 else x[0] * 2, x, *v)

        x = inputs_of(lib, [B])
        return REFUSED[how](call, x, x)

    assert message_of(tg, run) == message_of(torch, run)


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("jacobian", lambda x: [x, x]),
        ("jacobian", lambda x: (x, 3)),
        ("vjp", lambda x: "text"),
        ("hessian", lambda x: (x.sum(), x.sum())),
        ("hessian", lambda x: (x.sum(),)),
        ("hessian", lambda x: x * 2),
        ("vhp", lambda x: (x.sum(),)),
        ("vhp", lambda x: x * 2),
        ("hvp", lambda x: (x.sum(),)),
        ("hvp", lambda x: x * 2),
    ],
)
def test_refused_outputs(torch, name, f):
    def run(lib):
        x = inputs_of(lib, [B])
        v = (x,) if name in ("vhp", "hvp") else ()
        return getattr(lib.autograd.functional, name)(f, x, *v)

    assert message_of(tg, run) == message_of(torch, run)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("jacobian", {"strict": True, "vectorize": True}),
        ("jacobian", {"strict": True, "vectorize": True, "strategy": "forward-mode"}),
        ("jacobian", {"strategy": "sideways"}),
        ("hessian", {"strict": True, "vectorize": True}),
        ("hessian", {"outer_jacobian_strategy": "sideways"}),
    ],
)
def test_refused_options(torch, name, options):
    def run(lib):
        return getattr(lib.autograd.functional, name)(lambda x: (x**3).sum(), inputs_of(lib, [B]), **options)

    assert message_of(tg, run) == message_of(torch, run)


def test_integers_are_refused():
    with pytest.raises(RuntimeError, match="only Tensors of floating point and complex dtype can require gradients"):
        tg.autograd.functional.jacobian(lambda x: x * 2, tg.arange(3))


# ---- batches of gradients, which `vectorize` uses ----


def test_batched_gradients_must_fit():
    x = tg.tensor(B, requires_grad=True)
    y = x * x
    batched = lambda roots, starts: tg.autograd.grad(roots, x, starts, is_grads_batched=True, retain_graph=True)
    message = (
        r"If `is_grads_batched=True`, we interpret the first dimension of each grad_output as the batch dimension.*"
    )
    for start in (tg.ones(3), tg.ones(2, 4), tg.ones(())):
        with pytest.raises(RuntimeError, match=message + r"grad_output\[0\] has a shape of tapegrad.Size"):
            batched(y, start)
    with pytest.raises(ValueError, match=r"must have one batch size, but got \[2, 4\]"):
        batched((y, y), (tg.ones(2, 3), tg.ones(4, 3)))
    with pytest.raises(ValueError, match="leading batch dimension, but all of them are None"):
        batched(y.sum(), None)
    with pytest.raises(TypeError, match="gradients can be either Tensors or None, but got int"):
        batched(y, (1,))
    assert batched(y, tg.ones(0, 3))[0].shape == (0, 3)


def test_a_batch_in_which_only_some_gradients_are_none():
    class Sometimes(tg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return g if g.sum() > 0 else None

    x = tg.tensor(B, requires_grad=True)
    starts = tg.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    (found,) = tg.autograd.grad(Sometimes.apply(x), x, starts, is_grads_batched=True, allow_unused=True)
    assert found.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
