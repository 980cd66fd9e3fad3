"""From a declared expression to source text for one dtype.

The body of a declaration is ordinary Python over tapegrad's functions. Its numbers get the kernel's type, so that float32 stays
float32; a backward that returns one partial an input is split into one function a partial, each with just the names it uses.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any


class _TypedNumbers(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            return node
        return ast.Call(ast.Name("T", ast.Load()), [node], [])


def function_of(text: str, names: dict[str, Any]) -> Callable:
    """A declared function from its text, which refers to global names."""
    scope: dict[str, Any] = {}
    exec(compile(text, "<declaration>", "exec"), scope)
    name = ast.parse(text).body[0].name  # type: ignore[attr-defined]
    made = types.FunctionType(scope[name].__code__, names, name)
    made.declaration = text  # type: ignore[attr-defined]
    return made


def function_tree(function: Callable) -> ast.FunctionDef:
    """The syntax tree of a declared function."""
    text = getattr(function, "declaration", None) or textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(text).body[0]
    assert isinstance(tree, ast.FunctionDef)
    body = tree.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    tree.body = body
    return tree


def parameters(function: Callable) -> list[str]:
    """The names of a declared function's parameters."""
    return list(inspect.signature(function).parameters)


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def partial_expressions(function: Callable) -> list[ast.expr]:
    """The expressions a backward returns, one an input."""
    last = function_tree(function).body[-1]
    assert isinstance(last, ast.Return)
    assert last.value is not None
    return list(last.value.elts) if isinstance(last.value, ast.Tuple) else [last.value]


def slice_of(function: Callable, index: int) -> tuple[list[ast.stmt], ast.expr]:
    """The assignments one partial of a backward needs, and its expression."""
    wanted = partial_expressions(function)[index]
    names = _names(wanted)
    kept: list[ast.stmt] = []
    for statement in reversed(function_tree(function).body[:-1]):
        assert isinstance(statement, ast.Assign)
        assert isinstance(statement.targets[0], ast.Name)
        if statement.targets[0].id in names:
            kept.insert(0, statement)
            names |= _names(statement.value)
    return kept, wanted


@functools.cache
def partial_names(function: Callable, index: int) -> list[str]:
    """The parameters of a backward that one of its partials uses, in their order."""
    kept, wanted = slice_of(function, index)
    names = _names(wanted).union(*(_names(s) for s in kept)) if kept else _names(wanted)
    return [p for p in parameters(function) if p in names]


def _function_text(name: str, parameters: list[str], body: list[ast.stmt]) -> str:
    lines = "\n".join(ast.unparse(ast.fix_missing_locations(_TypedNumbers().visit(s))) for s in body)
    # each operation is rounded by itself: the same in an op's own kernel, in a loop of several ops, and in a derivative over tensors
    return f"@internal_scalar\ndef {name}({', '.join(parameters)}):\n{textwrap.indent(lines, '    ')}\n"


def forward_text(name: str, function: Callable) -> str:
    """Source of a declared forward as a scalar function called `name`."""
    return _function_text(name, parameters(function), function_tree(function).body)


def partial_text(name: str, function: Callable, index: int) -> str:
    """Source of one partial of a declared backward as a scalar function called `name`."""
    kept, wanted = slice_of(function, index)
    return _function_text(name, partial_names(function, index), [*kept, ast.Return(wanted)])


def globals_used(function: Callable) -> dict[str, Any]:
    """The global values a function's body refers to."""
    names = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
    return {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
