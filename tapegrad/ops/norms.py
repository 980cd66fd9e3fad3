"""Norms of the elements as one vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tapegrad.ops import _fold_pairs, _fold_sums
from tapegrad.ops import pointwise as pw
from tapegrad.ops._fold import PAIR_COLUMNS, check_input, fold_op, normal_dims, plan_of
from tapegrad.ops._operands import cast
from tapegrad.ops._public import export
from tapegrad.ops._rule import Real
from tapegrad.ops.extremes import norms_of_infinity
from tapegrad.ops.pointwise import pow
from tapegrad.ops.reduction import SAMPLES, computed_in, numpy_reduction, sum
from tapegrad.tensor import Tensor

T = float  # the kernel's type, where a derivative needs it


@fold_op(
    inputs=["x"],
    choose=_fold_sums.sums(_fold_sums.plus_square, finish=_fold_sums.root_of),
    reference=numpy_reduction(lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims))),
    samples=SAMPLES,
    grad_name="LinalgVectorNormBackward0",
    method=False,
    public=False,
)
def norm_2(op, input, dim=None, keepdim=False):
    r"""Euclidean norm, :math:`\sqrt{\sum_k x_k^2}`; its gradient is zero where it is zero."""
    x, plan = plan_of(input, normal_dims("norm", dim, input.ndim), bool(keepdim))
    return op.fold(x, plan, x.dtype)


norm_2.forward(_fold_sums.fold_kernel)


@norm_2.backward
def _(g, x, out):
    return g * (0.0 if out == 0.0 else x / out)


@fold_op(
    inputs=["x"],
    choose=_fold_pairs.roots,
    parameters=["order"],
    reference=lambda x, order: np.asarray(np.sum(x) ** (1 / order)),
    samples=[(((3, 4),), {"args": (3.0,)})],
    domain=Real(0.1, 3.0),
    grad_name="LinalgVectorNormBackward0",
    method=False,
    public=False,
)
def root_of_sum(op, input, order, dim=None, keepdim=False):
    r"""Root of a sum of powers, :math:`(\sum_k x_k)^{1/p}`; its gradient is zero where it is zero."""
    x, plan = plan_of(input, normal_dims("norm", dim, input.ndim), bool(keepdim))
    return op.fold(x, plan, x.dtype, [order], None, 1, (), 2, PAIR_COLUMNS)


root_of_sum.forward(_fold_pairs.pair_kernel)


@root_of_sum.backward
def _(g, out, order):
    return g * (0.0 if out == 0.0 else pow(1.0 if out == 0.0 else out, T(1.0 - order)) / T(order))


_abs_sum = sum.twin("norm_1", "LinalgVectorNormBackward0")
_abs_sum.along = _abs_sum


def vector_norm(
    input: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, out: Any = None
) -> Tensor:
    r"""Norm of the elements as one vector.

    .. math:: \Big(\sum_k |x_k|^p\Big)^{1/p}

    Args:
        input: a floating tensor.
        ord: :math:`p`, a number or an infinity; 0 counts the elements that are not zero.
        dim: dim or dims to reduce; all by default.
        keepdim: keep reduced dims with extent one.
        dtype: convert to this first.

    Raises:
        RuntimeError: for integers, and for an infinity norm of no elements.

    >>> import tapegrad as tg
    >>> tg.norm(tg.tensor([3.0, 4.0]))
    tensor(5.)
    """
    check_input("linalg.vector_norm", input)
    x = computed_in(input, dtype)
    if not x.dtype.is_floating_point:
        raise RuntimeError(
            f"linalg.vector_norm: Expected a floating point or complex tensor as input. Got {x.dtype.tensor_type}"
        )
    p = float(ord)
    dims = normal_dims("linalg.vector_norm", dim, x.ndim)
    if p == 2:
        return norm_2(x, dims, keepdim)
    if p == 1:
        return _abs_sum(pw.abs(x), dims, keepdim)
    if p == 0:
        return _abs_sum(pw.add(cast(pw.ne(x.detach(), 0), x.dtype), pw.zero(x)), dims, keepdim)
    if math.isinf(p):
        if math.prod(x.shape[d] for d in dims) == 0:
            where = "on an empty tensor because the" if dim is None else "on a dimension that is empty: the"
            raise RuntimeError(
                f"linalg.vector_norm cannot compute the {p} norm {where} operation does not have an identity"
            )
        return norms_of_infinity[p > 0](pw.abs(x), dims, keepdim)
    if p < 1:
        # keep the infinite slope at zero out of the products
        zero = pw.eq(x.detach(), 0)
        powers = pw.where_op(zero, 0.0 if p > 0 else math.inf, pw.pow(pw.abs(pw.where_op(zero, 1.0, x)), p))
    else:
        powers = pw.pow(pw.abs(x), p)
    return root_of_sum(powers, p, dims, keepdim)


def norm(
    input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: Any = None, dtype: Any = None
) -> Tensor:
    """`vector_norm` with PyTorch's older arguments; ``p="fro"`` is 2."""
    if isinstance(p, str):
        if p != "fro":
            raise RuntimeError(f"norm(): p must be a number or 'fro', but got '{p}'")
        p = 2
    return vector_norm(input, 2 if p is None else p, dim, keepdim, dtype=dtype)


export(norm)
