"""Ops launched by what their operands look like: checks and choices are made once and remembered by layouts.

A matrix product has many forms, each with an opcode, a result layout and an attribute block of its own.
Python works them out the first time and puts them into a table that compiled code reads, so the next call of
that form is one entry.
"""

import numpy as np

from tapegrad.engine.record import record_kernel
from tapegrad.engine.structs import buffer_of, i64, internal_words
from tapegrad.engine.tape import copy_attributes, free_block

# words of a plan: who asked, what the operands look like, and how to launch
_ASKED, _FIRST, _SECOND, _THIRD, _OPCODE, _LAYOUT, _DTYPE, _ATTRIBUTES = range(8)
_PLANS = 1 << 12

# a direct-mapped table: plans that collide replace each other
_table = np.zeros((_PLANS, 8), np.int64)
TABLE: int = _table.__array_interface__["data"][0]


@internal_words
def _slot(asked, first, second, third):
    h = (asked * 0x9E3779B1 + first) * 0x85EBCA77
    h = (h ^ (h >> 29)) * 0xC2B2AE3D + second
    h = (h ^ (h >> 31)) * 0x27D4EB2F + third
    return (h ^ (h >> 28)) & (_PLANS - 1)


@internal_words
def look_of(S, k):
    """Layout and dtype of a buffer in one word, 0 for no buffer."""
    if k == 0:
        return 0
    b = buffer_of(S, k)
    return np.int64(b.layout) << 8 | np.int64(b.dtype)


@internal_words
def record_planned(S, table, asked, a, b, c):
    """Record and run what `asked` does with these buffers: `record_kernel`'s answer, 0 without a plan."""
    first, second, third = look_of(S, a), look_of(S, b), look_of(S, c)
    plan = i64(table + _slot(asked, first, second, third) * 64)
    if plan[_ASKED] != asked or plan[_FIRST] != first or plan[_SECOND] != second or plan[_THIRD] != third or first == 0:
        return 0
    attributes = copy_attributes(S, plan[_ATTRIBUTES])
    if attributes == 0:
        return 0
    k = record_kernel(S, plan[_OPCODE], a, b, c, plan[_LAYOUT], plan[_DTYPE], attributes)
    if k <= 0:
        free_block(S, attributes)
    return k


@internal_words
def keep_plan(S, table, asked, a, b, c, opcode, layout, dtype, attributes):
    """Remember how to launch what `asked` does with buffers that look like these."""
    first, second, third = look_of(S, a), look_of(S, b), look_of(S, c)
    plan = i64(table + _slot(asked, first, second, third) * 64)
    plan[_ASKED], plan[_FIRST], plan[_SECOND], plan[_THIRD] = asked, first, second, third
    plan[_OPCODE], plan[_LAYOUT], plan[_DTYPE], plan[_ATTRIBUTES] = opcode, layout, dtype, attributes
