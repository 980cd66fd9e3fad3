"""In-place operations beyond the plain case: promotion, saved operands, and views whose base must learn of the write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tapegrad import errors
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META, LOOK_NODE, LOOK_TRACED, LOOK_UNFOLLOWED
from tapegrad.ops import _reading, pointwise
from tapegrad.ops._operands import broadcast_shapes, result_type
from tapegrad.ops._place import show_elements
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import Op
from tapegrad.ops._view import check_view_may_be_written, rebuild
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S


class _CopySlices(Op):
    """The base of a view after a recorded write to the view."""

    def __init__(self) -> None:
        def copy_slices(base, view):
            """The base with a view's new elements in place."""

        super().__init__(copy_slices, structs.PYTHON, "CopySlices", None)
        rt.ops[self.code]["differentiable"] = 3

    def reverse(self, g: Tensor, need: int, kept: Sequence[Any], words: Sequence[int]) -> list[Tensor | None]:
        """The base's adjoint loses the written elements to the view's."""
        layout, offset = words[0], words[1]
        to_view = show_elements(g, layout, offset) if need & 2 else None
        to_base = None
        if need & 1:
            to_base = g.clone()  # type: ignore[attr-defined]
            show_elements(to_base, layout, offset).zero_()  # type: ignore[attr-defined]
        return [to_base, to_view]


copy_slices = _CopySlices()


def write(op: Pointwise, target: Tensor, others: Sequence[Any], answer: int) -> Tensor:
    """Finish an in-place call of a pointwise op that the fast path did not."""
    if target._base_tensor() is not None:
        target._refresh()
        if _records(target, others):
            check_view_may_be_written(target)
    operands = _converted(op, target, others)
    if operands is None:
        return assign(target, op(target, *others))
    while True:
        ids = [t._id for t in operands] + [0, 0]
        k = rt.record(_S, op.code | structs.IN_PLACE, ids[0], ids[1], ids[2])
        if k > 0:
            break
        if k == structs.VIEW_WRITTEN or k == structs.NEEDS_OLD_VALUE:
            _check_leaf(target)
            return assign(target, None, op, operands)
        op.refuse(k, operands)
    if k != target._id:
        rt.release(_S, target._id)
        target._id = k
    return target


def _converted(op: Pointwise, target: Tensor, others: Sequence[Any]) -> list[Tensor] | None:
    # operands in the target's dtype; None if the op has to be computed in another one and cast back
    dtype = target.dtype
    common = result_type(target, *others)
    if op.out is not None and op.out is not dtype:
        raise RuntimeError(
            f"result type {op.out.tensor_type} can't be cast to the desired output type {dtype.tensor_type}"
        )
    computed = common if common in op.dtypes else op.computed_in(common)
    if computed.category > dtype.category:
        raise RuntimeError(
            f"result type {computed.tensor_type} can't be cast to the desired output type {dtype.tensor_type}"
        )
    if computed is not dtype:
        return None
    return [target, *op.promote([target, *others], dtype)[1:]]


def _records(target: Tensor, others: Sequence[Any]) -> bool:
    tensors = [target, *(o for o in others if isinstance(o, Tensor))]
    if any(rt.look(_S, t._id, LOOK_TRACED) for t in tensors):
        return True
    return not rt.mode_of_thread(_S) and any(t.requires_grad for t in tensors)


def check_no_overlap(target: Tensor) -> None:
    """Refuse a write to a tensor whose elements share memory."""
    if target.numel() and any(s == 0 and n > 1 for s, n in zip(target.stride(), target.shape, strict=True)):
        raise RuntimeError(errors.SELF_OVERLAP)


def _check_leaf(target: Tensor) -> None:
    if not rt.mode_of_thread(_S) and target.requires_grad and rt.look(_S, target._id, LOOK_NODE) < 0:
        raise RuntimeError(errors.LEAF_IN_PLACE)


