"""The reverse sweep over tensors, one row after the other.

With `create_graph` every derivative is itself an operation on the tape, to be differentiated again. What such a sweep knows it
keeps to itself: any number may be under way, within each other and beside the one that compiled code runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from tapegrad.autograd.anomaly_mode import check_for_nan, explain, is_anomaly_check_nan_enabled, is_anomaly_enabled
from tapegrad.autograd.attached import attachment, run_after, run_before, run_hooks
from tapegrad.autograd.rows import (
    Row,
    RowOp,
    check_versions,
    grad_name_of,
    operand_places,
    operands,
    parts_of,
    read_row,
)
from tapegrad.autograd.watching import timer_of_thread
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_NODE, LOOK_PRODUCER
from tapegrad.tensor import Tensor

_S = rt.S
_RETAIN = structs.RETAIN_GRAD << 8


class Adjoints:
    """Adjoints by buffer id, and the rows still to be run, the last one first.

    Args:
        wanted: ids of results whose adjoints are kept.
        reach: ids of the buffers that may get one; None for all.
    """

    def __init__(self, wanted: set[int], reach: set[int] | None) -> None:
        self.of: dict[int, Tensor] = {}
        self._rows: list[int] = []
        self.leaves: list[int] = []
        self.kept: dict[int, Tensor] = {}
        self._wanted, self._reach = wanted, reach

    def add(self, k: int, part: Tensor) -> None:
        """Add to the adjoint of a buffer."""
        known = self.of.get(k)
        if known is not None:
            self.of[k] = known + part
            return
        self.of[k] = part
        producer = rt.look(_S, k, LOOK_NODE)
        if producer < 0:
            self.leaves.append(k)
        else:
            heapq.heappush(self._rows, -producer)

    def add_parts(self, row: Row, parts: Sequence[Tensor | None]) -> None:
        """Add what a row passes on to the adjoints of its operands."""
        for k, part in zip(operands(row), parts, strict=False):
            if part is not None and (self._reach is None or k in self._reach):
                self.add(k, part)

    def gradients(self, wanted: Sequence[Tensor] | None) -> dict[int, Tensor]:
        """Those of wanted tensors by id, of all leaves if that is None."""
        if wanted is None:
            return {k: self.of[k] for k in self.leaves}
        found = self.of | self.kept
        return {t._id: found[t._id] for t in wanted if t._id in found}

    def rows(self) -> Iterator[tuple[Row, Tensor]]:
        """Rows whose result has an adjoint, from the last to the first, with that adjoint."""
        while self._rows:
            row = read_row(-heapq.heappop(self._rows))
            g = self.of.pop(row.out)
            if row.attached:
                g = after_hooks(row.out, g)
            if row.meta & _RETAIN or row.out in self._wanted:
                self.kept[row.out] = g
            yield row, g


def after_hooks(k: int, g: Tensor) -> Tensor:
    """The adjoint of a buffer after its tensor's hooks."""
    attached = attachment(k)
    if attached is None or not (attached.hooks or attached.before):
        return g
    # a copy, since hooks may write to it and several operands may share theirs
    return run_hooks(attached, g.clone())


def hooked_parts(row: Row, g: Tensor, need: int, connected: bool) -> Sequence[Tensor | None]:
    """`parts_of` a row, between the hooks of its node."""
    timer = timer_of_thread()
    if timer is None:
        return _hooked_parts(row, g, need, connected)
    return timer.row(row, lambda: _hooked_parts(row, g, need, connected))


