"""What every optimiser shares: parameter groups, state, and the step around an update rule."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from itertools import chain
from typing import Any, TypeAlias

from tapegrad.grad_mode import enable_grad, no_grad
from tapegrad.tensor import Tensor

__all__ = ["Optimizer"]

Group: TypeAlias = dict[str, Any]
Params: TypeAlias = Iterable[Tensor] | Iterable[Group]
Number: TypeAlias = float | Tensor


class Optimizer:
    """Base of all optimisers. A subclass gives the defaults and the update of one group.

    Args:
        params: tensors to optimise, or dicts with the key ``"params"`` and that group's own options.
        defaults: options for groups that do not set them.

    Example:
        >>> class Sign(Optimizer):
        ...     def __init__(self, params, lr=1e-3):
        ...         super().__init__(params, {"lr": lr})
        ...     def update(self, group):
        ...         for p in group["params"]:
        ...             if p.grad is not None:
        ...                 p.add_(p.grad.sign(), alpha=-group["lr"])
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[Group] = []
        if isinstance(params, Tensor):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or dicts, "
                f"but got {params.type()}"
            )
        groups: list[Any] = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again, calls ``backward`` and returns the loss.

        Returns:
            What ``closure`` returned, or None.

        Example:
            >>> import tapegrad as tg
            >>> w = tg.tensor([1.0], requires_grad=True)
            >>> optimizer = tg.optim.SGD([w], lr=0.1)
            >>> (w * w).sum().backward()
            >>> optimizer.step()
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        with no_grad():
            for group in self.param_groups:
                self.update(group)
        return loss

    def update(self, group: Group) -> None:
        """Move the parameters of one group, in place; called with gradients disabled.

        Args:
            group: one entry of ``param_groups``.
        """
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters.

        Args:
            set_to_none: drop them (the default), rather than fill them with zeros.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    if p.grad.grad_fn is not None:
                        p.grad.detach_()
                    else:
                        p.grad.requires_grad_(False)
                    p.grad.zero_()

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with options of their own, for instance a layer that was frozen until now.

        Args:
            param_group: a dict with ``"params"`` (a tensor or an iterable of them) and any option.

        Example:
            >>> import tapegrad as tg
            >>> w = tg.tensor([1.0], requires_grad=True)
            >>> head = tg.zeros(3, requires_grad=True)
            >>> optimizer = tg.optim.SGD([w], lr=0.1)
            >>> optimizer.add_param_group({"params": head, "lr": 1e-2})
            >>> len(optimizer.param_groups)
            2
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, but the ordering of "
                "tensors in sets will change between runs. Please use a list instead."
            )
        params = [params] if isinstance(params, Tensor) else list(params)
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"optimizer can only optimize Tensors, but one of the params is {type(p).__qualname__}")
            if not (p.is_leaf or p.retains_grad):
                raise ValueError("can't optimize a non-leaf Tensor")

        ids = {id(p) for p in params}
        if len(ids) != len(params):
            warnings.warn("optimizer contains a parameter group with duplicate parameters", stacklevel=3)
        if any(id(p) in ids for group in self.param_groups for p in group["params"]):
            raise ValueError("some parameters appear in more than one parameter group")

        param_group["params"] = params
        for name, default in self.defaults.items():
            param_group.setdefault(name, default)
        self.param_groups.append(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The options and the state as plain containers, parameters replaced by their position.

        Returns:
            ``{"state": {position: state}, "param_groups": [...]}``; tensors in it are shared, not copied.
        """
        position: dict[int, int] = {}
        packed_groups = []
        for group in self.param_groups:
            for p in group["params"]:
                position.setdefault(id(p), len(position))
            packed = {name: value for name, value in group.items() if name != "params"}
            packed["params"] = [position[id(p)] for p in group["params"]]
            packed_groups.append(packed)
        state = {position[id(p)] if isinstance(p, Tensor) else p: value for p, value in self.state.items()}
        return {"state": state, "param_groups": packed_groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the options and the state that ``state_dict`` saved.

        Args:
            state_dict: what the ``state_dict`` of an optimiser with the same groups returned. Its tensors are
                copied and take the dtype of their parameter.

        Example:
            >>> import tapegrad as tg
            >>> w = tg.tensor([1.0], requires_grad=True)
            >>> optimizer, resumed = tg.optim.Adam([w]), tg.optim.Adam([w])
            >>> resumed.load_state_dict(optimizer.state_dict())
        """
        saved_groups = deepcopy(state_dict["param_groups"])
        if len(saved_groups) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(len(saved["params"]) != len(group["params"]) for saved, group in zip(saved_groups, self.param_groups)):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
            )

        param_at = dict(
            zip(
                chain.from_iterable(saved["params"] for saved in saved_groups),
                chain.from_iterable(group["params"] for group in self.param_groups),
            )
        )
        state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for position, saved_state in state_dict["state"].items():
            if position in param_at:
                param = param_at[position]
                state[param] = {name: _own_copy(value, param) for name, value in saved_state.items()}
            else:
                state[position] = saved_state

        self.state = state
        for saved, group in zip(saved_groups, self.param_groups):
            saved["params"] = group["params"]
        self.param_groups = saved_groups

    def __repr__(self) -> str:
        text = ""
        for i, group in enumerate(self.param_groups):
            options = (f"    {name}: {group[name]}\n" for name in sorted(group) if name != "params")
            text += f"\nParameter Group {i}\n" + "".join(options)
        return f"{type(self).__name__} ({text})"


def _own_copy(value: Any, param: Tensor) -> Any:
    """A saved value that shares no memory with where it came from."""
    if isinstance(value, Tensor):
        return value.detach().to(param.dtype).clone()
    return deepcopy(value)


def check_number(value: Number, message: str, name: str, below: float = float("inf")) -> None:
    """Refuse an option outside ``0 <= value < below``, NaN included.

    Args:
        value: the option, a number or a tensor of one element.
        message: start of the error, to which the value is added.
        name: the option's name, for a tensor of several elements.
        below: first value that is too large.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element")
    if not 0.0 <= value < below:
        raise ValueError(f"{message}: {value}")


def uphill(group: Group, decay: float) -> Iterator[tuple[Tensor, Tensor]]:
    """The parameters of a group that have a gradient, each with the direction to move against.

    Args:
        group: one entry of ``param_groups``; with ``"maximize"`` the direction is turned round.
        decay: factor of the L2 penalty, whose gradient is added.
    """
    for p in group["params"]:
        grad = p.grad
        if grad is None:
            continue
        if group["maximize"]:
            grad = -grad
        yield p, grad.add(p, alpha=decay) if decay != 0 else grad


def as_float(value: Number) -> float:
    """An option as the number that the in-place ops take."""
    return value.item() if isinstance(value, Tensor) else value
