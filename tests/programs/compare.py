"""Where a run in a library parts from the run in PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from tapegrad.engine.runtime import rt

from .messages import (
    BY_ONE,
    EXACT,
    LEAF_WRITTEN,
    OUT_OF_RANGE,
    PRODUCTS,
    TWICE,
    WITHOUT_GRADIENT,
    WRITTEN_TO,
    as_tapegrad,
    kind_of,
    says,
    stops_half_way,
)
from .program import Failure, Program, Run, Step
from .reference import Outside, Reference

TOLERANCE = 1e-8  # of the largest element
FACTS = ("requires_grad", "is_leaf", "_version", "_is_view")
KEPT = "a write to a saved tensor that PyTorch refuses"


class Disagreement(NamedTuple):
    """Where two runs part.

    Attributes:
        kind: what is wrong, without names and values: shrinking keeps it.
        text: what is wrong, for people.
    """

    kind: str
    text: str


def disagreement(program: Program, library: Any) -> Disagreement | None:
    """Where a library parts from PyTorch over a program first; None also for a program that is not for comparing."""
    before = _live_rows()
    parted = _parted(program, library)
    # a tensor that keeps its gradient, where that is recorded, keeps its own graph, in PyTorch too
    cyclic = any("create_graph" in step.form for step in program) and any(_keeps_gradients(step) for step in program)
    if parted is None and not cyclic and _live_rows() != before:
        return Disagreement("rows left on the tape", f"{_live_rows() - before} rows are left on the tape")
    return parted


def _keeps_gradients(step: Step) -> bool:
    return any(name in step.form for name in ("backward(", "retain_grad("))


def _live_rows() -> int:
    return int(rt.state.row_count) - int(rt.state.dead_rows)


def _parted(program: Program, library: Any) -> Disagreement | None:
    try:
        parted = _Comparison(program, library).run()
        if parted is None or parted.kind != KEPT:
            return parted
        # the library kept the old value instead: then its answer must be the one PyTorch gives if it does so too
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
            return _Comparison(program, library, keeping=True).run()
    except Outside:
        return None


class _Comparison:
    def __init__(self, program: Program, library: Any, keeping: bool = False) -> None:
        self.program = program
        self.reference, self.found = Reference(), Run(library)
        self.keeping = keeping
        # a recorded derivative may depend, by zero, on what PyTorch's does not depend on, and the other way round
        self.formal = any("create_graph" in step.form for step in program)

    def run(self) -> Disagreement | None:
        """Run statement by statement.

        Raises:
            Outside: if the program is not for comparing.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, step in enumerate(self.program):
                expected, found = self.reference.step(step), self.found.step(step)
                parted = self._outcomes(expected, found, step) or self._results(step)
                if parted:
                    return Disagreement(parted.kind, f"statement {number}, {step.line()}\n{parted.text}")
                if expected is not None and stops_half_way(expected):
                    return self._end(FACTS)
            return self._end((*FACTS, "grad"))

    def _outcomes(
        self, expected: Failure | None, found: Failure | None, step: Step | None = None
    ) -> Disagreement | None:
        if says(expected, WRITTEN_TO):
            # which of several saved tensors it names is open
            return (
                None if says(found, WRITTEN_TO) else Disagreement(KEPT, f"PyTorch raised {expected}, tapegrad {found}")
            )
        if says(expected, TWICE) and not says(found, TWICE) and any(step.writes for step in self.program):
            raise Outside("a write to a view, which PyTorch can sweep only once")
        if says(expected, TWICE) and says(found, *WITHOUT_GRADIENT):
            raise Outside("an input that in PyTorch shares its node, which was freed, with others that were used")
        target = self.reference.names[step.operands[0]] if step is not None and step.writes else None
        if target is not None and target._base is not None and found is None and says(expected, *LEAF_WRITTEN):
            raise Outside("a write to a view that PyTorch takes for the leaf it was before its base was written to")
        if expected is None and found is not None:
            return self._only("tapegrad", found)
        if expected is not None and found is None:
            return self._only("PyTorch", expected)
        if expected is None or found is None:
            return None
        text = f"PyTorch raised  {expected.kind}: {expected.message}\ntapegrad raised {found.kind}: {found.message}"
        wanted = as_tapegrad(expected.message)
        if wanted.startswith(EXACT) and any(word in found.message for word in ("shape", "out of bounds")):
            return None  # there are two things wrong with the statement
        if expected.kind != found.kind and not (found.kind == "IndexError" and says(expected, *OUT_OF_RANGE)):
            return Disagreement(f"{found.kind} for {kind_of(expected)}", text)
        if wanted.startswith(EXACT) and wanted != found.message:
            return Disagreement(f"message for {kind_of(expected)}", text)
        return None

    def _only(self, side: str, failure: Failure) -> Disagreement:
        if any(text in failure.message for text in BY_ONE):
            raise Outside("what only one of the libraries refuses")
        if says(failure, WRITTEN_TO) and any(word in step.form for word in PRODUCTS for step in self.program):
            raise Outside("a write to an operand of a product")
        if self.keeping and says(failure, WRITTEN_TO):
            raise Outside("a write to a saved tensor")
        if self.formal and says(failure, *WITHOUT_GRADIENT):
            raise Outside("a derivative that depends on something by zero")
        return Disagreement(
            f"only {side} raised {kind_of(failure)}", f"only {side} raised {failure.kind}: {failure.message}"
        )

    def _results(self, step: Step) -> Disagreement | None:
        # which gradients are one tensor is PyTorch's own affair
        if self._same_ones(step, self.reference.names) != self._same_ones(step, self.found.names):
            raise Outside("gradients of different tensors that are one tensor")
        for name in (*step.results, *step.operands[: step.writes]):
            if name in self.reference.names:
                parted = self._same(name, "value", self.reference.names[name], self.found.names[name])
                if parted:
                    return parted
        return None

    @staticmethod
    def _same_ones(step: Step, names: dict[str, Any]) -> list[bool]:
        found = [names.get(name) for name in step.results]
        return [a is b and a is not None for k, a in enumerate(found) for b in found[:k]]

    def _end(self, facts: Sequence[str]) -> Disagreement | None:
        for name, t in self.reference.tensors():
            parted = self._same(name, "value", t, self.found.names[name])
            for fact in facts:
                if fact[0] != "_" or not self.reference.is_apart(t):
                    parted = parted or self._same_fact(name, fact)
            if parted:
                return Disagreement(f"at the end: {parted.kind}", f"at the end, {parted.text}")
        return None

    def _same_fact(self, name: str, fact: str) -> Disagreement | None:
        expected, found = self.reference.fact(name, fact), self.found.fact(name, fact)
        if isinstance(expected, Failure) or isinstance(found, Failure):
            return self._outcomes(*(f if isinstance(f, Failure) else None for f in (expected, found)))
        if fact == "grad":
            return self._same(f"{name}.grad", "gradient", expected, found)
        if fact == "_is_view" and (expected or self.formal):
            return None  # one taken in a no_grad block is not followed; recorded gradients may be views of something
        if expected == found or (self.formal and fact[0] != "_"):
            return None
        return Disagreement(fact, f"{name}.{fact} is {found}, in PyTorch {expected}")

    def _same(self, name: str, what: str, expected: Any, found: Any) -> Disagreement | None:
        if expected is None or found is None:
            zero = self.formal and expected is None and found is not None and not found.detach().numpy().any()
            if expected is found or zero:
                return None
            return Disagreement(f"{what} is None", f"{name} is {found}, in PyTorch {expected}")
        a, b = (t.detach().numpy() for t in (expected, found))
        for fact in ("shape", "dtype"):
            if getattr(a, fact) != getattr(b, fact):
                text = f"{name} has {fact} {getattr(b, fact)}, in PyTorch {getattr(a, fact)}"
                return Disagreement(f"{fact} of {what}", text)
        if not a.size or np.array_equal(a, b):
            return None
        largest = max(1.0, np.abs(a[np.isfinite(a)]).max(initial=0))
        if not np.allclose(a, b, rtol=0, atol=TOLERANCE * largest, equal_nan=True):
            return Disagreement(what, f"{name} is\n{b}\nin PyTorch\n{a}")
        return None
