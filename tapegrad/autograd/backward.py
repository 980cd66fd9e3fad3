"""`backward` and `grad`: start a sweep, answer what it asks for, hand out the results."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad import errors
from tapegrad.autograd.accumulate import add_to_grad, add_to_leaf
from tapegrad.autograd.anomaly_mode import is_anomaly_enabled
from tapegrad.autograd.attached import attachment, run_hooks
from tapegrad.autograd.recorded import after_hooks, free_attached, hooked_parts, starts_here, sweep_over_tensors
from tapegrad.autograd.rows import RowOp, check_versions, handle, leaf, modified, operands, read_row, saved_values
from tapegrad.autograd.under_way import sweep_under_way
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_DATA, LOOK_META, LOOK_NODE, LOOK_PRODUCER, LOOK_TRACED
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.ops._rule import OPS
from tapegrad.tensor import Tensor, layout_facts, wrap

_S = rt.S

# compiled code keeps what it knows of a sweep on the tape: one sweep at a time is run by it
_turn = threading.RLock()
_compiled = False  # such a sweep is under way
_users_code = False  # it waits for the user's code


def _as_tuple(value: Any) -> tuple:
    # one or several tensors, for some of which edges may stand
    if type(value) is Tensor:
        return (value,)
    if type(value) in (tuple, list) and all(type(v) is Tensor or v is None for v in value):
        return tuple(value)
    edge = isinstance(value, tuple) and len(value) == 2 and hasattr(value, "output_nr")
    values = (value,) if isinstance(value, Tensor) or value is None or edge else tuple(value)
    return tuple(v.node._result(v.output_nr) if hasattr(v, "output_nr") and hasattr(v, "node") else v for v in values)


def _check_roots(tensors: Sequence[Tensor]) -> None:
    for k, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(f"element {k} of tensors must be a Tensor, but got {type(t).__name__}")
        if not t.requires_grad:
            raise RuntimeError(errors.NO_GRAPH.format(k))


def _gradients(given: Any, count: int) -> tuple:
    if given is None:
        return (None,) * count
    if not isinstance(given, (Tensor, Iterable)):
        raise TypeError(errors.GRADIENT_TYPE.format(type(given).__name__))
    return _as_tuple(given)


def _check_wanted(inputs: Sequence[Tensor]) -> None:
    for t in inputs:
        if not isinstance(t, Tensor):
            raise RuntimeError(errors.INPUT_TYPE.format(type(t).__name__))
        if not t.requires_grad:
            raise RuntimeError(errors.INPUT_NO_GRAD)


def _start_values(tensors: Sequence[Tensor], gradients: Sequence[Any]) -> list[Tensor]:
    from tapegrad.creation import ones_like

    for g in gradients:
        if g is not None and not isinstance(g, Tensor):
            raise TypeError(errors.GRADIENT_TYPE.format(type(g).__name__))
    if len(gradients) != len(tensors):
        raise RuntimeError(f"got {len(tensors)} tensors and {len(gradients)} gradients")
    starts = []
    for k, (t, g) in enumerate(zip(tensors, gradients, strict=True)):
        if g is None:
            if t.numel() != 1:
                raise RuntimeError(errors.NOT_SCALAR)
            g = ones_like(t)
        elif g.shape != t.shape:
            raise RuntimeError(errors.GRADIENT_SHAPE.format(k=k, given=g.shape, expected=t.shape))
        starts.append(g if g.dtype is t.dtype else g.to(t.dtype))
    return starts


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Accumulate the gradients of tensors into the leaves they were computed from.

    Args:
        tensors: one or several roots.
        grad_tensors: the adjoints to start from; None for roots of one element.
        retain_graph: keep the saved values, so that backward may run again.
        create_graph: record the derivative computation too.
        inputs: accumulate into these tensors only.

    Raises:
        RuntimeError: if a root does not require grad or has more than one element and no gradient, if something saved was
            freed or modified, or if shapes differ.

    >>> import tapegrad as tg
    >>> x = tg.tensor(3.0, requires_grad=True)
    >>> tg.autograd.backward(x * x)
    >>> x.grad
    tensor(6.)
    """
    roots = _as_tuple(tensors)
    _check_roots(roots)
    retain = create_graph if retain_graph is None else bool(retain_graph)
    gradients = _gradients(grad_tensors, len(roots))
    starts = _start_values(roots, gradients)
    if inputs is None:
        _run(roots, starts, retain, None, create_graph)
        return
    wanted = _as_tuple(inputs)
    if not wanted:
        raise RuntimeError("`inputs` argument to `backward()` cannot be empty.")
    _check_wanted(wanted)
    given = list(dict.fromkeys(t for t in wanted if t.is_leaf))
    results = list(dict.fromkeys(t for t in wanted if not t.is_leaf))
    for t in results:
        t.retain_grad()
    found = _run(roots, starts, retain, [*given, *results], create_graph)
    with set_grad_enabled(create_graph):
        for t, g in zip(given, found, strict=False):
            if g is not None:
                add_to_leaf(t, g)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of outputs with respect to inputs, without touching `.grad`.

    Args:
        outputs: one or several tensors.
        inputs: one or several tensors that require grad, leaves or results.
        grad_outputs: the adjoints to start from; None for outputs of one element.
        retain_graph: keep the saved values, so that the graph may be used again.
        create_graph: record the derivative computation too.
        allow_unused: give None, instead of an error, for inputs the outputs do not depend on.
        is_grads_batched: whether `grad_outputs` have a leading batch dimension.
        materialize_grads: give zeros for them.

    Returns:
        One gradient an input.

    Raises:
        RuntimeError: as `backward`; and if an input was not used.

    >>> import tapegrad as tg
    >>> x = tg.tensor(2.0, requires_grad=True)
    >>> tg.autograd.grad(x**3, x)
    (tensor(12.),)
    """
    if materialize_grads and allow_unused is False:
        raise ValueError(
            "Expected allow_unused to be True or not passed when materialize_grads=True, but got: allow_unused=False."
        )
    roots, wanted = _as_tuple(outputs), _as_tuple(inputs)
    retain = create_graph if retain_graph is None else bool(retain_graph)
    if not wanted:
        raise RuntimeError("`inputs` argument to `grad()` cannot be empty.")
    _check_roots(roots)
    _check_wanted(wanted)
    gradients = _gradients(grad_outputs, len(roots))
    if is_grads_batched:
        return _batched(roots, wanted, gradients, retain, create_graph, bool(allow_unused), materialize_grads)
    starts = _start_values(roots, gradients)
    unique = list(dict.fromkeys(wanted))
    found = dict(zip(unique, _run(roots, starts, retain, unique, create_graph), strict=True))
    if not (allow_unused or materialize_grads) and any(g is None for g in found.values()):
        raise RuntimeError(errors.UNUSED_INPUT)
    if materialize_grads:
        from tapegrad.creation import zeros_like

        found = {t: zeros_like(t, requires_grad=create_graph) if g is None else g for t, g in found.items()}
    return tuple(found[t] for t in wanted)


def _batched(
    roots: Any, wanted: Any, gradients: Any, retain: bool, create: bool, allow_unused: bool, materialize: bool
) -> tuple:
    # one sweep a row of the batch over the retained graph
    from tapegrad.creation import zeros, zeros_like
    from tapegrad.ops.movement import stack

    count = _batch_size(roots, gradients)
    rows = []
    for b in range(count):
        keep = retain or b < count - 1
        part = [None if g is None else g[b] for g in gradients]
        rows.append(grad(roots, wanted, part, keep, create, allow_unused or None, False, materialize))
    if not rows:
        return tuple(zeros(0, *t.shape, dtype=t.dtype) for t in wanted)
    found: list[Tensor | None] = []
    for t, column in zip(wanted, zip(*rows, strict=True), strict=True):
        used = any(g is not None for g in column)
        found.append(stack([zeros_like(t) if g is None else g for g in column]) if used else None)
    return tuple(found)


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


_SCALAR = 1  # the layout of 0-d tensors

# a one of each floating dtype, to start from
_ONES = tuple(np.ones(1, d) for d in (np.float32, np.float64))
_ONE_ADDRESSES = tuple(int(a.ctypes.data) for a in _ONES)


def _from_scalar(root: Tensor, retain: bool) -> None:
    # the usual case, in one call into compiled code
    k = root._id
    meta = rt.look(_S, k, LOOK_META)
    if meta >> 16 != _SCALAR and math.prod(layout_facts(meta >> 16)[0]) != 1:
        raise RuntimeError(errors.NOT_SCALAR)
    answer = structs.SWEEP_BUSY
    if _turn.acquire(blocking=False):
        try:
            answer = rt.sweep_from(_S, k, _ONE_ADDRESSES[meta & 0xFF], retain)
            if answer not in (structs.DONE, structs.SWEEP_BUSY):
                with _compiled_sweep(), sweep_under_way([handle(k)], None):
                    _finish(answer)
        finally:
            _turn.release()
    if answer == structs.SWEEP_BUSY:
        _run([root], _start_values([root], [None]), retain, None, False)


def _take_turn() -> bool:
    """Whether compiled code may sweep for this thread, after waiting for other threads' sweeps.

    Not within such a sweep, nor while one waits for the user's code, which may in turn be waiting for this thread.
    """
    while not _turn.acquire(timeout=0.01):
        if _users_code:
            return False
    if _compiled:
        _turn.release()
        return False
    return True


@contextlib.contextmanager
def _compiled_sweep() -> Iterator[None]:
    # compiled code has begun to sweep
    global _compiled
    _compiled = True
    try:
        yield
    finally:
        _compiled = False
        rt.leave_sweep(_S)


@contextlib.contextmanager
def _in_users_code() -> Iterator[None]:
    # compiled code's sweep has stopped for hooks or the like
    global _users_code
    _users_code = True
    try:
        yield
    finally:
        _users_code = False


def _finish(answer: int) -> None:
    """Resume a sweep that stopped with an answer, to its end, and settle the gradients."""
    try:
        if answer != structs.SETTLE_PYTHON:
            _sweep(answer)
            answer = rt.settle(_S)
        while answer != structs.DONE:
            if answer == structs.SWEEP_MEMORY:
                raise MemoryError("no memory for a gradient")
            _add_in_python(int(rt.state.fault))
            answer = rt.settle(_S)
    except BaseException:
        rt.abandon(_S, int(rt.state.row_count) - 1)
        raise


def _run(
    roots: Sequence[Tensor],
    starts: Sequence[Tensor],
    retain: bool,
    wanted: Sequence[Tensor] | None,
    create_graph: bool,
) -> list[Tensor | None]:
    """Sweep from the roots; the gradients of `wanted`, or into the leaves if that is None."""
    if not roots:
        return [None for _ in wanted or ()]
    # handles of our own: a hook may write to a tensor in place, which gives it another place in the graph
    roots = [handle(t._id) for t in roots]
    wanted = None if wanted is None else [handle(t._id) for t in wanted]
    over_tensors = (
        create_graph or is_anomaly_enabled() or any(rt.look(_S, t._id, LOOK_TRACED) for t in (*roots, *starts))
    )
    with sweep_under_way(roots, wanted):
        if not over_tensors and _take_turn():
            try:
                rt.enter_sweep(_S, retain, wanted is not None)
                with _compiled_sweep(), _marked(roots, wanted):
                    return _native(roots, starts, wanted)
            finally:
                _turn.release()
        rt.keep_rows(_S)
        mode = rt.set_mode(_S, structs.NO_GRAD_MODE * (not create_graph))
        try:
            return _over_tensors(roots, starts, retain, wanted)
        finally:
            rt.set_mode(_S, mode)
            rt.leave_sweep(_S)


@contextlib.contextmanager
def _marked(roots: Sequence[Tensor], wanted: Sequence[Tensor] | None) -> Iterator[None]:
    # the marks of what compiled code's selective sweep wants
    if wanted is None:
        yield
        return
    for t in wanted:
        rt.set_mark(_S, t._id, 1)
        rt.set_flag(_S, t._id, structs.CAPTURE, 1)
    top = max(rt.look(_S, t._id, LOOK_PRODUCER) for t in roots)
    first = max(min(rt.look(_S, t._id, LOOK_PRODUCER) for t in wanted), 0)
    rt.mark_paths(_S, first, top, 1)
    try:
        yield
    finally:
        for t in wanted:
            rt.set_mark(_S, t._id, 0)
            rt.set_flag(_S, t._id, structs.CAPTURE, 0)
        rt.clear_marks(_S, first, top, 1)


def _native(roots: Sequence[Tensor], starts: Sequence[Tensor], wanted: Sequence[Tensor] | None) -> list[Tensor | None]:
    try:
        for t, g in zip(roots, starts, strict=True):
            if not starts_here(t, len(roots), wanted is None or bool(rt.buffer(t._id)["mark"])):
                continue
            if len(roots) > 1:
                rt.load_moves(t.dtype.code)
            block = g.detach().contiguous()
            if not rt.seed(_S, t._id, rt.look(_S, block._id, LOOK_DATA)):
                raise MemoryError("no memory for a gradient")
    except BaseException:
        rt.abandon(_S, int(rt.state.row_count) - 1)
        raise
    _finish(rt.sweep(_S, max(rt.look(_S, t._id, LOOK_PRODUCER) for t in roots)))
    found = {}
    for t in wanted or ():
        k = 0 if t._id in found else rt.adjoint_buffer(_S, t._id)
        if k:
            found[t._id] = wrap(k)
    with set_grad_enabled(False), _in_users_code():
        for k, g in found.items():
            # hooks of results ran where the sweep passed them
            found[k] = after_hooks(k, g) if rt.look(_S, k, LOOK_NODE) < 0 else g
            _retain(k, g)
    return [found.get(t._id) for t in wanted or ()]


def _retain(k: int, g: Tensor) -> None:
    if rt.look(_S, k, LOOK_META) >> 8 & structs.RETAIN_GRAD:
        add_to_grad(handle(k), g)


def _over_tensors(
    roots: Sequence[Tensor], starts: Sequence[Tensor], retain: bool, wanted: Sequence[Tensor] | None
) -> list[Tensor | None]:
    adjoints = sweep_over_tensors(roots, starts, retain, wanted)
    for k, g in adjoints.kept.items():
        _retain(k, g)
    for k in adjoints.leaves:
        adjoints.of[k] = after_hooks(k, adjoints.of[k])
        if wanted is None:
            add_to_leaf(leaf(k), adjoints.of[k])
    found = adjoints.of | adjoints.kept
    return [found.get(t._id) for t in wanted or ()]


def _add_in_python(k: int) -> None:
    """Add the adjoint of a leaf that hooks or nobody ask for, or a gradient that cannot be accumulated into."""
    part = rt.adjoint_buffer(_S, k)
    if part == 0:
        raise MemoryError("no memory for a gradient")
    g, t = wrap(part), leaf(k)
    with set_grad_enabled(False), _in_users_code():
        # of a leaf that hooks are attached to, or a result that retains its gradient
        if t.is_leaf:
            add_to_leaf(t, after_hooks(k, g))
        else:
            add_to_grad(t, g)


def _sweep(answer: int) -> None:
    """Do what a stopped sweep asks for, and resume it, until it is done."""
    state = rt.state
    while answer != structs.DONE:
        index, slot = int(state.fault), int(state.fault_slot)
        op = OPS[int(rt.row(index)["op"])]
        assert op is not None
        if answer == structs.SWEEP_KERNEL:
            op.load_reverse(slot)
        elif answer == structs.SWEEP_PARALLEL:
            rt.load_parallel_driver()
        elif answer == structs.SWEEP_MOVE:
            for dtype in (0, 1):
                rt.load_moves(dtype)
        elif answer == structs.SWEEP_PYTHON:
            with _in_users_code() if isinstance(op, RowOp) else contextlib.nullcontext():
                _reverse_in_python(index)
            index -= 1
        elif answer == structs.SWEEP_HOOK:
            with _in_users_code():
                index = _run_attached(index)
        elif answer == structs.SWEEP_RAISED:
            row = read_row(index)
            op.raise_again_in_reverse(
                _adjoint(row.out), rt.wanted_inputs(_S, index), saved_values(row, False), row.words
            )
        elif answer == structs.SWEEP_FREED:
            raise RuntimeError(errors.BACKWARD_TWICE)
        elif answer == structs.SWEEP_MODIFIED:
            raise RuntimeError(modified(index, slot))
        else:
            raise MemoryError(f"no memory for the gradients of {op.grad_name}")
        answer = rt.sweep(_S, index)


def _reverse_in_python(index: int) -> None:
    """Run a backward that is written over tensors."""
    row = read_row(index)
    g = _adjoint(row.out)
    with set_grad_enabled(False):
        parts = hooked_parts(row, g, rt.wanted_inputs(_S, index), False)
        for target, part in zip(operands(row), parts, strict=False):
            if part is not None and (not rt.state.selective or rt.buffer(target)["mark"]):
                _accumulate(target, part)
    rt.finish_row(_S, index)
    if not rt.state.retain:
        free_attached(row)


def _adjoint(k: int) -> Tensor:
    copied = rt.adjoint_copy(_S, k)
    if copied == 0:
        raise MemoryError("no memory for a gradient")
    return wrap(copied)


def _accumulate(k: int, part: Tensor) -> None:
    part = part.contiguous()  # type: ignore[attr-defined]
    rt.load_moves(part.dtype.code)
    if not rt.accumulate_adjoint(_S, k, part._id):
        raise MemoryError("no memory for a gradient")


def _run_attached(index: int) -> int:
    """Run the hooks of the value that a row made; the row to resume the sweep at."""
    row = read_row(index)
    attached = attachment(row.out)
    assert attached is not None
    if attached.hooks:
        g = _adjoint(row.out)
        with set_grad_enabled(False):
            changed = run_hooks(attached, g)
            if changed is not g or g._version:
                rt.adjoint_drop(_S, row.out)
                _accumulate(row.out, changed)
    rt.state["hooked"] = index
    if not (attached.before or attached.after or attached.packed) or not rt.wanted_inputs(_S, index):
        return index
    check_versions(row)
    _reverse_in_python(index)
    return index - 1


def _tensor_backward(
    self: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Accumulate the gradients of this tensor into the leaves it was computed from.

    Args:
        gradient: the adjoint to start from, of this tensor's shape; optional for one element.
        retain_graph: keep the saved values, so that backward may run again.
        create_graph: record the derivative computation too.
        inputs: accumulate into these tensors only.

    Raises:
        RuntimeError: see `tapegrad.autograd.backward`.
    """
    plain = gradient is None and inputs is None and not create_graph
    if plain and self.requires_grad and not (is_anomaly_enabled() or rt.look(_S, self._id, LOOK_TRACED)):
        _from_scalar(self, bool(retain_graph))
    else:
        backward(self, gradient, retain_graph, create_graph, inputs)


_tensor_backward.__name__, _tensor_backward.__qualname__ = "backward", "Tensor.backward"
Tensor.backward = _tensor_backward  # type: ignore[attr-defined]
