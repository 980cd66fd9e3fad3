"""Stochastic gradient descent."""

from __future__ import annotations

from tapegrad.optim.optimizer import Group, Number, Optimizer, Params, as_float, check_number, uphill

__all__ = ["SGD"]


class SGD(Optimizer):
    r"""Gradient descent, with momentum if wanted.

    With gradient :math:`g`, decay :math:`\lambda`, momentum :math:`\mu` and dampening :math:`\tau`:

    .. math::
        d = g + \lambda p, \qquad b \leftarrow \mu b + (1 - \tau) d, \qquad
        p \leftarrow p - \mathrm{lr} \cdot b

    where the first :math:`b` is :math:`d` itself, and Nesterov's form moves by :math:`d + \mu b`.

    Args:
        params: tensors to optimise, or dicts of groups.
        lr: learning rate.
        momentum: share of the last step that goes into the next.
        dampening: how much the gradient counts less in the running step.
        weight_decay: L2 penalty.
        nesterov: look ahead along the momentum.
        maximize: climb instead of descending.

    Example:
        >>> import tapegrad as tg
        >>> w = tg.tensor([1.0], requires_grad=True)
        >>> optimizer = tg.optim.SGD([w], lr=0.1, momentum=0.9)
        >>> optimizer.zero_grad()
        >>> (w * w).sum().backward()
        >>> optimizer.step()
        >>> w
        tensor([0.8000], requires_grad=True)
    """

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        check_number(lr, "Invalid learning rate", "lr")
        check_number(momentum, "Invalid momentum value", "momentum")
        check_number(weight_decay, "Invalid weight_decay value", "weight_decay")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def update(self, group: Group) -> None:
        """One step for the parameters of ``group``."""
        lr = as_float(group["lr"])
        momentum, dampening, nesterov = group["momentum"], group["dampening"], group["nesterov"]
        for p, grad in uphill(group, group["weight_decay"]):
            if momentum != 0:
                state = self.state[p]
                running = state.get("momentum_buffer")
                if running is None:
                    running = state["momentum_buffer"] = grad.detach().clone()
                else:
                    running.mul_(momentum).add_(grad, alpha=1 - dampening)
                grad = grad.add(running, alpha=momentum) if nesterov else running
            p.add_(grad, alpha=-lr)
