"""Unknowns of a problem: tensors and arrays in a user's structure on one side, one float64 vector, as SciPy takes it, on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tapegrad import _tree, dtypes
from tapegrad.creation import from_copy
from tapegrad.tensor import Tensor

_NUMBERS = (int, float, np.integer, np.floating)


def is_numbers(value: Any) -> bool:
    """Whether a value is a list or tuple, possibly nested, of nothing but numbers: an array as SciPy takes it."""
    if type(value) not in (list, tuple) or not value:
        return False
    return all(is_numbers(v) or (isinstance(v, _NUMBERS) and not isinstance(v, bool)) for v in value)


class Leaf(NamedTuple):
    """One tensor, array or number among the unknowns, and its place in the vector."""

    path: str
    value: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    stop: int


class Unknowns:
    """The unknowns of a problem as their user writes them, and as a vector.

    Args:
        x0: where they start: a tensor, an array, a number, a list of numbers, or a structure (dict, list, tuple, named tuple,
            dataclass) of tensors, arrays and numbers, and None where there is nothing.
        name: what messages call it.

    Attributes:
        tree: the structure.
        leaves: its leaves but None.
        start: the vector of float64 where they start.

    Raises:
        TypeError: for leaves that are nothing to differentiate by.
        ValueError: if there are no elements.
    """

    def __init__(self, x0: Any, name: str = "x0") -> None:
        self.name = name
        self.tree = np.array(x0, np.float64) if is_numbers(x0) else x0
        self.leaves: list[Leaf] = []
        parts = []
        stop = 0
        for path, value in _tree.named_leaves(self.tree):
            if value is None:
                continue
            array = _values(value, name + path)
            start, stop = stop, stop + array.size
            self.leaves.append(Leaf(path, value, array.shape, array.dtype, start, stop))
            parts.append(array.reshape(-1).astype(np.float64))
        self.start = np.concatenate([np.empty(0), *parts])
        if not self.start.size:
            raise ValueError(f"{name} has no elements: there is nothing to solve for")

    @property
    def size(self) -> int:
        """How many numbers the unknowns are."""
        return self.start.size

    def bind(self, x: Tensor) -> Any:
        """Parts of a float64 tensor in the user's structure, shapes and dtypes, connected to it."""

        def part(leaf: Leaf) -> Tensor:
            t = x if leaf.stop - leaf.start == self.size else x[leaf.start : leaf.stop]  # type: ignore[index]
            if leaf.shape != t.shape:
                t = t.reshape(leaf.shape)
            return t if leaf.dtype == np.float64 else t.to(dtypes.of_numpy(leaf.dtype))

        return self._filled(part)

    def restore(self, vector: Any) -> Any:
        """A vector in the user's structure: tensors for tensors, arrays for arrays, floats for numbers."""
        vector = np.asarray(vector)

        def part(leaf: Leaf) -> Any:
            array = vector[leaf.start : leaf.stop].reshape(leaf.shape).astype(leaf.dtype)
            if isinstance(leaf.value, Tensor):
                return from_copy(array)
            if isinstance(leaf.value, np.ndarray):
                return array
            return array[()] if isinstance(leaf.value, np.generic) else array.item()

        return self._filled(part)

    def _filled(self, part: Callable[[Leaf], Any]) -> Any:
        # the user's structure, None where it has None
        leaves = iter(self.leaves)
        return _tree.map_leaves(lambda value: None if value is None else part(next(leaves)), self.tree)

    def place(self, k: int) -> str:
        """How Python reaches element `k` of the vector, as ``x0['w'][1, 2]``."""
        leaf = next(leaf for leaf in self.leaves if k < leaf.stop)
        index = ", ".join(str(i) for i in np.unravel_index(k - leaf.start, leaf.shape))
        return self.name + leaf.path + (f"[{index}]" if index else "")


def _values(value: Any, place: str) -> np.ndarray:
    """The elements of a leaf: float32 or float64."""
    if isinstance(value, Tensor):
        if value.dtype not in (dtypes.float32, dtypes.float64):
            raise TypeError(
                f"{place} is a tensor of {value.dtype}, but unknowns must be float32 or float64: convert it with .double(), or pass "
                "what is not to be changed in args"
            )
        return value.detach().numpy()
    if isinstance(value, bool) or not isinstance(value, np.ndarray | np.generic | int | float):
        raise TypeError(
            f"{place} must be a Tensor, an array or a number, or a dict, list, tuple, named tuple or dataclass of these, but got "
            f"{type(value).__name__}"
        )
    array = np.asarray(value)
    if array.dtype.kind in "iu":
        return array.astype(np.float64)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{place} is an array of {array.dtype}, but unknowns must be float32 or float64: convert it")
    return array
