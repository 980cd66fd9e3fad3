"""The bridge to SciPy's minimisers: the same steps as with derivatives written by hand, and clear errors."""

import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import (
    BFGS,
    SR1,
    Bounds,
    rosen_der,
    rosen_hess,
    rosen_hess_prod,
)
from scipy.optimize import rosen as scipy_rosen

import tapegrad as tg
from tapegrad.optimize import basinhopping, dual_annealing, minimize
from tapegrad.optimize._recorded import Objective, Residuals
from tapegrad.optimize._unknowns import Unknowns
from tests.helpers import Counted, bowl, rosen
from tests.processes import run

X0 = np.array([1.1, 1.2, 1.4, 1.3])
PLAIN = ["Nelder-Mead", "Powell", "COBYLA", "COBYQA"]
GRADIENT = ["CG", "BFGS", "L-BFGS-B", "TNC", "SLSQP"]
PRODUCTS = ["Newton-CG", "trust-ncg", "trust-krylov", "trust-constr"]
HESSIAN = ["dogleg", "trust-exact"]
F64 = tg.float64
DIFFERENTIATED = GRADIENT + PRODUCTS + HESSIAN


def distance(p):
    """Squared distance of every element from 5."""
    return sum(((part - 5) ** 2).sum() for part in p.values())


class Mine(Exception):
    pass


# methods


@pytest.mark.parametrize("method", DIFFERENTIATED)
def test_steps_are_those_of_derivatives_by_hand(method):
    by_hand = {"jac": rosen_der}
    if method in PRODUCTS:
        by_hand["hessp"] = rosen_hess_prod
    if method in HESSIAN:
        by_hand["hess"] = rosen_hess
    f = Counted(rosen)
    # close to the start: rounding grows from step to step
    options = {"maxfun" if method == "TNC" else "maxiter": 6}
    found = minimize(f, X0, method=method, options=options)
    expected = scipy.optimize.minimize(scipy_rosen, X0, method=method, options=options, **by_hand)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-8)
    np.testing.assert_allclose(found.fun, expected.fun, rtol=1e-7)
    for count in ("nit", "nfev", "njev", "nhev"):
        assert found.get(count) == expected.get(count)
    assert len(f.calls) == found.nfev  # derivatives come from the same evaluation


@pytest.mark.parametrize("method", [*DIFFERENTIATED, None])
def test_every_method_with_derivatives_finds_the_minimum(method):
    found = minimize(rosen, X0, method=method, options={"gtol": 1e-8} if method == "dogleg" else None)
    np.testing.assert_allclose(found.x, np.ones(4), atol=1e-3)
    np.testing.assert_allclose(found.fun, scipy_rosen(found.x), atol=1e-12)


@pytest.mark.parametrize("method", PLAIN)
def test_every_method_without_derivatives_finds_the_minimum(method):
    found = minimize(bowl, X0, method=method)
    np.testing.assert_allclose(found.x, np.ones(4), atol=1e-3)


@pytest.mark.parametrize("method", PLAIN)
def test_methods_without_derivatives_record_nothing(method):
    recorded = []

    def f(x):
        recorded.append(x.requires_grad or (x * x).requires_grad)
        return rosen(x)

    minimize(f, X0, method=method, options={"maxiter": 20})
    assert not any(recorded)


@pytest.mark.parametrize("method", PRODUCTS + HESSIAN)
def test_second_derivatives_need_no_further_evaluation(method):
    f = Counted(rosen)
    found = minimize(f, np.array([-1.2, 1.0]) if method != "dogleg" else X0[:2], method=method)
    assert found.nhev > 0
    assert len(f.calls) == found.nfev


def test_names_of_methods_in_any_case_and_unknown_ones():
    assert minimize(rosen, X0, method="bfgs").success
    with pytest.raises(ValueError, match="Unknown solver"):
        minimize(rosen, X0, method="steepest")


def test_a_method_of_the_users_own():
    def newton(fun, x0, jac, hess, hessp, **others):
        x = x0
        for _ in range(12):
            h = hess(x)
            np.testing.assert_allclose(h @ x0, hessp(x, x0), rtol=1e-10)
            x = x - np.linalg.solve(h, jac(x))
        return scipy.optimize.OptimizeResult(x=x, fun=fun(x), success=True)

    found = minimize(rosen, tg.from_numpy(X0), method=newton)
    np.testing.assert_allclose(found.x, np.ones(4), rtol=1e-10)


@pytest.mark.parametrize("hess", ["2-point", BFGS(), SR1()], ids=["2-point", "BFGS", "SR1"])
def test_an_approximate_hessian_on_request(hess):
    found = minimize(rosen, X0, method="trust-constr", hess=hess)
    np.testing.assert_allclose(found.x, np.ones(4), atol=1e-4)


