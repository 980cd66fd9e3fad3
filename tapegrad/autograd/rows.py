"""Rows of the tape as Python reads them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad import dtypes, errors
from tapegrad.autograd.attached import attachment
from tapegrad.engine import structs
from tapegrad.engine.paths import ROW_COUNT, ROW_FIRST_WORD, ROW_WORDS
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META, LOOK_OP
from tapegrad.metadata import Size, layout_facts
from tapegrad.ops._place import place_back
from tapegrad.ops._rule import OPS, Op
from tapegrad.ops.convert import clone
from tapegrad.tensor import Tensor, leaves, wrap

_S = rt.S
_FIELDS = ("in0", "in1", "in2")


class RowOp(Op):
    """An op whose derivative depends on what is attached to its row.

    Attributes:
        part_of_node: to users its rows belong to the node of their operand.
    """

    part_of_node = False

    def arrived(self, row: Row, g: Tensor) -> Sequence[Tensor | None]:
        """The adjoints of all its results, of which `g` is that of the row's."""
        return (g,)

    def parts(self, row: Row, arrived: Sequence[Tensor | None], need: int) -> Sequence[Tensor | None]:
        """What it adds to the adjoint of each of the row's `operands`."""
        raise NotImplementedError

    def tangent(self, row: Row, given: Sequence[Tensor | None]) -> Tensor | None:
        """The tangent of the row's result, from those of its `operands`."""
        raise NotImplementedError

    def free(self, row: Row) -> None:
        """Let go of what is kept for a row's derivative."""


class Row(NamedTuple):
    """One recorded operation.

    `inputs` are the ids of up to three operands (0 where absent or not kept), `extra` of any more, `words` the op's attributes after
    them.
    """

    index: int  # type: ignore[assignment]
    op: Op
    out: int
    inputs: tuple[int, ...]
    extra: list[int]
    words: list[int]
    saved: int
    flags: int
    need: int  # mask of the operands that gradients flow on to
    stale: int  # mask of the values it holds that were written to since
    attached: bool  # whether anything is attached to the result
    meta: int  # of the result
    metas: tuple[int, int, int]  # of the three operands


def read_row(index: int) -> Row:
    """The row at an index of the tape."""
    block = _block()
    size = rt.describe_row(_S, index, block.address)
    if size > ROW_WORDS:
        return _read_long_row(index, size)
    return _row(index, block.array[:size].tolist())


def _row(index: int, words: list[int]) -> Row:
    code, flags, saved, need, stale, attached, out, meta, a, ma, b, mb, c, mc, extra = words[:ROW_COUNT]
    first = ROW_FIRST_WORD + extra
    return Row(
        index,
        OPS[code],  # type: ignore[arg-type]
        out,
        (a, b, c),
        words[ROW_FIRST_WORD:first],
        words[first:],
        saved,
        flags,
        need,
        stale,
        bool(attached),
        meta,
        (ma, mb, mc),
    )


class _Block:
    # memory that a thread has rows described in
    def __init__(self) -> None:
        self.array = np.zeros(ROW_WORDS, np.int64)
        self.address: int = self.array.__array_interface__["data"][0]


_blocks = threading.local()


def _block() -> _Block:
    try:
        return _blocks.block
    except AttributeError:
        _blocks.block = _Block()
        return _blocks.block


def _read_long_row(index: int, size: int) -> Row:
    # the fixed words are there; many operands or attributes are read from the attribute block itself
    head = _block().array[:ROW_FIRST_WORD].tolist()
    attributes = (ctypes.c_int64 * (size - ROW_FIRST_WORD)).from_address(int(rt.row(index)["attr"]) + 16)
    return _row(index, [*head, *attributes])


def shape_of(k: int) -> Size:
    """The shape of a buffer."""
    return layout_facts(rt.look(_S, k, LOOK_META) >> 16)[0]


