"""Forward mode: tangents pushed along a trace, each by the derivative its operation declares.

An elementwise operation multiplies by its partials; a view shows the same elements of the tangent; any other one applies the
transpose of its backward, which is linear in the adjoint: :math:`J t = \\nabla_g \\langle J^T g, t \\rangle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tapegrad.autograd.backward import grad
from tapegrad.autograd.rows import Row, RowOp, conform, dtype_of, operands, shape_of
from tapegrad.autograd.tracing import check_kept, kept_values
from tapegrad.creation import zeros
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.grad_mode import is_grad_enabled, set_grad_enabled
from tapegrad.metadata import layout_facts
from tapegrad.ops._place import show_elements
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import Op
from tapegrad.ops._view import detach_op
from tapegrad.ops._write import copy_slices
from tapegrad.tensor import Tensor


def push_forward(rows: Iterable[Row], tangents: dict[int, Tensor]) -> None:
    """Add to `tangents`, by id of buffer, those of everything the rows compute from what has one."""
    for row in rows:
        given = [tangents.get(k) if k else None for k in operands(row)]
        if row.out in tangents or not dtype_of(row.out).is_floating_point or all(t is None for t in given):
            continue
        found = tangent_of(row, given)
        if found is not None:
            tangents[row.out] = found


def tangent_of(row: Row, given: Sequence[Tensor | None]) -> Tensor | None:
    """The tangent of a row's result.

    Args:
        row: the row, traced.
        given: the tangents of its operands.

    Returns:
        A tensor of the result's shape and dtype; None if it does not depend on those operands.
    """
    op = row.op
    if op is detach_op:
        return None
    if op.kind == structs.VIEW:
        assert given[0] is not None
        return show_elements(given[0], row.words[0], row.words[1])
    if op is copy_slices:
        return _of_written_base(row, given)
    if isinstance(op, RowOp):
        found = op.tangent(row, given)
    elif isinstance(op, Pointwise):
        found = _by_partials(op, row, given)
    else:
        found = _by_transposing(row, given)
    return None if found is None else conform(found, shape_of(row.out), dtype_of(row.out))


def _of_written_base(row: Row, given: Sequence[Tensor | None]) -> Tensor:
    base = zeros(shape_of(row.out), dtype=dtype_of(row.out)) if given[0] is None else given[0].clone()  # type: ignore[attr-defined]
    facts = layout_facts(row.words[0])
    part = base.as_strided(tuple(facts[0]), facts[1], row.words[1])
    part.copy_(zeros(facts[0], dtype=base.dtype) if given[1] is None else given[1])
    return base


def _by_partials(op: Pointwise, row: Row, given: Sequence[Tensor | None]) -> Tensor | None:
    if op.derivative is None:
        return None
    total = None
    uses = op.partial_uses()
    for slot, used in uses.items():
        t = given[slot]
        if t is None:
            continue
        check_kept(row, [3 if n == "out" else op.parameters.index(n) for n in used if n != "g"])
        part = op.reverse(t, 1 << slot, kept_values(row), row.words)[slot]
        if part is not None:
            total = part if total is None else total + part
    return total


def by_transposing(
    op: Op, words: Sequence[int], need: int, kept: Sequence[Tensor | None], given: Sequence[Tensor | None]
) -> Tensor | None:
    """The tangent of an operation's result as the transpose of its backward.

    Args:
        op: the operation.
        words: its attributes.
        need: mask of the operands that have a tangent.
        kept: its three operands and its result.
        given: the tangents of its operands.
    """
    if not rt.ops[op.code]["differentiable"] or kept[3] is None:
        return None
    saved = int(rt.ops[op.code]["saved"][need & 7])
    pairs = []
    with set_grad_enabled(True):
        g = zeros(kept[3].shape, dtype=kept[3].dtype, requires_grad=True)
        parts = op.reverse(g, need, [v if saved >> k & 1 else None for k, v in enumerate(kept)], words)
        for part, t in zip(parts, given, strict=False):
            if part is not None and t is not None and part.requires_grad:
                pairs.append((conform(part, t.shape, t.dtype), t))
    if not pairs:
        return None
    roots, starts = zip(*pairs, strict=True)
    return grad(roots, [g], starts, create_graph=is_grad_enabled(), allow_unused=True)[0]


def _by_transposing(row: Row, given: Sequence[Tensor | None]) -> Tensor | None:
    need = sum(1 << k for k, t in enumerate(given[:3]) if t is not None)
    need |= 8 if any(t is not None for t in given[3:]) else 0
    saved = int(rt.ops[row.op.code]["saved"][need & 7])
    check_kept(row, [k for k in range(4) if saved >> k & 1])
    return by_transposing(row.op, row.words, need, kept_values(row), given)
