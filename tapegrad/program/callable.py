"""Recorded programs as functions for a user's own compiled code, and for libraries that call C."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
from numba import types

from tapegrad import dtypes
from tapegrad.engine import kernels
from tapegrad.engine.pooled import ENTRY_WORDS, LINE, POOL, run_pooled
from tapegrad.engine.runtime import address_of_array
from tapegrad.program.capture import Argument, Captured, Drawn
from tapegrad.program.native import ALONE, Replica
from tapegrad.program.program import Program, address_of
from tapegrad.program.values import Call
from tapegrad.tensor import Tensor

if TYPE_CHECKING:
    from tapegrad.program._compile import Compiled

# compiled code holds addresses, so what they lead to stays until the process ends
_keep: list[Any] = []


class _Kind(NamedTuple):
    # an argument: its shape, and whether compiled code passes a number rather than an array
    shape: tuple[int, ...]
    number: bool


class _Pool:
    """Replicas of a function's recorded paths, one for each thread that may run at a time.

    Args:
        name: of the function.
        programs: its paths.
    """

    def __init__(self, name: str, programs: Sequence[Program]) -> None:
        for program in programs:
            _check(name, program)
            program.fuse(math.inf)  # what is called from compiled code runs often
        code = programs[0].code
        count = sum(isinstance(v.source, Argument) for v in code.inputs)
        slots = numba.config.NUMBA_NUM_THREADS + 1  # others wait
        self._sizes = np.array([v.nbytes() for v in code.outputs], np.int64)
        self._busy = np.zeros((slots + 1) * LINE // 8, np.int64)
        self._entries = np.zeros((slots, len(programs), ENTRY_WORDS), np.int64)
        self.missed = np.zeros(1, np.int64)
        self._made: list[Any] = []
        for q, program in enumerate(programs):
            outside = _read_now(program)
            for slot in range(slots):
                self._entries[slot, q] = self._replica(program, outside)
        self._record = np.zeros(1, POOL)
        for field, value in {
            "state": ALONE,
            "slots": slots,
            "programs": len(programs),
            "arguments": count,
            "outputs": len(code.outputs),
            "sizes": address_of_array(self._sizes),
            "busy": (address_of_array(self._busy) + LINE - 1) & -LINE,
            "entries": address_of_array(self._entries),
            "missed": address_of_array(self.missed),
        }.items():
            self._record[field] = value
        self.address = address_of_array(self._record)
        _keep.append(self)

    def _replica(self, program: Program, outside: dict[int, np.ndarray]) -> tuple[int, int, int]:
        replica = Replica(program.native, ALONE)
        for k, array in outside.items():
            replica.addresses[k] = address_of_array(array)
        first = len(program.code.inputs)
        outs = [np.empty(v.shape, v.dtype.numpy) for v in program.code.outputs]
        replica.addresses[first:] = [address_of_array(a) for a in outs]
        self._made += [program, replica, outs, outside]
        return replica.address, replica.addresses_at, first


def _check(name: str, program: Program) -> None:
    # refuse what only Python can do
    calls = [s for s in program.code.steps if isinstance(s, Call)]
    if calls:
        raise RuntimeError(
            f"native: {name} computes {calls[0].name} ({calls[0].line}), which is a NumPy function; compiled code cannot call it. Compute it "
            "before and pass the result as an argument"
        )
    if any(isinstance(v.source, Drawn) for v in program.code.inputs):
        raise RuntimeError(f"native: {name} draws random numbers; draw them before and pass them as an argument")


def _read_now(program: Program) -> dict[int, np.ndarray]:
    # copies of tensors from outside, by number of the input
    found = {}
    for k, value in enumerate(program.code.inputs):
        if isinstance(value.source, Captured):
            array = found[k] = np.empty(max(value.nbytes(), 1), np.uint8)
            ctypes.memmove(address_of_array(array), address_of(value.source), value.nbytes())
    return found


@functools.cache
def _runner() -> Any:
    """The engine's `run_pooled` as a C function."""
    source = "def run_path(pool, given):\n    return word(run(pool, given))\n"
    environment = {"run": run_pooled, "word": kernels.structs.word}
    address = kernels.build_callback("run_path", source, environment, types.int64(types.int64, types.int64))
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)


