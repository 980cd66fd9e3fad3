"""Operations over whole arrays that users write as two functions compiled with Numba.

The functions are linked into kernels, where they get NumPy arrays over the tape's memory. Numba compiles for a number of dimensions,
so each combination of dtypes and dimensions is an op of the tape, with an opcode of its own.
"""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from numba.core.errors import NumbaError

from tapegrad import dtypes
from tapegrad.engine import structs
from tapegrad.engine.kernels import build_kernel
from tapegrad.engine.runtime import rt
from tapegrad.engine.usercode import check_function, copy_of, digest_of, identifier
from tapegrad.grad_mode import is_grad_enabled
from tapegrad.metadata import layout_facts
from tapegrad.ops._kernel import KernelOp
from tapegrad.ops._native_kernels import Look, Texts, array_name, spelled
from tapegrad.ops._operands import broadcast_shapes, cast, check_operand, constant, result_type
from tapegrad.ops._rule import FLOATS
from tapegrad.tensor import Tensor

_MOST_INPUTS = 3
_signatures: dict[tuple, _Signature] = {}
_declaring = threading.Lock()


class _Signature(KernelOp):
    """A user's op for arrays of certain dtypes and dimensions.

    Args:
        op: the user's declaration.
        look: the dtypes and dimensions.
    """

    built_in = False

    def __init__(self, op: NativeOp, look: Look) -> None:
        super().__init__(_documented(op), inputs=op.inputs, reference=None, method=False, public=False)
        self.declaration, self.look = op, look
        self.symbol = f"{identifier(op.__name__)}_{op.digest}_{spelled(look)}"
        self._texts = Texts(op, look, self.symbol)
        self._gradient: _Gradient | None = None
        row = rt.ops[self.code]
        if op.backward is not None:
            row["kind"] = structs.KERNEL
            row["differentiable"] = sum(1 << k for k in op.differentiable)
            bits = {n: 1 << k for k, n in enumerate(op.inputs)} | {op.result: 8}
            row["saved"][1:] = sum(bits[n] for n in {*op.values, *op.tensor_parameters} - {"g"})

    def load_forward(self, dtype: int) -> None:
        """Build or load the forward kernel; `dtype` is the first input's."""
        rt.forward[self.code, dtype] = self.build("forward", self._texts.forward())

    def load_reverse(self, dtype: int) -> None:
        """Build or load the reverse kernel; `dtype` is one of the op's."""
        rt.reverse[self.code, dtype] = self.build("reverse", self._texts.reverse())

    def build(self, kind: str, text: str) -> int:
        """Address of one of the op's kernels."""
        try:
            return build_kernel(f"{self.symbol}_{kind}", text, self._texts.names)
        except NumbaError as error:
            op = self.declaration
            types = [array_name(*a) for a in (*self.look.inputs, self.look.result)]
            of = ", ".join(f"{n}: {a}" for n, a in zip([*op.inputs, op.result], types, strict=True))
            which = "forward" if kind == "forward" else "backward"
            raise TypeError(f"{op.__name__}: the {which} function cannot be compiled for {of}: {error}") from error

    def reverse(self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]) -> Sequence[Any]:
        """The derivative over tensors: the user's, or the native one as an operation that has no derivative itself."""
        op = self.declaration
        values = dict(zip(op.inputs, kept, strict=False)) | {op.result: kept[3], "g": g}
        if op.tensor_backward is not None:
            parts = op.tensor_backward(**{n: values[n] for n in op.tensor_parameters})
            parts = parts if isinstance(parts, tuple | list) else (parts,)
            if len(parts) != len(op.inputs):
                raise RuntimeError(
                    f"{op.__name__}: tensor_backward returned {len(parts)} gradients for {len(op.inputs)} inputs; give one an "
                    "input, None where there is none"
                )
            return parts
        if self._gradient is None:
            self._gradient = _Gradient(self)
        wanted = [k for k in op.differentiable if need >> k & 1]
        found = {k: self._gradient.of(k, g, [values[n] for n in op.values], words[2:]) for k in wanted}
        return [found.get(k) for k in range(len(op.inputs))]

    def raise_again(self, tensors: Sequence[Tensor], shape: Sequence[int]) -> NoReturn:
        """Raise the exception that the compiled forward met."""
        result = np.zeros(tuple(shape), dtypes.ALL[self.look.result[0]].name)
        copy_of(self.declaration.forward)(*map(_read_only, tensors), result)
        super().raise_again(tensors, shape)

    def raise_again_in_reverse(
        self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]
    ) -> NoReturn:
        """Raise the exception that the compiled backward met."""
        op = self.declaration
        values = dict(zip(op.inputs, kept, strict=False)) | {op.result: kept[3], "g": g}
        self.run_backward({n: v for n, v in values.items() if v is not None}, need, words[2:])
        super().raise_again_in_reverse(g, need, kept, words)

    def run_backward(self, values: dict[str, Tensor], need: int, layouts: Sequence[int]) -> None:
        """Run the user's backward where Python sees what it raises."""
        op = self.declaration
        arrays: dict[str, Any] = {n: _read_only(t) for n, t in values.items()} | {"need": need}
        for name, k in op.gradients.items():
            arrays[name] = np.zeros(layout_facts(layouts[k])[0], dtypes.ALL[self.look.result[0]].name)
        copy_of(op.backward)(*(arrays[n] for n in op.backward_parameters))


