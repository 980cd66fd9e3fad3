"""Second and third derivatives of every op: reverse over reverse against finite differences of the derivative below."""

import math

import numpy as np
import pytest
from scipy import special

import tapegrad as tg
import tapegrad.nn.functional as F
from tapegrad.autograd.rows import operands, read_row
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_PRODUCER
from tapegrad.ops._place import place_back
from tapegrad.ops._rule import built_in_ops
from tapegrad.ops._view import ViewOp
from tapegrad.ops.pointwise import polygamma
from tapegrad.ops.scan import recurrence
from tests.test_ops import SAMPLED, SMOOTH, constant_inputs, draw, sample_parts

BUILT_IN = built_in_ops()  # before other tests declare theirs
STEP = 1e-5
WEIGHTS = tg.tensor([0.5, 1.5, 0.0, 2.0], dtype=tg.float64)


def ints(*values):
    return tg.tensor(np.asarray(values, np.int64))


def mask(*values):
    return tg.tensor(np.asarray(values, bool))


def written(x, where, value):
    """`x` with a value written to a part of it in place."""
    y = x * 1
    y[where] = value
    return y


def stale(x, y):
    """A view of `x` whose base was written to after it was taken."""
    base = x * 1
    view = base[1:]
    base *= y
    return view * x[1:]


def spread(x):
    """`x` in every other row of a larger matrix."""
    return place_back(x, [rt.strided_layout((3, 4), (8, 1)), 0], (6, 4))


# public forms of ops that have no samples of their own: an expression over x (3, 4), y (3, 4), v (5,), s ()
FORMS = """
tg.cat([x, y * 2], 1) | tg.stack([x, y], 1) | x[ints(2, 0, 2)] | x[mask(True, False, True)] | x[ints(0, 1), ints(3, 3)]
x.index_put((ints(0, 2),), y[:2]) | x.index_put((ints(1, 1),), y[0], accumulate=True) | x.index_put((x > 1,), s)
x.gather(1, ints([0, 0], [3, 1], [2, 2])) | s.gather(0, ints(0)[0]) | x.take(ints(0, -1, 5)) | v.sort().values | x.sort(0).values
x.scatter(0, ints([2, 1, 0, 0]), y) | x.scatter(1, ints([1], [2], [0]), 2.5) | x.scatter_add(1, ints([0, 0], [1, 2], [3, 3]), y)
x.index_select(0, ints(2, 0, 2)) | x.index_select(1, ints(1)) | F.embedding(ints(0, 2, 2), x)
x.index_add(0, ints(0, 0), y[1:]) | x.index_copy(1, ints(3, 0), y[:, :2]) | x.index_fill(0, ints(1), s) | s.index_select(0, ints(0))
x.masked_select(x > 1) | x.masked_scatter(x > 1, y) | x.masked_fill(x > 1, s) | x.topk(2).values | s.topk(1).values | x.kthvalue(2, 0).values
x.kthvalue(1, keepdim=True).values | x.max(1).values | x.min(0, True).values | x.median(1).values | x.cummax(1).values | v.cummin(0).values
x.max(y) | x.max() | x.min() | tg.mul(*x.aminmax(dim=0)) | stale(x, y) | recurrence(x.view(2, 3, 2), y.view(2, 3, 2), False) | spread(x) | x.median() | F.linear(x, y, v[:3]) | F.linear(x, y) | F.linear(x.view(3, 2, 2), y[:, :2], v[:3]) | F.linear(x.view(3, 2, 2), y[:, :2])
F.linear(v, tg.outer(v, v), v) | tg.cross(x[:, :3], y[:, 1:], 1) | tg.cross(x, y, 0) | x.norm(1) | x.norm(3, 1) | x.norm(0.5) | x.norm(float("inf"), 0) | x.norm(-float("inf"))
tg.mul(*tg.var_mean(x, 1)) | tg.mul(*tg.std_mean(x)) | written(x, 1, y[0]) | written(x, (slice(None), 0), s) | written(x, ints(0, 2), y[1]) | written(x, x > 1, s)
F.cross_entropy(x, ints(1, 0, 3)) | F.cross_entropy(x, ints(1, 0, 3), WEIGHTS[:4].to(x.dtype), 0, reduction="sum") | F.cross_entropy(x, ints(1, 0, 3), reduction="none") | F.cross_entropy(v, ints(2)[0])
F.cross_entropy(x, ints(1, 0, 3), WEIGHTS[:4].to(x.dtype), ignore_index=0, label_smoothing=0.1) | F.cross_entropy(x, y) | F.cross_entropy(x.view(2, 3, 2), ints([1, 0], [2, 2]), WEIGHTS[:3].to(x.dtype))
F.cross_entropy(x.view(2, 3, 2), ints([1, 0], [2, 2]), reduction="none") | F.nll_loss(x, ints(1, 0, 3), WEIGHTS[:4].to(x.dtype), ignore_index=0) | F.nll_loss(x.view(2, 3, 2), ints([1, 0], [2, 2]), reduction="none")
F.binary_cross_entropy(x / 3, y / 3) | F.binary_cross_entropy_with_logits(x, y, weight=y, pos_weight=x) | F.kl_div(x, y) | F.l1_loss(x, y * 2) | F.l1_loss(x, y * 2, reduction="none") | F.l1_loss(x, y * 2, reduction="sum")
F.smooth_l1_loss(3 * x, y, beta=0.4) | F.huber_loss(3 * x, y, delta=0.4) | F.pad(x, (1, 2, 0, 1), value=2.0) | F.pad(x, (-1, 1)) | F.cosine_similarity(x, y) | F.normalize(x)
tg.einsum("ij,kj,j->ik", x, y, v[:4]) | tg.matrix_power(x[:, :3], 3) | x.split(2, 1)[0] * x.split(2, 1)[1] | x.unbind()[0] * x.unbind()[1] | x.as_strided((2, 3), (1, 4), 1) | x.T.flip(0) | x.repeat_interleave(2, 0)
x.reshape(4, 3) @ y | x.expand(2, 3, 4) * y | x.unfold(1, 3, 1) * 2 | v.unfold(0, 3, 1) ** 2 | tg.diag_embed(v) | x.diagonal(1) * 2 | x.to(tg.float64) | x.clone() | x ** 3 | x ** 2 | x ** -1 | x ** 0.5 | 2.0 ** x | x ** y
tg.where(x > 1, x * y, y) | tg.lerp(x, y, 0.3) | x.addcmul(x, y, value=2) | x.addcdiv(x, y, value=2) | tg.add(x, y, alpha=3) | x.clamp(0.5, 1.5) | x.clamp(min=0.5) | x.clamp(max=1.5) | x.clamp(s - 1, s) | x.clamp(min=s) | x.clamp(max=s)
"""
HELPERS = (ints, mask, written, stale, spread, recurrence)
NAMES = {"tg": tg, "F": F, "WEIGHTS": WEIGHTS, **{f.__name__: f for f in HELPERS}}
FORMS = [form.strip() for line in FORMS.strip().splitlines() for form in line.split(" | ")]


