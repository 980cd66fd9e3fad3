"""Constraints with derivatives from the tape."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import BFGS, LinearConstraint, NonlinearConstraint

from tapegrad.optimize._recorded import Residuals
from tapegrad.optimize._unknowns import Unknowns

_KINDS = {"eq": (0.0, 0.0), "ineq": (0.0, np.inf)}


def with_derivatives(constraints: Any, unknowns: Unknowns, method: str) -> list[Any]:
    """Constraints as SciPy takes them, with the Jacobian, and for `trust-constr` the Hessian, of their functions.

    Args:
        constraints: one or several: ``{"type": "eq" | "ineq", "fun": g, "args": (...)}``, `NonlinearConstraint` or `LinearConstraint`;
            their functions take the unknowns in their structure.
        unknowns: of the problem.
        method: of `minimize`, in lower case.

    Raises:
        TypeError: for anything else.
        ValueError: for an unknown type, or if they bring derivatives of their own.
    """
    if constraints is None:
        return []
    single = isinstance(constraints, dict | NonlinearConstraint | LinearConstraint)
    return [
        _with_derivatives(constraint, f"constraints[{k}]", unknowns, method)
        for k, constraint in enumerate([constraints] if single else constraints)
    ]


def _with_derivatives(constraint: Any, what: str, unknowns: Unknowns, method: str) -> Any:
    if isinstance(constraint, LinearConstraint):
        return constraint
    if isinstance(constraint, NonlinearConstraint):
        return _nonlinear(constraint, what, unknowns, method)
    if not isinstance(constraint, dict):
        raise TypeError(
            f"{what} must be a dict, a NonlinearConstraint or a LinearConstraint, but got {type(constraint).__name__}"
        )
    kind = constraint.get("type")
    if not isinstance(kind, str) or kind.lower() not in _KINDS:
        raise ValueError(f"{what}['type'] must be 'eq' or 'ineq', but got {kind!r}")
    if "fun" not in constraint:
        raise ValueError(f"{what} has no 'fun'")
    if constraint.get("jac") is not None:
        raise ValueError(f"{what} has a 'jac': leave it out, the tape differentiates its 'fun'")
    function = Residuals(constraint["fun"], unknowns, constraint.get("args", ()), what=f"{what}['fun']")
    if method == "trust-constr":
        low, high = _KINDS[kind.lower()]
        return NonlinearConstraint(function.values, low, high, jac=function.jacobian, hess=function.weighted_hessian)
    if method in ("cobyla", "cobyqa"):
        return {"type": kind, "fun": function.values_without_graph}
    return {"type": kind, "fun": function.values, "jac": function.jacobian}


def _nonlinear(constraint: NonlinearConstraint, what: str, unknowns: Unknowns, method: str) -> NonlinearConstraint:
    if callable(constraint.jac) or callable(constraint.hess):
        raise ValueError(f"{what} has a jac or hess of its own: leave them out, the tape differentiates its fun")
    sparsity = constraint.finite_diff_jac_sparsity
    function = Residuals(constraint.fun, unknowns, what=f"{what}.fun", sparsity=sparsity)
    if method in ("cobyla", "cobyqa"):
        return NonlinearConstraint(
            function.values_without_graph, constraint.lb, constraint.ub, keep_feasible=constraint.keep_feasible
        )
    hess = constraint.hess
    if method == "trust-constr" and type(hess) is BFGS:  # SciPy's default
        hess = function.weighted_hessian
    return NonlinearConstraint(
        function.values, constraint.lb, constraint.ub, function.jacobian, hess, constraint.keep_feasible
    )
