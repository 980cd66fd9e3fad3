"""What a function computes, as text that can be compared: so that a job is not resumed with another one."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import sysconfig
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from tapegrad import _tree
from tapegrad.batch._sources import hashed
from tapegrad.tensor import Tensor

_INSTALLED = tuple(
    {os.path.realpath(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_OWN = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def describe_function(f: Callable) -> dict[str, str]:
    """What a function is made of: code, defaults, and the values it closes over or takes from its module, also through other functions.

    Functions of installed packages count by name only.

    Args:
        f: a function, or an object that can be called.

    Returns:
        Hashes, by a name for each part.

    >>> scale = 2.0
    >>> sorted(describe_function(lambda x: scale * x))  # doctest: +ELLIPSIS
    ['code of <lambda>'...]
    """
    found = _Description()
    found.add(f, _name_of(f, type(f).__name__))
    return found.parts


def describe_params(params: Any) -> dict[str, str]:
    """Shapes, dtypes and hashes of the leaves of `params`, by name."""
    return {
        name: f"{array.dtype} {list(array.shape)} {hashed(array)}"
        for name, array in _tree.named_leaves(params, "params")
    }


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What differs between two descriptions, in words.

    >>> differences({"wrt": "params", "code of f": 64 * "a"}, {"wrt": "data", "code of f": 64 * "b"})
    ['wrt was params and is data', 'code of f is another']
    """
    found = []
    for name in [*before, *(n for n in now if n not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if old is None or new is None:
            found.append(f"{name} is new" if old is None else f"{name} is gone")
        elif max(len(old), len(new)) > 40:
            found.append(f"{name} is another")
        else:
            found.append(f"{name} was {old} and is {new}")
    return found


class _Description:
    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self._functions: dict[int, Any] = {}  # described already, kept so that their ids stay theirs
        self._open: set[int] = set()  # containers and objects being described

    def _put(self, name: str, text: str) -> None:
        # two functions may have one name
        self.parts[name] = hashlib.sha256((self.parts.get(name, "") + text).encode()).hexdigest()

    def add(self, f: Any, name: str) -> None:
        """Describe a function and what it depends on."""
        if id(f) in self._functions:
            return
        self._functions[id(f)] = f
        wrapped = getattr(f, "__wrapped__", getattr(f, "py_func", None))
        if isinstance(f, functools.partial):
            self._put(f"arguments of {name}", self.text((f.args, f.keywords), name))
            self.add(f.func, _name_of(f.func, name))
        elif isinstance(f, types.MethodType):
            self._put(f"object of {name}", self.text(f.__self__, name))
            self.add(f.__func__, name)
        elif isinstance(f, types.FunctionType):
            self._add_function(f, name)
        elif _is_installed(type(f)) or inspect.isclass(f):
            self._put(f"code of {name}", self.text(f, name))
            if wrapped is not None:
                self.add(wrapped, name)
        else:
            self._put(f"object {name}", self.text(f, name))
            self.add(type(f).__call__, f"{name}.__call__")

    def _add_function(self, f: types.FunctionType, name: str) -> None:
        installed = _is_installed(f)
        if installed and not hasattr(f, "__wrapped__"):
            self._put(f"code of {name}", _qualified(f))
            return
        self._put(f"code of {name}", self._code(f.__code__))
        if f.__defaults__ or f.__kwdefaults__:
            self._put(f"defaults of {name}", self.text((f.__defaults__, f.__kwdefaults__), name))
        for variable, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            try:
                self._value(cell.cell_contents, f"{variable}, which {name} closes over,")
            except ValueError:  # not assigned yet
                self._put(f"{variable}, which {name} closes over,", "unassigned")
        if not installed:
            for variable in sorted(_names(f.__code__)):
                if variable in f.__globals__:
                    self._value(f.__globals__[variable], f"global {variable}")

    def _value(self, value: Any, name: str) -> None:
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            self.add(value, _name_of(value, name))
        else:
            self._put(name, self.text(value, name))

    def _code(self, code: types.CodeType) -> str:
        constants = [self._code(c) if isinstance(c, types.CodeType) else self.text(c, "") for c in code.co_consts]
        if _has_docstring(code):
            constants[0] = ""
        return repr((code.co_code.hex(), constants, code.co_names))

    def text(self, value: Any, name: str) -> str:
        """A value as text without addresses, so that equal values have equal texts in all processes."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | type(...)):
            return repr(value)
        if isinstance(value, Tensor):
            return self.text(value.detach().numpy(), name)
        if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            array = np.asarray(value)
            return f"array {array.dtype} {array.shape} {hashed(array)}"
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            self.add(value, _name_of(value, name))
            return "function"
        if isinstance(value, types.ModuleType) or inspect.isclass(value) or inspect.isbuiltin(value):
            return _qualified(value)
        if id(value) in self._open:
            return "itself"
        self._open.add(id(value))
        try:
            return self._text_of_parts(value, name)
        finally:
            self._open.discard(id(value))

    def _text_of_parts(self, value: Any, name: str) -> str:
        if isinstance(value, dict):
            return repr([(self.text(k, name), self.text(v, name)) for k, v in value.items()])
        if isinstance(value, list | tuple):
            return f"{type(value).__name__} {[self.text(v, name) for v in value]}"
        if isinstance(value, set | frozenset):
            return f"set {sorted(self.text(v, name) for v in value)}"
        if _is_installed(type(value)):
            elements = (
                self.text(np.asarray(value), name) if hasattr(value, "__array__") else _ADDRESS.sub("", repr(value))
            )
            return f"{_qualified(type(value))} {_name_of(value, '')} {elements}"
        slots = {s: getattr(value, s) for s in getattr(type(value), "__slots__", ()) if hasattr(value, s)}
        return f"{_qualified(type(value))} {self.text({**getattr(value, '__dict__', {}), **slots}, name)}"


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def _name_of(value: Any, otherwise: str) -> str:
    name = getattr(value, "__name__", otherwise)
    return name if isinstance(name, str) else otherwise


def _qualified(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', _name_of(value, ''))}"


def _has_docstring(code: types.CodeType) -> bool:
    return bool(code.co_consts) and isinstance(code.co_consts[0], str) and code.co_name != "<lambda>"


def _names(code: types.CodeType) -> set[str]:
    # global names (and attributes), also of functions within
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _is_installed(value: Any) -> bool:
    # of the standard library, of an installed package, or of tapegrad itself
    try:
        file = os.path.realpath(inspect.getfile(value))
    except (TypeError, OSError):
        return getattr(value, "__module__", "") == "builtins"
    return file.startswith((_OWN + os.sep, *(folder + os.sep for folder in _INSTALLED)))
