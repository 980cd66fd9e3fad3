"""Sweeps as Python starts them: by compiled code, which asks for Python now and then, or over tensors."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from tapegrad import dtypes, errors
from tapegrad.autograd.accumulate import add_to_grad, add_to_leaf
from tapegrad.autograd.anomaly_mode import is_anomaly_enabled
from tapegrad.autograd.attached import attachment, run_hooks
from tapegrad.autograd.recorded import after_hooks, free_attached, hooked_parts, sweep_over_tensors
from tapegrad.autograd.remembered import Graph, recall, transformed
from tapegrad.autograd.rows import RowOp, check_versions, handle, leaf, modified, operands, read_row, saved_values
from tapegrad.autograd.under_way import sweep_under_way
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_ATTACHED, LOOK_META, LOOK_NODE, LOOK_TRACED
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.metadata import layout_facts
from tapegrad.ops._rule import OPS
from tapegrad.tensor import Tensor, wrap

_S = rt.S

# compiled code keeps what it knows of a sweep on the tape: one sweep at a time is run by it
_turn = threading.RLock()
_compiled = False  # such a sweep is under way
_users_code = False  # it waits for the user's code

SCALAR = 1  # the layout of 0-d tensors
_RETAINED = structs.RETAIN_GRAD << 8

# a one of each floating dtype, to start from
_ONES = tuple(np.ones(1, d) for d in (np.float32, np.float64))
_ONE_ADDRESSES = tuple(int(a.ctypes.data) for a in _ONES)


def from_scalar(root: Tensor, retain: bool) -> None:
    """Sweep from one root to the leaves: the usual case, in one call into compiled code.

    Raises:
        RuntimeError: if the root has more than one element.
    """
    k = root._id
    meta = rt.look(_S, k, LOOK_META)
    if meta >> 16 != SCALAR and math.prod(layout_facts(meta >> 16)[0]) != 1:
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
        run([root], [None], retain, None, False)


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
            _add_in_python(int(rt.state["fault"]))
            answer = rt.settle(_S)
    except BaseException:
        rt.abandon(_S, int(rt.state.row_count) - 1)
        raise


def run(
    roots: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    retain: bool,
    wanted: Sequence[Tensor] | None,
    create_graph: bool,
) -> list[Tensor | None]:
    """Sweep from roots.

    Args:
        roots: tensors that require grad.
        gradients: the adjoints to start from, of the shapes and dtypes of the roots; None for a one.
        retain: keep the saved values.
        wanted: tensors that require grad; None to add to the gradients of leaves.
        create_graph: record the derivative computation too.

    Returns:
        The gradients of `wanted`, None for those that the roots do not depend on.
    """
    if not roots:
        return [None for _ in wanted or ()]
    over_tensors = create_graph or is_anomaly_enabled()
    for t in (*roots, *gradients):
        over_tensors = over_tensors or (t is not None and rt.look(_S, t._id, LOOK_TRACED) != 0)
    if not over_tensors and _take_turn():
        try:
            return _native(roots, gradients, retain, wanted)
        finally:
            _turn.release()
    mode = rt.set_mode(_S, structs.NO_GRAD_MODE * (not create_graph))
    try:
        return _over_tensors(roots, gradients, retain, wanted)
    finally:
        rt.set_mode(_S, mode)


def run_plain(
    roots: Sequence[Tensor], gradients: Sequence[Tensor | None], retain: bool, wanted: Sequence[Tensor]
) -> list[Tensor | None] | None:
    """As `run` without a graph, where compiled code finds nothing out of the ordinary in the arguments; else None, with nothing done."""
    try:
        starts = [0 if g is None else g._id for g in gradients]
        first, last = [t._id for t in wanted], [t._id for t in roots]
    except AttributeError:  # something is no tensor
        return None
    if len(starts) != len(last) or _compiled or not _turn.acquire(blocking=False):
        return None
    try:
        return _sweep_wanted(last, starts, retain, first, True)
    finally:
        _turn.release()


_load_moves = functools.cache(rt.load_moves)


def _native(
    roots: Sequence[Tensor], gradients: Sequence[Tensor | None], retain: bool, wanted: Sequence[Tensor] | None
) -> list[Tensor | None]:
    blocks = [None if g is None else g.detach().contiguous() for g in gradients]  # type: ignore[attr-defined]
    if len(roots) > 1:
        for t in roots:
            _load_moves(t.dtype.code)
    starts = [0 if g is None else g._id for g in blocks]
    found = _sweep_wanted([t._id for t in roots], starts, retain, [t._id for t in wanted or ()], False)
    assert found is not None
    return found


def _sweep_wanted(
    roots: list[int], starts: list[int], retain: bool, wanted: list[int], plain: bool
) -> list[Tensor | None] | None:
    ids = wanted if len(wanted) == 1 else list(dict.fromkeys(wanted))
    request = array("q", (len(roots), len(ids), retain, plain, *_ONE_ADDRESSES, *roots, *starts, *ids, *ids))
    address = request.buffer_info()[0]
    answer = rt.sweep_wanted(_S, address)
    if answer != structs.DONE:
        if answer == structs.SWEEP_UNUSUAL:
            return None
        # handles of our own: a hook may write to a tensor in place, which gives it another place in the graph
        own = [handle(k) for k in wanted] if wanted else None
        with _compiled_sweep(address), sweep_under_way([handle(k) for k in roots], own):
            _finish(answer)
    if not wanted:
        return []
    found = {k: wrap(g) for k, g in zip(ids, request[-len(ids) :], strict=True) if g}
    if not plain:
        for k, g in found.items():
            # hooks of results ran where the sweep passed them
            if rt.look(_S, k, LOOK_ATTACHED) and rt.look(_S, k, LOOK_NODE) < 0:
                with set_grad_enabled(False), _in_users_code():
                    found[k] = after_hooks(k, g)
            if rt.look(_S, k, LOOK_META) & _RETAINED:
                with set_grad_enabled(False):
                    add_to_grad(handle(k), found[k])
    return [found.get(k) for k in wanted]


def _over_tensors(
    roots: Sequence[Tensor], gradients: Sequence[Tensor | None], retain: bool, wanted: Sequence[Tensor] | None
) -> list[Tensor | None]:
    starts = [_one_like(t) if g is None else g for t, g in zip(roots, gradients, strict=True)]
    ids = [] if wanted is None else [t._id for t in wanted]
    graph = None if is_anomaly_enabled() else Graph(ids, [t._id for t in roots], starts, False)
    if retain and wanted is not None and graph is not None and not graph.watched:
        found = recall("sweep", graph)
        if found is not None:
            return [found.get(k) for k in ids]
    # handles of our own, as above
    roots, wanted = [handle(t._id) for t in roots], None if wanted is None else [handle(k) for k in ids]
    with sweep_under_way(roots, wanted):
        rt.keep_rows(_S)
        try:
            found = _swept(roots, starts, retain, wanted, graph)
        finally:
            rt.leave_sweep(_S)
    return [found.get(k) for k in ids]


def _swept(
    roots: Sequence[Tensor],
    starts: Sequence[Tensor],
    retain: bool,
    wanted: Sequence[Tensor] | None,
    graph: Graph | None,
) -> dict[int, Tensor]:
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
    return found


@functools.cache
def _one(dtype: int) -> Tensor:
    from tapegrad.creation import ones

    return ones((), dtype=dtypes.ALL[dtype])


def _one_like(t: Tensor) -> Tensor:
    # for a root of one element; a copy, since it may be handed out
    meta = rt.look(_S, t._id, LOOK_META)
    one = _one(meta & 0xFF).clone()  # type: ignore[attr-defined]
    return one if meta >> 16 == SCALAR else one.reshape(t.shape)


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
        index, slot = int(state["fault"]), int(state["fault_slot"])
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
        answer = rt.sweep(_S, index, 0)


def _reverse_in_python(index: int) -> None:
    """Run a backward that is written over tensors."""
    row = read_row(index)
    g = _adjoint(row.out)
    with set_grad_enabled(False):
        parts = hooked_parts(row, g, rt.wanted_inputs(_S, index), False)
        for target, part in zip(operands(row), parts, strict=False):
            if part is not None and (not rt.state["selective"] or rt.buffer(target)["mark"]):
                _accumulate(target, part)
    rt.finish_row(_S, index)
    if not rt.state["retain"]:
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
