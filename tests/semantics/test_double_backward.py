"""Derivatives of derivatives through views, in-place writes and networks, as PyTorch computes them."""

import random

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import leaf

DATA = {
    "x": np.array([[0.5, -1.0, 2.0], [0.25, 3.0, -0.75]]),
    "y": np.array([[1.5, 0.5, -1.0], [2.0, -0.5, 0.75]]),
    "v": np.array([1.0, -2.0, 0.5]),
    "s": np.array(1.25),
}

# statements over a library `lib` and the tensors of DATA; `r` is what they compute
PROGRAMS = """
r = x.t() * v[:, None] * x.t() | r = x[1:] * x[:1] | r = x[:, ::2] ** 3 | r = x.expand(2, 2, 3) * y.unsqueeze(1) * x | r = x.view(3, 2) @ x
r = x.reshape(-1)[1:5].view(2, 2).t() ** 2 * s | r = x.diagonal() * y.diagonal(1) ** 2 | r = x.transpose(0, 1).contiguous().view(-1) ** 2 | r = (x.unfold(1, 2, 1) * s) ** 2
a, b = x.split(2, 1); r = a[:, :1] * b ** 2 | a, b = x.unbind(); r = a * b * a | r = x.as_strided((2, 2), (3, 1), 1) ** 2 * s | r = x.squeeze().unsqueeze(0).permute(2, 0, 1) ** 3
r = x * y; r *= x; r = r * r | r = x.clone(); r[1:] *= y[1:]; r = r * r | r = x.clone(); r[:, 0] = v[:2] ** 2; r = r * x | r = x.clone(); r[0].mul_(v).mul_(v); r = r * y
r = x * s; r[1:] *= s; r[1:, :2] += y[1:, :2] ** 2; r = r * r | r = x.clone(); w = r[1]; w *= v; r = r * w | r = x.clone(); w = r.t(); w[0] *= s; w[1:].mul_(s); r = r * r
r = x.sin(); r.add_(y, alpha=2).mul_(s); r = r ** 2 | r = x * 1; r.copy_(v); r = r * r * x | r = x * 1; r.fill_(s); r = r * r * x | r = x * y; r.zero_(); r = r * x + x ** 2 | r = x * y; r[r > 0] = s; r = r * r
r = x * 1; r[[0, 1], [2, 0]] *= s; r = r * r | r = x * 1; r.masked_fill_(x > 0, s); r = r * r * y | r = x * 1; r.index_add_(1, lib.tensor([0, 2]), y[:, :2] ** 2); r = r ** 2 | r = x * 1; r.scatter_(1, lib.tensor([[2], [0]]), y[:, :1] * s); r = r ** 3
r = x * y; r.exp_(); r = r * x | r = (x * y).tanh_() ** 2 | r = (x * x).add_(1).log_().div_(y) | r = (x * y).clamp_(-1, 1) ** 2 | r = x * 1; r **= 3; r = r * y | r = x * 1; r.pow_(2).sub_(s); r = r * r
r = x * 1; w = r.view(-1); r *= y; w = w * w; r = w | r = x.clone(); r[:] = x * s; r[0] = x[1] * v; r = r * r | r = lib.where(x > 0, x * y, v * y) * x | r = lib.cat([x, y * s], 1)[:, 1:5] ** 2 | r = lib.stack([x, x * y], 2).sum(1) ** 2
r = (x.softmax(1) * y).log_softmax(0) * s | r = x.norm() * x.sum(0) | r = (x @ y.t()).trace() * s | r = lib.einsum("ij,kj,j->ik", x, y, v) ** 2 | r = x.var(1) * y.std() + x.prod(1) | r = x.cumsum(1).cumprod(0) * y.logsumexp(1, True)
"""
PROGRAMS = [p.strip() for line in PROGRAMS.strip().splitlines() for p in line.split(" | ")]


def arrays_of(tensors):
    return [np.asarray(t.detach().numpy(), np.float64) for t in tensors]


def weights(shape):
    return np.cos(np.arange(int(np.prod(shape)), dtype=np.float64)).reshape(tuple(shape))


def weighted(lib, tensors):
    return sum((t * lib.tensor(weights(t.shape))).sum() for t in tensors)


