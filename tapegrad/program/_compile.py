"""`compile`: a function that is captured once for each kind of arguments, and replayed natively after that."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any, overload

import numpy as np

from tapegrad import _tree
from tapegrad.autograd.tracing import is_traced, under_way
from tapegrad.creation import as_tensor, from_copy
from tapegrad.engine.runtime import rt
from tapegrad.func._derivatives import value_and_grad
from tapegrad.program.callable import Native
from tapegrad.program.calls import CompiledCallBackward, on_tape
from tapegrad.program.capture import Capture, TracedOutside, capturing
from tapegrad.program.environment import Callables
from tapegrad.program.family import Family
from tapegrad.program.passes import optimised
from tapegrad.program.program import KernelRaised, Outcome, Outdated, Place, Program, Ran
from tapegrad.program.showing import graph, table
from tapegrad.program.signature import Structure, arguments_of, is_data, signature_of
from tapegrad.program.values import Value
from tapegrad.tensor import Tensor

_S = rt.S
# counts of what happened, which stay when programs go
_HAPPENED = ("captures", "recaptures", "replays", "dropped", "eager")
_WRAPPED = ("__name__", "__qualname__", "__doc__", "__module__")


class Compiled(Callables):
    """What `compile` returns: call it like the function.

    Args:
        function: the function.
        static_argnums: positions of arguments that are no data though they may be tensors or arrays.
        max_programs: how many captured paths are kept.

    Attributes:
        lanes: what `vmap` made of this function and of its transformations (see lanes.py).
    """

    def __init__(self, function: Callable, static_argnums: Sequence[int] = (), max_programs: int = 64) -> None:
        self.function = function
        self._watched = function  # whose names are looked after
        self._others: list[Any] = []  # objects whose attributes are looked after too
        self._static = frozenset(static_argnums)
        self._most = max_programs
        self._families: dict[Any, Family] = {}
        self._derived: dict[Any, Compiled] = {}
        self.lanes: dict[Any, Any] = {}
        self._lock = threading.RLock()
        self._calls = 0
        self._happened = dict.fromkeys(_HAPPENED, 0)
        self._name = getattr(function, "__name__", type(function).__name__)
        functools.update_wrapper(self, function, [a for a in _WRAPPED if hasattr(function, a)], ())

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<compiled {self._name}>"

    def __reduce__(self) -> Any:
        # by its name where that leads here, as functions are; else compiled again
        found: Any = sys.modules.get(getattr(self, "__module__", ""))
        for part in getattr(self, "__qualname__", "?").split("."):
            found = getattr(found, part, None)
        return self.__qualname__ if found is self else (Compiled, (self.function, tuple(self._static), self._most))

    # calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure, key = signature_of(self._name, args, kwargs, self._static)
        inside = under_way()
        if inside and (capturing() or any(isinstance(v, Tensor) and is_traced(v) for v in leaves)):
            return self._called(leaves, structure)
        family = self._families.get(key)
        if family is None or not family.environment.is_same():
            family = self._new_family(key, structure, leaves)
        if family.eager:
            return self._eagerly(leaves, family)
        try:
            program, ran = self._run(family, leaves, inside)
        except TracedOutside:
            with self._lock:
                self._families.pop(key, None)  # which holds what is traced
            return self._eagerly(leaves, family)
        if program is None:
            return ran
        if program.as_arrays or not program.carries or rt.mode_of_thread(_S):
            return program.result(ran[0])
        return self._tracked(family, program, leaves, ran)

    def _run(self, family: Family, leaves: Sequence[Any], inside: bool) -> tuple[Program | None, Any]:
        """Run the path that these arguments take; the program and how it ran, or None and the result of an eager run.

        Within a transformation (`inside`), a function that refers to a tensor it traces is part of what it transforms.

        Raises:
            TracedOutside: if that shows while the function is captured.
        """
        self._calls += 1
        first = next(iter(family.programs), None)
        if first is not None and first.simple and not (inside and first.reaches_trace()):
            try:
                ran = first.run(leaves)
            except (Outdated, KernelRaised):
                pass  # told apart below
            else:
                first.used = self._calls
                family.runs += 1
                self._happened["replays"] += 1
                return first, ran
        saved: list[tuple[Any, Any]] = []
        tried: set[int] = set()
        path: tuple[bytes, ...] = ()
        while True:
            program = next((p for p in family.programs if id(p) not in tried and p.expected[: len(path)] == path), None)
            new = program is None
            if program is None:
                if family.misses > 3 * self._most and family.misses > family.runs:
                    family.give_up()
                    return None, self._eagerly(leaves, family)
                program = self._capture(family, leaves, inside)
            elif inside and program.reaches_trace():
                return None, self._eagerly(leaves, family)
            tried.add(id(program))
            for generator in program.draws_from() if program.drawn and program.guards else ():
                if not any(g is generator for g, _ in saved):
                    saved.append((generator, generator.get_state()))
            try:
                found = program.run(leaves)
            except Outdated:
                if new:
                    raise
                with self._lock, contextlib.suppress(ValueError):
                    family.programs.remove(program)
                continue
            except KernelRaised:
                return None, self._eagerly(leaves, family)
            if isinstance(found, Outcome):
                path = (*program.expected[: found.guard], found.found)
                for generator, state in saved:
                    generator.set_state(state)
                if new:
                    return None, self._eagerly(leaves, family)
                continue
            program.used = self._calls
            family.runs += not new
            self._happened["replays"] += 1
            if family.programs[:1] != [program]:
                with self._lock:
                    if program in family.programs:  # which other threads may have dropped
                        family.programs.remove(program)
                        family.programs.insert(0, program)
            return program, found

    # capture

    def _new_family(self, key: Any, structure: Structure, leaves: Sequence[Any]) -> Family:
        known = self._families.get(key)
        with self._lock:
            if known is not None:
                self._retire(known)
            family = self._families[key] = Family(structure, leaves, self._watched, self._others)
            family.unsettled = known.unsettled if known is not None else 0
        return family

    def _capture(self, family: Family, leaves: Sequence[Any], inside: bool) -> Program:
        before = rt.set_mode(_S, 0)
        collects = gc.isenabled()
        gc.disable()  # nothing of the many objects that are made is garbage
        try:
            program = self._captured(Capture(inside), family, leaves)
        finally:
            rt.set_mode(_S, before)
            if collects:
                gc.enable()
        with self._lock:
            self._happened["captures"] += 1
            self._happened["recaptures"] += family.misses > 0
            family.misses += 1
            if not family.unsettled:
                family.programs.insert(0, program)
                self._drop()
        return program

    def _captured(self, capture: Capture, family: Family, leaves: Sequence[Any]) -> Program:
        positions = [p for p, leaf in enumerate(leaves) if is_data(leaf)]
        arrays = [isinstance(leaves[p], np.ndarray) for p in positions]
        given = list(leaves)
        for p in positions:
            given[p] = capture.argument(as_tensor(leaves[p]))
        args, kwargs = arguments_of(family.structure, given)
        values: list[Value] = []
        places: list[Place] = []
        tracked: list[bool] = []
        with capture.running():
            result = self.function(*args, **kwargs)
            found, structure = _tree.flatten(result)
            for leaf in found:
                if isinstance(leaf, Tensor):
                    places.append(Place(len(values), None))
                    values.append(capture.result(leaf))
                    tracked.append(leaf.requires_grad)
                else:
                    places.append(Place(-1, leaf.copy() if isinstance(leaf, np.ndarray) else leaf))
        capture.check_unchanged()
        family.check_environment(capture)
        if not values:
            raise TypeError(
                f"compile: {self._name} returned no tensor but {_named(result)}; return the tensors it computes (not numbers made of them "
                "by item() or float())"
            )
        capture.rewind()
        code = optimised(capture.code(values))
        program = Program(code, arrays, positions, places, structure, tracked)
        return program

    def _drop(self) -> None:
        # the path that was not taken for the longest time goes
        every = [(p.used or self._calls, f, p) for f in self._families.values() for p in f.programs]
        if len(every) > self._most:
            _, family, program = min(every, key=lambda e: e[0])
            family.programs.remove(program)
            self._happened["dropped"] += 1
        for key in [k for k, f in self._families.items() if not f.programs and not f.eager]:
            if len(self._families) > self._most:
                self._retire(self._families.pop(key))

    def _retire(self, family: Family) -> None:
        # what its derivatives did stays counted
        for derivative in family.derivatives.values():
            counts = derivative.stats()
            for name in _HAPPENED:
                self._happened[name] += counts[name]

    def _eagerly(self, leaves: Sequence[Any], family: Family) -> Any:
        self._happened["eager"] += 1
        return self._called(leaves, family.structure)

    def _called(self, leaves: Sequence[Any], structure: Structure) -> Any:
        # the function itself
        data = [v for v in leaves if is_data(v)]
        given = [as_tensor(v) if isinstance(v, np.ndarray) else v for v in leaves]
        args, kwargs = arguments_of(structure, given)
        result = self.function(*args, **kwargs)
        if data and all(isinstance(v, np.ndarray) for v in data):
            return _tree.map_leaves(lambda v: v.detach().numpy().copy() if isinstance(v, Tensor) else v, result)
        return result

    # derivatives

    def _tracked(self, family: Family, program: Program, leaves: list[Any], ran: Ran) -> Any:
        # as one row on the tape
        outputs, draws = ran
        # backward needs arrays as they are now
        data = [v if isinstance(v, Tensor) else from_copy(v) for v in leaves if is_data(v)]
        tensors = [*data, *program.wanted(), *draws]
        context = CompiledCallBackward(self, family, program, len(data), tensors)
        if any(context.needs_input_grad):
            on_tape(context, tensors, outputs)
        else:
            # leaves that the function made itself
            for t, tracks in zip(outputs, program.tracked, strict=True):
                t.requires_grad_(tracks)
        return program.result(outputs)

    def like(self, function: Callable, others: Sequence[Any]) -> Compiled:
        """Another function, compiled as this one is; `others` are objects whose attributes it may use."""
        made = Compiled(function, (), self._most)
        made._name, made._watched, made._others = f"derivative of {self._name}", self._watched, list(others)
        return made

    def value_and_grad(
        self, *args: Any, argnums: int | tuple[int, ...] = 0, has_aux: bool = False, **kwargs: Any
    ) -> Any:
        """The value and its gradient, both from one program.

        Args:
            args: arguments of the function, which returns a tensor of one element without dimensions (with `has_aux` a pair of that
                and anything).
            argnums: which of them to differentiate with respect to: trees of floating tensors or arrays.
            has_aux: whether the function returns a pair.
            kwargs: more arguments.

        Returns:
            ``(value, gradient)``, with `has_aux` ``((value, aux), gradient)``; the gradient has the structure of the argument. Arrays
            if all data among the arguments are arrays.

        Raises:
            RuntimeError: if the function returns anything else.

        >>> import numpy as np
        >>> import tapegrad as tg
        >>> energy = tg.compile(lambda x: (x * x).sum())
        >>> energy.value_and_grad(np.array([1.0, 2.0]))
        (array(5.), array([2., 4.]))
        """
        return self.derivative(argnums, has_aux)(*args, **kwargs)

    def derivative(self, argnums: int | tuple[int, ...], has_aux: bool = False) -> Compiled:
        """The compiled function that `value_and_grad` calls."""
        derived = self._derived.get((argnums, has_aux))
        if derived is None:
            made = Compiled(value_and_grad(self.function, argnums, has_aux), tuple(self._static), self._most)
            derived = self._derived.setdefault((argnums, has_aux), made)
        return derived

    def transformed(self, name: Hashable, transformation: Callable) -> Compiled:
        """A transformation of this function, compiled; the same one for equal names.

        Args:
            name: says what the transformation does.
            transformation: a function of the same arguments.
        """
        made = Compiled(transformation, tuple(self._static), self._most)
        made._name, made._watched = self._name, self._watched
        try:
            return self._derived.setdefault(name, made)
        except TypeError:  # arguments of the transformation that are not hashable
            return made

    def native(self, *args: Any, argnums: int | tuple[int, ...] = 0) -> Native:
        """The function for a user's own compiled code: ``value = f(*args, *gradients)``, without Python.

        Args:
            args: examples of the arguments: float64 arrays (or tensors), whose shapes count, and floats, whose values do not.
            argnums: which arguments gradients are wanted of.

        Returns:
            What Numba-compiled functions call, from many threads at once if they like; its `ctypes` and `low_level_callable` are for
            libraries that call C, such as `scipy.integrate`. For arguments that take a path that was not recorded yet, value and
            gradients are NaN and its `missed` counts; call `value_and_grad` with an argument of each kind before.

        Raises:
            TypeError: for other arguments, and if the function returns no float64 scalar.
            RuntimeError: if the function needs Python at each run: to draw random numbers, or to call NumPy.

        >>> import numba
        >>> import numpy as np
        >>> import tapegrad as tg
        >>> energy = tg.compile(lambda x, k: k * (x * x).sum()).native(np.zeros(2), 1.0)
        >>> @numba.njit
        ... def step(x, k):
        ...     g = np.empty_like(x)
        ...     value = energy(x, k, g)
        ...     return value, g
        >>> step(np.array([1.0, 2.0]), 0.5)
        (2.5, array([1., 2.]))
        """
        return Native(self, args, argnums)

    def paths_of(self, *args: Any) -> list[Program]:
        """The paths recorded for arguments of the same kind, those used last first."""
        family = self._families.get(signature_of(self._name, args, {}, self._static)[2])
        return [] if family is None else list(family.programs)

    # what there is

    def stats(self) -> dict[str, int]:
        """What was recorded so far, derivatives included.

        Returns:
            Counts: `programs` kept, their `instructions`, `guards` and `bytes`, and how many run with loops `fused` for them; `captures` made, of which `recaptures` since a guard met
            another value; `replays`, under `vmap` one for each block of samples; programs `dropped` to stay within `max_programs`; and `eager` calls.

        >>> import tapegrad as tg
        >>> f = tg.compile(lambda x: x.sin() * 2)
        >>> _ = f(tg.ones(3)), f(tg.zeros(3))
        >>> f.stats()["programs"], f.stats()["replays"]
        (1, 2)
        """
        families = list(self._families.values())
        programs = [p for f in families for p in list(f.programs)]
        counts = {
            "programs": len(programs),
            "fused": sum(p.is_fused() for p in programs),
            "instructions": sum(len(p.code.steps) - len(p.guards) for p in programs),
            "guards": sum(len(p.guards) for p in programs),
            **self._happened,
            "bytes": sum(p.native.nbytes for p in programs),
        }
        for lanes in list(self.lanes.values()):
            paths = lanes.programs()
            counts["programs"] += len(paths)
            counts["fused"] += sum(p.is_fused() for p in paths)
            counts["instructions"] += sum(len(p.code.steps) for p in paths)
            counts["guards"] += sum(len(p.guards) for p in paths)
            counts["captures"] += lanes.captures
            counts["replays"] += sum(p.replays for p in paths)
            counts["bytes"] += sum(p.native.nbytes for p in paths)
        for derived in [*self._derived.values(), *(d for f in families for d in f.derivatives.values())]:
            counts = {name: counts[name] + more for name, more in derived.stats().items()}
        return counts

    def programs(self) -> list[Program]:
        """The recorded paths, those used last first."""
        return sorted((p for f in list(self._families.values()) for p in list(f.programs)), key=lambda p: -p.used)

    def show(self) -> None:
        """Print the recorded programs, derivatives included, as tables: operations, operands, shapes, bytes of the results, source lines.

        Arguments are x0, x1 ..., tensors from outside w0 ..., random numbers r0 ...; of a guard, the result is what it expects.

        >>> import tapegrad as tg
        >>> f = tg.compile(lambda x: (x * 2).sum())
        >>> _ = f(tg.ones(3))
        >>> f.show()  # doctest: +ELLIPSIS +NORMALIZE_WHITESPACE
        <lambda>(x0: float32[3]), 1 replay
        row  operation  operands  result  shape  dtype    bytes  line
        0    mul        x0, 2.0   %0      [3]    float32  12     ...
        1    sum        %0        %1      []     float32  4      ...
        returns %1
        """
        print("\n\n".join(table(n, p) for n, p in self._named_programs()) or f"{self!r}: nothing is recorded yet")

    def dot(self) -> str:
        """The recorded programs as a graph in the DOT language, for Graphviz: ``dot -Tsvg``.

        >>> import tapegrad as tg
        >>> f = tg.compile(lambda x: x * 2)
        >>> _ = f(tg.ones(3))
        >>> print(f.dot().splitlines()[4])
            p0_v0 [label="x0 [3]", style=rounded];
        """
        return graph(self._named_programs())

    def _named_programs(self) -> list[tuple[str, Program]]:
        # its own, then those of its derivatives
        found = [(self._name, p) for p in self.programs()]
        for derived in self._derived.values():
            found += [(f"value and gradient of {name}", p) for name, p in derived._named_programs()]
        for family in list(self._families.values()):
            for derivative in family.derivatives.values():
                found += derivative._named_programs()
        return found


def _named(result: Any) -> str:
    return "None" if result is None else f"a {type(result).__name__}"


@overload
def compile(f: Callable, *, static_argnums: int | Sequence[int] = ..., max_programs: int = ...) -> Compiled: ...
@overload
def compile(
    f: None = None, *, static_argnums: int | Sequence[int] = ..., max_programs: int = ...
) -> Callable[[Callable], Compiled]: ...
def compile(
    f: Callable | None = None, *, static_argnums: int | Sequence[int] = (), max_programs: int = 64
) -> Compiled | Callable[[Callable], Compiled]:
    """Record a function once for each kind of arguments, and replay it natively after that; also as a decorator.

    The function must compute its result from its arguments by operations on tensors; on its first call it runs in Python. Arguments
    are trees of tensors and NumPy arrays, which may differ in value from call to call, and other hashable values, each of which is
    recorded for itself. Where it looks at values (an `if`, `item()`), the path taken is recorded with a guard; another value records
    another path, so that the answer is always that of the function itself. Results of tensors are tensors through which gradients
    flow, to tensors the function refers to as well; if all data are arrays, so are the results.

    Args:
        f: the function.
        static_argnums: positions of arguments that are recorded by value whatever they are.
        max_programs: how many recorded paths are kept; the one not used for the longest time goes.

    Returns:
        The compiled function: called like `f`, with `value_and_grad`, `native`, `stats`, `show` and `dot`.

    Raises:
        TypeError: if `f` is not callable; in calls, for arguments that are neither data nor hashable, and if no tensor is returned.
        RuntimeError: in calls, if the function writes to its arguments or to tensors from outside, changes something else that it
            refers to, or draws random numbers from NumPy or Python; with the line of the source.

    >>> import numpy as np
    >>> import tapegrad as tg
    >>> @tg.compile
    ... def price(rate, flows):
    ...     return (flows * tg.exp(-rate * tg.arange(3.0))).sum()
    >>> price(tg.tensor(0.0), tg.tensor([1.0, 2.0, 3.0]))
    tensor(6.)
    >>> price.value_and_grad(np.array(0.0), np.array([1.0, 2.0, 3.0]))
    (array(6.), array(-8.))
    """
    chosen = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    if not all(isinstance(n, int) for n in chosen):
        raise TypeError(f"compile: static_argnums must be an int or ints, but got {static_argnums!r}")
    if isinstance(max_programs, bool) or not isinstance(max_programs, int) or max_programs < 1:
        raise ValueError(f"compile: max_programs must be a positive int, but got {max_programs!r}")
    if f is None:
        return lambda function: compile(function, static_argnums=chosen, max_programs=max_programs)
    if not callable(f):
        raise TypeError(f"compile: expected a function, but got {type(f).__name__}")
    return Compiled(f, chosen, max_programs)
