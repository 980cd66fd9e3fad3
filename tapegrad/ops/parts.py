"""Tensors taken apart and put together: splitting, and what is composed of views and joins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.metadata import check_dim
from tapegrad.ops._arguments import check_tensor, integers
from tapegrad.ops._public import export
from tapegrad.ops._reading import computed_rows, require
from tapegrad.ops._view import ViewOp
from tapegrad.ops.convert import clone
from tapegrad.ops.indexing import FULL, basic_view
from tapegrad.ops.joining import cat
from tapegrad.ops.rearranging import diagonal_matrices, flip, repeat, turn
from tapegrad.ops.shaping import expand, flatten, reshape, unsqueeze, view
from tapegrad.ops.slicing import diagonal, narrow, one_of, part_of
from tapegrad.ops.transposing import movedim, transpose
from tapegrad.tensor import Tensor

# several views at once


class _Parts(ViewOp):
    """A view that is one of several: in-place operations on it are refused when they would be recorded."""

    multiple = True


def _part(geometry, d, start, length):
    """One of the parts a tensor is split into."""
    return part_of(geometry, d, start, length)


def _place(geometry, d, index):
    """One of the places of a dimension."""
    return one_of(geometry, d, index)


_split_reference = lambda x, d, s, n: np.take(x, np.arange(s, s + n), d)
_split_part = _Parts(_part, "SplitBackward0", _split_reference, [((4, 2), (0, 1, 2))])
_sized_part = _Parts(_part, "SplitWithSizesBackward0", _split_reference, [((4, 2), (0, 1, 2))])
_unbound = _Parts(_place, "UnbindBackward0", lambda x, d, i: np.take(x, i, d), [((2, 3), (1, 2))])


def split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of a dimension: of one size (the last may be smaller), or of the given sizes.

    >>> import tapegrad as tg
    >>> tg.split(tg.arange(5), 2)
    (tensor([0, 1]), tensor([2, 3]), tensor([4]))
    """
    check_tensor("split", tensor)
    if isinstance(split_size_or_sections, Sequence):
        return split_with_sizes(tensor, split_size_or_sections, dim)
    size = split_size_or_sections.__index__()
    d = _splittable("split", tensor, dim)
    n = tensor.shape[d]
    if size < 0:
        raise RuntimeError(f"split expects split_size be non-negative, but got split_size={size}")
    if size == 0 and n:
        raise RuntimeError(f"split_size can only be 0 if dimension size is 0, but got dimension size of {n}")
    starts = range(0, n, size) if n else (0,)
    lead = (FULL,) * d
    return tuple(basic_view(tensor, (*lead, (slice, s, s + size, 1)), _split_part.code) for s in starts)


def _splittable(name: str, tensor: Tensor, dim: int) -> int:
    if tensor.ndim == 0:
        raise RuntimeError(f"{name} expects at least a 1-dimensional tensor")
    return check_dim(dim, tensor.ndim)


