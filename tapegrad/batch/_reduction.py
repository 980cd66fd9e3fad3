"""Sums that do not depend on how the work was cut: blocks of samples added in pairs, in a tree that only their number decides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Node(NamedTuple):
    """The sum of ``2**level`` blocks, the first of which is ``number * 2**level``.

    Attributes:
        level: how many times pairs were added.
        number: place among the nodes of this level.
        arrays: the sums, one array for each thing that is added up.
    """

    level: int
    number: int
    arrays: list[np.ndarray]


class PairwiseSum:
    """A sum of blocks in a fixed binary tree.

    Two neighbours of one level are added, the left one first, as soon as both are there; so the result depends on the blocks and their
    number, not on the order they come in or on who added up which part. The error grows with the logarithm of the number of blocks.

    >>> import numpy as np
    >>> a, b = PairwiseSum(), PairwiseSum()
    >>> for k in (0, 1, 2):
    ...     a.add(Node(0, k, [np.float64(k)]))
    >>> for k in (1, 2, 0):
    ...     b.add(Node(0, k, [np.float64(k)]))
    >>> a.total(), b.total()
    ([np.float64(3.0)], [np.float64(3.0)])
    """

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self._nodes: dict[tuple[int, int], list[np.ndarray]] = {}
        for node in nodes:
            self.add(node)

    def add(self, node: Node) -> None:
        """Add a block (a node of level 0) or the sum of several."""
        level, number, arrays = node
        while (pair := self._nodes.pop((level, number ^ 1), None)) is not None:
            left, right = (pair, arrays) if number & 1 else (arrays, pair)
            arrays = [a + b for a, b in zip(left, right, strict=True)]
            level, number = level + 1, number >> 1
        self._nodes[level, number] = arrays

    def nodes(self) -> list[Node]:
        """What was added so far, as few nodes as there can be."""
        return [Node(level, number, arrays) for (level, number), arrays in sorted(self._nodes.items())]

    def total(self) -> list[np.ndarray]:
        """The sum of all blocks, once all are there: the smaller subtrees, which stand on the right, are added first."""
        ordered = self.nodes()
        arrays = ordered[0].arrays
        for node in ordered[1:]:
            arrays = [a + b for a, b in zip(node.arrays, arrays, strict=True)]
        return arrays
