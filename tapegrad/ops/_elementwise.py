"""Pointwise operations that users declare by one scalar expression."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numba
import numpy as np
from numba.core.errors import NumbaError

from tapegrad.engine.kernels import build_kernel
from tapegrad.engine.runtime import rt
from tapegrad.engine.usercode import identifier
from tapegrad.grad_mode import is_grad_enabled
from tapegrad.ops import _source
from tapegrad.ops._derive import Derivation
from tapegrad.ops._pointwise import Pointwise, scalar_environment
from tapegrad.ops._translate import Translation, as_argument, call, source_tree, text_of
from tapegrad.ops._user_parts import Compiled
from tapegrad.tensor import Tensor

_INPUTS = ("x", "y", "z")
_RESERVED = ("g", "out")

# quarter nanoseconds of one element, for what has no declared cost
_COST_OF_ARITHMETIC, _COST_OF_COMPILED = 1, 40

# a kernel that can fail: exceptions end here, and are raised by calling the user's function again
_FALLIBLE = """
{name}_work = internal({name}_work)

def {name}(S, row, start, stop):
    try:
        {name}_work(S, row, start, stop)
    except Exception:
        state_at(S).failure = FAILURE
"""

_declared: dict[tuple, UserOp] = {}
_declaring = threading.RLock()


class UserOp(Pointwise):
    """A user's pointwise op in its declared form.

    Args:
        forward: the declared function.
        name: what the user calls it.
        symbol: what its compiled code is called.
        cost: of one element, in quarter nanoseconds.
        fallible: whether its code may raise an exception.
    """

    built_in = False

    def __init__(self, forward: Callable, name: str, symbol: str, cost: int, fallible: bool) -> None:
        super().__init__(forward, domain=None, reference=None, cost=cost, method=False, public=False)
        self.name = self.__name__ = name
        self.symbol = symbol
        self.fallible = fallible
        self._again: dict[str, Callable] = {}  # its scalar functions, to be called from Python

    def build(self, label: str, text: str, names: dict[str, Any], failure: int) -> int:
        """Address of the kernel `label` of a source text."""
        if self.fallible:
            text = text.replace(f"def {label}(S, ", f"def {label}_work(S, ") + _FALLIBLE.format(name=label)
            names = names | {"FAILURE": failure}
        try:
            return build_kernel(label, text, names)
        except NumbaError as error:
            raise TypeError(f"{self.name}: the expression cannot be compiled: {error}") from error

    def raise_again(self, tensors: Sequence[Tensor], shape: Sequence[int]) -> NoReturn:
        """Raise the exception that compiled code met."""
        make = functools.partial(_source.forward_text, function=self.function)
        self._run(f"{self.symbol}_again", make, self.function, tensors)
        super().raise_again(tensors, shape)

    def raise_again_in_reverse(
        self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]
    ) -> NoReturn:
        """Raise the exception that the compiled derivative met."""
        assert self.derivative is not None
        values = self.named_values(g, kept)
        for slot, used in self.partial_uses().items():
            if need >> slot & 1:
                make = functools.partial(_source.partial_text, function=self.derivative, index=self._positions[slot])
                self._run(f"{self.symbol}_again{slot}", make, self.derivative, [values[n] for n in used])
        super().raise_again_in_reverse(g, need, kept, words)

    def _run(self, name: str, make: Callable[[str], str], function: Callable, operands: Sequence[Any]) -> None:
        dtype = operands[0].dtype
        name += dtype.name
        if name not in self._again:
            names = scalar_environment(function, dtype.code) | {"internal_scalar": numba.njit(error_model="numpy")}
            exec(make(name), names)
            self._again[name] = names[name]
        arrays = np.broadcast_arrays(*(t.detach().numpy() for t in operands))
        for values in zip(*(a.flat for a in arrays), strict=True):
            self._again[name](*values)


class _Underived(UserOp):
    # a compiled function of the user's in the derivative of another op, run over tensors

    def _note_saved(self, inputs: Sequence[str]) -> None:
        row = rt.ops[self.code]
        row["differentiable"] = (1 << self.arity) - 1

    def _refuse_derivative(self) -> NoReturn:
        raise RuntimeError(
            f"the derivative of the @njit function {self.name} is not known, so what was declared with it cannot be differentiated "
            "again; make it an operation with a derivative of its own (tapegrad.autograd.elementwise)"
        )

    def load_reverse(self, dtype: int) -> None:
        """Refuse: there is no derivative."""
        self._refuse_derivative()

    def reverse(self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]) -> NoReturn:
        """Refuse: there is no derivative."""
        self._refuse_derivative()


def _declare(
    kind: type[UserOp],
    name: str,
    forward: str,
    backward: str,
    names: tuple[dict[str, Any], dict[str, Any]],
    cost: int,
    doc: str,
) -> UserOp:
    """The op with these texts, which is the one there is if they were declared before."""
    key = (kind, name, forward, backward)
    with _declaring:
        if key not in _declared:
            digest = hashlib.sha256("\n".join(key[1:]).encode()).hexdigest()[:16]
            function = _source.function_of(forward, names[0])
            function.__doc__, function.__name__ = doc, name
            fallible = any(getattr(part, "fallible", False) for both in names for part in both.values())
            op = _declared[key] = kind(function, name, f"{identifier(name)}_{digest}", cost, fallible)
            if backward:
                op.backward(_source.function_of(backward, names[1]))
        return _declared[key]


def apply_compiled(part: Compiled, values: Sequence[Any]) -> Tensor:
    """A user's compiled function applied to tensors and numbers.

    Raises:
        RuntimeError: if more than three are tensors.
    """
    tensors = [v for v in values if isinstance(v, Tensor)]
    if len(tensors) > len(_INPUTS):
        raise RuntimeError(
            f"the @njit function {part.function.__name__} is called with {len(tensors)} tensors in a derivative that is recorded; "
            f"it can be with {len(_INPUTS)}"
        )
    names: dict[str, Any] = {part.name: part}
    inputs = iter(_INPUTS)
    arguments: list[ast.expr] = []
    for v in values:
        if isinstance(v, Tensor):
            arguments.append(ast.Name(next(inputs), ast.Load()))
        else:
            arguments.append(as_argument(v, names))
    text = text_of("forward", _INPUTS[: len(tensors)], [], [call(part.name, arguments)])
    title = part.function.__name__
    op = _declare(_Underived, title, text, "", (names, {}), _COST_OF_COMPILED, f"The @njit function {title}.")
    return op(*tensors)


class Elementwise:
    """A user's pointwise operation, as `elementwise` makes it.

    Args:
        function: of one to three scalars.
    """

    def __init__(self, function: Callable) -> None:
        source_tree(function)
        functools.update_wrapper(self, function)
        self._function = function
        self._signature = inspect.signature(function)
        self._inputs = _checked_inputs(function.__name__, self._signature)
        self._derivative: Callable | None = None
        self._op: UserOp | None = None
        self._constant: list[int] = []
        self._busy = False
        with contextlib.suppress(NameError, AttributeError):  # of what is defined further down
            self._translated()

    def __repr__(self) -> str:
        return f"<elementwise operation {self.__name__}>"

    def backward(self, function: Callable) -> Callable:
        """Declare the derivative, in place of the one that follows from the expression.

        Args:
            function: its parameters, among ``g`` (the derivative by the result), ``out`` (the result) and the names of the inputs, say
                what is saved; it returns one scalar expression an input, None for an input that is never differentiated by.

        Returns:
            The function.

        Raises:
            TypeError: for other parameters, or another number of results.
        """
        source_tree(function)
        for name in inspect.signature(function).parameters:
            if name not in (*_RESERVED, *self._inputs):
                known = ", ".join((*_RESERVED, *self._inputs))
                raise TypeError(f"{self.__name__}.backward: parameter '{name}' is none of {known}")
        self._derivative = function
        self._op = None
        with contextlib.suppress(NameError, AttributeError):
            self._translated_derivative()
        return function

    def _translated(self) -> Translation:
        made = Translation(self.__name__, self._function, self._inputs)
        if len(made.results) != 1 or made.results[0] is None:
            raise TypeError(f"{self.__name__}: the function has to return one scalar expression")
        return made

    def _translated_derivative(self) -> Translation:
        assert self._derivative is not None
        parameters = inspect.signature(self._derivative).parameters
        names = {p: self._inputs.get(p, p) for p in parameters}
        made = Translation(f"{self.__name__}.backward", self._derivative, names)
        if len(made.results) != len(self._inputs):
            raise TypeError(
                f"{self.__name__}.backward returns {len(made.results)} partials for {len(self._inputs)} inputs; give one an input, "
                "None for one that is never differentiated by"
            )
        return made

    def declared(self) -> UserOp:
        """The op in its declared form.

        Raises:
            TypeError: if its derivative is neither given nor follows from the expression.
        """
        with _declaring:
            if self._op is None:
                if self._busy:
                    raise TypeError(f"{self.__name__}: the function calls itself")
                self._busy = True
                try:
                    self._op = self._declare()
                finally:
                    self._busy = False
        return self._op

    def _declare(self) -> UserOp:
        name = self.__name__
        forward = self._translated()
        inputs = list(self._inputs.values())
        made: Translation | Derivation
        if self._derivative is not None:
            made = self._translated_derivative()
            parameters = list(made.inputs.values())
            partials = [ast.Constant(None) if r is None else r for r in made.results]
        elif forward.compiled:
            raise TypeError(
                f"{name} calls the @njit function {forward.compiled[0]}, whose derivative is not known; declare the derivative with "
                f"@{name}.backward"
            )
        else:
            made = Derivation(forward, inputs)
            parameters = ["g", *inputs, "out"]
            partials = made.partials
        backward = text_of("backward", parameters, made.statements, partials)
        (result,) = forward.results
        assert result is not None
        text = text_of("forward", inputs, forward.statements, [result])
        doc = self.__doc__ or f"The user's operation {name}."
        op = _declare(UserOp, name, text, backward, (forward.names, made.names), _cost_of(text, forward.names), doc)
        self._constant = [k for k in range(len(inputs)) if k not in op.partial_uses()]
        return op

    def __call__(self, *args: Any, out: Tensor | None = None, **named: Any) -> Tensor:
        op = self._op or self.declared()
        if named or len(args) != op.arity:
            args = self._arguments(args, named)
        for k in self._constant:
            if isinstance(args[k], Tensor) and args[k].requires_grad and is_grad_enabled():
                raise RuntimeError(
                    f"{self.__name__}: argument '{list(self._inputs)[k]}' requires grad, but its partial is declared as None; "
                    "detach() it, or declare the partial"
                )
        return op(*args, out=out)

    def _arguments(self, args: Sequence[Any], named: dict[str, Any]) -> tuple[Any, ...]:
        try:
            bound = self._signature.bind(*args, **named)
        except TypeError as error:
            raise TypeError(f"{self.__name__}(): {error}") from None
        bound.apply_defaults()
        return bound.args


def _checked_inputs(name: str, signature: inspect.Signature) -> dict[str, str]:
    # the names of the inputs, with those they get in the declaration
    parameters = list(signature.parameters.values())
    if not 1 <= len(parameters) <= len(_INPUTS):
        raise TypeError(f"{name} has {len(parameters)} inputs; an elementwise operation has 1 to {len(_INPUTS)}")
    for p in parameters:
        if p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            raise TypeError(f"{name}: input '{p}' must be one that is given by position")
        if p.name in _RESERVED:
            meaning = "the derivative by the result" if p.name == "g" else "the result"
            raise TypeError(f"{name}: an input cannot be called '{p.name}', which is {meaning}; choose another name")
    return {p.name: n for p, n in zip(parameters, _INPUTS, strict=False)}


def _cost_of(text: str, names: dict[str, Any]) -> int:
    # a guess at the work of one element, from what is computed
    cost = 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            op = names[node.func.id]  # type: ignore[attr-defined]
            cost += int(rt.ops[op.code]["cost"]) if isinstance(op, Pointwise) else _COST_OF_COMPILED
        elif isinstance(node, ast.BinOp | ast.UnaryOp | ast.IfExp | ast.Compare):
            cost += _COST_OF_ARITHMETIC
    return max(cost, 2)


def elementwise(function: Callable) -> Elementwise:
    r"""Make a function of one to three scalars an operation on tensors.

    The function is one scalar expression: arithmetic, powers, conditional expressions, comparisons, functions of tapegrad and `math`,
    other operations declared like this one, and functions compiled with `numba.njit`; variables may be assigned before the return.
    The operation broadcasts and promotes its operands as `tapegrad.add` does, and runs as one compiled loop over all of them, in
    float32 or float64, with no call into Python. Its derivative follows from the expression, operation by operation,

    .. math:: \bar u = \sum_{v \text{ computed from } u} \bar v \, \frac{\partial v}{\partial u},

    unless it is declared with `backward`, which it must be if the function calls one compiled with `numba.njit`. It can be
    differentiated any number of times with ``create_graph=True``.

    Global names and variables of enclosing functions are read once, as Numba reads them: what varies has to be an input.

    Args:
        function: one to three inputs, which may have numbers as defaults; its source must be available.

    Returns:
        The operation. It takes tensors and numbers and the keyword ``out``, and gives a tensor whose `grad_fn` is named after the
        function.

    Raises:
        TypeError: for what is no scalar expression, for a function whose source cannot be had, or, at the first call, for a
            derivative that is neither declared nor follows.

    >>> import tapegrad as tg
    >>> @tg.autograd.elementwise
    ... def softsquare(x, c):
    ...     return x * x / (c + abs(x))
    >>> x = tg.tensor([-1.0, 0.0, 3.0], requires_grad=True)
    >>> y = softsquare(x, 1.0)
    >>> y
    tensor([0.5000, 0.0000, 2.2500], grad_fn=<SoftsquareBackward0>)
    >>> y.sum().backward()
    >>> x.grad
    tensor([-0.7500,  0.0000,  0.9375])
    """
    return Elementwise(function)