class _Raised(Exception):
    """The kernel of a `_Gradient` met an exception."""


class _Gradient(KernelOp):
    # the gradient of one input, where the derivative is itself recorded; it has no derivative and says so when that is asked for
    built_in = False

    def __init__(self, forward: _Signature) -> None:
        op = forward.declaration
        super().__init__(_documented(op), inputs=["g"], reference=None, method=False, public=False)
        self.forward_op = forward
        self.grad_name = f"{forward.grad_name}Backward0"
        rt.ops[self.code]["differentiable"] = 15

    def of(self, slot: int, g: Tensor, values: Sequence[Tensor], layouts: Sequence[int]) -> Tensor:
        """The gradient of input `slot`."""
        op = self.forward_op
        tensors = [v.contiguous() for v in (g, *values)]  # type: ignore[attr-defined]
        shape = layout_facts(layouts[slot])[0]
        try:
            return self.launch(tensors[:1], shape, g.dtype, [slot, *layouts], extra=tensors[1:])
        except _Raised:
            named = dict(zip(["g", *op.declaration.values], tensors, strict=True))
            op.run_backward(named, 1 << slot, layouts)
            super().raise_again(tensors, shape)

    def load_forward(self, dtype: int) -> None:
        """Build or load the kernel."""
        rt.forward[self.code, dtype] = self.forward_op.build("gradient", self.forward_op._texts.gradient())

    def reverse(self, g: Tensor, need: int, kept: Sequence[Tensor | None], words: Sequence[int]) -> NoReturn:
        """Refuse: there is no derivative."""
        raise RuntimeError(
            f"{self.name} was declared with a native backward only; give tensor_backward= to differentiate it twice"
        )

    def raise_again(self, tensors: Sequence[Tensor], shape: Sequence[int]) -> NoReturn:
        """Leave it to `of`, which knows the layouts."""
        raise _Raised


def _documented(op: NativeOp) -> Callable:
    def function() -> None:
        pass

    function.__name__, function.__doc__ = op.__name__, op.__doc__
    return function


def _read_only(t: Tensor) -> np.ndarray:
    array = t.detach().contiguous().numpy()  # type: ignore[attr-defined]
    array.flags.writeable = False
    return array


