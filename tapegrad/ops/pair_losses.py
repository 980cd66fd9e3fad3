"""Losses of two tensors, element by element, each computed and reduced in one kernel forward and one in reverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tapegrad.engine.structs import internal
from tapegrad.engine.vecmath import exp, log, log1p, sigmoid
from tapegrad.engine.vecmath_ir import copysign, literal
from tapegrad.metadata import Size
from tapegrad.ops import _loss_kernels as kernels
from tapegrad.ops import pointwise as pw
from tapegrad.ops._fold import Select, check_input
from tapegrad.ops._fold_sums import named
from tapegrad.ops._loss_kernels import BLOCK, MEAN, NONE, reduction_code
from tapegrad.ops._operands import broadcast_shapes, cast, float_of_bits, result_type, struct_bits
from tapegrad.ops._over_tensors import over_tensors, tensor_form
from tapegrad.ops._rule import Real
from tapegrad.tensor import Tensor


@internal
def _square(x, y, p):
    d = x - y
    return d * d


@internal
def _square_x(x, y, p):
    d = x - y
    return d + d


@internal
def _absolute(x, y, p):
    return abs(x - y)


@internal
def _sign(d):
    return d if d != d or d == 0 else copysign(literal(1.0, d), d)


tensor_form(_sign, pw.sign)


@internal
def _absolute_x(x, y, p):
    return _sign(x - y)


@internal
def _smooth(x, y, beta):
    d = abs(x - y)
    half = literal(0.5, d)
    return half * d * d / beta if d < beta else d - half * beta


@internal
def _smooth_x(x, y, beta):
    d = x - y
    return d / beta if abs(d) < beta else _sign(d)


@internal
def _huber(x, y, delta):
    d = abs(x - y)
    half = literal(0.5, d)
    return half * d * d if d <= delta else delta * (d - half * delta)


@internal
def _huber_x(x, y, delta):
    d = x - y
    return d if abs(d) <= delta else delta * _sign(d)


@internal
def _logits(x, y, p):
    return (x if x > 0 else literal(0.0, x)) - x * y + log1p(exp(-abs(x)))


@internal
def _logits_x(x, y, p):
    return sigmoid(x) - y


@internal
def _logits_y(x, y, p):
    return -x


@internal
def _clamped_log(x, p):
    value = log(x)
    return value if value > -p else -p


@internal
def _entropy(x, y, p):
    return (y - 1) * _clamped_log(1 - x, p) - y * _clamped_log(x, p)


@internal
def _entropy_x(x, y, p):
    spread = (1 - x) * x
    # PyTorch's bound, in the operand's own precision
    return (x - y) / (spread if spread > p * 1e-14 else p * 1e-14)


@internal
def _entropy_y(x, y, p):
    return log(1 - x) - log(x)


def _negative(slope: Any) -> Any:
    def other(x, y, p):
        return -slope(x, y, p)

    return internal(named(other, slope))


def _typed_parts(value: Any, slope_x: Any, slope_y: Any) -> Callable[[int], dict[str, Any]]:
    made: dict[int, dict[str, Any]] = {}

    def choose(dtype: int) -> dict[str, Any]:
        if dtype not in made:
            made[dtype] = {
                "VALUE": value,
                "TOTAL": kernels.total_of(value),
                "SLOPE_X": slope_x,
                "SLOPE_Y": slope_y,
            }
        return made[dtype]

    return choose


class PairLoss(Select):
    """A loss of two tensors, element by element, reduced in the same pass."""

    def apply(self, x: Tensor, y: Tensor, reduction: int, parameter: float = 1.0) -> Tensor:
        """Record and run it on two tensors that broadcast to one shape."""
        check_input(self.name, x)
        check_input(self.name, y)
        common = result_type(x, y)
        if not common.is_floating_point:
            raise NotImplementedError(f"\"{self.name}\" not implemented for '{common.tensor_type}'")
        shape = x.shape
        if y.shape != shape:
            shape = Size(broadcast_shapes(self.name, x.shape, y.shape))
            x, y = x.expand(shape), y.expand(shape)  # type: ignore[attr-defined]
        x, y = cast(x, common).contiguous(), cast(y, common).contiguous()  # type: ignore[attr-defined]
        n = x.numel()
        items = max(-(-n // BLOCK), 1)
        scale = 1.0 if reduction != MEAN else 1.0 / n if n else math.nan
        words = [0, n, struct_bits(scale), struct_bits(parameter), int(reduction != NONE)]
        if reduction == NONE:
            return self.launch([x, y], shape, common, words, items, min(n, BLOCK) * 2)
        return self.launch([x, y], (), common, words, -items, min(n, BLOCK) * 2)


def _pair_derivative(slope_x: Any, slope_y: Any) -> Callable:
    def derivative(g, x, y, need, words):
        scale, parameter, reduced = float_of_bits(words[2]), float_of_bits(words[3]), words[4]
        g = g * scale if reduced else g
        to_x = over_tensors(slope_x.py_func)
        to_y = over_tensors(slope_y.py_func) if slope_y else lambda *operands: -to_x(*operands)
        return [g * slope(x, y, parameter) if need >> k & 1 else None for k, slope in enumerate((to_x, to_y))]

    return derivative


def _declare(function: Callable, value: Any, slope_x: Any, slope_y: Any = None, **options: Any) -> PairLoss:
    op = PairLoss(
        function,
        inputs=["x", "y"],
        choose=_typed_parts(value, slope_x, slope_y or _negative(slope_x)),
        method=False,
        public=False,
        **options,
    )
    op.forward(kernels.loss_kernel)
    op.backward(_pair_derivative(slope_x, slope_y))
    op.reverse_kernel(kernels.loss_reverse)
    return op


_PAIR = [(((3, 4), (3, 4)), {}), (((5,), (5,)), {"kwargs": {"reduction": "sum"}})]
_PAIR_SAMPLES: list[Any] = [*_PAIR, (((2, 3), (2, 3)), {"kwargs": {"reduction": "none"}})]


def _reduced(function: Callable) -> Callable:
    """A NumPy loss with a `reduction` argument."""

    def reference(x: Any, y: Any, reduction: str = "mean") -> Any:
        loss = function(x, y)
        return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()

    return reference


def mse_loss(op, input, target, reduction="mean"):
    r"""Squared error, :math:`(x - y)^2`."""
    return op.apply(input, target, reduction_code(reduction))


def l1_loss(op, input, target, reduction="mean"):
    r"""Absolute error, :math:`|x - y|`."""
    return op.apply(input, target, reduction_code(reduction))


def smooth_l1_loss(op, input, target, reduction="mean", beta=1.0):
    r"""Absolute error, quadratic below :math:`\beta`: :math:`d^2 / 2\beta`, else :math:`|d| - \beta/2`."""
    return op.apply(input, target, reduction_code(reduction), float(beta))


def huber_loss(op, input, target, reduction="mean", delta=1.0):
    r"""Squared error, linear beyond :math:`\delta`: :math:`d^2 / 2`, else :math:`\delta (|d| - \delta/2)`."""
    return op.apply(input, target, reduction_code(reduction), float(delta))


def binary_cross_entropy_with_logits(op, input, target, reduction="mean"):
    r"""Cross entropy given the logit, :math:`\max(x, 0) - x y + \log(1 + e^{-|x|})`."""
    return op.apply(input, target, reduction_code(reduction))


def binary_cross_entropy(op, input, target, reduction="mean"):
    r"""Cross entropy, :math:`-y \log x - (1 - y) \log(1 - x)`, logarithms being at least -100."""
    return op.apply(input, target, reduction_code(reduction), 100.0)


def _logits_reference(x: Any, y: Any) -> Any:
    return np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))


def _smooth_reference(x: Any, y: Any) -> Any:
    d = np.abs(x - y)
    return np.where(d < 1, d * d / 2, d - 0.5)


squared = _declare(
    mse_loss,
    _square,
    _square_x,
    grad_name="MseLossBackward0",
    samples=_PAIR_SAMPLES,
    reference=_reduced(lambda x, y: (x - y) ** 2),
)
absolute = _declare(
    l1_loss,
    _absolute,
    _absolute_x,
    grad_name="MeanBackward0",
    samples=_PAIR_SAMPLES,
    reference=_reduced(lambda x, y: np.abs(x - y)),
)
absolute_sum, absolute_each = (
    absolute.twin("l1_loss_sum", "SumBackward0"),
    absolute.twin("l1_loss_each", "AbsBackward0"),
)
smooth = _declare(
    smooth_l1_loss,
    _smooth,
    _smooth_x,
    grad_name="SmoothL1LossBackward0",
    samples=_PAIR_SAMPLES,
    reference=_reduced(_smooth_reference),
)
huber = _declare(
    huber_loss,
    _huber,
    _huber_x,
    grad_name="HuberLossBackward0",
    samples=_PAIR_SAMPLES,
    reference=_reduced(_smooth_reference),
)
logits_entropy = _declare(
    binary_cross_entropy_with_logits,
    _logits,
    _logits_x,
    _logits_y,
    grad_name="BinaryCrossEntropyWithLogitsBackward0",
    samples=_PAIR_SAMPLES,
    reference=_reduced(_logits_reference),
)
entropy = _declare(
    binary_cross_entropy,
    _entropy,
    _entropy_x,
    _entropy_y,
    grad_name="BinaryCrossEntropyBackward0",
    domain=Real(0.05, 0.95),
    reference=_reduced(lambda x, y: -y * np.log(x) - (1 - y) * np.log(1 - x)),
)
