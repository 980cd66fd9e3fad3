"""Products of matrices and vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapegrad.engine.planned import TABLE
from tapegrad.engine.runtime import rt
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._operands import broadcast_shapes
from tapegrad.ops._product_ops import AffineOp, ProductOp, c_name
from tapegrad.ops._public import composite
from tapegrad.tensor import Tensor, wrap

_S = rt.S
_PAIR = ["a", "b"]
_TRIPLE = ["x", "a", "b"]


def product_op(**options: Any) -> Callable[[Callable], ProductOp]:
    """Declare a product by a function that checks two operands and gives the result's shape."""
    return lambda function: ProductOp(function, inputs=_PAIR, **options)


def affine_op(**options: Any) -> Callable[[Callable], AffineOp]:
    """Declare a product added to a third operand (see `AffineOp`)."""
    return lambda function: AffineOp(function, inputs=_TRIPLE, **options)


# checks


def _same_dtype(a: Tensor, b: Tensor) -> None:
    if a.dtype is not b.dtype:
        raise RuntimeError(
            f"expected m1 and m2 to have the same dtype, but got: {c_name(a.dtype)} != {c_name(b.dtype)}"
        )


def _same_scalar_type(a: Tensor, b: Tensor) -> None:
    if a.dtype is not b.dtype:
        raise RuntimeError(f"expected scalar type {a.dtype.tensor_type} but found {b.dtype.tensor_type}")


def _inner_sizes(m: int, k: int, p: int, n: int) -> None:
    if k != p:
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({m}x{k} and {p}x{n})")


def _expandable(x: Tensor, shape: Sequence[int]) -> None:
    if x.ndim > len(shape):
        raise RuntimeError(
            f"expand(tapegrad.{x.dtype.tensor_type}Tensor{{{list(x.shape)}}}, size={list(shape)}): the "
            "number of sizes provided "
            f"({len(shape)}) must be greater or equal to the number of dimensions in the tensor ({x.ndim})"
        )
    for d in range(1, x.ndim + 1):
        if x.shape[-d] not in (1, shape[-d]):
            raise RuntimeError(
                f"The expanded size of the tensor ({shape[-d]}) must match the existing size "
                f"({x.shape[-d]}) at non-singleton "
                f"dimension {len(shape) - d}.  Target sizes: {list(shape)}.  Tensor sizes: {list(x.shape)}"
            )


def _batches(a: Tensor, b: Tensor) -> tuple[int, int, int]:
    if a.ndim != 3:
        raise RuntimeError("batch1 must be a 3D tensor")
    if b.ndim != 3:
        raise RuntimeError("batch2 must be a 3D tensor")
    if b.shape[0] != a.shape[0] or b.shape[1] != a.shape[2]:
        raise RuntimeError(
            f"Expected size for first two dimensions of batch2 tensor to be: [{a.shape[0]}, {a.shape[2]}] "
            f"but got: [{b.shape[0]}, {b.shape[1]}]."
        )
    return a.shape[0], a.shape[1], b.shape[2]


# two operands


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
    _inner_sizes(*input.shape, *mat2.shape)
    _same_dtype(input, mat2)
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
    shape = _batches(input, mat2)
    _same_scalar_type(input, mat2)
    return shape


def _matmul_shape(a: Tensor, b: Tensor) -> tuple[int, ...]:
    # operands of which one at least has a batch
    matrix_a, matrix_b = a.ndim > 1, b.ndim > 1
    k, p = a.shape[-1], b.shape[-2] if matrix_b else b.shape[0]
    m, n = a.shape[-2] if matrix_a else 1, b.shape[-1] if matrix_b else 1
    same = _same_dtype
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
        _inner_sizes(a.shape[:-1].numel(), k, p, n)
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
    _same_scalar_type(a, b)
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
    _inner_sizes(1, input.shape[0], *mat.shape)
    _same_dtype(input, mat)
    return (mat.shape[1],)


# who asks for a plan, where it is no op (see engine/planned.py)
_MATMUL, _LINEAR = -1, -2


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
        k = rt.record_planned(_S, TABLE, _MATMUL, input._id, other._id, 0)
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
    return op.first_run(_MATMUL, a, b)


composite(samples=_RANK_SAMPLES, reference=np.matmul)(matmul)


def _matmul_operator(self: Tensor, other: Any) -> Any:
    if not isinstance(other, Tensor):
        return NotImplemented
    k = rt.record_planned(_S, TABLE, _MATMUL, self._id, other._id, 0)
    return wrap(k) if k > 0 else _first_matmul(self, other)


def _reflected_matmul(self: Tensor, other: Any) -> Any:
    return _matmul_operator(other, self) if isinstance(other, Tensor) else NotImplemented


