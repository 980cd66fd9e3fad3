"""Ops with array kernels of their own: structural ones, and reductions declared by an accumulation."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tapegrad import dtypes
from tapegrad.engine import planned, structs
from tapegrad.engine.kernels import build_kernel, build_typed
from tapegrad.engine.loops import environment, reverse_source
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_TRACED
from tapegrad.metadata import layout_facts
from tapegrad.ops import _source
from tapegrad.ops._operands import float_of_bits, struct_bits
from tapegrad.ops._over_tensors import partial_over_tensors
from tapegrad.ops._pointwise import scalar_environment
from tapegrad.ops._public import export
from tapegrad.ops._rule import Op
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S

# numbers of the calls remembered, by op and arguments, and what a call being worked out has launched
_asked: dict[Any, int] = {}
_FIRST_ASKED = 1 << 32
_launches = threading.local()


# names of inputs that a kernel fills beside its result: places of extremes, what a derivative needs
FILLED = ("places", "shared", "centre", "others", "kept")

_templates: dict[tuple[int, ...], int] = {}


def template(*words: int) -> int:
    """Address of an attribute block that remembered launches copy."""
    block = _templates.get(words)
    if block is None:
        block = _templates[words] = rt.attributes(*words)
    return block


class KernelOp(Op):
    """An op whose declared function checks its arguments, works out the result's shape, and calls `launch`.

    The function's first parameter is the op itself. Its kernel is declared with `forward` as ``kernel(S, row, start, stop)`` over
    the placeholders `P`, `T`, `SIZE` (see engine/kernels.py); its derivative with `backward` over tensors, with parameters
    among ``g``, the names of the inputs given to `launch`, ``out``, ``need`` (the mask of wanted inputs) and ``words`` (the op's own
    attributes); and optionally with `reverse_kernel`, which adds straight into the adjoints.

    Args:
        inputs: names of the tensor inputs, in the order of `launch`.
        samples: argument tuples to test with; a shape stands for a tensor.
        variadic: the first launch argument is any number of tensors.

    Where `remembers` is set, how a call launches depends on the operand's layout and dtype and on the other arguments alone; it is
    then worked out once (see engine/planned.py).
    """

    remembers = False

    def __init__(
        self,
        function: Callable,
        *,
        inputs: Sequence[str],
        reference: Any,
        samples: Sequence[Any] = (),
        grad_name: str | None = None,
        cost: int = 4,
        method: bool = True,
        public: bool = True,
        domain: Any = None,
        placeholders: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(function, structs.PYTHON, grad_name, reference)
        self.inputs = list(inputs)
        self.fills = [k for k, name in enumerate(self.inputs) if name in FILLED]
        self.samples = list(samples)
        self.domain = domain
        self.kernel: Callable | None = None
        self.native: Callable | None = None
        self.placeholders = placeholders or {}
        rt.ops[self.code]["cost"] = cost
        export(self, method=method, public=public)

    def __call__(self, *args: Any, **named: Any) -> Any:
        if not self.remembers or not args or type(args[0]) is not Tensor:
            return self.call(*args, **named)
        x = args[0]
        try:
            plain = len(args) == 1 and not named
            key = self.code if plain else (self.code, args[1:], *map(type, args[1:]), *named.items())
            asked = _asked.get(key)
        except TypeError:  # arguments that cannot be remembered
            return self.call(*args, **named)
        if asked is None:
            if any(isinstance(a, Tensor) for a in (*args[1:], *named.values())):
                return self.call(*args, **named)
            asked = _asked[key] = len(_asked) + _FIRST_ASKED
        k = rt.record_planned(_S, planned.TABLE, asked, x._id, 0, 0)
        if k > 0:
            return wrap(k)
        outer = getattr(_launches, "seen", None)
        _launches.seen = seen = []
        try:
            result = self.call(*args, **named)
        finally:
            _launches.seen = outer
        if len(seen) == 1 and type(result) is Tensor:
            tensors, layout, dtype, words, code, made = seen[0]
            if made is result and len(tensors) == 1 and tensors[0] is x:
                rt.keep_plan(_S, planned.TABLE, asked, x._id, 0, 0, code, layout, dtype, template(*words))
        return result

    def call(self, *args: Any, **named: Any) -> Any:
        """The call, worked out."""
        return self.function(self, *args, **named)

    def forward(self, function: Callable) -> Callable:
        """Declare the kernel."""
        self.kernel = function
        return function

    def backward(self, function: Callable) -> Callable:
        """Declare the derivative over tensors."""
        self.derivative = function
        self._uses = list(inspect.signature(function).parameters)
        row = rt.ops[self.code]
        row["differentiable"] = 15
        mask = sum(1 << k for k, n in enumerate(self.inputs) if n in self._uses) | (8 if "out" in self._uses else 0)
        row["saved"][1:] = mask
        return function

    def saves(self, rule: Callable[[int], Sequence[str]]) -> None:
        """Refine what is saved: `rule` gives, for each mask of wanted inputs, the names needed."""
        bits = {n: 1 << k for k, n in enumerate(self.inputs)} | {"out": 8}
        for need in range(1, 8):
            rt.ops[self.code]["saved"][need] = sum(bits[n] for n in rule(need))

    def reverse_kernel(self, function: Callable) -> Callable:
        """Declare a kernel that adds to the adjoints of the inputs (see STORE and ADJOINT in engine/structs.py)."""
        self.native = function
        rt.ops[self.code]["kind"] = structs.KERNEL
        return function

    def load_forward(self, dtype: int) -> None:
        """Build or load the forward kernel for a dtype code."""
        assert self.kernel is not None
        rt.forward[self.code, dtype] = build_typed(self.kernel, dtype, f"{self.name}_forward", **self.placeholders)

    def load_reverse(self, dtype: int) -> None:
        """Build or load the reverse kernel for a dtype code."""
        assert self.native is not None
        rt.reverse[self.code, dtype] = build_typed(self.native, dtype, f"{self.name}_reverse", **self.placeholders)

    def launch(
        self,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        dtype: dtypes.dtype,
        words: Sequence[int] = (),
        items: int = 1,
        work: int = 4,
        extra: Sequence[Tensor] = (),
    ) -> Tensor:
        """Record and run the op.

        Args:
            inputs: up to three tensors; the first one's dtype selects the kernel.
            shape: of the result.
            dtype: of the result.
            words: integers the kernel and the backward read, from attribute word 4 on.
            items: how many work items the kernel may be split into; negative to merge partial results at the end.
            work: of one item, in quarter nanoseconds.
            extra: any number of further inputs; attribute words shift by their number.
        """
        tensors = [t for t in (*inputs, *extra) if t is not None]
        layout = rt.layout(tuple(shape))
        while True:
            ids = [0 if t is None else t._id for t in inputs] + [0, 0]
            block = rt.attributes(len(extra), *(t._id for t in extra), items, work, *words)
            k = rt.record_kernel(_S, self.code, ids[0], ids[1], ids[2], layout, dtype.code, block)
            if k > 0:
                made = wrap(k)
                if self.fills and rt.look(_S, k, LOOK_TRACED):
                    for position in self.fills:
                        _record_filled(made, inputs[position] if position < len(inputs) else None)
                seen = getattr(_launches, "seen", None)
                if seen is not None:
                    seen.append((tensors, layout, dtype.code, (len(extra), items, work, *words), self.code, made))
                return made
            rt.free_block(_S, block)
            self.refuse(k, tensors, shape)

    def reverse(self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]) -> Sequence[Any]:
        """Run the declared backward for one row of the tape."""
        assert self.derivative is not None
        available: dict[str, Any] = {"g": g, "need": need, "words": words[2:], "out": kept[3]}
        available.update(zip(self.inputs, kept, strict=False))
        parts = self.derivative(**{name: available[name] for name in self._uses})
        return parts if isinstance(parts, tuple | list) else (parts,)


class _FilledOp(Op):
    # an input that a traced operation filled, as another result of it
    def __init__(self) -> None:
        def filled() -> None:
            """What an operation filled beside its result."""

        super().__init__(filled, structs.PYTHON, None, None)


filled_op = _FilledOp()
filled_op.covered_by = "max"


def _record_filled(result: Tensor, filled: Tensor | None) -> None:
    if filled is not None:
        rt.record_on(_S, filled_op.code, filled._id, result._id, 0, 0, rt.attributes(0))
        rt.set_flag(_S, filled._id, structs.REQUIRES_GRAD, 0)
        _launches.__dict__.setdefault("filled", []).append(filled._id)


def let_go_of_filled() -> None:
    """Part what this thread's traced operations filled from their results, each of which has kept the other until now."""
    for k in getattr(_launches, "filled", ()):
        rt.cut(_S, k)
    _launches.filled = []


