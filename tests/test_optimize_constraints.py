"""Constraints of `tapegrad.optimize.minimize`: the closest point to (2, 1) on and in the circle of radius 1, and on a line."""

import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import SR1, LinearConstraint, NonlinearConstraint

import tapegrad as tg
from tapegrad.optimize import minimize


class Mine(Exception):
    pass


TARGET = np.array([2.0, 1.0])
ON_CIRCLE = TARGET / np.sqrt(5)
CONSTRAINED = ["SLSQP", "trust-constr", "COBYLA", "COBYQA", None]


def off_target(x):
    return ((x - tg.from_numpy(TARGET)) ** 2).sum()


def circle(x):
    return 1 - (x * x).sum()


@pytest.mark.parametrize("method", CONSTRAINED)
@pytest.mark.parametrize(
    "constraint",
    [
        {"type": "ineq", "fun": circle},
        {"type": "eq", "fun": circle},
        {"type": "INEQ", "fun": lambda x, r: r - (x * x).sum().reshape(1), "args": (1.0,)},
        NonlinearConstraint(circle, 0, np.inf),
        NonlinearConstraint(lambda x: {"r": (x * x).sum(), "x": x}, [-np.inf, -9, -9], [1, 9, 9]),
    ],
    ids=["ineq", "eq", "args", "nonlinear", "structure"],
)
def test_constraints(method, constraint):
    found = minimize(off_target, np.array([0.5, 0.1]), method=method, constraints=constraint)
    np.testing.assert_allclose(found.x, ON_CIRCLE, atol=1e-2 if method == "COBYLA" else 1e-3)


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr", "COBYQA"])
def test_several_constraints_of_all_kinds(method):
    constraints = [
        LinearConstraint([[1.0, 1.0]], 0.5, 0.5),
        {"type": "ineq", "fun": circle},
        NonlinearConstraint(lambda x: x[0], -9, 0.6),
    ]
    found = minimize(off_target, np.array([0.1, 0.1]), method=method, constraints=constraints)
    np.testing.assert_allclose(found.x, [0.6, -0.1], atol=1e-3)


def test_constraints_over_a_structure():
    found = minimize(
        lambda p: (p["x"] - 2) ** 2 + (p["y"] - 1) ** 2,
        {"x": 0.5, "y": 0.1},
        constraints={"type": "eq", "fun": lambda p: p["x"] ** 2 + p["y"] ** 2 - 1},
    )
    np.testing.assert_allclose([found.x["x"], found.x["y"]], ON_CIRCLE, atol=1e-3)


@pytest.mark.parametrize("form", ["dict", "nonlinear"])
def test_steps_are_those_of_constraints_by_hand(form):
    def by_hand(x):
        return -2 * x

    target = {"jac": lambda x: 2 * (x - TARGET), "hessp": lambda x, p: 2 * p}
    hand = NonlinearConstraint(lambda x: 1 - x @ x, 0, np.inf, jac=by_hand, hess=lambda x, v: -2 * v[0] * np.eye(2))
    ours = {"type": "ineq", "fun": circle} if form == "dict" else NonlinearConstraint(circle, 0, np.inf)
    expected = scipy.optimize.minimize(
        lambda x: ((x - TARGET) ** 2).sum(), [0.5, 0.1], method="trust-constr", constraints=hand, **target
    )
    found = minimize(off_target, [0.5, 0.1], method="trust-constr", constraints=ours)
    assert (found.nit, found.nfev, found.cg_niter) == (expected.nit, expected.nfev, expected.cg_niter)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-10)


def test_a_constraints_hessian_other_than_scipys_default_is_kept():
    constraint = NonlinearConstraint(circle, 0, np.inf, hess=SR1())
    found = minimize(off_target, [0.5, 0.1], method="trust-constr", constraints=constraint)
    np.testing.assert_allclose(found.x, ON_CIRCLE, atol=1e-4)
    assert constraint.hess.n == 2  # it was used


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
@pytest.mark.filterwarnings("ignore:Constraint options")
def test_a_sparse_jacobian_of_constraints(method):
    n = 12
    pattern = np.eye(n - 1, n) + np.eye(n - 1, n, 1)
    g = lambda x: x[1:] - x[:-1] ** 2
    constraint = NonlinearConstraint(g, 0, 0, finite_diff_jac_sparsity=pattern)
    found = minimize(lambda x: ((x - 0.5) ** 2).sum(), np.full(n, 0.3), method=method, constraints=constraint)
    dense = NonlinearConstraint(g, 0, 0)
    expected = minimize(lambda x: ((x - 0.5) ** 2).sum(), np.full(n, 0.3), method=method, constraints=dense)
    np.testing.assert_allclose(found.x, expected.x, atol=1e-5)


@pytest.mark.parametrize(
    ("constraint", "error", "message"),
    [
        ({"fun": circle}, ValueError, r"constraints\[0\]\['type'\] must be 'eq' or 'ineq', but got None"),
        ({"type": "<", "fun": circle}, ValueError, "must be 'eq' or 'ineq', but got '<'"),
        ({"type": "eq"}, ValueError, r"constraints\[0\] has no 'fun'"),
        ({"type": "eq", "fun": circle, "jac": circle}, ValueError, r"constraints\[0\] has a 'jac': leave it out"),
        ({"type": "eq", "fun": 3}, TypeError, r"constraints\[0\]\['fun'\] must be callable, but got int"),
        (NonlinearConstraint(circle, 0, 1, jac=circle), ValueError, "has a jac or hess of its own"),
        ([{"type": "eq", "fun": circle}, circle], TypeError, r"constraints\[1\] must be a dict, .* but got function"),
        (
            {"type": "eq", "fun": lambda x: circle(x).item()},
            TypeError,
            r"constraints\[0\]\['fun'\] must return a Tensor computed from the unknowns, but returned float",
        ),
        ({"type": "eq", "fun": lambda x: [x[0], 1.0]}, TypeError, r"but returned float at \[1\]"),
        ({"type": "eq", "fun": lambda x: (x - 9).log()}, ValueError, "returned nan in element 0 of its result at x = "),
        ({"type": "eq", "fun": lambda x: x.detach()}, RuntimeError, "cut off from the unknowns"),
    ],
)
def test_constraints_that_are_wrong(constraint, error, message):
    with pytest.raises(error, match=message):
        minimize(off_target, [0.5, 0.1], constraints=constraint)


def test_constraints_where_none_are_taken():
    with pytest.warns(RuntimeWarning, match="cannot handle constraints"):
        minimize(off_target, [0.5, 0.1], method="BFGS", constraints={"type": "eq", "fun": circle})


@pytest.mark.parametrize("method", CONSTRAINED)
def test_exceptions_of_constraints_pass(method):
    count = iter(range(1, 1000))

    def g(x):
        if next(count) == 3:
            raise Mine("stopped")
        return circle(x)

    with pytest.raises(Mine, match="stopped"):
        minimize(off_target, [0.5, 0.1], method=method, constraints={"type": "ineq", "fun": g})
