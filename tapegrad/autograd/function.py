"""Operations whose derivative the user writes in Python."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tapegrad import errors
from tapegrad.autograd.attached import attach, attachment
from tapegrad.autograd.context import FunctionCtx
from tapegrad.autograd.rows import Row, RowOp, dtype_of, grad_name_of, handle, output_number, shape_of
from tapegrad.autograd.sampling import differ, is_sampling, users_forward
from tapegrad.autograd.under_way import current_sweep
from tapegrad.creation import zeros
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_STORAGE, LOOK_TRACED
from tapegrad.grad_mode import is_grad_enabled, set_grad_enabled
from tapegrad.ops import _reading
from tapegrad.ops._view import check_view_may_be_written
from tapegrad.ops._write import tell_base
from tapegrad.tensor import Tensor, check_id, wrap

_S = rt.S


class _ResultOp(RowOp):
    # a result of a user's function
    def refuse_write(self, view: Tensor) -> None:
        """Refuse a recorded write to a result that lies in the memory of an argument."""
        context = _context(view._id)
        several = sum(1 for like in context._likes if like is not None) > 1
        message = errors.MULTIPLE_VIEWS_IN_PLACE if several else errors.FUNCTION_VIEW_IN_PLACE
        raise RuntimeError(message.format(name=grad_name_of(view._id), number=output_number(view._id)))


class _FunctionOp(_ResultOp):
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


class _OutputOp(_ResultOp):
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
    both = function.vjp is not Function.vjp and function.backward is not Function.backward
    if both:
        raise RuntimeError(
            "Implementing both 'backward' and 'vjp' for a custom Function is not allowed. You should only implement one of them."
        )
    result = (function.backward if function.vjp is Function.vjp else function.vjp)(context, *given)
    found = list(result) if isinstance(result, tuple) else [result]
    expected = len(context._tensors)
    if len(found) > expected and all(f is None for f in found[expected:]):
        del found[expected:]
    if len(found) != expected:
        raise RuntimeError(
            f"function {name} returned an incorrect number of gradients (expected {expected}, got {len(found)})"
        )
    parts = []
    places = iter(extra)
    for position, (value, tensor) in enumerate(zip(found, context._tensors, strict=True)):
        _check_kind(name, position, value)
        if tensor:
            needed = context.needs_input_grad[position]
            parts.append(_checked_part(name, position, value if needed else None, shape_of(next(places))))
        elif value is not None:
            raise RuntimeError(
                f"function {name} returned a gradient different than None at position {position + 1}, but the corresponding forward "
                "input was not a Variable"
            )
    return parts


def _check_kind(name: str, position: int, value: Any) -> None:
    if value is not None and not isinstance(value, Tensor):
        raise RuntimeError(
            f"function {name} returned a wrong gradient at position {position + 1}: expected Variable or None (got "
            f"{type(value).__name__})"
        )


def _checked_part(name: str, position: int, value: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    if value is not None and value.shape != shape and not _sums_to(value.shape, shape):
        raise RuntimeError(
            f"Function {name} returned an invalid gradient at index {position} - got {list(value.shape)} but expected shape "
            f"compatible with {list(shape)}"
        )
    return value


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
    def _has_vmap_rule(cls) -> bool:
        """Whether a batch runs what the function is made of; otherwise its own `vmap` does.

        Raises:
            RuntimeError: if there is neither, or both.
        """
        own = cls.vmap is not Function.vmap
        if own == bool(cls.generate_vmap_rule):
            raise RuntimeError((errors.TWO_VMAPS if own else errors.NO_VMAP).format(name=cls.__name__))
        return not own

    @classmethod
    def apply(cls, *args: Any, **named: Any) -> Any:
        """Run forward and record the call.

        Args:
            args: tensors and anything else; gradients flow to the tensors among them.
            named: the same by name.

        Returns:
            What forward returns.

        Raises:
            RuntimeError: for outputs that no gradient could be right for.
            TypeError: if a keyword-only argument is a tensor that requires grad.
        """
        parted = cls.setup_context is not Function.setup_context
        if named or parted:
            args, named = _bound(cls, parted, args, named)
        context = _context_class(cls)(cls, args)  # type: ignore[arg-type]
        tensors = [a for a in args if isinstance(a, Tensor)]
        traced = any(rt.look(_S, t._id, LOOK_TRACED) for t in tensors)
        records = is_grad_enabled() and any(t.requires_grad for t in tensors)
        # a trace takes the call for one operation; `forward` is traced too where it is what runs for a batch, or fills `ctx`
        by_rule = traced and differ(tensors) and cls._has_vmap_rule()
        opaque = traced and parted and not by_rule
        given = [untraced(a) if opaque and isinstance(a, Tensor) else a for a in args]
        setup: Callable[[Sequence[Any]], None] | None = None
        operands = [handle(t._id) for t in tensors] if traced else tensors  # which forward may write to
        with set_grad_enabled(False), users_forward() if _reading.sampling else contextlib.nullcontext():
            result = cls.forward(*(() if parted else (context,)), *given, **named)
            outputs = result if isinstance(result, tuple) else (result,)
            if parted and traced:
                outputs = tuple(_original(o, given, args) for o in outputs)
                single = not isinstance(result, tuple)
                setup = lambda shown: cls.setup_context(context, args, shown[0] if single else tuple(shown))
            elif parted:
                cls.setup_context(context, args, result)
        if records or traced:
            made = _record(context, tensors, operands, outputs, records, traced, setup)
        else:
            context._free()
            made = [o.detach() if _returned(o, tensors, context) else o for o in outputs]
        return tuple(made) if isinstance(result, tuple) else made[0]


@functools.cache
def _signature(forward: Callable) -> inspect.Signature:
    return inspect.signature(forward)


def _bound(function: type[Function], parted: bool, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    # arguments by position, with defaults, and keyword-only ones
    bound = _signature(function.forward).bind(*(() if parted else (None,)), *args, **named)
    bound.apply_defaults()
    for name, value in bound.kwargs.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise TypeError(
                f"{function.__name__}.apply(): the keyword-only argument '{name}' is a tensor that requires grad, which no gradient "
                "would reach; let forward take it by position"
            )
    return bound.args[0 if parted else 1 :], bound.kwargs


def _returned(output: Any, tensors: Sequence[Tensor], context: FunctionCtx) -> bool:
    # whether a result is an argument that was not changed
    return any(output is t for t in tensors) and not any(output is d for d in context._dirty)


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


@functools.cache
def _context_class(function: type[Function]) -> type[FunctionCtx]:
    return type(f"{function.__name__}Backward", (FunctionCtx,), {"__module__": function.__module__})


def _check_dirty(context: FunctionCtx, tensors: Sequence[Tensor], outputs: Sequence[Any], records: bool) -> None:
    for t in context._dirty:
        if _reading.sampling and _reading.check_write is not None:
            _reading.check_write(t, tensors)
        if not any(t is a for a in tensors):
            raise RuntimeError(errors.DIRTY_NOT_INPUT)
        if not any(t is o for o in outputs):
            raise RuntimeError(errors.NOT_RETURNED)
        if records and t.requires_grad and t.is_leaf and t._base_tensor() is None:
            raise RuntimeError(errors.DIRTY_LEAF)
        if records and t._base_tensor() is not None:
            check_view_may_be_written(t)


def _record(
    context: FunctionCtx,
    tensors: Sequence[Tensor],
    operands: Sequence[Tensor],
    outputs: Sequence[Any],
    records: bool,
    traced: bool,
    setup: Callable[[Sequence[Any]], None] | None,
) -> list[Any]:
    """Put a call on the tape: results that carry gradients get their place there, of a traced one all results.

    `operands` are the tensors among the arguments as they were before forward. A `setup` that is given still has to fill the context, from the results at their places.
    """
    if setup is None:
        _check_dirty(context, tensors, outputs, records)
    carries = [_carries(context, o) for o in outputs]
    placed = [isinstance(o, Tensor) and (c or traced) for o, c in zip(outputs, carries, strict=True)]
    context._likes = [(o.shape, o.dtype) if isinstance(o, Tensor) else None for o in outputs]
    ids = [check_id(rt.share_leaf(_S, o._id, 2)) if p else 0 for o, p in zip(outputs, placed, strict=True)]
    context._outputs = ids
    extra = [t._id for t in operands]
    if placed == [True]:
        rt.record_on(_S, function_op.code, ids[0], 0, 0, 0, rt.attributes(len(extra), *extra))
        attach(ids[0]).context = context
    elif any(ids):
        bundle = wrap(check_id(rt.new_leaf(_S, rt.layout(()), 0)))
        rt.record_on(_S, function_op.code, bundle._id, 0, 0, 0, rt.attributes(len(extra), *extra, 1))
        attach(bundle._id).context = context
        for number, k in enumerate(ids):
            if k:
                rt.record_on(_S, output_op.code, k, bundle._id, 0, 0, rt.attributes(0, number))
                attach(k).context = context
    if setup is not None:
        outputs = [handle(k) if k and not _is_among(o, tensors) else o for o, k in zip(outputs, ids, strict=True)]
        with set_grad_enabled(False):
            setup(outputs)
        _check_dirty(context, tensors, outputs, records)
    for output, k in zip(outputs, ids, strict=True):
        if k and not _carries(context, output):
            rt.set_flag(_S, k, structs.REQUIRES_GRAD, 0)
    made = [_result(o, k, tensors, context) for o, k in zip(outputs, ids, strict=True)]
    context._keep(tensors, outputs, made)
    context._dirty = context._constant = ()
    return made


def _carries(context: FunctionCtx, output: Any) -> bool:
    # whether gradients flow through a result
    floating = isinstance(output, Tensor) and output.dtype.is_floating_point
    return floating and not _is_among(output, context._constant)


def _is_among(value: Any, tensors: Sequence[Tensor]) -> bool:
    return any(value is t for t in tensors)


def _result(output: Any, k: int, tensors: Sequence[Tensor], context: FunctionCtx) -> Any:
    # a result at its place in the graph, buffer k, or outside of it
    if not k:
        return output.detach() if _returned(output, tensors, context) else output
    made = wrap(k)
    if any(output is d for d in context._dirty):
        view = output._base_tensor() is not None
        rt.mark_written(_S, k, 1, int(view))
        if view:
            tell_base(output, made)
        else:
            rt.retain(_S, k)
            output._move_to(k)
        return output
    for t in tensors:
        if rt.look(_S, t._id, LOOK_STORAGE) == rt.look(_S, k, LOOK_STORAGE):
            # in an argument's memory: whoever writes to one of them must not change the other unnoticed
            rt.set_flag(_S, k, structs.IS_VIEW, 1)
            made._root, made._where = t, None
            break
    return made


def once_differentiable(backward: Callable) -> Callable:
    """Say that a `Function`'s backward cannot itself be differentiated: trying to is then an error instead of a wrong result."""

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        with set_grad_enabled(False):
            result = backward(ctx, *grads)
        if not is_grad_enabled():
            return result
        # one sample does not say whether gradients flow to the others: what they may come from goes along
        links = [t for t in (*grads, *ctx.saved_tensors) if isinstance(t, Tensor)] if is_sampling() else []
        needs = links or any(isinstance(g, Tensor) and g.requires_grad for g in grads) or ctx._saves_graph
        if not needs:
            return result
        results = result if isinstance(result, tuple) else (result,)
        guarded = [
            _Refused.apply(r.detach() if links else r.detach().requires_grad_(), *links)
            if isinstance(r, Tensor) and r.dtype.is_floating_point
            else r
            for r in results
        ]
        return tuple(guarded) if isinstance(result, tuple) else guarded[0]

    return wrapped


class _Refused(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *links: Tensor) -> Tensor:
        return x.clone()  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        """Backward needs nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")
