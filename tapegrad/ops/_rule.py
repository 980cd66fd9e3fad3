"""One declaration an op: from it follow the opcode, kernels for every dtype, the public function and method, `grad_fn`'s name,
what is saved, and the tests."""

from __future__ import annotations

import functools
import inspect
import struct
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numba

from tapegrad import dtypes, errors
from tapegrad.engine import structs, vecmath
from tapegrad.engine.kernels import build_kernel
from tapegrad.engine.loops import environment, forward_source, reverse_source
from tapegrad.engine.runtime import rt
from tapegrad.ops import _source
from tapegrad.tensor import Tensor, wrap

_S = rt.S
FLOATS = (dtypes.float32, dtypes.float64)
INTEGERS = (dtypes.int8, dtypes.int16, dtypes.int32, dtypes.int64, dtypes.uint8)
NUMBERS = FLOATS + INTEGERS
ALL = (*NUMBERS, dtypes.bool)
DISCRETE = (*INTEGERS, dtypes.bool)

# every opcode, in order of declaration, the users' among them; the first rows of the kernel table belong to no op
OPS: list[Op | None] = [None] * structs.FIRST_OPCODE
PUBLIC: dict[str, Callable[..., Any]] = {}
_numbering = threading.Lock()


def built_in_ops() -> list[Op]:
    """The library's own ops, in order of declaration."""
    return [op for op in OPS if op is not None and op.built_in]


class Domain:
    """Where to test an op: an interval for each tensor input, and points to keep away from."""

    def __init__(self, *intervals: tuple[float, float], avoid: Sequence[float] = ()) -> None:
        self.intervals = intervals
        self.avoid = tuple(avoid)


def Real(low: float = -4.0, high: float = 4.0, avoid: Sequence[float] = ()) -> Domain:
    """A domain with one interval for every input."""
    return Domain((low, high), avoid=avoid)


