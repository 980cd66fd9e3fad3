"""Mapping on the tape where control flow depends on values: samples that take one path are a batch of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad import _tree
from tapegrad.autograd.tracing import bare
from tapegrad.creation import from_numpy
from tapegrad.func._vmap import Mapping, check_results, trace_sample
from tapegrad.ops._rule import PUBLIC
from tapegrad.program.draws import Draws, drawing_for, drawing_for_one
from tapegrad.tensor import Tensor

# the structure of a function's result, and its leaves
_Results = tuple[_tree.Structure, list[Any]]


def results_of_sample(call: Mapping, n: int, draws: Draws) -> _Results:
    """What the mapped function returns for one sample, run on the tape.

    Raises:
        ValueError: if it returns anything but tensors.
    """
    leaves = [v if d is None else v.select(d, n) for v, d in zip(call.values, call.dims, strict=True)]
    with drawing_for_one(draws, n):
        flat, structure = _tree.flatten(call.on_leaves(*leaves))
    check_results(call.func, flat)
    return structure, flat


def check_alike(first: _Results, other: _Results) -> None:
    """Refuse results of two samples that cannot be stacked.

    Raises:
        RuntimeError: with the dtypes and shapes of both.
    """
    kinds = [[(t.dtype, tuple(t.shape)) for t in leaves] for _, leaves in (first, other)]
    if first[0] != other[0] or kinds[0] != kinds[1]:
        refuse_kinds(*kinds)


def refuse_kinds(first: Sequence[tuple[Any, tuple[int, ...]]], other: Sequence[tuple[Any, tuple[int, ...]]]) -> None:
    """Refuse results of two paths, given by the dtype and shape of each leaf.

    Raises:
        RuntimeError: with these.
    """
    shown = [", ".join(f"{getattr(d, 'name', d)}{list(s)}" for d, s in kinds) for kinds in (first, other)]
    raise RuntimeError(
        f"vmap: samples take paths whose results differ in structure, shape or dtype: {shown[0]} and {shown[1]}; return results of the "
        "same kind on every path, or loop over the samples"
    )


def mapped_by_paths(call: Mapping, paths: np.ndarray, draws: Draws) -> _Results:
    """What the mapped function returns for all samples, with derivatives.

    Args:
        call: the function and its arguments.
        paths: by sample the number of its path, 0 where it is not known.
        draws: its random numbers.

    Returns:
        The structure of the result, and its leaves with the samples along their first dim.

    Raises:
        RuntimeError: if the results of two samples are of different kinds.
        ValueError: if they are no tensors.
    """
    parts: list[list[Any]] = []
    order: list[np.ndarray] = []
    first: _Results | None = None
    for chosen, (structure, leaves) in _of_groups(call, paths, draws):
        found = (structure, [t[0] for t in leaves])
        if first is None:
            first = found
        check_alike(first, found)
        parts.append(leaves)
        order.append(chosen)
    assert first is not None
    back = from_numpy(np.argsort(np.concatenate(order)))
    cat, select = PUBLIC["cat"], PUBLIC["index_select"]
    return first[0], [select(cat(list(column)), 0, back) for column in zip(*parts, strict=True)]


def _of_groups(call: Mapping, paths: np.ndarray, draws: Draws) -> Iterator[tuple[np.ndarray, _Results]]:
    for path in np.unique(paths):
        chosen = np.flatnonzero(paths == path)
        results = _of_group(call, chosen, draws) if path and len(chosen) > 1 else None
        if results is not None:
            yield chosen, results
            continue
        for n in chosen:
            structure, leaves = results_of_sample(call, int(n), draws)
            yield np.array([n]), (structure, [t.unsqueeze(0) for t in leaves])


def _of_group(call: Mapping, chosen: np.ndarray, draws: Draws) -> _Results | None:
    # samples that take one path; None if they turn out not to
    select, index = PUBLIC["index_select"], from_numpy(chosen)
    values = [v if d is None else select(v, d, index) for v, d in zip(call.values, call.dims, strict=True)]
    guards: list[tuple[Tensor, bytes]] = []
    structures: list[_tree.Structure] = []

    def flat(*samples: Any) -> list[Any]:
        leaves, structure = _tree.flatten(call.on_leaves(*samples))
        structures.append(structure)
        check_results(call.func, leaves)
        return [*leaves, *(t for t, _ in guards)]

    with drawing_for(draws, chosen):
        batch, made = trace_sample(flat, values, call.dims, len(chosen), draws.randomness, guards)
    count = len(made) - len(guards)
    for looked_at, (_, expected) in zip(made[count:], guards, strict=True):
        found = np.ascontiguousarray(bare(batch.whole(looked_at)).numpy())
        if found.tobytes() != expected * len(chosen):
            return None
    return structures[0], [batch.whole(t) for t in made[:count]]
