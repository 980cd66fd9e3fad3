"""Kernels that find extreme values, how many elements share them, and where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tapegrad.engine.structs import (
    ADJOINT_OFFSET,
    STORE_OFFSET,
    buffer_of,
    free,
    i64,
    internal,
    internal_sum,
    malloc,
    row_at,
    stack_block,
    state_at,
)
from tapegrad.ops._fold import CHUNK, COLUMNS
from tapegrad.ops._fold_sums import extremes, named

P = SIZE = G = ROW = BLOCK = NOTE = NOTES = JOIN = VALUES = SHARED = PLACES = None  # filled in for each dtype


def extreme_kernel(S, row, start, stop):
    """Forward kernel of extremes: the value of each run, and a note of it: where it is, or how many elements share it.

    With VALUES they are the result, and the notes go to the second input if there is one; without, the notes are the result.
    ROW and BLOCK find values in a run and in a block of columns, NOTE and BLOCK the notes; JOIN puts two stretches together.
    """
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = buffer_of(S, r.in0).data
    values = P(buffer_of(S, r.out).data)
    noted = r.in1 if VALUES else r.out
    notes = NOTES(buffer_of(S, noted).data if noted else 0)
    if words[2] < 0:
        parts = state_at(S).scratch
        if start < 0:
            best, note = P(parts)[0], i64(parts)[1]
            for k in range(1, stop // 2):
                best, note = JOIN(best, note, P(parts + 16 * k)[0], i64(parts + 16 * k)[1])
            if VALUES:
                values[0] = best
            if noted:
                notes[0] = note
            return
        for k in range(start + (start & 1), stop, 2):
            first = (k // 2) * CHUNK
            n = min(CHUNK, run - first)
            v = P(x + first * SIZE)
            best = ROW(v, n)
            P(parts + 8 * k)[0] = best
            if noted:
                i64(parts + 8 * k)[1] = NOTE(v, n, best, first)
        return
    if inner == 1:
        for o in range(start, stop):
            v = P(x + o * run * SIZE)
            best = ROW(v, run)
            if VALUES:
                values[o] = best
            if noted:
                notes[o] = NOTE(v, run, best, 0)
        return
    blocks = (inner + COLUMNS - 1) // COLUMNS
    bests, found = P(stack_block()), i64(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * COLUMNS
        m = min(COLUMNS, inner - c)
        BLOCK(P(x + (o * run * inner + c) * SIZE), run, inner, m, bests, found, noted != 0)
        for j in range(m):
            if VALUES:
                values[o * inner + c + j] = bests[j]
        if noted:
            for j in range(m):
                notes[o * inner + c + j] = found[j]


@internal
def _same(v, w):
    return (v == w) | ((v != v) & (w != w))


# how many elements share the value


@internal_sum
def _count_equal(x, n, value, first):
    count = 0
    for i in range(n):
        count += _same(x[i], value)
    return count


def _joined_counts(step: Any) -> Any:
    def joined(best, count, v, other):
        better = step(best, v)
        if _same(v, best):
            count += other
        elif not _same(better, best):
            count = other
        return better, count

    return internal(named(joined, step))


def _counted_columns(block: Any) -> Any:
    def columns(x, run, stride, m, bests, counts, noted):
        block(x, run, stride, m, bests)
        if noted:
            for j in range(m):
                counts[j] = 0
            for q in range(run):
                for j in range(m):
                    counts[j] += _same(x[q * stride + j], bests[j])

    return internal(named(columns, block))


# where it is: the first place, and the first NaN


@internal
def _place_of(x, n, value, first):
    i = 0
    if value == value:
        while i < n - 1 and x[i] != value:
            i += 1
    else:
        while i < n - 1 and x[i] == x[i]:
            i += 1
    return first + i


@internal
def _is_larger(v, best):
    return (v > best) | ((v != v) & (best == best))


@internal
def _is_smaller(v, best):
    return (v < best) | ((v != v) & (best == best))


def _joined_places(better: Any) -> Any:
    def joined(best, place, v, other):
        found = better(v, best)
        return (v if found else best), (other if found else place)

    return internal(named(joined, better))


def _placed_columns(better: Any) -> Any:
    def columns(x, run, stride, m, bests, places, noted):
        for j in range(m):
            bests[j] = x[j]
            places[j] = 0
        for q in range(1, run):
            for j in range(m):
                v = x[q * stride + j]
                found = better(v, bests[j])
                bests[j] = v if found else bests[j]
                places[j] = q if found else places[j]

    return internal(named(columns, better))


_PLACES: dict[bool, dict[str, Any]] = {
    largest: {"NOTE": _place_of, "JOIN": _joined_places(better), "BLOCK": _placed_columns(better), "NOTES": i64}
    for largest, better in ((True, _is_larger), (False, _is_smaller))
}
_counts: dict[Any, dict[str, Any]] = {}


def shared_extremes(largest: bool) -> Callable[[int], dict[str, Any]]:
    """Placeholders of extremes with the number of elements that share them."""

    def choose(dtype: int) -> dict[str, Any]:
        parts = extremes(largest)(dtype)
        block = parts["BLOCK"]
        if block not in _counts:
            _counts[block] = {"JOIN": _joined_counts(parts["MERGE"]), "BLOCK": _counted_columns(block)}
        notes = {"NOTE": _count_equal, "NOTES": parts["OUT"], "VALUES": True}
        return parts | _counts[block] | notes

    return choose


def placed_extremes(largest: bool, values: bool) -> Callable[[int], dict[str, Any]]:
    """Placeholders of extremes with their places, which are the result themselves without `values`."""
    return lambda dtype: extremes(largest)(dtype) | _PLACES[largest] | {"VALUES": values, "PLACES": False}


def place_reverse(S, row, start, stop):
    """Reverse kernel of ops that pick elements of each run at recorded places: one, or with PLACES as many as it has."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    picked = run if PLACES else 1
    g = P(buffer_of(S, r.out).adj)
    places = i64(buffer_of(S, r.in1).data)
    adjoint = P(i64(S + ADJOINT_OFFSET)[0])
    fresh = i64(S + STORE_OFFSET)[0] == 1
    if inner == 1:
        for o in range(start, stop):
            if fresh:
                for i in range(o * run, (o + 1) * run):
                    adjoint[i] = 0
            for i in range(o * picked, (o + 1) * picked):
                adjoint[o * run + places[i]] += g[i]
        return
    blocks = (inner + COLUMNS - 1) // COLUMNS
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * COLUMNS
        m = min(COLUMNS, inner - c)
        base = o * run * inner + c
        if fresh:
            for q in range(run):
                for j in range(m):
                    adjoint[base + q * inner + j] = 0
        for q in range(picked):
            line = (o * picked + q) * inner + c
            for j in range(m):
                adjoint[base + places[line + j] * inner + j] += g[line + j]


