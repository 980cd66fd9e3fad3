"""Eager execution: append one row, run its kernel.

Every function returns the id of the result, or one of the negative answers of structs.py with the tape as it was. Python
then loads a kernel, inserts a cast, raises, and so on (see runtime.py).
"""

from tapegrad.engine.layout import begin_plan, broadcast, contiguous_of, plan, same_shape
from tapegrad.engine.leaves import constant
from tapegrad.engine.memory import allocate, deallocate, new_storage
from tapegrad.engine.modes import mode_of_thread
from tapegrad.engine.structs import (
    DTYPE_SLOTS,
    IN_PLACE,
    INFERENCE,
    INFERENCE_MODE,
    INFERENCE_SAVED,
    INFERENCE_WRITTEN,
    IS_VIEW,
    LEAF_WRITTEN,
    MIXED_DTYPES,
    NATIVE_AFTER,
    NEEDS_KERNEL,
    NEEDS_NATIVE,
    NEEDS_OLD_VALUE,
    NEEDS_PARALLEL,
    NO_GRAD_ROW,
    NO_GRAD_VIEW,
    NO_GRAD_VIEW_WRITTEN,
    NO_MEMORY,
    NOT_BROADCASTABLE,
    OP_SAVED_OFFSET,
    OP_SIZE,
    OPERAND_OFFSET,
    PARTIAL_OVERLAP,
    REQUIRES_GRAD,
    REVERSED,
    ROW_SIZE,
    SAME_DTYPE,
    SEES_WRITES,
    SELECT,
    SELF_OVERLAP,
    STALE_VIEW,
    TRACED,
    TRACKED_VIEW,
    UNFOLLOWED,
    UNSUPPORTED_DTYPE,
    VIEW_HANDLED,
    VIEW_WRITTEN,
    WRONG_DTYPE,
    WRONG_SHAPE,
    bits_of,
    buffer_of,
    call_kernel,
    call_parallel,
    i8,
    i64,
    internal_inline,
    internal_words,
    itemsize,
    layout_of,
    op_of,
    row_at,
    shape_of,
    state_at,
    storage_of,
    strides_of,
)
from tapegrad.engine.tape import (
    commit_row,
    free_block,
    move_grad,
    new_buffer,
    release,
    reserve_buffer,
    reserve_row,
    view_attributes,
)

# work worth sharing among threads, in quarter nanoseconds: waking them costs about 50 microseconds
PARALLEL_WORK = 600_000


