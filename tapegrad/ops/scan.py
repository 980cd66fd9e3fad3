"""Running sums, products and extremes along one dim."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.engine import structs
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
from tapegrad.ops._fold import COLUMNS, check_input, one_dim, plan_of, select_op
from tapegrad.ops._fold_places import better_than
from tapegrad.ops._fold_sums import pointer_of
from tapegrad.ops._kernel import empty
from tapegrad.ops._rule import PUBLIC, Real, cast
from tapegrad.ops._view import as_method
from tapegrad.ops.extremes import result_tuple
from tapegrad.tensor import Tensor

P = A = OUT = SIZE = G = STEP = START = BETTER = None


def _scan(op: Any, input: Any, dim: Any, dtype: Any, cost: int, result: dtypes.dtype | None = None) -> Tensor:
    check_input(op.name, input)
    x = input if dtype is None else cast(input, dtypes.as_dtype(dtype))
    dims = (one_dim(op.name, dim, x.ndim),)
    x, plan = plan_of(x, dims if x.ndim else (), True, plain=True)
    if result is None:
        result = x.dtype if x.dtype.is_floating_point else dtypes.int64
    done = op.run([x], plan, result, cost, shape=x.shape)
    return done if dtype is None else cast(done, dtypes.as_dtype(dtype))


# sums and products: the accumulators of a block of columns stay on the stack


@internal
def _plus(t, v):
    return t + v


@internal
def _times(t, v):
    return t * v


def scan_kernel(S, row, start, stop):
    """Forward kernel: ``out[r] = STEP(out[r - 1], x[r])``, kept in float64 or int64."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = P(buffer_of(S, r.in0).data)
    out = OUT(buffer_of(S, r.out).data)
    if inner == 1:
        for o in range(start, stop):
            t = START
            for i in range(o * run, (o + 1) * run):
                t = STEP(t, x[i])
                out[i] = t
        return
    blocks = (inner + COLUMNS - 1) // COLUMNS
    acc = A(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * COLUMNS
        m = min(COLUMNS, inner - c)
        for j in range(m):
            acc[j] = START
        for q in range(run):
            base = (o * run + q) * inner + c
            for j in range(m):
                acc[j] = STEP(acc[j], x[base + j])
                out[base + j] = acc[j]


def _accumulate(step: Any, start: int) -> Callable[[int], dict[str, Any]]:
    def choose(dtype: int) -> dict[str, Any]:
        if dtype <= 1:
            return {"STEP": step, "START": float(start), "A": structs.f64, "OUT": pointer_of(dtype)}
        return {"STEP": step, "START": start, "A": structs.i64, "OUT": structs.i64}

    return choose


def cumsum_reverse(S, row, start, stop):
    """Reverse kernel of `cumsum`: the sum of g from the last element back."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    g = P(buffer_of(S, r.out).adj)
    adjoint = P(i64(S + ADJOINT_OFFSET)[0])
    keep = 0.0 if i64(S + STORE_OFFSET)[0] == 1 else 1.0
    width = 1 if inner == 1 else COLUMNS
    blocks = (inner + width - 1) // width
    acc = f64(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * width
        m = min(width, inner - c)
        for j in range(m):
            acc[j] = 0.0
        for q in range(run - 1, -1, -1):
            base = (o * run + q) * inner + c
            for j in range(m):
                acc[j] += g[base + j]
                if keep == 0.0:
                    adjoint[base + j] = acc[j]
                else:
                    adjoint[base + j] += acc[j]


def cumprod_reverse(S, row, start, stop):
    """Reverse kernel of `cumprod`; from the first zero on, only the products that leave it out count."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = P(buffer_of(S, r.in0).data)
    out = P(buffer_of(S, r.out).data)
    g = P(buffer_of(S, r.out).adj)
    adjoint = P(i64(S + ADJOINT_OFFSET)[0])
    fresh = i64(S + STORE_OFFSET)[0] == 1
    width = 1 if inner == 1 else COLUMNS
    blocks = (inner + width - 1) // width
    for k in range(start, stop):
        o = k // blocks
        first = (k - o * blocks) * width
        for c in range(first, min(first + width, inner)):
            base = o * run * inner + c
            zero = run
            for q in range(run):
                if x[base + q * inner] == 0:
                    zero = q
                    break
            # at the first zero: the products of all the others, up to the next zero
            through = 0.0
            if zero < run:
                product = 1.0
                if zero > 0:
                    product = f64_of(out[base + (zero - 1) * inner])
                through = product * g[base + zero * inner]
                for q in range(zero + 1, run):
                    product *= x[base + q * inner]
                    through += product * g[base + q * inner]
            total = 0.0
            for q in range(run - 1, -1, -1):
                i = base + q * inner
                if q < zero:
                    total += f64_of(g[i]) * out[i]
                    value = total / x[i]
                elif q == zero:
                    value = through
                else:
                    value = 0.0
                if fresh:
                    adjoint[i] = value
                else:
                    adjoint[i] += value


@internal
def f64_of(v):
    """A number in float64."""
    return v * 1.0 + 0.0


def _numpy_scan(function: Callable) -> Callable:
    return lambda x, dim, dtype=None: function(x, axis=dim)


SAMPLES: list[Any] = [
    (((5,),), {"args": (0,)}),
    (((2, 3, 4),), {"args": (1,)}),
    (((3, 4),), {"args": (-1,)}),
    (((),), {"args": (0,)}),
    (((0, 3),), {"args": (0,)}),
]


@select_op(inputs=["x"], choose=_accumulate(_plus, 0), reference=_numpy_scan(np.cumsum), samples=SAMPLES)
def cumsum(op, input, dim, *, dtype=None):
    r"""Running sum along one dim.

    .. math:: y_i = \sum_{k \le i} x_k

    Args:
        input: the tensor; integers and bools give int64.
        dim: the dim to run along.
        dtype: convert to this first.

    >>> import tapegrad as tg
    >>> tg.cumsum(tg.tensor([1.0, 2.0, 3.0]), 0)
    tensor([1., 3., 6.])
    """
    return _scan(op, input, dim, dtype, 4)


cumsum.forward(scan_kernel)


@cumsum.backward
def _(g, words):
    from tapegrad.ops.movement import flip

    return flip(cumsum(flip(g, (words[-1],)), words[-1]), (words[-1],))


cumsum.reverse_kernel(cumsum_reverse)


@select_op(inputs=["x"], choose=_accumulate(_times, 1), reference=_numpy_scan(np.cumprod), samples=SAMPLES)
def cumprod(op, input, dim, *, dtype=None):
    r"""Running product along one dim; the gradient is right where elements are zero.

    .. math:: y_i = \prod_{k \le i} x_k

    Args:
        input: the tensor; integers and bools give int64.
        dim: the dim to run along.
        dtype: convert to this first.
    """
    return _scan(op, input, dim, dtype, 4)


cumprod.forward(scan_kernel)


def _native_only(g, x, out):
    raise NotImplementedError


cumprod.backward(_native_only)
cumprod.reverse_kernel(cumprod_reverse)


# log-sum-exp


def logcumsumexp_kernel(S, row, start, stop):
    """Forward kernel: the largest element so far, and the sum of exponentials below it."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = P(buffer_of(S, r.in0).data)
    out = P(buffer_of(S, r.out).data)
    width = 1 if inner == 1 else COLUMNS
    blocks = (inner + width - 1) // width
    for k in range(start, stop):
        o = k // blocks
        first = (k - o * blocks) * width
        for c in range(first, min(first + width, inner)):
            top = -math.inf
            total = 0.0
            for q in range(run):
                i = (o * run + q) * inner + c
                v = x[i] * 1.0
                if v > top or v != v:
                    total = total * exp(top - v) + 1.0
                    top = v
                elif v > -math.inf:
                    total += 1.0 if v == top else exp(v - top)
                out[i] = top + log(total)


def logcumsumexp_reverse(S, row, start, stop):
    """Reverse kernel: exp(x[i]) times the sum of g[j] exp(-out[j]) from i on, scaled to out[i]."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = P(buffer_of(S, r.in0).data)
    out = P(buffer_of(S, r.out).data)
    g = P(buffer_of(S, r.out).adj)
    adjoint = P(i64(S + ADJOINT_OFFSET)[0])
    fresh = i64(S + STORE_OFFSET)[0] == 1
    width = 1 if inner == 1 else COLUMNS
    blocks = (inner + width - 1) // width
    for k in range(start, stop):
        o = k // blocks
        first = (k - o * blocks) * width
        for c in range(first, min(first + width, inner)):
            total = 0.0
            after = math.inf
            for q in range(run - 1, -1, -1):
                i = (o * run + q) * inner + c
                level = out[i] * 1.0
                if level == -math.inf:
                    value = 0.0
                    total = 0.0
                else:
                    total = g[i] + (total * exp(level - after) if q < run - 1 else 0.0)
                    value = total * exp(x[i] - level)
                after = level
                if fresh:
                    adjoint[i] = value
                else:
                    adjoint[i] += value


@select_op(
    inputs=["x"],
    reference=lambda x, dim: np.logaddexp.accumulate(x, axis=dim) if np.ndim(x) else x,
    samples=SAMPLES,
)
def logcumsumexp(op, input, dim):
    r"""Running `logsumexp` along one dim, without overflow.

    .. math:: y_i = \log \sum_{k \le i} e^{x_k}

    Args:
        input: a floating tensor.
        dim: the dim to run along.

    Raises:
        NotImplementedError: for integers.
    """
    check_input(op.name, input)
    if not input.dtype.is_floating_point:
        raise NotImplementedError(f"\"logcumsumexp_out_cpu\" not implemented for '{input.dtype.tensor_type}'")
    return _scan(op, input, dim, None, 16)


logcumsumexp.forward(logcumsumexp_kernel)
logcumsumexp.backward(_native_only)
logcumsumexp.reverse_kernel(logcumsumexp_reverse)


# extremes


def extreme_scan_kernel(S, row, start, stop):
    """Forward kernel of `cummax` and `cummin`: the best so far and its latest place."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    x = P(buffer_of(S, r.in0).data)
    out = P(buffer_of(S, r.out).data)
    places = i64(buffer_of(S, r.in1).data)
    width = 1 if inner == 1 else COLUMNS
    blocks = (inner + width - 1) // width
    acc = P(stack_block())
    where = i64(stack_block())
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * width
        m = min(width, inner - c)
        for q in range(run):
            base = (o * run + q) * inner + c
            for j in range(m):
                v = x[base + j]
                if q == 0 or BETTER(v, acc[j]) or v == acc[j] or (v != v and acc[j] != acc[j]):
                    acc[j] = v
                    where[j] = q
                out[base + j] = acc[j]
                places[base + j] = where[j]


def extreme_scan_reverse(S, row, start, stop):
    """Reverse kernel: each adjoint goes to the element at the recorded place."""
    r = row_at(row)
    words = i64(r.attr)
    run, inner = words[G + 1], words[G + 2]
    places = i64(buffer_of(S, r.in1).data)
    g = P(buffer_of(S, r.out).adj)
    adjoint = P(i64(S + ADJOINT_OFFSET)[0])
    fresh = i64(S + STORE_OFFSET)[0] == 1
    width = 1 if inner == 1 else COLUMNS
    blocks = (inner + width - 1) // width
    for k in range(start, stop):
        o = k // blocks
        c = (k - o * blocks) * width
        m = min(width, inner - c)
        for q in range(run):
            base = (o * run + q) * inner + c
            if fresh:
                for j in range(m):
                    adjoint[base + j] = 0
            for j in range(m):
                adjoint[o * run * inner + places[base + j] * inner + c + j] += g[base + j]


def _extreme_scan(name: str, largest: builtins.bool, function: Callable) -> Any:
    def body(op, input, dim):
        check_input(name, input)
        dims = (one_dim(name, dim, input.ndim),)
        x, plan = plan_of(input, dims if input.ndim else (), True, plain=True)
        places = empty(x.shape, dtypes.int64)
        return op.run([x, places], plan, x.dtype, 4, shape=x.shape), places

    body.__name__ = body.__qualname__ = f"{name}_along"
    body.__doc__ = f"Values and places of `{name}`."
    op = select_op(
        inputs=["x", "places"],
        choose=lambda dtype: {"BETTER": better_than(largest)},
        reference=function,
        domain=Real(),
        grad_name=f"{name.capitalize()}Backward0",
        method=False,
        public=False,
    )(body)
    op.forward(extreme_scan_kernel)

    def native_only(g, places):
        raise NotImplementedError

    op.backward(native_only)
    op.reverse_kernel(extreme_scan_reverse)
    pair = result_tuple(name, "values indices")

    def public(input: Tensor, dim: int) -> Any:
        return pair(*op(input, dim))

    public.__name__ = public.__qualname__ = name
    word = "Largest" if largest else "Smallest"
    sign = "max" if largest else "min"
    public.__doc__ = (
        f"{word} element so far along one dim, and its latest place, as ``(values, indices)``.\n\n"
        f"    .. math:: y_i = \\{sign}_{{k \\le i}} x_k\n\n"
        "    Args:\n        input: the tensor.\n        dim: the dim to run along.\n    "
    )
    PUBLIC[name] = public
    setattr(Tensor, name, as_method(public))
    return op


cummax_along = _extreme_scan("cummax", True, np.maximum.accumulate)
cummin_along = _extreme_scan("cummin", False, np.minimum.accumulate)
cummax, cummin = PUBLIC["cummax"], PUBLIC["cummin"]
