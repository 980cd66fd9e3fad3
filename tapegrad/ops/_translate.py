"""From a user's scalar function to the text of a declaration.

People write scalar functions with names of their own, globals, closures, `math`, `**` and variables assigned twice. A declaration is
plainer (see _source.py): its inputs are called x, y and z, its numbers are literals, whatever is not + - * / is the call of a
registered op, and every intermediate value has a name, t1, t2, …, unless it stands where it may not be evaluated.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import contextlib
import dis
import inspect
import operator
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numba.extending import is_jitted

from tapegrad import dtypes
from tapegrad.engine.usercode import check_function
from tapegrad.ops import activation, pointwise
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import FLOATS, PUBLIC
from tapegrad.ops._user_parts import Compiled
from tapegrad.tensor import Tensor

_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_CALLED = {ast.Pow: "pow", ast.Mod: "remainder", ast.FloorDiv: "floor_divide"}
_SYMBOLS = {"add": ast.Add, "sub": ast.Sub, "subtract": ast.Sub, "mul": ast.Mult, "multiply": ast.Mult}
_SYMBOLS |= {"div": ast.Div, "divide": ast.Div, "true_divide": ast.Div}
_ALIASES = {
    "power": "pow",
    "fabs": "abs",
    "round": "round_even",
    "rint": "round_even",
    "clip": "clamp",
    "mod": "remainder",
}
_ALIASES |= {"degrees": "rad2deg", "radians": "deg2rad"}
# functions whose namesakes here are something else
_OTHERWISE = (("math", "remainder"), ("numpy", "max"), ("numpy", "min"), ("numpy", "copy"))
_ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_LARGEST_POWER = 16


def source_tree(function: Callable) -> ast.FunctionDef:
    """The syntax tree of a user's function, from its source.

    Raises:
        TypeError: if it is no plain function, if its source cannot be had, or if what is found is not what was compiled.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(function, types.FunctionType):
        hint = "; leave out @njit, the op is compiled as a whole" if is_jitted(function) else ""
        raise TypeError(f"expected a plain Python function, but got a {type(function).__name__}{hint}")
    if name == "<lambda>":
        raise TypeError("expected a function with a name, but got a lambda: write it with def")
    remedy = "define it in a file or a notebook cell, so that its source can be read"
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError) as error:
        raise TypeError(f"the source of {name}, from which its derivative follows, cannot be had: {remedy}") from error
    if not isinstance(tree, ast.FunctionDef) or not _made_of(tree, function):
        raise TypeError(f"the source found for {name} is not what it was compiled from, perhaps edited since: {remedy}")
    return tree


def _made_of(tree: ast.FunctionDef, function: types.FunctionType) -> bool:
    # whether the syntax tree compiles to the function's own code
    code = function.__code__
    bare = ast.FunctionDef(tree.name, tree.args, tree.body, [], None, **_type_params())
    free = ast.arguments([], [ast.arg(n) for n in code.co_freevars], None, [], [], None, [])
    outer = ast.FunctionDef("outer", free, [bare], [], None, **_type_params())
    module = ast.fix_missing_locations(ast.Module([outer], []))
    flags = code.co_flags & __future__.annotations.compiler_flag
    made: Any = compile(module, "<source>", "exec", flags=flags, dont_inherit=True)
    for part in ("outer", tree.name):
        made = next(c for c in made.co_consts if isinstance(c, types.CodeType) and c.co_name == part)
    return _essence(made) == _essence(code)


def _type_params() -> dict[str, Any]:
    return {"type_params": []} if "type_params" in ast.FunctionDef._fields else {}


def _essence(code: types.CodeType) -> list[tuple]:
    # the instructions, less what depends on where the function stands: calls of imported modules' functions differ, and with them jumps
    found: list[tuple] = []
    for i in dis.get_instructions(code):
        argument = i.argval
        if isinstance(argument, types.CodeType):
            argument = _essence(argument)
        elif i.opcode in dis.hasjrel or i.opcode in dis.hasjabs:
            argument = None
        if i.opname not in ("PUSH_NULL", "PRECALL", "NOP"):
            found.append((i.opname.replace("LOAD_METHOD", "LOAD_ATTR"), type(argument), repr(argument)))
    return found


