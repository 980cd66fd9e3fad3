"""The reverse sweep over tensors: every derivative is itself an operation on the tape, to be differentiated again."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from tapegrad.autograd.rows import Row, check_versions, parts_of, read_row
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META, LOOK_PRODUCER
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
        producer = rt.look(_S, k, LOOK_PRODUCER)
        if producer < 0:
            self.leaves.append(k)
        else:
            heapq.heappush(self._rows, -producer)

    def rows(self) -> Iterator[tuple[Row, Tensor]]:
        """Rows whose result has an adjoint, from the last to the first, with that adjoint."""
        while self._rows:
            row = read_row(-heapq.heappop(self._rows))
            g = self.of.pop(row.out)
            if rt.look(_S, row.out, LOOK_META) & _KEEP:
                self.kept[row.out] = g
            yield row, g


def sweep_over_tensors(roots: Sequence[Tensor], starts: Sequence[Tensor], retain: bool) -> Adjoints:
    """Run the reverse sweep from roots with their adjoints; buffers that a selective sweep wants must be marked.

    Returns:
        The adjoints of leaves in `of`, and in `kept` those of results that keep them.
    """
    adjoints = Adjoints()
    for root, start in zip(roots, starts, strict=True):
        adjoints.add(root._id, start)
    for row, g in adjoints.rows():
        need = rt.wanted_inputs(_S, row.index)
        if need == 0:
            continue
        check_versions(row)
        for k, part in parts_of(row, g, need, True):
            adjoints.add(k, part)
        if not retain:
            rt.free_saved(_S, row.index)
    return adjoints
