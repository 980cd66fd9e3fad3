"""`compile`: a function that is captured once for each kind of arguments, and replayed natively after that."""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any, overload

import numpy as np

from tapegrad import _tree, dtypes, errors
from tapegrad.autograd.tracing import is_traced, under_way
from tapegrad.creation import as_tensor
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META
from tapegrad.func._derivatives import value_and_grad
from tapegrad.metadata import layout_facts
from tapegrad.program.callable import Native
from tapegrad.program.calls import Call, CompiledCall, Template, pull_back
from tapegrad.program.capture import Capture, capturing
from tapegrad.program.environment import Callables, Environment
from tapegrad.program.passes import optimised
from tapegrad.program.program import KernelRaised, Outcome, Outdated, Place, Program, Ran, own_tensors
from tapegrad.program.showing import graph, table
from tapegrad.program.values import Value
from tapegrad.tensor import Tensor

_S = rt.S
_GRAD = structs.REQUIRES_GRAD << 8
_FACTS = ~0xFF00 | _GRAD  # of META: layout, dtype, and whether it requires grad
_WRAPPED = ("__name__", "__qualname__", "__doc__", "__module__")


class Family:
    """The paths captured for arguments of one signature.

    Attributes:
        programs: the one used last first.
        structure: of the arguments.
        environment: what the function refers to outside of itself.
        misses: how often no path captured so far was the right one.
        runs: how often one was.
        unsettled: how many captures in a row changed what the function refers to.
        eager: the line that looks at values which differ at nearly every call: the function runs eagerly.
    """

    def __init__(self, structure: _tree.Structure | int, environment: Environment) -> None:
        self.programs: list[Program] = []
        self.structure, self.environment = structure, environment
        self.misses = self.runs = self.unsettled = 0
        self.eager = ""


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
        self._calls = self._captures = self._dropped = self._eager = 0
        self._name = getattr(function, "__name__", type(function).__name__)
        functools.update_wrapper(self, function, [a for a in _WRAPPED if hasattr(function, a)], ())

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<compiled {self._name}>"

    # calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure, key = self._signature(args, kwargs)
        if under_way() and (capturing() or any(type(v) is Tensor and is_traced(v) for v in leaves)):
            return self.function(*args, **kwargs)
        family = self._families.get(key)
        if family is None or not family.environment.is_same():
            family = self._new_family(key, structure, leaves)
        if family.eager:
            return self._eagerly(leaves, family)
        program, ran = self._run(family, leaves)
        if program is None:
            return ran
        if program.as_arrays or not any(program.tracked) or rt.mode_of_thread(_S):
            return program.result(ran[0])
        return self._tracked(key, family, program, leaves, ran)

    def _signature(self, args: tuple, kwargs: dict) -> tuple[list[Any], _tree.Structure | int, Any]:
        key: list[Any] = [dtypes.get_default_dtype(), len(args)]
        leaves: list[Any] = []
        structure: Any = len(args)
        plain = not kwargs and not self._static
        if plain:
            for a in args:
                kind = type(a)
                if kind is Tensor:
                    meta = rt.look(_S, a._id, LOOK_META)
                    if not layout_facts(meta >> 16)[2]:
                        a = a.contiguous()  # type: ignore[attr-defined]
                        meta = rt.look(_S, a._id, LOOK_META)
                    key.append(meta & _FACTS)
                elif kind is np.ndarray and a.dtype.kind != "O":
                    key.append(a.dtype)
                    key.append(a.shape)
                elif kind is float:
                    key.append(a.hex())
                elif kind in _PLAIN:
                    key.append(kind)
                    key.append(a)
                else:
                    plain = False
                    break
                leaves.append(a)
        return (leaves, structure, tuple(key)) if plain else self._signature_of_trees(args, kwargs)

    def _signature_of_trees(self, args: tuple, kwargs: dict) -> tuple[list[Any], _tree.Structure, Any]:
        fixed = {n % len(args) if args else n: _Fixed(args[n]) for n in self._static if -len(args) <= n < len(args)}
        given = tuple(fixed.get(n, a) for n, a in enumerate(args))
        flat, structure = _tree.flatten((given, kwargs))
        key: list[Any] = [dtypes.get_default_dtype(), structure]
        leaves: list[Any] = []
        for leaf in flat:
            if isinstance(leaf, np.generic | np.ndarray) and leaf.dtype.kind != "O":
                leaf = np.asarray(leaf)
                key += [leaf.dtype, leaf.shape]
            elif isinstance(leaf, Tensor):
                leaf = leaf.contiguous()  # type: ignore[attr-defined]
                key.append(rt.look(_S, leaf._id, LOOK_META) & _FACTS)
            else:
                key += [type(leaf), leaf.hex() if type(leaf) is float else leaf]
            leaves.append(leaf)
        try:
            hash(tuple(key))
        except TypeError:
            wrong = next(v for v in leaves if type(v).__hash__ is None or not _hashable(v))
            value = wrong.value if isinstance(wrong, _Fixed) else wrong
            raise TypeError(
                f"compile: {self._name} got an argument of type {type(value).__name__}, which is neither tensor, array nor hashable; "
                "programs are found again by the values of such arguments, so pass tensors, arrays, or hashable values"
            ) from None
        return leaves, structure, tuple(key)

    def arguments(self, family: Family, leaves: Sequence[Any]) -> tuple[tuple, dict]:
        """Positional and keyword arguments with these leaves."""
        if isinstance(family.structure, int):
            return tuple(leaves), {}
        args, kwargs = _tree.unflatten(leaves, family.structure)
        return tuple(a.value if isinstance(a, _Fixed) else a for a in args), kwargs

    def _run(self, family: Family, leaves: Sequence[Any]) -> tuple[Program | None, Any]:
        """Run the path that these arguments take; the program and how it ran, or None and the result of an eager run."""
        self._calls += 1
        first = family.programs[0] if family.programs else None
        if first is not None and first.simple:
            try:
                ran = first.run(leaves)
            except (Outdated, KernelRaised):
                pass  # told apart below
            else:
                first.used = self._calls
                family.runs += 1
                return first, ran
        saved: list[tuple[Any, Any]] = []
        tried: set[int] = set()
        path: tuple[bytes, ...] = ()
        while True:
            program = next((p for p in family.programs if id(p) not in tried and p.expected[: len(path)] == path), None)
            new = program is None
            if program is None:
                if family.misses > 3 * self._most and family.misses > family.runs:
                    return None, self._give_up(family, leaves)
                program = self._capture(family, leaves)
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
            if family.programs[:1] != [program]:
                with self._lock:
                    if program in family.programs:  # which other threads may have dropped
                        family.programs.remove(program)
                        family.programs.insert(0, program)
            return program, found

    # capture

    def _new_family(self, key: Any, structure: _tree.Structure | int, leaves: Sequence[Any]) -> Family:
        known = self._families.get(key)
        with self._lock:
            family = self._families[key] = Family(structure, self._environment(leaves))
            family.unsettled = known.unsettled if known is not None else 0
        return family

    def _environment(self, leaves: Sequence[Any]) -> Environment:
        plain = [v.value if isinstance(v, _Fixed) else v for v in leaves if not isinstance(v, Tensor | np.ndarray)]
        return Environment(self._watched, [*self._others, *plain])

    def _capture(self, family: Family, leaves: Sequence[Any]) -> Program:
        before = rt.set_mode(_S, 0)
        try:
            program = self._captured(Capture(), family, leaves)
        finally:
            rt.set_mode(_S, before)
        with self._lock:
            self._captures += 1
            family.misses += 1
            if not family.unsettled:
                family.programs.insert(0, program)
                self._drop()
        return program

    def _check_environment(self, capture: Capture, family: Family, leaves: Sequence[Any]) -> None:
        # what the function does to what it refers to would not be repeated: it may be once, such as filling a cache
        for source in family.environment.advanced():
            raise RuntimeError(errors.COMPILE_SOURCE.format(source.name, f" ({source.line})" if source.line else ""))
        changed = list(family.environment.changed())
        for name, line, value in changed:
            if capture.keeps(value):
                raise RuntimeError(errors.COMPILE_KEPT.format(name, f" ({line})" if line else ""))
        family.unsettled = family.unsettled + 1 if changed else 0
        if family.unsettled > 1:
            name, line, _ = changed[0]
            raise RuntimeError(errors.COMPILE_STATE.format(name, f" ({line})" if line else ""))
        if changed:
            family.environment = self._environment(leaves)

    def _captured(self, capture: Capture, family: Family, leaves: Sequence[Any]) -> Program:
        positions = [p for p, leaf in enumerate(leaves) if isinstance(leaf, Tensor | np.ndarray)]
        arrays = [isinstance(leaves[p], np.ndarray) for p in positions]
        given = list(leaves)
        for p in positions:
            given[p] = capture.argument(as_tensor(leaves[p]))
        args, kwargs = self.arguments(family, given)
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
        self._check_environment(capture, family, leaves)
        if not values:
            raise TypeError(
                f"compile: {self._name} returned no tensor but {_named(result)}; return the tensors it computes (not numbers made of them "
                "by item() or float())"
            )
        capture.rewind()
        code = optimised(capture.code(values))
        program = Program(code, arrays, positions, places, structure, tracked)
        own_tensors(program.captured)
        return program

    def _drop(self) -> None:
        # the path that was not taken for the longest time goes
        every = [(p.used or self._calls, f, p) for f in self._families.values() for p in f.programs]
        if len(every) > self._most:
            _, family, program = min(every, key=lambda e: e[0])
            family.programs.remove(program)
            self._dropped += 1
        for key in [k for k, f in self._families.items() if not f.programs and not f.eager]:
            if len(self._families) > self._most:
                del self._families[key]

    def _give_up(self, family: Family, leaves: Sequence[Any]) -> Any:
        lines = [g.line for p in family.programs for g in p.guards]
        family.eager = max(set(lines), key=lines.count, default="a guard") or "a guard"
        family.programs.clear()
        return self._eagerly(leaves, family)

    def _eagerly(self, leaves: Sequence[Any], family: Family) -> Any:
        self._eager += 1
        data = [v for v in leaves if isinstance(v, Tensor | np.ndarray)]
        given = [as_tensor(v) if isinstance(v, np.ndarray) else v for v in leaves]
        args, kwargs = self.arguments(family, given)
        result = self.function(*args, **kwargs)
        if data and all(isinstance(v, np.ndarray) for v in data):
            return _tree.map_leaves(lambda v: v.detach().numpy().copy() if isinstance(v, Tensor) else v, result)
        return result

    # derivatives

    def _tracked(self, key: Any, family: Family, program: Program, leaves: list[Any], ran: Ran) -> Any:
        data = [v if isinstance(v, Tensor) else as_tensor(v) for v in leaves if isinstance(v, Tensor | np.ndarray)]
        outside = [s.tensor for s in program.captured if s.tensor.requires_grad]
        outputs, draws = ran
        call = Call(self, key, family, program, leaves, outputs, len(data))
        return program.result(CompiledCall.apply(call, *data, *outside, *draws))

    def derivative_of(self, call: Call, needs: tuple[bool, ...]) -> Compiled:
        """The compiled derivative of calls of one signature: of the call's tensors and the adjoints of its outputs."""
        outside = [s.tensor for s in call.program.captured if s.tensor.requires_grad]
        name = (call.key, needs, tuple(call.program.tracked), tuple(id(t) for t in outside))
        known = self._derived.get(name)
        if known is None:
            known = self._derived[name] = Compiled(
                functools.partial(pull_back, self, call.family, Template(call.leaves), needs, outside, call.data),
                max_programs=self._most,
            )
            known._name = f"derivative of {self._name}"
            known._watched = self._watched
            known._others = [*self._others, *(v for v in call.leaves if not isinstance(v, Tensor | np.ndarray))]
        return known

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
        family = self._families.get(self._signature(args, {})[2])
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
            "captures": self._captures,
            "recaptures": sum(max(f.misses - 1, 0) for f in families),
            "replays": sum(f.runs + f.misses for f in families),
            "dropped": self._dropped,
            "eager": self._eager,
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
        for derived in list(self._derived.values()):
            counts = {name: counts[name] + more for name, more in derived.stats().items()}
        return counts

    def programs(self) -> list[Program]:
        """The recorded paths, those used last first."""
        return sorted((p for f in list(self._families.values()) for p in list(f.programs)), key=lambda p: -p.used)

    def show(self) -> None:
        """Print the recorded programs as tables: operations, operands, shapes, bytes of the results, lines of the source.

        >>> import tapegrad as tg
        >>> f = tg.compile(lambda x: (x * 2).sum())
        >>> _ = f(tg.ones(3))
        >>> f.show()  # doctest: +ELLIPSIS +NORMALIZE_WHITESPACE
        row  operation  operands  result  shape  dtype    bytes  line
        0    mul        x0, 2.0   %0      [3]    float32  12     ...
        1    sum        %0        %1      []     float32  4      ...
        returns %1
        """
        print("\n\n".join(table(p) for p in self.programs()))

    def dot(self) -> str:
        """The recorded programs as a graph in the DOT language, for Graphviz."""
        return graph(self.programs())


_PLAIN = {bool, int, str, type(None), bytes}


class _Fixed:
    # a static argument, whatever it is
    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Fixed) and type(other.value) is type(self.value) and other.value == self.value


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


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
        RuntimeError: in calls, if the function writes to its arguments or to tensors from outside.

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
    if isinstance(max_programs, bool) or not isinstance(max_programs, int) or max_programs < 1:
        raise ValueError(f"compile: max_programs must be a positive int, but got {max_programs!r}")
    if f is None:
        return lambda function: compile(function, static_argnums=chosen, max_programs=max_programs)
    if not callable(f):
        raise TypeError(f"compile: expected a function, but got {type(f).__name__}")
    return Compiled(f, chosen, max_programs)
