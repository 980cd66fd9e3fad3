"""Running folds along one dim: a loop forward and one in reverse, with the step of each kind filled in.

Element by element a state follows from the one before: ``state[q] = step(state[q - 1], x[q])``. What is linear in the state before
has its reverse in one loop too, with the two slopes of the step; running extremes only pass on what they were given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tapegrad.engine.structs import (
    ADJOINT_OFFSET,
    STORE_OFFSET,
    buffer_of,
    f64,
    i64,
    internal,
    row_at,
    stack_block,
)
from tapegrad.engine.vecmath import exp, log
from tapegrad.ops._fold import COLUMNS
from tapegrad.ops._fold_sums import extremes, pointer_of

P = A = B = OUT = SIZE = G = STEP = START = SECOND = SLOPES = PAIRED = PLACES = None  # filled in for each dtype


def scan_kernel(S, row, start, stop):
    """Forward kernel: STEP takes the state so far, a value and what it adds, to the new state and the result.

    The state of A begins with START; where PAIRED it has a second part of B, begun with SECOND, which with PLACES is a result of its
    own, written to the second input.
    """
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = P(buffer_of(S, r.in0).data)
    out = OUT(buffer_of(S, r.out).data)
    places = i64(buffer_of(S, r.in1).data if r.in1 else 0)
    if inner == 1:
        for o in range(start, stop):
            first = o * run
            state, second = START, SECOND
            for q in range(run):
                state, second, out[first + q] = STEP(state, second, x[first + q], q)
                if PLACES:
                    places[first + q] = second
        return
    blocks = (inner + COLUMNS - 1) // COLUMNS
    states, seconds = A(stack_block()), B(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * COLUMNS
        m = min(COLUMNS, inner - c)
        for j in range(m):
            states[j] = START
            seconds[j] = SECOND
        for q in range(run):
            base = (o * run + q) * inner + c
            for j in range(m):
                if PAIRED:
                    states[j], seconds[j], out[base + j] = STEP(states[j], seconds[j], x[base + j], q)
                else:
                    states[j], _, out[base + j] = STEP(states[j], SECOND, x[base + j], q)
                if PLACES:
                    places[base + j] = seconds[j]


def scan_reverse(S, row, start, stop):
    """Reverse kernel: SLOPES gives how a state follows from the one before it and from its element.

    From the last element back, ``total = g[q] + slope of the state after * total`` is the adjoint of a state.
    """
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = P(buffer_of(S, r.in0).data)
    out = P(buffer_of(S, r.out).data)
    g = P(buffer_of(S, r.out).adj)
    adjoint = P(i64(S + ADJOINT_OFFSET)[0])
    fresh = i64(S + STORE_OFFSET)[0] == 1
    if inner == 1:
        for o in range(start, stop):
            total = 0.0
            for i in range((o + 1) * run - 1, o * run - 1, -1):
                total += g[i]
                first = i == o * run
                passed, slope = SLOPES(x, out, i, i if first else i - 1, first)
                value = slope * total
                if fresh:
                    adjoint[i] = value
                else:
                    adjoint[i] += value
                total *= passed
        return
    blocks = (inner + COLUMNS - 1) // COLUMNS
    totals = f64(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * COLUMNS
        m = min(COLUMNS, inner - c)
        for j in range(m):
            totals[j] = 0.0
        for q in range(run - 1, -1, -1):
            base = (o * run + q) * inner + c
            before = base - inner if q > 0 else base
            for j in range(m):
                total = totals[j] + g[base + j]
                passed, slope = SLOPES(x, out, base + j, before + j, q == 0)
                value = slope * total
                if fresh:
                    adjoint[base + j] = value
                else:
                    adjoint[base + j] += value
                totals[j] = passed * total


def _kind(step: Any, slopes: Any = None, **more: Any) -> dict[str, Any]:
    return {"STEP": step, "SLOPES": slopes, "PAIRED": False, "PLACES": False, "SECOND": 0, "B": i64} | more


# sums and products, kept in float64 or int64


@internal
def _plus(t, none, v, q):
    return t + v, none, t + v


@internal
def _plus_slopes(x, out, i, before, first):
    return 1.0, 1.0


@internal
def _times(t, none, v, q):
    return t * v, none, t * v


@internal
def _times_slopes(x, out, i, before, first):
    return x[i], (1.0 if first else out[before] * 1.0)


def _accumulating(step: Any, slopes: Any, start: int) -> Callable[[int], dict[str, Any]]:
    def choose(dtype: int) -> dict[str, Any]:
        if dtype <= 1:
            return _kind(step, slopes, START=float(start), A=f64, OUT=pointer_of(dtype))
        return _kind(step, slopes, START=start, A=i64, OUT=i64)

    return choose


sums, products = _accumulating(_plus, _plus_slopes, 0), _accumulating(_times, _times_slopes, 1)


# log-sum-exp: the largest element so far, and the sum of exponentials below it


@internal
def _log_sum(top, total, v, q):
    v = v * 1.0
    if v > top or v != v:
        total = total * exp(top - v) + 1.0
        top = v
    elif v > -math.inf:
        total += 1.0 if v == top else exp(v - top)
    return top, total, top + log(total)


@internal
def _log_sum_slopes(x, out, i, before, first):
    level = out[i] * 1.0
    nothing = level == -math.inf
    passed, slope = exp(out[before] - level), exp(x[i] - level)
    return (0.0 if nothing else passed), (0.0 if nothing else slope)


def exponentials(dtype: int) -> dict[str, Any]:
    """Placeholders of a running log-sum-exp."""
    pointer = pointer_of(dtype)
    state = {"START": -math.inf, "SECOND": 0.0, "A": f64, "B": f64, "PAIRED": True}
    return _kind(_log_sum, _log_sum_slopes, OUT=pointer, **state)


# extremes: the best so far and its latest place


@internal
def _latest_largest(best, place, v, q):
    # the first NaN stays the best but for later ones; the best waits for a maximum and a choice, no more
    found = (v >= best) | (v != v)
    larger = best if best > v else v
    larger = best if best != best else larger
    return larger, (q if found else place), larger


@internal
def _latest_smallest(best, place, v, q):
    found = (v <= best) | (v != v)
    smaller = best if best < v else v
    smaller = best if best != best else smaller
    return smaller, (q if found else place), smaller


def latest_extremes(largest: bool) -> Callable[[int], dict[str, Any]]:
    """Placeholders of running extremes."""

    def choose(dtype: int) -> dict[str, Any]:
        pointer = pointer_of(dtype)
        start = extremes(largest)(dtype)["START"]
        step = _latest_largest if largest else _latest_smallest
        return _kind(step, START=start, A=pointer, OUT=pointer, PAIRED=True, PLACES=True)

    return choose


# linear recurrences, which the derivatives over tensors are made of: words are rows outside, run, rows inside, whether backwards


def recurrence_kernel(S, row, start, stop):
    """Forward kernel: ``y[q] = x[q] + a[q] y[q - 1]``, or backwards ``y[q] = x[q] + a[q + 1] y[q + 1]``."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner, backwards = words[5], words[6], words[7]
    a, x = P(buffer_of(S, r.in0).data), P(buffer_of(S, r.in1).data)
    y = P(buffer_of(S, r.out).data)
    for o in range(start, stop):
        for p in range(run):
            q = run - 1 - p if backwards else p
            base = (o * run + q) * inner
            before = inner if backwards else -inner
            slope = inner if backwards else 0
            for j in range(base, base + inner):
                y[j] = x[j] + (a[j + slope] * y[j + before] if p > 0 else 0)
