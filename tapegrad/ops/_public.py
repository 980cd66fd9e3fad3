"""How a function becomes part of the package and a method of tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tapegrad.ops._rule import PUBLIC
from tapegrad.tensor import Tensor


def as_method(op: Callable) -> Callable:
    """A function of a tensor as a method."""

    def method(self: Tensor, *args: Any, **named: Any) -> Any:
        return op(self, *args, **named)

    method.__name__ = op.__name__
    method.__qualname__ = f"Tensor.{op.__name__}"
    method.__doc__ = op.__doc__
    method.__wrapped__ = inspect.unwrap(op)  # type: ignore[attr-defined]
    return method


def export(
    function: Callable, *aliases: str, method: bool = True, public: bool = True, in_place: Callable | None = None
) -> Callable:
    """Make a function part of the package and a method of tensors, under its name and further ones.

    Args:
        function: the function of a tensor.
        aliases: its further names.
        method: whether it becomes a method of tensors.
        public: whether it becomes a function of the package.
        in_place: the method of the same names with a trailing underscore.
    """
    for name in (function.__name__, *aliases):
        if public:
            PUBLIC[name] = function
        if method:
            setattr(Tensor, name, as_method(function))
        if in_place is not None:
            setattr(Tensor, name + "_", in_place)
    return function


def alias(name: str, known: str) -> None:
    """Give a public function and method another name."""
    PUBLIC[name] = PUBLIC[known]
    setattr(Tensor, name, getattr(Tensor, known))


def composite(
    *, samples: Sequence[Any], reference: Any, method: bool = True, public: bool = True
) -> Callable[[Callable], Callable]:
    """Make a function of tensors built from other ops part of the package, with what it is tested by."""

    def declare(function: Callable) -> Callable:
        function.samples, function.reference = list(samples), reference  # type: ignore[attr-defined]
        return export(function, method=method, public=public)

    return declare
