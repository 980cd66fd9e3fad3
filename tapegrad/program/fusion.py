"""Fusion: runs of pointwise instructions as one loop each, whose values in between stay in registers.

A run of a program reads and writes every value in memory, which costs more than most operations do. So once it has run often enough
to be worth a compilation, its pointwise instructions are gathered into groups, and each group becomes one loop over the scalar
functions its operations are declared with. The loops are kernels like all others, kept on disk; equal groups share one.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from tapegrad.ops._pointwise import Pointwise
from tapegrad.program.extents import Moves, collapsed, extents_of, moves_of
from tapegrad.program.fused import loop_of
from tapegrad.program.values import Call, Code, Fusion, Guard, Instruction, Step, Value

_FEWEST, _MOST = 2, 128  # instructions of a group
_DEPTH, _SHORTEST = 3, 8  # loops within one another, and elements of the innermost
# nanoseconds that fusing an instruction saves, by itself and for each element; of Black–Scholes in blocks of 1,024, 0.2 an element
_SAVED, _SAVED_ELEMENT = 12.0, 0.2
# nanoseconds to compile a loop, by itself and for each instruction; to load it
_COMPILED, _COMPILED_INSTRUCTION, _LOADED = 5e7, 7e6, 6e6
_GATHERED = 5e4  # and to find out, for each instruction
_LONGEST = 3e9
# a loop is compiled once what ran would have saved this part of that; it stays on disk for the next process
_PAID = 0.25


def _fits(step: Step) -> bool:
    # whether a loop can compute it by itself
    return isinstance(step, Instruction) and _Group(step).takes(step)


class _Group:
    # instructions that one loop may compute, and what has to wait until it did
    def __init__(self, first: Instruction) -> None:
        self.parts: list[Instruction] = []
        self.elements = first.out.elements
        self.made: set[Value] = set()
        self.waiting: list[Step] = []
        self.late: set[Value] = set()  # what those waiting compute
        self.extents: tuple[int, ...] = ()  # of results, once there are operands that do not move along all of them
        self.moves: set[Moves] = set()

    def takes(self, step: Step) -> bool:
        """Whether it may join; if so, it does."""
        if not isinstance(step, Instruction) or type(step.op) is not Pointwise or step.place is not None:
            return False
        out = step.out
        if out.elements != self.elements or not self.elements or not out.contiguous:
            return False
        extents = extents_of(out.shape)
        found: set[Moves] = set()
        for value in step.operands():
            root, offset = value.root()
            moves = moves_of(value, extents, out.shape)
            if moves is None or root in self.late:
                return False
            if (
                root in self.made
                and value is not root
                and (offset or value.elements != self.elements or not all(moves))
            ):
                return False
            found.add(moves)
        if any(any(m) and not all(m) for m in found):
            if self.extents not in ((), extents):
                return False
            whole, _ = collapsed(extents, self.moves | found)
            if len(whole) > _DEPTH or whole[-1] < _SHORTEST:
                return False
            self.extents = extents
            self.moves |= found
        self.parts.append(step)
        self.made.add(out)
        return True

    def needs(self, step: Step) -> bool:
        """Whether a step can run only after the group."""
        return any(v.root()[0] in self.made or v.root()[0] in self.late for v in step.operands())

    def wait(self, step: Step) -> None:
        """Have a step run after the group."""
        self.waiting.append(step)
        self.late.update(step.results())


def _gathered(code: Code) -> list[list[Instruction] | Step]:
    # the steps, with instructions that one loop may compute side by side
    found: list[list[Instruction] | Step] = []
    group: _Group | None = None

    def close() -> None:
        nonlocal group
        if group is not None:
            found.append(group.parts)
            found.extend(group.waiting)
            group = None

    for step in code.steps:
        if isinstance(step, Guard | Call):
            close()
            found.append(step)
        elif group is not None and group.takes(step):
            continue
        elif group is not None and not group.needs(step):
            found.append(step)
        elif group is not None and not (step.out.elements == group.elements and _fits(step)):
            group.wait(step)
        else:
            close()
            group = _Group(step)
            if not group.takes(step):
                group = None
                found.append(step)
    close()
    return found


def _marks(parts: Sequence[Instruction]) -> list[int]:
    # of each instruction a number for its operation and how far back its operands were computed, equal in equal rounds of a loop
    place = {p.out: k for k, p in enumerate(parts)}
    numbers: dict[tuple, int] = {}
    found = []
    for k, p in enumerate(parts):
        back = [min(k - place.get(v.root()[0], -_MOST), _MOST) for v in p.inputs if v is not None]
        found.append(numbers.setdefault((p.op.code, *back), len(numbers)))
    return found


def _cut(parts: list[Instruction]) -> list[list[Instruction]]:
    # into pieces, as many of them equal as may be: rounds of a function's loop, and what lies between such
    if len(parts) <= _MOST:
        return [parts]
    marks = _marks(parts)
    known: dict[int, list[list[int]]] = {}  # pieces there were, by their first mark
    pieces: list[list[Instruction]] = []
    start = k = 0
    while k < len(parts):
        same = [len(p) for p in known.get(marks[k], ()) if marks[k : k + len(p)] == p]
        length = max(same) if same else _repeated_length(marks, k)
        if length or k - start == _MOST:
            if k > start:
                pieces.append(parts[start:k])
            if length:
                pieces.append(parts[k : k + length])
                if not same:
                    known.setdefault(marks[k], []).append(marks[k : k + length])
            k = start = k + length
        else:
            k += 1
    return [*pieces, parts[start:]] if start < k else pieces


def _repeated_length(marks: list[int], k: int) -> int:
    # of what is repeated at once, several times if it is short
    def repeats(length: int) -> bool:
        return marks[k] == marks[k + length] and marks[k : k + length] == marks[k + length : k + 2 * length]

    for period in range(_FEWEST, min(_MOST, (len(marks) - k) // 2) + 1):
        if repeats(period):
            longer = range(_MOST // 2 // period * period, period, -period)
            return next((n for n in longer if k + 2 * n <= len(marks) and repeats(n)), period)
    return 0


def fused(code: Code) -> Code:
    """Code that computes the same with loops over several operations; guards stay in their order."""
    units: list[list[Instruction] | Step] = []
    for unit in _gathered(code):
        units += _cut(unit) if isinstance(unit, list) else [unit]
    readers: dict[Value, set[int]] = {v.root()[0]: {-1} for v in code.outputs}
    for number, unit in enumerate(units):
        for step in unit if isinstance(unit, list) else [unit]:
            for value in step.operands():
                readers.setdefault(value.root()[0], set()).add(number)
    steps: list[Any] = []
    for number, unit in enumerate(units):
        if not isinstance(unit, list):
            steps.append(unit)
        elif len(unit) < _FEWEST:
            steps += unit
        else:
            steps.append(_fusion(unit, tuple(p.out for p in unit if readers[p.out] != {number})))
    return dataclasses.replace(code, steps=steps)


def _fusion(unit: Sequence[Instruction], writes: tuple[Value, ...]) -> Fusion:
    made = {p.out for p in unit}
    reads: dict[Value, Moves] = {}
    extents: tuple[int, ...] = (unit[0].out.elements,)
    for part in unit:
        own = extents_of(part.out.shape)
        for value in part.operands():
            moves = moves_of(value, own, part.out.shape)
            assert moves is not None
            if any(moves) and not all(moves):
                extents = own
            if value.root()[0] not in made:
                reads[value] = moves
    count = len(extents)
    spread = [m if any(m) and not all(m) else (all(m),) * count for m in reads.values()]
    whole, along = collapsed(extents, spread)
    return Fusion(unit, tuple(reads), writes, whole, along)


class Fusing:
    """When a program is fused: once its runs would have saved a part of what compiling its loops takes.

    Args:
        code: of the program.

    Attributes:
        due: after how many runs to ask.
    """

    def __init__(self, code: Code) -> None:
        self._code = code
        self._fused: Code | None = None
        self._lock = threading.Lock()
        parts = [s for s in code.steps if _fits(s)]
        self.due = _runs(_LOADED + _GATHERED * len(parts), parts) if len(parts) >= _FEWEST else math.inf

    def ask(self, runs: float) -> Code | None:
        """The fused code, its loops compiled, if now is the time; else `due` says when to ask again."""
        if not self._lock.acquire(blocking=False):
            return None  # another thread is at it
        try:
            if self._fused is None:
                self._fused = fused(self._code)
            fusions = [s for s in self._fused.steps if isinstance(s, Fusion)]
            loops = {loop_of(f): f for f in fusions}
            if not loops or _compiling(loops.values()) > _LONGEST:
                self.due = math.inf
                return None
            time = _compiling(f for loop, f in loops.items() if not loop.is_at_hand())
            self.due = _runs(_PAID * time, [p for f in fusions for p in f.parts[1:]])
            if runs < self.due:
                return None
            for loop in loops:
                loop.kernel()
            self.due = math.inf
            return self._fused
        finally:
            self._lock.release()


def _compiling(fusions: Iterable[Fusion]) -> float:
    return sum(_COMPILED + _COMPILED_INSTRUCTION * len(f.parts) for f in fusions)


def _runs(time: float, parts: Sequence[Step]) -> float:
    # after how many runs fusing has saved a time
    saved = sum(_SAVED + _SAVED_ELEMENT * p.out.elements for p in parts if not isinstance(p, Guard))
    return math.ceil(time / saved)
