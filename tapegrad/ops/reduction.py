"""Reductions: sums, means, extremes and tests over all elements or along dims."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_TRACED
from tapegrad.ops import _fold_pairs, _fold_sums
from tapegrad.ops import pointwise as pw
from tapegrad.ops._fold import PAIR_COLUMNS, check_input, fold_op, normal_dims, plan_of, select_op
from tapegrad.ops._kernel import empty
from tapegrad.ops._operands import cast
from tapegrad.ops._public import export
from tapegrad.ops._rule import Real
from tapegrad.ops.pointwise import exp
from tapegrad.tensor import Tensor

_S = rt.S
T = float  # the kernel's type, where a derivative needs it


def wanted(x: Tensor) -> bool:
    """Whether the derivative may be asked for."""
    if rt.look(_S, x._id, LOOK_TRACED) and rt.state["trace_mask"]:
        return True
    return x.requires_grad and not rt.mode_of_thread(_S)


def computed_in(x: Tensor, dtype: Any) -> Tensor:
    """The operand in the dtype asked for."""
    if dtype is not None:
        return cast(x, dtypes.as_dtype(dtype))
    return x


def _sum_dtype(x: Tensor) -> dtypes.dtype:
    return x.dtype if x.dtype.is_floating_point else dtypes.int64


def axis_of(dim: Any) -> Any:
    """A `dim` argument as NumPy's `axis`."""
    return tuple(dim) if isinstance(dim, list) else dim if dim != () else None


