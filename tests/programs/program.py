"""A program is a list of plain statements; here it is printed, run in a library, and its outcome compared between two."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any, NamedTuple

import numpy as np

TOLERANCE = 1e-8
LARGEST = 1e3  # a tame value is no larger


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
    """A program under way in one library."""

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

    def fact(self, name: str, fact: str) -> Any:
        """An attribute of a tensor, or the failure to read it; of versions, only what writes since it got its name added."""
        try:
            value = getattr(self.names[name], fact)
        except RuntimeError as error:
            return Failure("RuntimeError", str(error))
        return value - self._first_versions[name] if fact == "_version" else value

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """The tensors that have names."""
        for name, value in self.names.items():
            if isinstance(value, self.library.Tensor):
                yield name, value


class Outside(Exception):
    """A program that is not for comparing: its values are not tame, or it meets a documented deviation."""


class Reference(Run):
    """A run in PyTorch that keeps to what both libraries must agree on."""

    def __init__(self, library: Any) -> None:
        super().__init__(library)
        # results whose memory PyTorch lays out otherwise or shares, kept alive so that their addresses stay theirs
        self._apart: list[Any] = []
        # what was written to in a no_grad block
        self._rewritten: list[Any] = []

    def step(self, step: Step) -> Failure | None:
        """Run one statement.

        Raises:
            Outside: if it, or its result, is not for comparing.
        """
        missing = [name for name in step.operands if name not in self.names]
        if missing:
            raise Outside(f"{missing[0]} is not defined")
        if step.writes:
            self._check_written(step)
        elif "grad(" in step.form or "inputs=" in step.form:
            self._check_places(step)
        before = {_storage(t) for _, t in self.tensors()}
        failure = super().step(step)
        if failure is not None and "its base or another view of its base has been modified inplace" in failure.message:
            raise Outside("one of several views used after a write to their base")
        if failure is None:
            for name in step.results:
                self._settle(name, before, "autograd.grad" in step.form)
            if step.writes:
                _check_tame(self.names[step.operands[0]])
            for _, t in self.tensors():
                if t._base is not None and t._base.requires_grad and _is_leaf(t):
                    raise Outside("a view that requires a gradient because its base does, without a way to it")
        return failure

    def is_apart(self, t: Any) -> bool:
        """Whether PyTorch lays out a tensor's memory otherwise, or shares it with another gradient."""
        return _storage(t) in map(_storage, self._apart)

    def _check_written(self, step: Step) -> None:
        if self.is_apart(self.names[step.operands[0]]):
            raise Outside("results of operands that are not contiguous lie otherwise in memory")
        target, *others = (self.names[name] for name in step.operands)
        if "dtype=" in step.form and any(_overlap(target, t) for t in others):
            raise Outside("elements that are read while they are written")
        if step.no_grad:
            self._rewritten.append(target)

    def _check_places(self, step: Step) -> None:
        rewritten = list(map(_storage, self._rewritten))
        if any(t._base is not None and _storage(t) in rewritten for t in (self.names[name] for name in step.operands)):
            raise Outside("a view to whose base PyTorch has given another place in the graph")

    def _settle(self, name: str, before: set[int], gradient: bool) -> None:
        value = self.names[name]
        if not isinstance(value, self.library.Tensor):
            return
        _check_tame(value)
        if _storage(value) in before and not gradient:
            return
        contiguous = value.is_contiguous()
        if not contiguous:
            leaf = value.is_leaf and value.requires_grad
            value = value.detach().contiguous().requires_grad_() if leaf else value.contiguous()
            self.names[name] = value
        if gradient or not contiguous:
            self._apart.append(value)


def _is_leaf(t: Any) -> bool:
    # a view that must not be used after its base was written to answers with an error
    try:
        return t.is_leaf
    except RuntimeError:
        raise Outside("one of several views is there after a write to their base") from None


def _storage(t: Any) -> int:
    # empty tensors share nothing
    return t.untyped_storage().data_ptr() if t.numel() else -id(t)


def _overlap(a: Any, b: Any) -> bool:
    return _storage(a) == _storage(b) and bool(_places(a) & _places(b))


def _places(t: Any) -> set[int]:
    # where in its storage the elements lie
    steps = (range(0, n * s, s) if s else (0,) for n, s in zip(t.shape, t.stride()))
    return {t.storage_offset() + sum(place) for place in itertools.product(*steps)}


def _check_tame(t: Any) -> None:
    if t.is_floating_point() and t.numel():
        largest = t.detach().abs().max().item()
        if not largest <= LARGEST:  # NaN is no larger and no smaller
            raise Outside("a value that is not tame")


class Disagreement(NamedTuple):
    """Where two runs part.

    Attributes:
        kind: what is wrong, without names and values: shrinking keeps it.
        text: what is wrong, for people.
    """

    kind: str
    text: str


