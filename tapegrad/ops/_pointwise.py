"""Pointwise ops: kernels, derivatives, calls and methods from a scalar expression and its partials."""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import numba

from tapegrad import dtypes
from tapegrad.engine import structs, vecmath
from tapegrad.engine.kernels import build_kernel
from tapegrad.engine.loops import environment, forward_source, reverse_source
from tapegrad.engine.runtime import rt
from tapegrad.ops import _source
from tapegrad.ops._operands import cast, check_operand, constant, operand, result_type
from tapegrad.ops._rule import FLOATS, PUBLIC, Domain, Op
from tapegrad.tensor import Tensor, wrap

_S = rt.S


def scalar_environment(function: Callable, dtype: int) -> dict[str, Any]:
    """The global names of a declared body when it is compiled for one dtype: ops become scalar functions, `T` the type."""
    real = getattr(numba.types, dtypes.ALL[dtype].name if dtype != dtypes.bool.code else "uint8")
    names: dict[str, Any] = {"__name__": __name__, "T": real, "internal_scalar": structs.internal_scalar}
    if {"lgamma", "digamma"} & set(function.__code__.co_names):
        vecmath.bind_symbols()  # SciPy's functions by address, also needed to load cached code
    for name, value in _source.globals_used(function).items():
        names[name] = value.scalar(dtype) if hasattr(value, "scalar") else value
    return names


