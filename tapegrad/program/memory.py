"""One memory plan for a program: where in one block each value is, places being reused once a value is needed no more."""

from __future__ import annotations

import bisect

from tapegrad.ops._pointwise import Pointwise
from tapegrad.program.values import COMPUTED, Code, Instruction, Value

_SMALL, _LINE = 16, 64


class Places:
    """Free stretches of a block that grows as needed."""

    def __init__(self) -> None:
        self.size = 0
        self._free: list[tuple[int, int]] = []  # start and length, in order

    def take(self, nbytes: int) -> int:
        """The start of a free stretch: the smallest that is large enough."""
        nbytes = rounded(nbytes)
        fits = [(length, start, k) for k, (start, length) in enumerate(self._free) if length >= nbytes]
        if not fits:
            start = self.size
            if self._free and sum(self._free[-1]) == self.size:
                start = self._free.pop()[0]
            self.size = start + nbytes
            return start
        length, start, k = min(fits)
        if length == nbytes:
            del self._free[k]
        else:
            self._free[k] = (start + nbytes, length - nbytes)
        return start

    def give(self, start: int, nbytes: int) -> None:
        """A stretch is free again."""
        length = rounded(nbytes)
        k = bisect.bisect_left(self._free, (start, 0))
        if k < len(self._free) and self._free[k][0] == start + length:
            length += self._free.pop(k)[1]
        if k and sum(self._free[k - 1]) == start:
            start, more = self._free.pop(k - 1)
            length += more
            k -= 1
        self._free.insert(k, (start, length))


def rounded(nbytes: int) -> int:
    """Bytes that a value takes: small ones lie close together, others begin a cache line."""
    return _SMALL if nbytes <= _SMALL else -(-nbytes // _LINE) * _LINE


def last_uses(code: Code) -> dict[Value, int]:
    """For each value with memory of its own, the number of the last step that reads or writes it; outputs are read at the end."""
    found: dict[Value, int] = {}
    for number, step in enumerate(code.steps):
        for value in (*step.operands(), *step.results()):
            found[value.root()[0]] = number
    for value in code.outputs:
        found[value.root()[0]] = len(code.steps)
    return found


def planned(code: Code, elsewhere: set[Value]) -> tuple[dict[Value, int], int]:
    """Where each computed value begins in the program's block, and how large that is.

    Args:
        code: the program.
        elsewhere: values that have other memory.
    """
    last = last_uses(code)
    places: dict[Value, int] = {}
    block = Places()
    dying: dict[int, list[Value]] = {}
    for value, number in last.items():
        dying.setdefault(number, []).append(value)
    for number, step in enumerate(code.steps):
        taken_over: Value | None = None
        for value in step.results():
            if value in elsewhere:
                continue
            heir = _in_place(step, value, last, number, places) if isinstance(step, Instruction) else None
            if heir is not None and taken_over is None:
                places[value] = places[heir]
                taken_over = heir
            else:
                places[value] = block.take(value.nbytes())
        for value in dying.get(number, ()):
            if value in places and value is not taken_over:
                block.give(places[value], value.nbytes())
    return places, block.size


def _in_place(step: Instruction, out: Value, last: dict[Value, int], number: int, places: dict) -> Value | None:
    # an operand whose memory the result may take: element for element, and read by nobody afterwards
    if step.place is not None:
        whole = step.inputs[0]
        part = step.inputs[1]
        if whole is None or part is None or part.root()[0] is whole.root()[0]:
            return None
        return whole if _fits(whole, out, last, number, places) else None
    value = step.inputs[0]
    if value is None or not isinstance(step.op, Pointwise) or not step.op.overwrites(value.dtype.code):
        return None
    # other operands that show parts of it differently would see it change
    alone = all(v is value or v.root()[0] is not value for v in step.operands())
    return value if alone and _fits(value, out, last, number, places) else None


def _fits(value: Value, out: Value, last: dict[Value, int], number: int, places: dict) -> bool:
    return (
        value.kind == COMPUTED
        and value in places
        and last[value] == number
        and value.layout == out.layout
        and value.dtype.itemsize == out.dtype.itemsize
        and rounded(value.nbytes()) == rounded(out.nbytes())
    )
