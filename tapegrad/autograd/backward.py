"""`backward` and `grad`: start a sweep, answer what it asks for, hand out the results."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes, errors
from tapegrad.autograd.accumulate import add_to_grad, add_to_leaf
from tapegrad.autograd.anomaly_mode import is_anomaly_enabled
from tapegrad.autograd.attached import attachment, run_hooks
from tapegrad.autograd.grads_batched import batched_gradients
from tapegrad.autograd.recorded import after_hooks, free_attached, hooked_parts, sweep_over_tensors
from tapegrad.autograd.remembered import Graph, transformed
from tapegrad.autograd.rows import RowOp, check_versions, handle, leaf, modified, operands, read_row, saved_values
from tapegrad.autograd.sampling import is_sampling
from tapegrad.autograd.under_way import sweep_under_way
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_ATTACHED, LOOK_DATA, LOOK_META, LOOK_NODE, LOOK_TRACED
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.ops import _reading
from tapegrad.ops._rule import OPS
from tapegrad.tensor import Tensor, layout_facts, wrap

_S = rt.S

# compiled code keeps what it knows of a sweep on the tape: one sweep at a time is run by it
_turn = threading.RLock()
_compiled = False  # such a sweep is under way
_users_code = False  # it waits for the user's code


def _as_tuple(value: Any) -> tuple:
    # one or several tensors, for some of which edges may stand
    kind = type(value)
    if kind is Tensor:
        return (value,)
    if kind is tuple or kind is list:
        for v in value:
            if type(v) is not Tensor and v is not None:
                break
        else:
            return tuple(value)
    edge = isinstance(value, tuple) and len(value) == 2 and hasattr(value, "output_nr")
    values = (value,) if isinstance(value, Tensor) or value is None or edge else tuple(value)
    return tuple(v.node._result(v.output_nr) if hasattr(v, "output_nr") and hasattr(v, "node") else v for v in values)


def _requires_grad(t: Tensor) -> int:
    # as the property, in one call
    flags = rt.look(_S, t._id, LOOK_META) >> 8
    return t.requires_grad if flags & structs.IS_VIEW else flags & structs.REQUIRES_GRAD


def _check_roots(tensors: Sequence[Tensor]) -> None:
    for k, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(f"element {k} of tensors must be a Tensor, but got {type(t).__name__}")
        if not _requires_grad(t):
            raise RuntimeError(errors.NO_GRAPH.format(k))


def _checked_gradients(tensors: Sequence[Tensor], gradients: Sequence[Any]) -> list[Tensor | None]:
    # the adjoints to start from, in the dtypes of the roots; None for ones
    if len(gradients) != len(tensors):
        raise RuntimeError(f"got {len(tensors)} tensors and {len(gradients)} gradients")
    found: list[Tensor | None] = []
    for k, (t, g) in enumerate(zip(tensors, gradients, strict=True)):
        if g is None:
            layout = rt.look(_S, t._id, LOOK_META) >> 16
            if layout != _SCALAR and math.prod(layout_facts(layout)[0]) != 1:
                raise RuntimeError(errors.NOT_SCALAR)
            found.append(None)
            continue
        if not isinstance(g, Tensor):
            raise TypeError(errors.GRADIENT_TYPE.format(type(g).__name__))
        if (rt.look(_S, g._id, LOOK_META) ^ rt.look(_S, t._id, LOOK_META)) & _KIND:
            if g.shape != t.shape:
                raise RuntimeError(errors.GRADIENT_SHAPE.format(k=k, given=g.shape, expected=t.shape))
            g = g.to(t.dtype)
        found.append(g)
    return found


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
    if is_sampling():
        raise RuntimeError(errors.BACKWARD_IN_VMAP)
    roots = _as_tuple(tensors)
    _check_roots(roots)
    retain = create_graph if retain_graph is None else bool(retain_graph)
    gradients = _as_tuple(grad_tensors) if grad_tensors is not None else (None,) * len(roots)
    starts = _checked_gradients(roots, gradients)
    if inputs is None:
        _run(roots, starts, retain, None, create_graph)
        return
    wanted = _as_tuple(inputs)
    if not wanted:
        raise RuntimeError("`inputs` argument to `backward()` cannot be empty.")
    for k, t in enumerate(wanted):
        if not isinstance(t, Tensor):
            raise TypeError(f"inputs[{k}] must be a Tensor, but got {type(t).__name__}")
        if not t.requires_grad:
            raise RuntimeError(errors.INPUT_NO_GRAD)
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
        raise ValueError("Expected allow_unused to be True or not passed when materialize_grads=True, but got: False.")
    roots, wanted = _as_tuple(outputs), _as_tuple(inputs)
    retain = create_graph if retain_graph is None else bool(retain_graph)
    if not wanted:
        raise RuntimeError("`inputs` argument to `grad()` cannot be empty.")
    _check_roots(roots)
    for t in wanted:
        if not isinstance(t, Tensor):
            raise TypeError(f"inputs must be Tensors, but got {type(t).__name__}")
        if not _requires_grad(t):
            raise RuntimeError(errors.INPUT_NO_GRAD)
    gradients = _as_tuple(grad_outputs) if grad_outputs is not None else (None,) * len(roots)
    if is_grads_batched:

        def sweep(part: Sequence[Any], keep: bool) -> tuple[Tensor | None, ...]:
            return grad(roots, wanted, part, keep, create_graph, allow_unused, False, materialize_grads)

        return batched_gradients(sweep, roots, wanted, gradients, retain, create_graph)
    found = _run(roots, _checked_gradients(roots, gradients), retain, wanted, create_graph)
    if any(g is None for g in found):
        if materialize_grads:
            from tapegrad.creation import zeros_like

            found = [
                zeros_like(t, requires_grad=create_graph) if g is None else g
                for t, g in zip(wanted, found, strict=True)
            ]
        elif not allow_unused:
            raise RuntimeError(errors.UNUSED_INPUT)
    return tuple(found)


_SCALAR = 1  # the layout of 0-d tensors
_KIND = ~0xFF00  # of what `look` says of a buffer, its layout and dtype
_RETAINED = structs.RETAIN_GRAD << 8

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
        _run([root], [None], retain, None, False)


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
def _compiled_sweep(request: int = 0) -> Iterator[None]:
    # compiled code has begun to sweep, and waits for Python
    global _compiled
    _compiled = True
    try:
        yield
    finally:
        _compiled = False
        if request:
            rt.end_wanted(_S, request)
        else:
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
    gradients: Sequence[Tensor | None],
    retain: bool,
    wanted: Sequence[Tensor] | None,
    create_graph: bool,
) -> list[Tensor | None]:
    """Sweep from the roots; the gradients of `wanted`, or into the leaves if that is None."""
    over_tensors = create_graph or is_anomaly_enabled()
    for t in (*roots, *gradients):
        over_tensors = over_tensors or (t is not None and rt.look(_S, t._id, LOOK_TRACED) != 0)
    if not over_tensors and _take_turn():
        try:
            return _native(roots, gradients, retain, wanted)
        finally:
            _turn.release()
    # handles of our own: a hook may write to a tensor in place, which gives it another place in the graph
    roots, wanted = _handles(roots), None if wanted is None else _handles(wanted)
    starts = [_one_like(t) if g is None else g for t, g in zip(roots, gradients, strict=True)]
    with sweep_under_way(roots, wanted):
        rt.keep_rows(_S)
        mode = rt.set_mode(_S, structs.NO_GRAD_MODE * (not create_graph))
        try:
            return _over_tensors(roots, starts, retain, wanted)
        finally:
            rt.set_mode(_S, mode)
            rt.leave_sweep(_S)


_load_moves = functools.cache(rt.load_moves)


@functools.cache
def _one(dtype: int) -> Tensor:
    from tapegrad.creation import ones

    return ones((), dtype=dtypes.ALL[dtype])


def _one_like(t: Tensor) -> Tensor:
    # for a root of one element; a copy, since it may be handed out
    meta = rt.look(_S, t._id, LOOK_META)
    one = _one(meta & 0xFF).clone()  # type: ignore[attr-defined]
    return one if meta >> 16 == _SCALAR else one.reshape(t.shape)


def _handles(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [handle(t._id) for t in tensors]


def _native(
    roots: Sequence[Tensor], gradients: Sequence[Tensor | None], retain: bool, wanted: Sequence[Tensor] | None
) -> list[Tensor | None]:
    addresses, keep = [], []
    for t, g in zip(roots, gradients, strict=True):
        dtype = rt.look(_S, t._id, LOOK_META) & 0xFF
        if len(roots) > 1:
            _load_moves(dtype)
        if g is None:
            addresses.append(_ONE_ADDRESSES[dtype])
            continue
        block = g if g.is_contiguous() else g.detach().contiguous()  # type: ignore[attr-defined]
        keep.append(block)
        addresses.append(rt.look(_S, block._id, LOOK_DATA))
    ids = [] if wanted is None else list(dict.fromkeys([t._id for t in wanted]))
    request = array("q", [len(roots), len(ids), retain, *[t._id for t in roots], *addresses, *ids, *ids])
    address = request.buffer_info()[0]
    answer = rt.sweep_wanted(_S, address)
    if answer != structs.DONE:
        # handles of our own, as above
        own = None if wanted is None else _handles(wanted)
        with _compiled_sweep(address), sweep_under_way(_handles(roots), own):
            _finish(answer)
    if wanted is None:
        return []
    found = {k: wrap(g) for k, g in zip(ids, request[-len(ids) :], strict=True) if g}
    for k, g in found.items():
        # hooks of results ran where the sweep passed them
        if rt.look(_S, k, LOOK_ATTACHED) and rt.look(_S, k, LOOK_NODE) < 0:
            with set_grad_enabled(False), _in_users_code():
                found[k] = after_hooks(k, g)
        if rt.look(_S, k, LOOK_META) & _RETAINED:
            with set_grad_enabled(False):
                add_to_grad(handle(k), found[k])
    return [found.get(t._id) for t in wanted]


def _over_tensors(
    roots: Sequence[Tensor], starts: Sequence[Tensor], retain: bool, wanted: Sequence[Tensor] | None
) -> list[Tensor | None]:
    graph = None if is_anomaly_enabled() else _graph_of(roots, starts, wanted)
    if graph is None or graph.structure is None:
        adjoints = sweep_over_tensors(roots, starts, retain, wanted)
        found, kept = adjoints.gradients(wanted), adjoints.kept
    else:
        found = transformed("sweep", graph, lambda: sweep_over_tensors(roots, starts, True, wanted).gradients(wanted))
        kept = found
        if not retain:
            graph.free()
    for k, g in kept.items():
        if rt.look(_S, k, LOOK_META) & _RETAINED and rt.look(_S, k, LOOK_NODE) >= 0:
            add_to_grad(handle(k), g)
    for k, g in found.items():
        if rt.look(_S, k, LOOK_NODE) < 0:
            if rt.look(_S, k, LOOK_ATTACHED):
                found[k] = after_hooks(k, g)
            if wanted is None:
                add_to_leaf(leaf(k), found[k])
    return [found.get(t._id) for t in wanted or ()]


def _graph_of(roots: Sequence[Tensor], starts: Sequence[Tensor], wanted: Sequence[Tensor] | None) -> Graph:
    # what the structure of a sweep's result depends on; the adjoints to start from come in the roots' order
    return Graph([t._id for t in wanted or ()], [t._id for t in roots], starts, False)


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
    seen = is_anomaly_enabled() or _reading.sampling or rt.look(_S, self._id, LOOK_TRACED)
    if plain and self.requires_grad and not seen:
        _from_scalar(self, bool(retain_graph))
    else:
        backward(self, gradient, retain_graph, create_graph, inputs)


_tensor_backward.__name__, _tensor_backward.__qualname__ = "backward", "Tensor.backward"
Tensor.backward = _tensor_backward  # type: ignore[attr-defined]