class Pointwise(Op):
    """An op declared by a scalar expression, with one to three inputs.

    Args:
        domain: where to test it.
        reference: what to compare it with.
        dtypes: those it computes in; others are promoted to the default floating dtype.
        out: dtype of the result, None for that of the inputs.
        grad_name: name of its `grad_fn`.
        cost: of one element, in quarter nanoseconds.
        method: whether tensors have it as a method, and in place with a trailing underscore.
        public: whether it is a function of the package.
        select: the first input is a bool that chooses between the others.
        same_on_integers: integers are their own result.
        differentiable: False for a floating op that is declared without a derivative on purpose.
    """

    def __init__(
        self,
        function: Callable,
        *,
        domain: Domain,
        reference: Any,
        dtypes: Sequence[dtypes.dtype] = FLOATS,
        out: dtypes.dtype | None = None,
        grad_name: str | None = None,
        cost: int = 4,
        method: bool = True,
        public: bool = True,
        select: bool = False,
        same_on_integers: bool = False,
        differentiable: bool = True,
    ) -> None:
        super().__init__(function, structs.SELECT if select else structs.POINTWISE, grad_name, reference)
        self.domain = domain
        self.dtypes = tuple(dtypes)
        self.out = out
        self.arity = len(self.parameters)
        self.same_on_integers = same_on_integers
        self.differentiable = differentiable
        self._scalars: dict[int, Any] = {}
        self._uses: dict[int, list[str]] = {}
        row = rt.ops[self.code]
        row["cost"] = cost
        row["inputs"] = self.arity
        row["dtypes"] = sum(1 << d.code for d in self.dtypes)
        if out is not None:
            row["out_dtype"] = out.code
        if public:
            PUBLIC[self.name] = self
        if method:
            setattr(Tensor, self.name, _method(self))
            if out is None:
                setattr(Tensor, self.name + "_", _in_place_method(self))

    def twin(self, name: str, grad_name: str) -> Pointwise:
        """The same op, not public, under another name and another name of its `grad_fn`."""
        code, function = self.function.__code__, self.function
        twin = types.FunctionType(code, function.__globals__, name)
        twin.__doc__, twin.__module__, twin.__qualname__ = self.__doc__, self.__module__, name
        other = Pointwise(
            twin,
            domain=self.domain,
            reference=self.reference,
            dtypes=self.dtypes,
            out=self.out,
            grad_name=grad_name,
            cost=int(rt.ops[self.code]["cost"]),
            method=False,
            public=False,
            select=self.kind == structs.SELECT,
            same_on_integers=self.same_on_integers,
            differentiable=self.differentiable,
        )
        if self.derivative is not None:
            other.backward(self.derivative)
        return other

    # source

    def input_dtypes(self, dtype: int) -> list[tuple[str, int]]:
        """(name, dtype code) of the inputs of the kernel for a dtype."""
        pairs = [(p, dtype) for p in self.parameters]
        if self.kind == structs.SELECT:
            pairs[0] = (self.parameters[0], dtypes.bool.code)
        return pairs

    def scalar(self, dtype: int) -> Any:
        """The forward as a jitted scalar function."""
        if dtype not in self._scalars:
            name = f"{self.symbol}_scalar_{dtypes.ALL[dtype].name}"
            namespace = scalar_environment(self.function, dtype)
            exec(_source.forward_text(name, self.function), namespace)
            self._scalars[dtype] = namespace[name]
        return self._scalars[dtype]

    def overwrites(self, dtype: int) -> bool:
        """Whether its kernel has a loop of its own for a result written over the first operand; others are ten times slower then."""
        out = dtype if self.out is None else self.out.code
        return int(rt.ops[self.code]["cost"]) <= 2 and self.arity > 1 and self.input_dtypes(dtype)[0][1] == out

    def load_forward(self, dtype: int) -> None:
        """Build or load the forward kernel for a dtype code."""
        self._note_saved(self.parameters)
        out = dtype if self.out is None else self.out.code
        label = f"{self.symbol}_forward_{dtypes.ALL[dtype].name}"
        text = _source.forward_text(f"{label}_scalar", self.function)
        inputs = self.input_dtypes(dtype)
        text += forward_source(label, f"{label}_scalar", inputs, out, self.overwrites(dtype))
        names = environment(**scalar_environment(self.function, dtype))
        rt.forward[self.code, dtype] = self.build(label, text, names, structs.KERNEL_RAISED)

    def load_reverse(self, dtype: int) -> None:
        """Build or load the reverse kernel for a dtype code."""
        assert self.derivative is not None
        out = dtype if self.out is None else self.out.code
        label = f"{self.symbol}_reverse_{dtypes.ALL[dtype].name}"
        uses = self.partial_uses()
        text = ""
        partials = []
        for slot, used in uses.items():
            name = f"{label}_partial{slot}"
            text += _source.partial_text(name, self.derivative, self._positions[slot])
            partials.append((slot, name, used))
        text += reverse_source(label, partials, self.input_dtypes(dtype), out)
        names = environment(**scalar_environment(self.derivative, dtype))
        rt.reverse[self.code, dtype] = self.build(label, text, names, structs.SWEEP_RAISED)

    def build(self, label: str, text: str, names: dict[str, Any], failure: int) -> int:
        """Address of the kernel `label` of a source text; `failure` is what a kernel that can fail answers."""
        return build_kernel(label, text, names)

    def partial_uses(self) -> dict[int, list[str]]:
        """For each differentiable input slot, the names its partial uses; a partial of None is no derivative."""
        if self._uses:
            return self._uses
        assert self.derivative is not None
        uses = self._uses
        direct = 0
        self._positions = {}  # of the partials among the returned expressions, by slot
        expressions = _source.partial_expressions(self.derivative)
        first = 1 if self.kind == structs.SELECT and len(expressions) < self.arity else 0
        for index, expression in enumerate(expressions):
            if isinstance(expression, ast.Constant) and expression.value is None:
                continue
            slot = index + first
            self._positions[slot] = index
            uses[slot] = _source.partial_names(self.derivative, index)
            if isinstance(expression, ast.Name) and expression.id == "g":
                direct |= 1 << slot
        rt.ops[self.code]["direct"] = direct
        return uses

    def reverse(self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]) -> list[Tensor | None]:
        """The declared derivative run over tensors."""
        values = (*kept, g)
        parts: list[Tensor | None] = [None] * self.arity
        for slot, partial, places in self._partials_over_tensors:
            if need >> slot & 1:
                part = partial(*[values[p] for p in places])
                parts[slot] = part if isinstance(part, Tensor) else constant(part, g.dtype)
        return parts

    @functools.cached_property
    def _partials_over_tensors(self) -> list[tuple[int, Callable, list[int]]]:
        # slot, function, and where its arguments stand among the saved values and the adjoint
        from tapegrad.ops._over_tensors import partial_over_tensors

        assert self.derivative is not None
        place = {n: k for k, n in enumerate(self.parameters)} | {"out": 3, "g": 4}
        return [
            (slot, partial_over_tensors(self.derivative, self._positions[slot]), [place[n] for n in used])
            for slot, used in self.partial_uses().items()
        ]

    def named_values(self, g: Tensor, kept: Sequence[Tensor | None]) -> dict[str, Any]:
        """What the declared derivative's parameters are, by name."""
        return dict(zip([*self.parameters, "out"], [*kept[: self.arity], kept[3]], strict=True)) | {"g": g}

    # calls

    def __call__(self, *args: Any, out: Tensor | None = None, **named: Any) -> Tensor:
        if self.arity == len(args) == 1 and out is None and not named and type(args[0]) is Tensor:
            k = rt.record(_S, self.code, args[0]._id, 0, 0)
            if k > 0:
                return wrap(k)
        if named:
            args = self._bind(args, named)
        if len(args) != self.arity:
            raise TypeError(f"{self.name}() takes {self.arity} argument{'s' * (self.arity > 1)} but got {len(args)}")
        result = self._call(args)
        if out is not None:
            return out.copy_(result)  # type: ignore[attr-defined]
        return result

    def _bind(self, args: tuple, named: dict[str, Any]) -> tuple:
        slots = {"input": 0, "self": 0, "other": 1, "exponent": 1, "value": 1}
        values = dict(enumerate(args))
        for name, value in named.items():
            slot = self.parameters.index(name) if name in self.parameters else slots.get(name, -1)
            if not 0 <= slot < self.arity or slot in values:
                raise TypeError(f"{self.name}() got an unexpected keyword argument '{name}'")
            values[slot] = value
        return tuple(values[k] for k in sorted(values))

    def _call(self, args: Sequence[Any]) -> Tensor:
        k = 0
        first = args[0]
        if self.arity == 2 and type(first) is Tensor and type(args[1]) is Tensor:
            k = rt.record(_S, self.code, first._id, args[1]._id, 0)
        if k <= 0:
            if self.same_on_integers and type(first) is Tensor and first.dtype.category == 1:
                return first.clone()
            k = self.run(self.promote(args))
        return wrap(k)

    def promote(self, args: Sequence[Any], common: dtypes.dtype | None = None) -> list[Tensor]:
        """Tensors of one dtype the op computes in, from tensors and numbers."""
        chosen = args[1:] if self.kind == structs.SELECT else args
        if not any(isinstance(a, Tensor) for a in args):
            raise TypeError(
                f"{self.name}(): argument 'input' (position 1) must be Tensor, not {type(args[0]).__name__}"
            )
        for position, a in enumerate(args):
            check_operand(self.name, str(position + 1), a)
        common = common or result_type(*chosen)
        if common not in self.dtypes:
            common = self.computed_in(common)
        tensors = [cast(a, common) if isinstance(a, Tensor) else constant(a, common) for a in chosen]
        if self.kind == structs.SELECT:
            condition = args[0] if isinstance(args[0], Tensor) else constant(args[0], dtypes.bool)
            if condition.dtype is not dtypes.bool:
                if condition.dtype is not dtypes.uint8:
                    raise RuntimeError(
                        f"{self.name} expected condition to be a boolean tensor, but got {condition.dtype}"
                    )
                condition = cast(condition, dtypes.bool)
            tensors.insert(0, condition)
        return tensors

    def computed_in(self, common: dtypes.dtype) -> dtypes.dtype:
        """The dtype to compute in for operands of a dtype the op has no kernel for.

        Raises:
            RuntimeError: if there is none.
        """
        if not common.is_floating_point and self.dtypes == FLOATS:
            return dtypes.get_default_dtype()
        raise NotImplementedError(f"\"{self.name}\" not implemented for '{common.tensor_type}'")

    def run(self, tensors: Sequence[Tensor], options: int = 0) -> int:
        """Record the op on tensors of one dtype; the id of the result."""
        while True:
            ids = [t._id for t in tensors] + [0, 0]
            k = rt.record(_S, self.code | options, ids[0], ids[1], ids[2])
            if k > 0:
                return k
            self.refuse(k, tensors)

    def in_place(self, target: Tensor, *others: Any) -> Tensor:
        """Write the result into the first operand."""
        k = 0
        if not others or (len(others) == 1 and type(others[0]) is Tensor):
            k = rt.record(_S, self.code | structs.IN_PLACE, target._id, others[0]._id if others else 0, 0)
        elif type(others[0]) is Tensor and type(others[-1]) is float and self.arity == len(others) + 1 == 3:
            # a tensor and a factor, as optimisers write
            dtype = target.dtype
            if dtype.is_floating_point and dtype is not dtypes.float16:
                last = constant(others[-1], dtype)
                k = rt.record(_S, self.code | structs.IN_PLACE, target._id, others[0]._id, last._id)
        if k <= 0:
            from tapegrad.ops._write import write

            return write(self, target, others, k)
        if k != target._id:
            rt.release(_S, target._id)
            target._id = k
        return target


