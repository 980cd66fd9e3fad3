"""Running a trace on batches: each recorded operation once for all samples.

Elementwise operations, views, reductions and products become operations on tensors with one more dimension in front; any other
runs its kernel once a sample, in compiled code, and its derivative is batched in turn.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad import dtypes
from tapegrad.autograd import sampling
from tapegrad.autograd.attached import attach, attachment
from tapegrad.autograd.function import FunctionCtx, function_op, output_op
from tapegrad.autograd.remembered import Graph, transformed
from tapegrad.autograd.rows import Row, RowOp, conform, dtype_of, handle, operands, shape_of
from tapegrad.autograd.sampling import check_detached, check_hooks
from tapegrad.autograd.tangents import by_transposing
from tapegrad.autograd.tracing import bare, check_kept, rows_between
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META
from tapegrad.func._computing import computed_of_all, computed_op
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.metadata import layout_facts
from tapegrad.ops._fold import Fold, Select
from tapegrad.ops._kernel import empty
from tapegrad.ops._operands import float_of_bits
from tapegrad.ops._place import place, show_elements
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._product_ops import AffineOp, ProductOp
from tapegrad.ops._rule import PUBLIC
from tapegrad.ops._view import as_strided_op, detach_op
from tapegrad.ops._write import copy_slices
from tapegrad.ops.joining import join, pile
from tapegrad.tensor import Tensor, wrap

_S = rt.S


class Batch:
    """Batched values, by id of the buffer that stands for one sample.

    Attributes:
        size: number of samples.
        randomness: see `vmap`.
        values: tensors with the samples along their first dimension.
        guards: if not None, tensors whose values the function looked at, which may differ between samples, and their bytes then.
        required: conditions that must hold for all samples, with what to raise where one does not.
        lifetimes: of what the function computed from its arguments (see `lifetime`).
    """

    def __init__(self, size: int, randomness: str) -> None:
        self.size, self.randomness = size, randomness
        self.values: dict[int, Tensor] = {}
        self.guards: list[tuple[Tensor, bytes]] | None = None
        self.required: list[tuple[Tensor, Exception]] = []
        self.lifetimes: list[weakref.ref] = []
        self.before: dict[int, Tensor] = {}  # by buffer, what was the same for all samples until it was written to
        self.keep: list[Tensor] = []  # samples made inside the function, whose ids must last

    def run(self, rows: Iterable[Row]) -> None:
        """Run rows, in order, for all samples; those that depend on no batched value keep what they have."""
        for row in rows:
            if row.out in self.values or not any(k in self.values for k in operands(row) if k):
                continue
            if row.flags & structs.NO_GRAD_ROW:
                with set_grad_enabled(False):
                    value = self._batched(row)
            else:
                value = self._batched(row)
            if row.attached:
                check_hooks(row, value)
            self.values[row.out] = value

    def reach(self, ends: Sequence[int]) -> None:
        """Run what leads to some buffers, for all samples."""
        given = dict(self.values)
        graph = Graph(list(given), ends, [*given.values(), *self.before.values()], True)

        def compute() -> dict[int, Tensor]:
            self.values = dict(given)
            self.run(rows_between(ends, given))
            return {k: self.values[k] for k in ends if k in self.values}

        self.values |= transformed(("batch", self.size), graph, compute)

    def whole(self, t: Tensor) -> Tensor:
        """A tensor's batched value; the tensor once a sample if it has none."""
        return self.repeated(t._id)

    def repeated(self, k: int) -> Tensor:
        """As `whole`, for a buffer."""
        value = self.values.get(k)
        return handle(k).expand((self.size, *shape_of(k))) if value is None else value

    def _batched(self, row: Row) -> Tensor:
        op = row.op
        if row.stale and op.kind != structs.VIEW and op is not copy_slices:
            check_kept(row, [p for p, k in enumerate(row.inputs) if k and k not in self.values])
        if op is detach_op:
            check_detached(row.inputs[0], row.out)
            return self.values[row.inputs[0]].detach()
        if op.kind == structs.VIEW:
            return self._view(row)
        if op is copy_slices:
            return self._written_base(row)
        if isinstance(op, Pointwise):
            return self._pointwise(op, row)
        if isinstance(op, AffineOp):
            return self._affine(op, row)
        if isinstance(op, ProductOp):
            a, b = (self._operand(k) for k in row.inputs[:2])
            return batched_product(*a, *b, op.transposed)
        if op is function_op or op is output_op:
            return self._function(row)
        if op is place:
            return self._place(row)
        if op is join or op is pile:
            parts = [self.repeated(k) for k in operands(row) if k]
            return PUBLIC["cat" if op is join else "stack"](parts, row.words[2] + 1)
        if isinstance(op, Fold | Select):
            found = self._along_runs(op, row)
            if found is not None:
                return found
        if op is computed_op:
            return computed_of_all(row, self)
        if op is lanes_op:
            return run_lanes_again(row, self)
        ids = operands(row)
        values = [None if not k else self._operand(k) for k in ids]
        tensors = [None if v is None else v[0] for v in values]
        batched = [v is not None and v[1] for v in values]
        result, filled = run_in_lanes(kernel_of(row), tensors, batched, self.size)
        for p, t in filled.items():
            self.values[ids[p]] = t
        return result

    def _operand(self, k: int) -> tuple[Tensor, bool]:
        value = self.values.get(k)
        return (handle(k), False) if value is None else (value, True)

    def _pointwise(self, op: Pointwise, row: Row) -> Tensor:
        ndim = len(layout_facts(row.meta >> 16)[0])
        found = []
        for k in row.inputs[: op.arity]:
            t, batched = self._operand(k)
            missing = ndim + 1 - t.ndim
            if batched and missing:
                t = t.reshape((self.size, *[1] * missing, *t.shape[1:]))  # type: ignore[attr-defined]
            found.append(t)
        return wrap(op.run(found))

    def _lifted(self, layout: int, step: int) -> int:
        # the layout of all samples, `step` elements apart
        shape, strides, _ = layout_facts(layout)
        return rt.strided_layout((self.size, *shape), (step, *strides))

    def _view(self, row: Row) -> Tensor:
        base = self.values[row.inputs[0]]
        step = shape_of(row.inputs[0]).numel()
        return show_elements(base, self._lifted(row.words[0], step), row.words[1])

    def _written_base(self, row: Row) -> Tensor:
        first = row.inputs[0]
        if first in self.values or first not in self.before:
            base = self.repeated(first).clone()  # type: ignore[attr-defined]
        else:
            base = self.repeated(self.before[first]._id).clone()  # type: ignore[attr-defined]
        part = show_elements(base, self._lifted(row.words[0], shape_of(row.inputs[0]).numel()), row.words[1])
        part.copy_(self.repeated(row.inputs[1]))
        return base

    def _place(self, row: Row) -> Tensor:
        shape = shape_of(row.out)
        where = self._lifted(row.words[2], shape.numel())
        return place(self.values[row.inputs[0]], (self.size, *shape), where, row.words[3])

    def _affine(self, op: AffineOp, row: Row) -> Tensor:
        x, a, b = (self._operand(k) for k in row.inputs)
        alpha, beta = (float_of_bits(w) for w in row.words[3:5])
        product = batched_product(*a, *b, op.transposed)
        first, batched = x
        missing = len(shape_of(row.out)) + 1 - first.ndim
        if batched and missing:
            first = first.reshape((self.size, *[1] * missing, *first.shape[1:]))  # type: ignore[attr-defined]
        return (first if beta == 1 else first * beta) + (product if alpha == 1 else product * alpha)  # type: ignore[operator]

    def _along_runs(self, op: Fold | Select, row: Row) -> Tensor | None:
        # a reduction over runs of contiguous memory: the samples are more of them
        x = row.inputs[0]
        items, work, kept, *rest = row.words
        if x not in self.values or items < 0 or not layout_facts(rt.look(_S, x, LOOK_META) >> 16)[2]:
            return None
        at = len(getattr(op, "reduction_parameters", ()))
        outer, run, inner = rest[at : at + 3]
        if outer * run * inner != shape_of(x).numel() or row.inputs[2] or row.extra:
            return None
        rest[at] = outer * self.size
        value = self.values[x].contiguous()  # type: ignore[attr-defined]
        second = None
        if row.inputs[1]:
            if op.fills != [1]:
                return None
            second = empty((self.size, *shape_of(row.inputs[1])), dtype_of(row.inputs[1]))
            self.values[row.inputs[1]] = second
        if kept:
            kept = rt.layout((self.size, *layout_facts(kept)[0]))
        shape = (self.size, *shape_of(row.out))
        return op.launch([value, second], shape, dtype_of(row.out), [kept, *rest], items * self.size, work)

    def _function(self, row: Row) -> Tensor:
        attached = attachment(row.out)
        assert attached is not None
        context: FunctionCtx = attached.context
        if row.op is output_op:
            return context._batched[row.words[0]]
        from tapegrad.func._custom import batched_call

        results = batched_call(context, row, self)
        if row.words:
            context._batched = results
            return empty((self.size,), dtypes.float32)
        return results[0]


