"""The native form of captured code: tables that the engine runs without Python.

A program has rows, buffers and layouts of its own, in the form the tape has them, and shares the tape's kernels. What does not change
between runs is made once; a `Replica` is what one run at a time writes to, so that threads may run a program at once.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any, ClassVar

import numba
import numpy as np

from tapegrad import dtypes
from tapegrad.creation import empty
from tapegrad.engine import structs
from tapegrad.engine.programs import (
    CALL,
    FINISHED,
    FLAT,
    FOR_PYTHON,
    GUARD,
    MERGING,
    PLAIN,
    PROGRAM,
    SAMPLES,
    STEP,
    STRIDED,
)
from tapegrad.engine.record import PARALLEL_WORK
from tapegrad.engine.runtime import address_of_array, rt
from tapegrad.metadata import layout_facts
from tapegrad.ops import pointwise as pw
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import Op
from tapegrad.program.fused import loop_of
from tapegrad.program.memory import planned
from tapegrad.program.values import CONSTANT, VIEW, Call, Code, Fusion, Guard, Instruction, Value

_S = rt.S
_LARGE = 1 << 20  # bytes
# loops whose threads may be shared by several callers at once
_SHARED_THREADS = ("omp", "tbb")


def empty_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array for results: a large one in memory that the tape's allocator kept, since the pages of a fresh one cost 0.1 ms a MiB."""
    if math.prod(shape) * dtype.itemsize < _LARGE:
        return np.empty(shape, dtype)
    return empty(shape, dtype=dtypes.of_numpy(dtype)).numpy()


