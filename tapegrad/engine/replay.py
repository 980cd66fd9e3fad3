"""The reverse sweep: from the last row to the first, each adds its part to the adjoints of its operands.

A sweep stops for whatever compiled code cannot do (a kernel not loaded yet, a backward written over tensors) and is resumed
at the row where it stopped. `pending` counts rows whose output has an adjoint and that are still to come, so a sweep
ends as soon as nothing is left, however long the tape below.
"""

from tapegrad.engine.layout import begin_plan, contiguous_of, plan, plan_pair, same_shape
from tapegrad.engine.memory import allocate, deallocate
from tapegrad.engine.paths import enter_sweep, leave_sweep, wanted_inputs
from tapegrad.engine.record import run_kernel, take_failure, wants_threads
from tapegrad.engine.settle import settle
from tapegrad.engine.structs import (
    ADJ_IS_GRAD,
    ADJOINT_OFFSET,
    CAPTURE,
    DEAD,
    DONE,
    DTYPE_SLOTS,
    FREED,
    KERNEL,
    LISTED,
    MOVE_ADD,
    MOVE_NARROW,
    MOVE_SCATTER,
    MOVE_SUM,
    OPERAND_OFFSET,
    PYTHON,
    REDUCTION,
    REQUIRES_GRAD,
    RETAIN_GRAD,
    ROW_INPUTS_OFFSET,
    ROW_SIZE,
    ROW_VERSIONS_OFFSET,
    SELECT,
    STORE_OFFSET,
    SWEEP_BUSY,
    SWEEP_FREED,
    SWEEP_HOOK,
    SWEEP_KERNEL,
    SWEEP_MEMORY,
    SWEEP_MODIFIED,
    SWEEP_MOVE,
    SWEEP_PARALLEL,
    SWEEP_PYTHON,
    VIEW,
    buffer_of,
    call_kernel,
    i32,
    i64,
    internal_inline,
    internal_words,
    itemsize,
    layout_of,
    memcpy,
    memset,
    op_of,
    row_at,
    row_of,
    shape_of,
    state_at,
    storage_of,
    strides_of,
)
from tapegrad.engine.tape import nbytes_of, release_saved

# how a kernel treats an adjoint
WRITE, ADD, UNWANTED = 1, 0, -1


@internal_inline
def _list_touched(S, k):
    # remember a buffer whose adjoint must outlive its row
    s = state_at(S)
    b = buffer_of(S, k)
    if not b.flags & LISTED:
        b.flags |= LISTED
        b.link = s.touched
        s.touched = k


@internal_words
def open_adjoint(S, k):
    """Give buffer `k` an adjoint block if it has none: WRITE if the block is fresh, ADD if it holds something, -9 without memory.

    A leaf that already has a contiguous gradient is accumulated into directly.
    """
    s = state_at(S)
    b = buffer_of(S, k)
    if b.adj:
        return ADD
    # not where Python may run meanwhile, and look at the gradient or replace it
    if b.producer < 0 and b.grad and not s.selective and not s.attachments:
        grad = buffer_of(S, b.grad)
        plain = layout_of(S, grad.layout).contiguous == grad.layout
        if plain and grad.dtype == b.dtype and b.flags & ~grad.flags & REQUIRES_GRAD:
            b.adj = grad.data
            b.flags |= ADJ_IS_GRAD
            _list_touched(S, k)
            return ADD
    b.adj = allocate(S, nbytes_of(S, b.layout, b.dtype))
    if b.adj == 0:
        return -9
    if b.producer >= 0:
        s.pending += 1
    else:
        _list_touched(S, k)
    return WRITE


@internal_inline
def _hand_over(S, source, k):
    # let buffer `k` take the adjoint block of buffer `source` instead of copying it
    s = state_at(S)
    a = buffer_of(S, source)
    b = buffer_of(S, k)
    b.adj = a.adj
    a.adj = 0
    if b.producer >= 0:
        s.pending += 1
    else:
        _list_touched(S, k)


@internal_words
def _move(S, which, dtype, source, target, write, start, stop):
    s = state_at(S)
    s.move_source = source
    s.move_target = target
    s.move_write = write
    call_kernel(i64(s.forward)[which * DTYPE_SLOTS + dtype], S, 0, start, stop)


@internal_inline
def _can_move(S, dtype):
    # whether the moves of a dtype are loaded: they are all loaded together
    return i64(state_at(S).forward)[MOVE_ADD * DTYPE_SLOTS + dtype] != 0


