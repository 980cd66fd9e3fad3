"""Losses of classes: cross entropy and likelihoods, each computed and reduced in one kernel forward and one in reverse."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.creation import zeros
from tapegrad.ops import _loss_kernels as kernels
from tapegrad.ops import _reading
from tapegrad.ops import pointwise as pw
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._fold import PAIR_COLUMNS, Select, check_input, select_op
from tapegrad.ops._fold_pairs import exponentials
from tapegrad.ops._kernel import empty
from tapegrad.ops._loss_kernels import MEAN, NONE, SUM, reduction_code
from tapegrad.ops._operands import cast
from tapegrad.ops._rule import Real
from tapegrad.ops.selecting import scatter_sum
from tapegrad.ops.softmax import log_softmax, softmax
from tapegrad.tensor import Tensor


def _check_classes(x: Tensor, target: Any, weight: Any) -> tuple[int, int, int]:
    """(rows outside, classes, rows inside) of an input and its target classes."""
    check_tensor("nll_loss", target, "target", None)
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
    # a row without weight has no gradient, whatever it holds and whatever arrives
    idle = pw.eq(weights, 0)
    factors = cast(pw.where_op(idle, 0.0, weights / kept[2 * rows]), g.dtype)
    share = pw.where_op(idle, 0.0, factors * g.reshape((-1, 1, inner if g.ndim else 1)))
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
    check_tensor("cross_entropy", target, "target", None)
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
