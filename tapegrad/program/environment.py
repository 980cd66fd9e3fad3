"""What a function refers to outside of itself: a captured program is out of date when that is something else.

Names, attributes and elements of containers are looked after wherever the function, and the user's functions that it names, can reach
them by name; what is reached in other ways (through foreign libraries, files, clocks) is not.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import operator
import os
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad.tensor import Tensor

_missing = object()
_MOST = 10_000  # things looked after
_MANY = 1_000  # elements of a container
_LARGE = 1 << 20  # bytes of an array, of whose elements no copy is kept
_SIMPLE = (bool, int, float, str, bytes, type(None), complex)
_CONTAINERS = (list, dict, set, deque)
_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "STORE_NAME"}
_ATTRIBUTE = {"LOAD_ATTR", "STORE_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"}


class Callables:
    """Marks callable objects that programs see through."""


class _Watched:
    # one thing, and what it was: what `now` gives is compared with what it gave
    def __init__(self, name: str, line: str, now: Any) -> None:
        self.name, self.line, self.now = name, line, now
        self.value = now()

    def is_same(self) -> bool:
        return _same(self.now(), self.value)


class Environment:
    """What a function refers to outside of itself, as it is now.

    Args:
        function: the function.
        others: arguments of it that are no data, whose attributes it may use.
    """

    def __init__(self, function: Any, others: Iterable[Any] = ()) -> None:
        self._names: list[tuple[dict, str, Any, str]] = []  # looked up in a dict
        self._cells: list[tuple[Any, Any, str, str]] = []
        self._watched: list[_Watched] = []
        self._sources: list[_Watched] = []  # generators and iterators, which a capture must not advance
        self._attributes: dict[str, str] = {}  # names after a dot, and the line where
        self._objects: list[Any] = []
        self._functions: set[types.FunctionType] = set()
        self._seen: dict[int, Any] = {}
        self._follow(function, getattr(function, "__name__", "the function"), "")
        for value in others:
            self._follow(value, "an argument", "")
        self._follow_attributes()
        if "random" in self._attributes or any(name == "random" for _, name, _, _ in self._names):
            self._sources.append(_Watched("NumPy's random numbers", "", _state_of_numpy))
            self._sources.append(_Watched("Python's random numbers", "", random.getstate))

    # finding

    def _full(self) -> bool:
        return len(self._names) + len(self._watched) >= _MOST

    def _follow(self, value: Any, name: str, line: str) -> None:
        # what a value leads to
        if isinstance(value, (*_SIMPLE, Tensor, np.generic)) or id(value) in self._seen or self._full():
            return
        self._seen[id(value)] = value
        if isinstance(value, np.ndarray):
            if value.nbytes <= _LARGE:
                self._watched.append(_Watched(name, line, functools.partial(_elements_of, value)))
        elif isinstance(value, (tuple, frozenset, *_CONTAINERS)):
            if isinstance(value, _CONTAINERS) and len(value) <= _MANY:
                self._watched.append(_Watched(name, line, functools.partial(_contents_of, value)))
            if len(value) <= _MANY:
                for element in list(value.values() if isinstance(value, dict) else value):
                    self._follow(element, name, line)
        elif (advance := _source(value)) is not None:
            self._sources.append(_Watched(name, line, advance))
        elif isinstance(value, types.ModuleType):
            if not _is_foreign(value.__name__):
                self._objects.append(value)
        else:
            if callable(value):
                for found in _functions(value):
                    self._add(found)
            self._follow_object(value, name, line)

    def _follow_object(self, value: Any, name: str, line: str) -> None:
        if isinstance(value, types.MethodType):
            self._follow(value.__self__, name, line)
        elif isinstance(value, functools.partial):
            for given in (*value.args, *value.keywords.values()):
                self._follow(given, name, line)
        elif not isinstance(value, types.FunctionType | types.BuiltinFunctionType | Callables):
            kind = value if isinstance(value, type) else type(value)
            if not _is_foreign(kind.__module__):
                self._objects.append(value)

    def _add(self, function: types.FunctionType) -> None:
        if function in self._functions or _is_foreign(str(function.__module__)):
            return
        self._functions.add(function)
        for name, is_global, line in _names(function.__code__):
            if not is_global:
                self._attributes.setdefault(name, line)
                continue
            value = function.__globals__.get(name, _missing)
            if isinstance(value, types.ModuleType):
                self._follow(value, name, line)
            elif value is not _missing or not hasattr(builtins, name):
                self._names.append((function.__globals__, name, value, line))
                self._follow(value, name, line)
        line = f"{os.path.basename(function.__code__.co_filename)}:{function.__code__.co_firstlineno}"
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._cells.append((cell, _in_cell(cell), name, line))
            self._follow(_in_cell(cell), name, line)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._follow(value, "a default argument", line)

    def _follow_attributes(self) -> None:
        # objects and names lead to each other until nothing is new
        done: set[tuple[int, str]] = set()
        while True:
            pending = [(o, n) for o in self._objects for n in self._attributes if (id(o), n) not in done]
            if not pending or self._full():
                return
            for holder, name in pending:
                done.add((id(holder), name))
                self._attribute(holder, name)

    def _attribute(self, holder: Any, name: str) -> None:
        kind = holder if isinstance(holder, type) else type(holder)
        line = self._attributes[name]
        text = f"{getattr(kind, '__name__', kind)}.{name}"
        own = getattr(holder, "__dict__", None)
        static = inspect.getattr_static(kind, name, _missing)
        if isinstance(own, dict) and not callable(static) and not isinstance(static, property):
            value = own.get(name, _missing)
            if not isinstance(value, types.ModuleType):
                self._names.append((own, name, value, line))
            self._follow(value, text, line)
        if static is _missing:
            return
        if isinstance(static, property):
            value = static.fget
        elif isinstance(static, types.MemberDescriptorType):
            value = getattr(holder, name, _missing)
            self._watched.append(_Watched(text, line, functools.partial(getattr, holder, name, _missing)))
        else:
            value = static.__func__ if isinstance(static, staticmethod | classmethod) else static
            owner = next(c for c in kind.__mro__ if name in vars(c))
            self._watched.append(_Watched(text, line, functools.partial(vars(owner).get, name, _missing)))
        self._follow(value, text, line)

    # comparing

    def is_same(self) -> bool:
        """Whether all of it is what it was."""
        for names, name, value, _ in self._names:
            found = names.get(name, _missing)
            if found is not value and not _same(found, value):
                return False
        for cell, value, _, _ in self._cells:
            found = _in_cell(cell)
            if found is not value and not _same(found, value):
                return False
        return not self._watched or all(w.is_same() for w in self._watched)

    def changed(self) -> Iterator[tuple[str, str, Any]]:
        """The name of all that is not what it was, the line of the source where it is used, and what it is now."""
        for names, name, value, line in self._names:
            found = names.get(name, _missing)
            if not _same(found, value):
                yield name, line, found
        for cell, value, name, line in self._cells:
            if not _same(_in_cell(cell), value):
                yield name, line, _in_cell(cell)
        for watched in self._watched:
            if not watched.is_same():
                yield watched.name, watched.line, watched.now()

    def advanced(self) -> Sequence[_Watched]:
        """The generators and iterators that were used since."""
        return [source for source in self._sources if not source.is_same()]


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return float(a).hex() == float(b).hex()
    if isinstance(a, np.generic):
        return a.tobytes() == b.tobytes()
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, _SIMPLE) and a == b


def _elements_of(array: np.ndarray) -> tuple:
    return array.shape, array.dtype.str, array.tobytes() if array.dtype.kind != "O" else tuple(array.reshape(-1))


def _contents_of(container: Any) -> tuple:
    if isinstance(container, dict):
        return (*container.keys(), *container.values())
    return tuple(container)


def _in_cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound, or not any more
        return _missing


def _state_of_numpy() -> bytes:
    return pickle.dumps(np.random.get_state())  # noqa: NPY002 - which is what a user may draw from


def _source(value: Any) -> Any:
    # a function that gives the state of what yields something else each time it is asked; None for other things
    if isinstance(value, np.random.Generator):
        return lambda: pickle.dumps(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return lambda: pickle.dumps(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate
    if isinstance(value, types.GeneratorType):
        return lambda: (value.gi_frame is None, -1 if value.gi_frame is None else value.gi_frame.f_lasti)
    if hasattr(type(value), "__next__") and type(value).__module__ in ("builtins", "itertools"):
        return lambda: (operator.length_hint(value, -1), repr(value) if type(value).__name__ == "count" else "")
    return None


@functools.cache
def _is_foreign(module: str) -> bool:
    # whether a module is not the user's own
    root = module.split(".")[0]
    if root in ("tapegrad", "numpy") or (root in sys.stdlib_module_names and root != "__main__"):
        return True
    path = str(getattr(sys.modules.get(module), "__file__", None) or "")
    return "site-packages" in path or "dist-packages" in path


def _names(code: types.CodeType) -> Iterator[tuple[str, bool, str]]:
    # what a function and those within it look up: a name, whether it is a global one, and the line
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        if instruction.starts_line:
            line = instruction.positions.lineno if instruction.positions and instruction.positions.lineno else line
        if instruction.opname in _GLOBAL or instruction.opname in _ATTRIBUTE:
            where = f"{os.path.basename(code.co_filename)}:{line}"
            yield str(instruction.argval), instruction.opname in _GLOBAL, where
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _functions(function: Any) -> Iterator[types.FunctionType]:
    # the Python functions that a callable is made of
    if isinstance(function, types.FunctionType):
        yield function
    elif isinstance(function, types.MethodType):
        yield from _functions(function.__func__)
    elif isinstance(function, functools.partial):
        yield from _functions(function.func)
    elif not isinstance(function, type):
        called = inspect.getattr_static(type(function), "__call__", None)
        if isinstance(called, types.FunctionType):
            yield called
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        yield from _functions(wrapped)
