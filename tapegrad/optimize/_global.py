"""Global search whose local minimisations have derivatives from the tape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.optimize
from scipy.optimize import Bounds, OptimizeResult

from tapegrad.optimize._bounds import bounds_by_pairs
from tapegrad.optimize._callback import restored, wrapped_callback
from tapegrad.optimize._minimize import problem
from tapegrad.optimize._unknowns import Unknowns, is_numbers


def basinhopping(
    f: Callable,
    x0: Any,
    niter: int = 100,
    T: float = 1.0,
    stepsize: float = 0.5,
    minimizer_kwargs: Mapping[str, Any] | None = None,
    *,
    callback: Callable | None = None,
    **options: Any,
) -> OptimizeResult:
    """Look for a global minimum by random steps, each followed by a local minimisation with exact derivatives.

    Args:
        f: as `minimize` takes it.
        x0: the start, as `minimize` takes it.
        niter: how many steps.
        T: temperature of the test that accepts a step.
        stepsize: of the random steps.
        minimizer_kwargs: arguments of `minimize` after the start, among them ``args``.
        callback: called with a minimum in the structure of `x0`, its value, and whether it was accepted; True stops.
        options: SciPy's others (``rng``, ``niter_success``, ...); `take_step` and `accept_test` see vectors of all elements.

    Returns:
        SciPy's `OptimizeResult`, with `x` in the structure of `x0`.

    Raises:
        TypeError, ValueError, RuntimeError: as `minimize`.

    >>> import tapegrad as tg
    >>> f = lambda x: tg.cos(14.5 * x - 0.3) + (x + 0.2) * x
    >>> result = basinhopping(f, 1.0, niter=30, rng=0)
    >>> round(result.x, 3)
    -0.195
    """
    unknowns = Unknowns(x0)
    asked = problem(f, unknowns, **(minimizer_kwargs or {}))
    found = scipy.optimize.basinhopping(
        asked.pop("fun"),
        unknowns.start,
        niter,
        T,
        stepsize,
        asked,
        callback=wrapped_callback(callback, unknowns),
        **options,
    )
    found.lowest_optimization_result = restored(found.lowest_optimization_result, unknowns)
    return restored(found, unknowns)


def dual_annealing(
    f: Callable,
    bounds: Any,
    args: Any = (),
    maxiter: int = 1000,
    minimizer_kwargs: Mapping[str, Any] | None = None,
    *,
    callback: Callable | None = None,
    x0: Any = None,
    **options: Any,
) -> OptimizeResult:
    """Look for a global minimum within bounds by simulated annealing and local minimisations with exact derivatives.

    Args:
        f: as `minimize` takes it.
        bounds: finite ones, as `minimize` takes them.
        args: further arguments of `f`.
        maxiter: how many iterations.
        minimizer_kwargs: arguments of `minimize` for the local ones; L-BFGS-B within the bounds by default.
        callback: called with a minimum in the structure of `x0`, its value, and a code of where it was found; True stops.
        x0: the start; without it a random one, and the unknowns are an array of one dimension.
        options: SciPy's others (``rng``, ``no_local_search``, ...).

    Returns:
        SciPy's `OptimizeResult`, with `x` in the structure of `x0`.

    Raises:
        TypeError, ValueError, RuntimeError: as `minimize`.

    >>> import tapegrad as tg
    >>> rastrigin = lambda x: (x * x - 10 * tg.cos(2 * np.pi * x)).sum() + 10 * x.numel()
    >>> result = dual_annealing(rastrigin, [(-5.12, 5.12)] * 2, maxiter=100, rng=0)
    >>> bool((abs(result.x) < 1e-6).all())
    True
    """
    if x0 is None:
        sides = np.array([bounds.lb, bounds.ub]).T if isinstance(bounds, Bounds) else bounds
        if not isinstance(sides, np.ndarray) and not is_numbers(sides):
            raise ValueError(
                "bounds must be finite, one pair (low, high) an element; for a structure of tensors give x0"
            )
        unknowns = Unknowns(np.mean(np.asarray(sides, np.float64), 1))
    else:
        unknowns = Unknowns(x0)
    limits = bounds_by_pairs(bounds, unknowns)
    assert limits is not None
    asked = problem(f, unknowns, args, **{"method": "L-BFGS-B", "bounds": limits, **(minimizer_kwargs or {})})
    found = scipy.optimize.dual_annealing(
        asked.pop("fun"),
        list(zip(*(np.broadcast_to(side, unknowns.size) for side in (limits.lb, limits.ub)), strict=True)),
        maxiter=maxiter,
        minimizer_kwargs=asked,
        callback=wrapped_callback(callback, unknowns),
        x0=None if x0 is None else unknowns.start,
        **options,
    )
    return restored(found, unknowns)