def dtype_of(k: int) -> dtypes.dtype:
    """The dtype of a buffer."""
    return dtypes.ALL[rt.look(_S, k, LOOK_META) & 0xFF]


def handle(k: int) -> Tensor:
    """A tensor on a buffer, at its place in the graph; it does not follow later writes to what it is a view of."""
    rt.retain(_S, k)
    made = wrap(k)
    made._root = made._where = None
    return made


def leaf(k: int) -> Tensor:
    """The tensor of a leaf: the user's own one if that still is."""
    known = leaves.get(k)
    t = known() if known is not None else None
    return t if t is not None and t._id == k else handle(k)


def grad_name_of(k: int) -> str:
    """The name of the node that makes a buffer."""
    attached = attachment(k)
    if attached is not None and attached.context is not None:
        return type(attached.context).__name__
    op = OPS[rt.look(_S, k, LOOK_OP)]
    assert op is not None
    return op.grad_name


def output_number(k: int) -> int:
    """Which result of its node a buffer is; only a user's function has more than one."""
    attached = attachment(k)
    context = attached.context if attached is not None else None
    return 0 if context is None else context._output_number(k)


def operands(row: Row) -> tuple[int, ...]:
    """Ids of all operands of a row, 0 where absent or not kept."""
    return (*row.inputs, *row.extra)


def operand_places(row: Row) -> list[int]:
    """Where in `operands` the row's operands stand, as users count them."""
    inline = getattr(row.op, "arity", 0) or len(getattr(row.op, "inputs", ())) or sum(1 for k in row.inputs if k)
    differentiable = int(rt.ops[row.op.code]["differentiable"])
    return [*(p for p in range(inline) if differentiable >> p & 1), *range(3, 3 + len(row.extra))]


def saved_values(row: Row, connected: bool) -> list[Tensor | None]:
    """What a row saved: its three operands and its result, None where not saved; detached unless `connected`."""
    attached = attachment(row.out) if row.attached else None
    packed = attached.packed if attached is not None else None
    saved = row.saved
    found: list[Tensor | None] = []
    for position, k in enumerate((*row.inputs, row.out)):
        if packed and position in packed:
            value = unpacked(*packed[position], shape_of(k), dtype_of(k))
            found.append(at_place_of(value, k) if connected else value)
        elif saved >> position & 1:
            value = handle(k)
            found.append(value if connected else value.detach())
        else:
            found.append(None)
    return found


def unpacked(value: Any, unpack: Callable, shape: Size, dtype: dtypes.dtype) -> Tensor:
    """What an unpack hook gives back for a saved value.

    Raises:
        TypeError, RuntimeError: if that is no tensor of the value's shape and kind.
    """
    made = unpack(value)
    if not isinstance(made, Tensor):
        raise TypeError(errors.UNPACKED_TYPE.format(type(made).__name__))
    if made.shape != shape or made.dtype.is_floating_point != dtype.is_floating_point:
        raise RuntimeError(errors.UNPACKED_LIKE.format(dtype, list(shape), made.dtype, list(made.shape)))
    return made.to(dtype)


def at_place_of(value: Tensor, k: int) -> Tensor:
    """The same elements, as a result that hands its adjoint to buffer `k`."""
    if not rt.look(_S, k, LOOK_META) >> 8 & structs.REQUIRES_GRAD:
        return value
    made = value.detach()
    rt.record_on(_S, clone.code, made._id, k, 0, 0, rt.attributes(0))
    return made


