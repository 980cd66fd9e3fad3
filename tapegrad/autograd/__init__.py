"""Differentiation: `backward`, `grad`, and the graph behind them."""

from tapegrad.autograd import graph
from tapegrad.autograd.backward import backward, grad
from tapegrad.grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)

__all__ = [
    "backward",
    "enable_grad",
    "grad",
    "graph",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]