def values(*shapes, seed=5):
    """Distinct numbers between 0.3 and 2.0 in random order."""
    sizes = [int(np.prod(s)) for s in shapes]
    numbers = np.random.default_rng(seed).permutation(np.linspace(0.3, 2.0, sum(sizes)))
    return [a.reshape(s) for a, s in zip(np.split(numbers, np.cumsum(sizes)[:-1]), shapes, strict=True)]


def form_case(text):
    code = compile(text, text, "eval")
    operands = dict(zip("xyvs", values((3, 4), (3, 4), (5,), ()), strict=True))
    used = [n for n in operands if n in code.co_names]

    def call(*tensors):
        return eval(code, {**NAMES, **dict(zip(used, tensors, strict=True))})

    return call, [operands[n] for n in used], ()


def pointwise_cases():
    for op in SMOOTH:
        still = constant_inputs(op)
        yield pytest.param(op, draw(op, [(2, 3)] * op.arity), still, id=op.name)
        if op.arity > 1:
            shapes = [(2, 1, 3), (4, 1), ()][: op.arity]
            yield pytest.param(op, draw(op, shapes, seed=3), still, id=f"{op.name}-broadcast")


def sampled_cases():
    for parameter in SAMPLED:
        op, sample = parameter.values
        if op.derivative is None and not isinstance(op, ViewOp):
            continue
        shapes, args, kwargs = sample_parts(op, sample)

        def call(*tensors, op=op, args=args, kwargs=kwargs):
            return op(*tensors, *args, **kwargs)

        yield pytest.param(call, values(*shapes), (), id=parameter.id)


