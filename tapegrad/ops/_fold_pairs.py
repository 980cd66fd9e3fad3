"""Folds with two accumulators (variance, log-sum-exp, product), and kernels that find extreme values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import types

from tapegrad.engine.structs import (
    buffer_of,
    f64,
    i64,
    internal,
    internal_sum,
    row_at,
    stack_block,
    state_at,
)
from tapegrad.engine.vecmath import exp, log, pow
from tapegrad.ops._fold import CHUNK, PAIR_COLUMNS
from tapegrad.ops._fold_sums import larger, named

# elements of a stretch that is read twice and must stay in the L1 cache; rows of a slab of columns
STRETCH = 2048
SLAB = 32

P = T = OUT = SIZE = G = ROW = PAIR = SLAB_FOLD = MERGE = FINISH = SECOND = BETTER = STEP = VALUES = SHARED = None


def pair_row(stretch: Any, merge: Any) -> Any:
    """A function that folds `n` elements from ``x[0]`` on into a pair, stretch by stretch."""

    def row(x, n):
        a, b = stretch(x, 0, min(n, STRETCH))
        for first in range(STRETCH, n, STRETCH):
            last = min(first + STRETCH, n)
            c, d = stretch(x, first, last)
            a, b = merge(a, b, first, c, d, last - first)
        return a, b

    return internal(named(row, stretch, merge))


def pair_kernel(S, row, start, stop):
    """Forward kernel of folds into a pair: PAIR or SLAB_FOLD, MERGE, FINISH; SECOND is for the derivative."""
    r = row_at(row)
    words = i64(r.attr)
    parameter = f64(r.attr)[5]
    run, inner = words[G + 1], words[G + 2]
    x = buffer_of(S, r.in0).data
    out = P(buffer_of(S, r.out).data)
    second = P(buffer_of(S, r.in1).data if r.in1 else 0)
    if words[2] < 0:
        parts = f64(state_at(S).scratch)
        if start < 0:
            a, b = parts[0], parts[1]
            for k in range(1, stop // 2):
                first = k * CHUNK
                a, b = MERGE(a, b, first, parts[2 * k], parts[2 * k + 1], min(CHUNK, run - first))
            out[0] = FINISH(a, b, parameter)
            if r.in1:
                second[0] = SECOND(a, b)
            return
        for k in range(start + (start & 1), stop, 2):
            first = (k // 2) * CHUNK
            a, b = PAIR(P(x + first * SIZE), min(CHUNK, run - first))
            parts[k] = a
            parts[k + 1] = b
        return
    if inner == 1:
        for o in range(start, stop):
            a, b = PAIR(P(x + o * run * SIZE), run)
            out[o] = FINISH(a, b, parameter)
            if r.in1:
                second[o] = SECOND(a, b)
        return
    blocks = (inner + PAIR_COLUMNS - 1) // PAIR_COLUMNS
    total = stack_block()
    total_a, total_b = f64(total), f64(total + 8 * PAIR_COLUMNS)
    part = stack_block()
    part_a, part_b = f64(part), f64(part + 8 * PAIR_COLUMNS)
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * PAIR_COLUMNS
        m = min(PAIR_COLUMNS, inner - c)
        base = o * run * inner + c
        SLAB_FOLD(P(x + base * SIZE), min(run, SLAB), inner, m, total_a, total_b)
        for first in range(SLAB, run, SLAB):
            rows = min(SLAB, run - first)
            SLAB_FOLD(P(x + (base + first * inner) * SIZE), rows, inner, m, part_a, part_b)
            for j in range(m):
                total_a[j], total_b[j] = MERGE(total_a[j], total_b[j], first, part_a[j], part_b[j], rows)
        for j in range(m):
            out[o * inner + c + j] = FINISH(total_a[j], total_b[j], parameter)
        if r.in1:
            for j in range(m):
                second[o * inner + c + j] = SECOND(total_a[j], total_b[j])


# mean and sum of squared deviations


@internal_sum
def _deviations(x, first, last):
    n = last - first
    total = 0.0
    for i in range(first, last):
        total += x[i]
    mean = total / n
    squares = 0.0
    for i in range(first, last):
        d = x[i] - mean
        squares += d * d
    return mean, squares


@internal
def _merge_deviations(a, b, n, c, d, m):
    delta = c - a
    share = m / (n + m)
    return a + delta * share, b + d + delta * delta * (n * share)


@internal_sum
def _slab_deviations(x, rows, stride, m, a, b):
    for j in range(m):
        a[j] = 0.0
        b[j] = 0.0
    for r in range(rows):
        for j in range(m):
            a[j] += x[r * stride + j]
    for j in range(m):
        a[j] /= rows
    for r in range(rows):
        for j in range(m):
            d = x[r * stride + j] - a[j]
            b[j] += d * d


@internal
def _variance(a, b, divisor):
    return b / max(divisor, 0.0)


@internal
def _deviation(a, b, divisor):
    return math.sqrt(b / max(divisor, 0.0))


@internal
def _first(a, b):
    return a


# product of the elements that are not zero, and the number of zeros; infinite ones count as MANY, since zero
# times one is NaN
MANY = 2.0**40


@internal_sum
def _products(x, first, last):
    product = 1.0
    zeros = 0.0
    for i in range(first, last):
        v = x[i]
        product *= 1.0 if v == 0 else v
        zeros += (1.0 if v == 0 else 0.0) + (MANY if abs(v) == math.inf else 0.0)
    return product, zeros


@internal
def _merge_products(a, b, n, c, d, m):
    return a * c, b + d


@internal_sum
def _slab_products(x, rows, stride, m, a, b):
    for j in range(m):
        a[j] = 1.0
        b[j] = 0.0
    for r in range(rows):
        for j in range(m):
            v = x[r * stride + j]
            a[j] *= 1.0 if v == 0 else v
            b[j] += (1.0 if v == 0 else 0.0) + (MANY if abs(v) == math.inf else 0.0)


@internal
def _product(a, b, parameter):
    zeros = b - math.floor(b / MANY) * MANY
    if zeros == 0 or a != a:
        return a
    return math.nan if b >= MANY else 0.0


@internal
def _product_of_others(a, b):
    # what an only zero is multiplied by
    return 0.0 if b - math.floor(b / MANY) * MANY > 1 else a


# largest element, and the sum of exponentials below it


def _exponentials(dtype: int) -> tuple[Any, Any]:
    real = types.float32 if dtype == 0 else types.float64

    def sum_below(x, first, last, shift):
        total = real(0.0)  # a stretch is short enough to add up in its own type
        for i in range(first, last):
            total += exp(x[i] - shift)
        return total

    sum_of = internal_sum(named(sum_below, dtype))

    def stretch(x, first, last):
        top = real(-math.inf)
        for i in range(first, last):
            top = larger(top, x[i])
        shift = real(0.0) if abs(top) == math.inf else top
        return types.float64(top), types.float64(sum_of(x, first, last, shift))

    def slab(x, rows, stride, m, a, b):
        for j in range(m):
            a[j] = -math.inf
            b[j] = 0.0
        for r in range(rows):
            for j in range(m):
                a[j] = larger(a[j], types.float64(x[r * stride + j]))
        for r in range(rows):
            for j in range(m):
                shift = 0.0 if abs(a[j]) == math.inf else a[j]
                b[j] += exp(x[r * stride + j] - real(shift))

    return internal(named(stretch, dtype)), internal_sum(named(slab, dtype))


@internal
def _merge_exponentials(a, b, n, c, d, m):
    top = larger(a, c)
    left = b if a == top else b * exp(a - top)
    right = d if c == top else d * exp(c - top)
    return top, left + right


@internal
def _log_sum(a, b, parameter):
    return a + log(b)


# root of a sum


@internal_sum
def _sum_alone(x, first, last):
    total = 0.0
    for i in range(first, last):
        total += x[i]
    return 0.0, total


@internal
def _merge_sums(a, b, n, c, d, m):
    return 0.0, b + d


@internal_sum
def _slab_sums(x, rows, stride, m, a, b):
    for j in range(m):
        a[j] = 0.0
        b[j] = 0.0
    for r in range(rows):
        for j in range(m):
            b[j] += x[r * stride + j]


@internal
def _root(a, b, order):
    return pow(b, 1.0 / order)


def roots(dtype: int) -> dict[str, Any]:
    """Placeholders of the root of a sum of powers."""
    return _pair(_sum_alone, _slab_sums, _merge_sums, _root, _first)


def _pair(stretch: Any, slab: Any, merge: Any, finish: Any, second: Any) -> dict[str, Any]:
    return {
        "PAIR": pair_row(stretch, merge),
        "SLAB_FOLD": slab,
        "MERGE": merge,
        "FINISH": finish,
        "SECOND": second,
    }


def variances(root: bool) -> Callable[[int], dict[str, Any]]:
    """Placeholders of `var` and `std`."""
    finish = _deviation if root else _variance
    made = _pair(_deviations, _slab_deviations, _merge_deviations, finish, _first)
    return lambda dtype: made


def products(dtype: int) -> dict[str, Any]:
    """Placeholders of `prod` of floating dtypes."""
    return _pair(_products, _slab_products, _merge_products, _product, _product_of_others)


def exponentials(dtype: int) -> dict[str, Any]:
    """Placeholders of `logsumexp`."""
    stretch, slab = _exponentials(dtype)
    return _pair(stretch, slab, _merge_exponentials, _log_sum, _first)
