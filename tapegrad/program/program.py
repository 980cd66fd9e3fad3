"""One captured path through a function: what it is given at a call is bound, it runs, and its results are handed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad import _tree
from tapegrad.autograd.tracing import is_traced
from tapegrad.engine import structs
from tapegrad.engine.programs import FINISHED
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_DATA, LOOK_META
from tapegrad.program.capture import FACTS, Argument, Captured, Drawn
from tapegrad.program.fusion import Fusing
from tapegrad.program.native import Native, Replica, empty_array
from tapegrad.program.values import Code, Guard
from tapegrad.tensor import Size, Tensor, check_id, wrap

_S = rt.S
# arrays of up to so many bytes are copied, which is quicker than to find out where they are
_SMALL = 4096


class Place(NamedTuple):
    """Where a leaf of a result is found: number of an output, or a value that is the same at each call."""

    output: int
    fixed: Any


# a run to the end: its outputs, and the random numbers it drew
Ran = tuple[list[Any], Sequence[Tensor]]


class Outcome(NamedTuple):
    """What a guard met: its number among the program's guards, and the bytes there."""

    guard: int
    found: bytes


class Outdated(Exception):
    """A tensor from outside is no longer what it was: the function has to be captured again."""


class Program:
    """One path through a function, for arguments of one signature.

    Args:
        code: what is left of the captured code after all passes.
        arrays: which of the data among the arguments are NumPy arrays.
        positions: of these data among all leaves of the arguments.
        places: of the result's leaves.
        structure: of the result.
        tracked: which outputs carry gradients.

    Attributes:
        carries: whether an output carries gradients.
        likes: shapes and dtypes of the outputs.
        captured: the tensors from outside that it reads.
        expected: the bytes its guards expect, in order.
        replays: how often it ran to its end.
        used: when it last did, counted in calls.
    """

    def __init__(
        self,
        code: Code,
        arrays: Sequence[bool],
        positions: Sequence[int],
        places: Sequence[Place],
        structure: _tree.Structure,
        tracked: Sequence[bool],
    ) -> None:
        self.code, self.places, self.structure, self.tracked = code, places, structure, list(tracked)
        self.native = Native(code)
        self._fusing = Fusing(code)
        self.guards = [s for s in code.steps if isinstance(s, Guard)]
        self.expected = tuple(g.expected for g in self.guards)
        self.replays = self.used = 0
        self.carries = any(tracked)
        self.likes: list[Any] = [(Size(v.shape), v.dtype) for v in code.outputs]
        self._pool: list[_Bound] = []
        sources = list(enumerate(v.source for v in code.inputs))
        arguments = [(k, s.position) for k, s in sources if isinstance(s, Argument)]
        self.captured = [s for _, s in sources if isinstance(s, Captured)]
        self._outside = [(k, s) for k, s in sources if isinstance(s, Captured)]
        self.drawn = [(k, s) for k, s in sources if isinstance(s, Drawn)]
        self.as_arrays = bool(arrays) and all(arrays)
        self._from_tensors = [(k, positions[p]) for k, p in arguments if not arrays[p]]
        from_arrays = [(k, positions[p]) for k, p in arguments if arrays[p]]
        self.small_in = [(k, p) for k, p in from_arrays if code.inputs[k].nbytes() <= _SMALL]
        self._large_in = [(k, p) for k, p in from_arrays if code.inputs[k].nbytes() > _SMALL]
        first = len(code.inputs)
        self._results = [(first + j, v, v.layout, v.dtype) for j, v in enumerate(code.outputs)]
        owned = self.small_in + [(k, 0) for k, v, _, _ in self._results if self.as_arrays and v.nbytes() <= _SMALL]
        self.owned = [k for k, _ in owned]
        # nothing but small arrays in and out
        self.plain = (
            self.as_arrays and not (self.captured or self.drawn or self._large_in) and len(owned) == self.native.given
        )
        # always the same path
        self.simple = not (self.guards or self.drawn)
        # what the outputs are put into: nothing, a tuple, or any tree
        in_order = [p.output for p in places] == list(range(len(places)))
        self._whole = structure.kind is None
        self._flat = in_order and structure.kind is tuple and len(structure.parts) == len(places)

    def _take(self) -> _Bound:
        try:
            return self._pool.pop()
        except IndexError:
            return _Bound(self)

    def run(self, leaves: Sequence[Any]) -> Ran | Outcome:
        """Run on the leaves of the arguments.

        Returns:
            The outputs, arrays if all arguments are arrays, else tensors without gradients; or what stopped it.

        Raises:
            Outdated: if a tensor from outside has another shape or dtype.
            RuntimeError: if compiled code of the user raised an exception.
        """
        bound = self._take()
        owned = bound.owned
        for k, p in self.small_in:
            owned[k][...] = leaves[p]
        if not self.plain:
            return self._run_on(bound, leaves)
        if bound.replica.run() != FINISHED:
            return self._stopped(bound, 1)
        found = [array.copy() for array in bound.results]
        self._pool.append(bound)
        self.replays += 1
        if self.replays >= self._fusing.due:
            self.fuse(self.replays)
        return found, ()

    def is_fused(self) -> bool:
        """Whether it runs with loops compiled for it."""
        return self.native.code is not self.code

    def fuse(self, runs: float) -> None:
        """Have loops compiled for it, if so many runs make that worthwhile."""
        code = self._fusing.ask(runs)
        if code is not None:
            self.native, self._pool = Native(code), []

    def _run_on(self, bound: _Bound, leaves: Sequence[Any]) -> Ran | Outcome:
        addresses = bound.replica.addresses
        keep: list[Any] = []
        draws: list[Tensor] = []
        for k, p in self._from_tensors:
            addresses[k] = rt.look(_S, leaves[p]._id, LOOK_DATA)
        for k, p in self._large_in:
            value = self.code.inputs[k]
            array = np.ascontiguousarray(leaves[p], value.dtype.numpy)
            if not array.flags.aligned:
                array = array.copy()
            keep.append(array)
            addresses[k] = array.__array_interface__["data"][0]
        for k, source in self._outside:
            addresses[k] = address_of(source)
        for k, drawn in self.drawn:
            t = drawn.draw()
            draws.append(t)
            addresses[k] = rt.look(_S, t._id, LOOK_DATA)
        found: list[Any] = []
        for k, value, layout, dtype in self._results:
            if k in bound.owned:
                found.append(None)
            elif self.as_arrays:
                array = empty_array(value.shape, dtype.numpy)
                addresses[k] = array.__array_interface__["data"][0]
                found.append(array)
            else:
                made = wrap(check_id(rt.new_leaf(_S, layout, dtype.code)))
                addresses[k] = rt.look(_S, made._id, LOOK_DATA)
                found.append(made)
        answer = bound.replica.run()
        if answer != FINISHED:
            return self._stopped(bound, answer)
        found = [
            bound.owned[k].copy() if f is None else f for f, (k, _, _, _) in zip(found, self._results, strict=True)
        ]
        self._pool.append(bound)
        self.replays += 1
        if self.replays >= self._fusing.due:
            self.fuse(self.replays)
        return found, draws

    def _stopped(self, bound: _Bound, answer: int) -> Outcome:
        step = bound.replica.stopped()
        if not isinstance(step, Guard):
            raise KernelRaised(answer)
        found = Outcome(self.guards.index(step), bound.replica.bytes_of(step.value))
        self._pool.append(bound)
        return found

    def result(self, outputs: Sequence[Any]) -> Any:
        """What the function returns, with these outputs in it."""
        if self._whole:
            return outputs[0]
        if self._flat:
            return tuple(outputs)
        leaves = [outputs[p.output] if p.output >= 0 else _copied(p.fixed) for p in self.places]
        return _tree.unflatten(leaves, self.structure)

    def wanted(self) -> list[Tensor]:
        """The tensors from outside that it reads and that require grad."""
        return [s.tensor for s in self.captured if s.tensor.requires_grad]

    def reaches_trace(self) -> bool:
        """Whether a tensor from outside that it reads is being traced by a transformation."""
        return any(is_traced(s.tensor) for s in self.captured)

    def draws_from(self) -> list[Any]:
        """The generators that random numbers come from."""
        return list(dict.fromkeys(d.generator for _, d in self.drawn))