@internal_words
def _accumulate(S, source, target, n, dtype, write):
    # a contiguous block into another
    if write == WRITE:
        memcpy(target, source, n * itemsize(dtype))
    else:
        _move(S, MOVE_ADD, dtype, source, target, write, 0, n)


@internal_words
def sum_to(S, source, source_layout, target, target_layout, dtype, write):
    """Add the contiguous block `source` to the smaller `target` it was broadcast from; sums are kept in float64."""
    n = layout_of(S, target_layout).elements
    sums = allocate(S, n * 8)
    if sums == 0:
        return False
    memset(sums, 0, n * 8)
    outer = plan_pair(S, source_layout, target_layout)
    _move(S, MOVE_SUM, dtype, source, sums, WRITE, 0, outer)
    _move(S, MOVE_NARROW, dtype, sums, target, write, 0, n)
    deallocate(S, sums, n * 8)
    return True


@internal_inline
def _is_one_to_one(S, layout, elements):
    if layout_of(S, layout).elements != elements:
        return False
    for d in range(layout_of(S, layout).ndim):
        if strides_of(S, layout)[d] == 0 and shape_of(S, layout)[d] > 1:
            return False
    return True


@internal_words
def scatter_view(S, source, source_layout, target, target_elements, where, offset, dtype, write):
    """Add the contiguous adjoint of a view to the adjoint of its base, at layout `where` from element `offset` on."""
    size = itemsize(dtype)
    covers = _is_one_to_one(S, where, target_elements)
    if write == WRITE and not covers:
        memset(target, 0, target_elements * size)
    outer = plan_pair(S, source_layout, where)
    once = WRITE if covers and write == WRITE else ADD
    _move(S, MOVE_SCATTER, dtype, source, target + offset * size, once, 0, outer)


@internal_words
def seed(S, k, source):
    """Start a sweep at buffer `k` with a contiguous block of its shape; False without memory."""
    write = open_adjoint(S, k)
    if write < 0:
        return False
    b = buffer_of(S, k)
    _accumulate(S, source, b.adj, layout_of(S, b.layout).elements, b.dtype, write)
    return True


@internal_words
def accumulate_adjoint(S, k, source):
    """Add the contiguous buffer `source`, of the shape of `k` or of one it broadcast to, to the adjoint of `k`."""
    given = buffer_of(S, source)
    b = buffer_of(S, k)
    write = open_adjoint(S, k)
    if write < UNWANTED:
        return False
    target = contiguous_of(S, b.layout)
    if same_shape(S, given.layout, target):
        _accumulate(S, given.data, b.adj, layout_of(S, target).elements, b.dtype, write)
        return True
    return sum_to(S, given.data, given.layout, b.adj, target, b.dtype, write)


@internal_words
def free_saved(S, index):
    """Let go of what a row saved: it cannot be differentiated again."""
    address = state_at(S).rows + index * ROW_SIZE
    r = row_at(address)
    if r.saved:
        if r.kept == 0:
            release_saved(S, address)
        r.saved = 0
        r.flags |= FREED


@internal_words
def finish_row(S, index):
    """The row's part is done: drop the adjoint of its output and, unless the graph is retained, what it saved."""
    s = state_at(S)
    address = s.rows + index * ROW_SIZE
    r = row_at(address)
    out = buffer_of(S, r.out)
    s.pending -= 1
    if out.flags & (RETAIN_GRAD | CAPTURE):
        _list_touched(S, r.out)
    elif out.adj:
        deallocate(S, out.adj, nbytes_of(S, out.layout, out.dtype))
        out.adj = 0
    if r.saved and not s.retain:
        free_saved(S, index)


