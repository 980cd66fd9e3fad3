"""`vmap` of every op and of its gradient beside a loop of eager calls."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine.runtime import rt
from tapegrad.ops._kernel import KernelOp
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import FLOATS
from tests.test_higher_order import CASES as DIFFERENTIABLE
from tests.test_higher_order import NAMES, values
from tests.test_ops import ALL_OPS, SAMPLED, draw, sample_parts

SIZE = 3

# what no batch can be run for: results whose shape depends on values, and values that Python is asked for
REFUSED = {
    "x[x > 1]": "different shapes",
    "x.masked_select(x > 1)": "different shapes",
    "x.nonzero()": "different shapes",
    "x.unique()": "different shapes",
    "F.one_hot((x * 2).long())": "different shapes",
    "x.masked_scatter(x > 1, y)": "different shapes",
    "v.repeat_interleave((v * 2).long())": "different shapes",
    "x.index_put((x > 1,), x[x > 1])": "different shapes",
    "tg.full((2,), s)": "values",
    "tg.arange(s)": "values",
    "tg.tensor([s, s])": "values",
    "x * float(s)": "values",
    "x if s > 1 else y": "values",
    "x.numpy()": "values",
    "x.tolist()": "values",
    "x.data": "accessing `data`",
    "tg.rand(2) * s": "random operation",
    "tg.bernoulli(x / 3)": "random operation",
    "tg.multinomial(v, 2)": "values",
    "F.dropout(x)": "random operation",
}

# expressions over x, y (3, 4), v (5,), s () and integers i (3, 4) in [0, 3), j () in [0, 3) that have no derivative, or whose indices
# differ between samples
FORMS = """
x.argmax() | x.argmin(1) | x.argsort(0) | x.sort(1).indices | x.sort(1, descending=True).indices | v.topk(2).indices | x.kthvalue(2, 1).indices
x.max(1).indices | x.cummax(1).indices | x.median(1).indices | x.mode(1).values | x.count_nonzero(1) | x.all(1) | x.any() | (x > 1).sum(0)
x[i[:, 0]] | x[i[:, 0], i[:, 1]] | x[:, i[0, :2]] | x[j] | x[j, i[0]] | x.gather(0, i) | x.gather(1, i[:, :2]) | x.take(i) | x.index_select(0, i[:, 0])
x.scatter(0, i, y) | x.scatter_add(0, i, y) | x.index_add(0, i[:, 0], y) | x.index_copy(0, tg.arange(3), y) | x.index_fill(0, i[0, :1], 2.0)
x.index_put((i[:, 0], i[:, 1]), s, accumulate=True) | written(x, j, y[0]) | written(x, i[:, 0], s) | written(x, x > 1, s) | written(x, (j, i[0]), 2.0)
F.embedding(i, x) | F.one_hot(i, 3) | F.cross_entropy(x, i[:, 0]) | F.cross_entropy(x, i[:, 0], reduction="none") | F.nll_loss(x, i[:, 0]) | F.cross_entropy(v, j)
F.cross_entropy(x, i[:, 0], y[0], label_smoothing=0.1) | tg.searchsorted(v.sort().values, x) | tg.bucketize(x, v.sort().values) | tg.isin(i, i[0])
i // (i + 1) | i % 3 | i ** 2 | i << 1 | i & 1 | ~i | i.float() * x | i == 2 | (x > 1) & (y > 1) | tg.where(i > 1, x, y) | -i | i.abs() | i.sum() | i.prod(1)
tg.isclose(x, y) | x.isnan() | x.floor() | x.round(decimals=1) | tg.trunc(x * 3) | x // 0.3 | x.fmod(0.3) | tg.histc(x, 4, 0, 2) | x.tril() | x.triu(1) | x.roll(1, 0)
tg.cat([x, x[:0]]) | tg.stack([s, s, v[0]]) | x[None] | x[..., 1:] | x[::2, ::3] | x.unbind(1)[2] | tg.outer(v, v) | x.flip(0, 1) | tg.meshgrid(v, v, indexing="ij")[0]
s.expand(2, 3) | s + 1 | s.reshape(1) | x.mean() | x.quantile(0.3, 1) | x.nanmedian() | tg.diff(x) | x.cov() | tg.cdist(x, y) | x.trapezoid() | tg.bincount(i.reshape(-1), minlength=3)
x[x > x.median()] | x.masked_select(x > x.median()) | (x > x.median()).nonzero() | (x > x.median()).nonzero(as_tuple=True)[1] | F.one_hot(i)
written(x, x > x.median(), y.reshape(-1)[:6]) | x.masked_scatter(x > x.median(), y) | i.reshape(-1).unique() | v.unique_consecutive(return_counts=True)[1]
v.repeat_interleave(tg.arange(5)) | x.repeat_interleave(i[:, 0].sort().values * 0 + 2, 0) | written(x, s > 1, 2.0) | written(x, i[:, 0] > 0, y[0]) | x.half()
x.index_put((i[:, 0] > 0,), y[:1], accumulate=True) | written(x, (slice(1, None), j), s) | x[:, None, j] | x[j, :, None] | x[..., j] | x[j, j] | x[j - 3]
written(x, (..., j), y[:, 0]) | tg.outer(v, v)[:, None, i[0]] | x[x > x.median()].sum() | x[i[:, 0] >= 0, i[:, 1]] | written(x, (j, slice(None), None), y[0][:, None])
"""


def expressions(text):
    return [form.strip() for line in text.strip().splitlines() for form in line.split(" | ")]


def form_case(text):
    code = compile(text, text, "eval")
    numbers = np.random.default_rng(3)
    operands = dict(zip("xyvs", values((3, 4), (3, 4), (5,), ()), strict=True))
    operands |= {"i": numbers.integers(0, 3, (3, 4)), "j": numbers.integers(0, 3, ())}
    used = [n for n in operands if n in code.co_names]

    def call(*tensors):
        return eval(code, {**NAMES, **dict(zip(used, tensors, strict=True))})

    return call, [operands[n] for n in used]


def exists(text):
    call, arrays = form_case(text)
    try:
        call(*map(tg.tensor, arrays))
    except AttributeError:
        return False
    return True


def discrete_cases():
    for op in ALL_OPS:
        if isinstance(op, Pointwise) and op.derivative is None:
            dtype = np.float64 if set(FLOATS) <= set(op.dtypes) else np.int64 if tg.int64 in op.dtypes else bool
            yield pytest.param(op, draw(op, [(2, 3)] * op.arity, dtype), id=op.name)
    for parameter in SAMPLED:
        op, sample = parameter.values
        if isinstance(op, KernelOp) and op.derivative is None:
            shapes, args, kwargs = sample_parts(op, sample)

            def call(*tensors, op=op, args=args, kwargs=kwargs):
                return op(*tensors, *args, **kwargs)

            yield pytest.param(call, values(*shapes), id=parameter.id)


FORMS = [form for form in expressions(FORMS) if exists(form)]
CASES = [
    *(pytest.param(*case.values[:2], id=case.id) for case in DIFFERENTIABLE),
    *discrete_cases(),
    *(pytest.param(*form_case(text), id=text.replace(" ", "")) for text in FORMS),
]


def samples_of(arrays, size=SIZE):
    """For each operand the samples: its elements moved on by one, so that they stay where the op is defined."""
    return [np.stack([np.roll(a, k) for k in range(size)]) for a in arrays]


def looped(call, batches, mapped, dtype=None):
    """The call on each sample, stacked."""
    size = next(len(b) for b, m in zip(batches, mapped, strict=True) if m)
    rows = []
    for k in range(size):
        operands = [tg.tensor(b[k] if m else b[0]) for b, m in zip(batches, mapped, strict=True)]
        rows.append(call(*operands).detach().numpy())
    return np.stack(rows)


def agree(found, expected, tolerance=1e-11):
    found = found.detach()
    assert tuple(found.shape) == expected.shape
    assert found.numpy().dtype == expected.dtype
    np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance, atol=tolerance)


def narrowed(arrays):
    return [a.astype(np.float32) if a.dtype == np.float64 else a for a in arrays]


def in_memory(batch, dim):
    """A batch with its samples along a dimension, which are then not contiguous."""
    return tg.tensor(np.moveaxis(batch, 0, dim))


def names_of(arrays):
    # which operands to map over: all, and each alone
    every = [True] * len(arrays)
    alone = [[k == j for k in range(len(arrays))] for j in range(len(arrays))] if len(arrays) > 1 else []
    return [every, *alone]


@pytest.mark.parametrize(("call", "arrays"), CASES)
def test_equals_a_loop(call, arrays):
    batches = samples_of(arrays)
    for mapped in names_of(arrays):
        given = [tg.tensor(b if m else b[0]) for b, m in zip(batches, mapped, strict=True)]
        expected = looped(call, batches, mapped)
        agree(tg.vmap(call, in_dims=tuple(0 if m else None for m in mapped))(*given), expected)
    single = samples_of(arrays, 1)
    agree(tg.vmap(call)(*map(tg.tensor, single)), looped(call, single, [True] * len(arrays)))


@pytest.mark.parametrize(("call", "arrays"), CASES)
def test_along_the_last_dim_and_in_float32(call, arrays):
    batches = samples_of(narrowed(arrays))
    given = [in_memory(b, -1) for b in batches]
    expected = looped(call, batches, [True] * len(arrays))
    agree(tg.vmap(call, in_dims=-1, out_dims=-1)(*given), np.moveaxis(expected, 0, -1), 1e-4)


@pytest.mark.parametrize(("call", "arrays"), CASES)
def test_nested(call, arrays):
    batches = samples_of(arrays, 4)
    pairs = [tg.tensor(b.reshape(2, 2, *b.shape[1:])) for b in batches]
    expected = looped(call, batches, [True] * len(arrays))
    agree(tg.vmap(tg.vmap(call))(*pairs).flatten(0, 1), expected)
    if len(arrays) < 2:
        return
    # the first operand along the outer map, the others along the inner one
    outer, *inner = batches
    found = tg.vmap(lambda x: tg.vmap(lambda *rest: call(x, *rest))(*map(tg.tensor, inner)))(tg.tensor(outer[:2]))
    for k in range(2):
        agree(found[k], looped(call, [outer[k : k + 1], *inner], [False] + [True] * len(inner)))


def weights_of(call, arrays):
    shape = tuple(call(*map(tg.tensor, arrays)).shape)
    return np.random.default_rng(1).uniform(0.5, 1.5, shape)


def gradients(call, operands, moving, weights):
    """Gradients of the weighed result by some of the operands, zeros where there are none."""
    tensors = [tg.tensor(a, requires_grad=k in moving) for k, a in enumerate(operands)]
    result = call(*tensors)
    wanted = [tensors[k] for k in moving]
    if not result.requires_grad:
        return [np.zeros(t.shape) for t in wanted]
    found = tg.autograd.grad(result, wanted, tg.tensor(weights), materialize_grads=True)
    return [g.numpy() for g in found]


@pytest.mark.parametrize(("call", "arrays", "still"), DIFFERENTIABLE)
def test_gradients_of_samples(call, arrays, still):
    """Gradients inside of the map, outside of it, and of an operand that all samples share."""
    moving = [k for k, a in enumerate(arrays) if a.dtype.kind == "f" and k not in still]
    weights = weights_of(call, arrays)
    batches = samples_of(arrays)
    expected = [gradients(call, [b[k] for b in batches], moving, weights) for k in range(SIZE)]

    def total(*tensors):
        return (call(*tensors) * tg.tensor(weights)).sum()

    inside = tg.vmap(tg.func.grad(total, argnums=tuple(moving)))(*map(tg.tensor, batches))
    outside = gradients(tg.vmap(call), batches, moving, np.stack([weights] * SIZE))
    for number, g in enumerate(inside):
        stacked = np.stack([e[number] for e in expected])
        agree(g, stacked)
        np.testing.assert_allclose(outside[number], stacked, rtol=1e-11, atol=1e-11)

    for k in moving if len(arrays) > 1 else ():
        dims = tuple(None if j == k else 0 for j in range(len(arrays)))
        operands = [b[0] if j == k else b for j, b in enumerate(batches)]
        (found,) = gradients(tg.vmap(call, in_dims=dims), operands, [k], np.stack([weights] * SIZE))
        parts = [
            gradients(call, [b[0 if j == k else n] for j, b in enumerate(batches)], [k], weights)[0]
            for n in range(SIZE)
        ]
        np.testing.assert_allclose(found, sum(parts), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("text", REFUSED)
def test_refusals(text):
    call, arrays = form_case(text)
    batches = [np.stack([k * a for k in range(SIZE)]) for a in arrays]
    with pytest.raises((RuntimeError, ValueError), match=REFUSED[text]):
        tg.vmap(call)(*map(tg.tensor, batches))
    assert int(rt.state.trace_mask) == 0


def test_a_value_between_two_writes():
    def between(x):
        y = tg.zeros(3) + 5
        y[0] = x[0]
        total = y.sum()
        y[1] = x[1] * 2
        return total * y[1]

    x = tg.tensor([[0.9, 0.8], [0.2, 0.3]])
    for mapped in (between, tg.func.grad(between)):
        expected = np.stack([mapped(row).numpy() for row in x])
        np.testing.assert_allclose(tg.vmap(mapped)(x).numpy(), expected, rtol=1e-6)


def part_written_without_gradient(x):
    with tg.no_grad():
        y = tg.zeros(3)
        y[1:] = x[:2]
        y[0].add_(x.sum())
        return y * 1


def part_added_to(x):
    y = tg.zeros(2, 3)
    y[1, 2] += x[0]
    y[0, 1:] *= x[1]
    y[0].copy_(x[:1])
    return (y**2).sum()


def test_writes_to_a_part_without_gradient():
    x = tg.tensor([[0.9, 0.8], [0.2, 0.3], [0.5, 0.1]])
    found = tg.vmap(part_written_without_gradient)(x)
    expected = np.stack([part_written_without_gradient(row).numpy() for row in x])
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(found.numpy()[:, 1:], x.numpy())


def test_pushed_through_a_written_part():
    x = tg.tensor([[0.9, 0.8], [0.2, 0.3]])
    for push in (tg.func.jacfwd, lambda f: tg.func.hessian(lambda z: f(z) * z.sum())):
        pull = (
            tg.func.jacrev
            if push is tg.func.jacfwd
            else lambda f: tg.func.jacrev(tg.func.jacrev(lambda z: f(z) * z.sum()))
        )
        expected = np.stack([pull(part_added_to)(row).numpy() for row in x])
        for k in range(2):
            np.testing.assert_allclose(push(part_added_to)(x[k]).numpy(), expected[k], rtol=1e-5)
        np.testing.assert_allclose(tg.vmap(push(part_added_to))(x).numpy(), expected, rtol=1e-5)
