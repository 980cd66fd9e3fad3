"""Products of matrices and vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapegrad.engine.planned import TABLE
from tapegrad.engine.runtime import rt
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._operands import broadcast_shapes
from tapegrad.ops._product_checks import check_batches, check_inner_sizes, check_same_dtype, check_same_scalar_type
from tapegrad.ops._product_ops import MATMUL, product_op
from tapegrad.ops._public import composite
from tapegrad.tensor import Tensor, wrap

_S = rt.S


@product_op(
    routine="addmm_impl_cpu_",
    reference=np.matmul,
    samples=[(((2, 3), (3, 4)), {}), (((1, 5), (5, 1)), {}), (((3, 0), (0, 2)), {})],
)
def mm(op, input, mat2):
    r"""Product of two matrices, :math:`C_{ij} = \sum_k A_{ik} B_{kj}`.

    Args:
        input: matrix of shape (m, k).
        mat2: matrix of shape (k, n).

    Raises:
        RuntimeError: if the operands are no matrices, or their shapes or dtypes do not fit.

    >>> import tapegrad as tg
    >>> tg.mm(tg.tensor([[1.0, 2.0], [3.0, 4.0]]), tg.eye(2))
    tensor([[1., 2.],
            [3., 4.]])
    """
    check_tensor("mm", mat2, "mat2", 2)
    if input.ndim != 2:
        raise RuntimeError("self must be a matrix")
    if mat2.ndim != 2:
        raise RuntimeError("mat2 must be a matrix")
    check_inner_sizes(*input.shape, *mat2.shape)
    check_same_dtype(input, mat2)
    return input.shape[0], mat2.shape[1]


@product_op(routine="addmv_impl_cpu", reference=np.matmul, samples=[(((2, 3), (3,)), {}), (((4, 1), (1,)), {})])
def mv(op, input, vec):
    r"""Product of a matrix and a vector, :math:`c_i = \sum_k A_{ik} b_k`.

    Args:
        input: matrix of shape (m, k).
        vec: vector of k elements.

    Raises:
        RuntimeError: if the shapes or dtypes do not fit.
    """
    if input.ndim != 2 or vec.ndim != 1:
        raise RuntimeError(f"vector + matrix @ vector expected, got 1, {input.ndim}, {vec.ndim}")
    m, k = input.shape
    if k != vec.shape[0]:
        raise RuntimeError(f"size mismatch, got input ({m}), mat ({m}x{k}), vec ({vec.shape[0]})")
    if input.dtype is not vec.dtype:
        found = vec.dtype.tensor_type
        raise RuntimeError(
            f"addmv input tensors must have the same dtype, but got {found}, {input.dtype.tensor_type}, and {found}"
        )
    return (m,)


def _dot_shape(a: Tensor, b: Tensor) -> tuple:
    if a.ndim != 1 or b.ndim != 1:
        raise RuntimeError(f"1D tensors expected, but got {a.ndim}D and {b.ndim}D tensors")
    if a.dtype is not b.dtype:
        raise RuntimeError(
            f"dot : expected both vectors to have same dtype, but found {a.dtype.tensor_type} and {b.dtype.tensor_type}"
        )
    n, m = a.shape[0], b.shape[0]
    if n != m:
        raise RuntimeError(
            f"inconsistent tensor size, expected tensor [{n}] and src [{m}] to have the same number of "
            "elements, "
            f"but got {n} and {m} elements respectively"
        )
    return ()


@product_op(routine="dot", reference=np.dot, samples=[(((3,), (3,)), {}), (((0,), (0,)), {})])
def dot(op, input, tensor):
    r"""Dot product of two vectors, :math:`\sum_k a_k b_k`.

    Args:
        input: a vector.
        tensor: a vector of as many elements.

    Raises:
        RuntimeError: if the operands are no vectors, or their sizes or dtypes differ.

    >>> import tapegrad as tg
    >>> tg.dot(tg.tensor([1.0, 2.0]), tg.tensor([3.0, 4.0]))
    tensor(11.)
    """
    return _dot_shape(input, tensor)


@product_op(routine="dot", reference=np.vdot, samples=[(((3,), (3,)), {})])
def vdot(op, input, other):
    r"""Dot product of two vectors, :math:`\sum_k a_k b_k`; tensors here are real, so nothing is conjugated.

    Args:
        input: a vector.
        other: a vector of as many elements.

    Raises:
        RuntimeError: see `dot`.
    """
    return _dot_shape(input, other)


@product_op(routine="bmm", reference=np.matmul, samples=[(((5, 2, 3), (5, 3, 4)), {}), (((0, 2, 3), (0, 3, 1)), {})])
def bmm(op, input, mat2):
    r"""Products of the matrices in two batches, :math:`C_{bij} = \sum_k A_{bik} B_{bkj}`.

    Args:
        input: matrices, shape (batch, m, k).
        mat2: matrices, shape (batch, k, n).

    Raises:
        RuntimeError: if the shapes or dtypes do not fit.
    """
    shape = check_batches(input, mat2)
    check_same_scalar_type(input, mat2)
    return shape


def _matmul_shape(a: Tensor, b: Tensor) -> tuple[int, ...]:
    # operands of which one at least has a batch
    matrix_a, matrix_b = a.ndim > 1, b.ndim > 1
    k, p = a.shape[-1], b.shape[-2] if matrix_b else b.shape[0]
    m, n = a.shape[-2] if matrix_a else 1, b.shape[-1] if matrix_b else 1
    same = check_same_dtype
    if not matrix_a or not matrix_b:
        matrix, vector = (a, b) if matrix_a else (b, a)
        kept = matrix.shape[:-1] if matrix_a else (*matrix.shape[:-2], n)
        if k != p:
            rows = matrix.numel() // max(p if not matrix_a else k, 1)
            raise RuntimeError(
                f"size mismatch, got input ({rows}), mat ({rows}x{p if not matrix_a else k}), vec ({vector.shape[0]})"
            )
        same(a, b)
        return tuple(kept)
    if b.ndim == 2:
        check_inner_sizes(a.shape[:-1].numel(), k, p, n)
        same(a, b)
        return (*a.shape[:-1], n)
    try:
        batch = broadcast_shapes("matmul", a.shape[:-2], b.shape[:-2])
    except RuntimeError as problem:
        first = str(problem).partition(": ")[0]
        raise RuntimeError(f"{first}: matmul got shapes {list(a.shape)}, {list(b.shape)}") from None
    if k != p:
        count = int(np.prod(batch))
        raise RuntimeError(
            f"Expected size for first two dimensions of batch2 tensor to be: [{count}, {k}] but got: [{count}, {p}]."
        )
    check_same_scalar_type(a, b)
    return (*batch, m, n)


_RANK_SAMPLES: list[Any] = [
    (((2, 3), (3, 4)), {}),
    (((3,), (3,)), {}),
    (((2, 3), (3,)), {}),
    (((3,), (3, 4)), {}),
    (((5, 2, 3), (3, 4)), {}),
    (((5, 2, 3), (5, 3, 4)), {}),
    (((2, 3), (5, 3, 4)), {}),
    (((6, 1, 2, 3), (5, 3, 4)), {}),
    (((5, 2, 3), (3,)), {}),
    (((3,), (5, 3, 4)), {}),
]


@product_op(
    routine="bmm",
    grad_name="UnsafeViewBackward0",
    reference=np.matmul,
    samples=_RANK_SAMPLES[4:],
    method=False,
    public=False,
)
def batched_matmul(op, input, other):
    """Product of operands of which one at least has more than two dims (see `matmul`)."""
    return _matmul_shape(input, other)


@product_op(
    routine="addmm_impl_cpu_",
    grad_name="SqueezeBackward4",
    reference=np.matmul,
    samples=[(((3,), (3, 4)), {})],
    method=False,
    public=False,
)
def vecmat(op, input, mat):
    """Product of a vector and a matrix (see `matmul`)."""
    check_inner_sizes(1, input.shape[0], *mat.shape)
    check_same_dtype(input, mat)
    return (mat.shape[1],)


def matmul(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    r"""Product of tensors of any rank, :math:`C_{\dots ij} = \sum_k A_{\dots ik} B_{\dots kj}`.

    The last two dims are matrices and those before are batches, which broadcast. A vector on the left is a
    row, one on the right a column, and that dim is left out of the result.

    Args:
        input: tensor of shape (…, m, k) or (k,).
        other: tensor of shape (…, k, n) or (k,).
        out: a tensor to copy the result to.

    Raises:
        RuntimeError: if an operand has no dims, or the shapes or dtypes do not fit.

    >>> import tapegrad as tg
    >>> tg.matmul(tg.ones(2, 3), tg.tensor([1.0, 2.0, 3.0]))
    tensor([6., 6.])
    """
    try:
        k = rt.record_planned(_S, TABLE, MATMUL, input._id, other._id, 0)
    except AttributeError:
        check_tensor("matmul", input)
        check_tensor("matmul", other, "other", 2)
        raise
    result = wrap(k) if k > 0 else _first_matmul(input, other)
    return result if out is None else out.copy_(result)  # type: ignore[attr-defined]


def _first_matmul(a: Tensor, b: Tensor) -> Tensor:
    if a.ndim == 0 or b.ndim == 0:
        raise RuntimeError(f"both arguments to matmul need to be at least 1D, but they are {a.ndim}D and {b.ndim}D")
    ranks = min(a.ndim, 3), min(b.ndim, 3)
    op = {(1, 1): dot, (2, 1): mv, (1, 2): vecmat, (2, 2): mm}.get(ranks, batched_matmul)
    return op.first_run(MATMUL, a, b)


composite(samples=_RANK_SAMPLES, reference=np.matmul)(matmul)


def _matmul_operator(self: Tensor, other: Any) -> Any:
    if not isinstance(other, Tensor):
        return NotImplemented
    k = rt.record_planned(_S, TABLE, MATMUL, self._id, other._id, 0)
    return wrap(k) if k > 0 else _first_matmul(self, other)


def _reflected_matmul(self: Tensor, other: Any) -> Any:
    return _matmul_operator(other, self) if isinstance(other, Tensor) else NotImplemented


Tensor.__matmul__ = _matmul_operator  # type: ignore[attr-defined, operator]
Tensor.__rmatmul__ = _reflected_matmul  # type: ignore[attr-defined]