def test_a_hessian_of_the_users_own():
    calls = []

    def hess(p, scale):
        calls.append(p)
        return tg.tensor(scale * rosen_hess(np.array([p["a"], p["b"]])))

    def f(p, scale):
        return scale * rosen(tg.stack([p["a"], p["b"]]))

    found = minimize(f, {"a": 1.2, "b": 1.3}, (2.0,), "trust-exact", hess=hess)
    assert found.success
    assert calls[0] == {"a": 1.2, "b": 1.3}


def test_complex_steps_are_refused():
    with pytest.raises(ValueError, match="needs complex numbers"):
        minimize(rosen, X0, method="trust-constr", hess="cs")


def test_tolerance_and_options_are_passed_on():
    assert minimize(rosen, X0, tol=1e-1).nit < minimize(rosen, X0, tol=1e-8).nit
    assert minimize(rosen, X0, options={"maxiter": 2}).nit == 2


def test_further_arguments():
    f = lambda x, a, b: ((x - a) ** 2).sum() + b
    found = minimize(f, X0, args=(2.0, tg.tensor(3.0)))
    np.testing.assert_allclose(found.x, np.full(4, 2.0), rtol=1e-6)
    assert found.fun == pytest.approx(3)
    np.testing.assert_allclose(minimize(lambda x, a: ((x - a) ** 2).sum(), X0, args=X0 + 1).x, X0 + 1, rtol=1e-6)


# grad modes


@pytest.mark.parametrize("mode", [tg.no_grad, tg.inference_mode])
@pytest.mark.parametrize("method", ["BFGS", "trust-exact", "trust-constr", "Nelder-Mead"])
def test_grad_modes_of_the_caller_change_nothing(mode, method):
    expected = minimize(rosen, X0, method=method).x
    with mode():
        found = minimize(rosen, X0, method=method)
        assert not tg.is_grad_enabled()
    assert found.x.tolist() == expected.tolist()
    assert tg.is_grad_enabled()


def test_parameters_of_the_caller_get_no_gradient():
    w = tg.tensor(2.0, dtype=F64, requires_grad=True)
    found = minimize(lambda x: ((x - w) ** 2).sum(), X0, method="trust-ncg")
    np.testing.assert_allclose(found.x, np.full(4, 2.0), rtol=1e-6)
    assert w.grad is None


# callbacks


@pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "TNC", "SLSQP", "Nelder-Mead", "trust-ncg", "COBYLA"])
def test_callbacks_see_the_structure(method):
    seen = []
    minimize(distance, {"w": tg.zeros(2, dtype=F64), "b": 0.0}, method=method, callback=seen.append)
    assert seen
    for x in seen:
        assert list(x) == ["w", "b"]
        assert x["w"].shape == (2,)
        assert isinstance(x["b"], float)


@pytest.mark.parametrize("method", ["BFGS", "Nelder-Mead", "trust-constr", "COBYQA"])
def test_callbacks_by_result(method):
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)

    minimize(distance, {"w": tg.zeros(2, dtype=F64)}, method=method, callback=callback)
    assert seen[-1].x["w"].shape == (2,)
    assert seen[-1].fun == pytest.approx(0, abs=1e-3)


def test_callbacks_of_trust_constr():
    seen = []

    def callback(x, state):
        seen.append((x, state.x, state.nit))
        return len(seen) == 3

    found = minimize(rosen, tg.from_numpy(X0), method="trust-constr", callback=callback)
    assert found.nit == len(seen) == 3
    assert all(isinstance(x, tg.Tensor) and x.tolist() == y.tolist() for x, y, _ in seen)


def test_callbacks_may_stop():
    def callback(x):
        raise StopIteration

    found = minimize(rosen, X0, callback=callback)
    assert found.nit == 1
    assert not found.success


# errors


@pytest.mark.parametrize("method", ["BFGS", "Nelder-Mead", "trust-exact"])
@pytest.mark.parametrize(
    ("f", "kind"),
    [
        (lambda x: x.sum().item(), "float"),
        (lambda x: np.sum(x.detach().numpy()), "float64"),
        (lambda x: x.detach().numpy(), "ndarray"),
        (lambda x: None, "NoneType"),
        (lambda x: [x.sum()], "list"),
        (lambda x: 3, "int"),
    ],
)
def test_results_that_are_no_tensor(f, kind, method):
    with pytest.raises(
        TypeError, match=f"f must return a Tensor computed from the unknowns, but returned {kind}: keep"
    ):
        minimize(f, X0, method=method)


