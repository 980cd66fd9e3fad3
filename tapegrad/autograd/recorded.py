"""The reverse sweep over tensors: every derivative is itself an operation on the tape, to be differentiated again."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from tapegrad.autograd.anomaly_mode import check_for_nan, explain, is_anomaly_check_nan_enabled, is_anomaly_enabled
from tapegrad.autograd.attached import attachment, run_after, run_hooks
from tapegrad.autograd.rows import Row, RowOp, check_versions, operand_places, operands, parts_of, read_row
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_NODE
from tapegrad.tensor import Tensor

_S = rt.S


_KEEP = (structs.CAPTURE | structs.RETAIN_GRAD) << 8


class Adjoints:
    """Adjoints by buffer id, and the rows still to be run, the last one first."""

    def __init__(self) -> None:
        self.of: dict[int, Tensor] = {}
        self._rows: list[int] = []
        self.leaves: list[int] = []
        self.kept: dict[int, Tensor] = {}

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
            if part is not None:
                self.add(k, part)

    def rows(self) -> Iterator[tuple[Row, Tensor]]:
        """Rows whose result has an adjoint, from the last to the first, with that adjoint."""
        while self._rows:
            row = read_row(-heapq.heappop(self._rows))
            g = self.of.pop(row.out)
            if row.attached:
                g = run_hooks(attachment(row.out), g)  # type: ignore[arg-type]
            if row.meta & _KEEP:
                self.kept[row.out] = g
            yield row, g


def hooked_parts(row: Row, g: Tensor, need: int, connected: bool) -> Sequence[Tensor | None]:
    """`parts_of` a row, after the hooks of its node."""
    if is_anomaly_enabled():
        parts = _watched_parts(row, g, need, connected)
    else:
        parts = parts_of(row, g, need, connected)
    attached = attachment(row.out) if row.attached else None
    if attached is None or not attached.after:
        return parts
    places = operand_places(row)
    changed = run_after(attached, [parts[p] if p < len(parts) else None for p in places], g)
    return [changed[places.index(p)] if p in places else None for p in range(max(places, default=-1) + 1)]


def _watched_parts(row: Row, g: Tensor, need: int, connected: bool) -> Sequence[Tensor | None]:
    # under anomaly detection
    try:
        parts = parts_of(row, g, need, connected)
        if is_anomaly_check_nan_enabled():
            check_for_nan(row.op.grad_name, parts)
    except Exception:
        explain(row.op.grad_name, row.out)
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


def sweep_over_tensors(roots: Sequence[Tensor], starts: Sequence[Tensor], retain: bool) -> Adjoints:
    """Run the reverse sweep from roots with their adjoints; buffers that a selective sweep wants must be marked.

    Returns:
        The adjoints of leaves in `of`, and in `kept` those of results that keep them.
    """
    adjoints = Adjoints()
    for root, start in zip(roots, starts, strict=True):
        adjoints.add(root._id, start)
    for row, g in adjoints.rows():
        need = row.wanted
        if need == 0:
            continue
        try:
            check_versions(row)
        except RuntimeError:
            if is_anomaly_enabled():
                explain(row.op.grad_name, row.out)
            raise
        adjoints.add_parts(row, hooked_parts(row, g, need, True))
        if not retain:
            rt.free_saved(_S, row.index)
            free_attached(row)
    return adjoints
