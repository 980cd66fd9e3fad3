"""Ops that pick or place elements along a dimension by index tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.engine.runtime import rt
from tapegrad.metadata import check_dim
from tapegrad.ops import pointwise as pw
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._kernel import KernelOp, kernel_op
from tapegrad.ops._operands import broadcast_shapes, cast, constant, number_dtype
from tapegrad.ops._public import export
from tapegrad.ops._reading import computed
from tapegrad.ops._rows import (
    gather_along,
    gathering,
    put_rows,
    putting,
    scatter_along,
    scattering,
    take_rows,
    taking,
)
from tapegrad.ops._rule import PUBLIC
from tapegrad.ops._write import in_place_of
from tapegrad.ops.convert import clone
from tapegrad.tensor import Tensor

_INDEX_DTYPES = (dtypes.int64, dtypes.int32)


# checks


def _index_of(name: str, index: Any) -> Tensor:
    """A contiguous int64 index.

    Raises:
        TypeError: if it is no tensor.
        RuntimeError: if it has another dtype.
    """
    check_tensor(name, index, "index", None)
    if index.dtype not in _INDEX_DTYPES:
        raise RuntimeError(f"{name}(): Expected dtype int32/int64 for index, but got {index.dtype.name}")
    return cast(index, dtypes.int64).contiguous()  # type: ignore[attr-defined]


def _within(places: np.ndarray, low: int, high: int, error: type[Exception], message: str) -> np.ndarray:
    # places in [low, high), negative ones counted from the end
    least, most = (int(places.min()), int(places.max())) if places.size else (0, -1)
    if least < low or most >= high:
        raise error(message.format(index=least if least < low else most))
    return np.where(places < 0, places + high, places) if least < 0 else places


def _checked(index: Tensor, low: int, high: int, error: type[Exception], message: str) -> Tensor:
    """An index counted from the front; places outside of ``[low, high)`` are refused with a message about ``{index}``."""
    within = functools.partial(_within, low=low, high=high, error=error, message=message)
    return computed(within, index, stretches=(0,))


def _check_rows(name: str, x: Tensor, dim: int, index: Any, error: type[Exception], message: str) -> tuple[int, Tensor]:
    # a dim and a vector of its places; the message may speak of {dim} and {size} too
    check_tensor(name, x)
    d = check_dim(dim, x.ndim)
    index = _index_of(name, index)
    if index.ndim > 1:
        raise IndexError(f"{name}(): Index is supposed to be a vector, but got shape {list(index.shape)}")
    n = x.shape[d] if x.ndim else 1
    return d, _checked(index, 0, n, error, message.format(index="{index}", dim=d, size=n))


def _check_along(name: str, x: Tensor, dim: int, index: Any, source: Any = None) -> tuple[int, Tensor]:
    # the rules gather and scatter share
    check_tensor(name, x)
    d = check_dim(dim, x.ndim)
    index = _index_of(name, index)
    shape = tuple(x.shape) or (1,)
    picked = tuple(index.shape) or (1,)
    if index.numel() == 0:
        return d, index
    if len(picked) != len(shape):
        raise RuntimeError("Index tensor must have the same number of dimensions as input tensor")
    for k, (n, own) in enumerate(zip(picked, shape, strict=True)):
        if k != d and n > own:
            apart = "apart from dimension " + str(d)
            raise RuntimeError(
                f"Size does not match at dimension {k} expected index {list(picked)} to be no larger than self {list(shape)} {apart}"
            )
    if isinstance(source, Tensor):
        given = tuple(source.shape) or (1,)
        if len(given) != len(picked):
            raise RuntimeError("Index tensor must have the same number of dimensions as src tensor")
        if any(n > own for n, own in zip(picked, given, strict=True)):
            raise RuntimeError(
                f"Expected index {list(picked)} to be no larger than self {list(shape)} apart from dimension {d} and to be no "
                f"larger size than src {list(given)}"
            )
    message = f"index {{index}} is out of bounds for dimension {d} with size {shape[d]}"
    return d, _checked(index, 0, shape[d], RuntimeError, message)


def same_dtype(name: str, x: Tensor, source: Tensor) -> None:
    """Refuse a source of another dtype.

    Raises:
        RuntimeError: naming both dtypes.
    """
    if source.dtype is not x.dtype:
        raise RuntimeError(
            f"{name}(): Expected self.dtype to be equal to src.dtype, but got {x.dtype.tensor_type} and {source.dtype.tensor_type}"
        )


# picking along a dimension


def _picked(op: KernelOp, x: Tensor, dim: int, index: Tensor) -> Tensor:
    if x.ndim and index.ndim:
        return gather_along(op, x, dim, index)
    return gather_along(op, x.reshape(-1), 0, index.reshape(-1), index.shape)


@gathering
@kernel_op(
    inputs=["x", "index"],
    reference=lambda x, dim, index: np.take_along_axis(x, index, dim),
    grad_name="GatherBackward0",
    method=False,
    public=False,
)
def gather_op(op, x, dim, index):
    """Elements picked along a dimension; see `gather`."""
    return _picked(op, x, dim, index)


def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """Elements picked along a dimension: ``out[i][j] = input[index[i][j]][j]`` for ``dim=0``.

    Args:
        input: the tensor.
        dim: the dimension.
        index: which place of it each element of the result takes; not larger than `input` along other dimensions.
        sparse_grad: accepted for PyTorch's sake.

    Raises:
        RuntimeError: for shapes that do not fit and places out of range.

    >>> import tapegrad as tg
    >>> tg.gather(tg.tensor([[1, 2], [3, 4]]), 1, tg.tensor([[1], [0]]))
    tensor([[2],
            [3]])
    """
    return gather_op(input, *_check_along("gather", input, dim, index))


def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """`gather` with broadcasting; without `dim` from the flattened tensor."""
    check_tensor("take_along_dim", input)
    if dim is None:
        return gather(input.reshape(-1), 0, indices.reshape(-1))
    d = check_dim(dim, input.ndim)
    if indices.ndim != input.ndim:
        raise RuntimeError(
            "take_along_dim(): input and indices should have the same number of dimensions, but got "
            f"{input.ndim} dimensions for input, and {indices.ndim} dimensions for indices"
        )
    one = lambda shape: (*shape[:d], 1, *shape[d + 1 :])
    common = broadcast_shapes("take_along_dim", one(input.shape), one(indices.shape))
    wide = input.expand((*common[:d], input.shape[d], *common[d + 1 :]))
    return gather(wide, d, indices.expand((*common[:d], indices.shape[d], *common[d + 1 :])))


# placing along a dimension


def _placed(op: KernelOp, x: Tensor, dim: int, index: Tensor, source: Tensor, accumulate: bool) -> Tensor:
    if x.ndim == 0:
        flat = source.reshape(-1) if source.ndim else source
        return _placed(op, x.reshape(-1), 0, index.reshape(-1), flat, accumulate).view(())
    if index.numel() == 0:
        return clone(x)
    if source.ndim and tuple(source.shape) != tuple(index.shape):
        for d, n in enumerate(index.shape):
            source = source.narrow(d, 0, n)
    return scatter_along(op, x, dim, index, source, accumulate)


def _scatter_op(name: str, grad_name: str, accumulate: bool) -> KernelOp:
    def declared(op, x, dim, index, source):
        return _placed(op, x, dim, index, source, accumulate)

    declared.__name__ = declared.__qualname__ = name
    declared.__doc__ = "Elements placed along a dimension; see `scatter` and `scatter_add`."
    return scattering(
        KernelOp(
            declared,
            inputs=["x", "index", "source"],
            reference=None,
            grad_name=grad_name,
            method=False,
            public=False,
        )
    )


_scatter_tensor = _scatter_op("scatter_tensor", "ScatterBackward0", False)
_scatter_number = _scatter_op("scatter_number", "ScatterBackward1", False)
scatter_sum = _scatter_op("scatter_sum", "ScatterAddBackward0", True)


def scatter_back(g: Tensor, index: Tensor, words: Sequence[int]) -> Tensor:
    """The adjoint of picking: each gradient added where its element came from."""
    shape = tuple(int(n) for n in rt.layout_row(words[1])["shape"][: int(rt.layout_row(words[1])["ndim"])])
    from tapegrad.creation import zeros

    return scatter_sum(zeros(shape, dtype=g.dtype), words[0], index, g.reshape(index.shape))


def zero_at(g: Tensor, index: Tensor, words: Sequence[int]) -> Tensor:
    """The adjoint of what was overwritten: zero at the places."""
    return _scatter_number(g, words[0], index, constant(0, g.dtype))


def gather_from(g: Tensor, index: Tensor, words: Sequence[int]) -> Tensor:
    """The adjoint of what was placed."""
    return gather_op(g, words[0], index)


def scatter(input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None) -> Tensor:
    """A copy with elements of `src` written along a dimension: ``out[index[i][j]][j] = src[i][j]`` for ``dim=0``.

    Args:
        input: the tensor.
        dim: the dimension.
        index: where each element of `src` goes.
        src: a tensor with at least the extents of `index`, or a number.
        value: the number.

    Raises:
        RuntimeError: for shapes that do not fit and places out of range.

    >>> import tapegrad as tg
    >>> tg.scatter(tg.zeros(3), 0, tg.tensor([2, 0]), tg.tensor([5.0, 6.0]))
    tensor([6., 0., 5.])
    """
    source = value if src is None else src
    d, index = _check_along("scatter", input, dim, index, source)
    if isinstance(source, Tensor):
        same_dtype("scatter", input, source)
        return _scatter_tensor(input, d, index, source)
    number_dtype(source)
    return _scatter_number(input, d, index, constant(source, input.dtype))


def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """A copy with elements of `src` added along a dimension; see `scatter`.

    >>> import tapegrad as tg
    >>> tg.scatter_add(tg.zeros(2), 0, tg.tensor([1, 1]), tg.tensor([5.0, 6.0]))
    tensor([ 0., 11.])
    """
    d, index = _check_along("scatter_add", input, dim, index, src)
    check_tensor("scatter_add", src)
    same_dtype("scatter_add", input, src)
    return scatter_sum(input, d, index, src)


# rows


@taking
@kernel_op(
    inputs=["x", "index"],
    reference=lambda x, dim, index: np.take(x, index, dim),
    grad_name="IndexSelectBackward0",
    method=False,
    public=False,
)
def select_rows(op, x, dim, index):
    """Places of a dimension; see `index_select`."""
    return take_rows(op, x, index, dim, dim + 1, (*x.shape[:dim], index.numel(), *x.shape[dim + 1 :]))


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The given places of a dimension.

    Args:
        input: the tensor.
        dim: the dimension.
        index: a vector of places.

    Raises:
        IndexError: for places out of range.

    >>> import tapegrad as tg
    >>> tg.index_select(tg.tensor([[1, 2], [3, 4]]), 1, tg.tensor([1, 1]))
    tensor([[2, 2],
            [4, 4]])
    """
    message = "index out of range in self: index {index}, dimension {dim} with size {size}"
    d, index = _check_rows("index_select", input, dim, index, IndexError, message)
    if input.ndim == 0:
        return select_rows(input.reshape(1), 0, index).view(())
    return select_rows(input, d, index)