Tensor.__matmul__ = _matmul_operator  # type: ignore[attr-defined, operator]
Tensor.__rmatmul__ = _reflected_matmul  # type: ignore[attr-defined]


# a product and something added to it


def _addmm_reference(x, a, b, beta=1, alpha=1):
    return beta * x + alpha * (a @ b)


@affine_op(
    routine="addmm_impl_cpu_",
    reference=_addmm_reference,
    samples=[
        (((4,), (2, 3), (3, 4)), {}),
        (((2, 1), (2, 3), (3, 4)), {"kwargs": {"beta": 0.5, "alpha": 2.0}}),
        (((2, 4), (2, 3), (3, 4)), {"kwargs": {"beta": 0}}),
    ],
)
def addmm(op, input, mat1, mat2):
    r"""A matrix product added to a tensor, :math:`\beta X + \alpha A B`.

    Args:
        input: tensor that broadcasts to (m, n); not read when `beta` is 0.
        mat1: matrix of shape (m, k).
        mat2: matrix of shape (k, n).
        beta: factor of `input`.
        alpha: factor of the product.

    Raises:
        RuntimeError: if the shapes or dtypes do not fit.

    >>> import tapegrad as tg
    >>> tg.addmm(tg.tensor([1.0, -1.0]), tg.ones(2, 3), tg.ones(3, 2), alpha=2)
    tensor([[7., 5.],
            [7., 5.]])
    """
    for name, matrix in (("mat1", mat1), ("mat2", mat2)):
        if matrix.ndim != 2:
            raise RuntimeError(f"{name} must be a matrix, got {matrix.ndim}-D tensor")
    shape = (mat1.shape[0], mat2.shape[1])
    _inner_sizes(*mat1.shape, *mat2.shape)
    _same_as_input(input, mat1, mat2)
    _expandable(input, shape)
    return shape


def _same_as_input(input: Tensor, a: Tensor, b: Tensor) -> None:
    if not input.dtype is a.dtype is b.dtype:
        other = b if b.dtype is not input.dtype else a
        raise RuntimeError(
            f"self and mat2 must have the same dtype, but got {input.dtype.tensor_type} and {other.dtype.tensor_type}"
        )


@affine_op(
    routine="addmv_impl_cpu",
    reference=_addmm_reference,
    samples=[(((2,), (2, 3), (3,)), {}), (((), (2, 3), (3,)), {"kwargs": {"beta": 0.5, "alpha": 2.0}})],
)
def addmv(op, input, mat, vec):
    r"""A product of matrix and vector added to a vector, :math:`\beta x + \alpha A b`.

    Args:
        input: vector of m elements, or one that broadcasts to it.
        mat: matrix of shape (m, k).
        vec: vector of k elements.
        beta: factor of `input`.
        alpha: factor of the product.

    Raises:
        RuntimeError: if the shapes or dtypes do not fit.
    """
    if mat.ndim != 2 or vec.ndim != 1 or input.ndim > 1:
        raise RuntimeError(f"vector + matrix @ vector expected, got {input.ndim}, {mat.ndim}, {vec.ndim}")
    m, k = mat.shape
    if k != vec.shape[0] or (input.ndim == 1 and input.shape[0] not in (1, m)):
        rows = input.shape[0] if input.ndim else m
        raise RuntimeError(f"size mismatch, got input ({rows}), mat ({m}x{k}), vec ({vec.shape[0]})")
    if not input.dtype is mat.dtype is vec.dtype:
        names = [t.dtype.tensor_type for t in (input, mat, vec)]
        raise RuntimeError(
            f"addmv input tensors must have the same dtype, but got {names[0]}, {names[1]}, and {names[2]}"
        )
    return (m,)


@affine_op(
    routine="baddbmm",
    reference=_addmm_reference,
    samples=[
        (((5, 2, 4), (5, 2, 3), (5, 3, 4)), {}),
        (((2, 1), (5, 2, 3), (5, 3, 4)), {"kwargs": {"beta": 0.5, "alpha": 2.0}}),
    ],
)
def baddbmm(op, input, batch1, batch2):
    r"""Products of batches of matrices added to a tensor, :math:`\beta X + \alpha A B`.

    Args:
        input: tensor that broadcasts to (batch, m, n).
        batch1: matrices, shape (batch, m, k).
        batch2: matrices, shape (batch, k, n).
        beta: factor of `input`.
        alpha: factor of the products.

    Raises:
        RuntimeError: if the shapes or dtypes do not fit.
    """
    shape = _batches(batch1, batch2)
    if not input.dtype is batch1.dtype is batch2.dtype:
        names = [c_name(t.dtype) for t in (input, batch1, batch2)]
        raise RuntimeError(
            f"Input dtypes must be the same, got: input {names[0]}, batch1: {names[1]}, batch2: {names[2]}"
        )
    _expandable(input, shape)
    return shape


