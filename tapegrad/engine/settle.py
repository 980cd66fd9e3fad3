"""What becomes of adjoints once a sweep is over, or fails."""

from tapegrad.engine.layout import contiguous_of
from tapegrad.engine.memory import adopt_storage, allocate, deallocate
from tapegrad.engine.structs import (
    ADJ_IS_GRAD,
    CAPTURE,
    DEAD,
    DONE,
    LISTED,
    REQUIRES_GRAD,
    SETTLE_PYTHON,
    SWEEP_MEMORY,
    buffer_of,
    internal_words,
    memcpy,
    row_of,
    state_at,
    storage_of,
)
from tapegrad.engine.tape import nbytes_of, new_buffer, reserve_buffer


@internal_words
def adjoint_buffer(S, k):
    """Turn the adjoint block of buffer `k` into a buffer of its own; its id, 0 if there is none or no memory."""
    if buffer_of(S, k).adj == 0 or not reserve_buffer(S):
        return 0
    b = buffer_of(S, k)
    layout = contiguous_of(S, b.layout)
    storage = adopt_storage(S, b.adj, nbytes_of(S, layout, b.dtype), 0, 0)
    if storage == 0:
        return 0
    b = buffer_of(S, k)
    data = b.adj
    b.adj = 0
    return new_buffer(S, storage, data, layout, b.dtype)


@internal_words
def settle(S):
    """Hand the adjoints of leaves and retained buffers over to their gradients: DONE, SWEEP_MEMORY, or SETTLE_PYTHON to have
    the adjoint of the buffer in ``fault`` added to its gradient.

    Buffers marked CAPTURE keep their adjoint for `adjoint_buffer`.
    """
    s = state_at(S)
    enough = True
    while s.touched:
        k = s.touched
        b = buffer_of(S, k)
        s.touched = b.link
        b.flags &= ~LISTED
        if b.adj == 0:
            continue
        if b.flags & CAPTURE:
            continue
        if b.producer < 0 and (b.attached or not b.flags & REQUIRES_GRAD):
            s.fault = k
            return SETTLE_PYTHON
        if b.flags & ADJ_IS_GRAD:
            b.flags &= ~ADJ_IS_GRAD
            b.adj = 0
            grad = buffer_of(S, b.grad)
            storage_of(S, grad.storage).version += 1
        elif b.grad == 0:
            g = adjoint_buffer(S, k)
            buffer_of(S, k).grad = g
            enough = enough and g != 0
        else:
            # a gradient that is not a plain block is added to out of place, over tensors
            s.fault = k
            return SETTLE_PYTHON
    return DONE if enough else SWEEP_MEMORY


@internal_words
def adjoint_drop(S, k):
    """Forget the adjoint of a result whose row is next, before it is given another one."""
    b = buffer_of(S, k)
    deallocate(S, b.adj, nbytes_of(S, b.layout, b.dtype))
    b.adj = 0
    state_at(S).pending -= 1


@internal_words
def adjoint_copy(S, k):
    """A new buffer with a copy of the adjoint of buffer `k`; 0 without memory."""
    if not reserve_buffer(S):
        return 0
    b = buffer_of(S, k)
    layout = contiguous_of(S, b.layout)
    size = nbytes_of(S, layout, b.dtype)
    block = allocate(S, size)
    if block == 0:
        return 0
    memcpy(block, b.adj, size)
    storage = adopt_storage(S, block, size, 0, 0)
    return new_buffer(S, storage, block, layout, b.dtype)


@internal_words
def abandon(S, start):
    """Free every adjoint a failed sweep left behind."""
    s = state_at(S)
    for index in range(start, -1, -1):
        r = row_of(S, index)
        out = buffer_of(S, r.out)
        if not r.flags & DEAD and out.adj:
            deallocate(S, out.adj, nbytes_of(S, out.layout, out.dtype))
            out.adj = 0
    while s.touched:
        b = buffer_of(S, s.touched)
        s.touched = b.link
        b.flags &= ~LISTED
        if b.adj:
            if b.flags & ADJ_IS_GRAD:
                b.flags &= ~ADJ_IS_GRAD
            else:
                deallocate(S, b.adj, nbytes_of(S, b.layout, b.dtype))
            b.adj = 0
    s.pending = 0
