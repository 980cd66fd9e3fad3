"""The graph as users see it: nodes over the rows of the tape."""

from __future__ import annotations

from typing import Any

from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_OP, LOOK_PRODUCER
from tapegrad.ops._rule import OPS
from tapegrad.tensor import Tensor, wrap

_S = rt.S
_classes: dict[str, type[Node]] = {}


class Node:
    """The recorded operation that computes one tensor; its class is named after the operation."""

    __slots__ = ("_tensor",)
    _tensor: Tensor

    def __new__(cls, k: int) -> Node:
        op = OPS[rt.look(_S, k, LOOK_OP)]
        assert op is not None
        name = op.grad_name
        if name not in _classes:
            _classes[name] = type(name, (Node,), {"__slots__": (), "__module__": "tapegrad"})
        node = object.__new__(_classes[name])
        rt.retain(_S, k)
        node._tensor = wrap(k)
        return node

    def name(self) -> str:
        """The operation's name with ``Backward0``."""
        return type(self).__name__

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        """The nodes of the operands that gradients flow on to."""
        row = rt.row(rt.look(_S, self._tensor._id, LOOK_PRODUCER))
        need = int(row["need"])
        found = []
        for k, field in enumerate(("in0", "in1", "in2")):
            operand = int(row[field])
            if need >> k & 1:
                found.append((node_of(operand), 0))
        return tuple(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and other._tensor._id == self._tensor._id

    def __hash__(self) -> int:
        return hash((Node, self._tensor._id))

    def __repr__(self) -> str:
        return f"<{self.name()} object at {hex(self._tensor._id)}>"


class AccumulateGrad:
    """Where gradients of a leaf arrive.

    Attributes:
        variable: the leaf.
    """

    __slots__ = ("variable",)

    def __init__(self, k: int) -> None:
        rt.retain(_S, k)
        self.variable = wrap(k)

    def name(self) -> str:
        """The name of this kind of node."""
        return "tapegrad::autograd::AccumulateGrad"

    next_functions = ()

    def __repr__(self) -> str:
        return f"<AccumulateGrad object at {hex(self.variable._id)}>"


def node_of(k: int) -> Node | AccumulateGrad:
    """The node that computes buffer `k`, or collects its gradient."""
    return AccumulateGrad(k) if rt.look(_S, k, LOOK_PRODUCER) < 0 else Node(k)