def pointwise(**options: Any) -> Callable[[Callable], Pointwise]:
    """Declare a pointwise op by a scalar expression (see `Pointwise`)."""
    return lambda function: Pointwise(function, **options)


def _method(op: Pointwise) -> Callable:
    code, record = op.code, rt
    if op.arity == 1:

        def unary(self: Tensor) -> Tensor:
            k = record.record(_S, code, self._id, 0, 0)
            return wrap(k) if k > 0 else op._call((self,))

        method: Callable = unary
    else:

        def general(self: Tensor, *others: Any, **named: Any) -> Tensor:
            return op(self, *others, **named)

        method = general
    method.__name__ = op.name
    method.__qualname__ = f"Tensor.{op.name}"
    method.__doc__ = op.__doc__
    return method


def _in_place_method(op: Pointwise) -> Callable:
    def method(self: Tensor, *others: Any, **named: Any) -> Tensor:
        if named:
            others = op._bind((self, *others), named)[1:]
        if len(others) != op.arity - 1:
            raise TypeError(f"{op.name}_() takes {op.arity - 1} positional arguments but {len(others)} were given")
        return op.in_place(self, *others)

    method.__name__ = op.name + "_"
    method.__qualname__ = f"Tensor.{op.name}_"
    method.__doc__ = f"In-place version of `{op.name}`."
    return method


def updating(op: Pointwise, call: Callable | None = None) -> Callable:
    """The operator that writes its result into its left operand; for two bools, the result of `call`."""

    def method(self: Tensor, other: Any) -> Tensor:
        other = operand(other)
        if other is None:
            return NotImplemented
        if call is not None and result_type(self, other) is dtypes.bool and self.dtype is dtypes.bool:
            return self.copy_(call(self, other))  # type: ignore[attr-defined]
        return op.in_place(self, other)

    return method