@taking
@kernel_op(
    inputs=["weight", "index"],
    reference=lambda weight, index: weight[index],
    grad_name="EmbeddingBackward0",
    method=False,
    public=False,
)
def look_up(op, weight, index, padding_idx):
    """Rows of a matrix; see `embedding`."""
    return take_rows(op, weight, index, 0, 1, (*index.shape, *weight.shape[1:]), padding_idx)


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of `weight` looked up by number.

    Args:
        input: integer row numbers of any shape.
        weight: the matrix.
        padding_idx: a row that gets no gradient.

    Raises:
        IndexError: for rows that do not exist.
    """
    check_tensor("embedding", weight)
    if isinstance(input, Tensor) and input.dtype not in _INDEX_DTYPES:
        raise RuntimeError(
            f"Expected tensor for argument #1 'indices' to have one of the following scalar types: Long, Int; but got "
            f"tapegrad.{input.dtype.tensor_type}Tensor instead (while checking arguments for embedding)"
        )
    index = _index_of("embedding", input)
    if weight.ndim != 2:
        raise RuntimeError(f"'weight' must be 2-D, but got shape {list(weight.shape)}")
    n = weight.shape[0]
    index = _checked(index, 0, n, IndexError, f"index out of range in self: index {{index}}, {n} rows")
    skipped = -1
    if padding_idx is not None:
        if not -n <= padding_idx < n:
            raise AssertionError("Padding_idx must be within num_embeddings")
        skipped = padding_idx % n
    return look_up(weight, index, skipped)


@taking
@kernel_op(inputs=["x", "index"], reference=np.take, grad_name="TakeBackward0", method=False, public=False)
def take_op(op, x, index):
    """Elements of the flattened tensor; see `take`."""
    return take_rows(op, x, index, 0, x.ndim, index.shape)


def take(input: Tensor, index: Tensor) -> Tensor:
    """Elements of the flattened tensor, in the shape of the index.

    >>> import tapegrad as tg
    >>> tg.take(tg.tensor([[1, 2], [3, 4]]), tg.tensor([0, -1]))
    tensor([1, 4])
    """
    check_tensor("take", input)
    index = _index_of("take", index)
    n = input.numel()
    message = f"out of range: tried to access index {{index}} on a tensor of {n} elements."
    return take_op(input, _checked(index, -n, n, IndexError, message))


def _row_op(name: str, grad_name: str, accumulate: bool) -> KernelOp:
    def declared(op, x, dim, index, source):
        shape = (*x.shape[:dim], index.numel(), *x.shape[dim + 1 :])
        return put_rows(op, x, index, source, dim, dim + 1, shape, accumulate)

    declared.__name__ = declared.__qualname__ = name
    declared.__doc__ = "Rows put along a dimension; see `index_add`, `index_copy` and `index_fill`."
    return putting(
        KernelOp(
            declared,
            inputs=["x", "index", "source"],
            reference=None,
            grad_name=grad_name,
            method=False,
            public=False,
        )
    )


_add_rows = _row_op("add_rows", "IndexAddBackward0", True)
_copy_rows = _row_op("copy_rows", "IndexCopyBackward0", False)
_fill_rows = _row_op("fill_rows", "IndexFillBackward0", False)
for _sum in (scatter_sum, _add_rows):
    # what is added to takes the whole adjoint, wherever something was added
    _sum.saves(lambda need: ["index"] if need & 4 else [])


def _put_along(name: str, op: KernelOp, x: Tensor, dim: int, index: Any, source: Any) -> Tensor:
    error = RuntimeError if name == "index_add" else IndexError
    message = name + "(): index {index} is out of bounds for dimension {dim} with size {size}"
    d, index = _check_rows(name, x, dim, index, error, message)
    if not isinstance(source, Tensor):
        source = constant(source, x.dtype)
    elif name == "index_fill":
        if source.ndim:
            raise RuntimeError(
                f"index_fill only supports a 0-dimensional value tensor, but got tensor with {source.ndim} dimension(s)."
            )
        source = source.to(x.dtype)
    else:
        same_dtype(name, x, source)
        wanted = (*x.shape[:d], index.numel(), *x.shape[d + 1 :]) if x.ndim else tuple(source.shape)
        if tuple(source.shape) != wanted:
            raise RuntimeError(
                f"{name}(): source has shape {list(source.shape)}, but index and self ask for shape {list(wanted)}"
            )
    if x.ndim == 0:
        flat = source.reshape(-1) if source.ndim else source
        return op(x.reshape(1), 0, index.reshape(-1), flat).view(())
    return op(x, d, index, source)


def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    """A copy with the rows of `source`, times `alpha`, added to the given places of a dimension."""
    if alpha != 1:
        source = pw.mul(source, constant(alpha, source.dtype))
    return _put_along("index_add", _add_rows, input, dim, index, source)


def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """A copy with the rows of `source` written to the given places of a dimension."""
    return _put_along("index_copy", _copy_rows, input, dim, index, source)


def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """A copy with one value at the given places of a dimension."""
    return _put_along("index_fill", _fill_rows, input, dim, index, value)


for _function in (
    scatter,
    scatter_add,
    index_add,
    index_copy,
    index_fill,
):
    export(_function, in_place=in_place_of(_function))
for _function in (gather, take_along_dim, index_select, take):
    export(_function)
PUBLIC["embedding"] = embedding
