"""Capturing a function: it runs once, eagerly, and what it records on the way becomes instructions over values.

Only its arguments, tensors that were there before, and random numbers can differ between calls; all else is constant. Every result of
an operation is a value of its own: a write in place makes a new value, as it does on the tape.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tapegrad
from tapegrad import dtypes, random
from tapegrad.autograd.function import function_op, output_op
from tapegrad.autograd.rows import Row, dtype_of, handle, operands, read_row
from tapegrad.autograd.sampling import differ
from tapegrad.autograd.tracing import Recorder, noting, recorder_of_thread, transforming
from tapegrad.autograd.watching import intercepting, unwatched
from tapegrad.creation import from_copy
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import (
    LOOK_DATA,
    LOOK_META,
    LOOK_OLDER,
    LOOK_STALE,
    LOOK_STORAGE,
    LOOK_TRACED,
    LOOK_VERSION,
)
from tapegrad.func._batching import call_of, lanes_op
from tapegrad.func._looping import loop_op
from tapegrad.ops._kernel import KernelOp, filled_op
from tapegrad.ops._rule import Pointwise
from tapegrad.ops._write import copy_slices
from tapegrad.ops.convert import clone
from tapegrad.program.values import (
    COMPUTED,
    CONSTANT,
    INPUT,
    Call,
    Code,
    Guard,
    Instruction,
    Samples,
    Step,
    Value,
    constant_of,
    view_of,
)
from tapegrad.tensor import Tensor, check_id, layout_facts, wrap

_S = rt.S
_HERE = str(Path(tapegrad.__file__).parent)

# where the ids of operands stand in what an entry point is given after the state
_OPERANDS = {
    "record": (1, 2, 3),
    "record_scalar": (1,),
    "record_kernel": (1, 2, 3),
    "record_planned": (2, 3, 4),
    "record_view": (1,),
    "record_on": (2, 3),
    "share_leaf": (0,),
}
_WITH_MORE = ("record_kernel", "record_on")

# one function is captured at a time: what was there before is marked on the tape
_turn = threading.RLock()

ALIASED = (
    "compile: a value of shape {} was written to through another tensor that shares its memory (from detach(), .data or the like) and is "
    "used again; clone() it before it is written to"
)
ARGUMENT = (
    "compile: the function writes to its argument of shape {} in place{}; a recorded program would not write to the caller's tensor. Return "
    "the new value, or clone() the argument first"
)
BACKWARD = (
    "compile: the function leaves a gradient of shape {} in .grad of a tensor that it did not make itself{}; a recorded program would not. "
    "Use autograd.grad, or value_and_grad of the compiled function, which return gradients"
)
MUTATED = (
    "compile: the function writes to a tensor of shape {} that it did not make itself{}; a recorded program would not repeat that. Return "
    "the new value and assign it outside, or clone() the tensor first"
)


UNSEEN = (
    "compile: the function writes in place to a tensor of shape {} that requires grad while gradients are switched off{}; a recorded program "
    "would not know what its gradient is. Write to its detach().clone(), or switch gradients on"
)


class Argument:
    """An input that is an argument of the call."""

    def __init__(self, position: int) -> None:
        self.position = position


class Captured:
    """An input that is a tensor from outside the function.

    Attributes:
        tensor: the tensor, read anew at each call.
        meta: its layout and dtype at capture.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.meta = rt.look(_S, tensor._id, LOOK_META) & ~0xFF00


class Drawn:
    """An input of random numbers.

    Attributes:
        draw: draws them.
        generator: what they come from.
    """

    def __init__(self, draw: Callable[[], Tensor], generator: random.Generator) -> None:
        self.draw, self.generator = draw, generator


def _line() -> str:
    # the innermost line outside of the package
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):  # type: ignore[redundant-expr]
        frame = frame.f_back  # type: ignore[assignment]
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def capturing() -> bool:
    """Whether this thread is capturing a function."""
    return recorder_of_thread() is not None