class Translation:
    """The body of one of a user's functions, in plain form.

    Args:
        name: of the op, for messages.
        function: the function.
        inputs: its parameters, with the names they get.

    Attributes:
        statements: assignments to t1, t2, ….
        results: the expressions returned; None where the function returns None.
        names: what the names of the expressions stand for.
        truths: the intermediate values that are truth values.
        compiled: the user's compiled functions that are called.
    """

    def __init__(self, name: str, function: Callable, inputs: Mapping[str, str]) -> None:
        self.name = name
        self.function = function
        self.inputs = inputs
        self.statements: list[ast.Assign] = []
        self.results: list[ast.expr | None] = []
        self.names: dict[str, Any] = {}
        self.truths: set[str] = set()
        self.compiled: list[str] = []
        self._variables: dict[str, ast.expr] = {p: ast.Name(n, ast.Load()) for p, n in inputs.items()}
        self._known: dict[str, str] = {}
        self._lazy = False
        self._body(source_tree(function).body)

    # statements

    def _body(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            if self.results:
                self._refuse(statement, "nothing may follow the return")
            match statement:
                case ast.Expr(value=ast.Constant()) | ast.Pass():
                    pass
                case ast.Assign(targets=targets, value=value):
                    for target in targets:
                        self._assign(target, value)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    self._assign(target, value)
                case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                    self._assign(ast.Name(name), ast.BinOp(ast.Name(name), op, value))
                case ast.Return(value=ast.Tuple(elts=elements)):
                    self.results = [self._result(e) for e in elements]
                case ast.Return(value=ast.expr() as value):
                    self.results = [self._unnamed(self._result(value))]
                case ast.If() | ast.For() | ast.While():
                    self._refuse(
                        statement,
                        "a scalar expression has no blocks; write 'a if test else b', or put the block into a function of your own "
                        "compiled with @numba.njit and declare the derivative",
                    )
                case _:
                    self._refuse(statement, "only assignments to variables and a return can be used")
        if not self.results:
            raise TypeError(f"{self.name}: the function has to return a scalar expression")

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        match target, value:
            case ast.Name(id=name), _:
                self._variables[name] = self._atom(self._expression(value))
            case ast.Tuple(elts=targets), ast.Tuple(elts=values) if len(targets) == len(values):
                atoms = [self._atom(self._expression(v)) for v in values]
                for one, atom in zip(targets, atoms, strict=True):
                    if not isinstance(one, ast.Name):
                        self._refuse(target, "only variables can be assigned to")
                    self._variables[one.id] = atom
            case _:
                self._refuse(target, "only variables can be assigned to")

    def _result(self, node: ast.expr) -> ast.expr | None:
        if isinstance(node, ast.Constant) and node.value is None:
            return None
        found = self._expression(node)
        return ast.IfExp(found, ast.Constant(1), ast.Constant(0)) if self.is_truth(found) else found

    def _unnamed(self, found: ast.expr | None) -> ast.expr | None:
        # the value of the last variable in place of its name
        last = self.statements[-1] if self.statements else None
        if last is not None and isinstance(found, ast.Name) and found.id == last.targets[0].id:  # type: ignore[attr-defined]
            self.statements.pop()
            self._known = {text: name for text, name in self._known.items() if name != found.id}
            found = last.value
        return found

    # expressions

    def _expression(self, node: ast.expr) -> ast.expr:
        match node:
            case ast.Constant(value=bool() | int() | float()):
                return node
            case ast.Name(id=name) if name in self._variables:
                return self._variables[name]
            case ast.Name() | ast.Attribute():
                return self._number(node)
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(node, op, self._operand(left), self._operand(right))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._expression(operand)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return negative(self._operand(operand))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ast.UnaryOp(ast.Not(), self._truth(operand))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                condition = self._truth(test)
                with self._maybe_unevaluated():
                    return ast.IfExp(condition, self._expression(body), self._expression(orelse))
            case ast.Compare(left=left, ops=ops, comparators=others) if all(isinstance(o, _ORDERS) for o in ops):
                return ast.Compare(self._operand(left), ops, [self._operand(o) for o in others])
            case ast.BoolOp(op=op, values=[first, *others]):
                truths = [self._truth(first)]
                with self._maybe_unevaluated():
                    return ast.BoolOp(op, truths + [self._truth(o) for o in others])
            case ast.Call():
                return self._call(node)
        return self._refuse(node, "it is no part of a scalar expression")

    def _operand(self, node: ast.expr) -> ast.expr:
        return self._atom(self._expression(node))

    def _truth(self, node: ast.expr) -> ast.expr:
        found = self._operand(node)
        return self._atom(found if self.is_truth(found) else ast.Compare(found, [ast.NotEq()], [ast.Constant(0)]))

    def is_truth(self, node: ast.expr) -> bool:
        """Whether a translated expression is a truth value."""
        match node:
            case ast.Name(id=name):
                return name in self.truths
            case ast.Constant(value=value):
                return isinstance(value, bool)
            case ast.IfExp(body=body, orelse=orelse):
                return self.is_truth(body) and self.is_truth(orelse)
            case ast.Call(func=ast.Name(id=name)):
                return getattr(self.names[name], "out", None) is dtypes.bool
        return isinstance(node, ast.Compare | ast.BoolOp) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        )

    def _atom(self, node: ast.expr) -> ast.expr:
        # a name for a value, unless it may not be evaluated where the name would be
        text = ast.unparse(node)
        if isinstance(node, ast.Name | ast.Constant) or (self._lazy and text not in self._known):
            return node
        if text not in self._known:
            name = self._known[text] = f"t{len(self._known) + 1}"
            if self.is_truth(node):
                self.truths.add(name)
            self.statements.append(assignment(name, node))
        return ast.Name(self._known[text], ast.Load())

    @contextlib.contextmanager
    def _maybe_unevaluated(self) -> Iterator[None]:
        before, self._lazy = self._lazy, True
        try:
            yield
        finally:
            self._lazy = before

    def _binary(self, node: ast.expr, op: ast.operator, left: ast.expr, right: ast.expr) -> ast.expr:
        if type(op) in _CALLED:
            return self._named(node, _CALLED[type(op)], [left, right])
        if type(op) not in _ARITHMETIC:
            self._refuse(node, "floating point numbers have no bits to work on")
        if isinstance(left, ast.Constant) and isinstance(right, ast.Constant):
            with contextlib.suppress(ZeroDivisionError, OverflowError):
                return constant(_ARITHMETIC[type(op)](left.value, right.value), self.names)
        return ast.BinOp(left, op, right)

    # names of the user's program

    def _number(self, node: ast.expr) -> ast.expr:
        value = self._meaning(node)
        if isinstance(value, np.bool_ | np.integer | np.floating):
            value = value.item()
        if isinstance(value, bool | int | float):
            return constant(value, self.names)
        if isinstance(value, Tensor | np.ndarray):
            return self._refuse(node, "tensors and arrays must be inputs of the op")
        return self._refuse(node, f"it is a {type(value).__name__}, where a number is wanted")

    def _meaning(self, node: ast.expr) -> Any:
        """What a name, or an attribute of what a name means, is in the user's program."""
        if isinstance(node, ast.Attribute):
            owner = self._meaning(node.value)
            return getattr(owner, node.attr)
        if not isinstance(node, ast.Name) or node.id in self._variables:
            return self._refuse(node, "attributes of a scalar cannot be used")
        code = self.function.__code__
        if node.id in code.co_freevars:
            cell = self.function.__closure__[code.co_freevars.index(node.id)]  # type: ignore[index]
            with contextlib.suppress(ValueError):  # an empty cell
                return cell.cell_contents
        elif node.id in self.function.__globals__:
            return self.function.__globals__[node.id]
        elif hasattr(builtins, node.id):
            return getattr(builtins, node.id)
        raise NameError(f"{self.name}: name '{node.id}' is not defined")

    def _is_static(self, node: ast.expr) -> bool:
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id not in self._variables

    # calls

    def _call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Attribute) and not self._is_static(node.func):  # x.exp()
            return self._operation(node, node.func.attr, [node.func.value, *node.args], node.keywords)
        function = self._meaning(node.func)
        if hasattr(function, "declared"):
            function = function.declared()
        if isinstance(function, Pointwise):
            return self._apply(node, function, self._operands(node, node.args, node.keywords))
        if is_jitted(function):
            return self._apply_compiled(node, check_function(function, f"{self.name}: {ast.unparse(node.func)}"))
        home = str(getattr(function, "__module__", "") or "").split(".")[0]
        if isinstance(function, np.ufunc):
            home = "numpy"
        name = getattr(function, "__name__", "")
        if home in ("math", "numpy", "builtins", "tapegrad") and (home, name) not in _OTHERWISE:
            return self._operation(node, name, node.args, node.keywords)
        return self._refuse(
            node,
            "it is neither a pointwise operation nor compiled; compile it with @numba.njit and declare the derivative, or make it "
            "an operation with @tapegrad.autograd.elementwise",
        )

    def _operands(self, node: ast.expr, given: Sequence[ast.expr], named: Sequence[ast.keyword]) -> list[ast.expr]:
        if named or any(isinstance(a, ast.Starred) for a in given):
            self._refuse(node, "arguments must be given by position")
        return [self._operand(a) for a in given]

    def _operation(
        self, node: ast.expr, name: str, given: Sequence[ast.expr], named: Sequence[ast.keyword] = ()
    ) -> ast.expr:
        """The call of an operation by its name in tapegrad, `math` or NumPy."""
        name = _ALIASES.get(name, name)
        if name == "clamp":
            values = {k.arg: k.value for k in named} | dict(zip(("x", "min", "max"), given, strict=False))
            given, named = [values.get(k, ast.Constant(None)) for k in ("x", "min", "max")], ()
            bounds = [b for b in given[1:] if not (isinstance(b, ast.Constant) and b.value is None)]
            op = {2: "clamp_both", 1: "clamp_low" if bounds and bounds[0] is given[1] else "clamp_high"}.get(
                len(bounds)
            )
            return self._operation(node, op or name + "()", [given[0], *bounds])
        if name == "where" and len(given) == 3 and not named:
            return self._expression(ast.IfExp(*given))
        return self._named(node, name, self._operands(node, given, named))

    def _named(self, node: ast.expr, name: str, arguments: list[ast.expr]) -> ast.expr:
        # an operation by its name here, applied to translated operands
        match name, arguments:
            case _, [a, b] if name in _SYMBOLS:
                return self._binary(node, _SYMBOLS[name](), a, b)
            case "neg" | "negative", [a]:
                return negative(a)
            case "float" | "positive", [a]:
                return a
            case "bool", [a]:
                return ast.Compare(a, [ast.NotEq()], [ast.Constant(0)])
            case "pow", [a, ast.Constant(value=exponent)]:
                return self._power(node, a, exponent)
            case "min" | "max", [a, b, *others]:
                op = getattr(pointwise, "minimum" if name == "min" else "maximum")
                for c in [b, *others]:
                    a = self._atom(self._apply(node, op, [a, c]))
                return a
            case "log", [a, b]:
                top, bottom = (self._apply(node, pointwise.log, [v]) for v in (a, b))
                return self._binary(node, ast.Div(), self._atom(top), self._atom(bottom))
            case "hypot", [a, b]:
                squares = [self._atom(self._apply(node, pointwise.square, [v])) for v in (a, b)]
                return self._apply(node, pointwise.sqrt, [self._atom(self._binary(node, ast.Add(), *squares))])
            case "softplus", [a]:
                return self._apply(node, pointwise.softplus, [a, ast.Constant(1), ast.Constant(20)])
            case "deg2rad", [a]:
                return self._binary(node, ast.Mult(), a, ast.Constant(pointwise.PI / 180))
            case "rad2deg", [a]:
                return self._binary(node, ast.Mult(), a, ast.Constant(180 / pointwise.PI))
        op = PUBLIC.get(name)
        if not isinstance(op, Pointwise):
            op = getattr(pointwise, name, getattr(activation, name, None))
        if not isinstance(op, Pointwise) or op.arity != len(arguments):
            self._refuse(node, f"there is no pointwise operation '{name}' of {len(arguments)} operands")
        return self._apply(node, op, arguments)

    def _power(self, node: ast.expr, base: ast.expr, exponent: float) -> ast.expr:
        # small whole powers are products, as tensors' are
        if exponent == 0.5:
            return self._apply(node, pointwise.sqrt, [base])
        if not float(exponent).is_integer() or not 0 < abs(exponent) <= _LARGEST_POWER:
            return self._apply(node, pointwise.pow, [base, ast.Constant(exponent)])
        if exponent < 0:
            return self._apply(node, pointwise.reciprocal, [self._atom(self._power(node, base, -exponent))])
        if exponent == 1:
            return base
        if exponent % 2:
            return self._binary(node, ast.Mult(), self._atom(self._power(node, base, exponent - 1)), base)
        return self._apply(node, pointwise.square, [self._atom(self._power(node, base, exponent // 2))])

    def _apply(self, node: ast.expr, op: Pointwise, arguments: list[ast.expr]) -> ast.expr:
        if len(arguments) != op.arity:
            self._refuse(node, f"{op.name} takes {op.arity} operands, not {len(arguments)}")
        if not set(FLOATS) <= set(op.dtypes):
            self._refuse(node, f"{op.name} is not for floating point numbers")
        if op is pointwise.where_op:
            return ast.IfExp(*arguments)
        return call(self.bind(op.name if op.built_in else op.symbol, op), arguments)

    def _apply_compiled(self, node: ast.Call, function: Any) -> ast.expr:
        arguments = self._operands(node, node.args, node.keywords)
        for k, a in enumerate(arguments):
            if isinstance(a, ast.Constant):
                arguments[k] = as_argument(a.value, self.names)
        part = Compiled(function)
        self.compiled.append(function.__name__)
        return call(self.bind(part.name, part), arguments)

    def bind(self, name: str, value: Any) -> str:
        """Have a name of the translated text stand for a value."""
        self.names.setdefault(name, value)
        return name

    def _refuse(self, node: ast.AST, problem: str) -> Any:
        raise TypeError(f"{self.name}: '{ast.unparse(node)}' cannot be used here: {problem}")


# pieces of syntax trees


def constant(value: float, names: dict[str, Any]) -> ast.expr:
    """A number, which takes the type of the kernel."""
    if value == value:
        return ast.Constant(value)
    names["nan"] = value
    return ast.Name("nan", ast.Load())


def as_argument(value: float, names: dict[str, Any]) -> ast.expr:
    """A number as a compiled function gets it: an integer stays one."""
    if isinstance(value, bool) or not isinstance(value, int):
        return constant(value, names)
    name = f"int_{value}".replace("-", "minus_")
    names[name] = value
    return ast.Name(name, ast.Load())


def assignment(name: str, value: ast.expr) -> ast.Assign:
    """``name = value``."""
    return ast.Assign([ast.Name(name, ast.Store())], value)


def call(name: str, arguments: Sequence[ast.expr]) -> ast.Call:
    """``name(*arguments)``."""
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def negative(node: ast.expr) -> ast.expr:
    """``-node``."""
    if isinstance(node, ast.Constant):
        return ast.Constant(-node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return node.operand
    return ast.UnaryOp(ast.USub(), node)


def text_of(name: str, parameters: Sequence[str], statements: Sequence[ast.stmt], results: Sequence[ast.expr]) -> str:
    """The text of a declared function."""
    returned = results[0] if len(results) == 1 else ast.Tuple(list(results), ast.Load())
    lines = [ast.unparse(ast.fix_missing_locations(s)) for s in [*statements, ast.Return(returned)]]
    return f"def {name}({', '.join(parameters)}):\n" + "".join(f"    {line}\n" for line in lines)