class NativeOp:
    """A user's operation over whole arrays, as `native_op` makes it."""

    def __init__(
        self, forward: Any, backward: Any, shape: Callable | None, name: str | None, tensor_backward: Callable | None
    ) -> None:
        self.forward = check_function(forward, "native_op(): argument 'forward'")
        self.backward = None if backward is None else check_function(backward, "native_op(): argument 'backward'")
        self.shape, self.tensor_backward = shape, tensor_backward
        self.__name__ = self.__qualname__ = name or forward.__name__
        self.__doc__ = forward.__doc__ or f"The user's operation {self.__name__}."
        self.__module__ = forward.__module__
        self.inputs, self.result = self._forward_names()
        self.gradients: dict[str, int] = {}
        self.backward_parameters = self._backward_names()
        self.differentiable = sorted(self.gradients.values())
        self.values = [n for n in (*self.inputs, self.result) if n in self.backward_parameters]
        self.tensor_parameters = self._tensor_names()
        self.digest = digest_of(forward) + (digest_of(backward) if backward is not None else "")
        self._known: dict[Look, _Signature] = {}

    def __repr__(self) -> str:
        return f"<native operation {self.__name__}>"

    # what the functions' parameters are called

    def _forward_names(self) -> tuple[list[str], str]:
        names = _positional(self.forward, f"{self.__name__}: forward")
        if not 2 <= len(names) <= _MOST_INPUTS + 1:
            raise TypeError(
                f"{self.__name__}: forward takes one to {_MOST_INPUTS} arrays and the array to fill, but has parameters {names}"
            )
        reserved = ["g", "need", *("g" + n for n in names[:-1])]
        for n in names:
            if n in reserved:
                raise TypeError(
                    f"{self.__name__}: forward's parameter '{n}' is called like one of backward's; choose another name"
                )
        return names[:-1], names[-1]

    def _backward_names(self) -> list[str]:
        if self.backward is None:
            return []
        names = _positional(self.backward, f"{self.__name__}: backward")
        gradients = {"g" + n: k for k, n in enumerate(self.inputs)}
        self._check_names("backward", names, ["g", *self.inputs, self.result, *gradients, "need"])
        self.gradients = {n: gradients[n] for n in names if n in gradients}
        if not self.gradients:
            raise TypeError(f"{self.__name__}: backward fills none of the gradients {', '.join(gradients)}")
        return names

    def _tensor_names(self) -> list[str]:
        if self.tensor_backward is None:
            return []
        if self.backward is None:
            raise TypeError(f"{self.__name__}: tensor_backward is for higher orders; give a backward for the first")
        names = list(inspect.signature(self.tensor_backward).parameters)
        self._check_names("tensor_backward", names, ["g", *self.inputs, self.result])
        return names

    def _check_names(self, role: str, names: Sequence[str], known: Sequence[str]) -> None:
        for n in names:
            if n not in known:
                raise TypeError(f"{self.__name__}: {role}'s parameter '{n}' is none of {', '.join(known)}")

    # calls

    def __call__(self, *args: Any) -> Tensor:
        if len(args) != len(self.inputs):
            given = ", ".join(self.inputs)
            raise TypeError(f"{self.__name__}() takes {len(self.inputs)} arguments ({given}) but got {len(args)}")
        tensors, dtype = self._operands(args)
        shapes = [tuple(t.shape) for t in tensors]
        if self.shape is None:
            shape = broadcast_shapes(self.__name__, *shapes)
            tensors = [t if tuple(t.shape) == shape else t.expand(shape) for t in tensors]  # type: ignore[attr-defined]
        else:
            shape = self._checked_shape(self.shape(*shapes), shapes)
        tensors = [t.contiguous() for t in tensors]  # type: ignore[attr-defined]
        self._check_derivatives(tensors)
        look = Look(tuple((t.dtype.code, t.ndim) for t in tensors), (dtype.code, len(shape)))
        op = self._known.get(look) or self._declare(look)
        return op.launch(tensors, shape, dtype, [*(rt.layout(tuple(t.shape)) for t in tensors), rt.layout(shape)])

    def _operands(self, args: Sequence[Any]) -> tuple[list[Tensor], dtypes.dtype]:
        floating = [a for a in args if isinstance(a, Tensor) and a.dtype.is_floating_point]
        for name, a in zip(self.inputs, args, strict=True):
            check_operand(self.__name__, f"'{name}'", a)
        if not floating:
            kinds = ", ".join(a.dtype.name if isinstance(a, Tensor) else type(a).__name__ for a in args)
            raise TypeError(
                f"{self.__name__}(): at least one argument must be a floating point tensor, but got {kinds}"
            )
        common = result_type(*floating)
        if common not in FLOATS:
            raise TypeError(
                f"{self.__name__}(): {common.name} tensors are for storage only; convert with .float() first"
            )
        tensors = []
        for a in args:
            if not isinstance(a, Tensor):
                a = constant(a, common)
            tensors.append(cast(a, common) if a.dtype.is_floating_point else a)
        return tensors, common

    def _checked_shape(self, shape: Any, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
        try:
            found = tuple(operator.index(n) for n in shape)
        except TypeError:
            found = (-1,)
        if any(n < 0 for n in found):
            given = ", ".join(str(list(s)) for s in shapes)
            raise TypeError(
                f"{self.__name__}: the shape function must return a tuple of sizes, but returned {shape!r} for inputs of shapes {given}"
            )
        return found

    def _check_derivatives(self, tensors: Sequence[Tensor]) -> None:
        for k, t in enumerate(tensors):
            if k not in self.differentiable and t.requires_grad and is_grad_enabled():
                name = self.inputs[k]
                lack = "there is no backward" if self.backward is None else f"backward has no parameter 'g{name}'"
                raise RuntimeError(
                    f"{self.__name__}: argument '{name}' requires grad, but {lack}; detach() it, or add one"
                )

    def _declare(self, look: Look) -> _Signature:
        key = (self.digest, self.__name__, self.tensor_backward, look)
        with _declaring:
            if key not in _signatures:
                _signatures[key] = _Signature(self, look)
            op = self._known[look] = _signatures[key]
        return op


def _positional(function: Any, role: str) -> list[str]:
    parameters = inspect.signature(function.py_func).parameters.values()
    for p in parameters:
        if p.kind is not p.POSITIONAL_OR_KEYWORD or p.default is not p.empty:
            raise TypeError(f"{role} has parameter '{p}', but takes plain arguments only")
    return [p.name for p in parameters]


def native_op(
    forward: Any,
    backward: Any = None,
    shape: Callable[..., Sequence[int]] | None = None,
    *,
    name: str | None = None,
    tensor_backward: Callable | None = None,
) -> NativeOp:
    r"""Make an operation over whole arrays from functions compiled with `numba.njit`.

    ``forward(x, y, ..., out)`` gets one to three arrays and fills the last one. ``backward`` adds up what a change of the result by
    ``g`` means for each input,

    .. math:: \bar x_i = \sum_j g_j \, \frac{\partial \mathrm{out}_j}{\partial x_i},

    in arrays called ``gx``, ``gy``, …; the names of its parameters say what it gets: ``g``, inputs and the result of forward (only what
    is named is kept for it), the gradients, and ``need``, a mask with bit k set if the gradient of input k is wanted, for a backward
    that would leave out work. Both run inside the interpreter, forward and in reverse, with no call into Python.

    The arrays are contiguous NumPy arrays; those to be filled arrive as zeros, so that assigning and adding are both right, and
    the others cannot be written to. Floating tensors are promoted to one dtype, which is the result's; other tensors keep theirs, numbers
    become 0-d arrays. An exception raised in either function is raised by the call, or by the backward pass, with the tape as it was.

    Args:
        forward: the function; its parameters name the inputs.
        backward: the derivative; without it, or without the gradient of an input, it is an error to use an input that requires grad.
        shape: gives the shape of the result from the shapes of the inputs. Without it inputs are broadcast, and every array has
            the shape that they broadcast to.
        name: of the operation; that of `forward` unless given.
        tensor_backward: the derivative over tensors, for higher orders: its parameters are among ``g``, the inputs and the result, and
            it returns the gradient of each input, or None.

    Returns:
        The operation.

    Raises:
        TypeError: for functions that are not compiled with Numba or have other parameters; at a call, for operands that are no tensors
            or numbers, without a floating tensor among them, or that the functions cannot be compiled for.

    >>> import numba
    >>> import tapegrad as tg
    >>> @numba.njit
    ... def running_product(x, out):
    ...     product = 1.0
    ...     for i in range(x.size):
    ...         product *= x[i]
    ...         out[i] = product
    >>> @numba.njit
    ... def running_product_backward(g, x, out, gx):
    ...     arriving = 0.0
    ...     for i in range(x.size - 1, -1, -1):
    ...         arriving += g[i] * out[i]
    ...         gx[i] = arriving / x[i]
    >>> running = tg.autograd.native_op(running_product, running_product_backward)
    >>> x = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> y = running(x)
    >>> y
    tensor([1., 2., 6.], grad_fn=<RunningProductBackward0>)
    >>> y.sum().backward()
    >>> x.grad
    tensor([9., 4., 2.])
    """
    return NativeOp(forward, backward, shape, name, tensor_backward)