@internal_words
def _reverse_pointwise(S, address, need, kernel):
    state_at(S)
    r = row_at(address)
    info = op_of(S, r.op)
    inputs = i32(address + ROW_INPUTS_OFFSET)
    adjoint = i64(S + ADJOINT_OFFSET)
    store = i64(S + STORE_OFFSET)
    out = buffer_of(S, r.out)
    target = contiguous_of(S, out.layout)
    elements = layout_of(S, target).elements
    for k in range(3):
        if need >> k & 1 == 0 or same_shape(S, buffer_of(S, inputs[k]).layout, out.layout):
            continue
        if not _can_move(S, out.dtype) or not _can_move(S, buffer_of(S, inputs[k]).dtype):
            return SWEEP_MOVE
    keeps = out.flags & (RETAIN_GRAD | CAPTURE)
    temporary = 0
    heir = -1
    calls = False
    for k in range(3):
        store[k] = UNWANTED
        if not need >> k & 1:
            continue
        b = buffer_of(S, inputs[k])
        if same_shape(S, b.layout, out.layout):
            direct = info.direct >> k & 1 and not keeps and b.dtype == out.dtype and heir < 0 and b.adj == 0
            if direct and not (b.producer < 0 and b.grad):
                twice = False
                for q in range(3):
                    twice = twice or (q != k and need >> q & 1 and inputs[q] == inputs[k])
                if not twice:
                    heir = k
                    continue
            store[k] = open_adjoint(S, inputs[k])
            if store[k] < UNWANTED:
                return SWEEP_MEMORY
            adjoint[k] = buffer_of(S, inputs[k]).adj
            calls = True
        elif not (info.direct >> k & 1 and b.dtype == out.dtype):
            adjoint[k] = allocate(S, elements * itemsize(b.dtype))
            if adjoint[k] == 0:
                return SWEEP_MEMORY
            store[k] = WRITE
            temporary |= 1 << k
            calls = True
    if calls:
        begin_plan(S)
        operand = i64(S + OPERAND_OFFSET)
        operand[0] = target
        for k in range(3):
            if r.saved >> k & 1:
                operand[k + 1] = buffer_of(S, inputs[k]).layout
        if r.saved & 8:
            operand[4] = out.layout
        items = plan(S, target)
        run_kernel(S, kernel, address, items, elements * info.cost)
        failure = take_failure(S)
        if failure:
            for k in range(3):
                if temporary >> k & 1:
                    deallocate(S, adjoint[k], elements * itemsize(buffer_of(S, inputs[k]).dtype))
            return failure
    for k in range(3):
        if need >> k & 1 and k != heir and (temporary >> k & 1 or store[k] == UNWANTED):
            source = adjoint[k] if temporary >> k & 1 else out.adj
            write = open_adjoint(S, inputs[k])
            if write < UNWANTED:
                return SWEEP_MEMORY
            b = buffer_of(S, inputs[k])
            if not sum_to(S, source, target, b.adj, contiguous_of(S, b.layout), b.dtype, write):
                return SWEEP_MEMORY
            if temporary >> k & 1:
                deallocate(S, source, elements * itemsize(b.dtype))
    if heir >= 0:
        _hand_over(S, r.out, inputs[heir])
    return DONE


@internal_words
def _reverse_view(S, address):
    r = row_at(address)
    out = buffer_of(S, r.out)
    base = buffer_of(S, r.in0)
    where, offset = i64(r.attr)[2], i64(r.attr)[3]
    plain = layout_of(S, where).contiguous == where
    elements = layout_of(S, base.layout).elements
    identity = plain and layout_of(S, where).elements == elements
    if identity and base.adj == 0 and not out.flags & (RETAIN_GRAD | CAPTURE) and not (base.producer < 0 and base.grad):
        _hand_over(S, r.out, r.in0)
        return DONE
    if not _can_move(S, base.dtype):
        return SWEEP_MOVE
    write = open_adjoint(S, r.in0)
    if write < UNWANTED:
        return SWEEP_MEMORY
    base = buffer_of(S, r.in0)
    scatter_view(S, out.adj, contiguous_of(S, out.layout), base.adj, elements, where, offset, base.dtype, write)
    return DONE


@internal_words
def _reverse_reduction(S, address, kernel):
    # the adjoint of a reduction runs over its input; g and the result stand still along the reduced dims
    r = row_at(address)
    write = open_adjoint(S, r.in0)
    if write < UNWANTED:
        return SWEEP_MEMORY
    x = buffer_of(S, r.in0)
    info = op_of(S, r.op)
    i64(S + ADJOINT_OFFSET)[0] = x.adj
    i64(S + STORE_OFFSET)[0] = write
    target = contiguous_of(S, x.layout)
    kept = i64(r.attr)[4]
    begin_plan(S)
    operand = i64(S + OPERAND_OFFSET)
    operand[0] = target
    if r.saved & 1:
        operand[1] = x.layout
    if r.saved & 2:
        operand[2] = kept
    operand[4] = kept
    elements = layout_of(S, target).elements
    items = plan(S, target)
    run_kernel(S, kernel, address, items, elements * info.cost)
    return DONE


@internal_words
def _reverse_kernel(S, address, need, kernel):
    # the op's own reverse kernel: work items and their cost stand in the attribute block
    r = row_at(address)
    inputs = i32(address + ROW_INPUTS_OFFSET)
    for k in range(3):
        i64(S + STORE_OFFSET)[k] = UNWANTED
        if need >> k & 1:
            write = open_adjoint(S, inputs[k])
            if write < UNWANTED:
                return SWEEP_MEMORY
            i64(S + STORE_OFFSET)[k] = write
            i64(S + ADJOINT_OFFSET)[k] = buffer_of(S, inputs[k]).adj
    extra = i64(r.attr)[1]
    items = abs(i64(r.attr)[2 + extra])
    run_kernel(S, kernel, address, items, items * i64(r.attr)[3 + extra])
    return take_failure(S)


