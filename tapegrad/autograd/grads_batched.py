"""`autograd.grad` for a batch of start adjoints: one sweep after the other, or one for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tapegrad import errors
from tapegrad.autograd import sampling
from tapegrad.autograd.anomaly_mode import is_anomaly_enabled
from tapegrad.autograd.recorded import paths
from tapegrad.autograd.rows import operands, read_row, shape_of
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_ATTACHED, LOOK_NODE
from tapegrad.tensor import Tensor

_S = rt.S

# A compiled sweep from Python takes about 40 microseconds and some 0.1 a row; one over tensors for a whole batch 300, and 20 a row.
# So the batch pays from 8 starts and half a start a row, and over sweeps that are themselves recorded, which take as long, soon. It
# does not where adjoints leave the cache: ten tanh of 1e5 elements took 46 ms for 30 starts at once, 16 one by one.
_FIXED_STARTS, _ROWS_A_START, _RECORDED_STARTS = 8, 2, 3
_CACHED_ELEMENTS = 1 << 18

Gradients = tuple[Tensor | None, ...]


def batched_gradients(
    sweep: Callable[[list[Tensor | None], bool], Gradients],
    roots: Sequence[Tensor],
    wanted: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    retain: bool,
    create_graph: bool,
) -> Gradients:
    """The gradients for every start of a batch, stacked.

    Args:
        sweep: gives the gradients for one start of each root, and whether to keep the graph after it.
        roots: what is differentiated.
        wanted: by what.
        gradients: for each root its starts along a leading dimension, or None.
        retain: whether to keep the graph in the end.
        create_graph: whether the derivative is recorded.

    Raises:
        RuntimeError: for starts that do not fit.
        ValueError: if there are none, or not equally many.
    """
    from tapegrad.creation import zeros

    count = _batch_size(roots, gradients)
    if not count:
        return tuple(zeros(0, *t.shape, dtype=t.dtype) for t in wanted)
    at_once = _starts_at_once(roots, wanted, count, create_graph)
    parts = []
    for first in range(0, count, at_once):
        last = min(first + at_once, count)
        keep = retain or last < count
        if at_once == 1:
            parts.append(sweep([None if g is None else g[first] for g in gradients], keep))
        else:
            parts.append(
                _together(sweep, [None if g is None else g[first:last] for g in gradients], last - first, keep)
            )
    join = _stacked if at_once == 1 else _joined
    return tuple(join(t, column) for t, column in zip(wanted, zip(*parts, strict=True), strict=True))


def _starts_at_once(roots: Sequence[Tensor], wanted: Sequence[Tensor], count: int, create_graph: bool) -> int:
    """How many starts to sweep from at once: 1 where that is faster, or where code of the user's takes part."""
    enough = _RECORDED_STARTS if create_graph else _FIXED_STARTS
    if count < enough or is_anomaly_enabled() or sampling.map_samples is None:
        return 1
    within, largest = paths(roots, wanted), 1
    found: set[int] = set()
    waiting = [t._id for t in roots]
    while waiting:
        k = waiting.pop()
        if k in found or k not in within:
            continue
        found.add(k)
        if not create_graph:
            enough = _FIXED_STARTS + len(found) // _ROWS_A_START
        largest = max(largest, shape_of(k).numel())
        index = rt.look(_S, k, LOOK_NODE)
        row = read_row(index) if index >= 0 else None
        if min(count, _CACHED_ELEMENTS // largest) < enough or rt.look(_S, k, LOOK_ATTACHED):
            return 1
        if row is not None:
            if not row.op.built_in:
                return 1
            waiting += operands(row)
    return min(count, _CACHED_ELEMENTS // largest)


def _together(
    sweep: Callable[[list[Tensor | None], bool], Gradients], starts: list[Tensor | None], count: int, keep: bool
) -> Gradients:
    assert sampling.map_samples is not None
    found = sampling.map_samples(lambda *one: sweep(list(one), keep), starts, [g is not None for g in starts], count)
    # neither a view of the starts nor of one another
    return tuple(
        None if g is None else g.clone() if g.is_contiguous() else g.contiguous()  # type: ignore[attr-defined]
        for g in found
    )


def _stacked(like: Tensor, column: Sequence[Tensor | None]) -> Tensor | None:
    from tapegrad.creation import zeros_like
    from tapegrad.ops.joining import stack

    if all(g is None for g in column):
        return None
    return stack([zeros_like(like) if g is None else g for g in column])


def _joined(like: Tensor, column: Sequence[Tensor | None]) -> Tensor | None:
    from tapegrad.ops.joining import cat

    present = [g for g in column if g is not None]
    return present[0] if len(present) == 1 else cat(present) if present else None


def _batch_size(roots: Sequence[Tensor], gradients: Sequence[Any]) -> int:
    sizes = {}
    for k, (t, g) in enumerate(zip(roots, gradients, strict=False)):
        if g is None:
            continue
        if not isinstance(g, Tensor):
            raise TypeError(errors.GRADIENT_TYPE.format(type(g).__name__))
        if g.ndim == 0 or g.shape[1:] != t.shape:
            raise RuntimeError(errors.BATCHED_SHAPE.format(k=k, given=g.shape[1:], expected=t.shape))
        sizes[k] = g.shape[0]
    if not sizes:
        raise ValueError(
            "is_grads_batched=True needs grad_outputs with a leading batch dimension, but all of them are None"
        )
    if len(set(sizes.values())) > 1:
        raise ValueError(f"grad_outputs must have one batch size, but got {list(sizes.values())}")
    return sizes[min(sizes)]