class KernelRaised(Exception):
    """Compiled code of the user raised an exception: it has to be run again where Python sees it."""


class _Bound:
    # a replica with arrays of its own for what is small
    def __init__(self, program: Program) -> None:
        self.replica = Replica(program.native)
        self.owned: dict[int, np.ndarray] = {}
        values = (*program.code.inputs, *program.code.outputs)
        for k in program.owned:
            array = self.owned[k] = np.empty(values[k].shape, values[k].dtype.numpy)
            self.replica.addresses[k] = array.__array_interface__["data"][0]
        first = len(program.code.inputs)
        self.results = [array for k, array in self.owned.items() if k >= first]


def _copied(fixed: Any) -> Any:
    return fixed.copy() if isinstance(fixed, np.ndarray) else fixed


def address_of(source: Captured) -> int:
    """Where the elements of a tensor from outside are.

    Raises:
        Outdated: if it has another shape or dtype than it had, or requires grad where it did not.
    """
    t = source.tensor
    meta = rt.look(_S, t._id, LOOK_META)
    if meta & structs.IS_VIEW << 8:
        t._refresh()
        meta = rt.look(_S, t._id, LOOK_META)
    if meta & FACTS != source.meta:
        raise Outdated
    return rt.look(_S, t._id, LOOK_DATA)
