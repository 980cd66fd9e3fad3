"""How operands lie beside a result: along which of its dims they move from element to element, and along which they stand still."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from tapegrad.metadata import layout_facts
from tapegrad.program.values import Value

# for each extent of a result that is not one, whether an operand moves along it
Moves = tuple[bool, ...]


def extents_of(shape: Sequence[int]) -> tuple[int, ...]:
    """The extents that are not one."""
    return tuple(n for n in shape if n != 1)


def moves_of(value: Value, extents: tuple[int, ...], shape: Sequence[int]) -> Moves | None:
    """Along which extents of a result a value moves; None if its elements lie in another order, or with gaps.

    Args:
        value: broadcasts to the result.
        extents: of the result, those that are not one.
        shape: of the result.
    """
    own, strides, contiguous = layout_facts(value.layout)
    elements = math.prod(own)
    if elements == 1:
        return (elements == math.prod(extents),) * len(extents)
    if contiguous and elements == math.prod(extents):
        return (True,) * len(extents)
    missing = len(shape) - len(own)
    moves = []
    expected = 1
    for d in range(len(shape) - 1, -1, -1):
        if shape[d] == 1:
            continue
        extent, stride = (own[d - missing], strides[d - missing]) if d >= missing else (1, 0)
        if extent == 1 or stride == 0:
            moves.append(False)
        elif extent == shape[d] and stride == expected:
            moves.append(True)
            expected *= extent
        else:
            return None
    return tuple(moves[::-1])


def collapsed(extents: tuple[int, ...], moves: Collection[Moves]) -> tuple[tuple[int, ...], list[Moves]]:
    """The same with neighbouring extents taken as one, where each operand moves along both or along none."""
    kept: list[int] = []  # numbers of the extents that begin one
    for d in range(len(extents)):
        if d == 0 or any(m[d] != m[d - 1] for m in moves):
            kept.append(d)
    ends = [*kept[1:], len(extents)]
    whole = tuple(math.prod(extents[a:b]) for a, b in zip(kept, ends, strict=True))
    return whole or (1,), [tuple(m[d] for d in kept) or (True,) for m in moves]