def split_with_sizes(input: Tensor, split_sizes: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of a dimension, of the given sizes."""
    d = _splittable("split_with_sizes", input, dim)
    sizes = integers("split_with_sizes", (split_sizes,), "split_sizes")
    n = input.shape[d]
    if any(s < 0 for s in sizes):
        raise RuntimeError(
            f"split_with_sizes expects split_sizes have only non-negative entries, but got split_sizes={list(sizes)}"
        )
    if sum(sizes) != n:
        raise RuntimeError(
            f"split_with_sizes expects split_sizes to sum exactly to {n} (input tensor's size at dimension {d}), but got "
            f"split_sizes={list(sizes)}"
        )
    return tuple(_sized_part(input, d, sum(sizes[:k]), s) for k, s in enumerate(sizes))


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` parts of a dimension, of equal size except perhaps the last."""
    d = _splittable("chunk", input, dim)
    if chunks <= 0:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    n = input.shape[d]
    size = -(-n // chunks)
    return split(input, size, d) if size else split_with_sizes(input, [0] * chunks, d)


def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of a dimension: as many as asked for, of nearly equal size, or cut at the given places."""
    check_tensor("tensor_split", input)
    d = _splittable("tensor_split", input, dim)
    n = input.shape[d]
    if isinstance(indices_or_sections, Tensor):
        indices_or_sections = indices_or_sections.tolist()
    if isinstance(indices_or_sections, Sequence):
        cuts = [slice(None, c).indices(n)[1] for c in integers("tensor_split", (indices_or_sections,), "indices")]
    else:
        count = indices_or_sections
        if count <= 0:
            raise RuntimeError(f"number of sections must be larger than 0, got {count}")
        cuts = [k * (n // count) + min(k, n % count) for k in range(1, count)]
    bounds = [0, *cuts, n]
    return tuple(narrow(input, d, a, max(b - a, 0)) for a, b in pairwise(bounds))


def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Every place of a dimension, without that dimension."""
    check_tensor("unbind", input)
    if input.ndim == 0:
        raise IndexError("Dimension specified as 0 but tensor has no dimensions")
    d = check_dim(dim, input.ndim)
    lead = (FULL,) * d
    return tuple(basic_view(input, (*lead, k), _unbound.code) for k in range(input.shape[d]))


def _split_along(name: str, least: int, dims: tuple[int, int]) -> Any:
    # `dims`: the dimension for tensors of one dimension, and for others
    def split_along(input: Tensor, indices_or_sections: Any) -> tuple[Tensor, ...]:
        if input.ndim < least:
            raise RuntimeError(
                f"{name} requires a tensor with at least {least} dimension, but got a tensor with {input.ndim} dimensions!"
            )
        d = dims[input.ndim > 1]
        n = indices_or_sections
        if not isinstance(n, Sequence | Tensor) and (n <= 0 or input.shape[d] % n):
            raise RuntimeError(
                f"{name} attempted to split along dimension {d}, but the size of the dimension {input.shape[d]} is not "
                f"divisible by the split_size {n}!"
            )
        return tensor_split(input, n, d)

    split_along.__name__ = split_along.__qualname__ = name
    split_along.__doc__ = f"`tensor_split` along dimension {dims[1]}, as NumPy's {name}."
    return split_along


hsplit, vsplit, dsplit = (
    _split_along("hsplit", 1, (0, 1)),
    _split_along("vsplit", 2, (0, 0)),
    _split_along("dsplit", 3, (2, 2)),
)


# joins along fixed dimensions


def _tensors(tensors: Any) -> list[Tensor]:
    if len(tensors) == 1 and isinstance(tensors[0], Sequence):
        tensors = tensors[0]
    return list(tensors)


def atleast_1d(*tensors: Any) -> Any:
    """Tensors with at least one dimension; one tensor, or a tuple of several."""
    return _atleast(tensors, lambda x: reshape(x, (1,)) if x.ndim == 0 else x)


def atleast_2d(*tensors: Any) -> Any:
    """Tensors with at least two dimensions, new ones in front; one tensor, or a tuple of several."""
    return _atleast(tensors, lambda x: reshape(x, (1, 1)) if x.ndim == 0 else unsqueeze(x, 0) if x.ndim == 1 else x)


def _three(x: Tensor) -> Tensor:
    if x.ndim == 0:
        return reshape(x, (1, 1, 1))
    if x.ndim == 1:
        return unsqueeze(unsqueeze(x, 0), -1)
    return unsqueeze(x, -1) if x.ndim == 2 else x


def atleast_3d(*tensors: Any) -> Any:
    """Tensors with at least three dimensions; one tensor, or a tuple of several."""
    return _atleast(tensors, _three)


def _atleast(tensors: Any, widen: Any) -> Any:
    if len(tensors) == 1 and isinstance(tensors[0], Tensor):
        return widen(tensors[0])
    return tuple(widen(x) for x in _tensors(tensors))


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors side by side: joined along dimension 1, vectors along 0."""
    given = list(atleast_1d(list(tensors)))
    return cat(given, 0 if given and given[0].ndim == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors below each other: joined along dimension 0, vectors as rows."""
    return cat(list(atleast_2d(list(tensors))), 0)


def dstack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors behind each other: joined along dimension 2."""
    return cat(list(atleast_3d(list(tensors))), 2)


def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors side by side, vectors as columns."""
    return hstack([reshape(x, (x.numel(), 1)) if x.ndim <= 1 else x for x in tensors])


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinates of a grid: each vector expanded over the dimensions of all.

    Args:
        tensors: vectors or scalars.
        indexing: ``"ij"`` for matrix order, ``"xy"`` for the first two exchanged.

    >>> import tapegrad as tg
    >>> tg.meshgrid(tg.tensor([1, 2]), tg.tensor([3, 4, 5]))[1]
    tensor([[3, 4, 5],
            [3, 4, 5]])
    """
    given = _tensors(tensors)
    if not given:
        raise RuntimeError("meshgrid expects a non-empty TensorList")
    if indexing not in ("ij", "xy"):
        raise RuntimeError(f'meshgrid: indexing must be one of "xy" or "ij", but received: {indexing}')
    for x in given:
        if x.ndim > 1:
            raise RuntimeError(f"meshgrid: Expected 0D or 1D tensor in the tensor list but got: shape {list(x.shape)}")
        if x.dtype is not given[0].dtype:
            raise RuntimeError("meshgrid expects all tensors to have the same dtype")
    swap = indexing == "xy" and len(given) >= 2
    if swap:
        given[0], given[1] = given[1], given[0]
    shape = tuple(x.numel() for x in given)
    grids = []
    for k, x in enumerate(given):
        line = tuple(x.numel() if d == k else 1 for d in range(len(given)))
        grids.append(expand(reshape(x, line), shape))
    if swap:
        grids[0], grids[1] = grids[1], grids[0]
    return tuple(grids)


# copies made of others


def tile(input: Tensor, *dims: Any) -> Tensor:
    """The tensor repeated along its last dimensions, as NumPy's tile."""
    check_tensor("tile", input)
    times = integers("tile", dims, "dims")
    return repeat(input, (1,) * (input.ndim - len(times)) + times)


def repeat_interleave(input: Tensor, repeats: Any = None, dim: int | None = None, *, output_size: Any = None) -> Tensor:
    """Each element of a dimension several times in a row.

    Args:
        input: the tensor.
        repeats: how often: a number, or an integer tensor with one for each place.
        dim: the dimension; without it the tensor is flattened first.
        output_size: accepted for PyTorch's sake.

    >>> import tapegrad as tg
    >>> tg.repeat_interleave(tg.tensor([1, 2]), 2)
    tensor([1, 1, 2, 2])
    """
    check_tensor("repeat_interleave", input)
    if repeats is None:
        return _repeated_places(input)
    x = flatten(input) if dim is None else input
    d = check_dim(dim or 0, x.ndim)
    if isinstance(repeats, Sequence):
        from tapegrad.creation import tensor

        repeats = tensor(repeats)
    if isinstance(repeats, Tensor):
        counts = repeats if repeats.ndim else repeats.reshape(1)  # type: ignore[attr-defined]
        if tuple(counts.shape) == (1,):
            counts = expand(counts, (x.shape[d],))
        if counts.numel() != x.shape[d] and counts.ndim == 1:
            raise RuntimeError(
                f"repeats must have the same size as input along dim, but got repeats.size(0) = {counts.numel()} and "
                f"input.size({d}) = {x.shape[d]}"
            )
        return x.index_select(d, _repeated_places(counts))  # type: ignore[attr-defined]
    n = repeats.__index__()
    if n < 0:
        raise RuntimeError("Repeats must be non-negative")
    shape = tuple(x.shape)
    wide = expand(unsqueeze(x, d + 1), (*shape[: d + 1], n, *shape[d + 1 :]))
    return view(clone(wide), (*shape[:d], shape[d] * n, *shape[d + 1 :]))


def _repeated_places(counts: Tensor) -> Tensor:
    # each place of a vector as often as its element says
    if counts.ndim != 1:
        raise RuntimeError("repeat_interleave only accept 1D vector as repeat")
    if counts.dtype not in (dtypes.int64, dtypes.int32):
        raise RuntimeError("repeats has to be Long or Int tensor")
    if counts.numel():
        require(counts.amin() >= 0, RuntimeError("repeats can not be negative"))  # type: ignore[attr-defined]
    return computed_rows("repeat_interleave", _each_times, counts)


def _each_times(counts: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), np.maximum(counts, 0))


def fliplr(input: Tensor) -> Tensor:
    """Columns in reverse order; a copy."""
    if input.ndim < 2:
        raise RuntimeError("Input must be >= 2-d.")
    return flip(input, 1)


def flipud(input: Tensor) -> Tensor:
    """Rows in reverse order; a copy."""
    if input.ndim < 1:
        raise RuntimeError("Input must be >= 1-d.")
    return flip(input, 0)


def rot90(input: Tensor, k: int = 1, dims: Any = (0, 1)) -> Tensor:
    """The tensor turned by quarters in the plane of two dimensions, from the first towards the second; a copy."""
    check_tensor("rot90", input)
    pair = integers("rot90", (dims,), "dims")
    if len(pair) != 2:
        raise RuntimeError(f"expected total rotation dims == 2, but got dims = {len(pair)}")
    if input.ndim < 2:
        raise RuntimeError(f"expected total dims >= 2, but got total dims = {input.ndim}")
    a, b = (check_dim(d, input.ndim) for d in pair)
    if a == b:
        raise RuntimeError(f"expected rotation dims to be different, but got dim0 = {pair[0]} and dim1 = {pair[1]}")
    quarters = k % 4
    if quarters == 0:
        return clone(input)
    if quarters == 2:
        return turn(input, (a, b))
    return turn(transpose(input, a, b), (a if quarters == 1 else b,))


def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Square matrices with the lines of the tensor on a diagonal of two dimensions, zero elsewhere.

    >>> import tapegrad as tg
    >>> tg.diag_embed(tg.tensor([1, 2]))
    tensor([[1, 0],
            [0, 2]])
    """
    check_tensor("diag_embed", input)
    x = input if input.ndim else reshape(input, (1,))
    a, b = check_dim(dim1, x.ndim + 1), check_dim(dim2, x.ndim + 1)
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    # below the diagonal of (a, b) is above that of (b, a)
    matrices = diagonal_matrices(x, offset if a < b else -offset)
    a, b = min(a, b), max(a, b)
    return matrices if (a, b) == (x.ndim - 1, x.ndim) else movedim(matrices, (-2, -1), (a, b))


def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """The diagonal of a matrix, as a copy; or the matrix with a vector on its diagonal."""
    check_tensor("diag", input)
    if input.ndim == 1:
        return diagonal_matrices(input, diagonal)
    if input.ndim == 2:
        return clone(_diagonal(input, diagonal))
    raise RuntimeError(f"diag(): Supports 1D or 2D tensors. Got {input.ndim}D")


_diagonal = diagonal

for _function, _names in (
    (split, ()),
    (split_with_sizes, ()),
    (chunk, ()),
    (tensor_split, ()),
    (unbind, ()),
    (hsplit, ()),
    (vsplit, ()),
    (dsplit, ()),
    (tile, ()),
    (repeat_interleave, ()),
    (fliplr, ()),
    (flipud, ()),
    (rot90, ()),
    (diag_embed, ()),
    (diag, ()),
):
    export(_function, *_names)
for _function, _names in (
    (atleast_1d, ()),
    (atleast_2d, ()),
    (atleast_3d, ()),
    (hstack, ()),
    (vstack, ("row_stack",)),
    (dstack, ()),
    (column_stack, ()),
    (meshgrid, ()),
):
    export(_function, *_names, method=False)
