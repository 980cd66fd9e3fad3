"""Programs for people: a table of what they do, and a graph for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tapegrad.program.capture import Argument, Captured
from tapegrad.program.program import Program
from tapegrad.program.values import CONSTANT, INPUT, VIEW, Call, Guard, Step, Value

_HEADINGS = ("row", "operation", "operands", "result", "shape", "dtype", "bytes", "line")
_MOST = 12  # characters of a constant


class Names:
    """Names of a program's values: arguments ``x0``, captured tensors ``w0``, random numbers ``r0``, constants, results ``%0``."""

    def __init__(self, program: Program) -> None:
        self._names: dict[Value, str] = {}
        counts = {"x": 0, "w": 0, "r": 0}
        for value in program.code.inputs:
            kind = {Argument: "x", Captured: "w"}.get(type(value.source), "r")
            self._names[value] = f"{kind}{counts[kind]}"
            counts[kind] += 1
        number = 0
        for step in program.code.steps:
            for value in step.results():
                self._names[value] = f"%{number}"
                number += 1

    def of(self, value: Value) -> str:
        """The name of a value; of a view, that of what it is a view of and its shape."""
        if value.kind == VIEW:
            root, offset = value.root()
            start = offset // value.dtype.itemsize
            return f"{self.of(root)}[{'x'.join(map(str, value.shape)) or '()'}{f' from {start}' if start else ''}]"
        if value.kind == CONSTANT and value.array is not None:
            text = str(value.array.reshape(-1)[0]) if value.array.size == 1 else ""
            return text if 0 < len(text) <= _MOST else f"const{list(value.shape)}"
        return self._names[value]


def _name(step: Step) -> str:
    if isinstance(step, Guard):
        return "guard"
    return step.name if isinstance(step, Call) else step.op.name


def _rows(program: Program) -> Iterator[Sequence[str]]:
    names = Names(program)
    for number, step in enumerate(program.code.steps):
        operands = ", ".join(names.of(v) for v in step.operands())
        if isinstance(step, Guard):
            facts = (str(list(step.value.shape)), step.value.dtype.name, str(len(step.expected)))
            yield (str(number), "guard", operands, f"= {_seen(step)}", *facts, step.line)
        else:
            results = list(step.results())
            shapes = " ".join(str(list(v.shape)) for v in results)
            size = sum(v.elements * v.dtype.itemsize for v in results)
            yield (
                str(number),
                _name(step),
                operands,
                " ".join(names.of(v) for v in results),
                shapes,
                step.out.dtype.name,
                str(size),
                step.line,
            )


def title(name: str, program: Program) -> str:
    """What a program is: its function, what it is given, and how often it ran."""
    names = Names(program)
    given = ", ".join(f"{names.of(v)}: {v.dtype.name}{list(v.shape)}" for v in program.code.inputs)
    return f"{name}({given}), {program.replays} replay{'s' if program.replays != 1 else ''}"


def table(name: str, program: Program) -> str:
    """A program of a function as a table, one line an instruction."""
    rows = [_HEADINGS, *_rows(program)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEADINGS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    names = Names(program)
    lines.append("returns " + ", ".join(names.of(v) for v in program.code.outputs))
    return "\n".join([title(name, program), *lines])


def _quoted(text: str) -> str:
    # as a label of the DOT language, where lines are parted by \n
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _seen(guard: Guard) -> str:
    # what a guard expects: the number, or how many there are
    found = np.frombuffer(guard.expected, guard.value.dtype.numpy)
    return str(found[0]) if found.size == 1 else f"{found.size} numbers"


def graph(programs: Sequence[tuple[str, Program]]) -> str:
    """Programs of functions, whose names are given, as a graph in the DOT language, each in a cluster of its own."""
    lines = ["digraph program {", "  node [shape=box, fontname=monospace];"]
    for k, (name, program) in enumerate(programs):
        lines += [f"  subgraph cluster{k} {{", f"    label={_quoted(title(name, program))};"]
        lines += [f"    {line}" for line in _nodes(program, f"p{k}_")]
        lines.append("  }")
    return "\n".join([*lines, "}"])


def _nodes(program: Program, prefix: str) -> Iterator[str]:
    names = Names(program)
    made: dict[Value, str] = {}

    def node(value: Value) -> Iterator[str]:
        root = value.root()[0]
        if root not in made:
            made[root] = f"{prefix}v{len(made)}"
            style = ", style=rounded" if root.kind == INPUT else ", style=dotted"
            yield f"{made[root]} [label={_quoted(f'{names.of(root)} {list(root.shape)}')}{style}];"

    for number, step in enumerate(program.code.steps):
        own = f"{prefix}s{number}"
        guard = isinstance(step, Guard)
        label = f"guard: {_seen(step)}" if isinstance(step, Guard) else f"{_name(step)} {list(step.out.shape)}"
        for value in step.operands():
            yield from node(value)
        for value in step.results():
            made[value] = own
        line = f"\n{step.line}" if step.line else ""
        yield f"{own} [label={_quoted(label + line)}{', shape=diamond' if guard else ''}];"
        for value in step.operands():
            yield f"{made[value.root()[0]]} -> {own};"
    for number, value in enumerate(program.code.outputs):
        yield f'{prefix}o{number} [label="result {number}", style=rounded];'
        yield f"{made[value.root()[0]]} -> {prefix}o{number};"
