"""Taking the time of each operation of a thread.

Operations are timed around the engine's entry point, which takes memory, runs the kernel and puts the operation on the tape. A sweep
is run one row at a time, and a program one step at a time, by the entry points that run them whole while nobody looks.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from tapegrad import dtypes
from tapegrad.autograd.rows import Row, RowOp, grad_name_of, operands, read_row
from tapegrad.autograd.watching import source_line, timing
from tapegrad.engine import structs
from tapegrad.engine.programs import FINISHED, FOR_PYTHON, OTHER_PATH
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META
from tapegrad.engine.timed import CLOCK, WHICH, nanoseconds, now
from tapegrad.metadata import layout_facts
from tapegrad.ops._rule import OPS, Op
from tapegrad.profiling._events import (
    FORWARD,
    REPLAYED,
    REVERSE,
    VIEW,
    Event,
    Traffic,
    adjoint_of,
    elements_of,
    name_of,
    name_of_step,
    of_samples,
    traffic,
    traffic_of_step,
)
from tapegrad.program.native import Native, Replica

_S = rt.S
_clock = time.perf_counter_ns
_TRIES = 101  # calls that do nothing, to know what a call costs

# where the ids of operands stand in what an entry point is given after the state
_OPERANDS = {"record": (1, 2, 3), "record_scalar": (1,), "record_kernel": (1, 2, 3), "record_view": (1,)}


class Collector(Protocol):
    """What events are for."""

    events: list[Event]


class _Part(NamedTuple):
    # the native steps that one step of a program is made of
    first: int
    end: int
    operation: str
    traffic: Traffic
    line: str


class Timer:
    """Makes the calls of one thread, and tells collectors of each operation.

    Attributes:
        collectors: those told.
        overhead_ns: what a call of an entry point costs that does nothing, with taking its time.
    """

    def __init__(self) -> None:
        for entry in ("begin_from", "time_program"):
            getattr(rt, entry)  # compiled now, before anybody counts the time
        self.collectors: list[Collector] = []
        self.overhead_ns = _cost_of_call(rt.look, (0, LOOK_META))
        self._open = contextlib.ExitStack()
        self._inside = [0]  # for each derivative under way, the time that is not its own
        self._lines: dict[int, tuple[int, str]] = {}  # by result, which operation was recorded where
        self._programs: dict[Native, tuple[int, list[_Part], np.ndarray]] = {}
        self._readings = np.zeros((2, 2), np.int64)
        self._ahead = _distance_of_clocks()
        self._left: _Part | None = None  # a step of a program that Python does meanwhile,
        self._since = 0  # and since when
        self._special: dict[str, Callable[[Callable[..., int], tuple], int]] = {
            "record_planned": self._unplanned,
            "record_on": self._placed,
            "run_lanes": self._lanes,
            "sweep_from": self._sweep_from,
            "sweep_wanted": self._sweep_wanted,
            "sweep": self._sweep,
        }

    def join(self, collector: Collector) -> None:
        """Tell a collector from now on."""
        if not self.collectors:
            self._open.enter_context(timing(self))
        self.collectors.append(collector)

    def leave(self, collector: Collector) -> None:
        """Tell a collector no more."""
        self.collectors.remove(collector)
        if not self.collectors:
            self._open.close()

    def call(self, name: str, original: Callable[..., int], S: int, given: tuple) -> int:
        """Call an entry point; its answer."""
        if name in _OPERANDS:
            return self._forward(name, original, given)
        special = self._special.get(name)
        if special is not None:
            return special(original, given)
        if name == "run_program":
            return self._program(S, *given)
        return self._blocks(S, *given) if name == "run_blocks" else original(S, *given)

    def _tell(self, operation: str, kind: str, start: int, took: int, moved: Traffic, line: str) -> None:
        took = max(took, 1)
        event = Event(operation, kind, start, took, took, *moved, line)
        for collector in self.collectors:
            collector.events.append(event)

    # operations

    def _forward(self, name: str, entry: Callable[..., int], given: tuple) -> int:
        begun = _clock()
        more = _more_operands(given[-1]) if name == "record_kernel" else []
        answer, start, span = _timed(entry, given)
        if answer > 0:
            k = answer & ~structs.TRACKED_VIEW
            op = _op(given[0] & 0xFFFF)
            written = name == "record" and given[0] & structs.IN_PLACE
            line = source_line()
            if k != given[1]:
                self._lines[k] = op.code, line
            ids = [given[p] for p in _OPERANDS[name] if given[p]] + more
            kind = VIEW if name == "record_view" else FORWARD
            called = name_of(op) + "_" * bool(written)
            if kind == VIEW:
                moved = traffic(map(elements_of, ids), [elements_of(k)], 0)._replace(bytes=0)
            elif written:
                moved = traffic(map(elements_of, ids), [elements_of(k)], 0)
            else:
                fills = getattr(op, "fills", ()) if name == "record_kernel" else ()
                new = [k, *(given[1 + p] for p in fills if given[1 + p])]
                moved = _into_new([q for q in ids if q not in new], new, name == "record_scalar")
            self._tell(called, kind, start, span - self.overhead_ns, moved, line)
        self._inside[-1] += _clock() - begun
        return answer

    def _unplanned(self, entry: Callable[..., int], given: tuple) -> int:
        # no launch is remembered: it is worked out again, and the kernel called by its opcode
        return 0

    def _placed(self, entry: Callable[..., int], given: tuple) -> int:
        self._lines[given[1]] = given[0], source_line()
        return entry(_S, *given)

    def _lanes(self, entry: Callable[..., int], given: tuple) -> int:
        begun = _clock()
        code, out, a, b, c, batch, steps, attributes = given
        ids = (out, a, b, c, *_more_operands(attributes))
        step = list((ctypes.c_int64 * len(ids)).from_address(steps))
        answer, start, span = _timed(entry, given)
        if answer:
            op = _op(code)
            filled = [p + 1 for p in getattr(op, "fills", ())]
            pieces = {
                p: of_samples(elements_of(k), batch) if step[p] else elements_of(k) for p, k in enumerate(ids) if k
            }
            new = [pieces[p] for p in (0, *filled) if p in pieces]
            read = [piece for p, piece in pieces.items() if p and p not in filled]
            moved = traffic(read, new, sum(piece.bytes for piece in new))
            self._tell(name_of(op), FORWARD, start, span - self.overhead_ns, moved, source_line())
        self._inside[-1] += _clock() - begun
        return answer

    # sweeps

    def _sweep_from(self, entry: Callable[..., int], given: tuple) -> int:
        return self._swept(rt.begin_from(_S, *given), lambda: rt.leave_sweep(_S))

    def _sweep_wanted(self, entry: Callable[..., int], given: tuple) -> int:
        return self._swept(rt.begin_wanted(_S, *given), lambda: rt.end_wanted(_S, *given))

    def _swept(self, answer: int, end: Callable[[], Any]) -> int:
        # the rest of a sweep that was begun
        last = int(rt.state.row_count) - 1
        try:
            if answer == structs.DONE:
                answer = rt.sweep(_S, last, 0)
            if answer == structs.DONE:
                answer = rt.settle(_S)
        except BaseException:  # an interrupt: compiled code alone is not stopped halfway
            rt.abandon(_S, last)
            end()
            raise
        if answer == structs.DONE:
            end()
        return answer

    def _sweep(self, entry: Callable[..., int], given: tuple) -> int:
        start, stop = given
        while (index := rt.next_row(_S, start)) >= stop:
            answer = self._row_in_reverse(index)
            if answer != structs.DONE:
                return answer
            start = index - 1
        return structs.DONE

    def _row_in_reverse(self, index: int) -> int:
        begun = _clock()
        row = read_row(index)
        need = rt.wanted_inputs(_S, index)
        before = _Adjoints(row, need)
        answer = rt.time_rows(_S, index, index, *self._clock_to(self._readings))
        if answer == structs.DONE and need:
            start, end = (nanoseconds(self._readings) + self._ahead).tolist()
            own = end - start - self._cost_of_reading
            self._tell(name_of(row.op), REVERSE, start, own, before.moved_since(), self._line_of(row))
        self._inside[-1] += _clock() - begun
        return answer

    def row(self, row: Row, compute: Callable[[], Sequence]) -> Sequence:
        """Compute what a row of the tape passes on, over tensors: by operations that are timed in turn."""
        begun = _clock()
        name = grad_name_of(row.out) if isinstance(row.op, RowOp) else name_of(row.op)
        moved = Traffic(0, 0, (tuple(layout_facts(row.meta >> 16)[0]),), (), dtypes.ALL[row.meta & 0xFF].name)
        line = self._line_of(row)
        self._inside.append(0)
        there = list(self.collectors)
        start = _clock()
        try:
            parts = compute()
            span = _clock() - start
            own = max(span - self._inside[-1], 1)
            for collector in self.collectors:
                if collector in there:
                    collector.events.append(Event(name, REVERSE, start, own, span, *moved, line))
        finally:
            self._inside.pop()
            self._inside[-1] += _clock() - begun
        return parts

    @functools.cached_property
    def _cost_of_reading(self) -> int:
        # what is between two readings of the clock around a sweep of no rows
        def between() -> int:
            rt.time_rows(_S, -1, 0, *self._clock_to(self._readings))
            return int(nanoseconds(self._readings) @ (-1, 1))

        return _median([between() for _ in range(_TRIES)])

    @staticmethod
    def _clock_to(readings: np.ndarray) -> tuple[int, int, int]:
        # the clock, and where compiled code writes what it reads from it
        return CLOCK, WHICH, readings.ctypes.data

    def _line_of(self, row: Row) -> str:
        code, line = self._lines.get(row.out, (-1, ""))
        return line if code == row.op.code else ""

    # programs

    def _program(self, S: int, program: int, addresses: int, first: int) -> int:
        begun = _clock()
        self._end_of_call(begun)
        replica = Replica.at[program]
        cost, parts, times = self._parts_of(replica.native, S, program, addresses)
        answer = rt.time_program(S, program, addresses, first, 0, *self._clock_to(times))
        starts, ends = (nanoseconds(times) + self._ahead).T.tolist()
        stopped = len(parts) if answer == FINISHED else replica.native.code.steps.index(replica.stopped())
        for part in parts[: stopped + (answer == OTHER_PATH)]:
            if part.first >= first:
                span = sum(e - s - cost for s, e in zip(starts[part.first : part.end], ends[part.first : part.end]))
                self._tell(part.operation, REPLAYED, starts[part.first], span, part.traffic, part.line)
        if answer == FOR_PYTHON:
            self._left = parts[stopped]
        self._inside[-1] += _clock() - begun
        self._since = _clock()
        return answer

    def _blocks(self, S: int, program: int, addresses: int, moves: int, words: int, count: int) -> int:
        words_at = ctypes.c_int64 * words
        given, step = (np.ctypeslib.as_array(words_at.from_address(a)) for a in (addresses, moves))
        for _ in range(count):
            answer = self._program(S, program, addresses, 0)
            if answer != FINISHED:
                return answer
            given += step
        return FINISHED

    def _end_of_call(self, now: int) -> None:
        # of the step that Python has done since a program stopped for it
        part, self._left = self._left, None
        if part is not None:
            span = now - self._since
            self._tell(part.operation, REPLAYED, self._since, span, part.traffic, part.line)
            self._inside[-1] += span

    def _parts_of(self, native: Native, S: int, program: int, addresses: int) -> tuple[int, list[_Part], np.ndarray]:
        # what taking the time of a step costs, the steps, and room for their times
        known = self._programs.get(native)
        if known is None:
            times = np.zeros((max(len(native.numbers), 1), 2, 2), np.int64)
            costs = []
            for _ in range(_TRIES // len(times) + 1):
                rt.time_program(S, program, addresses, 0, 1, *self._clock_to(times))
                costs += (nanoseconds(times) @ (-1, 1)).tolist()
            known = self._programs[native] = _median(costs), list(_parts(native)), times
        return known


def _distance_of_clocks() -> int:
    # how far Python's clock is ahead of that of compiled code: on most systems they are one
    tries = []
    for _ in range(5):
        before, there, after = _clock(), now(), _clock()
        if before <= there <= after:
            return 0
        tries.append((after - before, before - there))
    return min(tries)[1]


def _timed(entry: Callable[..., int], given: tuple) -> tuple[int, int, int]:
    # what an entry point answers, when it was called, and how long it took
    start = _clock()
    answer = entry(_S, *given)
    return answer, start, _clock() - start


def _cost_of_call(entry: Callable[..., int], given: tuple) -> int:
    # of one that does nothing
    return _median([_timed(entry, given)[2] for _ in range(_TRIES)])


def _median(times: list[int]) -> int:
    return sorted(times)[len(times) // 2]


def _op(code: int) -> Op:
    op = OPS[code]
    assert op is not None
    return op


def _more_operands(attributes: int) -> list[int]:
    # ids in an attribute block
    count = ctypes.c_int64.from_address(attributes + 8).value
    return list((ctypes.c_int64 * count).from_address(attributes + 16))


def _into_new(ids: Sequence[int], made: Sequence[int], scalar: bool) -> Traffic:
    # what an operation moves that writes to new memory; `scalar` is a number that it reads beside
    new = [elements_of(k) for k in made]
    moved = traffic(map(elements_of, ids), new, sum(piece.bytes for piece in new))
    if scalar:
        number = dtypes.ALL[rt.look(_S, ids[0], LOOK_META) & 0xFF].itemsize
        moved = moved._replace(bytes=moved.bytes + number, reads=(*moved.reads, ()))
    return moved


def _parts(native: Native) -> Iterator[_Part]:
    first = 0
    for number, steps in itertools.groupby(native.numbers):
        count = len(list(steps))
        step = native.code.steps[number]
        yield _Part(first, first + count, name_of_step(step), traffic_of_step(step, count), step.line)
        first += count


class _Adjoints:
    # the adjoints around a row, before its derivative runs
    def __init__(self, row: Row, need: int) -> None:
        saved = [k for p, k in enumerate((*row.inputs, row.out)) if row.saved >> p & 1]
        self._read = [adjoint_of(row.out), *map(elements_of, saved)]
        self._wanted = {k for p, k in enumerate(operands(row)) if k and need >> min(p, 3) & 1}
        self._arrived = int(rt.buffer(row.out)["adj"])
        self._open = {k for k in self._wanted if rt.buffer(k)["adj"]}

    def moved_since(self) -> Traffic:
        """What the derivative read and wrote; an adjoint that an operand took over as it is was not moved."""
        allocated, written = 0, []
        for k in self._wanted:
            state = rt.buffer(k)
            if int(state["adj"]) not in (0, self._arrived):
                written.append(adjoint_of(k))
                if k not in self._open and not int(state["flags"]) & structs.ADJ_IS_GRAD:
                    allocated += written[-1].bytes
        moved = traffic(self._read, written, allocated)
        return moved if written else moved._replace(bytes=0)
