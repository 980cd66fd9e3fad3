"""Where adjoints end: in the gradients of leaves, and of results that retain theirs."""

from __future__ import annotations

from tapegrad import errors
from tapegrad.autograd.attached import attachment, run_accumulated, run_after, run_before
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_GRAD
from tapegrad.grad_mode import is_grad_enabled
from tapegrad.tensor import Tensor, leaves

_S = rt.S


def add_to_grad(t: Tensor, g: Tensor) -> None:
    """Add to the gradient of a leaf, or of a result that retains its own."""
    # what is accumulated in is nobody else's: others may hold the adjoint
    held = t.grad if rt.look(_S, t._id, LOOK_GRAD) else None
    if held is None:
        t.grad = g.clone() if g.is_contiguous() else g.contiguous()
    elif is_grad_enabled() or not t.is_leaf or not held.is_contiguous():
        t.grad = held + g
    else:
        held.add_(g)


def add_to_leaf(t: Tensor, g: Tensor) -> None:
    """Have an adjoint arrive at a leaf: its node's hooks run, and its gradient is added to.

    Raises:
        RuntimeError: if the leaf has become a result since.
    """
    attached = attachment(t._id)
    if attached is None:
        _add_where_wanted(t, g)
        return
    arrived = run_before(attached, (g,))
    if arrived[0] is not None:
        _add_where_wanted(t, arrived[0])
        run_accumulated(attached, t)
    run_after(attached, (), arrived)


def _add_where_wanted(t: Tensor, g: Tensor) -> None:
    # requires_grad of a leaf may have been switched off since it was used, and the leaf even have been written to then
    if t.requires_grad:
        add_to_grad(t, g)
        return
    known = leaves.get(t._id)
    now = known() if known is not None else None
    if now is not None and now._id != t._id and now.requires_grad:
        raise RuntimeError(errors.LEAF_MOVED)
