"""Transformations of functions: derivatives and maps, in any nesting."""

from importlib import import_module as _import_module
from typing import Any as _Any

from tapegrad.func._derivatives import (
    grad,
    grad_and_value,
    jvp,
    linearize,
    value_and_grad,
    vjp,
)
from tapegrad.func._jacobians import hessian, jacfwd, jacrev
from tapegrad.func._modules import functional_call, stack_module_state
from tapegrad.func._vmap import vmap

__all__ = [
    "functional_call",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "stack_module_state",
    "value_and_grad",
    "vjp",
    "vmap",
]

_SPARSE = ("colour", "sparse_jacobian", "sparsity_of")  # which import SciPy's sparse arrays


def __getattr__(name: str) -> _Any:
    """What is slow to import, at first use."""
    if name in _SPARSE:
        return getattr(_import_module("tapegrad.func._sparse"), name)
    raise AttributeError(f"module 'tapegrad.func' has no attribute '{name}'")
