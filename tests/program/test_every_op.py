"""Every case of the tests of derivatives, compiled: values and gradients on other inputs than those of the capture."""

import numpy as np
import pytest

import tapegrad as tg
from tests.test_higher_order import CASES, Problem, arrays_of

# all of them take a minute; each op is in one of a stride's cases anyway
STRIDE = 1


def results(function, problem, shift):
    """The value, and gradients of the operands from a start adjoint, at moved operands."""
    tensors, moving = problem.leaves(shift)
    value = function(*tensors)
    seed = tg.tensor(np.random.default_rng(1).uniform(0.5, 1.5, tuple(value.shape)), dtype=value.dtype)
    return arrays_of([value, *tg.autograd.grad(value, moving, seed, materialize_grads=True)])


@pytest.mark.parametrize(("call", "arrays", "still"), CASES[::STRIDE])
def test_compiled_is_as_eager(call, arrays, still):
    problem = Problem(call, arrays, still)
    compiled = tg.compile(call)
    results(compiled, problem, 0.0)
    for found, expected in zip(results(compiled, problem, 0.01), results(call, problem, 0.01), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