def batched_product(a: Tensor, a_batched: bool, b: Tensor, b_batched: bool, transposed: bool) -> Tensor:
    """``matmul`` of each sample, of which either operand may be the same for all."""
    matmul = PUBLIC["matmul"]
    if transposed:
        b = b.mT
    p, q = a.ndim - a_batched, b.ndim - b_batched
    if a_batched and not b_batched and q <= 2:
        return matmul(a, b) if p >= 1 else a * b  # type: ignore[operator]
    if b_batched and not a_batched and p == 2 and q == 1:
        return matmul(b, a.mT)
    if b_batched and not a_batched and p == 1 and q == 1:
        return matmul(b, a)
    column, line = q == 1, p == 1
    if line:
        a = a.unsqueeze(-2)  # type: ignore[attr-defined]
    if column:
        b = b.unsqueeze(-1)  # type: ignore[attr-defined]
    rank = max(p + line, q + column)
    a = _with_rank(a, a_batched, rank)
    b = _with_rank(b, b_batched, rank)
    product = matmul(a, b)
    if column:
        product = product.squeeze(-1)
    return product.squeeze(-1 if column else -2) if line else product


def _with_rank(t: Tensor, batched: bool, rank: int) -> Tensor:
    # ones between the batch and the sample's own dims, so that batches of matrices broadcast
    missing = rank + batched - t.ndim
    if not batched or not missing:
        return t
    return t.reshape((t.shape[0], *[1] * missing, *t.shape[1:]))  # type: ignore[attr-defined]


