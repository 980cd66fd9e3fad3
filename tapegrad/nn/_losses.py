"""Losses: an op each, which reduces in the same pass; weights come in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tapegrad.ops import activation, class_losses, pair_losses
from tapegrad.ops import pointwise as pw
from tapegrad.ops._fold import check_input
from tapegrad.ops._loss_kernels import reduction_code
from tapegrad.ops._reading import require
from tapegrad.tensor import Tensor

# what they share


def _reduction(size_average: Any, reduce: Any, reduction: str) -> str:
    # PyTorch's older arguments
    if size_average is None and reduce is None:
        reduction_code(reduction)
        return reduction
    if reduce is not None and not reduce:
        return "none"
    return "mean" if size_average is None or size_average else "sum"


def _check_weight(name: str, input: Tensor, weight: Tensor | None) -> None:
    if weight is not None:
        check_input(name, input)
        if weight.shape != input.shape:
            raise ValueError("Weights and input must have the same size.")


def _reduce(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    if weight is not None:
        shape, loss = loss.shape, pw.mul(loss, weight)
        if loss.shape != shape:
            raise RuntimeError(f"output with shape {list(shape)} doesn't match the broadcast shape {list(loss.shape)}")
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def _of_pairs(
    op: Callable, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, *parameters: float
) -> Tensor:
    # the op reduces in its own pass, unless weights come before
    if weight is None:
        return op(input, target, reduction, *parameters)
    return _reduce(op(input, target, "none", *parameters), weight, reduction)


def _weighted_mean_of_pairs(
    op: Callable, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str
) -> Tensor:
    # a mean is over the sum of the weights, instead of the number of elements
    if weight is None or reduction != "mean":
        return _of_pairs(op, input, target, weight, reduction)
    return pw.true_divide(_of_pairs(op, input, target, weight, "sum"), weight.sum())


# the losses


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Squared error, :math:`(x - y)^2`.

    Args:
        input: the values.
        target: what they should be.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        weight: of each element; the mean is then weighted.

    Raises:
        ValueError: for weights of another shape than the input's.

    >>> import tapegrad as tg
    >>> tg.nn.functional.mse_loss(tg.tensor([1.0, 2.0]), tg.tensor([1.0, 4.0]))
    tensor(2.)
    """
    reduction = _reduction(size_average, reduce, reduction)
    _check_weight("mse_loss", input, weight)
    return _weighted_mean_of_pairs(pair_losses.squared, input, target, weight, reduction)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Absolute error, :math:`|x - y|`; arguments as `mse_loss`."""
    reduction = _reduction(size_average, reduce, reduction)
    _check_weight("l1_loss", input, weight)
    return _weighted_mean_of_pairs(_absolute, input, target, weight, reduction)


def _absolute(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    # the gradient function is named after the reduction
    op = {"mean": pair_losses.absolute, "sum": pair_losses.absolute_sum, "none": pair_losses.absolute_each}[reduction]
    return op(input, target, reduction)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    r"""Absolute error, quadratic below :math:`\beta`: :math:`d^2 / 2\beta`, else :math:`|d| - \beta/2`.

    Raises:
        RuntimeError: for a negative `beta`.
    """
    reduction = _reduction(size_average, reduce, reduction)
    if beta < 0:
        raise RuntimeError("smooth_l1_loss does not support negative values for beta.")
    if beta == 0:
        return l1_loss(input, target, reduction=reduction)
    return pair_losses.smooth(input, target, reduction, beta)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    r"""Squared error, linear beyond :math:`\delta`: :math:`d^2 / 2`, else :math:`\delta (|d| - \delta/2)`.

    Raises:
        RuntimeError: for a `delta` that is not positive.
        ValueError: for weights of another shape than the input's.
    """
    reduction_code(reduction)
    if delta <= 0:
        raise RuntimeError("huber_loss does not support non-positive values for delta.")
    _check_weight("huber_loss", input, weight)
    return _of_pairs(pair_losses.huber, input, target, weight, reduction, delta)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross entropy, :math:`-y \log x - (1 - y) \log(1 - x)`, logarithms being at least -100.

    Args:
        input: probabilities.
        target: what they should be, of the same shape and dtype.
        weight: of each element, or one it broadcasts from.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        RuntimeError: if an input is outside of [0, 1].
        ValueError: if the shapes differ.
    """
    reduction = _reduction(size_average, reduce, reduction)
    check_input("binary_cross_entropy", input)
    if target.shape != input.shape:
        raise ValueError(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}) is "
            "deprecated. Please ensure they have the same size."
        )
    if target.dtype is not input.dtype:
        raise RuntimeError(f"Found dtype {target.dtype.tensor_type} but expected {input.dtype.tensor_type}")
    if input.numel():
        plain = input.detach()
        within = (plain.amin() >= 0) & (plain.amax() <= 1)
        require(within, RuntimeError("all elements of input should be between 0 and 1"))
    return _of_pairs(pair_losses.entropy, input, target, weight, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    r"""Cross entropy given the logits, :math:`\max(x, 0) - x y + \log(1 + e^{-|x|})`.

    Args:
        input: logits.
        target: probabilities they should give, of the same shape.
        weight: of each element, or one it broadcasts from.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: factor of the part with :math:`y`.

    Raises:
        ValueError: if the shapes differ.
    """
    reduction = _reduction(size_average, reduce, reduction)
    check_input("binary_cross_entropy_with_logits", input)
    if target.shape != input.shape:
        raise ValueError(f"Target size ({target.shape}) must be the same as input size ({input.shape})")
    if pos_weight is None:
        return _of_pairs(pair_losses.logits_entropy, input, target, weight, reduction)
    factor = pw.add(pw.mul(target, pw.sub(pos_weight, 1)), 1)
    positive_part = pw.mul(factor, pw.neg(activation.logsigmoid(input)))
    return _reduce(pw.add(pw.mul(pw.sub(1, target), input), positive_part), weight, reduction)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Negative log-likelihood of classes, :math:`-w_y x_y`; arguments as `cross_entropy`."""
    reduction = _reduction(size_average, reduce, reduction)
    return class_losses.class_likelihood(input, target, weight, ignore_index, reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross entropy of classes under the softmax of scores.

    .. math:: w_y \Big(\log \sum_c e^{x_c} - x_y\Big)

    Args:
        input: scores of shape (classes,), (N, classes) or (N, classes, d1, …).
        target: class indices of shape (), (N,) or (N, d1, …), or probabilities of the input's shape.
        weight: of each class; the mean is then weighted.
        ignore_index: targets with this index count for nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: share of the target that is spread over all classes.

    Raises:
        IndexError: for a class that does not exist.
        ValueError: if the batch sizes differ.

    >>> import tapegrad as tg
    >>> tg.nn.functional.cross_entropy(tg.tensor([[0.0, 0.0]]), tg.tensor([1]))
    tensor(0.6931)
    """
    reduction = _reduction(size_average, reduce, reduction)
    return class_losses.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    r"""Kullback-Leibler divergence, :math:`y (\log y - x)`, of log-probabilities from probabilities.

    Args:
        input: log-probabilities.
        target: probabilities.
        reduction: ``"mean"``, ``"batchmean"`` (the sum over the number of rows), ``"sum"`` or ``"none"``.
        log_target: whether the targets are logarithms, too.
    """
    batch_mean = reduction == "batchmean"
    reduction = _reduction(size_average, reduce, "sum" if batch_mean else reduction)
    if log_target:
        loss = pw.mul(pw.exp(target), pw.sub(target, input))
    else:
        loss = pw.sub(_entropy_of(target), pw.mul(target, input))
    total = _reduce(loss, None, reduction)
    if batch_mean and input.ndim:
        return pw.true_divide(total, input.shape[0])
    return total


def _entropy_of(y: Tensor) -> Tensor:
    # y log y, which is zero at zero
    zero = pw.eq(y.detach(), 0)
    return pw.where_op(zero, 0.0, pw.mul(y, pw.log(pw.where_op(zero, 1.0, y))))