class Op:
    """What all kinds of op share: a name, an opcode, and its row of the engine's op table.

    Args:
        function: the declaration; its docstring is the op's documentation.
        kind: how the interpreter treats it (see engine/structs.py).
        grad_name: name of its `grad_fn`.
        reference: ``"module:function"`` it must agree with, or a callable on NumPy arrays.
    """

    built_in = True

    def __init__(self, function: Callable, kind: int, grad_name: str | None, reference: Any) -> None:
        if not function.__doc__:
            raise TypeError(f"op {function.__name__} needs a docstring")
        self.__name__ = self.name = function.__name__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function
        self.function = function
        self.parameters = list(inspect.signature(function).parameters)
        self.kind = kind
        self.grad_name = grad_name or "".join(p.capitalize() for p in self.name.split("_")) + "Backward0"
        self.reference = reference
        self.covered_by = ""  # the public function whose tests cover an op without samples of its own
        self.derivative: Callable | None = None
        self.symbol = self.name  # of its compiled code, which must differ from all other code's
        with _numbering:
            self.code = len(OPS)
            if self.code == structs.MAX_OPS:
                raise RuntimeError(
                    errors.TOO_MANY_OPS.format(name=self.name, number=self.code + 1, most=structs.MAX_OPS)
                )
            OPS.append(self)
        row = rt.ops[self.code]
        row["kind"] = kind
        row["out_dtype"] = structs.SAME_DTYPE
        row["cost"] = 4

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def backward(self, function: Callable) -> Callable:
        """Declare the derivative: parameters named ``g``, ``out``, or as the op's inputs say what is saved."""
        self.derivative = function
        return function

    def load_forward(self, dtype: int) -> None:
        """Build or load the forward kernel for a dtype code."""
        raise NotImplementedError

    def load_reverse(self, dtype: int) -> None:
        """Build or load the reverse kernel for a dtype code."""
        raise NotImplementedError

    def reverse(self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]) -> Sequence[Any]:
        """The derivative over tensors: for each input its part of the adjoint.

        A part has the input's shape, or one that broadcasts to or from it, or holds as many elements in the same order. It is
        made of recorded ops, so that it can be differentiated again by `g` and by what is kept.

        Args:
            g: adjoint of the result.
            need: mask of the inputs that want their part; bit 3 stands for all further ones.
            kept: the three inputs and the result, None where not saved.
            words: the attribute block after the further inputs.
        """
        raise NotImplementedError(f"derivative of {self.name} over tensors")

    def raise_again(self, tensors: Sequence[Tensor], shape: Sequence[int]) -> NoReturn:
        """Raise the exception that compiled code met, by running it again where Python sees it.

        Args:
            tensors: the operands.
            shape: of the result, where the call worked it out.
        """
        raise RuntimeError(f"{self.name}: compiled code raised an exception, and did not when it was run again")

    def raise_again_in_reverse(
        self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]
    ) -> NoReturn:
        """`raise_again` for the derivative, with the arguments of `reverse`."""
        raise RuntimeError(f"{self.grad_name}: compiled code raised an exception, and did not when it was run again")

    def refuse(self, answer: int, tensors: Sequence[Tensor], shape: Sequence[int] = ()) -> None:
        """Mend what stopped an entry point, so that it can be called again, or raise.

        Args:
            answer: the negative answer.
            tensors: the operands.
            shape: of the result, where the call worked it out.
        """
        if answer == structs.NEEDS_KERNEL:
            key = tensors[-1] if self.kind == structs.SELECT else tensors[0]
            self.load_forward(key.dtype.code)
        elif answer == structs.NEEDS_PARALLEL:
            rt.load_parallel_driver()
        elif answer == structs.STALE_VIEW:
            for t in tensors:
                t._refresh()
        elif answer == structs.NEEDS_NATIVE:
            from tapegrad.ops.arithmetic import install_native_methods

            install_native_methods()
        elif answer == structs.KERNEL_RAISED:
            self.raise_again(tensors, shape)
        else:
            self._raise(answer, tensors)

    def _raise(self, answer: int, tensors: Sequence[Tensor]) -> None:
        shapes = [list(t.shape) for t in tensors]
        if answer == structs.NOT_BROADCASTABLE:
            raise RuntimeError(broadcast_problem(self.name, [t.shape for t in tensors]))
        if answer == structs.WRONG_SHAPE:
            raise RuntimeError(
                f"{self.name}_: output with shape {shapes[0]} doesn't match the broadcast shape "
                f"{list(broadcast_shapes(self.name, *[t.shape for t in tensors]))}"
            )
        if answer == structs.UNSUPPORTED_DTYPE:
            raise NotImplementedError(f"\"{self.name}\" not implemented for '{tensors[0].dtype.tensor_type}'")
        if answer == structs.NO_MEMORY:
            raise MemoryError(f"{self.name}: no memory for a result of operands with shapes {shapes}")
        message = {
            structs.LEAF_WRITTEN: errors.LEAF_IN_PLACE,
            structs.NO_GRAD_VIEW_WRITTEN: errors.NO_GRAD_VIEW_WRITTEN,
            structs.SELF_OVERLAP: errors.SELF_OVERLAP,
            structs.PARTIAL_OVERLAP: errors.PARTIAL_OVERLAP,
            structs.INFERENCE_SAVED: errors.INFERENCE_SAVED,
            structs.INFERENCE_WRITTEN: errors.INFERENCE_WRITTEN,
        }[answer]
        raise RuntimeError(message)

    def _note_saved(self, inputs: Sequence[str]) -> None:
        # tell the engine which operands have a derivative and what each combination of wanted ones saves
        row = rt.ops[self.code]
        if self.derivative is None:
            row["differentiable"] = 0
            return
        uses = self.partial_uses()
        row["differentiable"] = sum(1 << slot for slot in uses)
        names = [*inputs, "out"]
        bits = {n: 1 << (3 if n == "out" else k) for k, n in enumerate(names)}
        for need in range(8):
            mask = 0
            for slot, used in uses.items():
                if need >> slot & 1:
                    for n in used:
                        mask |= bits.get(n, 0)
            row["saved"][need] = mask
        self.saves_self = {need: bool(int(row["saved"][need]) & 1) for need in range(8)}

    def partial_uses(self) -> dict[int, list[str]]:
        """For each differentiable input slot, the names its partial uses."""
        raise NotImplementedError


