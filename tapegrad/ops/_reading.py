"""What operations do with the values of their arguments: each is done again for every sample of a `vmap`, and at each run of a program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapegrad import errors
from tapegrad.creation import from_copy
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_TRACED
from tapegrad.tensor import Tensor

# set by tapegrad.func: records a call of a NumPy function on a sample, to be made for each
record_computed: Callable[[Callable, Sequence[Tensor], Sequence[int]], Tensor] | None = None
# set by tapegrad.autograd: whether values differ between samples of a `vmap` that only runs once
differ: Callable[[Sequence[Any]], bool] = lambda tensors: False
# set by tapegrad.autograd: has a condition checked for every sample; False if the samples' values may be looked at
require_later: Callable[[Tensor, Exception], bool] = lambda condition, error: False
# set by tapegrad.autograd: refuses a write that could not be right for all samples, given the target and what is written
check_write: Callable[[Tensor, Sequence[Any]], None] | None = None
# set by tapegrad.autograd: who records what this thread computes into a program, None where nobody does
recorder_of_thread: Callable[[], Any] = lambda: None
# how many threads run a function on the first sample of a batch, and whether this one does
sampling = 0
is_sampling: Callable[[], bool] = lambda: False


def _traced_sample(tensors: Sequence[Tensor]) -> bool:
    return bool(sampling) and is_sampling() and any(rt.look(rt.S, t._id, LOOK_TRACED) for t in tensors)


def of_samples(tensors: Sequence[Tensor]) -> bool:
    """Whether what is computed from some tensors has to be computed for each sample."""
    return _traced_sample(tensors) and (recorder_of_thread() is None or differ(tensors))


def runs_again(tensors: Sequence[Tensor]) -> bool:
    """Whether what this thread computes from some tensors will be computed again from others."""
    return recorder_of_thread() is not None or _traced_sample(tensors)


def computed(function: Callable[..., np.ndarray], *tensors: Tensor, stretches: Sequence[int] = ()) -> Tensor:
    """A tensor with what a NumPy function makes of tensors' values, through which no gradient flows.

    It is called again for each sample and at each run of a program, so the shape and dtype of the result must depend on those of the
    operands alone.

    Args:
        function: of arrays that it must not change; it may return one of them.
        tensors: the operands.
        stretches: positions of operands that may have any further dimensions in front, which the result then has too.
    """
    if of_samples(tensors):
        assert record_computed is not None
        return record_computed(function, tensors, stretches)
    recorder = recorder_of_thread()
    if recorder is not None:
        return recorder.computed(function, tensors)
    arrays = [t._address_array() for t in tensors]
    made = function(*arrays)
    return tensors[0] if made is arrays[0] else from_copy(made)


def require(condition: Tensor, error: Exception) -> None:
    """Raise an exception unless a condition holds, for every sample.

    Args:
        condition: a 0-d tensor of bools.
        error: the exception.
    """
    if _traced_sample([condition]) and require_later(condition, error):
        return
    if not condition._address_array():
        raise error


def extent(name: str, t: Tensor) -> int:
    """A number that the shape of a result depends on, which must be one for all samples.

    Args:
        name: of the operation.
        t: a 0-d tensor of integers.

    Raises:
        RuntimeError: once all samples are known, if they differ.
    """
    if _traced_sample([t]):
        n = int(t._memory_array())
        if require_later(t == n, RuntimeError(errors.VMAP_SHAPES.format(name=name))):  # type: ignore[arg-type]
            return n
    return int(t._address_array())


def computed_rows(name: str, function: Callable[..., np.ndarray], *tensors: Tensor) -> Tensor:
    """As `computed`, for a function the length of whose result depends on values (see `extent`).

    Args:
        name: of the operation.
        function: of arrays.
        tensors: the operands.
    """
    if not runs_again(tensors):
        return from_copy(function(*(t._address_array() for t in tensors)))
    n = extent(name, computed(functools.partial(_length, function), *tensors))
    return computed(functools.partial(_with_length, function, n), *tensors)


def _length(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    return np.array(len(function(*arrays)))


def _with_length(function: Callable[..., np.ndarray], n: int, *arrays: np.ndarray) -> np.ndarray:
    # of a sample with another length, which is not among the results, whatever fits
    found = function(*arrays)
    if len(found) == n:
        return found
    made = np.zeros((n, *found.shape[1:]), found.dtype)
    made[: min(n, len(found))] = found[:n]
    return made
