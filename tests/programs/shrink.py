"""Finding a shorter program with the same disagreement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .compare import disagreement
from .program import Program, Step


def shrunk(program: Program, kind: str, library: Any) -> list[Step]:
    """A program, as short as can be found, that parts in the same kind."""

    def fails(candidate: Program) -> bool:
        parted = disagreement(candidate, library)
        return parted is not None and parted.kind == kind

    best = list(program)
    smaller = _first(best, fails)
    while smaller is not None:
        best = smaller
        smaller = _first(best, fails)
    return best


def _first(program: list[Step], fails: Callable[[Program], bool]) -> list[Step] | None:
    return next((candidate for candidate in _smaller(program) if fails(candidate)), None)


def _smaller(program: list[Step]) -> Iterator[list[Step]]:
    size = len(program) // 2
    while size:
        for start in range(len(program) - size, -1, -1):
            yield _usable(program[:start] + program[start + size :])
        size //= 2
    for k in range(len(program) - 1, -1, -1):
        step = program[k]
        if len(step.results) == 1:
            # without the statement, an operand for its result
            for operand in dict.fromkeys(step.operands):
                yield program[:k] + [_renamed(s, step.results[0], operand) for s in program[k + 1 :]]
        if step.no_grad:
            yield [*program[:k], step._replace(no_grad=False), *program[k + 1 :]]


def _usable(program: list[Step]) -> list[Step]:
    # without the statements whose operands are gone
    defined: set[str] = set()
    kept = []
    for step in program:
        if defined.issuperset(step.operands):
            defined.update(step.results)
            kept.append(step)
    return kept


def _renamed(step: Step, old: str, new: str) -> Step:
    return step._replace(operands=tuple(new if name == old else name for name in step.operands))
