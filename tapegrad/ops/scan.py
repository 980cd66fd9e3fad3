"""Running sums, products and extremes along one dim."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.ops import _scans
from tapegrad.ops import pointwise as pw
from tapegrad.ops._fold import check_input, one_dim, plan_of, select_op
from tapegrad.ops._fold_places import place_parts, place_reverse
from tapegrad.ops._kernel import empty, kernel_op
from tapegrad.ops._operands import cast
from tapegrad.ops._public import export
from tapegrad.ops._rule import PUBLIC, Real
from tapegrad.ops.extremes import result_tuple
from tapegrad.ops.joining import cat
from tapegrad.ops.rearranging import flip
from tapegrad.tensor import Tensor


def _scan(op: Any, input: Any, dim: Any, dtype: Any, cost: int, result: dtypes.dtype | None = None) -> Tensor:
    check_input(op.name, input)
    x = input if dtype is None else cast(input, dtypes.as_dtype(dtype))
    dims = (one_dim(op.name, dim, x.ndim),)
    x, plan = plan_of(x, dims if x.ndim else (), True, plain=True)
    if result is None:
        result = x.dtype if x.dtype.is_floating_point else dtypes.int64
    done = op.run([x], plan, result, cost, shape=x.shape)
    return done if dtype is None else cast(done, dtypes.as_dtype(dtype))


def _numpy_scan(function: Callable) -> Callable:
    return lambda x, dim, dtype=None: function(x, axis=dim)


# what the derivatives over tensors are made of; tensors are seen as (rows outside, run, rows inside)


@kernel_op(inputs=["a", "x"], reference=None, grad_name="CumprodBackward0", method=False, public=False)
def recurrence(op, a, x, backwards):
    r"""Linear recurrence along the middle dim, :math:`y_q = x_q + a_q y_{q-1}`; backwards :math:`y_q = x_q + a_{q+1} y_{q+1}`."""
    outer, run, inner = x.shape
    words = [outer, run, inner, int(backwards)]
    return op.launch([a.contiguous(), x.contiguous()], x.shape, x.dtype, words, outer, max(4 * run * inner, 4))


recurrence.covered_by = "cumprod"
recurrence.forward(_scans.recurrence_kernel)


@recurrence.backward
def _(g, a, out, need, words):
    # the two directions are each other's adjoint
    backwards, n = bool(words[3]), out.shape[1]
    to_x, to_a = recurrence(a, g, not backwards), None
    if need & 1 and n:
        products = to_x.narrow(1, 1 - backwards, n - 1) * out.narrow(1, int(backwards), n - 1)
        to_a = cat([pw.zero(out.narrow(1, 0, 1)), products], 1)
    return to_a, to_x


def _moved_on(x: Tensor, first: float) -> Tensor:
    """The elements before those of `x` along dim 1, and a number before its first."""
    from tapegrad.creation import full

    n = x.shape[1]
    if n == 0:
        return x
    return cat([full((x.shape[0], 1, *x.shape[2:]), first, dtype=x.dtype), x.narrow(1, 0, n - 1)], 1)


def _runs(words: Sequence[int], *tensors: Tensor) -> list[Tensor]:
    return [t.reshape(tuple(words[1:4])) for t in tensors]  # type: ignore[attr-defined]


def product_before(x: Tensor) -> Tensor:
    """The product of the elements before each along dim 1."""
    return _moved_on(cumprod(x, 1), 1.0)


# sums, products, log-sum-exp


SAMPLES: list[Any] = [
    (((5,),), {"args": (0,)}),
    (((2, 3, 4),), {"args": (1,)}),
    (((3, 4),), {"args": (-1,)}),
    (((),), {"args": (0,)}),
    (((0, 3),), {"args": (0,)}),
]


@select_op(inputs=["x"], choose=_scans.sums, reference=_numpy_scan(np.cumsum), samples=SAMPLES)
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


@cumsum.backward
def _(g, words):
    (g,) = _runs(words, g)
    return flip(cumsum(flip(g, 1), 1), 1)


@select_op(inputs=["x"], choose=_scans.products, reference=_numpy_scan(np.cumprod), samples=SAMPLES)
def cumprod(op, input, dim, *, dtype=None):
    r"""Running product along one dim; the gradient is right where elements are zero.

    .. math:: y_i = \prod_{k \le i} x_k

    Args:
        input: the tensor; integers and bools give int64.
        dim: the dim to run along.
        dtype: convert to this first.
    """
    return _scan(op, input, dim, dtype, 4)


@cumprod.backward
def _(g, x, out, words):
    g, x, out = _runs(words, g, x, out)
    return recurrence(x, g, True) * _moved_on(out, 1.0)


@select_op(
    inputs=["x"],
    choose=_scans.exponentials,
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


@logcumsumexp.backward
def _(g, x, out, words):
    g, x, out = _runs(words, g, x, out)
    # nothing goes on from a level of minus infinity; differences of infinities stay out of the next derivative
    empty_so_far = pw.eq(out, -math.inf)
    level = pw.where_op(empty_so_far, 0.0, out)
    passed = _exp_unless(_moved_on(empty_so_far, True), _moved_on(level, 0.0) - level)
    return recurrence(passed, g, True) * _exp_unless(empty_so_far, x - level)


def _exp_unless(condition: Tensor, x: Tensor) -> Tensor:
    # zero where the condition holds, with derivatives of zero
    return pw.where_op(condition, 0.0, pw.exp(pw.where_op(condition, 0.0, x)))


for _op in (cumsum, cumprod, logcumsumexp):
    _op.forward(_scans.scan_kernel)
    _op.reverse_kernel(_scans.scan_reverse)


# extremes


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
        choose=_scans.latest_extremes(largest),
        reference=function,
        domain=Real(),
        grad_name=f"{name.capitalize()}Backward0",
        method=False,
        public=False,
    )(body)
    op.forward(_scans.scan_kernel)
    op.backward(place_parts)
    op.reverse_kernel(place_reverse)
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
    export(public)
    return op


cummax_along = _extreme_scan("cummax", True, np.maximum.accumulate)
cummin_along = _extreme_scan("cummin", False, np.minimum.accumulate)
cummax, cummin = PUBLIC["cummax"], PUBLIC["cummin"]
