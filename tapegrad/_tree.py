"""Trees of values: dicts, lists, tuples, named tuples and dataclasses, with anything else as leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class Structure(NamedTuple):
    """The shape of a tree.

    Attributes:
        kind: type of the node, None for a leaf.
        keys: of a dict, field names of a dataclass, None otherwise.
        parts: structures of its children.
    """

    kind: type | None
    keys: tuple | None
    parts: tuple[Structure, ...]

    @property
    def leaves(self) -> int:
        """How many leaves the tree has."""
        return 1 if self.kind is None else sum(p.leaves for p in self.parts)


LEAF = Structure(None, None, ())


def _children(tree: Any) -> tuple[tuple | None, Sequence[Any]] | None:
    if isinstance(tree, dict):
        return tuple(tree), list(tree.values())
    if isinstance(tree, list | tuple):
        return None, tree
    if hasattr(type(tree), "__dataclass_fields__"):
        names = tuple(f.name for f in dataclasses.fields(tree) if f.init)
        return names, [getattr(tree, n) for n in names]
    return None


def named_children(tree: Any) -> dict[str, Any] | None:
    """The children of a node by how Python reaches them; None for a leaf.

    >>> named_children({"w": 1}), named_children([2, 3]), named_children(4)
    ({"['w']": 1}, {'[0]': 2, '[1]': 3}, None)
    """
    found = _children(tree)
    if found is None:
        return None
    keys, children = found
    if isinstance(tree, dict):
        names = [f"[{key!r}]" for key in keys or ()]
    else:
        fields = keys or getattr(tree, "_fields", None)
        names = [f".{name}" for name in fields] if fields else [f"[{k}]" for k in range(len(children))]
    return dict(zip(names, children, strict=True))


def named_leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree in the order of `flatten`, each with how Python reaches it.

    >>> list(named_leaves({"w": [1, 2]}, "x"))
    [("x['w'][0]", 1), ("x['w'][1]", 2)]
    """
    children = named_children(tree)
    if children is None:
        yield path, tree
        return
    for name, child in children.items():
        yield from named_leaves(child, path + name)


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves of a tree, in order, and its structure.

    >>> flatten({"a": 1, "b": [2, 3]})[0]
    [1, 2, 3]
    """
    found = _children(tree)
    if found is None:
        return [tree], LEAF
    leaves, parts = [], []
    for child in found[1]:
        more, structure = flatten(child)
        leaves += more
        parts.append(structure)
    return leaves, Structure(type(tree), found[0], tuple(parts))


def unflatten(leaves: Sequence[Any], structure: Structure) -> Any:
    """The tree with these leaves and this structure."""
    remaining = iter(leaves)
    return _build(remaining, structure)


def _build(leaves: Any, structure: Structure) -> Any:
    kind: Any = structure.kind
    if kind is None:
        return next(leaves)
    children = [_build(leaves, p) for p in structure.parts]
    if issubclass(kind, dict):
        made = dict(zip(structure.keys or (), children, strict=True))
        return made if kind is dict else kind(made)
    if structure.keys is not None:
        return kind(**dict(zip(structure.keys, children, strict=True)))
    return kind(*children) if hasattr(kind, "_fields") else kind(children)


def map_leaves(function: Callable, tree: Any) -> Any:
    """The tree with a function applied to each leaf."""
    leaves, structure = flatten(tree)
    return unflatten([function(leaf) for leaf in leaves], structure)


def spread(prefix: Any, structure: Structure) -> list[Any] | None:
    """A tree that is a prefix of a structure, with each of its leaves repeated for all below it; None if it is no prefix.

    >>> spread((0, None), flatten((1, [2, 3]))[1])
    [0, None, None]
    """
    found = _children(prefix)
    if found is None:
        return [prefix] * structure.leaves
    keys, children = found
    alike = isinstance(prefix, list | tuple) and structure.kind is not None and issubclass(structure.kind, list | tuple)
    if (keys != structure.keys and set(keys or ()) != set(structure.keys or ())) or len(children) != len(
        structure.parts
    ):
        return None
    if not alike and not (structure.kind is not None and isinstance(prefix, structure.kind)):
        return None
    if keys is not None and structure.keys is not None:
        children = [children[keys.index(k)] for k in structure.keys]
    total = []
    for child, part in zip(children, structure.parts, strict=True):
        more = spread(child, part)
        if more is None:
            return None
        total += more
    return total
