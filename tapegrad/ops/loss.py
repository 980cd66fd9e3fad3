"""Losses, each computed and reduced in one kernel forward and one in reverse."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.creation import zeros
from tapegrad.engine.structs import internal
from tapegrad.engine.vecmath import exp, log, log1p, sigmoid
from tapegrad.engine.vecmath_ir import copysign, literal
from tapegrad.metadata import Size
from tapegrad.ops import _loss_kernels as kernels
from tapegrad.ops import _reading
from tapegrad.ops import pointwise as pw
from tapegrad.ops._fold import PAIR_COLUMNS, Select, check_input, select_op
from tapegrad.ops._fold_pairs import exponentials
from tapegrad.ops._fold_sums import named
from tapegrad.ops._kernel import empty
from tapegrad.ops._loss_kernels import BLOCK, MEAN, NONE, SUM
from tapegrad.ops._operands import broadcast_shapes, cast, float_of_bits, result_type, struct_bits
from tapegrad.ops._over_tensors import over_tensors, tensor_form
from tapegrad.ops._rule import Real
from tapegrad.ops.selecting import scatter_sum
from tapegrad.ops.softmax import log_softmax, softmax
from tapegrad.tensor import Tensor

_REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}


def reduction_code(reduction: str) -> int:
    """The code of a `reduction` argument.

    Raises:
        ValueError: if it is none of ``none``, ``mean`` and ``sum``.
    """
    try:
        return _REDUCTIONS[reduction]
    except (KeyError, TypeError):
        raise ValueError(f"{reduction} is not a valid value for reduction") from None


# elementwise losses


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


# class losses


def _check_classes(x: Tensor, target: Any, weight: Any) -> tuple[int, int, int]:
    """(rows outside, classes, rows inside) of an input and its target classes."""
    if not isinstance(target, Tensor):
        raise TypeError(f"nll_loss(): argument 'target' must be Tensor, not {type(target).__name__}")
    if not x.ndim:
        raise ValueError("Expected 1 or more dimensions (got 0)")
    shape = x.shape
    rest = tuple(shape[2:])
    if len(shape) == 1:
        if target.ndim > 1 or target.numel() != 1:
            raise ValueError(f"For 1D input, 1D target must have size 1, but got target size: {target.numel()}")
    elif not target.ndim or target.shape[0] != shape[0]:
        given = target.shape[0] if target.ndim else 1
        raise ValueError(f"Expected input batch_size ({shape[0]}) to match target batch_size ({given}).")
    elif tuple(target.shape) != (shape[0], *rest):
        if len(shape) == 2:
            raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
        raise RuntimeError(f"Expected target size {[shape[0], *rest]}, got {list(target.shape)}")
    if target.dtype not in (dtypes.int64, dtypes.uint8):
        raise RuntimeError(f"expected target dtype to be Long or Byte, but got {target.dtype.tensor_type}")
    classes = shape[0] if len(shape) == 1 else shape[1]
    if weight is not None:
        if tuple(weight.shape) != (classes,):
            raise RuntimeError(
                f"weight tensor should be defined either for all {classes} classes or no classes but got "
                f"weight tensor of shape: {list(weight.shape)}"
            )
        if weight.dtype is not x.dtype:
            raise RuntimeError(f"expected scalar type {x.dtype.tensor_type} but found {weight.dtype.tensor_type}")
    return (1 if len(shape) == 1 else shape[0]), classes, math.prod(rest)


def _class_loss(op: Any, input: Any, target: Any, weight: Any, ignore_index: int, reduction: str) -> Tensor:
    code = reduction_code(reduction)
    check_input(op.name, input)
    if not input.dtype.is_floating_point:
        kind = "log_softmax_lastdim_kernel_impl" if op.fused else "nll_loss_out_frame"
        raise NotImplementedError(f"\"{kind}\" not implemented for '{input.dtype.tensor_type}'")
    outer, classes, inner = _check_classes(input, target, weight)
    if input.ndim > 2:
        op = op.planes
    rows = outer * inner
    x = input.contiguous()  # type: ignore[attr-defined]
    target = cast(target.detach(), dtypes.int64).contiguous()  # type: ignore[attr-defined]
    if _reading.runs_again((target,)):  # the kernel tells once
        within = functools.partial(_classes_within, classes=classes, ignored=int(ignore_index))
        target = _reading.computed(within, target, stretches=(0,))
    kept = empty((2 * rows + 2,), dtypes.float64)
    flag = kept.data_ptr() + 8 * (2 * rows + 1)
    ctypes.c_double.from_address(flag).value = 0.0
    block_rows = max(8192 // max(classes, 1), 1)
    if inner == 1:
        items, work = -(-outer // block_rows), block_rows * classes * 4
    else:
        items, work = outer * -(-inner // PAIR_COLUMNS), min(inner, PAIR_COLUMNS) * classes * 4
    items, work = max(items, 1) if rows else 1, max(work, 4)
    words = [0, outer, classes, inner, int(ignore_index), code, block_rows]
    shape = target.shape if code == NONE else ()
    extra = () if weight is None else (weight.detach().contiguous(),)
    if code != NONE:
        items, work = -2 * items, work // 2
    result = op.launch([x, target, kept], shape, x.dtype, words, items, work, extra)
    bad = int(ctypes.c_double.from_address(flag).value)
    if bad:
        raise IndexError(_OUT_OF_BOUNDS.format(int(target._address_array().reshape(-1)[bad - 1])))
    return result


_OUT_OF_BOUNDS = "Target {} is out of bounds."


def _classes_within(target: np.ndarray, classes: int, ignored: int) -> np.ndarray:
    wrong = target[((target < 0) | (target >= classes)) & (target != ignored)]
    if wrong.size:
        raise IndexError(_OUT_OF_BOUNDS.format(int(wrong[0])))
    return target


def _class_reference(x: Any, target: Any, **options: Any) -> Any:
    from scipy.special import log_softmax as reference

    return -np.mean(reference(x, axis=1)[np.arange(len(target)), target])


def _likelihood_part(g: Tensor, target: Tensor, kept: Tensor, words: Sequence[int], scores: Any = None) -> Tensor:
    # less g at the target, and with scores plus g times their softmax; both times the row's share
    outer, classes, inner = words[1:4]
    rows = outer * inner
    weights = kept[: 2 * rows].view(outer, inner, 2)[:, :, 1].unsqueeze(1)
    # a row without weight has no gradient, whatever it holds
    idle = pw.eq(weights, 0)
    share = cast(pw.where_op(idle, 0.0, weights / kept[2 * rows]), g.dtype) * g.reshape((-1, 1, inner if g.ndim else 1))
    places = target.view(outer, 1, inner).masked_fill(idle, 0)
    if scores is None:
        part = zeros((outer, classes, inner), dtype=g.dtype)
    else:
        part = softmax(pw.where_op(idle, 0.0, scores.reshape((outer, classes, inner))), 1) * share
    return scatter_sum(part, 1, places, -share.expand(places.shape))


def _entropy_derivative(g, x, target, kept, words):
    return _likelihood_part(g, target, kept, words, x)


def _likelihood_derivative(g, target, kept, words):
    return _likelihood_part(g, target, kept, words)


def _class_op(function: Callable, fused: bool, reference: Any) -> Select:
    def choose(dtype: int) -> dict[str, Any]:
        return exponentials(dtype) | {"FUSED": fused}

    op = select_op(
        inputs=["x", "target", "kept"],
        choose=choose,
        reference=reference,
        samples=[],
        domain=Real(),
        grad_name="NllLossBackward0",
        method=False,
        public=False,
    )(function)
    op.forward(kernels.class_kernel)
    op.backward(_entropy_derivative if fused else _likelihood_derivative)
    op.reverse_kernel(kernels.class_reverse)
    op.fused = fused
    op.planes = op.twin(f"{op.name}_planes", "NllLoss2DBackward0")
    return op


def _cross_entropy(op, input, target, weight=None, ignore_index=-100, reduction="mean"):
    r"""Negative log-likelihood of classes under the softmax of scores.

    .. math:: w_y \Big(\log \sum_c e^{x_c} - x_y\Big)

    Only the logarithm of each row's sum is kept for the gradient, :math:`w_y (\mathrm{softmax}(x) - e_y)`.
    """
    return _class_loss(op, input, target, weight, ignore_index, reduction)


def _nll_loss(op, input, target, weight=None, ignore_index=-100, reduction="mean"):
    r"""Negative log-likelihood of classes, :math:`-w_y x_y`, from log-probabilities."""
    return _class_loss(op, input, target, weight, ignore_index, reduction)


_cross_entropy.__name__, _nll_loss.__name__ = "cross_entropy", "nll_loss"
class_entropy = _class_op(_cross_entropy, True, _class_reference)
class_likelihood = _class_op(_nll_loss, False, lambda x, target: -np.mean(x[np.arange(len(target)), target]))


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """See `tapegrad.nn.functional.cross_entropy`."""
    check_input("cross_entropy", input)
    if not isinstance(target, Tensor):
        raise TypeError(f"cross_entropy(): argument 'target' must be Tensor, not {type(target).__name__}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing:g}")
    code = reduction_code(reduction)
    if target.shape == input.shape:
        if not target.dtype.is_floating_point:
            raise RuntimeError(
                f"Expected floating point type for target with class probabilities, got {target.dtype.tensor_type}"
            )
        return _probability_entropy(input, target, weight, code, label_smoothing)
    if label_smoothing == 0.0:
        return class_entropy(input, target, weight, ignore_index, reduction)
    return _smoothed_entropy(input, target, weight, ignore_index, code, label_smoothing)


def _class_shape(weight: Tensor, x: Tensor) -> Tensor:
    # a weight for each class, along the dim of classes
    return weight.reshape([-1] + [1] * (x.ndim - 2)) if x.ndim > 1 else weight  # type: ignore[attr-defined]


def _probability_entropy(x: Tensor, target: Tensor, weight: Any, code: int, smoothing: float) -> Tensor:
    dim = 0 if x.ndim == 1 else 1
    if smoothing:
        target = target * (1 - smoothing) + smoothing / x.shape[dim]  # type: ignore[operator]
    products = log_softmax(x, dim) * target  # type: ignore[operator]
    if weight is not None:
        products = products * _class_shape(weight, x)
    if code == NONE:
        return -products.sum(dim)
    total = -products.sum()
    return total if code == SUM else total / (x.numel() / x.shape[dim] if x.numel() else 0.0)


def _smoothed_entropy(x: Tensor, target: Tensor, weight: Any, ignored: int, code: int, smoothing: float) -> Tensor:
    dim = 0 if x.ndim == 1 else 1
    logs = log_softmax(x, dim)
    hard = class_likelihood(logs, target, weight, ignored, "none" if code == NONE else "sum")
    spread = -(logs if weight is None else logs * _class_shape(weight, x)).sum(dim)  # type: ignore[operator]
    left_out = pw.eq(target, ignored)
    spread = pw.where_op(left_out.reshape(spread.shape), 0.0, spread)
    divisor: Any = 1.0
    if code != NONE:
        spread = spread.sum()
        if code == MEAN:
            count = pw.logical_not(left_out)
            if weight is None:
                divisor = cast(count.sum(), x.dtype)
            else:
                # the weights of the classes that count
                divisor = -class_likelihood(
                    _class_shape(weight.detach(), x).expand(x.shape), target, None, ignored, "sum"
                )
    share = smoothing / x.shape[dim]
    return hard / divisor * (1 - smoothing) + spread / divisor * share  # type: ignore[operator]
