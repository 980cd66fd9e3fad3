"""Kernels of losses: elementwise ones reduced in the same pass, and negative log-likelihoods of classes."""

from __future__ import annotations

import math
from typing import Any

from numba import types

from tapegrad.engine.structs import (
    ADJOINT_OFFSET,
    STORE_OFFSET,
    buffer_of,
    f64,
    i64,
    internal,
    internal_sum,
    row_at,
    stack_block,
    state_at,
)
from tapegrad.engine.vecmath import exp, log
from tapegrad.ops._fold import PAIR_COLUMNS
from tapegrad.ops._fold_sums import named
from tapegrad.ops.softmax import SLAB

# elements of a work item of an elementwise loss, and of a block of rows of a class loss
BLOCK = 4096
NONE, MEAN, SUM = 0, 1, 2
_REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}

P = T = SIZE = VALUE = TOTAL = SLOPES = PAIR = SLAB_FOLD = MERGE = FUSED = None


def reduction_code(reduction: str) -> int:
    """The code of a `reduction` argument.

    Raises:
        ValueError: if it is none of ``none``, ``mean`` and ``sum``.
    """
    try:
        return _REDUCTIONS[reduction]
    except (KeyError, TypeError):
        raise ValueError(f"{reduction} is not a valid value for reduction") from None


# elementwise losses: words are length, scale, parameter, whether reduced


def total_of(value: Any) -> Any:
    """A function that adds up ``value(x[i], y[i], parameter)``."""

    def total(x, y, n, parameter):
        t = 0.0
        for i in range(n):
            t += value(x[i], y[i], parameter)
        return t

    return internal_sum(named(total, value))


def loss_kernel(S, row, start, stop):
    """Forward kernel: VALUE for each pair, or TOTAL of each block times the scale."""
    r = row_at(row)
    words = i64(r.attr)
    length, scale, parameter = words[5], f64(r.attr)[6], T(f64(r.attr)[7])
    x, y = buffer_of(S, r.in0).data, buffer_of(S, r.in1).data
    out = P(buffer_of(S, r.out).data)
    if words[2] < 0:
        parts = f64(state_at(S).scratch)
        if start < 0:
            t = 0.0
            for k in range(stop):
                t += parts[k]
            out[0] = t * scale
            return
        for k in range(start, stop):
            first = k * BLOCK
            parts[k] = TOTAL(P(x + first * SIZE), P(y + first * SIZE), min(BLOCK, length - first), parameter)
        return
    v, w = P(x), P(y)
    for i in range(start * BLOCK, min(stop * BLOCK, length)):
        out[i] = VALUE(v[i], w[i], parameter)


def loss_reverse(S, row, start, stop):
    """Reverse kernel: SLOPES of both operands times g, which stands still if the loss is reduced."""
    r = row_at(row)
    words = i64(r.attr)
    length, scale, parameter = words[5], f64(r.attr)[6], T(f64(r.attr)[7])
    g = P(buffer_of(S, r.out).adj)
    v, w = P(buffer_of(S, r.in0).data), P(buffer_of(S, r.in1).data)
    reduced = words[8] != 0
    factor = T(g[0] * scale) if reduced else T(1.0)
    last = min(stop * BLOCK, length)
    for slot in range(2):
        store = i64(S + STORE_OFFSET)[slot]
        if store < 0:
            continue
        a = P(i64(S + ADJOINT_OFFSET)[slot])
        for first in range(start * BLOCK, last, BLOCK):
            end = min(first + BLOCK, last)
            if store == 1:
                for i in range(first, end):
                    a[i] = T(0.0)
            if slot == 0:
                if reduced:
                    for i in range(first, end):
                        a[i] += factor * SLOPE_X(v[i], w[i], parameter)
                else:
                    for i in range(first, end):
                        a[i] += g[i] * SLOPE_X(v[i], w[i], parameter)
            elif reduced:
                for i in range(first, end):
                    a[i] += factor * SLOPE_Y(v[i], w[i], parameter)
            else:
                for i in range(first, end):
                    a[i] += g[i] * SLOPE_Y(v[i], w[i], parameter)


SLOPE_X = SLOPE_Y = None


# class losses: words are rows outside, classes, rows inside, ignored index, reduction, rows of a block
#
# The second input holds the target classes; the third, for each row, the logarithm that normalises it and its
# weight, then the divisor of the mean, and one more than the row of a class that is out of bounds.


@internal
def _row_weight(weights, has_weights, target):
    return types.float64(weights[target]) if has_weights else 1.0