def derivatives(lib, program, orders):
    """Gradients of a program's result, of a weighting of these, and so on."""
    space = {name: lib.tensor(a.copy(), requires_grad=True) for name, a in DATA.items()}
    leaves = list(space.values())
    exec(program, {"lib": lib}, space)
    result = space["r"]
    start = lib.tensor(1 + weights(result.shape) / 4, requires_grad=True)
    total, found = (result * start).sum(), []
    for order in range(orders):
        wanted = leaves if order == 0 else [*leaves, start]
        parts = lib.autograd.grad(total, wanted, create_graph=True, allow_unused=True)
        parts = [lib.zeros_like(t) if p is None else p for t, p in zip(wanted, parts, strict=True)]
        found += parts
        total = weighted(lib, parts)
        if not total.requires_grad:
            break
    return arrays_of(found)


def same(found, expected, tolerance=1e-10):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("program", PROGRAMS)
def test_third_order_as_pytorch(program):
    torch = pytest.importorskip("torch")
    same(derivatives(tg, program, 3), derivatives(torch, program, 3))


SHOWN = [
    "r",
    "r[0]",
    "r[1:]",
    "r[:, 1]",
    "r[:, :2]",
    "r.t()",
    "r.view(-1)",
    "r.view(3, 2)",
    "r[..., None]",
    "r[:, ::2]",
]
SHOWN += ["r.t()[1:]", "r[0][1:]", "r.diagonal()"]
WRITES = """
W.mul_(s) | W.add_(s) | W.mul_(s).mul_(s) | W.sub_(s * s) | W.copy_(s * s) | W.fill_(s) | W.sin_() | W.exp_() | W.pow_(2) | W.zero_() | W[...] = s * 2
W.mul_(W.detach() * s) | W.mul_(s.sin()) | W.add_(r.sum()) | W.clamp_(-1, 1) | W.neg_() | W.addcmul_(s, s) | W.lerp_(s, 0.3) | W.div_(s)
"""
WRITES = [w for line in WRITES.strip().splitlines() for w in line.split(" | ")]


def writing_program(seed):
    """A program that writes to views of `r`, some taken before others were written to."""
    rng = random.Random(seed)
    lines, held = [rng.choice(["r = x * 1", "r = x * y"]), "k = []"], []
    for n in range(rng.randint(1, 4)):
        if not held or rng.random() < 0.6:
            lines.append(f"w{n} = {rng.choice(SHOWN)}")
            held.append(f"w{n}")
        lines.append(rng.choice(WRITES).replace("W", rng.choice(held)))
        if rng.random() < 0.4:
            lines.append(f"k.append(({rng.choice(held)} * s).sum())")
        if rng.random() < 0.2:
            lines.append(rng.choice(["r = r * s", "r.mul_(s)"]))
    squares = [f"({name} ** 2).sum()" for name in held]
    return "\n".join([*lines, f"r = (r * r).sum() + sum(k) + {' + '.join(squares)}"])


