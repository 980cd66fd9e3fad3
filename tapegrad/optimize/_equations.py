"""Systems of equations and least squares with Jacobians from the tape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.optimize
from scipy.optimize import OptimizeResult

from tapegrad.optimize._bounds import bounds_by_sides
from tapegrad.optimize._callback import restored, wrapped_callback
from tapegrad.optimize._recorded import Residuals
from tapegrad.optimize._unknowns import Unknowns

_WITH_JACOBIAN = ("hybr", "lm")


def root(
    f: Callable,
    x0: Any,
    args: Any = (),
    method: str = "hybr",
    tol: float | None = None,
    callback: Callable | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    jac_sparsity: Any = None,
) -> OptimizeResult:
    """Solve :math:`f(x) = 0`, as many equations as unknowns, with SciPy's methods and the exact Jacobian.

    Args:
        f: called with the unknowns as tensors in the structure of `x0`, then `args`; returns a tensor, or a structure of tensors, with as
            many elements in all.
        x0: the start (see `minimize`).
        args: further arguments of `f`.
        method: as in SciPy; ``"hybr"`` and ``"lm"`` use the Jacobian, the others values only. ``"lm"`` takes more equations too.
        tol: tolerance for termination.
        callback: as in SciPy, with the unknowns in their structure.
        options: of the method.
        jac_sparsity: pattern of the Jacobian, a sparse or boolean matrix, to compute it from fewer products.

    Returns:
        SciPy's `OptimizeResult`, with `x` in the structure of `x0`.

    Raises:
        TypeError: if `f` does not return tensors.
        ValueError: if the numbers of equations and unknowns differ, or for NaN (see `minimize`).
        RuntimeError: if a result is cut off from the unknowns although it changes with them.

    >>> import tapegrad as tg
    >>> result = root(lambda p: {"sum": p["a"] + p["b"] - 3, "product": p["a"] * p["b"] - 2}, {"a": 0.0, "b": 5.0})
    >>> round(result.x["a"], 6), round(result.x["b"], 6)
    (1.0, 2.0)
    """
    unknowns = Unknowns(x0)
    system = Residuals(f, unknowns, args, sparsity=jac_sparsity)
    method = method.lower()
    given = {} if options is None else dict(options)
    if given.get("col_deriv"):
        raise ValueError("options['col_deriv'] does not apply: the Jacobian comes from the tape")
    uses_jacobian = method in _WITH_JACOBIAN
    values = system.values if uses_jacobian else system.values_without_graph

    def equations(vector: np.ndarray) -> np.ndarray:
        found = values(vector)
        if found.size != unknowns.size and method != "lm":
            raise ValueError(
                f"f returned {found.size} numbers for {unknowns.size} unknowns: there must be as many equations; least_squares and "
                "method='lm' take more"
            )
        return found

    found = scipy.optimize.root(
        equations,
        unknowns.start,
        method=method,
        jac=system.dense_jacobian if uses_jacobian else None,
        tol=tol,
        callback=wrapped_callback(callback, unknowns),
        options=given,
    )
    return restored(found, unknowns)


def least_squares(
    f: Callable,
    x0: Any,
    bounds: Any = (-np.inf, np.inf),
    method: str = "trf",
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    jac_sparsity: Any = None,
    callback: Callable | None = None,
    **options: Any,
) -> OptimizeResult:
    r"""Minimise :math:`\frac12 \sum_i \rho(f_i(x)^2)` within bounds with SciPy's methods and the exact Jacobian.

    Args:
        f: called with the unknowns as tensors in the structure of `x0`, then `args` and `kwargs`; returns the residuals: a tensor of any
            shape, or a structure of tensors.
        x0: the start (see `minimize`).
        bounds: None; SciPy's `Bounds`; (lower, upper), each of them a number, an array with one number an element, or the structure of `x0`; or
            for a dict, named tuple or dataclass, one like it with one (low, high) for each tensor.
        method: ``"trf"``, ``"dogbox"`` or ``"lm"``. The first two draw back from trial points where residuals are NaN or infinite.
        args: further arguments of `f`.
        kwargs: further named arguments of `f`.
        jac_sparsity: pattern of the Jacobian, a sparse or boolean matrix of shape (residuals, unknowns). It is then computed from as many
            products as the pattern has colours, plus one that checks the pattern, and given to the solver as a sparse matrix.
        callback: as in SciPy (1.16 or later), with the unknowns in their structure.
        options: SciPy's others: ``ftol xtol gtol x_scale loss f_scale max_nfev tr_solver tr_options verbose``;
            arrays among them are over all elements in order.

    Returns:
        SciPy's `OptimizeResult`, with `x` in the structure of `x0`; `fun`, `jac` and `grad` over all elements in order.

    Raises:
        TypeError: if `f` does not return tensors, or for a `jac` or `diff_step`.
        ValueError: if the Jacobian has a non-zero outside `jac_sparsity`, or for NaN (see `minimize`).
        RuntimeError: if a result is cut off from the unknowns although it changes with them.

    >>> import tapegrad as tg
    >>> t = tg.tensor([0.0, 1.0, 2.0, 3.0], dtype=tg.float64)
    >>> y = 5 * tg.exp(-0.5 * t)
    >>> result = least_squares(lambda p: p["a"] * tg.exp(-p["k"] * t) - y, {"a": 1.0, "k": 0.1})
    >>> round(result.x["a"], 6), round(result.x["k"], 6)
    (5.0, 0.5)
    """
    for name in ("jac", "diff_step"):
        if name in options:
            raise TypeError(f"least_squares() takes no {name!r}: the Jacobian comes from the tape")
    unknowns = Unknowns(x0)
    residuals = Residuals(f, unknowns, args, kwargs, sparsity=jac_sparsity, nan_in_trials=method != "lm")
    dense = method == "lm" or options.get("tr_solver") == "exact"
    if callback is not None:
        options["callback"] = wrapped_callback(callback, unknowns)
    found = scipy.optimize.least_squares(
        residuals.values,
        unknowns.start,
        residuals.dense_jacobian if dense else residuals.jacobian,
        bounds_by_sides(bounds, unknowns),
        method,
        **options,
    )
    return restored(found, unknowns)