def class_kernel(S, row, start, stop):
    """Forward kernel of `cross_entropy` (FUSED with log-softmax) and `nll_loss`."""
    r = row_at(row)
    words = i64(r.attr)
    extra = words[1]
    base = 5 + extra
    outer, classes, inner = words[base], words[base + 1], words[base + 2]
    ignored, reduction, block_rows = words[base + 3], words[base + 4], words[base + 5]
    x = buffer_of(S, r.in0).data
    targets = i64(buffer_of(S, r.in1).data)
    kept = f64(buffer_of(S, r.in2).data)
    out = P(buffer_of(S, r.out).data)
    weights = P(buffer_of(S, words[2]).data if extra else 0)
    rows = outer * inner
    step = 1
    if words[2 + extra] < 0:
        step = 2
        parts = f64(state_at(S).scratch)
        if start < 0:
            total, weight = 0.0, 0.0
            for k in range(0, stop, 2):
                total += parts[k]
                weight += parts[k + 1]
            kept[2 * rows] = weight if reduction == MEAN else 1.0
            out[0] = total / kept[2 * rows]
            return
    else:
        parts = kept
        kept[2 * rows] = 1.0
    blocks = (inner + PAIR_COLUMNS - 1) // PAIR_COLUMNS
    for item in range(start + (start % step), stop, step):
        k = item // step
        if inner == 1:
            first, last = k * block_rows, min((k + 1) * block_rows, outer)
            if FUSED:
                for i in range(first, last):
                    if targets[i] != ignored:
                        a, b = PAIR(P(x + i * classes * SIZE), classes)
                        kept[2 * i] = a + log(b)
            o, c = 0, 0
        else:
            o = k // blocks
            c = (k - o * blocks) * PAIR_COLUMNS
            m = min(PAIR_COLUMNS, inner - c)
            first, last = o * inner + c, o * inner + c + m
            if FUSED:
                total_words = stack_block()
                tops, totals = f64(total_words), f64(total_words + 8 * PAIR_COLUMNS)
                part_words = stack_block()
                part_tops, part_totals = f64(part_words), f64(part_words + 8 * PAIR_COLUMNS)
                at = o * classes * inner + c
                SLAB_FOLD(P(x + at * SIZE), min(classes, SLAB), inner, m, tops, totals)
                for q in range(SLAB, classes, SLAB):
                    n = min(SLAB, classes - q)
                    SLAB_FOLD(P(x + (at + q * inner) * SIZE), n, inner, m, part_tops, part_totals)
                    for j in range(m):
                        tops[j], totals[j] = MERGE(tops[j], totals[j], q, part_tops[j], part_totals[j], n)
                for j in range(m):
                    kept[2 * (first + j)] = tops[j] + log(totals[j])
        v = P(x)
        total, weight = 0.0, 0.0
        for i in range(first, last):
            target = targets[i]
            loss = 0.0
            kept[2 * i + 1] = 0.0
            if target != ignored:
                if target < 0 or target >= classes:
                    kept[2 * rows + 1] = i + 1
                    loss = math.nan
                else:
                    at = i * classes + target if inner == 1 else (o * classes + target) * inner + i - o * inner
                    w = _row_weight(weights, extra != 0, target)
                    kept[2 * i + 1] = w
                    weight += w
                    level = kept[2 * i] if FUSED else 0.0
                    loss = w * (level - v[at])
            total += loss
            if step == 1:
                out[i] = loss
        if step == 2:
            parts[item] = total
            parts[item + 1] = weight


def class_reverse(S, row, start, stop):
    """Reverse kernel: softmax times g less g at the target (FUSED), or less g at the target alone."""
    r = row_at(row)
    words = i64(r.attr)
    extra = words[1]
    base = 5 + extra
    outer, classes, inner = words[base], words[base + 1], words[base + 2]
    block_rows = words[base + 5]
    x = buffer_of(S, r.in0).data
    targets = i64(buffer_of(S, r.in1).data)
    kept = f64(buffer_of(S, r.in2).data)
    g = P(buffer_of(S, r.out).adj)
    adjoint = i64(S + ADJOINT_OFFSET)[0]
    fresh = i64(S + STORE_OFFSET)[0] == 1
    rows = outer * inner
    step = 2 if words[2 + extra] < 0 else 1
    divisor = kept[2 * rows]
    blocks = (inner + PAIR_COLUMNS - 1) // PAIR_COLUMNS
    for item in range(start + (start % step), stop, step):
        k = item // step
        if inner == 1:
            for i in range(k * block_rows, min((k + 1) * block_rows, outer)):
                a = P(adjoint + i * classes * SIZE)
                # a row without weight has no gradient, whatever it holds and whatever arrives
                part = g[0 if step == 2 else i] * kept[2 * i + 1] if kept[2 * i + 1] != 0 else 0.0
                if part == 0 or not FUSED:
                    if fresh:
                        for j in range(classes):
                            a[j] = T(0.0)
                else:
                    v = P(x + i * classes * SIZE)
                    level, factor = T(kept[2 * i]), T(part / divisor)
                    if fresh:
                        for j in range(classes):
                            a[j] = exp(v[j] - level) * factor
                    else:
                        for j in range(classes):
                            a[j] += exp(v[j] - level) * factor
                if part != 0:
                    a[targets[i]] -= part / divisor
            continue
        o = k // blocks
        c = (k - o * blocks) * PAIR_COLUMNS
        m = min(PAIR_COLUMNS, inner - c)
        first = o * inner + c
        work = stack_block()
        levels, factors = f64(work), f64(work + 8 * PAIR_COLUMNS)
        for j in range(m):
            levels[j] = kept[2 * (first + j)] if FUSED else 0.0
            weight = kept[2 * (first + j) + 1]
            factors[j] = g[0 if step == 2 else first + j] * weight / divisor if weight != 0 else 0.0
        for q in range(classes):
            at = ((o * classes + q) * inner + c) * SIZE
            v, a = P(x + at), P(adjoint + at)
            if fresh:
                for j in range(m):
                    a[j] = T(0.0)
            if FUSED:
                for j in range(m):
                    p = exp(v[j] - T(levels[j])) * T(factors[j])
                    a[j] += p if factors[j] != 0 else T(0.0)
        a = P(adjoint)
        for j in range(m):
            if factors[j] != 0:
                a[(o * classes + targets[first + j]) * inner + c + j] -= factors[j]
