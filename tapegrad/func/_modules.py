"""Objects that hold tensors, called as functions of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tapegrad.ops._rule import PUBLIC
from tapegrad.tensor import Tensor


def functional_call(module: Any, parameter_and_buffer_dicts: Any, args: Any = None, kwargs: Any = None) -> Any:
    """Call an object with some of its tensors replaced.

    Args:
        module: any callable object that holds tensors in attributes, also of objects within it.
        parameter_and_buffer_dicts: tensors by dotted name, or several such dicts.
        args: its positional arguments: a tuple, or the only one.
        kwargs: its keyword arguments.

    Returns:
        What the call returns; the attributes are as they were afterwards.

    Raises:
        AttributeError: naming what the object does not have.

    >>> import tapegrad as tg
    >>> class Line:
    ...     slope = tg.tensor(1.0)
    ...     def __call__(self, x):
    ...         return self.slope * x
    >>> tg.func.functional_call(Line(), {"slope": tg.tensor(3.0)}, tg.tensor(2.0))
    tensor(6.)
    """
    dicts = [parameter_and_buffer_dicts] if isinstance(parameter_and_buffer_dicts, dict) else parameter_and_buffer_dicts
    replaced: list[tuple[Any, str, Any, bool]] = []
    arguments = () if args is None else args if isinstance(args, tuple) else (args,)
    try:
        for values in dicts:
            for path, value in values.items():
                *owners, name = path.split(".")
                owner = functools.reduce(getattr, owners, module)
                replaced.append((owner, name, getattr(owner, name), name in vars(owner)))
                setattr(owner, name, value)
        return module(*arguments, **(kwargs or {}))
    finally:
        for owner, name, value, own in reversed(replaced):
            if own:
                setattr(owner, name, value)
            else:
                delattr(owner, name)


def stack_module_state(models: Sequence[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of several like objects, stacked by name, for `vmap` over models: those that require grad, and the others.

    >>> import tapegrad as tg
    >>> class Line:
    ...     def __init__(self, slope):
    ...         self.slope = tg.tensor(slope, requires_grad=True)
    >>> tg.func.stack_module_state([Line(1.0), Line(2.0)])[0]["slope"]
    tensor([1., 2.], requires_grad=True)
    """
    if not models:
        raise RuntimeError("stack_module_state: Expected at least one model, got 0.")
    parameters, buffers = {}, {}
    for name, value in vars(models[0]).items():
        if isinstance(value, Tensor):
            stacked = PUBLIC["stack"]([getattr(m, name).detach() for m in models])
            if value.requires_grad:
                parameters[name] = stacked.requires_grad_()
            else:
                buffers[name] = stacked
    return parameters, buffers
