"""Callbacks and results that show the unknowns in their structure."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from scipy.optimize import OptimizeResult

from tapegrad.optimize._unknowns import Unknowns


def restored(result: OptimizeResult, unknowns: Unknowns) -> OptimizeResult:
    """A result of SciPy with `x` in the user's structure."""
    return OptimizeResult(result, x=unknowns.restore(result.x))


def wrapped_callback(callback: Callable | None, unknowns: Unknowns) -> Callable | None:
    """A callback for SciPy, which looks at its signature, that calls a user's with the unknowns in their structure."""
    if callback is None:
        return None
    try:
        names = set(inspect.signature(callback).parameters)
    except ValueError:  # a built-in function that does not tell
        names = set()
    if names == {"intermediate_result"}:

        def with_result(intermediate_result: OptimizeResult) -> Any:
            return callback(intermediate_result=restored(intermediate_result, unknowns))

        return with_result

    def with_unknowns(x: Any, *others: Any) -> Any:
        shown = (restored(other, unknowns) if isinstance(other, OptimizeResult) else other for other in others)
        return callback(unknowns.restore(x), *shown)

    return with_unknowns
