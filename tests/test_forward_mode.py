"""Tangents of every differentiable op agree with its gradient, and `forward_ad` with PyTorch's."""

import numpy as np
import pytest

import tapegrad as tg
import tapegrad.autograd.forward_ad as fwAD
from tests.test_higher_order import CASES, Problem


@pytest.mark.parametrize(("call", "arrays", "still"), CASES[::3])
def test_tangents_are_the_transpose_of_gradients(call, arrays, still):
    problem = Problem(call, arrays, still)
    leaves, rng = problem.leaves()[0], np.random.default_rng(0)
    value = problem.value(leaves)
    weights = tg.tensor(rng.normal(size=value.shape), dtype=value.dtype)
    moving = [t for t in leaves if t.requires_grad]
    gradients = tg.autograd.grad(value, moving, weights, allow_unused=True)
    tangents = [tg.tensor(rng.normal(size=t.shape), dtype=t.dtype) for t in moving]
    expected = sum((g * t).sum().item() for g, t in zip(gradients, tangents, strict=True) if g is not None)
    with fwAD.dual_level():
        given = iter(tangents)
        duals = [fwAD.make_dual(t.detach(), next(given)) if t.requires_grad else t for t in leaves]
        tangent = fwAD.unpack_dual(problem.value(duals)).tangent
    found = 0.0 if tangent is None else (tangent * weights).sum().item()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_forward_over_reverse_and_writes_and_no_grad():
    x, t = tg.tensor([1.0, 2.0], dtype=tg.float64, requires_grad=True), tg.tensor([0.5, -1.0], dtype=tg.float64)
    with fwAD.dual_level():
        dual = fwAD.make_dual(x, t)
        (slope,) = tg.autograd.grad((dual**3).sum(), dual, create_graph=True)
        np.testing.assert_allclose(fwAD.unpack_dual(slope).tangent.detach().numpy(), [3.0, -12.0])
        made = tg.zeros(2, dtype=tg.float64)
        made[1] = dual[0] * dual[1]
        assert fwAD.unpack_dual(made).tangent.tolist() == [0.0, 0.0]
        with tg.no_grad():
            assert fwAD.unpack_dual(dual * dual).tangent.tolist() == [1.0, -4.0]
        assert fwAD.unpack_dual(dual.detach()).tangent is None
    assert fwAD.unpack_dual(dual).tangent is None


def test_levels_and_arguments():
    one = tg.ones(2)
    with pytest.raises(RuntimeError, match="no level exists"):
        fwAD.make_dual(one, one)
    with pytest.raises(RuntimeError, match="no level is currently active"):
        fwAD.exit_dual_level()
    with fwAD.dual_level():
        with pytest.raises(RuntimeError, match="Nested forward mode AD is not supported"):
            fwAD.enter_dual_level()
        with pytest.raises(ValueError, match="Expected primal to be floating point"):
            fwAD.make_dual(tg.tensor([1, 2]), one)
        with pytest.raises(RuntimeError, match="same shape"):
            fwAD.make_dual(one, tg.ones(3))
        with pytest.raises(RuntimeError, match="same dtype"):
            fwAD.make_dual(one, one.double())


def test_a_function_with_a_jvp_of_its_own():
    class Cube(tg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_forward(x)
            return x**3

        @staticmethod
        def jvp(ctx, t):
            return 30 * ctx.saved_tensors[0] ** 2 * t  # not the true one, to be recognised

    assert tg.func.jvp(Cube.apply, (tg.tensor(2.0),), (tg.tensor(1.0),))[1].item() == 120.0
