"""What the operands of a product must be, said in PyTorch's words."""

from __future__ import annotations

from collections.abc import Sequence

from tapegrad import dtypes
from tapegrad.ops._rule import NUMBERS
from tapegrad.tensor import Tensor

# how PyTorch's older routines name dtypes
_C_NAMES = {
    "float32": "float",
    "float64": "double",
    "float16": "c10::Half",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long int",
    "uint8": "unsigned char",
    "bool": "bool",
}


def c_name(d: dtypes.dtype) -> str:
    """A dtype as C++ calls it."""
    return _C_NAMES[d.name]


def need_kernel(routine: str, d: dtypes.dtype) -> None:
    """Refuse dtypes that have no product.

    Raises:
        NotImplementedError: naming the routine and the dtype.
    """
    if d not in NUMBERS:
        raise NotImplementedError(f"\"{routine}\" not implemented for '{d.tensor_type}'")


def check_same_dtype(a: Tensor, b: Tensor) -> None:
    """Refuse matrices of two dtypes, as `mm` says it."""
    if a.dtype is not b.dtype:
        raise RuntimeError(
            f"expected m1 and m2 to have the same dtype, but got: {c_name(a.dtype)} != {c_name(b.dtype)}"
        )


def check_same_scalar_type(a: Tensor, b: Tensor) -> None:
    """Refuse batches of two dtypes, as `bmm` says it."""
    if a.dtype is not b.dtype:
        raise RuntimeError(f"expected scalar type {a.dtype.tensor_type} but found {b.dtype.tensor_type}")


def check_inner_sizes(m: int, k: int, p: int, n: int) -> None:
    """Refuse (m, k) times (p, n) unless k is p."""
    if k != p:
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({m}x{k} and {p}x{n})")


def check_expandable(x: Tensor, shape: Sequence[int]) -> None:
    """Refuse what does not expand to a shape."""
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


def check_batches(a: Tensor, b: Tensor) -> tuple[int, int, int]:
    """The batch, rows and columns of a product of two batches of matrices, refusing what are none."""
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


def check_same_as_input(input: Tensor, a: Tensor, b: Tensor) -> None:
    """Refuse factors of another dtype than what their product is added to."""
    if not input.dtype is a.dtype is b.dtype:
        other = b if b.dtype is not input.dtype else a
        raise RuntimeError(
            f"self and mat2 must have the same dtype, but got {input.dtype.tensor_type} and {other.dtype.tensor_type}"
        )
