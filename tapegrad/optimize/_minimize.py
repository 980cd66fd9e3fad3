"""Minimisation with derivatives from the tape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.optimize
from scipy.optimize import OptimizeResult

from tapegrad.optimize._bounds import bounds_by_pairs
from tapegrad.optimize._callback import restored, wrapped_callback
from tapegrad.optimize._constraints import with_derivatives
from tapegrad.optimize._recorded import Objective
from tapegrad.optimize._unknowns import Unknowns
from tapegrad.tensor import Tensor

_WITHOUT_GRADIENT = ("nelder-mead", "powell", "cobyla", "cobyqa")
_WITH_PRODUCTS = ("newton-cg", "trust-ncg", "trust-krylov", "trust-constr")
_WITH_HESSIAN = ("dogleg", "trust-exact")


def problem(
    f: Callable,
    unknowns: Unknowns,
    args: Any = (),
    method: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable | None = None,
    options: Mapping[str, Any] | None = None,
    hess: Any = None,
) -> dict[str, Any]:
    """The arguments of SciPy's `minimize`, without the start, for those of ours.

    Raises:
        ValueError: for a `hess` by complex steps, and for bounds and constraints that do not match.
    """
    if method is None:  # SciPy's choice
        method = "slsqp" if constraints else "l-bfgs-b" if bounds is not None else "bfgs"
    elif isinstance(method, str):
        method = method.lower()
    return {
        **_derivatives(f, unknowns, args, method, hess),
        "method": method,
        "bounds": bounds_by_pairs(bounds, unknowns),
        "constraints": with_derivatives(constraints, unknowns, method),
        "tol": tol,
        "callback": wrapped_callback(callback, unknowns),
        "options": None if options is None else dict(options),
    }


def _derivatives(f: Callable, unknowns: Unknowns, args: Any, method: Any, hess: Any) -> dict[str, Any]:
    """The function and the derivatives that a method asks for; all of them for one of the user's own."""
    if isinstance(hess, str) and hess == "cs":
        raise ValueError("hess='cs' needs complex numbers, which tensors do not hold: leave hess out for the exact one")
    custom = callable(method)
    curvature = hess is None and (custom or method in _WITH_PRODUCTS + _WITH_HESSIAN)
    objective = Objective(f, unknowns, args, curvature=curvature)
    if method in _WITHOUT_GRADIENT:
        return {"fun": objective.value_without_graph, "hess": hess}
    found: dict[str, Any] = {"fun": objective.value, "jac": objective.gradient, "hess": hess}
    if callable(hess):
        found["hess"] = _users_hessian(hess, unknowns, args)
    elif curvature:
        if custom or method in _WITH_HESSIAN:
            found["hess"] = objective.hessian
        if custom or method in _WITH_PRODUCTS:
            found["hessp"] = objective.hessian_product
    return found


def _users_hessian(hess: Callable, unknowns: Unknowns, args: Any) -> Callable:
    others = args if isinstance(args, tuple) else (args,)

    def hessian(vector: np.ndarray) -> Any:
        found = hess(unknowns.restore(vector), *others)
        return found.detach().numpy() if isinstance(found, Tensor) else found

    return hessian


def minimize(
    f: Callable,
    x0: Any,
    args: Any = (),
    method: str | Callable | None = None,
    bounds: Any = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable | None = None,
    options: Mapping[str, Any] | None = None,
    hess: Any = None,
) -> OptimizeResult:
    r"""Minimise a function of one or several tensors with SciPy's methods and exact derivatives.

    .. math:: \min_x f(x) \quad\text{subject to}\quad l \le x \le u,\; g(x) = 0,\; h(x) \ge 0

    A value and its gradient come from one evaluation of `f`. Methods that use second derivatives get products with the exact Hessian
    (Newton-CG, trust-ncg, trust-krylov, trust-constr) or the Hessian itself (dogleg, trust-exact); constraints get their Jacobians, and
    with trust-constr their Hessians. Methods that use no derivatives get values only.

    SciPy computes in float64; `f` is called in the dtype of `x0`. In float32 the tolerances of most methods are beyond reach: start
    from float64.

    Args:
        f: called with the unknowns as tensors in the structure of `x0`, then `args`; returns a tensor of one element.
        x0: the start: a float32 or float64 tensor, an array, a number, a list of numbers, or a dict, list, tuple, named tuple or dataclass
            of these, nested as you like. Integer arrays and numbers become float64, as in SciPy.
        args: further arguments of `f`, as they are; one that is no tuple is the only one.
        method: as in SciPy.
        bounds: SciPy's `Bounds`; or one (low, high) an element; or the structure of `x0` with one (low, high) for each tensor, each end a
            number, an array, or None for no bound.
        constraints: one or several of ``{"type": "eq" | "ineq", "fun": g}``, SciPy's `NonlinearConstraint`, with functions of the unknowns
            in their structure that return a tensor or a structure of tensors; or SciPy's `LinearConstraint`. A
            `finite_diff_jac_sparsity` has the Jacobian computed compressed; a `hess` other than SciPy's default is kept.
        tol: tolerance for termination.
        callback: as in SciPy, with the unknowns in their structure.
        options: of the method.
        hess: instead of the exact Hessian: SciPy's ``"2-point"``, ``"3-point"`` or a `HessianUpdateStrategy`, or a function of the unknowns
            that returns an (n, n) matrix.

    Returns:
        SciPy's `OptimizeResult`, with `x` in the structure, shapes and dtypes of `x0`, tensors for tensors, arrays for arrays. All else is
        SciPy's, over all elements in order.

    Raises:
        TypeError: if `f` returns no tensor, or `x0` has parts that are no floating numbers.
        ValueError: if `f` returns more than one element or NaN, its derivative is NaN where its value is finite, or bounds or constraints
            do not match.
        RuntimeError: if the result is cut off from the unknowns although it changes with them.

    >>> import tapegrad as tg
    >>> def rosenbrock(p):
    ...     return (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2
    >>> result = minimize(rosenbrock, {"x": -1.2, "y": 1.0}, method="trust-exact")
    >>> result.success, round(result.x["x"], 6), round(result.x["y"], 6)
    (True, 1.0, 1.0)
    """
    unknowns = Unknowns(x0)
    asked = problem(f, unknowns, args, method, bounds, constraints, tol, callback, options, hess)
    return restored(scipy.optimize.minimize(x0=unknowns.start, **asked), unknowns)
