"""Operations whose derivative the user writes in Python."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tapegrad import errors
from tapegrad.autograd.attached import attach, attachment
from tapegrad.autograd.graph import innermost_hooks
from tapegrad.autograd.rows import Row, RowOp, dtype_of, handle, modified_value, shape_of
from tapegrad.autograd.under_way import current_sweep
from tapegrad.creation import zeros
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_TRACED
from tapegrad.grad_mode import is_grad_enabled, set_grad_enabled
from tapegrad.ops._write import tell_base
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S


class FunctionCtx:
    """What a `Function` keeps between forward and backward; attributes may be set freely.

    Attributes:
        needs_input_grad: for each argument of forward, whether its gradient is needed.
    """

    def __init__(self, function: type[Function], inputs: Sequence[Any]) -> None:
        self._function = function
        self.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in inputs)
        self._tensors = [isinstance(a, Tensor) for a in inputs]
        self._to_save: Sequence[Tensor | None] = ()
        self._to_save_forward: Sequence[Tensor | None] = ()
        self._saved: list[Any] | None = []
        self._dirty: tuple[Tensor, ...] = ()
        self._constant: tuple[Tensor, ...] = ()
        self._materialize = True
        self._outputs: list[int] = []  # id of each result that has a place on the tape, 0 for others
        self._likes: list[tuple[Any, Any] | None] = []  # shape and dtype of each result
        # adjoints of several results that have arrived, by number, for each sweep
        self._collected: weakref.WeakKeyDictionary[Any, dict[int, Tensor]] = weakref.WeakKeyDictionary()
        self._tangents: Sequence[Tensor | None] = ()
        self._arguments = tuple(None if isinstance(a, Tensor) else a for a in inputs)
        self._batched: Sequence[Tensor] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep inputs or outputs of forward for backward, which reads them as `saved_tensors`; to be called once, in forward."""
        for t in tensors:
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(
                    f"save_for_backward can only save variables, but argument is of type {type(t).__name__}"
                )
        self._to_save = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for `jvp`, which reads them as `saved_tensors`."""
        self._to_save_forward = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Say which inputs forward changed in place; they must also be returned."""
        self._dirty = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Say which outputs carry no gradient."""
        self._constant = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Whether backward gets zeros (the default) or None for outputs without a gradient."""
        self._materialize = value

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What was saved, checked against changes in place.

        Raises:
            RuntimeError: if it was freed, or changed since.
        """
        if self._saved is None:
            raise RuntimeError(errors.BACKWARD_TWICE)
        return tuple(value() for value in self._saved)

    # bookkeeping

    def _keep(self, outputs: Sequence[Any]) -> None:
        # turn what is to be saved into functions that give it back
        hooks = innermost_hooks()
        kept = self._to_save or self._to_save_forward
        self._saved = [self._keeper(t, outputs, hooks) for t in kept]
        self._to_save = self._to_save_forward = ()

    def _keeper(self, t: Tensor | None, outputs: Sequence[Any], hooks: Any) -> Callable[[], Tensor | None]:
        if t is None:
            return lambda: None
        if hooks is not None:
            with set_grad_enabled(False):
                packed = hooks.pack_hook(t.detach())
            return functools.partial(hooks.unpack_hook, packed)
        for number, out in enumerate(outputs):
            if out is t and self._outputs[number]:
                # a handle on an own result would keep it alive through itself
                return functools.partial(self._own_result, number, t._version)
        return functools.partial(_checked_value, handle(t._id), t._version)

    def _own_result(self, number: int, version: int) -> Tensor:
        return _checked_value(handle(self._outputs[number]), version)

    def _output_number(self, k: int) -> int:
        return self._outputs.index(k) if k in self._outputs else 0

    def _free(self) -> None:
        if self._saved:
            self._saved = None

    def _collect(self, sweep: Any, number: int, g: Tensor) -> None:
        self._collected.setdefault(sweep, {})[number] = g

    def _take_collected(self, sweep: Any) -> list[Tensor | None]:
        found = self._collected.pop(sweep, {})
        return [found.get(number) for number in range(len(self._likes))]


def _checked_value(t: Tensor, version: int) -> Tensor:
    if t._version != version:
        raise RuntimeError(modified_value(t._id, version))
    return t


class _FunctionOp(RowOp):
    # the row of a user's function; its operands are the function's tensors
    def __init__(self) -> None:
        def function() -> None:
            """A user's function."""

        super().__init__(function, structs.PYTHON, "FunctionBackward", None)
        rt.ops[self.code]["differentiable"] = 15

    def arrived(self, row: Row, g: Tensor) -> list[Tensor | None]:
        """The adjoints of all results of the function."""
        return _context(row.out)._take_collected(current_sweep()) if row.words else [g]

    def parts(self, row: Row, arrived: Sequence[Tensor | None], need: int) -> list[Tensor | None]:
        """What the user's backward gives, for the three unused operands and the function's tensors."""
        return [None, None, None, *call_backward(_context(row.out), arrived, row.extra)]

    def tangent(self, row: Row, given: Sequence[Tensor | None]) -> Tensor | None:
        """What the user's jvp gives, for a function with one result."""
        context = _context(row.out)
        tangents = _call_jvp(context, row, given)
        if row.words:
            # the results' own rows look the tangents up
            context._tangents = tangents
            return zeros(())
        return tangents[0]

    def free(self, row: Row) -> None:
        """Let go of the saved tensors."""
        _context(row.out)._free()


