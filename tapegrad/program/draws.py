"""Random numbers of a mapped function: those of one call, which every path along which its samples run takes from."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from tapegrad import random
from tapegrad.autograd.tracing import Draw, noting, recorder_of_thread
from tapegrad.creation import from_copy
from tapegrad.program.capture import Capture, Drawn
from tapegrad.program.stand_ins import Supplied
from tapegrad.tensor import Tensor


class DrawnForSamples(Drawn):
    """An input of random numbers of a block of samples.

    Attributes:
        of_shape: draws numbers of a shape.
        shape: of one sample's.
        mapped: whether each sample has its own.
        kind: equal for draws alike.
    """

    def __init__(self, of_shape: Draw, generator: random.Generator, shape: tuple[int, ...], mapped: bool) -> None:
        super().__init__(lambda: of_shape(shape), generator)
        self.of_shape, self.shape, self.mapped = of_shape, shape, mapped
        self.kind: Hashable = (_description(of_shape), id(generator), shape, mapped)


def _description(value: Any) -> Hashable:
    # equal for functions that do the same
    if isinstance(value, types.FunctionType):
        return value.__code__, tuple(_description(c.cell_contents) for c in value.__closure__ or ())
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return type(value), value if isinstance(value, Hashable) else id(value)


class Draws:
    """The random numbers of one call of a mapped function.

    Paths agree in what they draw until they part, so what was drawn for a sample on one path is what it gets on another.

    Args:
        size: number of samples.
        randomness: see `vmap`.
    """

    def __init__(self, size: int, randomness: str) -> None:
        self.size, self.randomness = size, randomness
        self._known: dict[tuple[int, Hashable], np.ndarray] = {}

    def numbers(self, place: int, source: DrawnForSamples) -> np.ndarray:
        """What a function draws at some place among all it draws; for all samples if each has its own."""
        known = self._known.get((place, source.kind))
        if known is None:
            shape = (self.size, *source.shape) if source.mapped else source.shape
            drawn = source.of_shape(shape)
            known = self._known[place, source.kind] = drawn._memory_array().copy()
        return known

    def of_samples(self, place: int, source: DrawnForSamples, samples: Sequence[int] | np.ndarray) -> Tensor:
        """The same for some samples."""
        numbers = self.numbers(place, source)
        return from_copy(numbers[samples] if source.mapped else numbers)


class BlockCapture(Capture):
    """A function while it is captured along some samples.

    Args:
        draws: the random numbers of the call.
        samples: places of the samples in it.
    """

    def __init__(self, draws: Draws, samples: np.ndarray) -> None:
        super().__init__()
        self._draws, self._samples = draws, samples
        self._places = itertools.count()

    def drawn(self, draw: Draw, shape: tuple[int, ...], generator: random.Generator, samples: int = 0) -> Tensor:
        """The samples' random numbers, or those that all share."""
        self.check_not_seeded(generator)
        source = DrawnForSamples(draw, generator, shape[1:] if samples else shape, samples > 0)
        made = self._draws.of_samples(next(self._places), source, self._samples)
        self._input(made, source)
        return made


class _ForSamples(Supplied):
    # gives a function that `vmap` maps over some samples their random numbers
    def __init__(self, draws: Draws, samples: np.ndarray) -> None:
        super().__init__(recorder_of_thread())
        self._draws, self._samples = draws, samples
        self._places = itertools.count()

    def drawn(self, draw: Draw, shape: tuple[int, ...], generator: random.Generator, samples: int = 0) -> Tensor:
        """The samples' random numbers, or those that all share."""
        source = DrawnForSamples(draw, generator, shape[1:] if samples else shape, samples > 0)
        return self._draws.of_samples(next(self._places), source, self._samples)


class _ForOne(Supplied):
    # gives a function that runs on one sample, without `vmap`, its random numbers
    def __init__(self, draws: Draws, sample: int) -> None:
        super().__init__(recorder_of_thread())
        self._draws, self._sample = draws, sample
        self._places = itertools.count()

    def drawn(self, draw: Draw, shape: tuple[int, ...], generator: random.Generator, samples: int = 0) -> Tensor:
        """The sample's random numbers, or those that all share."""
        source = DrawnForSamples(draw, generator, shape, self._draws.randomness == "different")
        return self._draws.of_samples(next(self._places), source, self._sample)  # type: ignore[arg-type]


def drawing_for(draws: Draws, samples: np.ndarray) -> contextlib.AbstractContextManager[None]:
    """Within this block, `vmap` is over some samples of a call, and random numbers are those of the call."""
    return contextlib.nullcontext() if draws.randomness == "error" else noting(_ForSamples(draws, samples))


def drawing_for_one(draws: Draws, sample: int) -> contextlib.AbstractContextManager[None]:
    """Within this block, one sample of a call runs, and random numbers are those of the call."""
    return contextlib.nullcontext() if draws.randomness == "error" else noting(_ForOne(draws, sample))