def broadcast_shapes(name: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape all broadcast to.

    Raises:
        RuntimeError: naming the op and the shapes.
    """
    ndim = max((len(s) for s in shapes), default=0)
    result = [1] * ndim
    for shape in shapes:
        for d, n in enumerate(shape, ndim - len(shape)):
            if n != 1:
                if result[d] not in (1, n):
                    raise RuntimeError(broadcast_problem(name, shapes))
                result[d] = n
    return tuple(result)


def broadcast_problem(name: str, shapes: Sequence[Sequence[int]]) -> str:
    """The message for shapes that do not broadcast."""
    shapes = [tuple(s) for s in shapes]
    for k, a in enumerate(shapes):
        for b in shapes[k + 1 :]:
            for d in range(1, min(len(a), len(b)) + 1):
                if a[-d] != b[-d] and a[-d] != 1 and b[-d] != 1:
                    at = max(len(a), len(b)) - d
                    return (
                        f"The size of tensor a ({a[-d]}) must match the size of tensor b ({b[-d]}) at non-singleton dimension "
                        f"{at}: {name} got shapes {', '.join(str(list(s)) for s in shapes)}"
                    )
    return f"{name}: shapes {', '.join(str(list(s)) for s in shapes)} do not broadcast to a tensor that could exist"


def result_type(*operands: Any) -> dtypes.dtype:
    """The dtype that operands promote to: tensors with dimensions before 0-d tensors before Python numbers.

    >>> import tapegrad as tg
    >>> tg.result_type(tg.tensor([1, 2]), 1.0)
    tapegrad.float32
    """
    ranks: list[dtypes.dtype | None] = [None, None, None]
    for operand in operands:
        if isinstance(operand, Tensor):
            rank, d = (0 if operand.ndim else 1), operand.dtype
        else:
            rank = 2
            d = number_dtype(operand)
        seen = ranks[rank]
        ranks[rank] = d if seen is None else dtypes.promote_types(seen, d)
    found = None
    for d in ranks:
        if d is not None and (found is None or d.category > found.category):
            found = d
    assert found is not None
    return found


def number_dtype(value: Any) -> dtypes.dtype:
    """The dtype a Python or NumPy number has as an operand.

    Raises:
        TypeError: if it is not a number.
    """
    if isinstance(value, bool):
        return dtypes.bool
    if isinstance(value, int):
        return dtypes.int64
    if isinstance(value, float):
        return dtypes.get_default_dtype()
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("b", "i", "u", "f") and getattr(value, "shape", None) == ():
        return {"b": dtypes.bool, "f": dtypes.get_default_dtype()}.get(kind, dtypes.int64)
    raise TypeError(f"expected a Tensor or a number, but got {type(value).__name__}")


def constant(value: Any, dtype: dtypes.dtype) -> Tensor:
    """A 0-d tensor for a Python number; the engine keeps recent ones.

    Raises:
        RuntimeError: if an integer does not fit the dtype.
    """
    if dtype.is_floating_point:
        if dtype is dtypes.float16:
            raise RuntimeError("float16 tensors are for storage only; convert with .float() first")
        try:
            number = float(value)
        except OverflowError:
            raise RuntimeError(f"value cannot be converted to type {dtype.name} without overflow: {value}") from None
        bits = struct_bits(number)
    else:
        bits = int(value)
        if not -(1 << 63) <= bits < 1 << 63:
            raise RuntimeError("Overflow when unpacking long long")
        info = (0, 1) if dtype.name == "bool" else (dtypes.iinfo(dtype).min, dtypes.iinfo(dtype).max)
        if not info[0] <= bits <= info[1]:
            raise RuntimeError(f"value cannot be converted to type {dtype.name} without overflow: {value}")
    k = rt.new_constant(_S, bits, dtype.code)
    if k < 0:
        raise MemoryError("no memory for a constant")
    return wrap(k)


def struct_bits(number: float) -> int:
    """The 64 bits of a float as a signed integer."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


def float_of_bits(bits: int) -> float:
    """The float that `struct_bits` gave the bits of."""
    return struct.unpack("<d", struct.pack("<q", bits))[0]


def cast(t: Tensor, dtype: dtypes.dtype) -> Tensor:
    """The tensor in another dtype, through the graph; itself if it has it."""
    if t.dtype is dtype:
        return t
    from tapegrad.ops.convert import convert

    return convert(t, dtype)


def scalar_environment(function: Callable, dtype: int) -> dict[str, Any]:
    """The global names of a declared body when it is compiled for one dtype: ops become scalar functions, `T` the type."""
    real = getattr(numba.types, dtypes.ALL[dtype].name if dtype != dtypes.bool.code else "uint8")
    names: dict[str, Any] = {"__name__": __name__, "T": real, "internal_contract": structs.internal_contract}
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

    def load_forward(self, dtype: int) -> None:
        """Build or load the forward kernel for a dtype code."""
        self._note_saved(self.parameters)
        out = dtype if self.out is None else self.out.code
        label = f"{self.symbol}_forward_{dtypes.ALL[dtype].name}"
        text = _source.forward_text(f"{label}_scalar", self.function)
        inputs = self.input_dtypes(dtype)
        cheap = int(rt.ops[self.code]["cost"]) <= 2 and self.arity > 1 and inputs[0][1] == out
        text += forward_source(label, f"{label}_scalar", inputs, out, cheap)
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
        import ast

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
            if not isinstance(a, Tensor):
                try:
                    number_dtype(a)
                except TypeError:
                    raise TypeError(
                        f"{self.name}(): argument {position + 1} must be Tensor or Number, not {type(a).__name__}"
                    ) from None
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
