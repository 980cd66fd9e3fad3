"""Random programs: every statement is tried in PyTorch as it is drawn, so that it fits the shapes and values there are."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .messages import stops_half_way
from .program import Failure, Step
from .reference import Outside, Reference
from .statements import KINDS, leaf, sweep

FEWEST, MOST = 5, 30  # statements of a program
ERRORS_KEPT = 0.15  # of the statements that raise

# What saves a number that PyTorch keeps aside: these statements go into programs whose graphs are all retained.
SAVES_A_NUMBER = ("alpha=", "lerp", "fmod(", "remainder(", "addcmul", "addcdiv")


class Generator:
    """A program being drawn.

    Args:
        seed: where the random choices start.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.twice = self.chance(0.3)
        self.retains = self.chance(0.3)
        self.extents = self.random.choices((0, 1, 2, 3, 4), (1, 3, 8, 8, 3), k=2)
        self.steps: list[Step] = []
        self.reference = Reference()
        self.named = 0
        self.no_grad = 0  # statements left of a no_grad block
        self.ended = False

    def program(self) -> list[Step]:
        """Draw all statements."""
        for _ in range(self.random.randint(1, 3)):
            self.attempt(leaf(self))
        wanted = self.random.randint(FEWEST, MOST - 4)
        kinds = list(KINDS)
        for _ in range(4 * MOST):
            if self.ended or len(self.steps) >= wanted:
                break
            kind = self.random.choices(kinds, list(KINDS.values()))[0]
            self.attempt(kind(self))
        self.no_grad = 0
        for _ in range(4):
            if not self.ended and len(self.steps) < MOST:
                self.attempt(sweep(self))
        return self.steps

    def attempt(self, step: Step | None) -> None:
        """Add a statement, unless PyTorch's answer speaks against it."""
        if step is None or (not self.retains and any(name in step.form for name in SAVES_A_NUMBER)):
            return
        if self.no_grad:
            self.no_grad -= 1
            step = step._replace(no_grad=True)
        try:
            failure: Failure | None = self.reference.step(step)
        except Outside:
            self._replay()
            return
        if failure is not None:
            if not self.chance(ERRORS_KEPT):
                self._replay()
                return
            self.ended = stops_half_way(failure)
        self.steps.append(step)

    def _replay(self) -> None:
        # a statement that was given up may have written to something, or freed a graph
        self.reference = Reference()
        for step in self.steps:
            self.reference.step(step)

    # choices

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.random.random() < probability

    def one(self, options: Sequence[Any]) -> Any:
        """One of several options."""
        return self.random.choice(options)

    def number(self) -> float:
        """A number worth calculating with."""
        return self.one((-1.5, -1.0, -0.5, 0.5, 0.7, 1.0, 1.3, 2.0))

    def dim(self, t: torch.Tensor) -> int:
        """A dim of a tensor, from either end; now and then one that it has not."""
        n = max(t.ndim, 1) + (self.chance(0.02) and t.numel() > 0)
        return self.random.randrange(-n, n)

    def name(self) -> str:
        """A new name."""
        self.named += 1
        return f"v{self.named - 1}"

    # tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.reference.names[name]

    def floats(self, fits: Callable[[torch.Tensor], bool] = lambda t: True) -> list[str]:
        """Names of the floating tensors that fit."""
        return [name for name, t in self.reference.tensors() if t.is_floating_point() and fits(t)]

    def pick(self, fits: Callable[[torch.Tensor], bool] = lambda t: True) -> str | None:
        """The name of a tensor that fits, rather a late one; None if there is none."""
        found = self.floats(fits)
        return self.random.choices(found, range(1, len(found) + 1))[0] if found else None

    def partner(self, shape: Sequence[int], within: bool = False) -> str | None:
        """The name of a tensor that broadcasts with a shape, or (`within`) to it; now and then of any."""

        def fits(t: torch.Tensor) -> bool:
            if within and t.ndim > len(shape):
                return False
            return all(a == b or a == 1 or (b == 1 and not within) for a, b in zip(t.shape[::-1], shape[::-1]))

        return self.pick() if self.chance(0.03) else self.pick(fits)

    def makes(self, form: str, *operands: str) -> Step:
        """A statement with one new result."""
        return Step(form, operands, (self.name(),))


def generate(seed: int) -> list[Step]:
    """The program of a seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Generator(seed).program()