@pytest.mark.parametrize("block", range(4))
def test_writes_to_views_at_random_as_pytorch(block):
    torch = pytest.importorskip("torch")
    for seed in range(25 * block, 25 * (block + 1)):
        program = writing_program(seed)
        try:
            expected = derivatives(torch, program, 2)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                derivatives(tg, program, 2)
        else:
            same(derivatives(tg, program, 2), expected, 1e-8)


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (lambda x: x**5, lambda x: 60 * x**2),
        (lambda x: (2 * x).exp() * x, lambda x: np.exp(2 * x) * (12 + 8 * x)),
        (lambda x: x.sin() * x.cos(), lambda x: -4 * np.cos(2 * x)),
        (lambda x: (x * x + 1).log(), lambda x: 4 * x * (x**2 - 3) / (x**2 + 1) ** 3),
        (lambda x: 1 / x, lambda x: -6 / x**4),
        (lambda x: x.sqrt().sqrt(), lambda x: 21 / 64 * x ** (-11 / 4)),
    ],
)
def test_third_order_as_written_down(function, derivative):
    points = np.array([0.5, 1.0, 1.75])
    x = tg.tensor(points, requires_grad=True)
    y = function(x)
    for _ in range(3):
        (y,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    same([y.detach().numpy()], [derivative(points)], 1e-12)


def test_eighth_order():
    x = tg.tensor(0.3, dtype=tg.float64, requires_grad=True)
    y = x.sin()
    for _ in range(8):
        (y,) = tg.autograd.grad(y, x, create_graph=True)
    assert y.item() == pytest.approx(np.sin(0.3), rel=1e-14)


def test_hessian_of_a_quadratic_form():
    a = np.random.default_rng(0).normal(size=(4, 4))
    x = tg.tensor(np.ones(4), requires_grad=True)
    (g,) = tg.autograd.grad(x @ tg.tensor(a) @ x, x, create_graph=True)
    rows = [tg.autograd.grad(g[k], x, retain_graph=True)[0].numpy() for k in range(4)]
    same(rows, a + a.T, 1e-14)


# ---- .grad with a graph of its own ----


def test_backward_with_create_graph_gives_a_grad_that_can_be_differentiated():
    x = leaf([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    g = x.grad
    assert g.requires_grad
    assert g.grad_fn is not None
    x.grad = None
    g.sum().backward()
    same([x.grad.numpy()], [np.array([6.0, 12.0])])
    assert not x.grad.requires_grad


def test_backward_with_create_graph_adds_to_grad_out_of_place():
    x = leaf([1.0, 2.0])
    (x**2).sum().backward(create_graph=True)
    first = x.grad
    (x**3).sum().backward(create_graph=True)
    same(arrays_of([first, x.grad]), [np.array([2.0, 4.0]), np.array([5.0, 16.0])])
    (found,) = tg.autograd.grad(x.grad.sum(), x)
    same([found.numpy()], [np.array([8.0, 14.0])])


def test_grads_of_two_leaves_have_memory_of_their_own():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (x + y).sum().backward(create_graph=True)
    with tg.no_grad():
        x.grad.zero_()
    same(arrays_of([x.grad, y.grad]), [np.zeros(2), np.ones(2)])


def test_backward_with_inputs_and_create_graph():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (x**2 * y).sum().backward(create_graph=True, inputs=[x])
    assert y.grad is None
    (found,) = tg.autograd.grad(x.grad.sum(), y)
    same([found.numpy()], [np.array([2.0, 4.0])])


def test_gradient_of_an_intermediate_result():
    x = leaf([1.0, 2.0])
    y = x * x
    (g,) = tg.autograd.grad((y**3).sum(), y, create_graph=True)
    (found,) = tg.autograd.grad(g.sum(), x)
    same([found.numpy()], [12 * np.array([1.0, 8.0])])


def test_retained_grad_of_an_intermediate_result_has_a_graph():
    x = leaf([1.0, 2.0])
    y = x * x
    y.retain_grad()
    (y**3).sum().backward(create_graph=True)
    (found,) = tg.autograd.grad(y.grad.sum(), x)
    same([found.numpy()], [12 * np.array([1.0, 8.0])])


def test_without_create_graph_a_gradient_has_none():
    x = leaf([1.0, 2.0])
    (g,) = tg.autograd.grad((x**3).sum(), x)
    assert not g.requires_grad


def test_a_saved_value_written_to_is_refused_at_the_second_order_too():
    x = leaf([1.0, 2.0])
    y = x.exp()
    (g,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    g2 = g * g
    with tg.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tg.autograd.grad(g2.sum(), x)


# ---- losses and networks ----


def network(lib, functional, reduction):
    rng = np.random.default_rng(3)
    sizes = [(5, 4), (5,), (3, 5), (3,)]
    parameters = [lib.tensor(rng.normal(size=s), requires_grad=True) for s in sizes]
    x = lib.tensor(rng.normal(size=(6, 4)), requires_grad=True)
    target = lib.tensor(np.array([0, 2, 1, 1, 0, 2]))
    hidden = functional.linear(x, parameters[0], parameters[1]).tanh()
    scores = functional.linear(functional.gelu(hidden), parameters[2], parameters[3])
    return functional.cross_entropy(scores, target, reduction=reduction).sum(), [x, *parameters]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradient_penalty_of_a_network_as_pytorch(reduction):
    torch = pytest.importorskip("torch")
    found = []
    for lib in (tg, torch):
        loss, leaves = network(lib, lib.nn.functional, reduction)
        (slope,) = lib.autograd.grad(loss, leaves[0], create_graph=True)
        ((slope.norm(2, 1) - 1) ** 2).mean().backward()
        found.append(arrays_of([slope, *(p.grad for p in leaves if p.grad is not None)]))
    same(*found)


def test_product_with_the_hessian_of_a_network_as_pytorch():
    torch = pytest.importorskip("torch")
    found = []
    for lib in (tg, torch):
        loss, leaves = network(lib, lib.nn.functional, "mean")
        parts = lib.autograd.grad(loss, leaves, create_graph=True)
        second = lib.autograd.grad(weighted(lib, parts), leaves, create_graph=True)
        third = lib.autograd.grad(weighted(lib, second), leaves)
        found.append(arrays_of([*parts, *second, *third]))
    same(*found, 1e-8)
