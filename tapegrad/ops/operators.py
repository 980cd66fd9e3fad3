"""Python's operators and NumPy's ufuncs on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import REVERSED
from tapegrad.ops import pointwise as pw
from tapegrad.ops._operands import operand
from tapegrad.ops._pointwise import Pointwise, updating
from tapegrad.ops._rule import PUBLIC, built_in_ops
from tapegrad.ops.arithmetic import add_bools, floor_divide, mul_bools, pow, pow_in_place, remainder, sub
from tapegrad.ops.comparing import bitwise_not
from tapegrad.tensor import Tensor

_S = rt.S
_new = object.__new__


def _operator(op: Pointwise, call: Callable | None = None) -> Callable:
    code = op.code
    general = call or op

    def method(self: Tensor, other: Any) -> Tensor:
        kind = type(other)
        if kind is Tensor:
            k = rt.record(_S, code, self._id, other._id, 0)
        elif kind is float or kind is int:
            k = rt.record_scalar(_S, code, self._id, other)
        else:
            k = 0
        if k > 0:
            t = _new(Tensor)
            t._id = k
            return t
        other = operand(other)
        return NotImplemented if other is None else general(self, other)

    return method


def _reflected(op: Pointwise, call: Callable | None = None) -> Callable:
    code = op.code | REVERSED
    general = call or op

    def method(self: Tensor, other: Any) -> Tensor:
        kind = type(other)
        if kind is float or kind is int:
            k = rt.record_scalar(_S, code, self._id, other)
            if k > 0:
                t = _new(Tensor)
                t._id = k
                return t
        other = operand(other)
        return NotImplemented if other is None else general(other, self)

    return method


_OPERATORS: dict[str, tuple[Pointwise, Callable | None]] = {
    "add": (pw.add, add_bools),
    "sub": (pw.sub, sub),
    "mul": (pw.mul, mul_bools),
    "truediv": (pw.true_divide, None),
    "floordiv": (pw.floor_divide, floor_divide),
    "mod": (pw.remainder, remainder),
    "and": (pw.bitwise_and, None),
    "or": (pw.bitwise_or, None),
    "xor": (pw.bitwise_xor, None),
    "lshift": (pw.bitwise_left_shift, None),
    "rshift": (pw.bitwise_right_shift, None),
}
for _name, (_op, _call) in _OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _operator(_op, _call))
    setattr(Tensor, f"__r{_name}__", _reflected(_op, _call))
    setattr(Tensor, f"__i{_name}__", updating(_op, _call if _name in ("add", "mul") else None))
for _name, _op in (("lt", pw.lt), ("le", pw.le), ("gt", pw.gt), ("ge", pw.ge), ("eq", pw.eq), ("ne", pw.ne)):
    setattr(Tensor, f"__{_name}__", _operator(_op))


def _power(self: Tensor, exponent: Any) -> Tensor:
    if type(exponent) is int and exponent == 2:
        k = rt.record(_S, pw.square.code, self._id, 0, 0)
        if k > 0:
            t = _new(Tensor)
            t._id = k
            return t
    exponent = operand(exponent)
    return NotImplemented if exponent is None else pow(self, exponent)


def _reflected_power(self: Tensor, base: Any) -> Tensor:
    base = operand(base)
    return NotImplemented if base is None else pow(base, self)


Tensor.__pow__ = _power
Tensor.__rpow__ = _reflected_power
Tensor.__ipow__ = pow_in_place
Tensor.__neg__ = Tensor.neg
Tensor.__pos__ = lambda self: pw.positive(self)
Tensor.__abs__ = Tensor.abs
Tensor.__invert__ = lambda self: bitwise_not(self)
Tensor.__array_priority__ = 1000

_UFUNCS = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "power": "pow",
    "negative": "neg",
    "absolute": "abs",
    "equal": "eq",
    "not_equal": "ne",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arctan2": "atan2",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "invert": "bitwise_not",
    "left_shift": "bitwise_left_shift",
    "right_shift": "bitwise_right_shift",
    "rint": "round",
}


def _array_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **named: Any) -> Any:
    # NumPy's ufuncs on tensors are tapegrad's ops where there is one
    function = PUBLIC.get(_UFUNCS.get(ufunc.__name__, ufunc.__name__))
    if method == "__call__" and function is not None and not named:
        operands = [operand(x) for x in inputs]
        if any(o is None for o in operands):
            return NotImplemented
        return function(*operands)
    arrays = [x.numpy() if isinstance(x, Tensor) else x for x in inputs]
    return getattr(ufunc, method)(*arrays, **named)


Tensor.__array_ufunc__ = _array_ufunc


def install_native_methods() -> None:
    """Let operators and unary methods run without a Python frame (see engine/native.py)."""
    from tapegrad.engine import native

    plain = ("add", "sub", "mul", "truediv", "lt", "le", "gt", "ge", "eq", "ne")
    ops = {name: op for name, (op, _) in _OPERATORS.items()} | {
        n: getattr(pw, n) for n in ("lt", "le", "gt", "ge", "eq", "ne")
    }
    binary = {f"__{name}__": ops[name].code for name in plain}
    binary |= {f"__r{name}__": ops[name].code | REVERSED for name in ("add", "sub", "mul", "truediv")}
    declared = [op for op in built_in_ops() if isinstance(op, Pointwise) and op.arity == 1]
    unary = {op.name: op.code for op in declared if PUBLIC.get(op.name) is op}
    native.install(Tensor, binary, unary | {"__neg__": pw.neg.code, "__abs__": pw.abs.code})
