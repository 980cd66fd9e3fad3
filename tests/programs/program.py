"""A program is a list of plain statements that can be printed and run in either library."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One statement, which assigns names that are new.

    Attributes:
        form: the right-hand side, or a statement without results, with ``{0}``, ``{1}`` … for operands.
        operands: names it reads.
        results: names it assigns.
        writes: whether it writes to its first operand in place.
        no_grad: whether it runs in a `no_grad` block.
    """

    form: str
    operands: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    writes: bool = False
    no_grad: bool = False

    def line(self) -> str:
        """The statement as Python."""
        text = self.form.format(*self.operands)
        return f"{', '.join(self.results)} = {text}" if self.results else text


Program = Sequence[Step]


def listing(program: Program) -> str:
    """The program as Python that can be run."""
    lines = ["import tapegrad as tg", ""]
    inside = False
    for step in program:
        if step.no_grad and not inside:
            lines.append("with tg.no_grad():")
        inside = step.no_grad
        lines.append("    " * inside + step.line())
    return "\n".join(lines)


@functools.lru_cache(4096)
def _compiled(line: str) -> CodeType:
    return compile(line, "<program>", "exec")


class Failure(NamedTuple):
    """An exception that a statement raised."""

    kind: str
    message: str


class Run:
    """A program under way in one library.

    Attributes:
        library: the module that programs call `tg`.
        names: what they have assigned.
    """

    def __init__(self, library: Any) -> None:
        self.library = library
        self.names: dict[str, Any] = {"tg": library}
        self._first_versions: dict[str, int] = {}

    def step(self, step: Step) -> Failure | None:
        """Run one statement; names it should have assigned stay free if it raises."""
        mode = self.library.no_grad() if step.no_grad else contextlib.nullcontext()
        try:
            with mode:
                exec(_compiled(step.line()), self.names)
        except Exception as error:
            return Failure(type(error).__name__, str(error))
        for name in step.results:
            if isinstance(self.names[name], self.library.Tensor):
                self._first_versions[name] = self.names[name]._version
        return None

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """The tensors that have names."""
        for name, value in self.names.items():
            if isinstance(value, self.library.Tensor):
                yield name, value

    def fact(self, name: str, fact: str) -> Any:
        """An attribute of a tensor, or the failure to read it; of versions, only what writes since it got its name added."""
        try:
            value = getattr(self.names[name], fact)
        except RuntimeError as error:
            return Failure("RuntimeError", str(error))
        if callable(value):
            value = value()
        return value - self._first_versions[name] if fact == "_version" else value