def kernel_op(**options: Any) -> Callable[[Callable], KernelOp]:
    """Declare an op with a kernel of its own (see `KernelOp`)."""
    return lambda function: KernelOp(function, **options)


def empty(shape: Sequence[int], dtype: dtypes.dtype) -> Tensor:
    """A tensor with uninitialised memory."""
    return wrap(check_id(rt.new_leaf(_S, rt.layout(tuple(shape)), dtype.code)))


class ReductionOp(KernelOp):
    """A reduction whose derivative is a scalar expression along its input.

    Declared like a `KernelOp`; `backward` is a pointwise expression with parameters among ``g``, ``x``, ``out``, the second
    input's name, and the `parameters` given here, which `launch_reduction` takes as floats.
    """

    remembers = True

    def __init__(self, function: Callable, *, parameters: Sequence[str] = (), **options: Any) -> None:
        super().__init__(function, **options)
        self.reduction_parameters = list(parameters)
        self.rule_of_second: Callable | None = None
        rt.ops[self.code]["kind"] = structs.REDUCTION

    def backward(self, function: Callable) -> Callable:
        """Declare the derivative as a scalar expression."""
        self.derivative = function
        names = list(inspect.signature(function).parameters)
        row = rt.ops[self.code]
        row["differentiable"] = 1
        row["saved"][1:] = sum(1 << k for k, n in enumerate(self.inputs) if n in names) | (8 if "out" in names else 0)
        return function

    def second_follows(self, rule: Callable) -> Callable:
        """Declare how the second input, which the kernel fills, depends on the operand.

        ``rule(x, shape)`` gives it from the operand and the kept shape, by recorded ops; the derivative over tensors takes that in
        place of the value kept, which no gradient flows through.
        """
        self.rule_of_second = rule
        return rule

    def load_reverse(self, dtype: int) -> None:
        """Build or load the reverse kernel for a dtype code."""
        assert self.derivative is not None
        label = f"{self.name}_reverse_{dtypes.ALL[dtype].name}"
        name = f"{label}_partial"
        text = _source.partial_text(name, self.derivative, 0)
        used = _source.partial_names(self.derivative, 0)
        text += reverse_source(
            label,
            [(0, name, used)],
            [(n, dtype) for n in self.inputs],
            dtype,
            g_position=4,
            parameters=self.reduction_parameters,
        )
        names = scalar_environment(self.derivative, dtype)
        rt.reverse[self.code, dtype] = build_kernel(label, text, environment(**names))

    def reverse(self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]) -> Sequence[Any]:
        """The declared scalar expression over tensors, along the input's elements."""
        assert self.derivative is not None
        shape = layout_facts(words[2])[0]
        names = [*self.inputs, "out"]
        values: dict[str, Any] = dict(zip(names, [*kept[: len(self.inputs)], kept[3]], strict=True))
        if values["out"] is not None:
            values["out"] = values["out"].reshape(shape)
        if len(self.inputs) == 2:
            second = kept[1]
            if self.rule_of_second is not None:
                second = self.rule_of_second(kept[0], shape)
            elif second is not None:
                second = second.reshape(shape)
            values[self.inputs[1]] = second
        values["g"] = g.reshape(shape)
        for k, name in enumerate(self.reduction_parameters):
            values[name] = float_of_bits(words[3 + k])
        partial = partial_over_tensors(self.derivative, 0)
        return [partial(*(values[n] for n in _source.partial_names(self.derivative, 0)))]

    def launch_reduction(
        self,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        kept: Sequence[int],
        dtype: dtypes.dtype,
        parameters: Sequence[float] = (),
        words: Sequence[int] = (),
        items: int = 1,
        work: int = 4,
    ) -> Tensor:
        """Record and run the reduction.

        Args:
            inputs: the operand, and perhaps a second one of the kept shape.
            shape: of the result.
            kept: shape of the result with reduced dims of extent one.
            dtype: of the result.
            parameters: values of the declared parameters.
            words: further integers for the kernel, after the parameters.
            items: see `launch`.
            work: see `launch`.
        """
        head = [rt.layout(tuple(kept)), *(struct_bits(float(p)) for p in parameters)]
        return self.launch(inputs, shape, dtype, [*head, *words], items, work)