class _OutputOp(RowOp):
    # one of several results of a user's function: hands its adjoint to the function's row
    part_of_node = True

    def __init__(self) -> None:
        def function_output() -> None:
            """One of several results of a user's function."""

        super().__init__(function_output, structs.PYTHON, "FunctionBackward", None)
        rt.ops[self.code]["differentiable"] = 1

    def parts(self, row: Row, arrived: Sequence[Tensor | None], need: int) -> list[Tensor | None]:
        """A zero that leads the sweep to the function's row."""
        if arrived[0] is not None:
            _context(row.out)._collect(current_sweep(), row.words[0], arrived[0])
        return [zeros(())]

    def tangent(self, row: Row, given: Sequence[Tensor | None]) -> Tensor | None:
        """The tangent of one result, from the function's row just before."""
        return _context(row.out)._tangents[row.words[0]]


function_op = _FunctionOp()
output_op = _OutputOp()
function_op.covered_by = output_op.covered_by = "autograd"


def _context(k: int) -> FunctionCtx:
    attached = attachment(k)
    assert attached is not None
    return attached.context


def call_backward(context: FunctionCtx, arrived: Sequence[Tensor | None], extra: Sequence[int]) -> list[Tensor | None]:
    """Call a user's backward and check what it returns.

    Args:
        context: of the call of forward.
        arrived: adjoints of the results.
        extra: ids of the tensors among the arguments.

    Returns:
        The gradient of each tensor argument.

    Raises:
        RuntimeError: naming the function, if there are too many or too few gradients, or of the wrong shape or kind.
    """
    name = type(context).__name__
    given: list[Tensor | None] = []
    for g, like in zip(arrived, context._likes, strict=True):
        if g is None and context._materialize and like is not None:
            g = zeros(like[0], dtype=like[1])
        given.append(g)
    function = context._function
    result = (function.vjp if function.vjp is not Function.vjp else function.backward)(context, *given)
    found = list(result) if isinstance(result, tuple | list) else [result]
    expected = len(context._tensors)
    if len(found) > expected and all(f is None for f in found[expected:]):
        del found[expected:]
    if len(found) != expected:
        raise RuntimeError(
            f"function {name} returned an incorrect number of gradients (expected {expected}, got {len(found)})"
        )
    parts: list[Tensor | None] = []
    places = iter(extra)
    for position, (value, tensor) in enumerate(zip(found, context._tensors, strict=True)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"{name}: expected Variable or None (got {type(value).__name__}) at position {position + 1}"
            )
        if not tensor:
            if value is not None:
                raise RuntimeError(
                    f"function {name} returned a gradient different than None at position {position + 1}, but the corresponding "
                    "forward input was not a Variable"
                )
            continue
        shape = shape_of(next(places))
        if value is not None and value.shape != shape and not _sums_to(value.shape, shape):
            raise RuntimeError(
                f"Function {name} returned an invalid gradient at index {position} - got {list(value.shape)} but expected shape "
                f"compatible with {list(shape)}"
            )
        parts.append(value)
    return parts


