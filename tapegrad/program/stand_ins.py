"""Running a function with other tensors in the place of some it refers to, and with random numbers that were drawn before."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapegrad import random
from tapegrad.autograd.rows import handle
from tapegrad.autograd.tracing import Draw, Recorder, noting, recorder_of_thread
from tapegrad.autograd.watching import intercepting
from tapegrad.creation import from_copy
from tapegrad.tensor import Tensor

# where the ids of operands stand in what an entry point is given after the state
OPERANDS = {
    "record": (1, 2, 3),
    "record_scalar": (1,),
    "record_kernel": (1, 2, 3),
    "record_planned": (2, 3, 4),
    "record_view": (1,),
    "record_on": (2, 3),
    "share_leaf": (0,),
}
WITH_MORE = ("record_kernel", "record_on")


# modules whose functions capture others: the user's frames are within theirs
_CAPTURING = ("tapegrad.program._compile", "tapegrad.program.lanes", "tapegrad.program.blocks")


def owner_of(k: int) -> Tensor:
    """The user's own tensor of a buffer, which follows what is done to it, rather than a handle to where it is now.

    It is the outermost one among what the captured function and those it called are working with; asking the collector for all objects
    would disturb other threads.
    """
    found = None
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") not in _CAPTURING:
        for value in list(frame.f_locals.values()):
            owner = _tensor_of(k, value)
            found = found if owner is None else owner
        frame = frame.f_back  # type: ignore[assignment]
    return handle(k) if found is None else found


def _tensor_of(k: int, value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if value._id == k else None
    if isinstance(value, tuple | list):
        return next((t for t in value if isinstance(t, Tensor) and t._id == k), None)
    if type(value) is dict:
        return next((t for t in list(value.values()) if isinstance(t, Tensor) and t._id == k), None)
    return None


def with_operands(name: str, given: tuple, change: Callable[[int], int]) -> tuple:
    """What an entry point is given, with the id of each operand changed.

    Args:
        name: of the entry point.
        given: what it is given after the state; ids in its attribute block are changed there.
        change: gives the new id.
    """
    changed = list(given)
    for p in OPERANDS.get(name, ()):
        if changed[p]:
            changed[p] = change(changed[p])
    if name in WITH_MORE and changed[-1]:
        count = ctypes.c_int64.from_address(changed[-1] + 8).value
        more = (ctypes.c_int64 * count).from_address(changed[-1] + 16)
        for p in range(count):
            more[p] = change(more[p])
    return tuple(changed)


class StandingIn:
    """While a function runs, some tensors from outside are others: those that gradients are wanted of."""

    def __init__(self, others: dict[int, Tensor]) -> None:
        self._others = others

    def before(self, name: str, given: tuple) -> tuple:
        """Put the others in their place."""
        return with_operands(name, given, self._other)

    def _other(self, k: int) -> int:
        other = self._others.get(k)
        return k if other is None else other._id

    def after(self, name: str, given: tuple, answer: int, index: int) -> None:
        """Nothing."""


def standing_in(others: dict[int, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Within this block, tensors from outside, by the id of their buffer, are others in all that this thread computes."""
    return intercepting(StandingIn(others)) if others else contextlib.nullcontext()


class Supplied:
    """A run of a function that gets random numbers from elsewhere; all else is for who records the run.

    Args:
        outer: who does, if anyone.
    """

    def __init__(self, outer: Recorder | None) -> None:
        self._outer = outer

    def read(self, t: Tensor) -> bool:
        """What reading means to who records."""
        return self._outer is not None and self._outer.read(t)

    def rebound(self, target: Tensor, value: Tensor) -> None:
        """What assigning to `.data` means to who records."""
        if self._outer is not None:
            self._outer.rebound(target, value)

    def seeded(self, generator: random.Generator) -> None:
        """What seeding means to who records."""
        if self._outer is not None:
            self._outer.seeded(generator)

    def computed(self, function: Callable[..., np.ndarray], tensors: Sequence[Tensor]) -> Tensor:
        """What computing means to who records."""
        if self._outer is not None:
            return self._outer.computed(function, tensors)
        return from_copy(function(*(t._memory_array() for t in tensors)))


class _DrawnBefore(Supplied):
    # gives a function the random numbers that an earlier run of it drew
    def __init__(self, draws: Sequence[Tensor]) -> None:
        super().__init__(recorder_of_thread())
        self._draws = iter(draws)

    def drawn(self, draw: Draw, shape: tuple[int, ...], generator: random.Generator, samples: int = 0) -> Tensor:
        """The next of the numbers."""
        return next(self._draws)


def drawing_again(draws: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
    """Within this block, random numbers are these."""
    return noting(_DrawnBefore(draws)) if draws else contextlib.nullcontext()
