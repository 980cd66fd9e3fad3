"""The derivative of a translated expression, from its syntax tree.

It runs the statements backwards: what arrives at a value is spread over the values it was computed from, by the rules for sums,
products and quotients, and through the declared partials of every op that is called. The result is the text of an ordinary declared
backward, so it is compiled for the first order and runs over tensors for higher ones.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence
from typing import Any

from tapegrad import dtypes
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._translate import Translation, assignment, call, negative
from tapegrad.ops._user_parts import Partial

_Parts = dict[str, list[ast.expr]]
_ZERO = ast.Constant(0)


class Derivation:
    """The backward of a translated forward.

    Args:
        forward: the translation.
        inputs: the names of its inputs.

    Attributes:
        statements: assignments, first those of the forward, then of what arrives at each of its values.
        partials: one expression an input.
        names: what the names of the expressions stand for.
    """

    def __init__(self, forward: Translation, inputs: Sequence[str]) -> None:
        self.forward = forward
        self.names = dict(forward.names)
        self.statements = list(forward.statements)
        arrived: _Parts = {}
        (result,) = forward.results
        assert result is not None
        self._spread(result, ast.Name("g", ast.Load()), ast.Name("out", ast.Load()), arrived)
        for statement in reversed(forward.statements):
            (target,) = statement.targets
            assert isinstance(target, ast.Name)
            if target.id in arrived and target.id not in forward.truths:
                g = _total(arrived[target.id])
                if not isinstance(g, ast.Name):
                    name = "a" + target.id[1:]
                    self.statements.append(assignment(name, g))
                    g = ast.Name(name, ast.Load())
                self._spread(statement.value, g, ast.Name(target.id, ast.Load()), arrived)
        self.partials = [_total(arrived.get(n, [_ZERO])) for n in inputs]

    def _spread(self, node: ast.expr, g: ast.expr, value: ast.expr, arrived: _Parts) -> None:
        # add what `g`, the derivative by the value of a node, means for the variables in the node
        match node:
            case ast.Name(id=name):
                arrived.setdefault(name, []).append(g)
            case ast.UnaryOp(op=ast.USub(), operand=a):
                self._spread(a, negative(g), a, arrived)
            case ast.BinOp(left=a, op=ast.Add(), right=b):
                self._spread(a, g, a, arrived)
                self._spread(b, g, b, arrived)
            case ast.BinOp(left=a, op=ast.Sub(), right=b):
                self._spread(a, g, a, arrived)
                self._spread(b, negative(g), b, arrived)
            case ast.BinOp(left=a, op=ast.Mult(), right=b):
                self._spread(a, ast.BinOp(g, ast.Mult(), b), a, arrived)
                self._spread(b, ast.BinOp(g, ast.Mult(), a), b, arrived)
            case ast.BinOp(left=a, op=ast.Div(), right=b):
                self._spread(a, ast.BinOp(g, ast.Div(), b), a, arrived)
                product = ast.BinOp(negative(g), ast.Mult(), value)
                self._spread(b, ast.BinOp(product, ast.Div(), b), b, arrived)
            case ast.IfExp(test=test, body=a, orelse=b):
                # each branch's part is computed in that branch alone: elsewhere it may be infinite
                chosen: _Parts = {}
                other: _Parts = {}
                self._spread(a, g, a, chosen)
                self._spread(b, g, b, other)
                for name in dict.fromkeys([*chosen, *other]):
                    sides = [_total(parts.get(name, [_ZERO])) for parts in (chosen, other)]
                    arrived.setdefault(name, []).append(ast.IfExp(test, *sides))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                self._spread_call(self.names[name], arguments, g, value, arrived)

    def _spread_call(self, op: Any, arguments: list[ast.expr], g: ast.expr, value: ast.expr, arrived: _Parts) -> None:
        assert isinstance(op, Pointwise)
        if op.out is dtypes.bool:
            return
        title = f"{self.forward.name}: the derivative of {op.name}"
        if op.derivative is None:
            raise TypeError(f"{title} is not known; declare the derivative with @{self.forward.name}.backward")
        uses = op.partial_uses()
        values = dict(zip([*op.parameters, "out", "g"], [*arguments, value, g], strict=True))
        for slot, a in enumerate(arguments):
            if isinstance(a, ast.Constant):
                continue
            if slot not in uses:
                raise TypeError(f"{title} with respect to operand {slot + 1} is declared as None")
            partial = Partial(op, slot)
            if partial.is_zero:
                continue
            self.names[partial.name] = partial
            self._spread(a, call(partial.name, [values[n] for n in uses[slot]]), a, arrived)


def _total(parts: list[ast.expr]) -> ast.expr:
    return functools.reduce(lambda a, b: ast.BinOp(a, ast.Add(), b), parts)