CASES = [
    *pointwise_cases(),
    *sampled_cases(),
    *(pytest.param(*form_case(text), id=text.replace(" ", "")) for text in FORMS),
]


class Problem:
    """A function of arrays, and its derivatives of any order along random directions."""

    def __init__(self, call, arrays, still):
        self.call, self.arrays = call, arrays
        rng = np.random.default_rng(9)
        self.moving = [k for k, a in enumerate(arrays) if a.dtype.kind == "f" and k not in still]
        self.directions = [[rng.normal(size=arrays[k].shape) for k in self.moving] for _ in range(2)]
        self.seed = None

    def leaves(self, shift=0.0, along=0):
        """Fresh tensors, moved by `shift` along a direction."""
        tensors = [tg.tensor(a) for a in self.arrays]
        for k, d in zip(self.moving, self.directions[along], strict=True):
            tensors[k] = tg.tensor(self.arrays[k] + shift * d, requires_grad=True)
        return tensors, [tensors[k] for k in self.moving]

    def value(self, tensors):
        result = self.call(*tensors)
        if self.seed is None:
            self.seed = np.random.default_rng(1).uniform(0.5, 1.5, tuple(result.shape))
        return result

    def first(self, shift=0.0, along=0, create_graph=False):
        tensors, moving = self.leaves(shift, along)
        result = self.value(tensors)
        start = tg.tensor(self.seed, requires_grad=create_graph)
        return moving, start, tg.autograd.grad(result, moving, start, create_graph=create_graph, materialize_grads=True)

    def along(self, parts, k):
        return sum((part * tg.tensor(d)).sum() for part, d in zip(parts, self.directions[k], strict=True))

    def second(self, shift=0.0, along=0, create_graph=False):
        """The derivative of the gradient along the first direction, by the operands and the start adjoint."""
        moving, start, parts = self.first(shift, along, True)
        return moving, derivative(self.along(parts, 0), [*moving, start], create_graph)

    def third(self):
        moving, found = self.second(create_graph=True)
        return derivative(self.along(found[:-1], 1), moving, False)


def derivative(total, operands, create_graph):
    """Gradients, zero of what depends on nothing."""
    if not total.requires_grad:
        return [tg.zeros_like(x) for x in operands]
    return tg.autograd.grad(total, operands, create_graph=create_graph, materialize_grads=True)


def arrays_of(tensors):
    return [t.detach().numpy() for t in tensors]


def differences(function):
    """Central differences of a list of arrays."""
    above, below = function(STEP), function(-STEP)
    return [(a - b) / (2 * STEP) for a, b in zip(above, below, strict=True)]


def compare(found, expected, tolerance=1e-6):
    for a, b in zip(found, expected, strict=True):
        scale = max(np.abs(b).max(), 1.0) if b.size else 1.0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("call", "arrays", "still"), CASES)
def test_derivatives_of_higher_order(call, arrays, still):
    problem = Problem(call, arrays, still)
    recorded, native = problem.first(create_graph=True)[2], problem.first()[2]
    compare(arrays_of(recorded), arrays_of(native), 1e-12)
    # an adjoint whose elements share memory
    totals = [
        derivative(problem.value(tensors).sum(), moving, recorded)
        for recorded in (True, False)
        for tensors, moving in [problem.leaves()]
    ]
    compare(*map(arrays_of, totals), 1e-12)

    second = arrays_of(problem.second()[1])
    compare(second[:-1], differences(lambda h: arrays_of(problem.first(h)[2])))
    with tg.no_grad():
        compare(second[-1:], differences(lambda h: arrays_of([problem.value(problem.leaves(h)[0])])))

    compare(arrays_of(problem.third()), differences(lambda h: arrays_of(problem.second(h, 1)[1])[:-1]))


def ops_behind(result):
    """Names of the ops that computed a tensor."""
    found, waiting = set(), [result._id]
    while waiting:
        index = rt.look(rt.S, waiting.pop(), LOOK_PRODUCER)
        if index >= 0:
            row = read_row(index)
            found.add(row.op.name)
            waiting += [k for k in operands(row) if k]
    return found


