"""What a profile knows of each operation that ran, and how its bytes are counted."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

from tapegrad import dtypes
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META
from tapegrad.metadata import layout_facts
from tapegrad.ops._rule import Op
from tapegrad.program.values import Fusion, Guard, Instruction, Step, Value

_S = rt.S

# how an operation ran
FORWARD, REVERSE, VIEW, REPLAYED = "forward", "reverse", "view", "replayed"

Shape = tuple[int, ...]


class Event(NamedTuple):
    """One operation that ran.

    Attributes:
        operation: its name; of a user's function, that of its node; of instructions that a program runs as one loop, theirs.
        kind: ``"forward"``; ``"view"``, which moves nothing; ``"reverse"``, its derivative in a sweep; ``"replayed"``, an instruction
            of a recorded program.
        start_ns: when it began, as `time.perf_counter_ns` tells.
        time_ns: its own time, without what taking the time costs.
        span_ns: the same, unless it ran other operations, as a derivative written in Python does: then from its beginning to its end.
        bytes: what it read and wrote.
        allocated: bytes of new memory it took.
        reads: shapes of what it read.
        writes: shapes of what it wrote.
        dtype: of what it wrote.
        line: of the source, as ``file:line``; of a derivative, where its operation was recorded; empty if it is not known.
    """

    operation: str
    kind: str
    start_ns: int
    time_ns: int
    span_ns: int
    bytes: int
    allocated: int
    reads: tuple[Shape, ...]
    writes: tuple[Shape, ...]
    dtype: str
    line: str


class Traffic(NamedTuple):
    """What an operation reads and writes: the fields of `Event` that time does not tell."""

    bytes: int
    allocated: int
    reads: tuple[Shape, ...]
    writes: tuple[Shape, ...]
    dtype: str


@functools.lru_cache(4096)
def nbytes(layout: int, dtype: int) -> int:
    """Bytes of the elements that a layout reaches, those shown more than once counted once."""
    shape, strides, _ = layout_facts(layout)
    return math.prod(n if s else min(n, 1) for n, s in zip(shape, strides, strict=True)) * dtypes.ALL[dtype].itemsize


class Piece(NamedTuple):
    """Memory that an operation reads or writes: a buffer's elements, or under its id with a minus their adjoint."""

    id: int
    shape: Shape
    bytes: int
    dtype: str


def elements_of(k: int) -> Piece:
    """The elements of a buffer."""
    meta = rt.look(_S, k, LOOK_META)
    layout, dtype = meta >> 16, meta & 0xFF
    return Piece(k, tuple(layout_facts(layout)[0]), nbytes(layout, dtype), dtypes.ALL[dtype].name)


def adjoint_of(k: int) -> Piece:
    """The adjoint of a buffer, which is contiguous."""
    meta = rt.look(_S, k, LOOK_META)
    layout, dtype = rt.contiguous_of(_S, meta >> 16), meta & 0xFF
    return Piece(-k, tuple(layout_facts(layout)[0]), nbytes(layout, dtype), dtypes.ALL[dtype].name)


def of_samples(piece: Piece, size: int) -> Piece:
    """So many samples, of which a piece is the first."""
    return piece._replace(shape=(size, *piece.shape), bytes=size * piece.bytes)


def traffic(read: Iterable[Piece], written: Iterable[Piece], allocated: int) -> Traffic:
    """What an operation moves that reads and writes some pieces of memory, each once."""
    reads, writes = {b.id: b for b in read}, {b.id: b for b in written}
    return Traffic(
        sum(b.bytes for b in (*reads.values(), *writes.values())),
        allocated,
        tuple(b.shape for b in reads.values()),
        tuple(b.shape for b in writes.values()),
        next((b.dtype for b in writes.values()), ""),
    )


def _bytes_of(values: Iterable[Value]) -> int:
    return sum(nbytes(v.layout, v.dtype.code) for v in dict.fromkeys(values))


def name_of(op: Op) -> str:
    """What an operation is called."""
    return op.name.lstrip("_")


def name_of_step(step: Step | Fusion) -> str:
    """What a step of a program is called."""
    if isinstance(step, Guard):
        return "guard"
    return name_of(step.op) if isinstance(step, Instruction) else step.name


def traffic_of_step(step: Step | Fusion, launches: int) -> Traffic:
    """What a step of a program moves, within the program's own memory.

    Args:
        step: the step.
        launches: how many kernels it runs.
    """
    reads = tuple(v.shape for v in step.operands())
    if isinstance(step, Guard):
        return Traffic(len(step.expected), 0, reads, (), step.value.dtype.name)
    moved = _bytes_of(step.operands()) + _bytes_of(step.results())
    if isinstance(step, Instruction) and step.place is not None:
        # a part is written; the rest is there already, or was copied before by a kernel of its own
        whole, part = (_bytes_of([v]) for v in step.inputs[:2] if v is not None)
        moved = 2 * part + 2 * whole * (launches - 1)
    return Traffic(moved, 0, reads, tuple(v.shape for v in step.results()), step.out.dtype.name)
