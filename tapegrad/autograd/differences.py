"""What `gradcheck` compares with: Jacobians of a function at a point by central differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapegrad import dtypes, errors
from tapegrad.metadata import Size
from tapegrad.tensor import Tensor


class GradcheckError(RuntimeError):
    """A derivative that `gradcheck` or `gradgradcheck` found to be wrong."""


@dataclass(frozen=True)
class Case:
    """A function at a point, which of its outputs are compared, and how."""

    func: Callable
    points: tuple
    compared: list[int]
    eps: float
    atol: float
    rtol: float
    nondet_tol: float
    check_grad_dtypes: bool
    fast: bool

    def variables(self) -> list[Tensor]:
        """The inputs differentiated by."""
        return [t for t in self.points if needs_grad(t)]

    def directions(self) -> list[np.ndarray]:
        """The u of fast mode, one for each variable."""
        return [projection(t, 0, j) for j, t in enumerate(self.variables())]

    def values(self, positions: list[int]) -> list[np.ndarray]:
        """Copies of outputs for the elements that the inputs have now."""
        outputs = tensors_of(self.func(*self.points))
        return [outputs[i].numpy(force=True).copy() for i in positions]

    def close(self, analytical: np.ndarray, numerical: np.ndarray, scale: float = 1.0) -> bool:
        """Whether two Jacobians agree."""
        return np.allclose(analytical, numerical, self.rtol, self.atol * scale)


def as_tuple(value: Any) -> tuple:
    """A tuple of one or of several."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def needs_grad(value: Any) -> bool:
    """Whether a value is a tensor that requires grad."""
    return isinstance(value, Tensor) and value.requires_grad


def tensors_of(result: Any) -> tuple[Tensor, ...]:
    """What a function returned, refusing anything but tensors."""
    found = as_tuple(result)
    for i, out in enumerate(found):
        if not isinstance(out, Tensor):
            raise TypeError(errors.GRADCHECK_OUTPUT.format(i, type(out).__name__))
    return found


def check_inputs(points: tuple) -> None:
    """Refuse inputs whose elements cannot be moved one by one, and no input to differentiate by."""
    for i, t in enumerate(points):
        if not needs_grad(t):
            continue
        if t.dtype is not dtypes.float64:
            warnings.warn(errors.GRADCHECK_DTYPE.format(i), stacklevel=3)
        sides = list(zip(t.shape, t.stride(), strict=True))
        if any(step == 0 and extent > 1 for extent, step in sides):
            raise RuntimeError(errors.GRADCHECK_STRIDE_0.format(i))
        places = np.zeros((), np.int64)
        for extent, step in sides:
            places = np.add.outer(places, step * np.arange(extent))
        if np.unique(places).size != t.numel():
            raise RuntimeError(errors.GRADCHECK_OVERLAP.format(i=i, shape=list(t.shape), strides=list(t.stride())))
    if not any(needs_grad(t) for t in points):
        raise ValueError(errors.GRADCHECK_NO_GRAD)


def projection(t: Tensor, *seed: int) -> np.ndarray:
    """A random direction of a tensor's elements: all positive, so that errors of one sign do not cancel."""
    # a generator of its own leaves the user's alone
    found = np.random.default_rng(seed).random(t.numel()).astype(t.dtype.numpy)
    return found / np.linalg.norm(found) if found.size else found


def _difference(case: Case, t: Tensor, place: Any, step: Any, positions: list[int]) -> list[np.ndarray]:
    """The change of outputs, flat and per eps, when elements of an input move by a step either way."""
    elements = t.data.numpy()  # the memory that the function sees; writes through NumPy leave versions alone
    kept = elements[place].copy()
    try:
        elements[place] = kept - step
        low = case.values(positions)
        elements[place] = kept + step
        high = case.values(positions)
    finally:
        elements[place] = kept
    for a, b in zip(low, high, strict=True):
        for what, of_a, of_b in (("shape", Size(a.shape), Size(b.shape)), ("dtype", a.dtype, b.dtype)):
            if of_a != of_b:
                where = "" if place is ... else f"on index {place} "
                message = errors.GRADCHECK_PERTURBED.format(what=what, place=where, eps=case.eps, low=of_a, high=of_b)
                raise AssertionError(message)
    with np.errstate(over="ignore", invalid="ignore"):
        return [((b - a) / (2 * case.eps)).reshape(-1) for a, b in zip(low, high, strict=True)]


def by_elements(case: Case, t: Tensor, positions: list[int]) -> list[np.ndarray]:
    """The Jacobians of outputs by one input."""
    rows = [_difference(case, t, place, case.eps, positions) for place in np.ndindex(*t.shape)]
    if not rows:
        return [np.zeros((0, value.size)) for value in case.values(positions)]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def numerical_jacobians(case: Case, positions: list[int]) -> list[list[np.ndarray]]:
    """For each variable, for each output, the Jacobian; in fast mode its product with the variable's direction."""
    variables = case.variables()
    if not case.fast:
        return [by_elements(case, t, positions) for t in variables]
    return [
        _difference(case, t, ..., case.eps * u.reshape(t.shape), positions)
        for t, u in zip(variables, case.directions(), strict=True)
    ]


def check_constant(case: Case, outputs: tuple[Tensor, ...]) -> None:
    """Outputs outside the graph must not change with the inputs."""
    positions = [i for i, out in enumerate(outputs) if out.dtype.is_floating_point]
    for parts in numerical_jacobians(case, positions):
        if any(np.any(np.abs(part) > case.nondet_tol) for part in parts):
            raise GradcheckError("Numerical gradient for function expected to be zero")
