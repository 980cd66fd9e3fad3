"""What users may give: tensors, tuples of integers, dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad.metadata import check_dim
from tapegrad.tensor import Tensor


def integers(name: str, values: Sequence[Any], argument: str = "size") -> tuple[int, ...]:
    """Integers given as ``f(2, 3)`` or ``f((2, 3))``.

    Raises:
        TypeError: for anything but integers.
    """
    if len(values) == 1 and isinstance(values[0], Sequence | np.ndarray) and not isinstance(values[0], str):
        values = values[0]
    found = []
    for position, value in enumerate(values):
        try:
            if isinstance(value, float):
                raise TypeError
            found.append(value.__index__())
        except (AttributeError, TypeError):
            raise TypeError(
                f"{name}(): argument '{argument}' must be tuple of ints, but found element of type "
                f"{type(value).__name__} at pos {position}"
            ) from None
    return tuple(found)


def check_tensor(name: str, value: Any, argument: str = "input", position: int | None = 1) -> None:
    """Refuse anything but a tensor.

    Args:
        name: of the function.
        value: what it got.
        argument: for which of its arguments.
        position: of the argument, where it has one.

    Raises:
        TypeError: naming the function and the argument.
    """
    if not isinstance(value, Tensor):
        place = "" if position is None else f" (position {position})"
        raise TypeError(f"{name}(): argument '{argument}'{place} must be Tensor, not {type(value).__name__}")


def check_tensors(tensors: Sequence[Any], argument: int) -> None:
    """Refuse anything but tensors in a sequence.

    Args:
        tensors: the sequence.
        argument: the number of the argument it is.

    Raises:
        TypeError: naming the first that is none.
    """
    for position, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(f"expected Tensor as element {position} in argument {argument}, but got {type(t).__name__}")


def distinct_dims(dims: Any, ndim: int) -> list[int]:
    """Dimensions counted from the front, each at most once.

    Raises:
        RuntimeError: if one appears twice.
    """
    found = [check_dim(d, ndim) for d in (dims if isinstance(dims, Sequence) else (dims,))]
    for d in found:
        if found.count(d) > 1:
            raise RuntimeError(f"dim {d} appears multiple times in the list of dims")
    return found
