"""What a captured function is made of: values, and the instructions that compute them, each value by one of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad import dtypes
from tapegrad.engine.runtime import rt
from tapegrad.metadata import layout_facts
from tapegrad.ops._rule import Op

_numbers = itertools.count()

# what a value is: given at each call, known once and for all, computed by an instruction, or a view of another value
INPUT, CONSTANT, COMPUTED, VIEW = "input", "constant", "computed", "view"


@functools.cache
def _sizes(layout: int) -> tuple[int, int]:
    # how many elements there are, and how many places in memory from the first to the last
    shape, strides, _ = layout_facts(layout)
    return math.prod(shape), 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


class Value:
    """One value of a program.

    Attributes:
        kind: INPUT, CONSTANT, COMPUTED or VIEW.
        layout: id of its layout.
        dtype: of its elements.
        base: of a view, the value it shows elements of.
        offset: of a view, its first element, counted from the first of `base`.
        array: of a constant, its elements in row-major order.
        source: of an input, where it is got from at a call.
    """

    __slots__ = ("array", "base", "dtype", "kind", "layout", "number", "offset", "source")

    def __init__(
        self,
        kind: str,
        layout: int,
        dtype: dtypes.dtype,
        base: Value | None = None,
        offset: int = 0,
        array: np.ndarray | None = None,
        source: Any = None,
    ) -> None:
        self.kind, self.layout, self.dtype = kind, layout, dtype
        self.base, self.offset, self.array, self.source = base, offset, array, source
        self.number = next(_numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents."""
        return layout_facts(self.layout)[0]

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        return layout_facts(self.layout)[2]

    @property
    def elements(self) -> int:
        """How many there are."""
        return _sizes(self.layout)[0]

    def nbytes(self) -> int:
        """Bytes of memory from the first element to the last."""
        return _sizes(self.layout)[1] * self.dtype.itemsize

    def root(self) -> tuple[Value, int]:
        """The value whose memory this one lies in, and how many bytes from its start."""
        value, offset = self, 0
        while value.base is not None:
            offset += value.offset * value.dtype.itemsize
            value = value.base
        return value, offset


def constant_of(array: np.ndarray, dtype: dtypes.dtype) -> Value:
    """A constant with a copy of the elements of an array."""
    kept = np.array(array, order="C")
    return Value(CONSTANT, rt.layout(kept.shape), dtype, array=kept)


def view_of(base: Value, layout: int, offset: int) -> Value:
    """A value that shows elements of another one; that one if it would show the same in the same way."""
    while base.base is not None and (layout, offset) != (base.layout, 0):
        offset += base.offset
        base = base.base
    if layout == base.layout and offset == 0:
        return base
    return Value(VIEW, layout, base.dtype, base=base, offset=offset)


class Samples(NamedTuple):
    """How a kernel runs once a sample.

    Attributes:
        size: number of samples.
        out: layout of one sample's result.
        layouts: of one sample's operands, the three inputs first, 0 where absent.
        batched: which operands have a sample each, along their first dim; others are the same for all.
    """

    size: int
    out: int
    layouts: tuple[int, ...]
    batched: tuple[bool, ...]