@internal_words
def run_kernel(S, kernel, row, items, work):
    """Run a kernel over its work items, on all cores when the work is worth it."""
    s = state_at(S)
    if work > PARALLEL_WORK and s.threads > 1 and items > 1:
        call_parallel(s.parallel, kernel, S, row, items, max(items // (s.threads * 4), 1))
    else:
        call_kernel(kernel, S, row, 0, items)


@internal_words
def take_failure(S):
    """What the kernel that ran last wants answered, 0 if it did its work; it is told once."""
    s = state_at(S)
    failure = s.failure
    s.failure = 0
    return failure


@internal_inline
def wants_threads(S, items, work):
    """Whether a call should wait for the parallel driver to be loaded."""
    s = state_at(S)
    return s.parallel == 0 and s.threads > 1 and items > 1 and work > PARALLEL_WORK


@internal_words
def is_stale(S, k):
    """Whether a buffer is a view of something since rewritten by a recorded operation."""
    b = buffer_of(S, k)
    if b.flags & IS_VIEW and b.storage:
        return storage_of(S, b.storage).graph_version != b.stamp
    return False


@internal_inline
def _overlaps_itself(S, k):
    ndim = layout_of(S, k).ndim
    for d in range(ndim):
        if strides_of(S, k)[d] == 0 and shape_of(S, k)[d] > 1:
            return layout_of(S, k).elements > 0
    return False


@internal_words
def _span(S, k):
    # elements from the first to the last one a layout reaches
    reach = 1
    ndim = layout_of(S, k).ndim
    for d in range(ndim):
        if shape_of(S, k)[d] == 0:
            return 0
        reach += (shape_of(S, k)[d] - 1) * strides_of(S, k)[d]
    return reach


@internal_words
def _overlaps_partly(S, a, b):
    # whether an operand shares memory with the written buffer without being the very same elements
    A = buffer_of(S, a)
    B = buffer_of(S, b)
    if A.data == B.data and A.layout == B.layout:
        return False
    end_a = A.data + _span(S, A.layout) * itemsize(A.dtype)
    end_b = B.data + _span(S, B.layout) * itemsize(B.dtype)
    return A.data < end_b and B.data < end_a


@internal_words
def record(S, op, a, b, c):
    """Record and run a pointwise opcode on buffers `a`, `b`, `c` (0: absent), broadcasting.

    `op` may carry IN_PLACE: then the result is written into `a`, and the id returned is `a` itself unless the write was
    recorded.
    """
    options = op
    op = op & 0xFFFF
    s = state_at(S)
    s.eager_ops += 1
    if s.native == 0 and s.eager_ops > NATIVE_AFTER:
        return NEEDS_NATIVE
    info = op_of(S, op)
    A = buffer_of(S, a)
    la = A.layout
    dtype = A.dtype
    views = A.flags
    need = A.flags & 1
    lb = 0
    lc = 0
    target = la
    if b:
        B = buffer_of(S, b)
        lb = B.layout
        views |= B.flags
        need |= (B.flags & 1) << 1
        if B.dtype != dtype:
            if info.kind != SELECT or dtype != 7:
                return MIXED_DTYPES
            dtype = B.dtype
        if c:
            C = buffer_of(S, c)
            lc = C.layout
            views |= C.flags
            need |= (C.flags & 1) << 2
            if C.dtype != dtype:
                return MIXED_DTYPES
            target = broadcast(S, la, lb)
            if target:
                target = broadcast(S, target, lc)
        else:
            target = broadcast(S, la, lb)
        if target == 0:
            return NOT_BROADCASTABLE
    else:
        target = contiguous_of(S, la)
    if views & IS_VIEW and (is_stale(S, a) or (b and is_stale(S, b)) or (c and is_stale(S, c))):
        return STALE_VIEW
    if not info.dtypes >> dtype & 1:
        return UNSUPPORTED_DTYPE
    kernel = i64(s.forward)[op * DTYPE_SLOTS + dtype]
    if kernel == 0:
        return NEEDS_KERNEL
    mode = mode_of_thread(S)
    need = 0 if mode else need & info.differentiable
    traced = views & s.trace_mask
    saved = i8(s.ops + op * OP_SIZE + OP_SAVED_OFFSET)[need]
    out_dtype = dtype if info.out_dtype == SAME_DTYPE else info.out_dtype
    if need and views & INFERENCE:
        inference = (A.flags & INFERENCE and saved & 1) or (b and saved & 2 and buffer_of(S, b).flags & INFERENCE)
        if inference:
            return INFERENCE_SAVED
    written = options & IN_PLACE
    out_layout = target
    if written:
        if not same_shape(S, target, la):
            return WRONG_SHAPE
        if out_dtype != A.dtype:
            return WRONG_DTYPE
        if mode == 0 and A.flags & REQUIRES_GRAD and A.producer < 0 and not options & VIEW_HANDLED:
            return LEAF_WRITTEN
        if A.flags & INFERENCE and not mode & INFERENCE_MODE:
            return INFERENCE_WRITTEN
        if mode == 0 and (
            A.flags & NO_GRAD_VIEW or (need and A.flags & UNFOLLOWED and storage_of(S, A.storage).refs > 1)
        ):
            return NO_GRAD_VIEW_WRITTEN
        if (need or traced) and A.flags & IS_VIEW and not options & VIEW_HANDLED:
            return VIEW_WRITTEN
        if _overlaps_itself(S, la):
            return SELF_OVERLAP
        if (b and _overlaps_partly(S, a, b)) or (c and _overlaps_partly(S, a, c)):
            return PARTIAL_OVERLAP
        # by now an operand that begins where the result does is the same elements under another name
        again = (b and saved & 2 and buffer_of(S, b).data == A.data) or (
            c and saved & 4 and buffer_of(S, c).data == A.data
        )
        if saved & 1 or again or ((need or traced) and s.watched & SEES_WRITES):
            return NEEDS_OLD_VALUE
        if traced and (not A.flags & TRACED or i8(s.ops + op * OP_SIZE + OP_SAVED_OFFSET)[info.differentiable & 7] & 1):
            return NEEDS_OLD_VALUE
        out_layout = la

    # where the operands are along the result's elements
    elements = layout_of(S, target).elements
    begin_plan(S)
    operand = i64(S + OPERAND_OFFSET)
    operand[0] = out_layout
    operand[1] = la
    operand[2] = lb
    operand[3] = lc
    items = plan(S, target)
    work = elements * info.cost
    if work > PARALLEL_WORK and wants_threads(S, items, work):
        return NEEDS_PARALLEL

    if not (reserve_buffer(S) and reserve_row(S)):
        return NO_MEMORY
    row = s.rows + s.row_count * ROW_SIZE
    r = row_at(row)
    r.op = op
    r.flags = NO_GRAD_ROW if mode else 0
    r.attr = 0
    r.in0 = a
    r.in1 = b
    r.in2 = c
    if written:
        A = buffer_of(S, a)
        storage = A.storage
        shared = storage_of(S, storage)
        out = a
        if need or traced:
            shared.refs += 1
            out = new_buffer(S, storage, A.data, la, dtype)
            buffer_of(S, out).flags = buffer_of(S, a).flags & IS_VIEW
            move_grad(S, a, out)
        r.out = out
        run_kernel(S, kernel, row, items, work)
        shared = storage_of(S, storage)
        shared.version += 1
        if s.failure:
            if out != a:
                release(S, out)
            return take_failure(S)
        if need or traced:
            shared.graph_version += 1
            buffer_of(S, out).stamp = shared.graph_version
            commit_row(S, row, need, saved, traced)
        return out
    storage = new_storage(S, elements * itemsize(out_dtype))
    if storage == 0:
        return NO_MEMORY
    out = new_buffer(S, storage, storage_of(S, storage).base, out_layout, out_dtype)
    r.out = out
    run_kernel(S, kernel, row, items, work)
    if s.failure:
        release(S, out)
        return take_failure(S)
    if mode & INFERENCE_MODE:
        buffer_of(S, out).flags |= INFERENCE
    if need or traced:
        commit_row(S, row, need, saved, traced)
    return out


@internal_inline
def scalar_operand(S, a, value):
    """Id of the 0-d constant that a Python number is beside buffer `a`, or MIXED_DTYPES if that is not a floating one."""
    dtype = buffer_of(S, a).dtype
    if dtype > 1:
        return MIXED_DTYPES
    return constant(S, bits_of(value), dtype)


@internal_inline
def record_scalar(S, op, a, value):
    """Record and run a binary pointwise opcode of a floating buffer and a Python number (REVERSED: the number first)."""
    c = scalar_operand(S, a, value)
    if c < 0:
        return c
    back = op & REVERSED
    return record(S, op & ~REVERSED, c if back else a, a if back else c, 0)


@internal_words
def record_view(S, op, a, layout, offset, where, where_offset):
    """Record a view of buffer `a`: the same memory from element `offset` on, under another layout.

    `where` and `where_offset` say where the view lies in the logical (contiguous) elements of `a`, which is where its adjoint
    goes. The answer carries TRACKED_VIEW if the view has to follow recorded writes to its base.
    """
    if not reserve_buffer(S) or not reserve_row(S):
        return NO_MEMORY
    s = state_at(S)
    if is_stale(S, a):
        return STALE_VIEW
    A = buffer_of(S, a)
    mode = mode_of_thread(S)
    need = 1 if mode == 0 and A.flags & REQUIRES_GRAD else 0
    traced = A.flags & s.trace_mask
    recorded = need or traced
    attr = view_attributes(S, where, where_offset) if recorded else 0
    if recorded and attr == 0:
        return NO_MEMORY
    storage = A.storage
    shared = storage_of(S, storage)
    shared.refs += 1
    out = new_buffer(S, storage, A.data + offset * itemsize(A.dtype), layout, A.dtype)
    A = buffer_of(S, a)
    O = buffer_of(S, out)
    O.flags = A.flags & INFERENCE
    if A.flags & UNFOLLOWED and shared.refs > 2:
        O.flags |= UNFOLLOWED  # others than these two show the memory
    if mode and A.flags & (REQUIRES_GRAD | NO_GRAD_VIEW):
        O.flags |= NO_GRAD_VIEW
    if mode and not traced:
        O.flags |= UNFOLLOWED
        if s.trace_mask == 0:  # a transformation records what is written, also without gradient
            return out
    O.flags |= IS_VIEW
    O.stamp = shared.graph_version
    if recorded:
        row = s.rows + s.row_count * ROW_SIZE
        r = row_at(row)
        r.op = op
        r.flags = NO_GRAD_ROW if mode else 0
        r.attr = attr
        r.out = out
        r.in0 = a
        r.in1 = 0
        r.in2 = 0
        commit_row(S, row, need, 0, traced)
    return out | TRACKED_VIEW


@internal_words
def record_kernel(S, op, a, b, c, layout, dtype, attr):
    """Record and run an opcode with its own kernel; the caller has worked out the result's layout and dtype.

    The attribute block is ``[words, extra inputs, their ids ..., work items, work of one, own attributes ...]``; a negative number of
    items asks for a last call that merges partial results. It is freed here when nothing is recorded, and left on failure.
    """
    s = state_at(S)
    info = op_of(S, op)
    ids = (a, b, c)
    need = 0
    extra = i64(attr)[1]
    stale = False
    inference = 0
    traced = 0
    for k in range(3):
        if ids[k]:
            B = buffer_of(S, ids[k])
            need |= (B.flags & 1) << k
            traced |= B.flags & s.trace_mask
            stale = stale or is_stale(S, ids[k])
            if B.flags & INFERENCE:
                inference |= 1 << k
    for k in range(extra):
        B = buffer_of(S, i64(attr)[2 + k])
        if B.flags & REQUIRES_GRAD:
            need |= 8
        traced |= B.flags & s.trace_mask
        stale = stale or is_stale(S, i64(attr)[2 + k])
    if stale:
        return STALE_VIEW
    key = buffer_of(S, a).dtype
    kernel = i64(s.forward)[op * DTYPE_SLOTS + key]
    if kernel == 0:
        return NEEDS_KERNEL
    mode = mode_of_thread(S)
    need = 0 if mode else need & info.differentiable
    saved = i8(s.ops + op * OP_SIZE + OP_SAVED_OFFSET)[need & 7]
    if need and inference & saved:
        return INFERENCE_SAVED
    items = i64(attr)[2 + extra]
    merges = items < 0
    items = abs(items)
    work = items * i64(attr)[3 + extra]
    if wants_threads(S, items, work):
        return NEEDS_PARALLEL
    if not (reserve_buffer(S) and reserve_row(S)):
        return NO_MEMORY
    storage = new_storage(S, layout_of(S, layout).elements * itemsize(dtype))
    if storage == 0:
        return NO_MEMORY
    out = new_buffer(S, storage, storage_of(S, storage).base, layout, dtype)
    row = s.rows + s.row_count * ROW_SIZE
    r = row_at(row)
    r.op = op
    r.flags = NO_GRAD_ROW if mode else 0
    r.attr = attr
    r.out = out
    r.in0 = a
    r.in1 = b
    r.in2 = c
    if merges:
        # partial results of each item, then one call that merges them
        s.scratch = allocate(S, items * 8)
        if s.scratch == 0:
            release(S, out)
            return NO_MEMORY
        run_kernel(S, kernel, row, items, work)
        call_kernel(kernel, S, row, -1, items)
        deallocate(S, s.scratch, items * 8)
    else:
        run_kernel(S, kernel, row, items, work)
    if s.failure:
        release(S, out)
        return take_failure(S)
    if mode & INFERENCE_MODE:
        buffer_of(S, out).flags |= INFERENCE
    if need or traced:
        for k in range(extra):
            buffer_of(S, i64(attr)[2 + k]).refs += 1
        commit_row(S, row, need, saved, traced)
    else:
        free_block(S, attr)
    return out


@internal_words
def record_on(S, op, k, a, b, saved, attr):
    """Make buffer `k`, already filled, the recorded result of opcode `op` on buffers `a`, `b` and those in its attributes."""
    if not reserve_row(S):
        return NO_MEMORY
    s = state_at(S)
    row = s.rows + s.row_count * ROW_SIZE
    r = row_at(row)
    r.op = op
    r.flags = NO_GRAD_ROW if mode_of_thread(S) else 0
    r.attr = attr
    r.out = k
    r.in0 = a
    r.in1 = b
    r.in2 = 0
    flags = buffer_of(S, a).flags if a else 0
    need = flags & 1
    traced = flags & s.trace_mask
    if b:
        need |= (buffer_of(S, b).flags & 1) << 1
        traced |= buffer_of(S, b).flags & s.trace_mask
    for j in range(i64(attr)[1]):
        B = buffer_of(S, i64(attr)[2 + j])
        B.refs += 1
        need |= (B.flags & 1) << 3
        traced |= B.flags & s.trace_mask
    if mode_of_thread(S):
        need = 0
    commit_row(S, row, need, saved if need else 0, traced)
    return k
