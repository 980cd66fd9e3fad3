"""Every case of the tests of `vmap`, in lanes: values and gradients beside eager calls on each sample."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.program import Lanes
from tests.test_higher_order import CASES as DIFFERENTIABLE
from tests.test_vmap import CASES, gradients, narrowed, samples_of, weights_of

# one for each case in turn: less than a block, just around one, and several
SIZES = (1, 15, 16, 17, 100)
# samples whose gradients are compared
CHOSEN = (0, 1, 7, 14, 15, 16, 50, 98, 99)


def numbered(cases):
    return [pytest.param(k, *case.values, id=case.id) for k, case in enumerate(cases)]


def mixture(number, count):
    """For each of some operands the dimension of its samples: all along the first or the last, or all but one."""
    kind = number // len(SIZES) % 3
    alone = number % count if kind == 2 and count > 1 else -1
    return tuple(None if k == alone else -1 if kind == 1 else 0 for k in range(count))


def operands_of(batches, dims):
    return [np.asarray(b[0]) if d is None else np.moveaxis(b, 0, d) for b, d in zip(batches, dims, strict=True)]


def sample(batches, dims, n):
    return [b[0] if d is None else b[n] for b, d in zip(batches, dims, strict=True)]


def agree(found, expected, tolerance=1e-11):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def check_recorded(lanes):
    """All samples ran in blocks, along paths that were recorded once."""
    assert lanes.programs()
    assert lanes.captures == len(lanes.programs())
    assert lanes.singles == 0


@pytest.mark.parametrize(("number", "call", "arrays"), numbered(CASES))
def test_values(number, call, arrays):
    size = SIZES[number % len(SIZES)]
    batches, dims = samples_of(arrays, size), mixture(number, len(arrays))
    lanes = Lanes(call, dims)
    expected = np.stack([call(*map(tg.tensor, sample(batches, dims, n))).numpy() for n in range(size)])
    for _ in range(2):
        agree(lanes(*operands_of(batches, dims)), expected)
    check_recorded(lanes)


@pytest.mark.parametrize(("number", "call", "arrays", "still"), numbered(DIFFERENTIABLE))
def test_values_and_gradients(number, call, arrays, still):
    moving = [k for k, a in enumerate(arrays) if a.dtype.kind == "f" and k not in still]
    weights = weights_of(call, arrays)
    size = SIZES[(number + 2) % len(SIZES)]
    batches, dims = samples_of(arrays, size), mixture(number + 1, len(arrays))

    def total(*tensors):
        return (call(*tensors) * tg.tensor(weights)).sum()

    both = Lanes(tg.func.value_and_grad(total, tuple(moving)), dims)
    only = Lanes(tg.func.grad(total, moving[0]), dims)
    given = operands_of(batches, dims)
    values, grads = both(*given)
    alone = only(*given)
    check_recorded(both)
    check_recorded(only)
    for n in CHOSEN:
        if n < size:
            operands = sample(batches, dims, n)
            agree(values[n], total(*map(tg.tensor, operands)).numpy())
            expected = gradients(call, operands, moving, weights)
            for found, wanted in zip([*(g[n] for g in grads), alone[n]], [*expected, expected[0]], strict=True):
                agree(found, wanted)


@pytest.mark.parametrize(("number", "call", "arrays"), numbered(CASES)[:: len(SIZES)])
def test_in_float32(number, call, arrays):
    batches = samples_of(narrowed(arrays), 17)
    lanes = Lanes(call)
    expected = np.stack([call(*(tg.tensor(b[n]) for b in batches)).numpy() for n in range(17)])
    agree(lanes(*batches), expected, 1e-4)
    check_recorded(lanes)
