"""Folds with one accumulator: how one run, and how a block of columns, is folded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapegrad import dtypes
from tapegrad.engine import structs
from tapegrad.engine.structs import buffer_of, i64, internal, internal_sum, row_at, stack_block, state_at
from tapegrad.ops._fold import CHUNK, COLUMNS

P = A = OUT = SIZE = G = ROW = BLOCK = FINISH = MERGE = None  # filled in for each dtype


def _extreme_instruction(name: str):
    """LLVM's `maximum` or `minimum`, which let NaN through and vectorise."""

    @intrinsic
    def extreme(typing_context, a, b):
        def codegen(context, builder, signature, args):
            real = args[0].type
            suffix = "f64" if real == ir.DoubleType() else "f32"
            kind = ir.FunctionType(real, [real, real])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}")
            return builder.call(function, args)

        return a(a, b), codegen

    return extreme


_maximum = _extreme_instruction("maximum")
_minimum = _extreme_instruction("minimum")


@internal
def larger(a, b):
    """The larger of two; NaN if either is."""
    return _maximum(a, b)


@internal
def smaller(a, b):
    """The smaller of two; NaN if either is."""
    return _minimum(a, b)


@internal
def _larger_integer(a, b):
    return a if a > b else b


@internal
def _smaller_integer(a, b):
    return a if a < b else b


@internal_sum
def _plus(t, v):
    return t + v


@internal_sum
def plus_number(t, v):
    """Sum that passes over NaN."""
    return t + (v if v == v else 0)


@internal_sum
def plus_square(t, v):
    """Sum of squares."""
    w = types.float64(v)
    return t + w * w


@internal_sum
def times(t, v):
    """Product."""
    return t * v


@internal
def count(t, v):
    """Number of elements that are not zero."""
    return t + (v != 0)


@internal
def both(t, v):
    """Whether all are not zero."""
    return t & (v != 0)


@internal
def either(t, v):
    """Whether one is not zero."""
    return t | (v != 0)


@internal
def as_is(t, run):
    """The fold itself."""
    return t


@internal
def mean_of(t, run):
    """The fold over the number of elements."""
    return t / run


@internal
def root_of(t, run):
    """The square root of the fold."""
    return math.sqrt(t)


def named(function: Any, *parts: Any) -> Any:
    """A function made by a factory, under a name that tells it from the factory's others.

    Compiled code from several cache entries shares one space of symbols: functions that differ need names that do.
    """
    words = [getattr(getattr(p, "py_func", None), "__qualname__", None) or repr(p) for p in parts]
    function.__qualname__ = "_".join([function.__qualname__, *words])
    return function


def row_fold(step: Any, start: Any, merge: Any) -> Any:
    """A function that folds `n` elements from ``x[0]`` on, in blocks so that rounding errors stay small."""

    def stretch_of(x, first, last):
        t = start
        for i in range(first, last):
            t = step(t, x[i])
        return t

    stretch = internal_sum(named(stretch_of, step, start))

    def row(x, n):
        if n <= CHUNK:
            return stretch(x, 0, n)
        t = start
        for first in range(0, n, CHUNK):
            t = merge(t, stretch(x, first, min(first + CHUNK, n)))
        return t

    return internal(named(row, step, start, merge))


def column_fold(step: Any, start: Any) -> Any:
    """A function that folds `m` columns of `run` rows, `stride` elements apart, into `acc`."""

    def columns(x, run, stride, m, acc):
        for j in range(m):
            acc[j] = start
        whole = run - run % 4
        for r in range(0, whole, 4):
            a = r * stride
            b, c, d = a + stride, a + 2 * stride, a + 3 * stride
            for j in range(m):
                acc[j] = step(step(step(step(acc[j], x[a + j]), x[b + j]), x[c + j]), x[d + j])
        for r in range(whole, run):
            a = r * stride
            for j in range(m):
                acc[j] = step(acc[j], x[a + j])

    return internal_sum(named(columns, step, start))


def fold_kernel(S, row, start, stop):
    """Forward kernel of every fold with one accumulator: ROW, BLOCK, MERGE and FINISH over accumulators A."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = buffer_of(S, r.in0).data
    out = OUT(buffer_of(S, r.out).data)
    if words[2] < 0:
        parts = A(state_at(S).scratch)
        if start < 0:
            t = parts[0]
            for k in range(1, stop):
                t = MERGE(t, parts[k])
            out[0] = FINISH(t, run)
            return
        for k in range(start, stop):
            parts[k] = ROW(P(x + k * CHUNK * SIZE), min(CHUNK, run - k * CHUNK))
        return
    if inner == 1:
        for o in range(start, stop):
            out[o] = FINISH(ROW(P(x + o * run * SIZE), run), run)
        return
    blocks = (inner + COLUMNS - 1) // COLUMNS
    acc = A(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * COLUMNS
        m = min(COLUMNS, inner - c)
        BLOCK(P(x + (o * run * inner + c) * SIZE), run, inner, m, acc)
        for j in range(m):
            out[o * inner + c + j] = FINISH(acc[j], run)


_POINTERS = {"float64": structs.f64, "int64": structs.i64, "uint8": structs.u8}
_made: dict[tuple, dict[str, Any]] = {}


def _parts(step: Any, start: Any, merge: Any, finish: Any, acc: Any, out: Any) -> dict[str, Any]:
    key = (step, repr(start), merge, finish, acc, out)
    if key not in _made:
        _made[key] = {
            "ROW": row_fold(step, start, merge),
            "BLOCK": column_fold(step, start),
            "MERGE": merge,
            "FINISH": finish,
            "A": acc,
            "OUT": out,
        }
    return _made[key]


def pointer_of(dtype: int) -> Any:
    name = dtypes.ALL[dtype].name
    return getattr(structs, {"float32": "f32", "float64": "f64", "uint8": "u8", "bool": "u8"}.get(name, f"i{name[3:]}"))


def sums(
    step: Any = _plus, finish: Any = as_is, start: int = 0, merge: Any = _plus, integer: bool = False
) -> Callable[[int], dict[str, Any]]:
    """Placeholders of a sum: float64 accumulators for floating dtypes (unless `integer`), else int64."""

    def choose(dtype: int) -> dict[str, Any]:
        real = dtype <= 1 and not integer
        acc = structs.f64 if real else structs.i64
        return _parts(
            step,
            float(start) if real else start,
            merge,
            finish,
            acc,
            pointer_of(dtype) if real else structs.i64,
        )

    return choose


def tests(step: Any, start: int) -> Callable[[int], dict[str, Any]]:
    """Placeholders of `all` and `any`."""
    merge = both if start else either

    def choose(dtype: int) -> dict[str, Any]:
        return _parts(step, np.uint8(start), merge, as_is, structs.u8, structs.u8)

    return choose


def extremes(largest: bool) -> Callable[[int], dict[str, Any]]:
    """Placeholders of a maximum or minimum, in the operand's own dtype."""

    def choose(dtype: int) -> dict[str, Any]:
        kind = dtypes.ALL[dtype]
        if kind.is_floating_point:
            step, start = (larger, -math.inf) if largest else (smaller, math.inf)
        else:
            step = _larger_integer if largest else _smaller_integer
            limits = dtypes.iinfo(kind) if kind.category else None
            low, high = (limits.min, limits.max) if limits else (0, 1)
            start = low if largest else high
        typed_start = (np.uint8 if kind.category == 0 else kind.numpy.type)(start)
        pointer = pointer_of(dtype)
        return _parts(step, typed_start, step, as_is, pointer, pointer) | {"START": typed_start}

    return choose
