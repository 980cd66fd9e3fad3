"""Loops that run several pointwise operations at once: their source, from the scalar functions the operations are declared with."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from numba import types

from tapegrad.engine import kernels, streams, structs
from tapegrad.engine.loops import DTYPES, environment
from tapegrad.ops._pointwise import Pointwise
from tapegrad.program.values import Fusion, Instruction, Value

_kernels: dict[Loop, int] = {}


class Part(NamedTuple):
    """One operation of a loop.

    Attributes:
        op: the operation.
        dtype: code of the dtype it computes in.
        operands: numbers of values: first those that are read, then the results of the parts.
    """

    op: Pointwise
    dtype: int
    operands: tuple[int, ...]


class Loop(NamedTuple):
    """A loop over elements, within up to two others.

    Attributes:
        depth: how many loops.
        reads: of each value that is read, the dtype code and along which of the loops it moves.
        parts: the operations.
        writes: of each value that is written, its number and dtype code.
    """

    depth: int
    reads: tuple[tuple[int, tuple[bool, ...]], ...]
    parts: tuple[Part, ...]
    writes: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """Of the kernel, equal for equal loops."""
        parts = [(p.op.symbol, p.dtype, p.operands) for p in self.parts]
        return "fused_" + hashlib.sha256(repr((self.depth, self.reads, parts, self.writes)).encode()).hexdigest()[:16]

    def source(self) -> str:
        """The kernel's text.

        Its row's attributes name the buffers read, then those written, and give the extents of all loops but the first. Work items are
        elements, or rows of them if there are several loops.
        """
        reads, first = self.reads, len(self.reads)
        lines = [f"def {self.name}(S, row, start, stop):", "    s = state_at(S)", "    words = i64(row_at(row).attr)"]
        for k, dtype in enumerate([*(d for d, _ in reads), *(d for _, d in self.writes)]):
            address = f"buffer_at(s.buffers + words[{k + 1}] * BUFFER_SIZE).data"
            lines.append(f"    p{k} = {DTYPES[dtype][2]}({address})")
        word = first + len(self.writes)
        lines += [f"    n{d} = words[{word + d}]" for d in range(1, self.depth)]
        still = [k for k, (_, moves) in enumerate(reads) if not any(moves)]
        lines += [f"    t{k} = {_read(k, reads[k][0], '0')}" for k in still]
        indent = "    "
        if self.depth > 1:
            lines.append(f"{indent}for item in range(start, stop):")
            indent *= 2
            if self.depth > 2:
                lines += [f"{indent}outer = item // n1", f"{indent}middle = item - outer * n1"]
            lines += [f"{indent}b{k} = {self._start(reads[k][1])}" for k in range(first) if any(reads[k][1][:-1])]
            of_row = [k for k in range(first) if k not in still and not reads[k][1][-1]]
            lines += [f"{indent}t{k} = {_read(k, reads[k][0], f'b{k}')}" for k in of_row]
            lines += [f"{indent}out = item * n{self.depth - 1}", f"{indent}for i in range(n{self.depth - 1}):"]
        else:
            lines.append(f"{indent}for i in range(start, stop):")
        indent += "    "
        for k, (dtype, moves) in enumerate(reads):
            if moves[-1]:
                lines.append(f"{indent}t{k} = {_read(k, dtype, f'b{k} + i' if any(moves[:-1]) else 'i')}")
        for k, part in enumerate(self.parts):
            operands = ", ".join(f"t{o}" for o in part.operands)
            lines.append(f"{indent}t{first + k} = {_result(part, f'{_label(part)}({operands})')}")
        for k, (number, _) in enumerate(self.writes):
            lines.append(f"{indent}write{k}(p{first + k}, {'out + ' if self.depth > 1 else ''}i, t{number})")
        return "\n".join(lines) + "\n"

    def _start(self, moves: tuple[bool, ...]) -> str:
        # where a row of an operand begins
        inner = f" * n{self.depth - 1}" if moves[-1] else ""
        if self.depth == 2 or moves[:2] == (True, True):
            return f"item{inner}"
        return f"outer{inner}" if moves[0] else f"middle{inner}"

    def names(self) -> dict[str, Any]:
        """The global names of its text."""
        count = len(self.writes)
        names = environment(read=streams.reader(count))
        names |= {f"write{k}": streams.writer(count, k) for k in range(count)}
        names |= {name: getattr(types, name) for name, *_ in DTYPES if name != "bool"}
        return names | {_label(p): p.op.scalar(p.dtype) for p in self.parts}

    def kernel(self) -> int:
        """Address of its kernel, compiled or loaded if it is not."""
        if self not in _kernels:
            _kernels[self] = kernels.build_kernel(self.name, self.source(), self.names())
        return _kernels[self]

    def is_at_hand(self) -> bool:
        """Whether its kernel need not be compiled."""
        return self in _kernels or kernels.is_kept(self.name, self.source(), self.names())


def _read(number: int, dtype: int, index: str) -> str:
    text = f"read(p{number}, {index})"
    return f"{text} != 0" if DTYPES[dtype][0] == "bool" else text


def _result(part: Part, text: str) -> str:
    # as it would be read from memory
    name = DTYPES[part.dtype][0] if part.op.out is None else part.op.out.name
    return f"{text} != 0" if name == "bool" else f"{name}({text})"


def _label(part: Part) -> str:
    return f"{part.op.symbol}_{DTYPES[part.dtype][0]}"


def loop_of(fusion: Fusion) -> Loop:
    """The loop that computes some instructions."""
    numbers = {v: k for k, v in enumerate(fusion.reads)}
    reads = tuple((v.dtype.code, moves) for v, moves in zip(fusion.reads, fusion.moves, strict=True))
    parts = []
    for part in fusion.parts:
        operands = tuple(numbers[_within(v, numbers)] for v in part.inputs if v is not None)
        numbers[part.out] = len(numbers)
        parts.append(Part(part.op, _dtype(part), operands))  # type: ignore[arg-type]
    return Loop(len(fusion.extents), reads, tuple(parts), tuple((numbers[v], v.dtype.code) for v in fusion.writes))


def _within(value: Value, known: dict[Value, int]) -> Value:
    # a value, or what it shows all elements of in the same order
    return value if value in known else value.root()[0]


def _dtype(step: Instruction) -> int:
    # the dtype it computes in; a choice computes nothing with its first operand
    value = step.inputs[1 if step.op.kind == structs.SELECT else 0]
    assert value is not None
    return value.dtype.code
