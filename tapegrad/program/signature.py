"""What kind of arguments a call has: its programs are found again by that."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from tapegrad import _tree, dtypes
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META
from tapegrad.metadata import layout_facts
from tapegrad.program.capture import FACTS
from tapegrad.tensor import Tensor

_S = rt.S
_PLAIN = {bool, int, str, type(None), bytes}

# of arguments: the tree they make, or how many there are if each is a leaf
Structure = _tree.Structure | int


class Fixed:
    """A static argument, whatever it is.

    Attributes:
        value: the argument.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and type(other.value) is type(self.value) and other.value == self.value


def is_data(leaf: Any) -> bool:
    """Whether a leaf is a tensor or an array, whose values may differ between calls."""
    return isinstance(leaf, Tensor | np.ndarray)


def settings_of(leaves: Sequence[Any]) -> list[Any]:
    """The leaves that are no data."""
    return [v.value if isinstance(v, Fixed) else v for v in leaves if not is_data(v)]


def signature_of(name: str, args: tuple, kwargs: dict, static: Container[int]) -> tuple[list[Any], Structure, Any]:
    """The leaves of arguments, tensors made contiguous; their structure; and what is equal for arguments of the same kind.

    Args:
        name: of the function.
        args: the arguments by position.
        kwargs: those by name.
        static: positions of those that are recorded by value whatever they are.

    Raises:
        TypeError: for an argument that is neither data nor hashable.
    """
    if kwargs or static:
        return _of_trees(name, args, kwargs, static)
    key: list[Any] = [dtypes.get_default_dtype(), len(args)]
    leaves: list[Any] = []
    for a in args:
        kind = type(a)
        if kind is Tensor:
            meta = rt.look(_S, a._id, LOOK_META)
            if not layout_facts(meta >> 16)[2]:
                a = a.contiguous()  # type: ignore[attr-defined]
                meta = rt.look(_S, a._id, LOOK_META)
            key.append(meta & FACTS)
        elif kind is np.ndarray and a.dtype.kind != "O":
            key.append(a.dtype)
            key.append(a.shape)
        elif kind is float:
            key.append(a.hex())
        elif kind in _PLAIN:
            key.append(kind)
            key.append(a)
        else:
            return _of_trees(name, args, kwargs, static)
        leaves.append(a)
    return leaves, len(args), tuple(key)


def _of_trees(name: str, args: tuple, kwargs: dict, static: Any) -> tuple[list[Any], Structure, Any]:
    fixed = {n % len(args): Fixed(args[n]) for n in static if -len(args) <= n < len(args)}
    given = tuple(fixed.get(n, a) for n, a in enumerate(args))
    flat, structure = _tree.flatten((given, kwargs))
    key: list[Any] = [dtypes.get_default_dtype(), structure]
    leaves: list[Any] = []
    for leaf in flat:
        if isinstance(leaf, np.generic | np.ndarray) and leaf.dtype.kind != "O":
            leaf = np.asarray(leaf)
            key += [leaf.dtype, leaf.shape]
        elif isinstance(leaf, Tensor):
            leaf = leaf.contiguous()  # type: ignore[attr-defined]
            key.append(rt.look(_S, leaf._id, LOOK_META) & FACTS)
        else:
            key += [type(leaf), leaf.hex() if type(leaf) is float else leaf]
        leaves.append(leaf)
    try:
        hash(tuple(key))
    except TypeError:
        value = next(v.value if isinstance(v, Fixed) else v for v in leaves if not _hashable(v))
        raise TypeError(
            f"compile: {name} got an argument of type {type(value).__name__}, which is neither tensor, array nor hashable; "
            "programs are found again by the values of such arguments, so pass tensors, arrays, or hashable values"
        ) from None
    return leaves, structure, tuple(key)


def _hashable(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "O"
    try:
        hash(value)
    except TypeError:
        return False
    return True


def arguments_of(structure: Structure, leaves: Sequence[Any]) -> tuple[tuple, dict]:
    """Positional and keyword arguments with these leaves."""
    if isinstance(structure, int):
        return tuple(leaves), {}
    args, kwargs = _tree.unflatten(leaves, structure)
    return tuple(a.value if isinstance(a, Fixed) else a for a in args), kwargs


class Template:
    """The leaves of arguments of one kind, without the data among them."""

    def __init__(self, leaves: Sequence[Any]) -> None:
        self._leaves = [None if is_data(v) else v for v in leaves]
        self._places = [p for p, v in enumerate(leaves) if is_data(v)]

    def filled(self, tensors: Sequence[Tensor]) -> list[Any]:
        """The leaves with other data."""
        leaves = list(self._leaves)
        for p, t in zip(self._places, tensors, strict=True):
            leaves[p] = t
        return leaves
