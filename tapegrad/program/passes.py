"""Passes over captured code, each from code to code that computes the same with less."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import numpy as np

from tapegrad.engine.runtime import rt
from tapegrad.ops import pointwise as pw
from tapegrad.ops.convert import clone
from tapegrad.program.values import COMPUTED, CONSTANT, VIEW, Code, Guard, Instruction, Step, Value, view_of


def simplified(code: Code) -> Code:
    """Code without copies of values, which nothing writes to, and products with one."""
    same: dict[Value, Value] = {}
    steps: list[Step] = []
    for step in code.steps:
        step = _over(step, same)
        source = _is_just(step) if isinstance(step, Instruction) else None
        if source is None:
            steps.append(step)
        else:
            same[step.out] = source  # type: ignore[union-attr]
    return dataclasses.replace(code, steps=steps, outputs=[_replaced(v, same) for v in code.outputs])


def _is_just(step: Instruction) -> Value | None:
    # the operand that the result equals, bit by bit
    a, b = step.inputs[:2]
    out = step.out
    if step.op is clone:
        return a if a is not None and a.layout == out.layout else None
    if step.op is pw.copy:
        return b if b is not None and b.layout == out.layout else None
    if step.op is pw.mul and a is not None and b is not None:
        for value, factor in ((a, b), (b, a)):
            if value.layout == out.layout and _is_one(factor):
                return value
    return None


def _is_one(value: Value) -> bool:
    root, _ = value.root()
    return root.kind == CONSTANT and root.array is not None and root.array.size > 0 and bool(np.all(root.array == 1))


def _replaced(value: Value, same: dict[Value, Value]) -> Value:
    # a value, with what is known to be the same in its place; views are made again over it
    known = same.get(value)
    if known is not None:
        return known
    if value.kind == VIEW and value.base is not None:
        base = _replaced(value.base, same)
        if base is not value.base:
            known = same[value] = view_of(base, value.layout, value.offset)
            return known
    return value


def _over(step: Step, same: dict[Value, Value]) -> Step:
    if not same:
        return step
    swap = {v: r for v in step.operands() if (r := _replaced(v, same)) is not v}
    return step.over(swap)


def without_repetition(code: Code) -> Code:
    """Code that computes nothing twice, and guards nothing twice."""
    same: dict[Value, Value] = {}
    known: dict[Hashable, Value] = {}
    names: dict[Hashable, Value] = {}
    guarded: set[Value] = set()

    def named(value: Value | None) -> Value | None:
        # equal views and constants are one
        if value is None:
            return None
        value = _replaced(value, same)
        key: Hashable = None
        if value.kind == VIEW:
            key = (named(value.base), value.layout, value.offset)
        elif value.kind == CONSTANT and value.array is not None and value.array.nbytes <= 256:
            key = (value.layout, value.dtype, value.array.tobytes())
        return value if key is None else names.setdefault(key, value)

    steps: list[Step] = []
    for step in code.steps:
        step = step.over({v: n for v in step.operands() if (n := named(v)) is not v and n is not None})
        if isinstance(step, Guard):
            if step.value not in guarded:
                guarded.add(step.value)
                steps.append(step)
            continue
        if not isinstance(step, Instruction) or step.fills:
            steps.append(step)
            continue
        operands = (*step.inputs, *step.extra)
        key = (step.op, operands, step.words, step.place, step.samples, step.out.layout, step.out.dtype)
        first = known.setdefault(key, step.out)
        if first is step.out:
            steps.append(step)
        else:
            same[step.out] = first
    return dataclasses.replace(code, steps=steps, outputs=[named(v) or v for v in code.outputs])


def without_dead(code: Code) -> Code:
    """Code without what neither a result nor a guard needs."""
    needed = {v.root()[0] for v in code.outputs}
    steps: list[Step] = []
    for step in reversed(code.steps):
        if isinstance(step, Guard) or any(v in needed for v in step.results()):
            needed.update(v.root()[0] for v in step.operands())
            steps.append(step)
    return dataclasses.replace(code, steps=steps[::-1])


def with_own_results(code: Code) -> Code:
    """Code whose outputs are contiguous values of their own: copies of those that are inputs, constants, views, or there twice."""
    steps = list(code.steps)
    outputs: list[Value] = []
    for value in code.outputs:
        if value.kind != COMPUTED or not value.contiguous or value in outputs:
            made = Value(COMPUTED, rt.layout(value.shape), value.dtype)
            steps.append(Instruction(clone, (value, None, None), made))
            value = made
        outputs.append(value)
    return dataclasses.replace(code, steps=steps, outputs=outputs)


def optimised(code: Code) -> Code:
    """Code after all passes."""
    return with_own_results(without_dead(without_repetition(simplified(code))))
