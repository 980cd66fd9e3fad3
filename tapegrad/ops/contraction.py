"""Sums of products made of matrix products: tensordot, chains, powers; and trace and cross product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.engine.blas import zero_of
from tapegrad.engine.structs import (
    ADJOINT_OFFSET,
    STORE_OFFSET,
    buffer_of,
    i64,
    row_at,
    strides_of,
)
from tapegrad.metadata import check_dim
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._kernel import kernel_op
from tapegrad.ops._operands import broadcast_shapes
from tapegrad.ops._public import composite, export
from tapegrad.ops._rule import PUBLIC
from tapegrad.ops.linalg import matmul, mm
from tapegrad.tensor import Tensor

P: Any = None  # pointer to elements
T: Any = None  # scalar type


@composite(samples=[(((2,), (3,)), {}), (((1,), (0,)), {})], reference=np.outer)
def outer(input: Any, vec2: Any, *, out: Tensor | None = None) -> Tensor:
    r"""Outer product of two vectors, :math:`C_{ij} = a_i b_j`.

    Args:
        input: vector of m elements.
        vec2: vector of n elements.
        out: a tensor to copy the result to.

    Raises:
        RuntimeError: if an operand is no vector.

    >>> import tapegrad as tg
    >>> tg.outer(tg.tensor([1.0, 2.0]), tg.tensor([3.0, 4.0]))
    tensor([[3., 4.],
            [6., 8.]])
    """
    check_tensor("outer", input)
    check_tensor("outer", vec2, "vec2", 2)
    for name, value in (("self", input), ("vec2", vec2)):
        if value.ndim != 1:
            raise RuntimeError(f"outer: Expected 1-D argument {name}, but got {value.ndim}-D")
    result = input.unsqueeze(1) * vec2
    return result if out is None else out.copy_(result)  # type: ignore[attr-defined]


export(outer, "ger")


@composite(samples=[(((2, 3), (4, 3)), {}), (((3,), (3,)), {}), (((2, 5, 3), (3,)), {})], reference=np.inner)
def inner(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
    r"""Products summed over the last dims, :math:`C_{\dots} = \sum_k A_{\dots k} B_{\dots k}`.

    Args:
        input: tensor of shape (…, k), or of no dims.
        other: tensor of shape (…, k), or of no dims.
        out: a tensor to copy the result to.

    Raises:
        RuntimeError: if the last extents or the dtypes differ.
    """
    check_tensor("inner", input)
    check_tensor("inner", other, "other", 2)
    if input.dtype is not other.dtype:
        raise RuntimeError("both inputs should have same dtype")
    if input.ndim == 0 or other.ndim == 0:
        result = input * other
    elif input.shape[-1] != other.shape[-1]:
        raise RuntimeError(
            "inner() the last dimension must match on both input tensors but got shapes "
            f"{list(input.shape)} and {list(other.shape)}"
        )
    elif other.ndim == 1:
        result = matmul(input, other)
    else:
        shape = (*input.shape[:-1], *other.shape[:-1])
        columns = other.reshape(other.shape[:-1].numel(), other.shape[-1])
        product: Any = matmul(input, columns.t())
        result = product.reshape(shape)
    return result if out is None else out.copy_(result)  # type: ignore[attr-defined]


def _tensordot_reference(a, b, dims=2):
    return np.tensordot(a, b, dims)


@composite(
    samples=[
        (((2, 3, 4), (4, 3, 5)), {"kwargs": {"dims": ((1, 2), (1, 0))}}),
        (((2, 3), (3, 4)), {"kwargs": {"dims": 1}}),
        (((2, 3), (2, 3)), {"kwargs": {"dims": 0}}),
    ],
    reference=_tensordot_reference,
    method=False,
)
def tensordot(a: Any, b: Any, dims: Any = 2, out: Tensor | None = None) -> Tensor:
    r"""Sums of products, :math:`C_{\dots} = \sum_{k} A_{\dots k_1 \dots k_d} B_{k_1 \dots k_d \dots}`.

    Args:
        a: a tensor.
        b: a tensor.
        dims: how many of the last dims of `a` and the first of `b`, or a list of dims of each.
        out: a tensor to copy the result to.

    Raises:
        RuntimeError: if the dims do not fit.

    >>> import tapegrad as tg
    >>> tg.tensordot(tg.ones(2, 3, 4), tg.ones(4, 3, 5), dims=([1, 2], [1, 0])).shape
    tapegrad.Size([2, 5])
    """
    check_tensor("tensordot", a, "a", 1)
    check_tensor("tensordot", b, "b", 2)
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        if dims < 0:
            raise RuntimeError(f"tensordot expects dims >= 0, but got dims={dims}")
        if dims > min(a.ndim, b.ndim):
            raise RuntimeError(f"tensordot expects dims < ndim_a or ndim_b, but got dims={dims}")
        dims = list(range(-dims, 0)), list(range(dims))
    dims_a, dims_b = ([d] if isinstance(d, int) else list(d) for d in dims)
    if len(dims_a) != len(dims_b):
        raise RuntimeError("both dimension lists should have same length")
    summed_a = [check_dim(d, a.ndim) for d in dims_a]
    summed_b = [check_dim(d, b.ndim) for d in dims_b]
    for summed in (summed_a, summed_b):
        for d in summed:
            if summed.count(d) > 1:
                raise RuntimeError(f"dim {d} appears multiple times in the list of dims")
    for p, q, named_p, named_q in zip(summed_a, summed_b, dims_a, dims_b, strict=True):
        if a.shape[p] != b.shape[q]:
            if a.shape[p] == 1:
                b = b.sum(q, keepdim=True)
            elif b.shape[q] == 1:
                a = a.sum(p, keepdim=True)
            else:
                raise RuntimeError(
                    f"contracted dimensions need to match, but first has size {a.shape[p]} in dim "
                    f"{named_p} and second has size "
                    f"{b.shape[q]} in dim {named_q}"
                )
    free_a = [d for d in range(a.ndim) if d not in summed_a]
    free_b = [d for d in range(b.ndim) if d not in summed_b]
    shape = (*(a.shape[d] for d in free_a), *(b.shape[d] for d in free_b))
    k = int(np.prod([a.shape[d] for d in summed_a]))
    m, n = (int(np.prod([t.shape[d] for d in free])) for t, free in ((a, free_a), (b, free_b)))
    left = a.permute(*free_a, *summed_a).reshape(m, k)
    right = b.permute(*summed_b, *free_b).reshape(k, n)
    result: Any = mm(left, right)
    result = result.reshape(shape)
    return result if out is None else out.copy_(result)  # type: ignore[attr-defined]


def _multi_dot_reference(*arrays):
    return np.linalg.multi_dot(arrays)


def _chain_order(sizes: Sequence[int]) -> list[list[int]]:
    # where to split each run of matrices so that the fewest multiplications are needed
    n = len(sizes) - 1
    cost = [[0] * n for _ in range(n)]
    split = [[0] * n for _ in range(n)]
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            found = [cost[i][q] + cost[q + 1][j] + sizes[i] * sizes[q + 1] * sizes[j + 1] for q in range(i, j)]
            cost[i][j] = min(found)
            split[i][j] = i + found.index(cost[i][j])
    return split


def _multiply_run(matrices: Sequence[Tensor], split: list[list[int]], i: int, j: int) -> Tensor:
    if i == j:
        return matrices[i]
    q = split[i][j]
    return mm(_multiply_run(matrices, split, i, q), _multiply_run(matrices, split, q + 1, j))


@composite(
    samples=[(((2, 3), (3, 4), (4, 5)), {}), (((3,), (3, 4), (4,)), {})],
    reference=_multi_dot_reference,
    method=False,
    public=False,
)
def multi_dot(tensors: Sequence[Any], *, out: Tensor | None = None) -> Tensor:
    """Product of two or more matrices in the order that takes the fewest multiplications.

    Args:
        tensors: matrices; the first may be a row vector and the last a column vector.
        out: a tensor to copy the result to.

    Raises:
        RuntimeError: for fewer than two operands, or shapes that do not fit.
    """
    matrices = list(tensors)
    if len(matrices) < 2:
        raise RuntimeError(f"multi_dot(): expected at least 2 tensors but got {len(matrices)}")
    for position, t in enumerate(matrices):
        check_tensor("multi_dot", t, "tensors", 1)
        edge = {0: "first", len(matrices) - 1: "last"}.get(position)
        if edge and t.ndim not in (1, 2):
            raise RuntimeError(f"multi_dot(): the {edge} tensor must be 1D or 2D but got {t.ndim}D")
        if not edge and t.ndim != 2:
            raise RuntimeError(f"multi_dot(): tensor {position} must be 2D but got {t.ndim}D")
    first, last = matrices[0], matrices[-1]
    shape = (*first.shape[:-1], *last.shape[1:])
    if first.ndim == 1:
        matrices[0] = first.unsqueeze(0)
    if last.ndim == 1:
        matrices[-1] = last.unsqueeze(-1)
    for position in range(len(matrices) - 1):
        if matrices[position].shape[1] != matrices[position + 1].shape[0]:
            shapes = [list(t.shape) for t in tensors[position : position + 2]]
            raise RuntimeError(
                f"multi_dot(): tensors {position} and {position + 1} with shapes {shapes[0]} and "
                f"{shapes[1]} cannot be multiplied"
            )
    sizes = [matrices[0].shape[0], *(t.shape[1] for t in matrices)]
    result = _multiply_run(matrices, _chain_order(sizes), 0, len(matrices) - 1)
    if result.shape != shape:
        result = result.reshape(shape)  # type: ignore[attr-defined]
    return result if out is None else out.copy_(result)  # type: ignore[attr-defined]


@composite(
    samples=[(((2, 3), (3, 4), (4, 5)), {}), (((2, 3), (3, 4)), {})],
    reference=_multi_dot_reference,
    method=False,
)
def chain_matmul(*matrices: Any, out: Tensor | None = None) -> Tensor:
    """Product of matrices in the order that takes the fewest multiplications; see `multi_dot`.

    Args:
        matrices: one or more matrices.
        out: a tensor to copy the result to.

    Raises:
        RuntimeError: if there is none, or one has not two dims, or the shapes do not fit.
    """
    if not matrices:
        raise RuntimeError("chain_matmul(): Expected one or more matrices")
    for t in matrices:
        check_tensor("chain_matmul", t, "matrices", 1)
        if t.ndim != 2:
            raise RuntimeError(f"Tensor dimension is {t.ndim}, expected 2 instead.")
    if len(matrices) == 1:
        return matrices[0].clone() if out is None else out.copy_(matrices[0])  # type: ignore[attr-defined]
    return multi_dot(matrices, out=out)


@composite(
    samples=[
        (((3, 3),), {"args": (3,)}),
        (((2, 3, 3),), {"args": (2,)}),
        (((3, 3),), {"args": (5,)}),
        (((3, 3),), {"args": (0,)}),
        (((3, 3),), {"args": (1,)}),
    ],
    reference=np.linalg.matrix_power,
)
def matrix_power(input: Any, n: int, *, out: Tensor | None = None) -> Tensor:
    """A square matrix, or each of a batch, multiplied with itself.

    Args:
        input: tensor of shape (…, m, m).
        n: the exponent, not negative.
        out: a tensor to copy the result to.

    Raises:
        RuntimeError: if the matrices are not square.
        NotImplementedError: for a negative exponent.
    """
    check_tensor("matrix_power", input)
    if not isinstance(n, int):
        raise TypeError(f"matrix_power(): argument 'n' (position 2) must be int, not {type(n).__name__}")
    if input.ndim < 2:
        raise RuntimeError("linalg.matrix_power: The input tensor A must have at least 2 dimensions.")
    rows, columns = input.shape[-2:]
    if rows != columns:
        raise RuntimeError(
            f"linalg.matrix_power: A must be batches of square matrices, but they are {rows} by {columns} matrices"
        )
    if n < 0:
        raise NotImplementedError(f"matrix_power: negative exponents need an inverse, but got n={n}")
    if n == 0:
        from tapegrad.creation import eye, ones

        # a gradient of zero, whatever the elements are
        result = PUBLIC["where"](ones((), dtype=dtypes.bool), eye(rows, dtype=input.dtype), input)
    else:
        result, square, left = None, input, n
        if n == 3:
            result = matmul(matmul(input, input), input)
            left = 0
        while left:
            if left & 1:
                result = square if result is None else matmul(result, square)
            left >>= 1
            if left:
                square = matmul(square, square)
        if n == 1:
            result = input.clone()
    return result if out is None else out.copy_(result)  # type: ignore[attr-defined]


@composite(
    samples=[(((2, 3), (2, 4), (5, 3, 4), (5,)), {}), (((6, 2, 3), (6, 2, 4), (5, 3, 4)), {})],
    reference=lambda x, y, w, b=0.0: np.einsum("...i,kij,...j->...k", x, w, y) + b,
    method=False,
    public=False,
)
def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Tensor:
    r"""A bilinear layer, :math:`y_k = x_1^\top W_k x_2 + b_k`.

    Args:
        input1: tensor of shape (…, i).
        input2: tensor of shape (…, j).
        weight: tensor of shape (k, i, j).
        bias: vector of k elements, or None.

    Raises:
        RuntimeError: if the shapes do not fit.
    """
    for position, (name, t) in enumerate((("input1", input1), ("input2", input2), ("weight", weight)), 1):
        check_tensor("bilinear", t, name, position)
    if input1.ndim != input2.ndim:
        raise RuntimeError(f"bilinear(): input dimensions do not match: got {input1.ndim} and {input2.ndim}")
    for d in range(input1.ndim - 1):
        if input1.shape[d] != input2.shape[d]:
            raise RuntimeError(
                f"bilinear(): input batch dimensions do not match at dim {d}: got {input1.shape[d]} and "
                f"{input2.shape[d]}"
            )
    for number, t in ((1, input1), (2, input2)):
        if t.shape[-1] != weight.shape[number]:
            raise RuntimeError(
                f"bilinear(): input{number} size does not match weight size: got {t.shape[-1]} but "
                f"expected {weight.shape[number]}"
            )
    if bias is not None and bias.shape[0] != weight.shape[0]:
        raise RuntimeError(
            f"bilinear(): bias size does not match weight size: got {bias.shape[0]} but expected {weight.shape[0]}"
        )
    k, i, j = weight.shape
    rows = input1.shape[:-1].numel()
    first: Any = mm(input1.reshape(rows, i), weight.permute(1, 0, 2).reshape(i, k * j))
    second: Any = matmul(first.reshape(rows, k, j), input2.reshape(rows, j, 1))
    result = second.reshape(*input1.shape[:-1], k)
    return result if bias is None else result + bias


@kernel_op(inputs=["x"], reference=np.trace, samples=[(((3, 3),), {}), (((2, 4),), {}), (((0, 3),), {})])
def trace(op, input):
    r"""Sum of a matrix's diagonal, :math:`\sum_i A_{ii}`.

    Args:
        input: a matrix, square or not.

    Raises:
        RuntimeError: if it is no matrix.

    >>> import tapegrad as tg
    >>> tg.trace(tg.eye(3))
    tensor(3.)
    """
    check_tensor("trace", input)
    if input.ndim != 2:
        raise RuntimeError(f"trace: expected a matrix, but got tensor with dim {input.ndim}")
    if not input.dtype.is_floating_point:
        input = input.to(dtypes.int64)
    return op.launch([input], (), input.dtype, input.shape, 1, 4 * min(input.shape))


@trace.forward
def _(S, row, start, stop):
    r = row_at(row)
    x = buffer_of(S, r.in0)
    data, out = P(x.data), P(buffer_of(S, r.out).data)
    step = strides_of(S, x.layout)[0] + strides_of(S, x.layout)[1]
    total = zero_of(out)
    for i in range(min(i64(r.attr)[4], i64(r.attr)[5])):
        total += data[i * step]
    out[0] = total


@trace.backward
def _(g, words):
    from tapegrad.creation import eye

    return g * eye(*words[:2], dtype=g.dtype)


@trace.reverse_kernel
def _(S, row, start, stop):
    r = row_at(row)
    target, g = P(i64(S + ADJOINT_OFFSET)[0]), P(buffer_of(S, r.out).adj)
    rows, columns = i64(r.attr)[4], i64(r.attr)[5]
    if i64(S + STORE_OFFSET)[0] == 1:
        for i in range(rows * columns):
            target[i] = zero_of(target)
    for i in range(min(rows, columns)):
        target[i * (columns + 1)] += g[0]


@kernel_op(inputs=["a", "b"], reference=None, grad_name="LinalgCrossBackward0", method=False, public=False)
def cross_product(op, a, b, inner):
    """Cross products along a dim of contiguous tensors with `inner` elements between its entries."""
    return op.launch([a, b], a.shape, a.dtype, [inner, a.numel() // 3])


cross_product.covered_by = "cross"


@cross_product.forward
def _(S, row, start, stop):
    r = row_at(row)
    a, b = P(buffer_of(S, r.in0).data), P(buffer_of(S, r.in1).data)
    out = P(buffer_of(S, r.out).data)
    inner = i64(r.attr)[4]
    for item in range(i64(r.attr)[5]):
        x = item // inner * 3 * inner + item % inner
        y, z = x + inner, x + 2 * inner
        out[x] = a[y] * b[z] - a[z] * b[y]
        out[y] = a[z] * b[x] - a[x] * b[z]
        out[z] = a[x] * b[y] - a[y] * b[x]


@cross_product.backward
def _(g, a, b, need, words):
    left = cross_product(b.contiguous(), g.contiguous(), words[0]) if need & 1 else None
    right = cross_product(g.contiguous(), a.contiguous(), words[0]) if need & 2 else None
    return left, right


cross_product.saves(lambda need: ["b"] * (need & 1) + ["a"] * (need >> 1 & 1))


def _cross_reference(a, b, dim=-1):
    return np.cross(a, b, axis=dim)


@composite(
    samples=[(((2, 3), (2, 3)), {}), (((4, 3), (1, 3)), {}), (((3, 2), (3, 2)), {"kwargs": {"dim": 0}})],
    reference=_cross_reference,
)
def cross(input: Any, other: Any, dim: int | None = None, *, out: Tensor | None = None) -> Tensor:
    r"""Cross products of vectors of three elements, :math:`a \times b`.

    Args:
        input: a tensor with three elements along `dim`.
        other: a tensor that broadcasts with it.
        dim: where the vectors lie; by default the first dim of extent three.
        out: a tensor to copy the result to.

    Raises:
        RuntimeError: if the shapes or dtypes do not fit.

    >>> import tapegrad as tg
    >>> tg.cross(tg.tensor([1.0, 0.0, 0.0]), tg.tensor([0.0, 1.0, 0.0]), dim=0)
    tensor([0., 0., 1.])
    """
    check_tensor("cross", input)
    check_tensor("cross", other, "other", 2)
    if input.ndim != other.ndim:
        raise RuntimeError("linalg.cross: inputs must have the same number of dimensions.")
    if dim is None:
        if 3 not in input.shape:
            raise RuntimeError("no dimension of size 3 in input")
        dim = input.shape.index(3)
    d = check_dim(dim, input.ndim)
    if input.shape[d] != 3 or other.shape[d] != 3:
        raise RuntimeError(
            f"linalg.cross: inputs dimension {dim} must have length 3. Got {input.shape[d]} and {other.shape[d]}"
        )
    if input.dtype is not other.dtype:
        raise RuntimeError(f"expected scalar type {input.dtype.tensor_type} but found {other.dtype.tensor_type}")
    shape = broadcast_shapes("cross", input.shape, other.shape)
    a = input if input.shape == shape else input.expand(shape)
    b = other if other.shape == shape else other.expand(shape)
    step = int(np.prod(shape[d + 1 :]))
    result = cross_product(a.contiguous(), b.contiguous(), max(step, 1))
    return result if out is None else out.copy_(result)  # type: ignore[attr-defined]