def numpy_reduction(function: Callable, **fixed: Any) -> Callable:
    """A NumPy reduction with PyTorch's argument names."""

    def reference(x: Any, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
        return function(x, axis=axis_of(dim), keepdims=keepdim, **fixed, **more)

    return reference


SAMPLES: list[Any] = [
    (((3, 4),), {}),
    (((),), {}),
    (((2, 3, 4),), {"args": (1,)}),
    (((2, 3, 4),), {"args": ((0, 2),), "kwargs": {"keepdim": True}}),
    (((5, 3),), {"args": (-2, True)}),
    (((2, 300),), {"args": (0,)}),
]
ONE_DIM = [s for s in SAMPLES if not isinstance(s[1].get("args", (0,))[0], tuple)]
EMPTY: list[Any] = [(((0, 3),), {"args": (0,)}), (((0,),), {})]


# sums


def _plain_fold(op: Any, input: Tensor, dim: Any, keepdim: bool, dtype: Any, **options: Any) -> Tensor:
    check_input(op.name, input)
    x = computed_in(input, dtype)
    x, plan = plan_of(x, normal_dims(op.name, dim, x.ndim), builtins.bool(keepdim))
    chosen = op if dim is None else op.along
    parameters = [max_of(plan.run, 1)] if op.reduction_parameters else ()
    result = chosen.fold(x, plan, _sum_dtype(x), parameters, **options)
    return result if dtype is None else cast(result, dtypes.as_dtype(dtype))


max_of, min_of = builtins.max, builtins.min


@fold_op(inputs=["x"], choose=_fold_sums.sums(), reference=numpy_reduction(np.sum), samples=SAMPLES + EMPTY)
def sum(op, input, dim=None, keepdim=False, *, dtype=None):
    r"""Sum of the elements, over all or some dims.

    .. math:: \sum_k x_k

    Args:
        input: the tensor. float32 is added up in float64; integers and bools give int64.
        dim: dim or dims to reduce; all by default.
        keepdim: keep reduced dims with extent one.
        dtype: convert to this first.

    Raises:
        IndexError: if there is no such dim.
        RuntimeError: if a dim is given twice.

    >>> import tapegrad as tg
    >>> tg.sum(tg.tensor([[1.0, 2.0], [3.0, 4.0]]), 0)
    tensor([4., 6.])
    """
    return _plain_fold(op, input, dim, keepdim, dtype)


sum.forward(_fold_sums.fold_kernel)


@sum.backward
def _(g):
    return g


sum.along = sum.twin("sum_along", "SumBackward1", ONE_DIM[2:])


@fold_op(
    inputs=["x"],
    choose=_fold_sums.sums(finish=_fold_sums.mean_of),
    parameters=["n"],
    reference=numpy_reduction(np.mean),
    samples=SAMPLES,
)
def mean(op, input, dim=None, keepdim=False, *, dtype=None):
    r"""Arithmetic mean, over all or some dims.

    .. math:: \frac{1}{n} \sum_k x_k

    Args:
        input: a floating tensor.
        dim: dim or dims to reduce; all by default.
        keepdim: keep reduced dims with extent one.
        dtype: convert to this first.

    Raises:
        RuntimeError: for integers without a floating `dtype`.

    >>> import tapegrad as tg
    >>> tg.mean(tg.tensor([1.0, 2.0, 6.0]))
    tensor(3.)
    """
    check_input(op.name, input)
    final = input.dtype if dtype is None else dtypes.as_dtype(dtype)
    if not final.is_floating_point:
        what = "Input dtype" if dtype is None else "Optional dtype"
        raise RuntimeError(
            f"mean(): could not infer output dtype. {what} must be either a floating point or complex dtype. "
            f"Got: {final.tensor_type}"
        )
    return _plain_fold(op, input, dim, keepdim, dtype)


mean.forward(_fold_sums.fold_kernel)


@mean.backward
def _(g, n):
    return g / T(n)


mean.along = mean.twin("mean_along", "MeanBackward1", ONE_DIM[2:])


@fold_op(
    inputs=["x"],
    choose=_fold_sums.sums(_fold_sums.plus_number),
    reference=numpy_reduction(np.nansum),
    samples=SAMPLES,
)
def nansum(op, input, dim=None, keepdim=False, *, dtype=None):
    r"""Sum of the elements that are not NaN, :math:`\sum_{x_k = x_k} x_k`; arguments as `sum`."""
    return _plain_fold(op, input, dim, keepdim, dtype)


nansum.forward(_fold_sums.fold_kernel)


@nansum.backward
def _(g, x):
    return g if x == x else 0.0


nansum.along = nansum


def nanmean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Mean of the elements that are not NaN; arguments as `mean`.

    Raises:
        RuntimeError: for integers.
    """
    check_input("nanmean", input)
    if not input.dtype.is_floating_point:
        raise RuntimeError(
            "nanmean(): expected input to have floating point or complex dtype but got " + input.dtype.tensor_type
        )
    count = sum(pw.logical_not(pw.isnan(input.detach())), dim, keepdim)
    return pw.true_divide(nansum(input, dim, keepdim, dtype=dtype), cast(count, input.dtype))


@fold_op(
    inputs=["x", "others"],
    choose=_fold_pairs.products,
    reference=numpy_reduction(np.prod),
    samples=SAMPLES + EMPTY,
)
def prod(op, input, dim=None, keepdim=False, *, dtype=None):
    r"""Product of the elements, over all or some dims; the gradient is right where elements are zero.

    .. math:: \prod_k x_k

    Args:
        input: the tensor; integers and bools give int64.
        dim: dim or dims to reduce; all by default.
        keepdim: keep reduced dims with extent one.
        dtype: convert to this first.
    """
    check_input(op.name, input)
    x = computed_in(input, dtype)
    real = x.dtype.is_floating_point
    x, plan = plan_of(x, normal_dims(op.name, dim, x.ndim), builtins.bool(keepdim))
    if not real:
        result = integer_prod.fold(x, plan, dtypes.int64)
        return result if dtype is None else cast(result, dtypes.as_dtype(dtype))
    chosen = op if dim is None else op.along
    others = empty(plan.kept, x.dtype) if wanted(x) else None
    return chosen.fold(x, plan, x.dtype, (), others, 2, (), 2, PAIR_COLUMNS)


prod.forward(_fold_pairs.pair_kernel)


@prod.backward
def _(g, x, others, out):
    return g * (others if x == 0.0 else out / (1.0 if x == 0.0 else x))


@prod.second_follows
def _product_of_others(x, shape):
    """For each element the product of the others in its run, from running products from both ends."""
    from tapegrad.ops.scan import product_before

    gone = [d for d in range(x.ndim) if shape[d] == 1]
    order = [d for d in range(x.ndim) if d not in gone] + gone
    turned = x.permute(order)
    runs = turned.reshape(math.prod(shape), math.prod(x.shape[d] for d in gone))
    others = product_before(runs) * product_before(runs.flip(1)).flip(1)
    return others.reshape(turned.shape).permute([order.index(d) for d in range(x.ndim)])


prod.along = prod.twin("prod_along", "ProdBackward1", ONE_DIM[2:])


@fold_op(
    inputs=["x"],
    choose=_fold_sums.sums(_fold_sums.times, start=1, merge=_fold_sums.times),
    reference=numpy_reduction(np.prod),
    domain=Real(),
    method=False,
    public=False,
)
def integer_prod(op, input, dim=None, keepdim=False):
    """Product of integers, in int64."""
    return prod(input, dim, keepdim)


integer_prod.forward(_fold_sums.fold_kernel)


# spread


def _spread(op: Any, input: Any, dim: Any, unbiased: Any, keepdim: Any, correction: Any, mean: bool = False) -> Any:
    check_input(op.name, input)
    if not input.dtype.is_floating_point:
        raise RuntimeError("std and var only support floating point and complex dtypes")
    if isinstance(dim, builtins.bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    x, plan = plan_of(input, normal_dims(op.name, dim, input.ndim), builtins.bool(keepdim))
    divisor = plan.run - float(correction)  # the kernel divides by at least zero, the derivative by this
    centre = empty(plan.kept, x.dtype) if wanted(x) else None
    return op.fold(x, plan, x.dtype, [divisor], centre, 3, (), 2, PAIR_COLUMNS)


def _numpy_spread(function: Callable) -> Callable:
    def reference(x: Any, dim: Any = None, unbiased: Any = True, keepdim: bool = False, correction: Any = None) -> Any:
        ddof = builtins.int(unbiased) if correction is None else correction
        return function(x, axis=axis_of(dim), ddof=ddof, keepdims=keepdim)

    return reference


SPREAD_SAMPLES: list[Any] = [
    (((3, 4),), {}),
    (((2, 3, 4),), {"args": (1,)}),
    (((4, 3),), {"args": (0, False)}),
    (((2, 3, 4),), {"args": ((0, 2),), "kwargs": {"keepdim": True, "correction": 0}}),
]


@fold_op(
    inputs=["x", "centre"],
    choose=_fold_pairs.variances(False),
    parameters=["divisor"],
    reference=_numpy_spread(np.var),
    samples=SPREAD_SAMPLES,
)
def var(op, input, dim=None, unbiased=None, keepdim=False, *, correction=None):
    r"""Variance, over all or some dims.

    .. math:: \frac{1}{\max(0, n - c)} \sum_k (x_k - \bar x)^2

    Args:
        input: a floating tensor.
        dim: dim or dims to reduce; all by default.
        unbiased: whether the correction is one (the default) or zero.
        keepdim: keep reduced dims with extent one.
        correction: :math:`c`, instead of `unbiased`.

    Raises:
        RuntimeError: for integers.

    >>> import tapegrad as tg
    >>> tg.var(tg.tensor([1.0, 2.0, 3.0]))
    tensor(1.)
    """
    return _spread(op, input, dim, unbiased, keepdim, correction)


var.forward(_fold_pairs.pair_kernel)


@var.backward
def _(g, x, centre, divisor):
    return g * (x - centre) * T(2.0 / divisor)


@var.second_follows
def _centre(x, shape):
    """The mean of each run."""
    return mean(x, [d for d in range(x.ndim) if shape[d] == 1], True)


@fold_op(
    inputs=["x", "centre"],
    choose=_fold_pairs.variances(True),
    parameters=["divisor"],
    reference=_numpy_spread(np.std),
    samples=SPREAD_SAMPLES,
)
def std(op, input, dim=None, unbiased=None, keepdim=False, *, correction=None):
    r"""Standard deviation, the square root of `var`; its gradient is zero where it is zero.

    .. math:: \sqrt{\frac{1}{\max(0, n - c)} \sum_k (x_k - \bar x)^2}
    """
    return _spread(op, input, dim, unbiased, keepdim, correction)


std.forward(_fold_pairs.pair_kernel)


@std.backward
def _(g, x, centre, out, divisor):
    return g * (0.0 if out == 0.0 else (x - centre) / ((1.0 if out == 0.0 else out) * T(divisor)))


std.second_follows(_centre)


_pairs = {
    "var_mean": (
        var.twin("var_of_pair", "VarMeanBackward0"),
        mean.twin("mean_of_var_pair", "VarMeanBackward0"),
    ),
    "std_mean": (
        std.twin("std_of_pair", "StdMeanBackward0"),
        mean.twin("mean_of_std_pair", "StdMeanBackward0"),
    ),
}


def _with_mean(name: str) -> Callable:
    def function(
        input: Tensor,
        dim: Any = None,
        unbiased: Any = None,
        keepdim: bool = False,
        *,
        correction: Any = None,
        axis: Any = None,
    ) -> tuple[Tensor, Tensor]:
        spread, centre = _pairs[name]
        dim = axis if dim is None else dim
        first = _spread(spread, input, dim, unbiased, keepdim, correction)
        if isinstance(dim, builtins.bool):
            dim = None
        x, plan = plan_of(input, normal_dims(name, dim, input.ndim), builtins.bool(keepdim))
        return first, centre.fold(x, plan, x.dtype, [max_of(plan.run, 1)])

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"The pair of `{name[:3]}` and `mean`; arguments as `{name[:3]}`."
    return function


var_mean, std_mean = _with_mean("var_mean"), _with_mean("std_mean")


@fold_op(
    inputs=["x"],
    choose=_fold_pairs.exponentials,
    parameters=["unused"],
    reference=lambda *a, **k: _logsumexp_reference(*a, **k),
    samples=[s for s in SAMPLES if s[1]],
)
def logsumexp(op, input, dim, keepdim=False):
    r"""Logarithm of the sum of exponentials, without overflow.

    .. math:: \log \sum_k e^{x_k}

    Args:
        input: the tensor; integers are taken as the default floating dtype.
        dim: dim or dims to reduce.
        keepdim: keep reduced dims with extent one.
    """
    check_input(op.name, input)
    if not input.dtype.is_floating_point:
        input = cast(input, dtypes.get_default_dtype())
    x, plan = plan_of(input, normal_dims(op.name, dim, input.ndim), builtins.bool(keepdim))
    return op.fold(x, plan, x.dtype, [0.0], None, 4, (), 2, PAIR_COLUMNS)


def _logsumexp_reference(x: Any, dim: Any, keepdim: bool = False) -> Any:
    from scipy.special import logsumexp as reference

    return reference(x, axis=axis_of(dim), keepdims=keepdim)


logsumexp.forward(_fold_pairs.pair_kernel)


@logsumexp.backward
def _(g, x, out):
    return g * exp(x - (0.0 if out == T(-math.inf) else out))


# tests and counts


def _test(op: Any, input: Any, dim: Any, keepdim: Any, dtype: dtypes.dtype) -> Tensor:
    check_input(op.name, input)
    x, plan = plan_of(input, normal_dims(op.name, dim, input.ndim), builtins.bool(keepdim))
    return op.run([x], plan, dtype, 1, per_chunk=1)


def _truth(x: Tensor) -> dtypes.dtype:
    return dtypes.uint8 if getattr(x, "dtype", None) is dtypes.uint8 else dtypes.bool


@select_op(
    inputs=["x"],
    choose=_fold_sums.tests(_fold_sums.both, 1),
    reference=numpy_reduction(np.all),
    samples=SAMPLES + EMPTY,
)
def all(op, input, dim=None, keepdim=False):
    r"""Whether all elements differ from zero, :math:`\bigwedge_k x_k \ne 0`; bool, or uint8 of uint8."""
    return _test(op, input, dim, keepdim, _truth(input))


@select_op(
    inputs=["x"],
    choose=_fold_sums.tests(_fold_sums.either, 0),
    reference=numpy_reduction(np.any),
    samples=SAMPLES + EMPTY,
)
def any(op, input, dim=None, keepdim=False):
    r"""Whether an element differs from zero, :math:`\bigvee_k x_k \ne 0`; bool, or uint8 of uint8."""
    return _test(op, input, dim, keepdim, _truth(input))


@select_op(
    inputs=["x"],
    choose=_fold_sums.sums(_fold_sums.count, integer=True),
    reference=lambda x, dim=None: np.asarray(np.count_nonzero(x, axis=axis_of(dim))),
    samples=[s for s in SAMPLES if "kwargs" not in s[1] and len(s[1].get("args", ())) < 2],
)
def count_nonzero(op, input, dim=None):
    r"""Number of elements that differ from zero, :math:`\sum_k [x_k \ne 0]`, over all or some dims."""
    return _test(op, input, dim, False, dtypes.int64)


for _op in (all, any, count_nonzero):
    _op.forward(_fold_sums.fold_kernel)


export(nanmean)
for _function in (var_mean, std_mean):
    export(_function, method=False)
