"""Adam and AdamW."""

from __future__ import annotations

from tapegrad.creation import zeros_like
from tapegrad.optim.optimizer import Group, Number, Optimizer, Params, as_float, check_number, uphill

__all__ = ["Adam", "AdamW"]


class Adam(Optimizer):
    r"""Adam (Kingma and Ba, 2015): steps scaled by running moments of the gradient.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
        p \leftarrow p - \mathrm{lr}\,
        \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Args:
        params: tensors to optimise, or dicts of groups.
        lr: learning rate.
        betas: how slowly the two running moments forget.
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        amsgrad: divide by the largest second moment seen so far.
        maximize: climb instead of descending.
        decoupled_weight_decay: shrink the parameters instead of adding to the gradient, as ``AdamW`` does.

    Example:
        >>> import tapegrad as tg
        >>> w = tg.tensor([1.0], requires_grad=True)
        >>> optimizer = tg.optim.Adam([w], lr=1e-2)
        >>> optimizer.zero_grad()
        >>> (w * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.9900], requires_grad=True)
    """

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        check_number(lr, "Invalid learning rate", "lr")
        check_number(eps, "Invalid epsilon value", "eps")
        for i, beta in enumerate(betas):
            check_number(beta, f"Invalid beta parameter at index {i}", f"betas[{i}]", below=1.0)
        check_number(weight_decay, "Invalid weight_decay value", "weight_decay")
        defaults = {
            "lr": lr,
            "betas": tuple(as_float(beta) for beta in betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def update(self, group: Group) -> None:
        """One step for the parameters of ``group``."""
        lr = as_float(group["lr"])
        beta1, beta2 = group["betas"]
        eps, decay, decoupled = group["eps"], group["weight_decay"], group["decoupled_weight_decay"]
        amsgrad = group["amsgrad"]
        for p, grad in uphill(group, 0 if decoupled else decay):
            if decoupled and decay != 0:
                p.mul_(1 - lr * decay)

            state = self.state[p]
            if not state:
                state["step"] = 0
                state["exp_avg"] = zeros_like(p)
                state["exp_avg_sq"] = zeros_like(p)
                if amsgrad:
                    state["max_exp_avg_sq"] = zeros_like(p)
            state["step"] += 1
            first, second = state["exp_avg"], state["exp_avg_sq"]
            first.lerp_(grad, 1 - beta1)
            second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            if amsgrad:
                second = state["max_exp_avg_sq"] = state["max_exp_avg_sq"].maximum(second)

            correction1 = 1 - beta1 ** state["step"]
            correction2 = 1 - beta2 ** state["step"]
            denominator = second.sqrt().div_(correction2**0.5).add_(eps)
            p.addcdiv_(first, denominator, value=-lr / correction1)


class AdamW(Adam):
    r"""Adam with decoupled weight decay (Loshchilov and Hutter, 2019): it does not enter the moments.

    Before each of Adam's steps, :math:`p \leftarrow p (1 - \mathrm{lr} \cdot \lambda)`.

    Args:
        params: tensors to optimise, or dicts of groups.
        lr: learning rate.
        betas: how slowly the two running moments forget.
        eps: added to the denominator.
        weight_decay: share of each parameter that is taken away, in units of ``lr``.
        amsgrad: divide by the largest second moment seen so far.
        maximize: climb instead of descending.

    Example:
        >>> import tapegrad as tg
        >>> w = tg.tensor([1.0], requires_grad=True)
        >>> optimizer = tg.optim.AdamW([w], lr=1e-3, weight_decay=1e-2)
    """

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, decoupled_weight_decay=True)
