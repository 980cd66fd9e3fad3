"""The adjoint of a view as an op: elements put back, among zeros, to where a view shows them."""

from __future__ import annotations

from collections.abc import Sequence

from tapegrad.engine.replay import scatter_view
from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import STALE_VIEW, TRACKED_VIEW, buffer_of, i64, layout_of, row_at
from tapegrad.metadata import layout_facts
from tapegrad.ops._kernel import KernelOp
from tapegrad.ops._view import Geometry, as_strided_op
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S


def _place_kernel(S, row, start, stop):
    r = row_at(row)
    x = buffer_of(S, r.in0)
    out = buffer_of(S, r.out)
    where, offset = i64(r.attr)[4], i64(r.attr)[5]
    scatter_view(S, x.data, x.layout, out.data, layout_of(S, out.layout).elements, where, offset, x.dtype, 1)


class _PlaceOp(KernelOp):
    def load_forward(self, dtype: int) -> None:
        """Build or load the forward kernel and the moves it uses."""
        rt.load_moves(dtype)
        super().load_forward(dtype)


def _place(op, x, shape, where, offset):
    """Zeros of a shape, with the elements of `x` added at the places of a view with layout `where`."""
    x = x.contiguous()
    return op.launch([x], shape, x.dtype, [where, offset], 1, 4 * max(x.numel(), 1))


_place.__name__ = "place"
place = _PlaceOp(_place, inputs=["x"], reference=None, grad_name="AsStridedBackward0", public=False, method=False)
place.covered_by = "as_strided"
place.forward(_place_kernel)


@place.backward
def _(g, words):
    return show_elements(g, words[0], words[1])


def show_elements(x: Tensor, layout: int, offset: int) -> Tensor:
    """The view with a layout and offset among the contiguous elements of `x`."""
    if not x.is_contiguous():
        x = x.contiguous()  # type: ignore[attr-defined]
    # of contiguous elements a view's own geometry is also its place among them
    k = rt.record_view(_S, as_strided_op.code, x._id, layout, offset, layout, offset)
    if k == STALE_VIEW:
        x._refresh()
        return show_elements(x, layout, offset)
    view = wrap(check_id(k) & ~TRACKED_VIEW)
    if k & TRACKED_VIEW:
        shape, strides, _ = layout_facts(layout)
        followed = not x._is_view()
        view._root = x if followed else None
        view._where = Geometry(tuple(shape), strides, offset) if followed else None
    return view


def place_back(g: Tensor, words: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The adjoint of a view's base of a shape, from the view's and its attribute words."""
    where, offset = words[0], words[1]
    if layout_facts(where)[2] and g.numel() == rt.layout_row(rt.layout(tuple(shape)))["elements"]:
        return g.reshape(shape)  # type: ignore[attr-defined]
    return place(g, shape, where, offset)