def compare(program: Program, reference: Reference, run: Run, forgiving: bool = False) -> Disagreement | None:
    """Run a program in two libraries, statement by statement; where they part first.

    Args:
        program: the program.
        reference: a fresh run in PyTorch.
        run: a fresh run in the other library.
        forgiving: PyTorch keeps the old values of saved tensors, and the other library need not.

    Raises:
        Outside: if the program is not for comparing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, step in enumerate(program):
            expected, found = reference.step(step), run.step(step)
            if forgiving and expected is None and found is not None and WRITTEN_TO.match(found.message):
                raise Outside("a saved tensor was written to")
            parted = _outcomes(expected, found) or _values(step, reference, run)
            if parted:
                return Disagreement(parted.kind, f"step {number}, {step.line()}\n{parted.text}")
            if expected is not None and stops_half_way(expected):
                return _ends_alike(reference, run, FACTS)
        return _ends_alike(reference, run, (*FACTS, "grad"))


# what is compared of tensors beside their elements
FACTS = ("requires_grad", "is_leaf", "_version")


def stops_half_way(failure: Failure) -> bool:
    """Whether a sweep failed after it had begun: what it has freed, and added to gradients, is nobody's business."""
    return any(pattern.match(as_tapegrad(failure.message)) for pattern in HALF_WAY)


def _outcomes(expected: Failure | None, found: Failure | None) -> Disagreement | None:
    if expected is None or found is None:
        if expected is found:
            return None
        if any(pattern.search(failure.message) for pattern in BY_ONE for failure in (expected, found) if failure):
            raise Outside("what only one of the libraries refuses")
        side, failure = ("PyTorch", expected) if found is None else ("tapegrad", found)
        assert failure is not None
        words = " ".join(re.findall(r"[A-Za-z']+", failure.message)[:6])
        text = f"only {side} raised {failure.kind}: "
        return Disagreement(text + words, text + failure.message)
    text = f"PyTorch raised  {expected.kind}: {expected.message}\ntapegrad raised {found.kind}: {found.message}"
    if expected.kind != found.kind and not (found.kind == "IndexError" and "out of DATA bounds" in expected.message):
        return Disagreement(f"{found.kind} for {expected.kind}", text)
    wanted = as_tapegrad(expected.message)
    if WRITTEN_TO.match(wanted) and WRITTEN_TO.match(found.message):
        return None  # which of several saved tensors it names is open
    if any(pattern.match(wanted) for pattern in EXACT) and wanted != found.message:
        return Disagreement("message", text)
    return None


def as_tapegrad(message: str) -> str:
    """A message of PyTorch's as tapegrad must word it."""
    return message.replace("torch", "tapegrad")


# the beginnings of the messages that API.md gives word for word
EXACT = [
    re.compile(start)
    for start in (
        "Trying to backward through the graph a second time",
        "grad can be implicitly created only for scalar outputs",
        "element 0 of tensors does not require grad",
        "a leaf Variable that requires grad is being used",
        "a view of a leaf Variable that requires grad is being used",
        "one of the variables needed for gradient computation has been modified",
        "Only Tensors of floating point and complex dtype can require",
        "you can only change requires_grad flags of leaf variables",
        "Can't call numpy",
        "Mismatch in shape: grad_output",
        "One of the differentiated Tensors appears to not have been used",
        "gradients can be either Tensors or None",
    )
]
# Refusals by one library of what the other does rightly: writing to a view of one of several views, or to elements that are also
# read; and PyTorch's writes of masked values to elements that share memory, which it deprecates.
BY_ONE = [
    re.compile(start)
    for start in (
        "is the output of a function that returns multiple views",
        "some elements of the input tensor and the written-to tensor refer to a single memory location",
        "more than one element of the written-to tensor refers to a single memory location",
    )
]
WRITTEN_TO = EXACT[5]
HALF_WAY = [EXACT[0], WRITTEN_TO]


def _values(step: Step, reference: Run, run: Run) -> Disagreement | None:
    for name in (*step.results, *step.operands[: step.writes]):
        if name in reference.names:
            parted = _same(name, "value", reference.names[name], run.names[name])
            if parted:
                return parted
    return None


def _ends_alike(reference: Reference, run: Run, facts: Sequence[str]) -> Disagreement | None:
    for name, expected in reference.tensors():
        parted = _same(name, "value", expected, run.names[name])
        for fact in facts:
            if fact != "_version" or not reference.is_apart(expected):
                parted = parted or _same_fact(name, fact, reference.fact(name, fact), run.fact(name, fact))
        if parted:
            return Disagreement(f"at the end: {parted.kind}", f"at the end, {parted.text}")
    return None


def _same_fact(name: str, fact: str, expected: Any, found: Any) -> Disagreement | None:
    if isinstance(expected, Failure) or isinstance(found, Failure):
        return _outcomes(*(f if isinstance(f, Failure) else None for f in (expected, found)))
    if fact == "grad":
        return _same(f"{name}.grad", "gradient", expected, found)
    return None if expected == found else Disagreement(fact, f"{name}.{fact} is {found}, in PyTorch {expected}")


def _same(name: str, what: str, expected: Any, found: Any) -> Disagreement | None:
    if expected is None or found is None:
        if expected is found:
            return None
        return Disagreement(f"{what} is None", f"{name} is {found}, in PyTorch {expected}")
    a, b = (t.detach().numpy() for t in (expected, found))
    if a.shape != b.shape:
        return Disagreement(f"shape of {what}", f"{name} has shape {b.shape}, in PyTorch {a.shape}")
    if a.dtype != b.dtype:
        return Disagreement(f"dtype of {what}", f"{name} has dtype {b.dtype}, in PyTorch {a.dtype}")
    if not a.size or np.array_equal(a, b):
        return None
    finite = np.isfinite(a)
    scale = max(1.0, np.abs(a[finite]).max(initial=0))
    if not np.allclose(a, b, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
        return Disagreement(what, f"{name} is\n{b}\nin PyTorch\n{a}")
    return None
