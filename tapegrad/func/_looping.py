"""Functions that read values, over batches: called once a sample, and their results stacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tapegrad import _tree
from tapegrad.autograd.attached import attach, attachment
from tapegrad.autograd.rows import Row, RowOp, handle
from tapegrad.autograd.sampling import is_sampling, one_sample
from tapegrad.autograd.tracing import bare
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.ops import _reading
from tapegrad.ops._rule import PUBLIC
from tapegrad.tensor import Tensor

_S = rt.S


class _Loop:
    """A call to be made once a sample; attached to each of its results."""

    def __init__(self, function: Callable, leaves: list[Any], structure: _tree.Structure) -> None:
        self.function, self.structure = function, structure
        self.places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        # the row has the tensors; one that is later written to would keep the call, and so itself
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.results: tuple[Any, list[Tensor]] = (None, [])  # of the batch they were computed for

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The results for some values of the tensors among the arguments."""
        leaves = list(self.leaves)
        for place, t in zip(self.places, tensors, strict=True):
            leaves[place] = t
        args, named = _tree.unflatten(leaves, self.structure)
        # which another map may be around
        return _tree.flatten(call_once_a_sample(self.function, args, named))[0]

    def _output_number(self, k: int) -> int:
        return 0


class _LoopOp(RowOp):
    # one result of a call that is made once a sample
    def __init__(self) -> None:
        def loop() -> None:
            """A function called once a sample."""

        super().__init__(loop, structs.PYTHON, "BatchedBackward0", None)
        rt.ops[self.code]["differentiable"] = 15

    def parts(self, row: Row, arrived: Sequence[Tensor | None], need: int) -> list[Tensor | None]:
        """The gradients of the call, themselves once a sample."""
        from tapegrad.func._derivatives import vjp

        g = arrived[0]
        call, number = _call_of(row)
        wanted = [p for p, k in enumerate(row.extra) if handle(k).requires_grad]

        def pull_back(start: Tensor, *tensors: Tensor) -> list[Tensor]:
            return list(vjp(_by_some(call, number, tensors, wanted), *(tensors[p] for p in wanted))[1](start))

        found = iter(call_once_a_sample(pull_back, (g, *(handle(k) for k in row.extra)), {}))
        return [None, None, None, *(next(found) if p in wanted else None for p in range(len(row.extra)))]

    def tangent(self, row: Row, given: Sequence[Tensor | None]) -> Tensor | None:
        """The tangent of the call, itself once a sample."""
        from tapegrad.func._derivatives import jvp

        call, number = _call_of(row)
        moving = [p for p, t in enumerate(given[3:]) if t is not None]

        def push(*both: Tensor) -> list[Tensor]:
            tensors, tangents = both[: len(row.extra)], both[len(row.extra) :]

            return [jvp(_by_some(call, number, tensors, moving), tuple(tensors[p] for p in moving), tangents)[1]]

        values = [handle(k) for k in row.extra]
        return call_once_a_sample(push, (*values, *(t for t in given[3:] if t is not None)), {})[0]


loop_op = _LoopOp()
loop_op.covered_by = "vmap"


def _call_of(row: Row) -> tuple[_Loop, int]:
    attached = attachment(row.out)
    assert attached is not None
    return attached.context, row.words[0]


def _by_some(call: _Loop, number: int, tensors: Sequence[Tensor], places: Sequence[int]) -> Callable:
    # one result as a function of some of the tensors among the arguments
    def function(*some: Tensor) -> Tensor:
        values = list(tensors)
        for p, t in zip(places, some, strict=True):
            values[p] = t
        return call(values)[number]

    return function


def call_once_a_sample(function: Callable, args: tuple, named: dict) -> Any:
    """Call a function on the first sample, and record the call to be made for each.

    Args:
        function: returns a tree of tensors.
        args: its arguments, with tensors anywhere in their tree.
        named: its keyword arguments.
    """
    if not is_sampling() or not _reading.holds_traced(_tree.flatten((args, named))[0]):
        return function(*args, **named)
    leaves, structure = _tree.flatten((args, named))
    call = _Loop(function, leaves, structure)
    tensors = [leaves[p] for p in call.places]
    with set_grad_enabled(False), one_sample():
        result = function(*_first(args), **dict(zip(named, _first(tuple(named.values())), strict=True)))
    outputs, out_structure = _tree.flatten(result)
    ids = [t._id for t in tensors]
    made = []
    for number, out in enumerate(outputs):
        value = bare(out)
        rt.record_on(_S, loop_op.code, value._id, 0, 0, 0, rt.attributes(len(ids), *ids, number))
        if not value.dtype.is_floating_point:
            rt.set_flag(_S, value._id, structs.REQUIRES_GRAD, 0)
        attach(value._id).context = call
        made.append(value)
    return _tree.unflatten(made, out_structure)


def _first(tree: Any) -> Any:
    return _tree.map_leaves(lambda v: bare(v) if isinstance(v, Tensor) else v, tree)


def looped(row: Row, batch: Any) -> Tensor:
    """One result of a call, for all samples.

    Raises:
        RuntimeError: if its shape depends on the sample.
    """
    call, number = _call_of(row)
    if call.results[0] is not batch:
        columns: list[list[Tensor]] = []
        for sample in range(batch.size):
            tensors = []
            for k in row.extra:
                value = batch.values.get(k)
                tensors.append(handle(k) if value is None else value[sample])
            columns.append(call(tensors))
        call.results = (batch, [_stacked(call, list(c)) for c in zip(*columns, strict=True)])
    return call.results[1][number]


def _stacked(call: _Loop, results: list[Tensor]) -> Tensor:
    shapes = {tuple(t.shape) for t in results}
    if len(shapes) > 1:
        name = getattr(call.function, "__name__", "a function")
        raise RuntimeError(
            f"vmap: {name} gives results of different shapes for different samples, {sorted(shapes)[:3]}; results of vmap must have one "
            "shape: use masks instead"
        )
    return PUBLIC["stack"](results)


_reading.once_a_sample = call_once_a_sample