@internal_words
def sweep(S, start, stop):
    """Run the reverse sweep from row `start` down to row `stop`; DONE, or why it stopped (the row is in ``fault``)."""
    s = state_at(S)
    index = start
    while index >= stop and s.pending > 0:
        address = s.rows + index * ROW_SIZE
        r = row_at(address)
        out = buffer_of(S, r.out)
        if r.flags & DEAD or out.adj == 0 or out.flags & LISTED:
            index -= 1
            continue
        s.fault = index
        if out.attached and s.hooked != index:
            return SWEEP_HOOK
        need = wanted_inputs(S, index)
        if need == 0:
            retained = s.retain
            s.retain = 1
            finish_row(S, index)
            s.retain = retained
            index -= 1
            continue
        if r.flags & FREED:
            return SWEEP_FREED
        if r.saved:
            inputs = i32(address + ROW_INPUTS_OFFSET)
            versions = i32(address + ROW_VERSIONS_OFFSET)
            for k in range(4):
                if r.saved >> k & 1:
                    b = buffer_of(S, r.out if k == 3 else inputs[k])
                    if storage_of(S, b.storage).version != versions[k]:
                        s.fault_slot = k
                        return SWEEP_MODIFIED
        info = op_of(S, r.op)
        if info.kind == PYTHON:
            return SWEEP_PYTHON
        outcome = DONE
        if info.kind == VIEW:
            outcome = _reverse_view(S, address)
        else:
            key = buffer_of(S, r.in0).dtype if r.in0 else out.dtype
            if info.kind <= SELECT:
                key = out.dtype
                for k in range(3):
                    if need >> k & 1:
                        key = buffer_of(S, i32(address + ROW_INPUTS_OFFSET)[k]).dtype
            kernel = i64(s.reverse)[r.op * DTYPE_SLOTS + key]
            if kernel == 0:
                s.fault_slot = key
                return SWEEP_KERNEL
            if s.parallel == 0 and s.threads > 1:
                work = layout_of(S, out.layout).elements * info.cost
                if r.in0:
                    work = max(work, layout_of(S, buffer_of(S, r.in0).layout).elements * info.cost)
                if r.attr and info.kind == KERNEL:
                    extra = i64(r.attr)[1]
                    work = abs(i64(r.attr)[2 + extra]) * i64(r.attr)[3 + extra]
                if wants_threads(S, 2, work):
                    return SWEEP_PARALLEL
            if info.kind <= SELECT:
                outcome = _reverse_pointwise(S, address, need, kernel)
            elif info.kind == REDUCTION:
                outcome = _reverse_reduction(S, address, kernel)
            else:
                outcome = _reverse_kernel(S, address, need, kernel)
        if outcome != DONE:
            s.fault_slot = out.dtype
            return outcome
        finish_row(S, index)
        index -= 1
    return DONE


@internal_words
def next_row(S, start):
    """The row that a sweep from row `start` down runs next, -1 if nothing is left."""
    s = state_at(S)
    if s.pending > 0:
        for index in range(start, -1, -1):
            r = row_of(S, index)
            out = buffer_of(S, r.out)
            if not (r.flags & DEAD or out.adj == 0 or out.flags & LISTED):
                return index
    return -1


@internal_words
def begin_from(S, k, source, retain):
    """Begin a backward pass from buffer `k`: DONE, SWEEP_MEMORY, or SWEEP_BUSY, with nothing done, inside another sweep."""
    if state_at(S).sweeping:
        return SWEEP_BUSY
    enter_sweep(S, retain, 0)
    return DONE if seed(S, k, source) else SWEEP_MEMORY


@internal_words
def sweep_from(S, k, source, retain):
    """A whole backward pass from buffer `k`, in one call where nothing asks for Python.

    Returns:
        DONE; SWEEP_BUSY, with nothing done, inside another sweep; or why it stopped, to be resumed and settled.
    """
    outcome = begin_from(S, k, source, retain)
    if outcome == DONE:
        outcome = sweep(S, buffer_of(S, k).producer, 0)
    if outcome == DONE:
        outcome = settle(S)
        if outcome == DONE:
            leave_sweep(S)
    return outcome
