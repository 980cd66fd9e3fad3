"""What the text of a user's op calls beside registered ops: partials of other ops, and functions the user compiled.

Like an op, each is a scalar function in kernels and runs over tensors for derivatives of higher order.
"""

from __future__ import annotations

import ast
from typing import Any

from tapegrad import dtypes
from tapegrad.engine.usercode import copy_of
from tapegrad.ops import _source
from tapegrad.ops._over_tensors import partial_over_tensors
from tapegrad.ops._pointwise import Pointwise, scalar_environment
from tapegrad.tensor import Tensor


class Partial:
    """One partial of an op's declared derivative.

    Args:
        op: the op.
        slot: the operand it is the derivative by.
    """

    def __init__(self, op: Pointwise, slot: int) -> None:
        assert op.derivative is not None
        op.partial_uses()
        self._derivative, self._position = op.derivative, op._positions[slot]
        self.name = f"d{slot}_{op.name if op.built_in else op.symbol}"
        self.fallible = getattr(op, "fallible", False)
        self._scalars: dict[int, Any] = {}

    @property
    def is_zero(self) -> bool:
        """Whether it is declared as zero."""
        expression = _source.partial_expressions(self._derivative)[self._position]
        return isinstance(expression, ast.Constant) and expression.value == 0

    def scalar(self, dtype: int) -> Any:
        """The partial as a jitted scalar function."""
        if dtype not in self._scalars:
            name = f"{self.name}_{dtypes.ALL[dtype].name}"
            names = scalar_environment(self._derivative, dtype)
            exec(_source.partial_text(name, self._derivative, self._position), names)
            self._scalars[dtype] = names[name]
        return self._scalars[dtype]

    def __call__(self, *values: Any) -> Any:
        return partial_over_tensors(self._derivative, self._position)(*values)


class Compiled:
    """A scalar function that the user compiled with Numba; its derivative is not known.

    Args:
        function: the user's.
    """

    fallible = True

    def __init__(self, function: Any) -> None:
        self.function = function
        self.name: str = copy_of(function).py_func.__qualname__

    def scalar(self, dtype: int) -> Any:
        """The function as kernels call it."""
        return copy_of(self.function)

    def __call__(self, *values: Any) -> Any:
        if not any(isinstance(v, Tensor) for v in values):
            return self.function(*values)
        from tapegrad.ops._elementwise import apply_compiled

        return apply_compiled(self, values)
