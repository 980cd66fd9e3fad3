"""One declaration an op: from it follow the opcode, kernels for every dtype, the public function and method, `grad_fn`'s name,
what is saved, and the tests. Here is what all kinds of op share; they are `_pointwise`, `_view`, `_kernel` and `_fold`."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tapegrad import dtypes, errors
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.ops._operands import broadcast_problem, broadcast_shapes
from tapegrad.tensor import Tensor

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
            from tapegrad.ops.operators import install_native_methods

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