def _hooked_parts(row: Row, g: Tensor, need: int, connected: bool) -> Sequence[Tensor | None]:
    arrived = row.op.arrived(row, g) if isinstance(row.op, RowOp) else (g,)
    if connected and isinstance(row.op, RowOp):
        # copies, as for hooks; a sweep by compiled code makes them too
        arrived = [None if a is None else a.clone() for a in arrived]
    attached = attachment(row.out) if row.attached else None
    if attached is not None and attached.before:
        arrived = run_before(attached, arrived)
    if is_anomaly_enabled():
        parts = _watched_parts(row, arrived, need, connected)
    else:
        parts = parts_of(row, arrived, need, connected)
    if attached is None or not attached.after:
        return parts
    places = operand_places(row)
    changed = run_after(attached, [parts[p] if p < len(parts) else None for p in places], arrived)
    return [changed[places.index(p)] if p in places else None for p in range(max(places, default=-1) + 1)]


def _watched_parts(row: Row, arrived: Sequence[Tensor | None], need: int, connected: bool) -> Sequence[Tensor | None]:
    # under anomaly detection
    try:
        parts = parts_of(row, arrived, need, connected)
        if is_anomaly_check_nan_enabled():
            check_for_nan(grad_name_of(row.out), parts)
    except Exception:
        explain(grad_name_of(row.out), row.out)
        raise
    return parts


def free_attached(row: Row) -> None:
    """Free, as `free_saved` does, what pack hooks and the user's functions keep for a row."""
    attached = attachment(row.out) if row.attached else None
    if attached is None:
        return
    if isinstance(row.op, RowOp):
        row.op.free(row)
    if attached.packed:
        attached.packed = None
        recorded = rt.row(row.index)
        recorded["flags"] |= structs.FREED


def paths(roots: Sequence[Tensor], wanted: Sequence[Tensor]) -> set[int]:
    """Ids of the buffers through which gradients flow from roots to wanted tensors, and of these; others may be among them."""
    ids = np.array([t._id for t in wanted], np.int64)
    last = max(rt.look(_S, t._id, LOOK_PRODUCER) for t in roots)
    first = max(min(rt.look(_S, t._id, LOOK_PRODUCER) for t in wanted), 0)
    found = np.empty(max(last - first + 1, 0), np.int64)
    count = rt.find_paths(_S, ids.ctypes.data, ids.size, first, last, found.ctypes.data)
    return {*ids.tolist(), *found[:count].tolist()}


def _needed(row: Row, reach: set[int] | None) -> int:
    # the need mask of a row, less what a selective sweep does not ask for
    need = row.need
    if reach is not None:
        for position, k in enumerate(row.inputs):
            if need >> position & 1 and k not in reach:
                need &= ~(1 << position)
        if need & 8 and reach.isdisjoint(row.extra):
            need &= ~8
    return need


def starts_here(root: Tensor, count: int, leads_on: bool) -> bool:
    """Whether a sweep from `count` roots starts at this one, which may lead to nothing that is wanted.

    Hooks of a lone result run even then, and it retains its gradient.
    """
    return leads_on or (count == 1 and rt.look(_S, root._id, LOOK_NODE) >= 0)


def sweep_over_tensors(
    roots: Sequence[Tensor], starts: Sequence[Tensor], retain: bool, wanted: Sequence[Tensor] | None
) -> Adjoints:
    """Run the reverse sweep from roots with their adjoints, to the leaves, or to `wanted` tensors only.

    Returns:
        The adjoints of leaves in `of`, and in `kept` those of results that are wanted or keep them.
    """
    reach = None if wanted is None else paths(roots, wanted)
    adjoints = Adjoints({t._id for t in wanted or ()}, reach)
    for root, start in zip(roots, starts, strict=True):
        if starts_here(root, len(roots), reach is None or root._id in reach):
            adjoints.add(root._id, start)
    for row, g in adjoints.rows():
        need = _needed(row, reach)
        if need == 0:
            continue
        try:
            check_versions(row)
        except RuntimeError:
            if is_anomaly_enabled():
                explain(grad_name_of(row.out), row.out)
            raise
        adjoints.add_parts(row, hooked_parts(row, g, need, True))
        if not retain:
            rt.free_saved(_S, row.index)
            free_attached(row)
    return adjoints