def test_every_differentiable_op_is_among_the_cases():
    seen = set()
    for case in CASES:
        problem = Problem(*case.values)
        seen |= ops_behind(problem.value(problem.leaves()[0]))
    for op in BUILT_IN:
        differentiable = op.derivative is not None or int(rt.ops[op.code]["differentiable"])
        # of conversions only the one that finite differences can see
        if differentiable and str(op.__module__).startswith("tapegrad.ops") and op.name != "to_float32":
            assert op.name in seen, op.name


# ---- where derivatives have edges ----

EDGES = {
    "x ** 2 | x ** 2.0 | x ** 3 | x ** 4 | x ** 1 | x ** 0 | x ** -1 | x * x.abs() | x.relu() ** 2 | x.square()": [[0.0, 2.0, -1.5]],
    "x ** 0.5 | x ** 1.5 | x ** 2.5 | x ** -2 | x.sqrt() | tg.where(x > 0, x * x, -x) | x.clamp(0, 1) ** 2": [[0.0, 2.0]],
    "x ** tg.tensor([2.0, 3.0, 1.0, 2.5]).double()": [[0.0, 0.0, 0.0, 0.0]],
    "x ** y": [[0.0, 0.0, 2.0], [2.0, 3.0, 1.5]],
    "2 ** x | 0.0 ** x": [[0.0, 3.0]],
    "x.abs() | x.sign() * x | x.clamp(min=0) ** 2 | x.clamp(max=1) ** 2 | x.clamp(-1, 1) ** 2": [[0.0, 1.0, -1.0, 3.0]],
    "tg.clamp(x, y, y + 1) ** 2 | tg.maximum(x, y) ** 2 | tg.minimum(x, y) ** 2": [[0.0, 1.0, 0.5, 3.0], [0.0, 0.0, 0.0, 3.0]],
    "tg.atan2(x, y)": [[0.0, 1.0, 0.0, -1.0, 0.0], [1.0, 0.0, -1.0, 0.0, 0.0]],
    "x.prod() | x.cumprod(0)": [[0.0, 2.0, 3.0], [2.0, 0.0, 3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [0.0, 0.0]],
    "x.prod(0) | x.prod(1, True) | x.prod() | x.cumprod(0) | x.cumprod(1)": [[[0.0, 2.0, 0.0], [3.0, 0.0, 1.0], [0.0, 0.0, 5.0]]],
    "x.norm() | x.norm(1) | x.norm(3) | x.norm(float('inf')) | x.norm(0) | x.std() | x.var()": [[0.0, 0.0, 0.0], [0.0, -1.0, 2.0]],
    "x.norm(dim=1) | x.std(1) | x.var(0)": [[[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]],
    "F.elu(x) | F.celu(x) | F.selu(x) | F.softplus(x) | F.mish(x) | F.silu(x) | F.logsigmoid(x)": [[800.0, 0.0, -1000.0]],
    "F.gelu(x) | F.gelu(x, approximate='tanh') | F.leaky_relu(x) ** 2 | F.hardtanh(x) ** 2 | x.erf() | x.tanh()": [[100.0, 0.0, 1.0, -1.0]],
    "tg.logcumsumexp(x, 0) | tg.logsumexp(x, 0) | tg.softmax(x, 0) ** 2": [[float("-inf"), 0.0, -1.0], [0.0, float("-inf"), 800.0]],
    "tg.logaddexp(x, y)": [[0.0, 0.0, 800.0], [2.0, 0.0, -800.0]],
    "x.max() ** 2 | x.amin() ** 2 | x.max(0).values ** 2 | x.nansum() ** 2": [[1.0, 2.0, 2.0], [1.0, 1.0, float("nan")]],
    "F.smooth_l1_loss(x, y, reduction='none') | F.huber_loss(x, y) | F.l1_loss(x, y) ** 2": [[0.5, 0.0, 2.0, -3.0], [0.0, 0.0, 0.0, 0.0]],
    "F.binary_cross_entropy(x, y)": [[0.2, 0.9, 0.5], [0.0, 1.0, 0.3]],
    "F.binary_cross_entropy_with_logits(x, y)": [[-800.0, 800.0, 0.0], [0.0, 1.0, 0.3]],
    "x.lgamma() | x.digamma() | tg.fmod(x, 1.0) ** 2 | tg.remainder(x, 1.0) ** 2": [[0.5, -1.5, 3.25]],
    "F.embedding(ints([0, 2, 2]), x, padding_idx=2) ** 2 | x.index_put((ints([1, 1]),), x[:2], accumulate=True) ** 2": [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]],
}  # fmt: skip
# one operand of a form in a row of its own, or both operands of one with two
EDGE_CASES = [
    (form.strip(), given)
    for forms, rows in EDGES.items()
    for form in forms.split(" | ")
    for given in ([rows] if "y" in compile(form.strip(), "", "eval").co_names else [[row] for row in rows])
]


def edge_derivatives(lib, text, rows):
    """First derivatives, and the second by the operands and the start adjoint."""
    operands = [lib.tensor(np.array(row), requires_grad=True) for row in rows]
    names = {"tg": lib, "F": lib.nn.functional, "ints": lambda values: lib.tensor(np.array(values))}
    result = eval(text, {**names, **dict(zip("xy", operands, strict=False))})
    spread = lambda shape: lib.tensor(np.linspace(0.5, 1.5, int(np.prod(shape))).reshape(tuple(shape)))
    start = spread(result.shape).requires_grad_()
    first = lib.autograd.grad(result, operands, start, create_graph=True, materialize_grads=True)
    total = sum((part * spread(part.shape)).sum() for part in first)
    if not total.requires_grad:
        return [*first, *(0 * t for t in [*operands, start])]
    return [*first, *lib.autograd.grad(total, [*operands, start], materialize_grads=True)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("text", "rows"), EDGE_CASES, ids=lambda value: str(value).replace(" ", ""))
def test_edges_as_pytorch(text, rows):
    torch = pytest.importorskip("torch")
    for found, expected in zip(edge_derivatives(tg, text, rows), edge_derivatives(torch, text, rows), strict=True):
        a, b = found.detach().numpy(), (expected + 0.0).detach().numpy()
        # PyTorch has NaN where a branch that is not taken is infinite; what is finite there is finite here too
        np.testing.assert_allclose(a[~np.isnan(b)], b[~np.isnan(b)], rtol=1e-8, atol=1e-10)


def test_mixed_derivative_of_a_power_whose_exponent_is_zero():
    x, y = tg.tensor(2.0, dtype=tg.float64, requires_grad=True), tg.tensor(0.0, dtype=tg.float64, requires_grad=True)
    to_x, to_y = tg.autograd.grad(x**y, [x, y], create_graph=True)
    assert [t.item() for t in tg.autograd.grad(to_x, [x, y], retain_graph=True)] == [0.0, 0.5]
    assert [t.item() for t in tg.autograd.grad(to_y, [x, y])] == [0.5, np.log(2.0) ** 2]


@pytest.mark.parametrize("n", range(5))
def test_powers_at_zero_to_any_order(n):
    x = tg.tensor(0.0, dtype=tg.float64, requires_grad=True)
    y, expected = x**n, 1.0
    for order in range(1, 7):
        (y,) = tg.autograd.grad(y, x, create_graph=True, materialize_grads=True)
        expected *= n - order + 1
        assert y.item() == (expected if order == n else 0.0)
        if not y.requires_grad:
            break


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_polygamma_of_any_order(n):
    x = np.concatenate([np.linspace(0.05, 30, 200), [1e-6, 1e6, np.inf]])
    np.testing.assert_allclose(polygamma(n, tg.tensor(x)).numpy(), special.polygamma(n, x), rtol=2e-14)
    below = np.array([-0.3, -2.75, -50.25])
    step = (-1) ** n * math.factorial(n) / below ** (n + 1)
    found, above = (polygamma(n, tg.tensor(p)).numpy() for p in (below, below + 1))
    np.testing.assert_allclose(found, above - step, rtol=1e-13)
    assert polygamma(n, tg.tensor([0.0, -3.0])).tolist() == [math.inf * (-1) ** (n + 1)] * 2


# ---- float32 ----


@pytest.mark.parametrize(("call", "arrays", "still"), CASES)
def test_recorded_gradient_keeps_float32(call, arrays, still):
    problem = Problem(call, [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays], still)
    problem.directions = [[d.astype(np.float32) for d in row] for row in problem.directions]
    found = [
        derivative(problem.value(t).sum(), moving, create)
        for create in (True, False)
        for t, moving in [problem.leaves()]
    ]
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.detach().numpy(), b.numpy(), rtol=2e-5, atol=2e-5)