@dataclasses.dataclass(eq=False)
class Instruction:
    """One operation of a program.

    Attributes:
        op: the operation.
        inputs: up to three operands, None where absent.
        out: the result.
        extra: further operands.
        words: attributes of an op with a kernel of its own: work items, work of one, and the op's own.
        fills: positions of `inputs` that the kernel fills beside its result.
        place: of a write to a part of a value, the layout and offset of that part; the operands are the whole and the part.
        samples: of an op that runs once a sample, how.
        line: of the source, where known.
    """

    op: Op
    inputs: tuple[Value | None, ...]
    out: Value
    extra: tuple[Value, ...] = ()
    words: tuple[int, ...] = ()
    fills: tuple[int, ...] = ()
    place: tuple[int, int] | None = None
    samples: Samples | None = None
    line: str = ""

    def __post_init__(self) -> None:
        # passes ask many times
        read: list[Value] = []
        filled = [self.out]
        for position, value in enumerate(self.inputs):
            if value is not None:
                (filled if position in self.fills else read).append(value)
        self._operands, self._results = (*read, *self.extra), tuple(filled)

    def operands(self) -> tuple[Value, ...]:
        """The values it reads."""
        return self._operands

    def results(self) -> tuple[Value, ...]:
        """The values it computes."""
        return self._results

    def over(self, values: dict[Value, Value]) -> Instruction:
        """The same instruction with some operands replaced."""
        swap = {v: values[v] for v in self._operands if v in values} if values else values
        if not swap:
            return self
        inputs = tuple(v if v is None or p in self.fills else swap.get(v, v) for p, v in enumerate(self.inputs))
        return dataclasses.replace(self, inputs=inputs, extra=tuple(swap.get(v, v) for v in self.extra))


@dataclasses.dataclass(eq=False)
class Guard:
    """A value that Python looked at: a run goes on only while it is what it was then.

    Attributes:
        value: the value, contiguous.
        expected: its bytes.
        line: of the source that looked at it.
    """

    value: Value
    expected: bytes
    line: str = ""

    def operands(self) -> tuple[Value, ...]:
        """The value it reads."""
        return (self.value,)

    def results(self) -> tuple[Value, ...]:
        """Nothing."""
        return ()

    def over(self, values: dict[Value, Value]) -> Guard:
        """The same guard on a value that replaces its own."""
        return dataclasses.replace(self, value=values[self.value]) if self.value in values else self


@dataclasses.dataclass(eq=False)
class Call:
    """A NumPy function of values that no kernel computes, such as the order of elements.

    Attributes:
        function: of the operands' elements as arrays, to those of the result.
        inputs: the operands, contiguous.
        out: the result.
        line: of the source, where known.
    """

    function: Callable
    inputs: tuple[Value, ...]
    out: Value
    line: str = ""

    @property
    def name(self) -> str:
        """What to call it."""
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        return function.__name__.strip("_<>")

    def operands(self) -> tuple[Value, ...]:
        """The values it reads."""
        return self.inputs

    def results(self) -> tuple[Value, ...]:
        """The value it computes."""
        return (self.out,)

    def over(self, values: dict[Value, Value]) -> Call:
        """The same call with some operands replaced."""
        return dataclasses.replace(self, inputs=tuple(values.get(v, v) for v in self.inputs))


@dataclasses.dataclass(eq=False)
class Fusion:
    """Pointwise instructions over equally many elements, run as one loop.

    Attributes:
        parts: the instructions, in order.
        reads: the values they need from elsewhere.
        writes: those of their results that others need.
        extents: of the loop and those around it, up to three.
        moves: of each value read, along which of them it moves from element to element.
    """

    parts: Sequence[Instruction]
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    extents: tuple[int, ...]
    moves: Sequence[tuple[bool, ...]]

    @property
    def out(self) -> Value:
        """The first of the results."""
        return self.writes[0]

    @property
    def name(self) -> str:
        """Of its operations."""
        return "+".join(p.op.name for p in self.parts)

    @property
    def line(self) -> str:
        """Where the last one comes from."""
        return self.parts[-1].line

    def work(self) -> int:
        """What all elements cost, in quarter nanoseconds."""
        return self.out.elements * sum(int(rt.ops[p.op.code]["cost"]) for p in self.parts)

    def operands(self) -> tuple[Value, ...]:
        """The values it reads."""
        return self.reads

    def results(self) -> tuple[Value, ...]:
        """The values it computes."""
        return self.writes


Step = Instruction | Guard | Call


@dataclasses.dataclass
class Code:
    """A captured function: what it is given, what it does, what comes out.

    Attributes:
        inputs: values given at each call, in order.
        steps: instructions, guards and calls, in order.
        outputs: the results, some of which may be inputs or constants.
    """

    inputs: Sequence[Value]
    steps: list[Step]
    outputs: list[Value]
