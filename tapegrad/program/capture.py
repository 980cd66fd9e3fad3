"""Capturing a function: it runs once, eagerly, and what it records on the way becomes instructions over values.

Only its arguments, tensors that were there before, and random numbers can differ between calls; all else is constant. Every result of
an operation is a value of its own: a write in place makes a new value, as it does on the tape.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes, errors, random
from tapegrad.autograd.function import function_op, output_op
from tapegrad.autograd.rows import Row, dtype_of, handle, operands, read_row
from tapegrad.autograd.tracing import Draw, noting, recorder_of_thread, transforming
from tapegrad.autograd.watching import intercepting, source_line, unwatched
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
from tapegrad.func._computing import computed_op
from tapegrad.metadata import layout_facts
from tapegrad.ops._kernel import KernelOp, filled_op
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._write import copy_slices
from tapegrad.ops.convert import clone
from tapegrad.program.stand_ins import OPERANDS, owner_of, with_operands
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
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S

# one function is captured at a time: what was there before is marked on the tape
_turn = threading.RLock()


FACTS = ~0xFF00 | structs.REQUIRES_GRAD << 8  # of META: layout, dtype, and whether it requires grad


class Argument:
    """An input that is an argument of the call."""

    def __init__(self, position: int) -> None:
        self.position = position


class Captured:
    """An input that is a tensor from outside the function.

    Attributes:
        tensor: the tensor, read anew at each call.
        meta: its layout, dtype and whether it requires grad, at capture.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.meta = rt.look(_S, tensor._id, LOOK_META) & FACTS


class Drawn:
    """An input of random numbers.

    Attributes:
        draw: draws them.
        generator: what they come from.
    """

    def __init__(self, draw: Callable[[], Tensor], generator: random.Generator) -> None:
        self.draw, self.generator = draw, generator


def _where() -> str:
    # for messages
    line = source_line()
    return f" ({line})" if line else ""


def capturing() -> bool:
    """Whether this thread is capturing a function."""
    return recorder_of_thread() is not None


class TracedOutside(Exception):
    """The function refers to a tensor that a transformation around it traces."""