@pytest.mark.parametrize("method", ["BFGS", "Nelder-Mead", "trust-exact"])
def test_results_of_several_elements(method):
    with pytest.raises(ValueError, match=r"f must return one number, but returned a tensor of shape \[4\]: reduce it"):
        minimize(lambda x: x * x, X0, method=method)


@pytest.mark.parametrize("method", ["BFGS", "Nelder-Mead", "trust-exact", "SLSQP"])
def test_one_element_of_any_shape_is_a_number(method):
    assert minimize(lambda x: bowl(x).reshape(1, 1), X0, method=method).success


# dogleg and trust-krylov want a definite Hessian
@pytest.mark.parametrize("method", [*GRADIENT, "Newton-CG", "trust-ncg", "trust-exact", "trust-constr"])
@pytest.mark.parametrize(
    "f",
    [lambda x: tg.tensor(3.0), lambda x: (x > 0).sum(), lambda x: 0 * x.sum() + 3, lambda x: W * 3],
    ids=["constant", "steps", "times zero", "of something else"],
)
@pytest.mark.filterwarnings("ignore:delta_grad == 0.0", "ignore:Singular Jacobian")
def test_a_result_that_does_not_depend_on_the_unknowns(method, f):
    found = minimize(f, X0, method=method)
    assert found.x.tolist() == X0.tolist()


W = tg.tensor(1.0, requires_grad=True)


@pytest.mark.parametrize("method", ["BFGS", "trust-exact", "SLSQP"])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: rosen(x.detach()),
        tg.no_grad()(rosen),
        lambda x: tg.tensor(rosen(x).item()),
        lambda x: tg.from_numpy(np.array(scipy_rosen(x.detach().numpy()))),
    ],
    ids=["detach", "no_grad", "item", "numpy"],
)
def test_a_result_cut_off_from_the_unknowns(f, method):
    with pytest.raises(
        RuntimeError, match=r"f returned a tensor that is cut off from the unknowns \(requires_grad=False\)"
    ):
        minimize(f, X0, method=method)


def test_a_constant_branch_is_no_cut():
    f = lambda x: (x[0] - 0.5) ** 2 if x[0] > 0 else tg.tensor(1.0)
    assert minimize(f, np.array([0.0])).x.tolist() == [0.0]


def test_nan_is_named():
    with pytest.raises(ValueError, match=r"f returned nan at x = \[-1\.  2\.\]: keep the unknowns where it is defined"):
        minimize(lambda x: x.log().sum(), [-1.0, 2.0])
    with pytest.raises(ValueError, match="f returned nan at x = "):
        minimize(lambda x: x.log().sum(), [1.0, 2.0], method="Nelder-Mead")


def test_a_nan_derivative_is_named():
    f = lambda p: (p["a"] ** 2).sum().sqrt() * 0 + p["b"]
    with pytest.raises(
        ValueError, match=r"the derivative of f with respect to x0\['a'\]\[0, 0\] is nan at x = \[0\. 0\. 1\.\]"
    ):
        minimize(f, {"a": np.zeros((1, 2)), "b": 1.0})


def test_a_nan_second_derivative_is_named():
    # finite at 0 with its first derivative, while the second is inf - inf
    f = lambda x: (x**1.5).sum() - (x.abs() ** 1.5).sum() + (x**2).sum()
    with pytest.raises(ValueError, match=r"the derivative of f with respect to x0\[0\] is nan"):
        minimize(f, [0.0], method="trust-exact")


def test_infinity_keeps_methods_out():
    barrier = lambda x: tg.where(x > 0.5, (x - 1) ** 2, np.inf).sum()
    found = minimize(barrier, np.array([3.0]), method="Nelder-Mead")
    np.testing.assert_allclose(found.x, [1.0], atol=1e-3)


@pytest.mark.parametrize("method", DIFFERENTIATED + PLAIN)
@pytest.mark.parametrize("at", [1, 2, 4])
def test_exceptions_pass(method, at):
    count = iter(range(1, 1000))

    def f(x):
        if next(count) == at:
            raise Mine("stopped")
        return rosen(x)

    with pytest.raises(Mine, match="stopped"):
        minimize(f, X0, method=method)


def test_no_function():
    with pytest.raises(TypeError, match="f must be callable, but got int"):
        minimize(3, X0)


# derivatives themselves


