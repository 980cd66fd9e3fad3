"""The sweeps of a thread that are under way, as hooks on several tensors, functions with several results and checkpoints see them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence

from tapegrad.autograd.recorded import paths
from tapegrad.autograd.rows import handle, operands, read_row
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_NODE
from tapegrad.tensor import Tensor

_S = rt.S
_local = threading.local()


class Sweep:
    """One sweep.

    Args:
        roots: the tensors it starts from.
        wanted: those whose adjoints it computes; None for the leaves.
    """

    def __init__(self, roots: Sequence[Tensor], wanted: Sequence[Tensor] | None) -> None:
        self._roots, self._wanted = roots, wanted

    @functools.cached_property
    def reached(self) -> set[int]:
        """Ids of the buffers whose adjoint the sweep computes."""
        within = None if self._wanted is None else paths(self._roots, self._wanted)
        found, waiting = set(), [t._id for t in self._roots]
        while waiting:
            k = waiting.pop()
            index = rt.look(_S, k, LOOK_NODE)
            if k in found or (within is not None and k not in within):
                continue
            found.add(k)
            if index >= 0:
                waiting += [q for q in operands(read_row(index)) if q and handle(q).requires_grad]
        return found


def current_sweep() -> Sweep | None:
    """The innermost sweep of this thread that is under way."""
    sweeps = getattr(_local, "sweeps", ())
    return sweeps[-1] if sweeps else None


@contextlib.contextmanager
def sweep_under_way(roots: Sequence[Tensor], wanted: Sequence[Tensor] | None) -> Iterator[None]:
    """Within this block, a sweep is the innermost one of this thread."""
    outer = getattr(_local, "sweeps", ())
    _local.sweeps = (*outer, Sweep(roots, wanted))
    try:
        yield
    finally:
        _local.sweeps = outer
