"""What a function refers to outside of itself: a captured program is out of date when a name means something else."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from tapegrad.tensor import Tensor

_missing = object()


class Callables:
    """Marks callable objects that programs see through."""


# compared by value; tensors, arrays and functions are compared by identity
_BY_VALUE = (bool, int, float, str, bytes, type(None), tuple, frozenset)
_BY_IDENTITY = (Tensor, np.ndarray, types.FunctionType, functools.partial, Callables)


class Environment:
    """The names a function refers to, and those that functions among them refer to, with what they mean now.

    Args:
        function: the function.
    """

    def __init__(self, function: Any) -> None:
        self._names: list[tuple[dict, str, Any]] = []
        self._cells: list[tuple[Any, Any]] = []
        seen: set[int] = set()
        for found in _functions(function):
            self._add(found, seen)

    def _add(self, function: types.FunctionType, seen: set[int]) -> None:
        if id(function) in seen or str(function.__module__).split(".")[0] == "tapegrad":
            return
        seen.add(id(function))
        for name in _names(function.__code__):
            value = function.__globals__.get(name, _missing)
            if isinstance(value, _BY_VALUE + _BY_IDENTITY):
                self._names.append((function.__globals__, name, value))
                self._follow(value, seen)
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            if isinstance(value, _BY_VALUE + _BY_IDENTITY):
                self._cells.append((cell, value))
                self._follow(value, seen)

    def _follow(self, value: Any, seen: set[int]) -> None:
        if callable(value):
            for found in _functions(value):
                self._add(found, seen)

    def is_same(self) -> bool:
        """Whether all names mean what they did."""
        for names, name, value in self._names:
            found = names.get(name, _missing)
            if found is not value and not _equal(found, value):
                return False
        for cell, value in self._cells:
            try:
                found = cell.cell_contents
            except ValueError:  # the name was deleted
                found = _missing
            if found is not value and not _equal(found, value):
                return False
        return True


def _equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b) or not isinstance(a, _BY_VALUE):
        return False
    if isinstance(a, float):
        return a.hex() == b.hex()
    return not isinstance(a, tuple | frozenset) and a == b


def _names(code: types.CodeType) -> Iterator[str]:
    # the names that a function and those within it look up
    yield from code.co_names
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