def _call_jvp(context: FunctionCtx, row: Row, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    function = context._function
    if function.jvp is Function.jvp:
        raise RuntimeError(
            f"{function.__name__} has no jvp: write a jvp staticmethod, which takes ctx and the tangents of forward's arguments, to use "
            "it in forward mode"
        )
    tangents: list[Any] = []
    places = iter(zip(row.extra, given[3:], strict=True))
    for tensor in context._tensors:
        k, t = next(places) if tensor else (0, None)
        tangents.append(zeros(shape_of(k), dtype=dtype_of(k)) if tensor and t is None and context._materialize else t)
    result = function.jvp(context, *tangents)
    found = result if isinstance(result, tuple) else (result,)
    if len(found) != len(context._likes):
        raise RuntimeError(
            f"{function.__name__}.jvp returned {len(found)} tangents, but forward has {len(context._likes)} results"
        )
    for t, like in zip(found, context._likes, strict=True):
        if t is not None and like is not None and t.shape != like[0]:
            raise RuntimeError(
                f"{function.__name__}.jvp returned a tangent of shape {list(t.shape)} for a result of shape {list(like[0])}"
            )
    return found


def _sums_to(given: Sequence[int], shape: Sequence[int]) -> bool:
    return len(given) >= len(shape) and all(
        n in (1, m) for n, m in zip(shape, given[len(given) - len(shape) :], strict=True)
    )


class Function:
    """An operation with a derivative of its own: subclass it, write `forward` and `backward`, call `apply`.

    `forward(ctx, *args)` computes the result and keeps in `ctx` what backward needs; or `forward(*args)` computes it and
    `setup_context(ctx, inputs, output)` keeps. `backward(ctx, *grads)` returns a gradient, or None, for each argument of forward.
    `jvp(ctx, *tangents)` gives the tangent of the result for forward mode; `vmap(info, in_dims, *args)` the batched call, unless
    `generate_vmap_rule` is set.

    >>> import tapegrad as tg
    >>> class Exp(tg.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         y = x.exp()
    ...         ctx.save_for_backward(y)
    ...         return y
    ...
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         (y,) = ctx.saved_tensors
    ...         return g * y
    >>> x = tg.tensor(0.0, requires_grad=True)
    >>> Exp.apply(x)
    tensor(1., grad_fn=<ExpBackward>)
    """

    generate_vmap_rule = False

    def __init__(self, *args: Any, **named: Any) -> None:
        raise RuntimeError(
            f"{type(self)} should not be instantiated. Methods on autograd functions are all static, so you should invoke them on "
            "the class itself. Instantiating an autograd function will raise an error in a future version of PyTorch."
        )

    @staticmethod
    def forward(*args: Any, **named: Any) -> Any:
        """Compute the result."""
        raise NotImplementedError("You must implement the forward function for custom autograd.Function.")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> Any:
        """Keep in `ctx` what backward needs, where forward takes no `ctx`."""
        raise NotImplementedError("setup_context is not implemented.")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """The gradient of each argument of forward."""
        raise NotImplementedError(
            "You must implement either the backward or vjp method for your custom autograd.Function to use it with backward mode AD."
        )

    @staticmethod
    def vjp(ctx: Any, *grad_outputs: Any) -> Any:
        """Another name of `backward`."""
        raise NotImplementedError("You must implement either the backward or vjp method.")

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        """The tangent of each result."""
        raise NotImplementedError(
            "You must implement the jvp function for custom autograd.Function to use it with forward mode AD."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> Any:
        """The function over a batch."""
        raise NotImplementedError(
            "To use autograd.Function with vmap, you must either override the vmap staticmethod or set generate_vmap_rule=True."
        )

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run forward and record the call.

        Args:
            args: tensors and anything else; gradients flow to the tensors among them.

        Returns:
            What forward returns.

        Raises:
            RuntimeError: for outputs that no gradient could be right for.
        """
        context = _context_class(cls)(cls, args)  # type: ignore[arg-type]
        tensors = [a for a in args if isinstance(a, Tensor)]
        traced = any(rt.look(_S, t._id, LOOK_TRACED) for t in tensors)
        records = is_grad_enabled() and any(t.requires_grad for t in tensors)
        given = [untraced(a) if traced and isinstance(a, Tensor) else a for a in args]
        with set_grad_enabled(False):
            if cls.setup_context is not Function.setup_context:
                result = cls.forward(*given)
                cls.setup_context(context, tuple(given), result)
            else:
                result = cls.forward(context, *given)
        outputs = result if isinstance(result, tuple) else (result,)
        if traced:
            _put_back(context, given, args)
            outputs = tuple(_original(o, given, args) for o in outputs)
        if not records and not traced:
            context._free()
            return result
        made = _record(context, tensors, outputs, records)
        return tuple(made) if isinstance(result, tuple) else made[0]


def untraced(t: Tensor) -> Tensor:
    """The same elements, of which a trace knows nothing."""
    made = wrap(check_id(rt.share_leaf(_S, t._id, 2)))
    if t.requires_grad:
        rt.set_flag(_S, made._id, structs.REQUIRES_GRAD, 1)
    return made


def _original(value: Any, given: Sequence[Any], args: Sequence[Any]) -> Any:
    for a, b in zip(given, args, strict=True):
        if value is a:
            return b
    return value


def _put_back(context: FunctionCtx, given: Sequence[Any], args: Sequence[Any]) -> None:
    # what forward saw of traced arguments are twins; what it keeps must be the arguments
    for name in ("_to_save", "_to_save_forward", "_dirty", "_constant"):
        setattr(context, name, tuple(_original(t, given, args) for t in getattr(context, name)))


@functools.cache
def _context_class(function: type[Function]) -> type[FunctionCtx]:
    return type(f"{function.__name__}Backward", (FunctionCtx,), {"__module__": function.__module__})


def _record(context: FunctionCtx, tensors: Sequence[Tensor], outputs: Sequence[Any], records: bool) -> list[Any]:
    """Put a call on the tape: results that carry gradients get their place there."""
    for t in context._dirty:
        if not any(t is a for a in tensors):
            raise RuntimeError("a tensor given to mark_dirty was not an input of the function")
        if not any(t is o for o in outputs):
            raise RuntimeError(
                "Some elements marked as dirty during the forward method were not returned as output. The inputs that are modified "
                "inplace must all be outputs of the Function."
            )
        if records and t.requires_grad and t.is_leaf:
            raise RuntimeError(errors.LEAF_IN_PLACE)
    carries = [
        isinstance(o, Tensor) and o.dtype.is_floating_point and not any(o is c for c in context._constant)
        for o in outputs
    ]
    placed = [bool(isinstance(o, Tensor) and (c or not records)) for o, c in zip(outputs, carries, strict=True)]
    context._likes = [(o.shape, o.dtype) if isinstance(o, Tensor) else None for o in outputs]
    ids = [_place(o) if p else 0 for o, p in zip(outputs, placed, strict=True)]
    context._outputs = ids
    extra = [t._id for t in tensors]
    places = [k for k in ids if k]
    saves_result = any(o is t for o in outputs for t in context._to_save if t is not None)
    if len(places) == 1 and len(outputs) == 1:
        rt.record_on(_S, function_op.code, places[0], 0, 0, 8 if saves_result else 0, rt.attributes(len(extra), *extra))
        attach(places[0]).context = context
    elif places:
        bundle = wrap(check_id(rt.new_leaf(_S, rt.layout(()), 0)))
        rt.record_on(_S, function_op.code, bundle._id, 0, 0, 0, rt.attributes(len(extra), *extra, 1))
        attach(bundle._id).context = context
        for number, k in enumerate(ids):
            if k:
                rt.record_on(_S, output_op.code, k, bundle._id, 0, 8 if saves_result else 0, rt.attributes(0, number))
                attach(k).context = context
                if not carries[number]:
                    rt.set_flag(_S, k, structs.REQUIRES_GRAD, 0)
    made = [_result(o, k, context) if k else o for o, k in zip(outputs, ids, strict=True)]
    context._keep(outputs if not context._dirty else made)
    context._dirty = context._constant = ()
    return made


def _place(output: Tensor) -> int:
    # a buffer of its own for a result, over the same memory
    return check_id(rt.share_leaf(_S, output._id, 2))


def _result(output: Tensor, k: int, context: FunctionCtx) -> Tensor:
    made = wrap(k)
    if not any(output is d for d in context._dirty):
        return made
    view = output._base_tensor() is not None
    rt.mark_written(_S, k, 1, int(view))
    if view:
        tell_base(output, made)
    else:
        output._id, made._id = made._id, output._id
    return output


def once_differentiable(backward: Callable) -> Callable:
    """Say that a `Function`'s backward cannot itself be differentiated: trying to is then an error instead of a wrong result."""

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        with set_grad_enabled(False):
            result = backward(ctx, *grads)
        needs = is_grad_enabled() and (
            any(isinstance(g, Tensor) and g.requires_grad for g in grads)
            or any(isinstance(t, Tensor) and t.requires_grad for t in ctx.saved_tensors)
        )
        if not needs:
            return result
        results = result if isinstance(result, tuple) else (result,)
        guarded = [
            _Refused.apply(r.detach().requires_grad_()) if isinstance(r, Tensor) and r.dtype.is_floating_point else r
            for r in results
        ]
        return tuple(guarded) if isinstance(result, tuple) else guarded[0]

    return wrapped


class _Refused(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")
