"""Tracing: what a function computes from marked inputs is recorded, whatever the grad mode, to be run again otherwise.

Forward mode runs a trace on tangents, `vmap` on batches. A traced row keeps its operands; the mark ends with the transformation.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from tapegrad import random, tensor
from tapegrad.autograd.rows import Row, handle, modified, operands, read_row
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META, LOOK_PRODUCER, LOOK_TRACED
from tapegrad.metadata import layout_facts
from tapegrad.ops._kernel import let_go_of_filled
from tapegrad.ops._view import as_strided_op
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S
_lock = threading.Lock()
_local = threading.local()
_open = 0


@contextlib.contextmanager
def transforming() -> Iterator[None]:
    """A transformation is under way: operations on traced tensors are recorded."""
    global _open
    with _lock:
        _open += 1
        rt.state["trace_mask"] = structs.TRACED
    _local.depth = depth() + 1
    try:
        yield
    finally:
        _local.depth -= 1
        with _lock:
            _open -= 1
            if not _open:
                rt.state["trace_mask"] = 0
        if not depth():
            let_go_of_filled()


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Operations are recorded, also where the caller switched gradients off or is in inference mode."""
    before = rt.set_mode(_S, 0)
    try:
        yield
    finally:
        rt.set_mode(_S, before)


def under_way() -> bool:
    """Whether a thread is in a transformation, or records a program."""
    return _open > 0 or tensor.recorders > 0


def depth() -> int:
    """How many transformations this thread is in."""
    return getattr(_local, "depth", 0)


# draws a tensor of random numbers of a shape
Draw = Callable[[tuple[int, ...]], Tensor]


class Recorder(Protocol):
    """Notes what a function that is recorded into a program reads and draws."""

    def read(self, t: Tensor) -> bool:
        """The values of a tensor are read; whether they are not the function's own to change."""

    def drawn(self, draw: Draw, shape: tuple[int, ...], generator: random.Generator, samples: int = 0) -> Tensor:
        """A tensor of random numbers, to be drawn again at each run; its first dim is that of the samples of `vmap` if there are any."""

    def rebound(self, target: Tensor, value: Tensor) -> None:
        """The memory of a tensor is about to be replaced by that of another."""

    def seeded(self, generator: random.Generator) -> None:
        """The state of a generator is about to be set."""

    def computed(self, function: Callable[..., np.ndarray], tensors: Sequence[Tensor]) -> Tensor:
        """What a NumPy function makes of values, to be called again at each run."""


@contextlib.contextmanager
def noting(recorder: Recorder) -> Iterator[None]:
    """Have a recorder told what this thread reads and draws."""
    before = recorder_of_thread()
    _local.recorder = recorder
    with _lock:
        tensor.recorders += 1
    try:
        yield
    finally:
        _local.recorder = before
        with _lock:
            tensor.recorders -= 1


def recorder_of_thread() -> Recorder | None:
    """The recorder of the function that this thread records into a program."""
    return getattr(_local, "recorder", None)


def is_traced(t: Tensor) -> bool:
    """Whether a tensor depends on a traced input."""
    return bool(rt.look(_S, t._id, LOOK_TRACED)) and _open > 0


def alias(t: Tensor) -> Tensor:
    """The same elements under another id, at the same place in the graph."""
    t._refresh()
    layout = rt.look(_S, t._id, LOOK_META) >> 16
    contiguous = rt.layout(tuple(layout_facts(layout)[0]))
    k = check_id(rt.record_view(_S, as_strided_op.code, t._id, layout, 0, contiguous, 0))
    rt.set_flag(_S, k & ~structs.TRACKED_VIEW, structs.IS_VIEW, 0)
    return wrap(k & ~structs.TRACKED_VIEW)


def bare(t: Tensor) -> Tensor:
    """The same elements, of which graph and trace know nothing."""
    return wrap(check_id(rt.share_leaf(_S, t._id, 2)))


def mark(t: Tensor) -> Tensor:
    """Trace what is computed from a tensor; returns it."""
    rt.set_flag(_S, t._id, structs.TRACED, 1)
    return t


def unmark(t: Tensor) -> Tensor:
    """Do not trace what is computed from a tensor; returns it."""
    rt.set_flag(_S, t._id, structs.TRACED, 0)
    return t


def rows_between(outputs: Iterable[int], inputs: Any) -> list[Row]:
    """The traced rows that outputs were computed by from inputs, in order; both given as ids of buffers.

    Rows that do not depend on the inputs are among them.
    """
    found: dict[int, Row] = {}
    waiting = [k for k in outputs if k not in inputs]
    while waiting:
        k = waiting.pop()
        index = rt.look(_S, k, LOOK_PRODUCER)
        if index < 0 or index in found or not rt.look(_S, k, LOOK_TRACED):
            continue
        row = read_row(index)
        if not row.flags & structs.TRACED_ROW:
            continue
        found[index] = row
        waiting += [q for q in operands(row) if q and q not in inputs]
    return [found[index] for index in sorted(found)]


def kept_values(row: Row) -> list[Tensor | None]:
    """The three operands and the result of a traced row, at their places in the graph."""
    return [handle(k) if k else None for k in (*row.inputs, row.out)]


def check_kept(row: Row, positions: Iterable[int]) -> None:
    """Refuse a traced row some of whose kept values were written to since.

    Raises:
        RuntimeError: as in backward.
    """
    if not row.stale:
        return
    for position in positions:
        if row.stale >> position & 1:
            raise RuntimeError(modified(row.index, position))