# any other op


class Kernel(NamedTuple):
    """How one sample of an operation was recorded.

    Attributes:
        op: the operation.
        words: its attributes.
        layouts: of each operand, 0 where absent.
        out: layout of the result.
        dtype: of the result.
        fills: positions of operands that the kernel fills.
    """

    op: Any
    words: list[int]
    layouts: list[int]
    out: int
    dtype: dtypes.dtype
    fills: Sequence[int]


class _Call(NamedTuple):
    kernel: Kernel
    operands: list[Tensor | None]
    batched: list[bool]
    size: int


class _LanesContext:
    # attached to the result of a call, for its derivative
    def __init__(self, call: _Call) -> None:
        self.call = call

    def _output_number(self, k: int) -> int:
        return 0


class _LanesOp(RowOp):
    # an op's kernel run once a sample
    def __init__(self) -> None:
        def lanes() -> None:
            """An operation run once a sample."""

        super().__init__(lanes, structs.PYTHON, "BatchedBackward0", None)
        rt.ops[self.code]["differentiable"] = 15

    def parts(self, row: Row, arrived: Sequence[Tensor | None], need: int) -> list[Tensor | None]:
        """The op's own derivative, batched."""
        g = arrived[0]
        kernel, values, batched, size = call_of(row.out)
        wanted = _need_of(values)
        saved = int(rt.ops[kernel.op.code]["saved"][wanted & 7])
        kept = [None if not saved >> p & 1 else handle(row.out) if p == 3 else values[p] for p in range(4)]

        def derivative(one: Tensor, *given: Tensor | None) -> Sequence[Tensor | None]:
            parts = kernel.op.reverse(one, wanted, given, kernel.words)
            return [
                None if part is None or t is None else conform(part, layout_facts(layout)[0], t.dtype)
                for part, t, layout in zip(parts, values, kernel.layouts, strict=False)
            ]

        parts = map_samples(derivative, [g, *kept], [True, *batched[:3], True], size)
        found: list[Tensor | None] = [None, None, None]
        for p, t in enumerate(values):
            part = parts[p] if p < len(parts) else None
            if t is not None:
                found.append(part if part is None or batched[p] else part.sum(0))  # type: ignore[attr-defined]
        return found

    def tangent(self, row: Row, given: Sequence[Tensor | None]) -> Tensor | None:
        """The op's own tangent, batched."""
        kernel, values, batched, size = call_of(row.out)
        places = iter(given[3:])
        tangents = [None if t is None else next(places) for t in values]
        need = _need_of(values)

        def forward(*both: Tensor | None) -> Sequence[Tensor | None]:
            return [by_transposing(kernel.op, kernel.words, need, both[:4], both[4:])]

        flags = [*batched[:3], True, *batched]
        return map_samples(forward, [*values[:3], handle(row.out), *tangents], flags, size)[0]


