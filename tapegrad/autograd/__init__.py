"""Differentiation: `backward`, `grad`, and the graph behind them."""

from tapegrad.autograd import forward_ad, function, functional, graph
from tapegrad.autograd.anomaly_mode import (
    detect_anomaly,
    is_anomaly_check_nan_enabled,
    is_anomaly_enabled,
    set_detect_anomaly,
)
from tapegrad.autograd.backward import backward, grad
from tapegrad.autograd.function import Function
from tapegrad.autograd.gradcheck import gradcheck, gradgradcheck
from tapegrad.grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from tapegrad.ops._elementwise import elementwise
from tapegrad.ops._native_op import native_op

__all__ = [
    "Function",
    "backward",
    "detect_anomaly",
    "elementwise",
    "enable_grad",
    "functional",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "graph",
    "inference_mode",
    "is_anomaly_check_nan_enabled",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "native_op",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
]