def test_derivatives_of_an_objective():
    objective = Objective(rosen, Unknowns(X0), curvature=True)
    direction = np.array([1.0, -2.0, 0.5, 3.0])
    for x in (X0, -X0, X0):
        np.testing.assert_allclose(objective.value(x), scipy_rosen(x), rtol=1e-14)
        np.testing.assert_allclose(objective.gradient(x), rosen_der(x), rtol=1e-11)
        np.testing.assert_allclose(objective.hessian_product(x, direction), rosen_hess_prod(x, direction), rtol=1e-12)
        np.testing.assert_allclose(objective.hessian(x), rosen_hess(x), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(objective.gradient(x), rosen_der(x), rtol=1e-11)


def test_products_go_on_where_a_rejected_step_left():
    f = Counted(rosen)
    objective = Objective(f, Unknowns(X0), curvature=True)
    objective.gradient(X0)
    before = objective.hessian_product(X0, X0)
    objective.value(X0 + 1)  # the step that is rejected
    assert objective.hessian_product(X0, X0).tolist() == before.tolist()
    assert len(f.calls) == 2


def test_a_gradient_handed_out_is_a_copy():
    objective = Objective(rosen, Unknowns(X0))
    objective.gradient(X0)[:] = 0
    np.testing.assert_allclose(objective.gradient(X0), rosen_der(X0), rtol=1e-11)


def test_vectors_that_scipy_changes_in_place_are_evaluated_again():
    objective, x = Objective(rosen, Unknowns(X0)), X0.copy()
    objective.value(x)
    x += 1
    np.testing.assert_allclose(objective.value(x), scipy_rosen(x))


def test_the_weighted_hessian_of_constraints():
    residuals = Residuals(lambda x: tg.stack([rosen(x), (x**3).sum()]), Unknowns(X0))
    hessian = residuals.weighted_hessian(X0, np.array([2.0, -3.0]))
    residuals.values(X0 + 1)
    np.testing.assert_allclose(hessian @ np.eye(4), 2 * rosen_hess(X0) - 18 * np.diag(X0), rtol=1e-10, atol=1e-10)


# global search


def wavy(x):
    return (tg.cos(14.5 * x - 0.3) + (x + 0.2) * x).sum()


@pytest.mark.parametrize("local", [None, {"method": "trust-exact"}, {"method": "L-BFGS-B", "bounds": {"x": (-2, 2)}}])
def test_basinhopping(local):
    seen = []
    x0 = {"x": np.array([1.0])}
    found = basinhopping(
        lambda p: wavy(p["x"]), x0, niter=30, minimizer_kwargs=local, callback=lambda x, f, ok: seen.append(x), rng=1
    )
    np.testing.assert_allclose(found.x["x"], [-0.19506755], atol=1e-5)
    assert found.lowest_optimization_result.x["x"].tolist() == found.x["x"].tolist()
    assert seen[0]["x"].shape == (1,)


def test_basinhopping_takes_the_steps_of_derivatives_by_hand():
    by_hand = lambda x: np.sum(-14.5 * np.sin(14.5 * x - 0.3) + 2 * x + 0.2)
    expected = scipy.optimize.basinhopping(
        lambda x: np.sum(np.cos(14.5 * x - 0.3) + (x + 0.2) * x), [1.0], 10, minimizer_kwargs={"jac": by_hand}, rng=2
    )
    found = basinhopping(wavy, [1.0], 10, rng=2)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-6)
    assert found.nfev == expected.nfev


def test_dual_annealing():
    box = [(-2.0, 2.0)] * 2
    found = dual_annealing(wavy, box, maxiter=100, rng=0)
    np.testing.assert_allclose(found.x, [-0.19506755] * 2, atol=1e-4)
    assert found.njev > 0
    assert dual_annealing(wavy, Bounds([-2, -2], [2, 2]), maxiter=100, rng=0).x.tolist() == found.x.tolist()
    seen = []
    found = dual_annealing(
        lambda p, shift: wavy(p["x"] - shift),
        {"x": (-2.0, 2.0)},
        (0.5,),
        maxiter=200,
        rng=0,
        x0={"x": tg.ones(2, dtype=F64)},
        callback=lambda x, f, context: seen.append(x),
    )
    np.testing.assert_allclose(found.x["x"].numpy(), [0.30493245] * 2, atol=1e-4)
    assert isinstance(seen[0]["x"], tg.Tensor)


def test_dual_annealing_needs_a_start_for_a_structure():
    with pytest.raises(ValueError, match="for a structure of tensors give x0"):
        dual_annealing(wavy, {"x": (-2.0, 2.0)})


# the module


def test_importing_the_package_does_not_import_scipys():
    loaded = "print(json.dumps('scipy.optimize' in sys.modules))"
    before = run(f"import json, sys, tapegrad; {loaded}")[0]
    after = run(f"import json, sys, tapegrad; tapegrad.optimize.minimize; {loaded}")[0]
    assert (before, after) == (False, True)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'tapegrad' has no attribute 'optimise'"):
        tg.optimise  # noqa: B018