class Native:
    """A recorded function for compiled code: the value is returned, the gradient written to arrays that are given.

    In a function compiled by Numba it is called as ``value = f(*args, *gradients)``: `args` are contiguous float64 arrays of the shapes
    of the examples, and floats; `gradients` are contiguous float64 arrays, one for each of `argnums`, in the shape of the argument (of
    shape ``(1,)`` for a float). Threads, such as those of ``numba.prange``, may call it at once. It can be called from Python as well.

    What was recorded for the examples' shapes until then is in it: every path, if the function looks at values, and tensors from
    outside with the values they had. For arguments that take none of the paths (or for which compiled code of the user raises an
    exception), the value and the gradients are NaN, and `missed` counts.

    Args:
        compiled: the function.
        args: examples of its arguments.
        argnums: which of them gradients are wanted of.
    """

    def __init__(self, compiled: Compiled, args: Sequence[Any], argnums: int | tuple[int, ...]) -> None:
        self._name = str(compiled.__name__) if hasattr(compiled, "__name__") else "function"
        self._compiled = compiled
        self._kinds = [_kind_of(self._name, n, a) for n, a in enumerate(args)]
        self._examples = [np.array(_numbers(a), np.float64) for a in args]
        compiled.value_and_grad(*self._examples, argnums=argnums)
        chosen = (argnums,) if isinstance(argnums, int) else argnums
        self._argnums = [n % len(args) for n in chosen]
        programs = compiled.derivative(argnums).paths_of(*self._examples)
        self._pool = self._pooled(programs)
        self._value_pool: _Pool | None = None
        self._function = self._make()
        _keep.append(self._function)

    def _pooled(self, programs: Sequence[Program]) -> _Pool:
        if not programs:
            raise RuntimeError(
                f"native: {self._name} looks at values that differ at nearly every call, so no program stands for it; use tapegrad.where"
            )
        for program in programs:
            value = program.code.outputs[0]
            if value.dtype is not dtypes.float64:
                raise TypeError(f"native: {self._name} must return a float64 scalar, but got dtype {value.dtype}")
        return _Pool(self._name, programs)

    def __repr__(self) -> str:
        return f"<native {self._name}>"

    def __call__(self, *args: Any) -> float:
        try:
            return self._function(*args)
        except TypeError:
            raise TypeError(
                f"native: {self._name} takes {', '.join(self._wanted())}, but got {', '.join(map(_described, args)) or 'nothing'}; arrays must "
                "be contiguous and, to write gradients to, writeable"
            ) from None

    def _wanted(self) -> list[str]:
        # its parameters, for people
        given = ["a float" if k.number else f"a float64 array of shape {list(k.shape)}" for k in self._kinds]
        kinds = [(n, self._kinds[n]) for n in self._argnums]
        return [
            *given,
            *(f"one of {[1] if k.number else list(k.shape)} for the gradient of argument {n}" for n, k in kinds),
        ]

    def __reduce__(self) -> Any:
        raise TypeError(
            f"native: {self!r} cannot be copied or pickled, since it holds addresses; call native() of the function again, and "
            "leave out cache=True where Numba compiles code that calls it"
        )

    @property
    def _numba_type_(self) -> Any:
        # what it is to code that Numba compiles
        return types.Dispatcher(self._function)

    @property
    def missed(self) -> int:
        """How many calls had arguments that take none of the recorded paths."""
        return int(self._pool.missed[0]) + (int(self._value_pool.missed[0]) if self._value_pool is not None else 0)

    def _make(self) -> Any:
        names = [f"x{n}" for n in range(len(self._kinds))]
        outs = [f"g{n}" for n in self._argnums]
        count = len(names) + 1 + len(outs)
        lines = [f"def value_and_gradient({', '.join([*names, *outs])}):"]
        for n, kind in enumerate(self._kinds):
            if not kind.number:
                lines += _shape_check(f"x{n}", f"argument {n}", kind.shape)
        for n, name in zip(self._argnums, outs, strict=True):
            kind = self._kinds[n]
            lines += _shape_check(name, f"the gradient of argument {n}", (1,) if kind.number else kind.shape)
        # the value, then numbers among the arguments, then addresses
        lines += [f"    memory = empty({1 + len(names) + count})", "    memory[0] = nan"]
        lines.append(f"    given = memory[{1 + len(names)}:].view(int64)")
        for n, (name, kind) in enumerate(zip(names, self._kinds, strict=True)):
            if kind.number:
                lines += [f"    memory[{n + 1}] = {name}", f"    given[{n}] = memory.ctypes.data + {8 * (n + 1)}"]
            else:
                lines.append(f"    given[{n}] = {name}.ctypes.data")
        lines.append(f"    given[{len(names)}] = memory.ctypes.data")
        lines += [f"    given[{len(names) + 1 + k}] = {name}.ctypes.data" for k, name in enumerate(outs)]
        lines.append("    if not run(POOL, given.ctypes.data):")
        lines += [f"        {name}[...] = nan" for name in outs] or ["        pass"]
        lines.append("    return memory[0]")  # which is alive until here
        arguments = [types.float64 if k.number else _array_type(len(k.shape), True) for k in self._kinds]
        wanted = [self._kinds[n] for n in self._argnums]
        gradients = [_array_type(1 if k.number else len(k.shape), False) for k in wanted]
        environment = {
            "run": _runner(),
            "POOL": self._pool.address,
            "nan": np.nan,
            "empty": np.empty,
            "int64": np.int64,
        }
        function = _defined("\n".join(lines), "value_and_gradient", environment)
        return numba.njit([types.float64(*arguments, *gradients)], nogil=True)(function)

    @functools.cached_property
    def _c_function(self) -> Any:
        programs = self._value_programs()
        pool = self._value_pool = self._pooled(programs)
        total = sum(e.size for e in self._examples)
        count = len(self._kinds)
        lines = ["def value(n, x):", f"    if n != {total}:", "        return nan"]
        lines += [f"    numbers = carray(x, ({total},))", f"    memory = empty({count + 2})", "    memory[0] = nan"]
        lines.append("    given = memory[1:].view(int64)")
        start = 0
        for n, example in enumerate(self._examples):
            lines.append(f"    given[{n}] = numbers.ctypes.data + {8 * start}")
            start += example.size
        lines += [
            f"    given[{count}] = memory.ctypes.data",
            "    run(POOL, given.ctypes.data)",
            "    return memory[0]",
        ]
        environment = {"run": _runner(), "POOL": pool.address, "nan": np.nan, "empty": np.empty}
        environment |= {"int64": np.int64, "carray": numba.carray}
        function = _defined("\n".join(lines), "value", environment)
        made = numba.cfunc(types.float64(types.intc, types.CPointer(types.float64)))(function)
        _keep.append(made)
        return made

    def _value_programs(self) -> Sequence[Program]:
        self._compiled(*self._examples)
        return self._compiled.paths_of(*self._examples)

    @property
    def ctypes(self) -> Any:
        """A C function ``double(int n, double *x)``, as ctypes has it, of the elements of all arguments one after the other.

        It returns the value; NaN for another `n`, and where `missed` counts. It may be called from any thread.
        """
        return self._c_function.ctypes

    def low_level_callable(self) -> Any:
        """The same function as a ``scipy.LowLevelCallable``, for `scipy.integrate` and the like.

        >>> import tapegrad as tg
        >>> from scipy.integrate import quad
        >>> bell = tg.compile(lambda x, width: tg.exp(-x * x / width)).native(0.0, 2.0)
        >>> round(quad(bell.low_level_callable(), -20, 20, args=(2.0,))[0] ** 2, 6)
        6.283185
        """
        import scipy

        return scipy.LowLevelCallable(self.ctypes)


