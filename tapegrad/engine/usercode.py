"""A user's `@njit` functions as parts of kernels.

Compiled code from several cache entries shares one space of symbols (see loops.py), and a user may change a function and keep its
name. So kernels call copies, named by the content of the function and of all it calls.
"""

import hashlib
import itertools
import re
import types as python_types
from typing import Any

from numba.extending import is_jitted

from tapegrad.engine.kernels import Undescribable, describe, is_library

_copies: dict[int, tuple[Any, Any]] = {}  # by id of the user's function: that, lest the id be used again, and the copy
_unnamed = itertools.count()


def check_function(function: Any, role: str) -> Any:
    """A user's function, if kernels can call it.

    Args:
        function: what the user gave.
        role: what it was given as.

    Raises:
        TypeError: if it was not compiled with `numba.njit`.
    """
    if not is_jitted(function):
        raise TypeError(f"{role} must be a function compiled with @numba.njit, but got {_what(function)}")
    if function.targetoptions.get("forceobj"):
        raise TypeError(f"{role} must be compiled with @numba.njit, but {function.__name__} is in object mode")
    return function


def _what(value: Any) -> str:
    if isinstance(value, python_types.FunctionType):
        return f"the Python function {value.__name__}"
    return f"a {type(value).__name__}"


def identifier(name: str) -> str:
    """A name in letters, digits and underscores of ASCII, for files and compiled code."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def copy_of(function: Any) -> Any:
    """The copy of a user's compiled function that kernels call."""
    known = _copies.get(id(function))
    if known is None:
        known = _copies[id(function)] = function, _copy(function)
    return known[1]


def _copy(function: Any) -> Any:
    original = function.py_func
    code = original.__code__
    try:
        content = hashlib.sha256(describe(function, {})).hexdigest()[:16]
    except Undescribable:  # what uses it is not kept on disk, so it only has to differ within this process
        content = f"local{next(_unnamed)}"
    names = _all_names(code)
    namespace = {n: v for n, v in original.__globals__.items() if n in names or n == "__builtins__"}
    namespace["__name__"] = __name__  # cached code is loaded by the module it names
    cells = tuple(python_types.CellType() for _ in code.co_freevars) or None
    copied = python_types.FunctionType(code, namespace, original.__name__, original.__defaults__, cells)
    copied.__kwdefaults__ = original.__kwdefaults__
    copied.__qualname__ = f"{identifier(original.__name__)}_{content}"
    options = dict(function.targetoptions)
    made = type(function)(
        py_func=copied, locals=function.locals, targetoptions=options, pipeline_class=function._compiler.pipeline_class
    )
    _copies[id(function)] = function, made  # before its callees, one of which may be itself
    for name in names & namespace.keys():
        namespace[name] = _part(namespace[name], names)
    for cell, given in zip(cells or (), original.__closure__ or (), strict=True):
        cell.cell_contents = _part(given.cell_contents, names)
    return made


def _all_names(code: python_types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, python_types.CodeType))
    return set(code.co_names).union(*(_all_names(c) for c in inner))


def _part(value: Any, names: set[str], within: tuple[Any, ...] = ()) -> Any:
    # what a copy refers to in place of a global of the original
    if is_jitted(value):
        return copy_of(value)
    if isinstance(value, python_types.ModuleType) and not is_library(value) and value not in within:
        changed = {n: _part(v, names, (*within, value)) for n, v in vars(value).items() if n in names}
        if any(changed[n] is not getattr(value, n) for n in changed):
            stand_in = python_types.ModuleType(value.__name__)
            vars(stand_in).update(vars(value) | changed)
            return stand_in
    return value


def digest_of(function: Any) -> str:
    """What tells a user's compiled function from others of its name: the end of its copy's name."""
    return copy_of(function).py_func.__qualname__.rsplit("_", 1)[1]