def _aligned(nbytes: int) -> tuple[np.ndarray, int]:
    block = np.zeros(nbytes // 8 + 16, np.int64)
    return block, (address_of_array(block) + 63) & -64


# a state for runs that keep to their thread
_alone, ALONE = _aligned(structs.STATE.itemsize)

_layouts: list[Any] = [0, None]


def _layout_table() -> tuple[int, np.ndarray]:
    # a copy of the tape's layouts, which move as they grow; programs made one after the other share it
    count = int(rt.state.layout_count)
    if _layouts[0] != count:
        size = count * structs.LAYOUT_SIZE
        copy = np.frombuffer(ctypes.string_at(int(rt.state.layouts), size), np.uint8).copy()
        _layouts[:] = count, copy
    return _layouts[0], _layouts[1]


class Native:
    """The tables of a program that no run changes.

    Attributes:
        code: what it was made of.
        given: how many addresses a run is given: of inputs, then of outputs.
        arena: bytes of the memory of one replica.
        calls: whether a run needs Python.
        nbytes: of its tables and constants, and of the memory of one replica.
    """

    def __init__(self, code: Code) -> None:
        self.code = code
        self._ids: dict[Value, int] = {}
        self._places, self.arena = planned(code, {*code.inputs, *code.outputs})
        self._bound = {v: k for k, v in enumerate((*code.inputs, *code.outputs))}
        self.given = len(self._bound)
        self._keep: list[Any] = []
        self._scratch = 0
        self.calls = any(isinstance(s, Call) for s in code.steps)
        self._rows: list[tuple[int, int, int, list[int]]] = []
        steps: list[dict[str, int]] = []
        self.numbers: list[int] = []  # of the native steps, that of the code's
        for number, step in enumerate(code.steps):
            if isinstance(step, Guard):
                made = self._guard(step)
            elif isinstance(step, Call):
                for value in (*step.inputs, step.out):
                    self._id(value)
                made = [{"how": CALL}]
            elif isinstance(step, Fusion):
                made = [self._fusion(step)]
            else:
                made = self._instruction(step)
            steps += made
            self.numbers += [number] * len(made)
        for value in (*code.inputs, *code.outputs):
            self._id(value)
        self._make_rows(steps)
        self._make_steps(steps)
        self._make_buffers()
        self._layouts = _layout_table()
        self.nbytes = sum(a.nbytes for a in self._keep if isinstance(a, np.ndarray)) + self.arena

    def _id(self, value: Value | None) -> int:
        if value is None:
            return 0
        if value not in self._ids:
            if value.base is not None:
                self._id(value.base)
            self._ids[value] = len(self._ids) + 1
        return self._ids[value]

    # steps

    def _instruction(self, step: Instruction) -> list[dict[str, int]]:
        if step.place is not None:
            return self._place(step)
        if isinstance(step.op, Pointwise):
            return [self._pointwise(step.op, step.inputs, step.out)]
        inputs, extra, out = step.inputs, step.extra, step.out
        moving: list[int] = []
        if step.samples is not None:
            inputs, extra, out, moving = self._first_sample(step)
        ids = [self._id(v) for v in extra]
        items, work, *own = step.words
        key = step.inputs[0].dtype.code if step.inputs[0] is not None else 0
        if items < 0:
            self._scratch = max(self._scratch, -items * 8)
        if work * abs(items) > PARALLEL_WORK and abs(items) > 1:
            work = self._shared(work)
        made = {
            "kernel": kernel_of(step.op, key),
            "row": self._row(step.op, inputs, out, [len(ids), *ids, items, work, *own]),
            "items": abs(items),
            "work": abs(items) * work,
            "how": MERGING if items < 0 else PLAIN,
        }
        if step.samples is not None:
            table = np.array([items < 0, len(moving) // 2, *moving], np.int64)
            self._keep.append(table)
            made |= {"how": SAMPLES, "target": step.samples.size, "expected": address_of_array(table)}
        return [made]

    def _first_sample(self, step: Instruction) -> tuple[tuple[Value | None, ...], tuple[Value, ...], Value, list[int]]:
        # views of the first sample, and of each buffer that moves its id and the bytes to the next sample
        samples = step.samples
        assert samples is not None
        moving: list[int] = []

        def first(value: Value, layout: int) -> Value:
            view = Value(VIEW, layout, value.dtype, base=value)
            distance = layout_facts(value.layout)[1][0] * value.dtype.itemsize
            moving.extend((self._id(view), distance))
            return view

        found = [
            v if v is None or not several else first(v, layout)
            for v, layout, several in zip(
                (*step.inputs[: len(samples.layouts)], *step.extra), samples.layouts, samples.batched, strict=True
            )
        ]
        found += [None] * (3 - len(found))
        return tuple(found[:3]), tuple(v for v in found[3:] if v is not None), first(step.out, samples.out), moving

    def _place(self, step: Instruction) -> list[dict[str, int]]:
        # the whole, unless it is there already, then the part
        whole, part = step.inputs[:2]
        assert whole is not None
        assert part is not None
        assert step.place is not None
        steps = []
        if whole.root()[0] not in self._places or self._places.get(step.out) != self._places[whole.root()[0]]:
            steps.append(self._pointwise(pw.copy, (step.out, whole, None), step.out))
        layout, offset = step.place
        shown = Value(VIEW, layout, step.out.dtype, base=step.out, offset=offset)
        return [*steps, self._pointwise(pw.copy, (shown, part, None), shown)]

    def _pointwise(self, op: Pointwise, inputs: tuple[Value | None, ...], out: Value) -> dict[str, int]:
        key = (inputs[1] if op.kind == structs.SELECT else inputs[0]).dtype.code  # type: ignore[union-attr]
        target = rt.contiguous_of(_S, out.layout)
        elements = out.elements
        layouts = [v.layout if v is not None else 0 for v in (out, *inputs)]
        moves = [_moves(k, target, elements) for k in layouts]
        work = elements * int(rt.ops[op.code]["cost"])
        made = {"kernel": kernel_of(op, key), "row": self._row(op, inputs, out), "items": elements}
        made["work"] = self._shared(work) if work > PARALLEL_WORK and elements > 1 else work
        if elements and None in moves:
            made |= {"how": STRIDED, "target": target} | {f"layout{k}": v for k, v in enumerate(layouts)}
        else:
            made |= {"how": FLAT, "moves": sum(1 << k for k, m in enumerate(moves) if m)}
        return made

    def _fusion(self, step: Fusion) -> dict[str, int]:
        words = [*(self._id(v) for v in (*step.reads, *step.writes)), *step.extents[1:]]
        items = math.prod(step.extents[:-1]) if len(step.extents) > 1 else step.extents[0]
        work = step.work()
        return {
            "kernel": loop_of(step).kernel(),
            "row": self._row(step.parts[-1].op, (None, None, None), step.out, words),
            "items": items,
            "work": self._shared(work) if work > PARALLEL_WORK and items > 1 else work,
            "how": PLAIN,
        }

    def _shared(self, work: int) -> int:
        # work for all cores, if they can be had by several threads at once
        if not int(rt.state.parallel):
            rt.load_parallel_driver()
        try:
            safe = numba.threading_layer() in _SHARED_THREADS
        except ValueError:  # nothing ran in parallel yet
            safe = numba.config.THREADING_LAYER in _SHARED_THREADS
        return work if safe else 0

    def _guard(self, step: Guard) -> list[dict[str, int]]:
        kept = np.frombuffer(step.expected, np.uint8)
        self._keep.append(kept)
        return [
            {
                "how": GUARD,
                "target": self._id(step.value),
                "items": len(step.expected),
                "expected": address_of_array(kept),
            }
        ]

    def _row(self, op: Op, inputs: tuple[Value | None, ...], out: Value, words: list[int] | None = None) -> int:
        ids = [self._id(v) for v in (out, *inputs)]
        self._rows.append((op.code, len(self._rows), ids[0], [*(ids[1:] + [0, 0])[:3], *(words or ())]))
        return len(self._rows) - 1

    # tables

    def _make_rows(self, steps: list[dict[str, int]]) -> None:
        rows = np.zeros(max(len(self._rows), 1), structs.ROW)
        total = sum(len(words) - 3 + 1 for *_, words in self._rows if len(words) > 3)
        attributes = np.zeros(max(total, 1), np.int64)
        start, base = 0, address_of_array(attributes)
        for k, (code, _, out, (a, b, c, *words)) in enumerate(self._rows):
            row = rows[k]
            row["op"], row["out"], row["in0"], row["in1"], row["in2"] = code, out, a, b, c
            if words:
                attributes[start] = len(words) + 1
                attributes[start + 1 : start + 1 + len(words)] = words
                row["attr"] = base + 8 * start
                start += len(words) + 1
        table = address_of_array(rows)
        for step in steps:
            if "row" in step:
                step["row"] = table + step["row"] * structs.ROW_SIZE
        self._keep += [rows, attributes]

    def _make_steps(self, steps: list[dict[str, int]]) -> None:
        self._steps = np.zeros(max(len(steps), 1), STEP)
        for record, step in zip(self._steps, steps, strict=False):
            for field, value in step.items():
                record[field] = value
        self._count = len(steps)
        self._keep.append(self._steps)

    def _make_buffers(self) -> None:
        self._buffers = np.zeros(len(self._ids) + 1, structs.BUFFER)
        binds: list[tuple[int, int, int]] = []
        within: list[int] = []  # buffers whose address counts from the start of a replica's memory
        for value, k in self._ids.items():
            root, offset = value.root()
            record = self._buffers[k]
            record["layout"], record["dtype"], record["producer"] = value.layout, value.dtype.code, -1
            record["refs"] = record["data_refs"] = 1
            if root in self._bound:
                binds.append((self._bound[root], k, offset))
            elif root.kind == CONSTANT:
                assert root.array is not None
                if not any(root.array is a for a in self._keep):
                    self._keep.append(root.array)
                record["data"] = address_of_array(root.array) + offset
            else:
                record["data"] = self._places[root] + offset
                within.append(k)
        self._within = np.array(within, np.int64)
        self._binds = np.array(binds, np.int64).reshape(-1, 3)
        self._keep += [self._buffers, self._binds]


def _moves(layout: int, target: int, elements: int) -> bool | None:
    # whether an operand runs along with the result's elements or stands still; None if neither
    if layout == 0:
        return False
    if layout == target:
        return True
    shape, _, contiguous = layout_facts(layout)
    if shape.numel() == 1:
        return False
    return True if contiguous and shape.numel() == elements else None


def kernel_of(op: Op, dtype: int) -> int:
    """Address of an op's kernel for a dtype code, loaded if it is not."""
    if not rt.forward[op.code, dtype]:
        op.load_forward(dtype)
    return int(rt.forward[op.code, dtype])


class Replica:
    """What one run of a program at a time writes to.

    Args:
        native: the program.
        state: address of the state that says how many threads a run may use.

    Attributes:
        at: every replica, by the address that a run of it is given.
    """

    at: ClassVar[weakref.WeakValueDictionary[int, Replica]] = weakref.WeakValueDictionary()

    def __init__(self, native: Native, state: int = _S) -> None:
        self.native, self._shared = native, state
        self._arena, arena = _aligned(native.arena + native._scratch + 64)
        self._buffers = native._buffers.copy()
        self._buffers["data"][native._within] += arena
        self._state, state = _aligned(structs.STATE.itemsize)
        start = (state - address_of_array(self._state)) // 8
        words = self._state[start : start + structs.STATE.itemsize // 8]
        fields: Any = words.view(structs.STATE).view(np.recarray)[0]
        fields.buffers, fields.buffer_count = address_of_array(self._buffers), len(self._buffers)
        fields.layout_count, table = native._layouts
        fields.layouts = address_of_array(table)
        fields.ops, fields.forward, fields.reverse = rt.state.ops, rt.state.forward, rt.state.reverse
        fields.scratch = arena + (native.arena + 63 & -64)
        self._program = np.zeros(1, PROGRAM)
        record = self._program[0]
        record["state"], record["steps"], record["count"] = state, address_of_array(native._steps), native._count
        record["binds"], record["bind_count"] = address_of_array(native._binds), len(native._binds)
        self.address = address_of_array(self._program)
        self.at[self.address] = self
        self.addresses = np.zeros(max(native.given, 1), np.int64)
        self.addresses_at = address_of_array(self.addresses)

    def run(self) -> int:
        """Run over what `addresses` say; the answer of the engine's `run_program`, after what is for Python."""
        return self._finished(rt.run_program(self._shared, self.address, self.addresses_at, 0))

    def run_blocks(self, moves: np.ndarray, count: int) -> int:
        """Run `count` times, with `addresses` moving on by `moves` after each; the answer of the first run that does not get to its end."""
        if not self.native.calls:
            return rt.run_blocks(
                self._shared, self.address, self.addresses_at, address_of_array(moves), len(self.addresses), count
            )
        for _ in range(count):
            answer = self.run()
            if answer != FINISHED:
                return answer
            self.addresses += moves
        return FINISHED

    def _finished(self, answer: int) -> int:
        # the answer after what is for Python
        while answer == FOR_PYTHON:
            self._call(self.stopped())
            start = int(self._program["stopped"][0]) + 1
            answer = rt.run_program(self._shared, self.address, self.addresses_at, start)
        return answer

    def _call(self, step: Any) -> None:
        arrays = [self._array(v) for v in step.inputs]
        for array in arrays:
            array.flags.writeable = False
        found = step.function(*arrays)
        out = self._array(step.out)
        if found.shape != out.shape:
            raise RuntimeError(
                f"compile: {step.name} gave a result of shape {found.shape}, and of {out.shape} when it was recorded"
            )
        out[...] = found

    def _array(self, value: Value) -> np.ndarray:
        # the elements of a contiguous value
        if not value.elements:
            return np.empty(value.shape, value.dtype.numpy)
        memory: Any = (ctypes.c_char * value.nbytes()).from_address(int(self._buffers["data"][self.native._ids[value]]))
        return np.ndarray(value.shape, value.dtype.numpy, memory)

    def stopped(self) -> Any:
        """The step of the code that stopped the last run."""
        return self.native.code.steps[self.native.numbers[int(self._program["stopped"][0])]]

    def bytes_of(self, value: Value) -> bytes:
        """The elements of a contiguous value after a run that got that far."""
        k = self.native._ids[value]
        return ctypes.string_at(int(self._buffers["data"][k]), value.nbytes())
