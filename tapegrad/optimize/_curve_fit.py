"""Fitting a curve to data with the Jacobian from the tape."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize

from tapegrad.creation import as_tensor
from tapegrad.optimize._bounds import bounds_by_sides
from tapegrad.optimize._recorded import Residuals
from tapegrad.optimize._unknowns import Unknowns
from tapegrad.tensor import Tensor


def curve_fit(
    f: Callable,
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: Any = (-np.inf, np.inf),
    method: str | None = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    **options: Any,
) -> tuple:
    """Fit :math:`y = f(x, p)` to data by least squares, as SciPy's `curve_fit` does, with the exact Jacobian.

    Args:
        f: called with `xdata` and the parameters as tensors; returns a tensor with one element a datum.
        xdata: an array, list or tensor, which `f` gets as a float64 tensor; anything else it gets as it is.
        ydata: the data, M numbers.
        p0: where the parameters start. As numbers, in a list or array of one dimension, or None for ones (or a point within the bounds):
            ``f(xdata, p[0], p[1], ...)``. As a list or tuple of tensors or arrays: one argument each. As a dict: named arguments.
        sigma: standard deviation of the data, one number or M, or their covariance matrix.
        absolute_sigma: whether `sigma` is meant absolutely; else only its proportions count.
        check_finite: refuse NaN and infinities in the data (the default without `nan_policy`).
        bounds: as `least_squares` takes them.
        method: ``"lm"`` (the default without bounds), ``"trf"`` or ``"dogbox"``.
        full_output: return SciPy's `infodict`, `mesg` and `ier` too.
        nan_policy: as in SciPy.
        options: of SciPy's `leastsq` or `least_squares`, such as ``maxfev``, ``loss``, ``x_scale``.

    Returns:
        The parameters, like `p0`, and their covariance matrix, an array over all their elements in order.

    Raises:
        TypeError: if `f` returns no tensor.
        ValueError: if `f` returns another number of elements than there are data, or for NaN.
        RuntimeError: if the fit fails.

    >>> import tapegrad as tg
    >>> t = np.linspace(0, 3, 7)
    >>> found, covariance = curve_fit(lambda t, a, k: a * tg.exp(-k * t), t, 5 * np.exp(-0.5 * t))
    >>> found.round(6)
    array([5. , 0.5])
    """
    if "jac" in options:
        raise TypeError("curve_fit() takes no 'jac': the Jacobian comes from the tape")
    if p0 is None:
        count = _parameters(f)
        unknowns = Unknowns(np.ones(count), "p0")
        limits = bounds_by_sides(bounds, unknowns)
        unknowns.start = _between(*(np.broadcast_to(side, count) for side in (limits.lb, limits.ub)))
    else:
        unknowns = Unknowns(p0, "p0")
        limits = bounds_by_sides(bounds, unknowns)
    fitted = Residuals(lambda p, x: _call(f, x, p), unknowns, nan_in_trials=method in ("trf", "dogbox"))
    data = np.reshape(_plain(ydata), -1)
    deviations = None if sigma is None else np.asarray(_plain(sigma))
    if deviations is not None and deviations.size == 1:  # SciPy takes a number only without a Jacobian
        deviations = np.full(data.shape, deviations.item())
    seen: list[Any] = []

    def take(x: Any) -> None:
        # SciPy passes one array all the time, with missing data left out
        if not seen or seen[0] is not x:
            seen[:] = [x]
            fitted.args = (as_tensor(x) if isinstance(x, np.ndarray) else x,)

    def values(x: Any, *p: float) -> np.ndarray:
        take(x)
        found = fitted.values(np.array(p))
        if found.size != data.size and (nan_policy != "omit" or found.size == 1):
            raise ValueError(
                f"f returned {found.size} numbers for {data.size} data: for a constant, multiply by tapegrad.ones_like(xdata)"
            )
        return found

    def jacobian(x: Any, *p: float) -> np.ndarray:
        take(x)
        return fitted.jacobian(np.array(p))

    found = scipy.optimize.curve_fit(
        values,
        _plain(xdata),
        data,
        unknowns.start,
        deviations,
        absolute_sigma,
        check_finite,
        limits,
        method,
        jacobian,
        full_output=full_output,
        nan_policy=nan_policy,
        **options,
    )
    return unknowns.restore(found[0]), *found[1:]


def _parameters(f: Callable) -> int:
    """How many parameters a function has after its first."""
    kinds = [p.kind for p in inspect.signature(f).parameters.values()]
    count = sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
    if count < 2:
        raise ValueError("the signature of f does not tell how many parameters it has: give p0")
    return count - 1


def _between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A point within bounds: in the middle, 1 inside the only one, or 1."""
    with np.errstate(invalid="ignore"):
        middle = (low + high) / 2
    one_sided = np.where(np.isfinite(low), low + 1, np.where(np.isfinite(high), high - 1, 1.0))
    return np.where(np.isfinite(middle), middle, one_sided)


def _call(f: Callable, x: Any, p: Any) -> Any:
    if isinstance(p, dict):
        return f(x, **p)
    if isinstance(p, list | tuple) or (isinstance(p, Tensor) and p.ndim == 1):
        return f(x, *p)
    return f(x, p)


def _plain(data: Any) -> Any:
    """Data as NumPy has them."""
    if isinstance(data, Tensor):
        return data.detach().numpy()
    if isinstance(data, list | tuple):
        return np.asarray([_plain(part) for part in data], np.float64)
    return data