def _in_place(op: AffineOp) -> None:
    def method(self: Tensor, *args: Any, **named: Any) -> Tensor:
        from tapegrad.ops._write import assign

        result = op(self, *args, **named)
        if result.shape != self.shape:
            raise RuntimeError(
                f"Bad in-place call: input tensor size {list(self.shape)} and output tensor size "
                f"{list(result.shape)} should match"
            )
        return assign(self, result)

    method.__name__ = op.name + "_"
    method.__qualname__ = f"Tensor.{op.name}_"
    method.__doc__ = f"In-place version of `{op.name}`."
    setattr(Tensor, method.__name__, method)


for _op in (addmm, addmv, baddbmm):
    _in_place(_op)


# linear layers


def _linear_shape(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    n, k = weight.shape
    _inner_sizes(x.shape[:-1].numel(), x.shape[-1], k, n)
    return (*x.shape[:-1], n)


def _linear_op(name: str, grad_name: str, bias: bool) -> ProductOp:
    def declared(op, bias, input, weight):
        shape = _linear_shape(input, weight)
        _same_as_input(bias, input, weight)
        # PyTorch folds the leading dims first, and says so in its message
        _expandable(bias, (input.shape[:-1].numel(), shape[-1]) if bias.ndim < 2 else shape)
        return shape

    def unbiased(op, input, weight):
        shape = _linear_shape(input, weight)
        _same_dtype(input, weight)
        return shape

    function = declared if bias else unbiased
    function.__name__, function.__doc__ = name, "A linear layer (see `linear`)."
    make = affine_op if bias else product_op
    options = {
        "grad_name": grad_name,
        "reference": None,
        "transposed": True,
        "public": False,
        "method": False,
    }
    op = make(routine="addmm_impl_cpu_", **options)(function)
    op.covered_by = "linear"
    return op


_linear_2d = _linear_op("linear_2d", "AddmmBackward0", True)
_linear_nd = _linear_op("linear_nd", "ViewBackward0", True)
_linear_2d_unbiased = _linear_op("linear_2d_unbiased", "MmBackward0", False)
_linear_nd_unbiased = _linear_op("linear_nd_unbiased", "UnsafeViewBackward0", False)


def _linear_reference(x, weight, bias=0.0):
    return x @ weight.T + bias


@composite(
    samples=[
        (((2, 3), (4, 3), (4,)), {}),
        (((5, 2, 3), (4, 3), (4,)), {}),
        (((2, 3), (4, 3)), {}),
        (((3,), (4, 3), (4,)), {}),
    ],
    reference=_linear_reference,
    method=False,
)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""A linear layer, :math:`y = x W^\top + b`, in one instruction.

    Args:
        input: tensor of shape (…, k).
        weight: matrix of shape (n, k), or a vector of k elements.
        bias: vector of n elements, or None.

    Raises:
        RuntimeError: if the shapes or dtypes do not fit.

    >>> import tapegrad as tg
    >>> from tapegrad.ops.linalg import linear
    >>> linear(tg.tensor([1.0, 2.0]), tg.tensor([[1.0, 1.0], [0.0, 2.0]]), tg.tensor([0.5, 0.0]))
    tensor([3.5000, 4.0000])
    """
    try:
        if bias is None:
            k = rt.record_planned(_S, TABLE, _LINEAR, input._id, weight._id, 0)
        else:
            k = rt.record_planned(_S, TABLE, _LINEAR, bias._id, input._id, weight._id)
        if k > 0:
            return wrap(k)
    except AttributeError:
        check_tensor("linear", input)
        check_tensor("linear", weight, "weight", 2)
        check_tensor("linear", bias, "bias", 3)
        raise
    if weight.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {weight.ndim}D")
    if input.ndim == 0 or weight.ndim == 0:
        raise RuntimeError(
            f"both arguments to linear need to be at least 1D, but they are {input.ndim}D and {weight.ndim}D"
        )
    if weight.ndim == 1:
        product = matmul(input, weight)
        return product if bias is None else product + bias  # type: ignore[operator]
    if bias is None:
        return (_linear_2d_unbiased if input.ndim == 2 else _linear_nd_unbiased).first_run(_LINEAR, input, weight)
    op = _linear_2d if input.ndim == 2 else _linear_nd
    return op.first_sum(_LINEAR, bias, input, weight, 1, 1)  # type: ignore[attr-defined]