def _defined(source: str, name: str, environment: dict[str, Any]) -> Callable:
    namespace = dict(environment)
    exec(compile(source, f"<native {name}>", "exec"), namespace)
    return namespace[name]


def _array_type(ndim: int, readonly: bool) -> Any:
    return types.Array(types.float64, ndim, "C", readonly=readonly)


def _shape_check(name: str, what: str, shape: tuple[int, ...]) -> list[str]:
    if not shape:
        return []
    return [
        f"    if {name}.shape != {shape}:",
        f"        raise ValueError('native: {what} must have the shape {list(shape)} of the example')",
    ]


def _described(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"a {type(value).__name__}"
    flags = value.flags
    faults = ["strided"] * (not flags.c_contiguous) + ["read-only"] * (not flags.writeable)
    return f"a {' '.join([*faults, str(value.dtype)])} array of shape {list(value.shape)}"


def _numbers(value: Any) -> Any:
    return value.detach().numpy() if isinstance(value, Tensor) else value


def _kind_of(name: str, n: int, value: Any) -> _Kind:
    if isinstance(value, Tensor | np.ndarray) and value.dtype in (np.dtype(np.float64), dtypes.float64):
        return _Kind(tuple(value.shape), False)
    if type(value) is float or isinstance(value, np.float64):
        return _Kind((), True)
    kind = f"{value.dtype} {type(value).__name__}" if isinstance(value, Tensor | np.ndarray) else type(value).__name__
    raise TypeError(
        f"native: argument {n} of {name} is a {kind}; compiled code passes float64 arrays and floats. Convert it, or bind it before "
        "compile with functools.partial"
    )
