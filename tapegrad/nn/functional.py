"""Functions of neural networks, with PyTorch's names and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tapegrad import dtypes, random
from tapegrad.creation import arange
from tapegrad.nn._losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from tapegrad.ops import activation, affine, selecting
from tapegrad.ops import pointwise as pw
from tapegrad.ops import softmax as _softmax_ops
from tapegrad.ops._fold import check_input
from tapegrad.ops._operands import cast, constant
from tapegrad.ops._reading import extent, require
from tapegrad.ops.norms import vector_norm
from tapegrad.ops.padding import constant_pad
from tapegrad.tensor import Tensor

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "cosine_similarity",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "hardtanh",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsigmoid",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softmin",
    "softplus",
    "softsign",
    "tanh",
]


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""A linear layer, :math:`x W^\top + b`.

    Args:
        input: of shape (…, in).
        weight: of shape (out, in).
        bias: of shape (out,).
    """
    return affine.linear(input, weight, bias)


# activations


def _unary(op: Any, input: Any, inplace: bool = False, *numbers: float) -> Tensor:
    # the parameters become 0-d constants, which the engine keeps
    check_input(op.name, input)
    if numbers:
        real = input.dtype if input.dtype in op.dtypes else dtypes.get_default_dtype()
        result = op(input, *(constant(v, real) for v in numbers))
    else:
        result = op(input)
    return input.copy_(result) if inplace else result


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""Positive part, :math:`\max(x, 0)`.

    >>> import tapegrad as tg
    >>> tg.nn.functional.relu(tg.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    return input.relu_() if inplace else pw.relu(input)


def sigmoid(input: Tensor) -> Tensor:
    r"""Logistic function, :math:`1 / (1 + e^{-x})`."""
    return pw.sigmoid(input)


def tanh(input: Tensor) -> Tensor:
    r"""Hyperbolic tangent, :math:`\tanh x`."""
    return pw.tanh(input)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    r"""Smooth positive part, :math:`\ln(1 + e^{\beta x}) / \beta`, linear above the threshold."""
    return _unary(pw.softplus, input, False, beta, threshold)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    r"""Gaussian error linear unit, :math:`x \, \Phi(x)`.

    Args:
        input: the tensor.
        approximate: ``"tanh"`` for the approximation by a hyperbolic tangent.

    Raises:
        RuntimeError: for another `approximate`.
    """
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return (pw.gelu if approximate == "none" else pw.gelu_tanh)(input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    r""":math:`x \, \sigma(x)`."""
    return _unary(pw.silu, input, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    r""":math:`x \tanh(\ln(1 + e^x))`."""
    return _unary(activation.mish, input, inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    r"""Exponential linear unit, :math:`\max(x, 0) + \alpha (e^{\min(x, 0)} - 1)`."""
    return _unary(activation.elu, input, inplace, alpha, 1.0)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """Self-normalising `elu`, with its two fixed constants."""
    return _unary(activation.elu, input, inplace, activation.SELU_ALPHA, activation.SELU_SCALE)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    r"""Continuously differentiable `elu`, :math:`\max(x, 0) + \alpha (e^{\min(x, 0) / \alpha} - 1)`."""
    return _unary(activation.celu, input, inplace, alpha)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    r"""Positive part, and a share of the negative one: :math:`\max(x, 0) + s \min(x, 0)`."""
    return _unary(activation.leaky_relu, input, inplace, negative_slope)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """Values limited to an interval.

    Raises:
        ValueError: if `min_val` exceeds `max_val`.
    """
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    return _unary(activation.hardtanh, input, inplace, min_val, max_val)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    r"""Positive part up to six, :math:`\min(\max(x, 0), 6)`."""
    return hardtanh(input, 0.0, 6.0, inplace)


def softsign(input: Tensor) -> Tensor:
    r""":math:`x / (1 + |x|)`."""
    return pw.true_divide(input, pw.add(pw.abs(input), 1))


def logsigmoid(input: Tensor) -> Tensor:
    r"""Logarithm of the logistic function, :math:`-\ln(1 + e^{-x})`."""
    return activation.logsigmoid(input)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    r"""Exponentials along one dim, scaled so that they sum to one, :math:`e^{x_i} / \sum_k e^{x_k}`."""
    return _softmax_ops.softmax(input, dim, dtype)


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """`softmax` of the negative."""
    return _softmax_ops.softmax(pw.neg(input), dim, dtype)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    r"""Logarithm of `softmax`, :math:`x_i - \log \sum_k e^{x_k}`."""
    return _softmax_ops.log_softmax(input, dim, dtype)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability `p` and scale the others by ``1 / (1 - p)``.

    Args:
        input: the tensor.
        p: probability of an element to be zeroed.
        training: without it, the input is returned as it is.
        inplace: write into the input.

    Raises:
        ValueError: if `p` is no probability.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    check_input("dropout", input)
    if not training or (p == 0.0 and inplace):
        return input
    keep = random.rand(*input.shape, dtype=input.dtype)
    mask = cast(pw.ge(keep, p), input.dtype) if p < 1.0 else pw.zero(keep)
    mask = pw.mul(mask, 1.0 / (1.0 - p) if p < 1.0 else 1.0)
    return input.mul_(mask) if inplace else pw.mul(input, mask)


# shapes and look-ups


def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """Integers as rows of zeros with a one at their place.

    Args:
        input: integers of dtype int64, from zero on.
        num_classes: length of a row; one more than the largest by default.

    Raises:
        RuntimeError: for another dtype, negative integers, and integers that do not fit.

    >>> import tapegrad as tg
    >>> tg.nn.functional.one_hot(tg.tensor([0, 2]))
    tensor([[1, 0, 0],
            [0, 0, 1]])
    """
    check_input("one_hot", input)
    if input.dtype is not dtypes.int64:
        raise RuntimeError("one_hot is only applicable to index tensor of type LongTensor.")
    if not input.numel():
        if num_classes <= 0:
            raise RuntimeError("Can not infer total number of classes from empty tensor.")
    else:
        require(input.amin() >= 0, RuntimeError("Class values must be non-negative."))
        if num_classes == -1:
            num_classes = extent("one_hot", input.amax()) + 1
        elif num_classes < 1:
            raise RuntimeError("num_classes should be positive")
        else:
            require(input.amax() < num_classes, RuntimeError("Class values must be smaller than num_classes."))
    return cast(pw.eq(input.unsqueeze(-1), arange(num_classes)), dtypes.int64)


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """A tensor with a border of a constant.

    Args:
        input: the tensor.
        pad: widths before and after, for the last dim, then the one before, …; negative ones cut.
        mode: ``"constant"``.
        value: of the border; zero by default.

    Raises:
        RuntimeError: for widths that do not fit the tensor.
        NotImplementedError: for other modes.
    """
    check_input("pad", input)
    if mode != "constant":
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    widths = [w.__index__() for w in pad]
    if len(widths) % 2:
        raise RuntimeError("Padding length must be divisible by 2")
    if len(widths) > 2 * input.ndim:
        raise RuntimeError(
            "Padding length should be less than or equal to two times the input dimension but got padding "
            f"length {len(widths)} and input of dimension {input.ndim}"
        )
    pairs = [(0, 0)] * (input.ndim - len(widths) // 2) + list(zip(widths[-2::-2], widths[::-2], strict=True))
    return constant_pad(input, pairs, 0 if value is None else value)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a matrix.

    Args:
        input: integers that choose rows.
        weight: the matrix.
        padding_idx: a row without gradient.

    Raises:
        IndexError: for a row that does not exist.
        NotImplementedError: for `max_norm`, `scale_grad_by_freq` and `sparse`.
    """
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise NotImplementedError("embedding(): max_norm, scale_grad_by_freq and sparse are not supported")
    return selecting.embedding(input, weight, padding_idx)


def normalize(input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    r"""Vectors of unit norm along a dim, :math:`x / \max(\lVert x \rVert_p, \epsilon)`."""
    length = pw.clamp_low(vector_norm(input, p, dim, True), eps)
    return pw.true_divide(input, length.expand_as(input))


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    r"""Cosine of the angle between vectors along a dim.

    .. math:: \frac{x_1 \cdot x_2}{\max(\lVert x_1 \rVert, \epsilon) \max(\lVert x_2 \rVert, \epsilon)}
    """
    first = pw.true_divide(x1, pw.clamp_low(vector_norm(x1, 2, dim, True), eps))
    second = pw.true_divide(x2, pw.clamp_low(vector_norm(x2, 2, dim, True), eps))
    return pw.mul(first, second).sum(dim)