lanes_op = _LanesOp()
lanes_op.covered_by = "vmap"


def call_of(k: int) -> _Call:
    """The call that made a batched value once a sample."""
    attached = attachment(k)
    assert attached is not None
    return attached.context.call


def _need_of(values: Sequence[Tensor | None]) -> int:
    return sum(1 << p for p, t in enumerate(values[:3]) if t is not None) | (8 if len(values) > 3 else 0)


def kernel_of(row: Row) -> Kernel:
    """How a row was recorded."""
    layouts = [rt.look(_S, k, LOOK_META) >> 16 if k else 0 for k in operands(row)]
    fills = [p for p in getattr(row.op, "fills", ()) if row.inputs[p]]
    return Kernel(row.op, row.words, layouts, rt.look(_S, row.out, LOOK_META) >> 16, dtype_of(row.out), fills)


def run_in_lanes(
    kernel: Kernel, values: list[Tensor | None], batched: list[bool], size: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run a kernel once a sample, recorded as one operation.

    Args:
        kernel: how one sample runs.
        values: its operands, None where absent.
        batched: which of them have the samples along their first dim.
        size: number of samples.

    Returns:
        The result, and by position the operands that the kernel filled.
    """
    op = kernel.op
    filled = {}
    for p in kernel.fills:
        shape = layout_facts(kernel.layouts[p])[0]
        filled[p] = values[p] = empty((size, *shape), values[p].dtype)  # type: ignore[union-attr]
        batched[p] = True
    result = empty((size, *layout_facts(kernel.out)[0]), kernel.dtype)
    steps = np.zeros(4 + max(len(values) - 3, 0), np.int64)
    first = [
        _first_sample(t, layout, b, steps, p + 1)
        for p, (t, layout, b) in enumerate(zip(values, kernel.layouts, batched, strict=True))
    ]
    out = _first_sample(result, kernel.out, True, steps, 0)
    assert out is not None
    attributes = rt.attributes(len(first[3:]), *(t._id for t in first[3:] if t is not None), *kernel.words)
    heads = [0 if t is None else t._id for t in first[:3]]
    key = dtype_of(heads[0]).code if heads[0] else kernel.dtype.code
    if not rt.forward[op.code, key]:
        op.load_forward(key)
    done = rt.run_lanes(_S, op.code, out._id, *heads, size, int(steps.ctypes.data), attributes)
    rt.free_block(_S, attributes)
    if not done:
        raise MemoryError(f"{op.name}: no memory for a batch of {size} samples")
    present = [t._id for t in values if t is not None]
    attach(result._id).context = _LanesContext(_Call(kernel, values, batched, size))
    rt.record_on(_S, lanes_op.code, result._id, 0, 0, 8, rt.attributes(len(present), *present))
    if not rt.ops[op.code]["differentiable"]:
        rt.set_flag(_S, result._id, structs.REQUIRES_GRAD, 0)
    return result, filled


def _first_sample(t: Tensor | None, layout: int, batched: bool, steps: np.ndarray, slot: int) -> Tensor | None:
    # the first sample's operand, in memory laid out as the recorded one's, and the bytes to the next
    if t is None:
        return None
    shape, strides, contiguous = layout_facts(layout)
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if shape.numel() else 0
    with set_grad_enabled(False):
        source = bare(t)
        if contiguous:
            source = source.contiguous()  # type: ignore[attr-defined]
        elif batched or rt.look(_S, t._id, LOOK_META) >> 16 != layout:
            memory = empty(((source.shape[0] if batched else 1) * reach,), source.dtype)
            spread = memory.as_strided(((source.shape[0],) if batched else (1,)) + tuple(shape), (reach, *strides), 0)
            spread._memory_array()[...] = source._memory_array()
            source = memory
        if batched:
            steps[slot] = reach * source.itemsize
        view = rt.record_view(_S, as_strided_op.code, source._id, layout, 0, layout, 0)
    return wrap(view & ~structs.TRACKED_VIEW)


def run_lanes_again(row: Row, batch: Batch) -> Tensor:
    """Batch a call that was already run once a sample: its samples and the new ones are one batch."""
    kernel, values, batched, size = call_of(row.out)
    merged, flags = [], []
    for t, inner in zip(values, batched, strict=True):
        outer = None if t is None else batch.values.get(t._id)
        if t is None or (outer is None and not inner):
            merged.append(t)
            flags.append(False)
            continue
        value = t.expand((batch.size, *t.shape)) if outer is None else outer  # type: ignore[attr-defined]
        if not inner:
            value = value.unsqueeze(1).expand((batch.size, size, *t.shape))
        merged.append(value.reshape((batch.size * size, *value.shape[2:])))
        flags.append(True)
    result, filled = run_in_lanes(kernel, merged, flags, batch.size * size)
    for p, t in filled.items():
        batch.values[values[p]._id] = t.reshape((batch.size, size, *t.shape[1:]))  # type: ignore[union-attr, attr-defined]
    return result.reshape((batch.size, size, *result.shape[1:]))  # type: ignore[attr-defined]


def map_samples(
    function: Callable, values: Sequence[Tensor | None], batched: Sequence[bool], size: int
) -> list[Tensor | None]:
    """Apply a function of single samples to batches: trace it on the first one, run the trace on all.

    Args:
        function: of tensors, some of which may be None, returning a sequence of tensors and None.
        values: the arguments; those `batched` have the samples along their first dim.
        batched: which arguments are.
        size: number of samples.

    Returns:
        Its results with the samples along their first dim.
    """
    from tapegrad.func._vmap import trace_sample

    batch, outputs = trace_sample(function, values, [0 if b else None for b in batched], size)
    return [None if out is None else batch.whole(out) for out in outputs]


sampling.map_samples = map_samples
