"""Functions that look at the values of their arguments on the way: inside `vmap` they run once a sample."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapegrad.creation import from_copy
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_TRACED
from tapegrad.tensor import Tensor

# set by tapegrad.func: calls a function once a sample
once_a_sample: Callable[[Callable, tuple, dict], Any] | None = None
# set by tapegrad.autograd: refuses a write that could not be right for all samples, given the target and what is written
check_write: Callable[[Tensor, Sequence[Any]], None] | None = None
# set by tapegrad.autograd: who records what this thread computes into a program, None where nobody does
recorder_of_thread: Callable[[], Any] = lambda: None
# how many threads run a function on the first sample of a batch, and whether this one does
sampling = 0
is_sampling: Callable[[], bool] = lambda: False


def holds_traced(values: Any) -> bool:
    """Whether a traced tensor is among values, or within the tuples and lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            if rt.look(rt.S, value._id, LOOK_TRACED):
                return True
        elif isinstance(value, tuple | list) and holds_traced(value):
            return True
    return False


def holds_tensor(key: Any) -> bool:
    """Whether a tensor or an array is in an index."""
    return any(hasattr(item, "shape") or isinstance(item, list) for item in (key if isinstance(key, tuple) else (key,)))


def reads_values(function: Callable) -> Callable:
    """Declare that a function of tensors reads their values."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        if sampling and once_a_sample is not None and holds_traced((*args, *named.values())):
            return once_a_sample(function, args, named)
        return function(*args, **named)

    return call


def computed(function: Callable[..., np.ndarray], *tensors: Tensor) -> Tensor:
    """A tensor with what a NumPy function makes of tensors' values, through which no gradient flows.

    A program calls the function again at each run, so the shape and dtype of the result must depend on those of the operands alone.

    Args:
        function: of arrays that it must not change; it may return one of them.
        tensors: the operands.
    """
    recorder = recorder_of_thread()
    if recorder is not None:
        return recorder.computed(function, tensors)
    arrays = [t._address_array() for t in tensors]
    made = function(*arrays)
    return tensors[0] if made is arrays[0] else from_copy(made)