class Capture:
    """A function while it is run to be captured."""

    def __init__(self) -> None:
        self.values: dict[int, Value] = {}  # by id of the buffer that holds the value meanwhile
        self.inputs: list[Value] = []
        self.steps: list[Step] = []
        self._given: set[int] = set()  # buffers of inputs
        self.outside: dict[int, Tensor] = {}  # by id of a tensor's buffer from before, what stands for it
        self._held: list[Tensor] = []
        self._written: dict[int, tuple[int, int]] = {}  # storage and version that belong to a value
        self._constants: dict[tuple[int, int, int], Value] = {}
        self._guarded: set[Value] = set()
        self._generators: list[tuple[random.Generator, dict]] = []  # with their state before the capture

    # inputs

    def argument(self, t: Tensor) -> Tensor:
        """What stands for an argument in the captured run."""
        copy = np.ascontiguousarray(t._memory_array()).reshape(t.shape)
        twin = wrap(check_id(rt.new_leaf(_S, rt.layout(tuple(t.shape)), t.dtype.code)))
        twin._memory_array()[...] = copy
        rt.set_flag(_S, twin._id, structs.REQUIRES_GRAD, int(t.requires_grad))
        self._input(twin, Argument(len(self.inputs)))
        return twin

    def _input(self, t: Tensor, source: Any) -> None:
        meta = rt.look(_S, t._id, LOOK_META)
        value = Value(INPUT, meta >> 16, dtypes.ALL[meta & 0xFF], source=source)
        self.inputs.append(value)
        self._given.add(t._id)
        self._define(t._id, value)

    def _stand_in(self, k: int) -> int:
        # for a tensor that was there before the capture
        twin = self.outside.get(k)
        if twin is None:
            with unwatched():
                twin = self.outside[k] = wrap(check_id(rt.share_leaf(_S, k, 2)))
            flags = rt.look(_S, k, LOOK_META) >> 8
            rt.set_flag(_S, twin._id, structs.REQUIRES_GRAD, flags & structs.REQUIRES_GRAD)
            self._input(twin, Captured(handle(k)))
        return twin._id

    def drawn(self, draw: Callable[[], Tensor], generator: random.Generator) -> Tensor:
        """Random numbers, to be drawn again at each run."""
        if not any(generator is g for g, _ in self._generators):
            self._generators.append((generator, generator.get_state()))
        made = draw()
        self._input(made, Drawn(draw, generator))
        return made

    def rewind(self) -> None:
        """Have generators draw again what they drew during the capture."""
        for generator, state in self._generators:
            generator.set_state(state)

    # values

    def _define(self, k: int, value: Value) -> None:
        if k not in self.values:
            self._held.append(handle(k))
        self.values[k] = value
        rt.set_flag(_S, k, structs.TRACED, 1)
        self._note_version(k)

    def _note_version(self, k: int) -> None:
        if k in self.values:
            self._written[k] = self._version(k)

    def _version(self, k: int) -> tuple[int, int]:
        return rt.look(_S, k, LOOK_STORAGE), rt.look(_S, k, LOOK_VERSION)

    def value(self, k: int) -> Value:
        """The value that a buffer holds."""
        found = self.values.get(k)
        return self._constant(k) if found is None else found

    def _constant(self, k: int) -> Value:
        key = (k, *self._version(k))
        known = self._constants.get(key)
        if known is None:
            t = handle(k)
            self._held.append(t)
            known = self._constants[key] = constant_of(t._memory_array(), t.dtype)
        return known

    def as_laid(self, value: Value, layout: int) -> Value:
        """A value with its elements where a layout has them, copied if they are elsewhere."""
        if value.layout == layout:
            return value
        made = Value(COMPUTED, layout, value.dtype)
        self.steps.append(Instruction(clone, (value, None, None), made, line=_line()))
        return made

    # what entry points are given and answer

    def before(self, name: str, given: tuple) -> tuple:
        """Put what stands for tensors from outside in their place."""
        places = _OPERANDS.get(name)
        if places is None:
            if name != "adopt_leaf":
                self._check_change(name, given[0])
            return given
        if name == "record" and given[0] & structs.IN_PLACE:
            self._check_change(name, given[1])
        shared = name in ("share_leaf", "record_on")
        changed = list(given)
        for p in places:
            if changed[p]:
                changed[p] = self._operand(changed[p], shared)
        if name in _WITH_MORE and changed[-1]:
            count = ctypes.c_int64.from_address(changed[-1] + 8).value
            more = (ctypes.c_int64 * count).from_address(changed[-1] + 16)
            for p in range(count):
                more[p] = self._operand(more[p], shared)
        return tuple(changed)

    def _operand(self, k: int, shared: bool) -> int:
        if k in self.values:
            if not rt.look(_S, k, LOOK_TRACED):
                rt.set_flag(_S, k, structs.TRACED, 1)
            if not shared and not rt.look(_S, k, LOOK_STALE) and self._version(k) != self._written[k]:
                raise RuntimeError(ALIASED.format(list(self.values[k].shape)))
            return k
        # a view that has to follow its base is asked for again once it does
        return self._stand_in(k) if rt.look(_S, k, LOOK_OLDER) and not rt.look(_S, k, LOOK_STALE) else k

    def _check_change(self, name: str, k: int) -> None:
        # of what is not the function's own
        value = self.values.get(k)
        root = None if value is None else value.root()[0]
        source = None if root is None else root.source
        if root is None and rt.look(_S, k, LOOK_OLDER):
            source = Captured
        message = ""
        if name == "set_grad":
            message = BACKWARD if k in self._given or (root is None and source is not None) else ""
        elif isinstance(source, Argument):
            message = ARGUMENT
        elif source is not None and not isinstance(source, Drawn):
            message = MUTATED
        elif root is not None and self._hides_gradient(k):
            message = UNSEEN
        if message:
            line = _line()
            shape = layout_facts(rt.look(_S, k, LOOK_META) >> 16)[0] if root is None else root.shape
            raise RuntimeError(message.format(list(shape), f" ({line})" if line else ""))

    @staticmethod
    def _hides_gradient(k: int) -> bool:
        return bool(rt.look(_S, k, LOOK_META) >> 8 & structs.REQUIRES_GRAD and rt.mode_of_thread(_S))

    def after(self, name: str, given: tuple, k: int, index: int) -> None:
        """Make an instruction of a recorded row."""
        if name == "adopt_leaf":
            self._input(handle(k), Captured(handle(k)))
            return
        if name not in _OPERANDS:
            for written in given[: 2 if name == "take_memory" else 1]:
                self._note_version(written)
            return
        if name == "share_leaf" and given[0] in self.values:
            self._define(k, self.values[given[0]])
        elif index >= 0 and name != "share_leaf":
            row = read_row(index)
            if row.flags & structs.TRACED_ROW and row.out == k:
                self._add(row, k)

    def _add(self, row: Row, k: int) -> None:
        op = row.op
        if op is filled_op or op is function_op or op is output_op or (op is clone and k in self.values):
            return  # known from what else was recorded: fillings from the kernel's row, results of functions from their bodies
        if op is loop_op:
            raise RuntimeError(
                f"compile: a function that reads values, which vmap calls once a sample ({_line()}), cannot be recorded; compile the function "
                "that is mapped, not the one that maps it"
            )
        if op is lanes_op:
            self._define(k, self._once_a_sample(row, k))
            return
        ids = operands(row)
        fills = tuple(p for p in getattr(op, "fills", ()) if row.inputs[p])
        values = [None if not q or p in fills else self.value(q) for p, q in enumerate(ids)]
        if all(v is None or v.kind == CONSTANT for v in values) and not fills:
            t = handle(k)
            self._define(k, constant_of(t._memory_array(), t.dtype))
        elif op.kind == structs.VIEW:
            assert values[0] is not None
            self._define(k, self._shown(row, k, values[0]))
        elif op is copy_slices:
            whole, part = values[:2]
            assert whole is not None
            assert part is not None
            out = Value(COMPUTED, rt.layout(whole.shape), whole.dtype)
            place = (row.words[0], row.words[1])
            self.steps.append(Instruction(op, (whole, part, None), out, place=place, line=_line()))
            self._define(k, out)
        else:
            self._define(k, self._computed(row, values, fills))

    def _shown(self, row: Row, k: int, base: Value) -> Value:
        # where memory is as it was, the view is what it was; else its place among contiguous elements tells
        layout = row.meta >> 16
        if base.layout == row.metas[0] >> 16:
            distance = rt.look(_S, k, LOOK_DATA) - rt.look(_S, row.inputs[0], LOOK_DATA)
            return view_of(base, layout, distance // base.dtype.itemsize if 0 not in base.shape else 0)
        return view_of(self.as_laid(base, rt.layout(base.shape)), row.words[0], row.words[1])

    def _computed(self, row: Row, values: Sequence[Value | None], fills: tuple[int, ...]) -> Value:
        op = row.op
        ids = operands(row)
        out = Value(COMPUTED, rt.contiguous_of(_S, row.meta >> 16), dtypes.ALL[row.meta & 0xFF])
        if isinstance(op, Pointwise):
            self.steps.append(Instruction(op, tuple(values[:3]), out, line=_line()))
            return out
        if not isinstance(op, KernelOp):
            raise RuntimeError(f"compile: {op.name} ({_line()}) cannot be recorded")
        laid: list[Value | None] = []
        for p, v in enumerate(values):
            layout = rt.look(_S, ids[p], LOOK_META) >> 16 if ids[p] else 0
            if p in fills:
                filled = Value(COMPUTED, layout, dtype_of(ids[p]))
                self._define(ids[p], filled)
                laid.append(filled)
            else:
                laid.append(None if v is None else self.as_laid(v, layout))
        extra = tuple(v for v in laid[3:] if v is not None)
        self.steps.append(Instruction(op, tuple(laid[:3]), out, extra, tuple(row.words), fills, line=_line()))
        return out

    def _once_a_sample(self, row: Row, k: int) -> Value:
        # a kernel that vmap runs on each sample
        kernel, operands_of, batched, size = call_of(k)
        ids = iter(row.extra)
        values: list[Value | None] = []
        layouts, moves = [kernel.out], [layout_facts(kernel.out)[0].numel()]
        for p, (t, layout, b) in enumerate(zip(operands_of, kernel.layouts, batched, strict=True)):
            layouts.append(layout)
            if t is None:
                values.append(None)
                moves.append(0)
                continue
            q = next(ids)
            shape, strides, _ = layout_facts(layout)
            reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if shape.numel() else 0
            moves.append(reach if b else 0)
            if p in kernel.fills:
                filled = Value(COMPUTED, rt.layout((size, *shape)), t.dtype)
                self._define(q, filled)
                values.append(filled)
            else:
                whole = rt.strided_layout((size, *shape), (reach, *strides)) if b else layout
                values.append(self.as_laid(self.value(q), whole))
        out = Value(COMPUTED, rt.layout((size, *layout_facts(kernel.out)[0])), kernel.dtype)
        samples = Samples(size, tuple(layouts), tuple(moves))
        extra = tuple(v for v in values[3:] if v is not None)
        self.steps.append(
            Instruction(
                kernel.op,
                tuple(values[:3]),
                out,
                extra,
                tuple(kernel.words),
                tuple(kernel.fills),
                samples=samples,
                line=_line(),
            )
        )
        return out

    # what Python looks at

    def read(self, t: Tensor) -> bool:
        """Guard values that are read."""
        k = t._id
        if k not in self.values and rt.look(_S, k, LOOK_OLDER):
            if t._is_view():
                t._refresh()
            k = self._stand_in(t._id)
        value = self.values.get(k)
        if value is None:
            return False
        if value.kind != CONSTANT and value not in self._guarded and value.elements:
            self._guarded.add(value)
            expected = np.ascontiguousarray(t._memory_array()).tobytes()
            plain = self.as_laid(value, rt.contiguous_of(_S, value.layout))
            self.steps.append(Guard(plain, expected, _line()))
        return True

    def computed(self, function: Callable[..., np.ndarray], tensors: Sequence[Tensor]) -> Tensor:
        """Have each run call a NumPy function of values.

        Raises:
            RuntimeError: inside `vmap`, if the values differ between samples: it would be called for the first one only.
        """
        if differ(tensors):
            raise RuntimeError(
                f"compile: a NumPy function of values that differ between the samples of vmap ({_line()}) cannot be recorded; compile the "
                "function that is mapped, not the one that maps it"
            )
        arrays = [t._memory_array() for t in tensors]
        for array in arrays:
            array.flags.writeable = False
        made = from_copy(function(*arrays))
        values = []
        for t in tensors:
            k = t._id
            if k not in self.values and rt.look(_S, k, LOOK_OLDER):
                k = self._stand_in(k)
            values.append(self.value(k))
        if any(v.kind != CONSTANT for v in values):
            plain = tuple(self.as_laid(v, rt.contiguous_of(_S, v.layout)) for v in values)
            out = Value(COMPUTED, rt.layout(tuple(made.shape)), made.dtype)
            self.steps.append(Call(function, plain, out, _line()))
            self._define(made._id, out)
        return made

    # the run

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Capture what this thread computes within the block."""
        with _turn:
            rt.mark_older(_S, 1)
            try:
                with transforming(), noting(self), intercepting(self):
                    yield
            finally:
                rt.mark_older(_S, 0)

    def result(self, t: Tensor) -> Value:
        """The value of a tensor that the function returned."""
        t._refresh()
        k = t._id
        return self.value(self._operand(k, False))

    def code(self, outputs: Sequence[Value]) -> Code:
        """What was captured."""
        return Code(self.inputs, self.steps, list(outputs))


class StandingIn:
    """While a function runs, some tensors from outside are others: those that gradients are wanted of."""

    def __init__(self, others: dict[int, Tensor]) -> None:
        self._others = others

    def before(self, name: str, given: tuple) -> tuple:
        """Put the others in their place."""
        changed = list(given)
        for p in _OPERANDS.get(name, ()):
            if changed[p] in self._others:
                changed[p] = self._others[changed[p]]._id
        if name in _WITH_MORE and changed[-1]:
            count = ctypes.c_int64.from_address(changed[-1] + 8).value
            more = (ctypes.c_int64 * count).from_address(changed[-1] + 16)
            for p in range(count):
                if more[p] in self._others:
                    more[p] = self._others[more[p]]._id
        return tuple(changed)

    def after(self, name: str, given: tuple, answer: int, index: int) -> None:
        """Nothing."""


def standing_in(others: dict[int, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Within this block, tensors from outside, by the id of their buffer, are others in all that this thread computes."""
    return intercepting(StandingIn(others)) if others else contextlib.nullcontext()


class _DrawnBefore:
    # gives a function the random numbers that an earlier run of it drew
    def __init__(self, draws: Sequence[Tensor], outer: Recorder | None) -> None:
        self._draws, self._outer = iter(draws), outer

    def read(self, t: Tensor) -> bool:
        """What reading means to who records."""
        return self._outer is not None and self._outer.read(t)

    def drawn(self, draw: Callable[[], Tensor], generator: random.Generator) -> Tensor:
        """The next of the numbers."""
        return next(self._draws)

    def computed(self, function: Callable[..., np.ndarray], tensors: Sequence[Tensor]) -> Tensor:
        """What computing means to who records."""
        if self._outer is not None:
            return self._outer.computed(function, tensors)
        return from_copy(function(*(t._memory_array() for t in tensors)))


def drawing_again(draws: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
    """Within this block, random numbers are these."""
    return noting(_DrawnBefore(draws, recorder_of_thread())) if draws else contextlib.nullcontext()
