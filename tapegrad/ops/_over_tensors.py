"""Declared derivatives run over tensors: the same expressions, with operations where scalar code has functions and conditions."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable
from typing import Any

from numba.extending import is_jitted

from tapegrad import dtypes
from tapegrad.engine.vecmath_ir import literal
from tapegrad.ops import _source
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import PUBLIC
from tapegrad.tensor import Tensor


class _TensorForm(ast.NodeTransformer):
    """Conditions, connectives, chained comparisons and quotients as calls."""

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return _call("_choose", node.test, node.body, node.orelse)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        name = "_both" if isinstance(node.op, ast.And) else "_either"
        return functools.reduce(lambda a, b: _call(name, a, b), node.values)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return _call("_quotient", node.left, node.right) if isinstance(node.op, ast.Div) else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return _call("_opposite", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        sides = [node.left, *node.comparators]
        pairs: list[ast.expr] = [ast.Compare(sides[k], [op], [sides[k + 1]]) for k, op in enumerate(node.ops)]
        return functools.reduce(lambda a, b: _call("_both", a, b), pairs)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _choose(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, Tensor):
        return a if condition else b
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return PUBLIC["where"](condition, a, b)
    return condition.to(dtypes.float64) * (a - b) + b


def _both(a: Any, b: Any) -> Any:
    return a & b if isinstance(a, Tensor) or isinstance(b, Tensor) else a and b


def _either(a: Any, b: Any) -> Any:
    return a | b if isinstance(a, Tensor) or isinstance(b, Tensor) else a or b


def _opposite(a: Any) -> Any:
    return PUBLIC["logical_not"](a) if isinstance(a, Tensor) else not a


def _quotient(a: Any, b: Any) -> Any:
    # of two numbers as compiled code divides them, without an exception for zero
    if isinstance(a, Tensor) or isinstance(b, Tensor) or b != 0:
        return a / b
    return math.copysign(math.inf, a) * math.copysign(1.0, b) if a != 0 and a == a else math.nan


def _least(a: Any, b: Any) -> Any:
    return _choose(a < b, a, b)


def _greatest(a: Any, b: Any) -> Any:
    return _choose(a > b, a, b)


_HELPERS = {f.__name__: f for f in (_choose, _both, _either, _opposite, _quotient)} | {"min": _least, "max": _greatest}


class _Vecmath:
    """The vector maths module as derivatives name it, with operations for functions."""

    def __getattr__(self, name: str) -> Any:
        return _operation(name)


def _operation(name: str) -> Callable:
    return _on_numbers_too(PUBLIC[name])


@functools.cache
def _on_numbers_too(op: Callable) -> Callable:
    def apply(*args: Any) -> Any:
        if any(isinstance(a, Tensor) for a in args):
            return op(*args)
        from tapegrad.creation import tensor

        return op(*(tensor(float(a), dtype=dtypes.float64) for a in args)).item()

    return apply


_forms: dict[Any, Callable] = {literal: lambda value, like: value}


def tensor_form(helper: Any, form: Callable) -> None:
    """Say what a compiled helper of declarations is over tensors, where its own source does not say it right."""
    _forms[helper] = form


def _value(value: Any) -> Any:
    # a global of a declaration, as tensors need it
    if is_jitted(value) and value in _forms:
        return _forms[value]
    module = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    if getattr(value, "__name__", "") == "tapegrad.engine.vecmath":
        return _Vecmath()
    if str(module).startswith("tapegrad.engine.vecmath"):
        return _operation(value.__name__)
    if isinstance(value, Pointwise):
        return _on_numbers_too(value)
    return over_tensors(value.py_func) if is_jitted(value) else value


def _compiled(function: Callable, name: str, parameters: list[str], body: list[ast.stmt]) -> Callable:
    tree = ast.parse(f"def {name}({', '.join(parameters)}): pass").body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.body = [_TensorForm().visit(statement) for statement in body]
    namespace = {
        **function.__globals__,
        **{n: _value(v) for n, v in _source.globals_used(function).items()},
        **_HELPERS,
    }
    exec(compile(ast.fix_missing_locations(ast.Module([tree], [])), function.__code__.co_filename, "exec"), namespace)
    return namespace[name]


@functools.cache
def over_tensors(function: Callable) -> Callable:
    """A declared scalar expression as a function of tensors."""
    return _compiled(function, function.__name__, _source.parameters(function), _source.function_tree(function).body)


@functools.cache
def partial_over_tensors(derivative: Callable, index: int) -> Callable:
    """One partial of a declared backward as a function of the tensors that `partial_names` lists."""
    kept, wanted = _source.slice_of(derivative, index)
    names = _source.partial_names(derivative, index)
    return _compiled(derivative, "partial", names, [*kept, ast.Return(wanted)])
