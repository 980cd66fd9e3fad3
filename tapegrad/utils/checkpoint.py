"""Gradient checkpointing: compute again in backward what forward did not keep."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from tapegrad import _tree
from tapegrad.autograd.backward import backward
from tapegrad.autograd.function import Function
from tapegrad.autograd.graph import saved_tensors_hooks
from tapegrad.grad_mode import is_grad_enabled, set_grad_enabled
from tapegrad.random import get_rng_state, set_rng_state
from tapegrad.tensor import Tensor


class CheckpointError(RuntimeError):
    """The function did something else when it was run again."""


def noop_context_fn() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """Contexts that change nothing, for the forward pass and for the recomputation."""
    return contextlib.nullcontext(), contextlib.nullcontext()


class _Stop(Exception):
    """Everything that was saved has been computed again."""


class _Region:
    """One call that keeps its arguments only, and what it saves when it is run again."""

    def __init__(self, function: Callable, args: tuple, kwargs: dict, options: dict[str, Any]) -> None:
        self._call = lambda: function(*args, **kwargs)
        self._given = [(t, t._version) for t in _tree.flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        self._options = options
        self._context = options["contexts"][1]
        self._state = get_rng_state() if options["preserve_rng_state"] else None
        self._likes: list[tuple[Any, Any]] = []  # shape and dtype of what forward saved, in order
        self._values: dict[int, Tensor] = {}

    def pack(self, t: Tensor) -> int:
        """Remember a saved tensor by its number."""
        self._likes.append((t.shape, t.dtype))
        return len(self._likes) - 1

    def unpack(self, number: int) -> Tensor:
        """A saved tensor, computed again with all others unless that was done for this sweep."""
        if number not in self._values:
            self._values = self._recomputed()
        return self._values.pop(number)

    def _recomputed(self) -> dict[int, Tensor]:
        for t, version in self._given:
            if t._version != version:
                raise RuntimeError(
                    f"checkpoint: an argument of shape {list(t.shape)} was written to since the call (it is at version {t._version}, and was "
                    f"at {version}), so what was computed of it cannot be computed again; pass a copy (x.clone()), or do not write to it"
                )
        values: list[Tensor] = []
        early = self._options["early_stop"]

        def keep(t: Tensor) -> Tensor:
            values.append(t)
            if early and len(values) == len(self._likes):
                raise _Stop
            return t

        before = get_rng_state()
        if self._state is not None:
            set_rng_state(self._state)
        try:
            with set_grad_enabled(True), self._context, saved_tensors_hooks(keep, lambda t: t):
                self._call()
        except _Stop:
            pass
        finally:
            set_rng_state(before)
        self._check(values)
        return dict(enumerate(values))

    def _check(self, values: Sequence[Tensor]) -> None:
        if self._options["determinism_check"] == "none":
            return
        if len(values) != len(self._likes):
            raise CheckpointError(
                "tapegrad.utils.checkpoint: A different number of tensors was saved during the original forward and recomputation.\n"
                f"Number of tensors saved during forward: {len(self._likes)}.\n"
                f"Number of tensors saved during recomputation: {len(values)}."
            )
        for number, (like, t) in enumerate(zip(self._likes, values, strict=True)):
            if like != (t.shape, t.dtype):
                raise CheckpointError(
                    "tapegrad.utils.checkpoint: Recomputed values for the following tensors have different metadata than during the "
                    f"forward pass.\ntensor at position {number}:\nsaved metadata: {{'shape': {like[0]}, 'dtype': {like[1]}}}\n"
                    f"recomputed metadata: {{'shape': {t.shape}, 'dtype': {t.dtype}}}"
                )


def checkpoint(
    function: Callable,
    *args: Any,
    use_reentrant: bool | None = None,
    context_fn: Callable[[], tuple[Any, Any]] = noop_context_fn,
    determinism_check: str = "default",
    early_stop: bool = True,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """Call a function without keeping what its operations save; backward calls it again to have that.

    Trades time for memory: of a chain of n functions in about sqrt(n) checkpoints, the values of about 2 sqrt(n) are alive at once
    (Griewank and Walther, "Revolve", 2000; Chen et al., arXiv:1604.06174).

    Args:
        function: called now with the arguments, and once more in each backward.
        args: its arguments.
        use_reentrant: whether backward starts a backward of its own, which works with `Tensor.backward` only; not by default.
        context_fn: gives two context managers, for the call now and for the one in backward.
        determinism_check: "default" compares shapes and dtypes of what both calls save, "none" nothing.
        early_stop: end the second call once everything needed is computed.
        preserve_rng_state: have both calls draw the same random numbers.
        kwargs: keyword arguments of the function.

    Returns:
        What the function returns.

    Raises:
        CheckpointError: in backward, if the second call saves other tensors than the first.
        RuntimeError: in backward, if an argument was written to in the meantime.
        ValueError: for an unknown check.

    >>> import tapegrad as tg
    >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
    >>> tg.utils.checkpoint.checkpoint(lambda t: (t * t).exp(), x).sum().backward()
    >>> x.grad
    tensor([  5.4366, 218.3926])
    """
    if determinism_check not in ("default", "none"):
        raise ValueError(f"determinism_check should be one of ['default', 'none'], but got {determinism_check}")
    if use_reentrant:
        if kwargs:
            raise ValueError("Unexpected keyword arguments: " + ",".join(kwargs))
        return _Reentrant.apply(function, preserve_rng_state, *args)
    contexts = context_fn()
    if not is_grad_enabled():
        with contexts[0]:
            return function(*args, **kwargs)
    region = _Region(
        function,
        args,
        kwargs,
        {
            "contexts": contexts,
            "determinism_check": determinism_check,
            "early_stop": early_stop,
            "preserve_rng_state": preserve_rng_state,
        },
    )
    with contexts[0], saved_tensors_hooks(region.pack, region.unpack):
        return function(*args, **kwargs)


class _Reentrant(Function):
    @staticmethod
    def forward(ctx: Any, function: Callable, preserve: bool, *args: Any) -> Any:
        ctx.function, ctx.state = function, get_rng_state() if preserve else None
        ctx.others = [None if isinstance(a, Tensor) else a for a in args]
        ctx.tensors = [k for k, a in enumerate(args) if isinstance(a, Tensor)]
        ctx.save_for_backward(*(args[k] for k in ctx.tensors))
        return function(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        args = list(ctx.others)
        for k, t in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            args[k] = t.detach().requires_grad_(t.requires_grad)
        before = get_rng_state()
        if ctx.state is not None:
            set_rng_state(ctx.state)
        try:
            with set_grad_enabled(True):
                result = ctx.function(*args)
        finally:
            set_rng_state(before)
        outputs = _tree.flatten(result)[0]
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if isinstance(o, Tensor) and o.requires_grad]
        if not pairs:
            raise RuntimeError("none of output has requires_grad=True, this checkpoint() is not necessary")
        backward([o for o, _ in pairs], [g for _, g in pairs])
        return (None, None, *(a.grad if isinstance(a, Tensor) else None for a in args))


def checkpoint_sequential(
    functions: Sequence[Callable], segments: int, input: Any, use_reentrant: bool | None = None, **kwargs: Any
) -> Any:
    """Call functions one after the other, in checkpointed segments but for the last.

    Args:
        functions: each takes what the one before returns.
        segments: how many to make.
        input: what the first takes.
        use_reentrant: see `checkpoint`.
        kwargs: options of `checkpoint`.

    Returns:
        What the last returns.

    >>> import tapegrad as tg
    >>> x = tg.tensor(1.0, requires_grad=True)
    >>> tg.utils.checkpoint.checkpoint_sequential([tg.sin, tg.exp, tg.sin], 2, x).backward()
    >>> x.grad
    tensor(-0.8534)
    """
    functions = list(functions)
    if not 1 <= segments <= max(len(functions), 1):
        raise ValueError(
            f"segments must be between 1 and the number of functions, {len(functions)}, but got {segments}"
        )

    def run(start: int, stop: int) -> Callable:
        def segment(value: Any) -> Any:
            for function in functions[start:stop]:
                value = function(value)
            return value

        return segment

    size = len(functions) // segments
    for number in range(segments - 1):
        input = checkpoint(run(number * size, (number + 1) * size), input, use_reentrant=use_reentrant, **kwargs)
    return run((segments - 1) * size, len(functions))(input)
