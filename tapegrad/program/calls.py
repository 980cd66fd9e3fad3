"""Calls of compiled functions on the tape: one row each, whose derivative is a compiled function too."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tapegrad import _tree, errors
from tapegrad.autograd.attached import attach
from tapegrad.autograd.context import FunctionCtx
from tapegrad.autograd.function import Function, function_op, output_op
from tapegrad.engine.runtime import rt
from tapegrad.func._derivatives import vjp
from tapegrad.program.family import Family
from tapegrad.program.program import Program
from tapegrad.program.signature import Structure, Template, arguments_of
from tapegrad.program.stand_ins import drawing_again, standing_in
from tapegrad.tensor import Tensor, check_id, wrap

if TYPE_CHECKING:
    from tapegrad.program._compile import Compiled

_S = rt.S


class CompiledCall(Function):
    """A call of a compiled function on the tape; its derivative is a compiled function, and so on."""

    @staticmethod
    def backward(ctx: Any, *adjoints: Tensor) -> Any:
        """The compiled derivative on what was saved.

        Raises:
            RuntimeError: if what the function refers to is no longer what it was in the call.
        """
        family = ctx.family
        if not family.environment.is_same():
            raise RuntimeError(errors.COMPILE_CHANGED.format(next(iter(family.environment.changed()))[0]))
        arrived = [g for g, tracks in zip(adjoints, ctx.program.tracked, strict=True) if tracks]
        found = iter(_derivative(ctx)(*ctx.saved_tensors, *arrived))
        return tuple(next(found) if n else None for n in ctx.needs_input_grad)


class CompiledCallBackward(FunctionCtx):
    """What a call keeps for its backward.

    Args:
        compiled: the compiled function.
        family: of the call's arguments.
        program: the path that ran.
        data: how many of the tensors are among the arguments.
        tensors: data, tensors from outside that require grad, random numbers.
    """

    def __init__(
        self, compiled: Compiled, family: Family, program: Program, data: int, tensors: Sequence[Tensor]
    ) -> None:
        super().__init__(CompiledCall, tensors)
        self.compiled, self.family, self.program, self.data = compiled, family, program, data


def on_tape(context: CompiledCallBackward, tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Make the outputs of a program, so far leaves, those that carry gradients, results of a recorded call."""
    program = context.program
    context._likes = program.likes
    ids = context._outputs = [o._id if tracks else 0 for o, tracks in zip(outputs, program.tracked, strict=True)]
    operands = [t._id for t in tensors]
    if len(ids) == 1:
        rt.record_on(_S, function_op.code, ids[0], 0, 0, 0, rt.attributes(len(operands), *operands))
        attach(ids[0]).context = context
    else:
        # as the results of any `Function`: each leads to one row that has all their adjoints
        bundle = wrap(check_id(rt.new_leaf(_S, rt.layout(()), 0)))
        rt.record_on(_S, function_op.code, bundle._id, 0, 0, 0, rt.attributes(len(operands), *operands, 1))
        attach(bundle._id).context = context
        for number, k in enumerate(ids):
            if k:
                rt.record_on(_S, output_op.code, k, bundle._id, 0, 0, rt.attributes(0, number))
                attach(k).context = context
    context._saved = [context._keeper(t, None, ()) for t in tensors]


def _derivative(context: CompiledCallBackward) -> Compiled:
    """The compiled derivative of calls like one: of the call's tensors and the adjoints of its tracked outputs."""
    compiled, family, program = context.compiled, context.family, context.program
    outside = program.wanted()
    name = (context.needs_input_grad, tuple(program.tracked), tuple(id(t) for t in outside))
    known = family.derivatives.get(name)
    if known is None:
        function = functools.partial(
            pull_back,
            compiled.function,
            family.structure,
            family.template,
            context.needs_input_grad,
            outside,
            context.data,
        )
        known = family.derivatives.setdefault(name, compiled.like(function, family.settings))
    return known


def pull_back(
    function: Any,
    structure: Structure,
    template: Template,
    needs: Sequence[bool],
    outside: Sequence[Tensor],
    data: int,
    *tensors: Tensor,
) -> list[Tensor]:
    """The gradients of a call, by running its function again.

    Args:
        function: the function.
        structure: of the call's arguments.
        template: their leaves without the data.
        needs: which of the call's tensors want a gradient.
        outside: the tensors from outside that the function reads and that require grad.
        data: how many tensors are among the arguments.
        tensors: the call's (data, those from outside, random numbers), then the adjoints of its tracked outputs.

    Returns:
        One gradient for each tensor that wants one.
    """
    captured = data + len(outside)
    draws, adjoints = tensors[captured : len(needs)], tensors[len(needs) :]

    def of_wanted(*wanted: Tensor) -> list[Tensor]:
        places = iter(wanted)
        chosen = [next(places) if n else t for t, n in zip(tensors, needs, strict=False)]
        args, kwargs = arguments_of(structure, template.filled(chosen[:data]))
        others = {t._id: s for t, s in zip(outside, chosen[data:captured], strict=True)}
        with standing_in(others), drawing_again(draws):
            leaves = _tree.flatten(function(*args, **kwargs))[0]
        leaves = [others.get(t._id, t) if isinstance(t, Tensor) else t for t in leaves]
        return [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]

    _, back = vjp(of_wanted, *(t for t, n in zip(tensors, needs, strict=False) if n))
    return list(back(list(adjoints)))
