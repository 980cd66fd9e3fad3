"""Transformations of compiled functions, recorded whole: `func.grad`, `func.jacrev` and their like of one run as one program."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from tapegrad import _tree
from tapegrad.creation import as_tensor
from tapegrad.func import _derivatives
from tapegrad.program._compile import Compiled
from tapegrad.tensor import Tensor


def _own_transformation(function: Any) -> bool:
    return isinstance(function, types.FunctionType) and str(function.__globals__.get("__name__")).startswith(
        "tapegrad.func."
    )


def compiled_within(function: Any) -> Compiled | None:
    """The compiled function that a function is, or is a transformation of."""
    while _own_transformation(function) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function if isinstance(function, Compiled) else None


def described(function: Any) -> Hashable:
    """What is equal for equal transformations of one compiled function.

    Raises:
        TypeError: once it is hashed, if an argument of a transformation is not hashable.
    """
    if isinstance(function, Compiled):
        return None
    cells = [c.cell_contents for c in function.__closure__ or ()]
    return function.__code__, tuple(
        described(v) if compiled_within(v) is not None else (type(v), v)
        for v in cells
        if not isinstance(v, Transformed)
    )


class Transformed:
    """A transformation of a compiled function as a program; where it cannot be one, as it is.

    Args:
        transformation: the transformation.
        compiled: the function.
    """

    def __init__(self, transformation: Callable, compiled: Compiled) -> None:
        self._transformation = transformation
        self._program = compiled.transformed(("transformed", described(transformation)), transformation)
        self._unrecordable = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the transformation returns."""
        if self._unrecordable:
            return self._transformation(*args, **kwargs)
        try:
            if kwargs or any(type(a) is not Tensor for a in args):
                return self._program(*_as_tensors(args), **_as_tensors(kwargs))
            return self._program(*args)
        except Exception:
            result = self._transformation(*args, **kwargs)  # which raises what is to be raised
            self._unrecordable = True
            return result


def _as_tensors(tree: Any) -> Any:
    return _tree.map_leaves(lambda v: as_tensor(v) if isinstance(v, np.ndarray) and v.dtype.kind != "O" else v, tree)


def _in_program(transformation: Callable) -> Transformed | None:
    compiled = compiled_within(transformation)
    return None if compiled is None else Transformed(transformation, compiled)


_derivatives.in_program = _in_program