def place_parts(g, places, words):
    """The derivative that `place_reverse` computes, over tensors."""
    from tapegrad.creation import zeros
    from tapegrad.ops.selecting import scatter_sum

    outer, run, inner = words[1:4]
    blank = zeros((outer, run, inner), dtype=g.dtype)
    picked = (outer, g.numel() // max(outer * inner, 1), inner)
    return scatter_sum(blank, 1, places.reshape(picked), g.reshape(picked))


def median_kernel(S, row, start, stop):
    """Forward kernel of `median`: the lower middle element of each run, NaN if there is one, and its first
    place or, with SHARED, how many elements have it."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    v = P(buffer_of(S, r.in0).data)
    out = P(buffer_of(S, r.out).data)
    places = i64(buffer_of(S, r.in1).data if r.in1 else 0)
    shared = P(buffer_of(S, r.in1).data if r.in1 else 0)
    width = 1 if inner == 1 else COLUMNS
    blocks = (inner + width - 1) // width
    memory = malloc(run * SIZE)
    work = P(memory)
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * width
        for j in range(c, min(c + width, inner)):
            base = o * run * inner + j
            value = v[base]
            bad = False
            for q in range(run):
                work[q] = v[base + q * inner]
                if work[q] != work[q] and not bad:
                    bad = True
                    value = work[q]
            if not bad:
                value = _selected(work, run, (run - 1) // 2)
            out[o * inner + j] = value
            if SHARED and r.in1:
                count = 0
                for q in range(run):
                    count += _same(v[base + q * inner], value)
                shared[o * inner + j] = count
            elif r.in1:
                for q in range(run):
                    w = v[base + q * inner]
                    if w == value or (bad and w != w):
                        places[o * inner + j] = q
                        break
    free(memory)


@internal
def _selected(a, n, k):
    # Hoare's quickselect
    low, high = 0, n - 1
    while low < high:
        pivot = a[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while a[i] < pivot:
                i += 1
            while a[j] > pivot:
                j -= 1
            if i <= j:
                t = a[i]
                a[i] = a[j]
                a[j] = t
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            return a[k]
    return a[k]
