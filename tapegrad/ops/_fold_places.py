"""Kernels that find extreme values, how many elements share them, and where they are."""

from __future__ import annotations

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

P = SIZE = G = ROW = BLOCK = STEP = BETTER = VALUES = SHARED = PLACES = None  # filled in for each dtype


@internal_sum
def _count_equal(x, n, value):
    count = 0
    for i in range(n):
        count += _same(x[i], value)
    return count


@internal
def _same(v, w):
    return (v == w) | ((v != v) & (w != w))


def extreme_kernel(S, row, start, stop):
    """Forward kernel of `amax` and `amin`; a second input takes how many elements share the value."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = buffer_of(S, r.in0).data
    out = P(buffer_of(S, r.out).data)
    shared = P(buffer_of(S, r.in1).data if r.in1 else 0)
    if words[2] < 0:
        parts = state_at(S).scratch
        if start < 0:
            t = P(parts)[0]
            count = i64(parts)[1]
            for k in range(1, stop // 2):
                v = P(parts + 16 * k)[0]
                best = STEP(t, v)
                if _same(v, t):
                    count += i64(parts + 16 * k)[1]
                elif not _same(best, t):
                    count = i64(parts + 16 * k)[1]
                t = best
            out[0] = t
            if r.in1:
                shared[0] = count
            return
        for k in range(start + (start & 1), stop, 2):
            first = (k // 2) * CHUNK
            n = min(CHUNK, run - first)
            t = ROW(P(x + first * SIZE), n)
            P(parts + 8 * k)[0] = t
            if r.in1:
                i64(parts + 8 * k)[1] = _count_equal(P(x + first * SIZE), n, t)
        return
    if inner == 1:
        for o in range(start, stop):
            t = ROW(P(x + o * run * SIZE), run)
            out[o] = t
            if r.in1:
                shared[o] = _count_equal(P(x + o * run * SIZE), run, t)
        return
    blocks = (inner + COLUMNS - 1) // COLUMNS
    acc = P(stack_block())
    count = i64(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * COLUMNS
        m = min(COLUMNS, inner - c)
        v = P(x + (o * run * inner + c) * SIZE)
        BLOCK(v, run, inner, m, acc)
        for j in range(m):
            out[o * inner + c + j] = acc[j]
        if r.in1:
            for j in range(m):
                count[j] = 0
            for q in range(run):
                for j in range(m):
                    count[j] += _same(v[q * inner + j], acc[j])
            for j in range(m):
                shared[o * inner + c + j] = count[j]


# where the extreme is


@internal
def _is_larger(v, best):
    return (v > best) | ((v != v) & (best == best))


@internal
def _is_smaller(v, best):
    return (v < best) | ((v != v) & (best == best))


def better_than(largest: bool) -> Any:
    """Whether a value replaces the best so far; the first NaN beats all."""
    return _is_larger if largest else _is_smaller


@internal
def _place_of(x, n, value):
    for i in range(n):
        if x[i] == value or (value != value and x[i] != x[i]):
            return i
    return 0


def place_kernel(S, row, start, stop):
    """Forward kernel of `argmax`, and with VALUES of ``max(dim)``, whose second input takes the places."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = buffer_of(S, r.in0).data
    places = i64(buffer_of(S, r.in1 if VALUES else r.out).data)
    values = P(buffer_of(S, r.out).data)
    if words[2] < 0:
        parts = i64(state_at(S).scratch)
        v = P(x)
        if start < 0:
            best = parts[0]
            for k in range(1, stop):
                if BETTER(v[parts[k]], v[best]):
                    best = parts[k]
            places[0] = best
            return
        for k in range(start, stop):
            n = min(CHUNK, run - k * CHUNK)
            part = P(x + k * CHUNK * SIZE)
            parts[k] = k * CHUNK + _place_of(part, n, ROW(part, n))
        return
    if inner == 1:
        for o in range(start, stop):
            v = P(x + o * run * SIZE)
            best = ROW(v, run)
            places[o] = _place_of(v, run, best)
            if VALUES:
                values[o] = best
        return
    blocks = (inner + COLUMNS - 1) // COLUMNS
    acc = P(stack_block())
    where = i64(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * COLUMNS
        m = min(COLUMNS, inner - c)
        v = P(x + (o * run * inner + c) * SIZE)
        for j in range(m):
            acc[j] = v[j]
            where[j] = 0
        for q in range(1, run):
            for j in range(m):
                w = v[q * inner + j]
                found = BETTER(w, acc[j])
                acc[j] = w if found else acc[j]
                where[j] = q if found else where[j]
        for j in range(m):
            places[o * inner + c + j] = where[j]
            if VALUES:
                values[o * inner + c + j] = acc[j]


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
