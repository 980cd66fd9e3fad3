"""Products added to a third operand, and linear layers."""

from __future__ import annotations

from tapegrad.engine.planned import TABLE
from tapegrad.engine.runtime import rt
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._product_checks import (
    c_name,
    check_batches,
    check_expandable,
    check_inner_sizes,
    check_same_as_input,
    check_same_dtype,
)
from tapegrad.ops._product_ops import LINEAR, ProductOp, affine_op, product_op
from tapegrad.ops._public import composite
from tapegrad.ops._write import in_place_of
from tapegrad.ops.linalg import matmul
from tapegrad.tensor import Tensor, wrap

_S = rt.S
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
    check_inner_sizes(*mat1.shape, *mat2.shape)
    check_same_as_input(input, mat1, mat2)
    check_expandable(input, shape)
    return shape


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
    shape = check_batches(batch1, batch2)
    if not input.dtype is batch1.dtype is batch2.dtype:
        names = [c_name(t.dtype) for t in (input, batch1, batch2)]
        raise RuntimeError(
            f"Input dtypes must be the same, got: input {names[0]}, batch1: {names[1]}, batch2: {names[2]}"
        )
    check_expandable(input, shape)
    return shape


def _check_kept_shape(target: Tensor, result: Tensor) -> None:
    if result.shape != target.shape:
        raise RuntimeError(
            f"Bad in-place call: input tensor size {list(target.shape)} and output tensor size "
            f"{list(result.shape)} should match"
        )


for _op in (addmm, addmv, baddbmm):
    setattr(Tensor, _op.name + "_", in_place_of(_op, _check_kept_shape))


# linear layers


def _linear_shape(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    n, k = weight.shape
    check_inner_sizes(x.shape[:-1].numel(), x.shape[-1], k, n)
    return (*x.shape[:-1], n)


def _linear_op(name: str, grad_name: str, bias: bool) -> ProductOp:
    def declared(op, bias, input, weight):
        shape = _linear_shape(input, weight)
        check_same_as_input(bias, input, weight)
        # PyTorch folds the leading dims first, and says so in its message
        check_expandable(bias, (input.shape[:-1].numel(), shape[-1]) if bias.ndim < 2 else shape)
        return shape

    def unbiased(op, input, weight):
        shape = _linear_shape(input, weight)
        check_same_dtype(input, weight)
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
    >>> from tapegrad.ops.affine import linear
    >>> linear(tg.tensor([1.0, 2.0]), tg.tensor([[1.0, 1.0], [0.0, 2.0]]), tg.tensor([0.5, 0.0]))
    tensor([3.5000, 4.0000])
    """
    try:
        if bias is None:
            k = rt.record_planned(_S, TABLE, LINEAR, input._id, weight._id, 0)
        else:
            k = rt.record_planned(_S, TABLE, LINEAR, bias._id, input._id, weight._id)
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
        return (_linear_2d_unbiased if input.ndim == 2 else _linear_nd_unbiased).first_run(LINEAR, input, weight)
    op = _linear_2d if input.ndim == 2 else _linear_nd
    return op.first_sum(LINEAR, bias, input, weight, 1, 1)  # type: ignore[attr-defined]