def assign(
    target: Tensor,
    value: Tensor | None,
    op: Pointwise | None = None,
    operands: Sequence[Tensor] = (),
    fresh: bool = False,
) -> Tensor:
    """Give `target` a new value on the tape, in the memory it already has.

    Args:
        target: the tensor written to.
        value: the new value, of its shape after broadcasting; or
        op: the op that computes it from
        operands: these tensors, the first being `target`.
        fresh: `value` is a new contiguous tensor that nobody else holds, so it need not be copied.
    """
    records = _records(target, [*operands, value])
    if records and _reading.sampling and _reading.check_write is not None:
        _reading.check_write(target, [*operands, value])
    if target._base_tensor() is not None and records:
        check_view_may_be_written(target)
    elif records:
        _check_leaf(target)
    shape, dtype = target.shape, target.dtype
    shown = value.shape if value is not None else broadcast_shapes(op.name, *[t.shape for t in operands])  # type: ignore[union-attr]
    name = op.name if op is not None else "copy"
    if broadcast_shapes(name, shape, shown) != tuple(shape):
        raise RuntimeError(
            f"{name}_: output with shape {list(shape)} doesn't match the broadcast shape "
            f"{list(broadcast_shapes(name, shape, shown))}"
        )
    flags = rt.look(_S, target._id, LOOK_META) >> 8
    if flags & structs.INFERENCE and not rt.mode_of_thread(_S) & structs.INFERENCE_MODE:
        raise RuntimeError(errors.INFERENCE_WRITTEN)
    unfollowed = flags & structs.NO_GRAD_VIEW or (records and rt.look(_S, target._id, LOOK_UNFOLLOWED))
    if unfollowed and not rt.mode_of_thread(_S):
        raise RuntimeError(errors.NO_GRAD_VIEW_WRITTEN)
    check_no_overlap(target)
    if not records:
        result = value if value is not None else wrap(op.run(operands))  # type: ignore[union-attr]
        rt.mark_written(_S, target._id, 0, 0)
        copy_elements(target, result)
        return target
    for t in (*operands, value):
        if t is not None:
            t._refresh()
    view = target._base_tensor() is not None
    if view and rt.state["attachments"]:
        # the new value is computed from the base's, past the hooks of this view and of those between them
        rebuild(target, target._root)
    # the place on the tape keeps the old elements, as a view of nothing; a new handle takes the memory that is written
    memory = _detached_copy(target)
    rt.take_memory(_S, target._id, memory._id)
    rt.set_flag(_S, target._id, structs.IS_VIEW, 0)
    try:
        if value is None:
            result = wrap(op.run(operands))  # type: ignore[union-attr]
        else:
            result = wrap(pointwise.copy.run([target, value.to(dtype)]))
    except BaseException:
        rt.take_memory(_S, target._id, memory._id)
        rt.set_flag(_S, target._id, structs.IS_VIEW, view)
        raise
    copy_elements(memory, result)
    rt.take_memory(_S, result._id, memory._id)
    rt.mark_written(_S, result._id, 1, int(view))
    if view:
        tell_base(target, result)
    else:
        rt.retain(_S, result._id)
        target._move_to(result._id)
    return target


def in_place_of(function: Callable, check: Callable[[Tensor, Tensor], None] | None = None) -> Callable:
    """A method that writes what a function of a tensor returns into that tensor.

    Args:
        function: the function.
        check: refuses a result, given the tensor and it.
    """
    name = function.__name__ + "_"

    def method(self: Tensor, *args: Any, **named: Any) -> Tensor:
        result = function(self, *args, **named)
        if check is not None:
            check(self, result)
        return assign(self, result, fresh=result._base_tensor() is None)

    method.__name__ = name
    method.__qualname__ = f"Tensor.{name}"
    method.__doc__ = f"In-place version of `{function.__name__}`."
    return method


def _detached_copy(t: Tensor) -> Tensor:
    before = rt.set_mode(_S, structs.NO_GRAD_MODE | rt.mode_of_thread(_S))
    try:
        return t.clone()
    finally:
        rt.set_mode(_S, before)


def copy_elements(target: Tensor, source: Tensor) -> None:
    """Copy elements into a tensor's memory, outside the tape."""
    target._memory_array()[...] = source._memory_array()


def tell_base(view: Tensor, written: Tensor) -> None:
    """Let the base of a written view become "itself with these elements", and the view a view of that."""
    base, where = view._root, view._where
    if where is None:
        raise RuntimeError(
            "a view whose place in its base is not a regular one cannot be written to; write to the base"
        )
    old = base._id
    k = check_id(rt.share_leaf(_S, old, 2))
    attributes = rt.attributes(0, rt.strided_layout(where.shape, where.strides), where.offset)
    rt.record_on(_S, copy_slices.code, k, old, written._id, 0, attributes)
    base._move_to(k)
    rebuild(view, base, written)