def parts_of(row: Row, arrived: Sequence[Tensor | None], need: int, connected: bool) -> list[Tensor | None]:
    """What a row adds to the adjoint of each of its `operands`, in its shape and dtype; None where nothing is wanted.

    Args:
        row: the row.
        arrived: the adjoint of its result, of several for a user's function; None where there is none.
        need: mask of operands to answer for.
        connected: whether the parts depend on the saved values too.
    """
    op, g = row.op, arrived[0]
    if isinstance(op, RowOp):
        parts = op.parts(row, arrived, need)
    elif g is None:
        return []
    elif op.kind == structs.VIEW:
        return [place_back(g, row.words, layout_facts(row.metas[0] >> 16)[0])]
    else:
        parts = op.reverse(g, need, saved_values(row, connected), row.words)
    found: list[Tensor | None] = []
    for position, part in enumerate(parts):
        if part is None or not need >> min(position, 3) & 1:
            found.append(None)
            continue
        meta = row.metas[position] if position < 3 else rt.look(_S, row.extra[position - 3], LOOK_META)
        found.append(_like(part, meta) if passes_on_to(row, position) else None)
    return found


def passes_on_to(row: Row, position: int) -> bool:
    """Whether gradients flow on to one of the row's `operands`, as it was when the row was recorded."""
    if not row.need >> min(position, 3) & 1:
        return False
    if position < 3:
        return True
    # a traced row also keeps further operands that none flow to
    k = row.extra[position - 3]
    return k != 0 and (
        not row.flags & structs.TRACED_ROW or bool(rt.look(_S, k, LOOK_META) >> 8 & structs.REQUIRES_GRAD)
    )


def _like(part: Tensor, meta: int) -> Tensor:
    own = rt.look(_S, part._id, LOOK_META)
    if own >> 16 == meta >> 16 and not (own ^ meta) & 0xFF:
        return part
    return conform(part, layout_facts(meta >> 16)[0], dtypes.ALL[meta & 0xFF])


def conform(part: Tensor, shape: Size, dtype: dtypes.dtype) -> Tensor:
    """A part with an operand's shape and dtype: with its elements in a row, or summed or expanded to it."""
    if part.dtype is not dtype:
        part = part.to(dtype)
    if part.shape != shape and part.numel() == shape.numel():
        return part.reshape(shape)
    if part.shape != shape:
        over = part.ndim - len(shape)
        dims = [d for d in range(part.ndim) if d < over or (shape[d - over] == 1 and part.shape[d] != 1)]
        if dims:
            part = part.sum(dims, keepdim=True)
        if over > 0:
            part = part.reshape(part.shape[over:])
        if part.shape != shape:
            part = part.expand(shape)
    return part


def check_versions(row: Row) -> None:
    """Refuse a row whose saved values were written to since, or freed.

    Raises:
        RuntimeError: as PyTorch does.
    """
    if row.flags & structs.FREED:
        raise RuntimeError(errors.BACKWARD_TWICE)
    stale = row.stale & row.saved
    if stale:
        raise RuntimeError(modified(row.index, (stale & -stale).bit_length() - 1))


def _last_writer(storage: int) -> int:
    """The last row whose result lies in a storage, -1 if there is none."""
    for index in range(int(rt.state.row_count) - 1, -1, -1):
        row = rt.row(index)
        if not int(row["flags"]) & structs.DEAD and int(rt.buffer(int(row["out"]))["storage"]) == storage:
            return index
    return -1


def modified(index: int, slot: int) -> str:
    """The message for a saved value that was written to."""
    row = rt.row(index)
    k = int(row["out"]) if slot == 3 else int(row[_FIELDS[slot]])
    return modified_value(k, int(row[f"version{slot}"]), index if slot == 3 else -1)


def modified_value(k: int, expected: int, producer: int = -1) -> str:
    """The message for buffer `k`, saved at a version, that was written to since."""
    storage = int(rt.buffer(k)["storage"])
    facts = {
        "type": dtype_of(k).tensor_type,
        "shape": list(shape_of(k)),
        "version": int(rt.storage(storage)["version"]),
        "expected": expected,
    }
    producer = _last_writer(storage) if producer < 0 else producer
    if producer < 0:
        return errors.MODIFIED_LEAF.format(**facts)
    writer = int(rt.row(producer)["out"])
    return errors.MODIFIED.format(name=grad_name_of(writer), number=output_number(writer), **facts)