class Capture:
    """A function while it is run to be captured.

    Args:
        inside: whether transformations are under way around it.
    """

    def __init__(self, inside: bool = False) -> None:
        self._inside = inside
        self.values: dict[int, Value] = {}  # by id of the buffer that holds the value meanwhile
        self.inputs: list[Value] = []
        self.steps: list[Step] = []
        self._given: set[int] = set()  # buffers of inputs
        self.outside: dict[int, Tensor] = {}  # by id of a tensor's buffer from before, what stands for it
        self._blind: set[int] = set()  # views, taken while gradients were switched off, of what carries one
        self._held: list[Tensor] = []
        self._written: dict[int, tuple[int, int]] = {}  # storage and version that belong to a value
        self._constants: dict[tuple[int, int, int], Value] = {}
        self._guarded: set[Value] = set()
        self._generators: list[tuple[random.Generator, dict]] = []  # with their state before the capture
        self._seeded: list[random.Generator] = []
        self._apart: dict[int, set[int]] = {}  # by storage, those over the same memory that count writes for themselves
        self._overwritten: set[int] = set()  # storages whose memory was written to through another one
        self._kept: list[tuple[Tensor, tuple[int, int], bytes]] = []  # tensors from outside as they were before

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
        if isinstance(source, Captured):
            self._kept.append((t, self._version(t._id), t._memory_array().tobytes()))

    def _stand_in(self, k: int) -> int:
        # for a tensor that was there before the capture
        twin = self.outside.get(k)
        if twin is None:
            if self._inside and rt.look(_S, k, LOOK_TRACED):
                raise TracedOutside
            with unwatched():
                twin = self.outside[k] = wrap(check_id(rt.share_leaf(_S, k, 2)))
            flags = rt.look(_S, k, LOOK_META) >> 8
            rt.set_flag(_S, twin._id, structs.REQUIRES_GRAD, flags & structs.REQUIRES_GRAD)
            self._input(twin, Captured(owner_of(k)))
        return twin._id

    def drawn(self, draw: Draw, shape: tuple[int, ...], generator: random.Generator, samples: int = 0) -> Tensor:
        """Random numbers, to be drawn again at each run.

        Raises:
            RuntimeError: if the function has set the generator's state, which a run does not repeat.
        """
        self.check_not_seeded(generator)
        if not any(generator is g for g, _ in self._generators):
            self._generators.append((generator, generator.get_state()))
        source = Drawn(lambda: draw(shape), generator)
        made = source.draw()
        self._input(made, source)
        return made

    def check_not_seeded(self, generator: random.Generator) -> None:
        """Refuse to draw from a generator whose state the function has set.

        Raises:
            RuntimeError: if it has.
        """
        if any(generator is g for g in self._seeded):
            raise RuntimeError(errors.COMPILE_SEEDED.format(_where()))

    def rebound(self, target: Tensor, value: Tensor) -> None:
        """Refuse an assignment to `.data` that depends on inputs.

        Raises:
            RuntimeError: if it does.
        """
        if target._id in self.values or value._id in self.values:
            raise RuntimeError(errors.COMPILE_DATA.format(list(target.shape), _where()))

    def seeded(self, generator: random.Generator) -> None:
        """Note that the function sets a generator's state."""
        self._seeded.append(generator)

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

    def _note_apart(self, k: int, twin: int) -> None:
        storages = {rt.look(_S, q, LOOK_STORAGE) for q in (k, twin)}
        whole = storages.union(*(self._apart.get(s, ()) for s in storages))
        for storage in whole:
            self._apart[storage] = whole

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
        self.steps.append(Instruction(clone, (value, None, None), made, line=source_line()))
        return made

    # what entry points are given and answer

    def before(self, name: str, given: tuple) -> tuple:
        """Put what stands for tensors from outside in their place."""
        if name not in OPERANDS:
            if name == "move_grad":
                self._check_view(*given)
            elif name != "adopt_leaf":
                self._check_change(name, given[0])
            return given
        if name == "record" and given[0] & structs.IN_PLACE:
            self._check_change(name, given[1])
        # a write to a part begins with the old value of the whole
        shared = name == "record_on" or (name == "share_leaf" and given[1] == 2)
        return with_operands(name, given, lambda k: self._operand(k, shared))

    def _operand(self, k: int, shared: bool) -> int:
        if k in self.values:
            if not rt.look(_S, k, LOOK_TRACED):
                rt.set_flag(_S, k, structs.TRACED, 1)
            lost = self._overwritten and rt.look(_S, k, LOOK_STORAGE) in self._overwritten
            if not shared and not rt.look(_S, k, LOOK_STALE) and (lost or self._version(k) != self._written[k]):
                raise RuntimeError(errors.COMPILE_ALIASED.format(list(self.values[k].shape), _where()))
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
            message = errors.COMPILE_BACKWARD if k in self._given or (root is None and source is not None) else ""
        elif isinstance(source, Argument):
            message = errors.COMPILE_ARGUMENT
        elif source is not None and not isinstance(source, Drawn):
            message = errors.COMPILE_MUTATED
        elif root is not None and self._hides_gradient(k):
            message = errors.COMPILE_UNSEEN
        if message:
            shape = layout_facts(rt.look(_S, k, LOOK_META) >> 16)[0] if root is None else root.shape
            raise RuntimeError(message.format(list(shape), _where()))
        if name != "set_grad":
            storage = rt.look(_S, k, LOOK_STORAGE)
            self._overwritten |= self._apart.get(storage, set()) - {storage}

    def _check_view(self, old: int, new: int) -> None:
        if old in self._blind and self._requires_grad(new):
            shape = layout_facts(rt.look(_S, new, LOOK_META) >> 16)[0]
            raise RuntimeError(errors.COMPILE_LATE.format(list(shape), _where()))

    def _hides_gradient(self, k: int) -> bool:
        # whether a write to a buffer would pass a gradient by that the memory's owner carries
        return k in self._blind or bool(self._requires_grad(k) and rt.mode_of_thread(_S))

    @staticmethod
    def _requires_grad(k: int) -> bool:
        return bool(rt.look(_S, k, LOOK_META) >> 8 & structs.REQUIRES_GRAD)

    def after(self, name: str, given: tuple, k: int, index: int) -> None:
        """Make an instruction of a recorded row."""
        if name == "adopt_leaf":
            self._input(handle(k), Captured(handle(k)))
            return
        if name not in OPERANDS:
            for written in given[: 2 if name == "take_memory" else 1]:
                self._note_version(written)
            return
        if name == "record_view" and self._hides_gradient(given[1]):
            self._blind.add(k)
        if name == "share_leaf" and given[0] in self.values:
            self._define(k, self.values[given[0]])
            if given[1] == 1:
                self._note_apart(given[0], k)
        elif index >= 0 and name != "share_leaf":
            row = read_row(index)
            if row.flags & structs.TRACED_ROW and row.out == k:
                self._add(row, k)

    def _add(self, row: Row, k: int) -> None:
        op = row.op
        if op in (filled_op, function_op, output_op, computed_op) or (op is clone and k in self.values):
            # known from what else is recorded: the kernel's row, the functions' bodies, the call for all samples
            return
        if op is lanes_op:
            self._define(k, self._of_samples(call_of(k)))
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
            self.steps.append(Instruction(op, (whole, part, None), out, place=place, line=source_line()))
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
            self.steps.append(Instruction(op, tuple(values[:3]), out, line=source_line()))
            return out
        if not isinstance(op, KernelOp):
            raise RuntimeError(f"compile: {op.name} ({source_line()}) cannot be recorded")
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
        self.steps.append(Instruction(op, tuple(laid[:3]), out, extra, tuple(row.words), fills, line=source_line()))
        return out

    def _of_samples(self, call: Any) -> Value:
        # an operation that vmap runs once a sample
        kernel, tensors, batched, size = call
        values: list[Value | None] = []
        for p, (t, layout, several) in enumerate(zip(tensors, kernel.layouts, batched, strict=True)):
            if t is None:
                values.append(None)
                continue
            whole = _layout_of_all(layout, size) if several else layout
            if p in kernel.fills:
                filled = Value(COMPUTED, whole, t.dtype)
                self._define(t._id, filled)
                values.append(filled)
            else:
                values.append(self.as_laid(self.value(self._given_for(t._id)), whole))
        values += [None] * (3 - len(values))
        out = Value(COMPUTED, _layout_of_all(kernel.out, size), kernel.dtype)
        extra = tuple(v for v in values[3:] if v is not None)
        samples = Samples(size, kernel.out, tuple(kernel.layouts), tuple(batched))
        words, fills = tuple(kernel.words), tuple(kernel.fills)
        self.steps.append(
            Instruction(kernel.op, tuple(values[:3]), out, extra, words, fills, None, samples, source_line())
        )
        return out

    def _given_for(self, k: int) -> int:
        # a buffer, or what stands for it
        if k in self.values or not rt.look(_S, k, LOOK_OLDER):
            return k
        return self._stand_in(k)

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
            self.steps.append(Guard(plain, expected, source_line()))
        return True

    def computed(self, function: Callable[..., np.ndarray], tensors: Sequence[Tensor]) -> Tensor:
        """Have each run call a NumPy function of values."""
        arrays = [t._memory_array() for t in tensors]
        for array in arrays:
            array.flags.writeable = False
        made = from_copy(function(*arrays))
        values = []
        for t in tensors:
            values.append(self.value(self._given_for(t._id)))
        if any(v.kind != CONSTANT for v in values):
            plain = tuple(self.as_laid(v, rt.contiguous_of(_S, v.layout)) for v in values)
            out = Value(COMPUTED, rt.layout(tuple(made.shape)), made.dtype)
            self.steps.append(Call(function, plain, out, source_line()))
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

    def check_unchanged(self) -> None:
        """Refuse a function that wrote to tensors from outside where no operation shows it, such as through a NumPy array.

        Raises:
            RuntimeError: if it did.
        """
        for t, version, before in self._kept:
            # an operation of another thread is not the function's
            if self._version(t._id) == version and t._memory_array().tobytes() != before:
                raise RuntimeError(errors.COMPILE_MUTATED.format(list(t.shape), ""))

    def keeps(self, value: Any) -> bool:
        """Whether something holds a tensor that depends on inputs."""
        if isinstance(value, Tensor):
            found = self.values.get(value._id)
            return found is not None and found.root()[0].kind != CONSTANT
        return isinstance(value, tuple) and any(map(self.keeps, value))

    def result(self, t: Tensor) -> Value:
        """The value of a tensor that the function returned."""
        t._refresh()
        k = t._id
        return self.value(self._operand(k, False))

    def code(self, outputs: Sequence[Value]) -> Code:
        """What was captured."""
        return Code(self.inputs, self.steps, list(outputs))


def _layout_of_all(layout: int, size: int) -> int:
    # samples with a layout, one behind the other
    shape, strides, contiguous = layout_facts(layout)
    if contiguous:
        return rt.layout((size, *shape))
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return rt.strided_layout((size, *shape), (reach, *strides))
