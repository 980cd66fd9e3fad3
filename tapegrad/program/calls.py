"""Calls of compiled functions on the tape: one row each, whose derivative is a compiled function too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import _tree, errors
from tapegrad.autograd.function import Function
from tapegrad.func._derivatives import vjp
from tapegrad.program.program import Program
from tapegrad.program.stand_ins import drawing_again, standing_in
from tapegrad.tensor import Tensor

if TYPE_CHECKING:
    from tapegrad.program._compile import Compiled, Family


class Template:
    """The leaves of a call's arguments, without the data among them."""

    def __init__(self, leaves: Sequence[Any]) -> None:
        self._leaves = [None if isinstance(v, Tensor | np.ndarray) else v for v in leaves]
        self._places = [p for p, v in enumerate(leaves) if isinstance(v, Tensor | np.ndarray)]

    def filled(self, tensors: Sequence[Tensor]) -> list[Any]:
        """The leaves with other data."""
        leaves = list(self._leaves)
        for p, t in zip(self._places, tensors, strict=True):
            leaves[p] = t
        return leaves


class Call:
    """One call whose result carries gradients.

    Args:
        compiled: the compiled function.
        key: the signature of the arguments.
        family: their family of paths.
        program: the path that ran.
        leaves: of the arguments.
        outputs: of the program.
        data: how many of the call's tensors are among the arguments.
    """

    def __init__(
        self,
        compiled: Compiled,
        key: Any,
        family: Family,
        program: Program,
        leaves: list[Any],
        outputs: list[Any],
        data: int,
    ) -> None:
        self.compiled, self.key, self.family, self.program = compiled, key, family, program
        self.leaves, self.outputs = leaves, outputs
        self.data = data


class CompiledCall(Function):
    """A call of a compiled function on the tape; its derivative is a compiled function, and so on."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Any:
        """The outputs, which are there already."""
        ctx.call = call
        ctx.save_for_backward(*tensors)
        outputs, tracked = call.outputs, call.program.tracked
        ctx.mark_non_differentiable(*(t for t, tracks in zip(outputs, tracked, strict=True) if not tracks))
        call.outputs = []
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *adjoints: Tensor) -> Any:
        """The compiled derivative on what was saved."""
        call: Call = ctx.call
        if not call.family.environment.is_same():
            raise RuntimeError(errors.COMPILE_CHANGED.format(next(iter(call.family.environment.changed()))[0]))
        tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        arrived = [g for g, tracks in zip(adjoints, call.program.tracked, strict=True) if tracks]
        derivative = call.compiled.derivative_of(call, needs)
        found = iter(derivative(*tensors, *arrived))
        return (None, *(next(found) if n else None for n in needs))


def pull_back(
    compiled: Compiled,
    family: Family,
    template: Template,
    needs: Sequence[bool],
    outside: Sequence[Tensor],
    data: int,
    *tensors: Tensor,
) -> list[Tensor]:
    """The gradients of a call, by running its function again.

    Args:
        compiled: the compiled function.
        family: of the call's arguments.
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
        args, kwargs = compiled.arguments(family, template.filled(chosen[:data]))
        others = {t._id: s for t, s in zip(outside, chosen[data:captured], strict=True)}
        with standing_in(others), drawing_again(draws):
            leaves = _tree.flatten(compiled.function(*args, **kwargs))[0]
        leaves = [others.get(t._id, t) if isinstance(t, Tensor) else t for t in leaves]
        return [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]

    _, back = vjp(of_wanted, *(t for t, n in zip(tensors, needs, strict=False) if n))
    return list(back(list(adjoints)))
