"""Activation functions of `nn.functional` with parameters; parameters are numbers and have no gradient."""

from __future__ import annotations

import numpy as np

from tapegrad.engine import vecmath
from tapegrad.ops._pointwise import pointwise
from tapegrad.ops._rule import NUMBERS, Domain, Real

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


@pointwise(
    domain=Domain((-4.0, 4.0), (0.01, 0.3), avoid=(0.0,)),
    reference=lambda x, slope: np.where(x > 0, x, x * slope),
    cost=2,
    method=False,
    public=False,
)
def leaky_relu(x, slope):
    r"""Positive part, and a share of the negative one: :math:`\max(x, 0) + s \min(x, 0)`."""
    return x if x > 0 else x * slope


@leaky_relu.backward
def _(g, x, slope):
    return g if x > 0 else g * slope, None


@pointwise(
    domain=Domain((-4.0, 4.0), (0.5, 2.0), (1.0, 1.5), avoid=(0.0,)),
    reference=lambda x, alpha, scale: scale * np.where(x > 0, x, alpha * np.expm1(x)),
    cost=4,
    method=False,
    public=False,
)
def elu(x, alpha, scale):
    r"""Exponential linear unit, :math:`s (\max(x, 0) + \alpha (e^{\min(x, 0)} - 1))`."""
    return x * scale if x > 0 else alpha * scale * vecmath.expm1(x)


@elu.backward
def _(g, x, alpha, scale):
    return g * (scale if x > 0 else alpha * scale * vecmath.exp(x if x < 0 else 0)), None, None


@pointwise(
    domain=Domain((-4.0, 4.0), (0.5, 2.0), avoid=(0.0,)),
    reference=lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x / alpha)),
    cost=4,
    method=False,
    public=False,
)
def celu(x, alpha):
    r"""Continuously differentiable `elu`, :math:`\max(x, 0) + \alpha (e^{\min(x, 0) / \alpha} - 1)`."""
    return x if x > 0 else alpha * vecmath.expm1(x / alpha)


@celu.backward
def _(g, x, alpha):
    return g if x > 0 else g * vecmath.exp((x if x < 0 else 0) / alpha), None


@pointwise(
    domain=Domain((-4.0, 4.0), (-2.0, -1.0), (1.0, 2.0)),
    reference=lambda x, low, high: np.clip(x, low, high),
    dtypes=NUMBERS,
    cost=2,
    method=False,
    public=False,
)
def hardtanh(x, low, high):
    r"""Values limited to an interval, :math:`\min(\max(x, a), b)`; the gradient is zero at its ends."""
    raised = low if x < low else x
    return high if raised > high else raised


@hardtanh.backward
def _(g, x, low, high):
    return 0 if x <= low or x >= high else g, None, None


@pointwise(domain=Real(), reference=lambda x: x * np.tanh(np.logaddexp(0, x)), cost=8, method=False, public=False)
def mish(x):
    r""":math:`x \tanh(\ln(1 + e^x))`."""
    return x * vecmath.tanh(x if x > 20 else vecmath.log1p(vecmath.exp(x)))


@mish.backward
def _(g, x):
    t = vecmath.tanh(x if x > 20 else vecmath.log1p(vecmath.exp(x if x < 20 else 20)))
    return g * (t + x * (1 - t * t) * vecmath.sigmoid(x))


@pointwise(
    domain=Real(),
    reference=lambda x: -np.logaddexp(0, -x),
    cost=8,
    grad_name="LogSigmoidBackward0",
    method=False,
    public=False,
)
def logsigmoid(x):
    r"""Logarithm of the logistic function, :math:`-\ln(1 + e^{-x})`."""
    return (x if x < 0 else 0) - vecmath.log1p(vecmath.exp(-abs(x)))


@logsigmoid.backward
def _(g, x):
    return g * vecmath.sigmoid(-x)
