"""Views: one declaration is a function on geometries.

A view op says which elements it shows as a function from one geometry (shape, strides, offset) to another. Applied to the
tensor's own geometry it gives the view; applied to the contiguous geometry of its shape it says where the view's
adjoint belongs in the adjoint of the base. So no view has a backward of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from tapegrad import errors
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META, LOOK_OP
from tapegrad.metadata import layout_facts
from tapegrad.ops._public import export
from tapegrad.ops._rule import OPS, Op
from tapegrad.tensor import Tensor

_S = rt.S
_new = object.__new__
_TRACKED = structs.IS_VIEW << 8


class Geometry(NamedTuple):
    """Where elements are: extents, strides and first element, counted in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


def contiguous_geometry(shape: tuple[int, ...]) -> Geometry:
    """The row-major geometry of a shape."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return Geometry(shape, tuple(reversed(strides)), 0)


class ViewOp(Op):
    """An op that shows some elements of a tensor under another shape.

    The declared function takes a `Geometry` and the op's arguments and returns a `Geometry`, or None if there is no such view.
    """

    def __init__(self, function: Callable, grad_name: str | None, reference: Any, samples: Any) -> None:
        super().__init__(function, structs.VIEW, grad_name, reference)
        self.samples = samples
        self._plan = functools.lru_cache(1024)(self._plan_of)
        row = rt.ops[self.code]
        row["differentiable"] = 1

    def __call__(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"{self.name}(): argument 'input' (position 1) must be Tensor, not {type(x).__name__}")
        meta = rt.look(_S, x._id, LOOK_META)
        layout = meta >> 16
        step = functools.partial(self._shown, args, named)
        try:
            plan = self._plan(layout, args) if not named else plan_view(self.code, layout, step)
        except TypeError:  # arguments that cannot be remembered, or wrong ones
            plan = plan_view(self.code, layout, step)
        return self.without_view(x, *args, **named) if plan is None else show(x, meta, plan, step)

    def _plan_of(self, layout: int, args: tuple) -> ViewPlan | None:
        return plan_view(self.code, layout, functools.partial(self._shown, args, {}))

    def _shown(self, args: tuple, named: dict[str, Any], geometry: Geometry) -> Geometry | None:
        return self.function(geometry, *args, **named)

    def without_view(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        """What to do where the elements cannot be shown in place."""
        raise RuntimeError(
            f"{self.name} size is not compatible with input tensor's size and stride (at least one dimension spans across two "
            "contiguous subspaces). Use .reshape(...) instead."
        )


class ViewPlan(NamedTuple):
    """What `show` has to know of a view of any tensor with one layout."""

    code: int  # opcode, which names the `grad_fn`
    layout: int
    offset: int
    target: int  # layout and offset among contiguous elements
    target_offset: int
    where: Geometry


def plan_view(code: int, layout: int, step: Callable[[Geometry], Geometry | None]) -> ViewPlan | None:
    """Work out a view of tensors with a layout; None if there is none.

    Args:
        code: the opcode.
        layout: id of the tensor's layout.
        step: the declared function with its arguments.
    """
    shape, strides, contiguous = layout_facts(layout)
    shown = step(Geometry(shape, strides, 0))
    if shown is None:
        return None
    where = shown if contiguous else step(contiguous_geometry(shape))
    assert where is not None
    target = rt.strided_layout(where.shape, where.strides)
    return ViewPlan(code, rt.strided_layout(shown.shape, shown.strides), shown.offset, target, where.offset, where)


def show(x: Tensor, meta: int, plan: ViewPlan, step: Callable[[Geometry], Geometry | None]) -> Tensor:
    """Record a planned view of `x`, of which `meta` was looked up; `step` is applied to its place if it is a view itself."""
    code, layout, offset, target, target_offset, where = plan
    k = rt.record_view(_S, code, x._id, layout, offset, target, target_offset)
    if k < 0:
        if k != structs.STALE_VIEW:
            raise MemoryError("no memory for a view")
        x._refresh()
        return show(x, rt.look(_S, x._id, LOOK_META), plan, step)
    view = _new(Tensor)
    if k < structs.TRACKED_VIEW:
        view._id = k
        return view
    view._id = k - structs.TRACKED_VIEW
    if meta & _TRACKED:
        view._root = x._root
        view._where = None if x._where is None else step(x._where)
    else:
        view._root, view._where = x, where
    return view


def view_op(
    *, reference: Any, samples: Any, grad_name: str | None = None, method: bool = True, public: bool = True
) -> Callable:
    """Declare a view by a function on geometries.

    Args:
        reference: what it must agree with on NumPy arrays.
        samples: ``(shape, args)`` pairs to test it with.
        grad_name: name of its `grad_fn`.
        method: whether it becomes a method of tensors.
        public: whether it becomes a function of the package.
    """

    def declare(function: Callable) -> ViewOp:
        op = ViewOp(function, grad_name, reference, samples)
        export(op, method=method, public=public)
        return op

    return declare


def as_strided(geometry, shown):
    """A view given by its geometry in the contiguous elements of its base."""
    return shown


as_strided_op = ViewOp(as_strided, "AsStridedBackward0", None, ())
detach_op = ViewOp(as_strided, "AsStridedBackward0", None, ())
OPS[structs.DETACHED] = detach_op
rt.ops[structs.DETACHED]["kind"] = structs.VIEW


def rebuild(view: Tensor, base: Tensor, shown: Tensor | None = None) -> None:
    """Make a stale view a view of its base's new value.

    Args:
        view: the view.
        base: its base.
        shown: a tensor that lies in memory as the view must, if the view itself no longer does.
    """
    where = view._where
    if where is None:
        raise RuntimeError(
            "a view whose place in its base is not a regular one was used after the base was modified in place; "
            "take the view again from the modified tensor, or clone() it before the modification"
        )
    shown = view if shown is None else shown
    layout = rt.look(_S, shown._id, LOOK_META) >> 16
    base_data, data = base.data_ptr(), shown.data_ptr()
    offset = (data - base_data) // view.itemsize
    target = rt.strided_layout(where.shape, where.strides)
    base._refresh()
    # it was taken while recording, whatever the mode it is used in
    mode = rt.set_mode(_S, 0)
    try:
        k = rt.record_view(_S, as_strided_op.code, base._id, layout, offset, target, where.offset)
    finally:
        rt.set_mode(_S, mode)
    if k <= 0:
        raise MemoryError("no memory for a view")
    view._move_to(k & ~structs.TRACKED_VIEW)


def check_view_may_be_written(view: Tensor) -> None:
    """Refuse a recorded write to a view of a leaf that requires grad, or one whose derivative would not know of it."""
    code = rt.look(_S, view._id, LOOK_OP)
    op: Any = OPS[code] if code >= 0 else None
    refuse = getattr(op, "refuse_write", None)
    if refuse is not None:
        refuse(view)
    base = view._base_tensor()
    if base is not None and base.is_leaf and base.requires_grad:
        raise RuntimeError(errors.LEAF_VIEW_IN_PLACE)
    if getattr(op, "multiple", False):
        raise RuntimeError(errors.MULTIPLE_VIEWS_IN_PLACE.format(name=op.grad_name, number=0))
