"""User-written functions over batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tapegrad import _tree, errors
from tapegrad.autograd.function import Function, FunctionCtx
from tapegrad.autograd.rows import Row, handle
from tapegrad.tensor import Tensor


class VmapInfo(NamedTuple):
    """What a `Function.vmap` is told.

    Attributes:
        batch_size: number of samples.
        randomness: as `vmap` was given it.
    """

    batch_size: int
    randomness: str


def batched_call(context: FunctionCtx, row: Row, batch: Any) -> list[Tensor]:
    """The results of a user's function for all samples, by its `vmap` or by mapping its forward and backward.

    Raises:
        RuntimeError: for a `vmap` that returns no pair.
    """
    function = context._function
    places = iter(row.extra)
    args, dims = [], []
    for tensor, value in zip(context._tensors, context._arguments, strict=True):
        k = next(places) if tensor else 0
        batched = batch.values.get(k)
        args.append(value if not tensor else handle(k) if batched is None else batched)
        dims.append(None if batched is None else 0)
    if function.vmap is not Function.vmap:
        returned = function.vmap(VmapInfo(batch.size, batch.randomness), tuple(dims), *args)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise RuntimeError(errors.VMAP_RETURNS.format(given=type(returned)))
        return _in_front(*returned, batch.size)
    result = _mapped(function, tuple(dims), batch.size).apply(*args)
    return list(result) if isinstance(result, tuple) else [result]


def _in_front(result: Any, dims: Any, size: int) -> list[Tensor]:
    results = list(result) if isinstance(result, tuple) else [result]
    places = list(dims) if isinstance(dims, tuple) else [dims] * len(results)
    return [r.expand((size, *r.shape)) if d is None else r.movedim(d, 0) for r, d in zip(results, places, strict=True)]


def _mapped(function: type[Function], dims: tuple, size: int) -> type[Function]:
    """The function over batches as a function itself: its forward and its backward each traced on one sample."""
    from tapegrad.func._vmap import trace_sample

    backward = function.backward if function.vjp is Function.vjp else function.vjp

    class Mapped(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            inner: list[FunctionCtx] = []

            def one(*sample: Any) -> list[Any]:
                own = FunctionCtx(function, sample)
                own.needs_input_grad = ctx.needs_input_grad
                inner.append(own)
                if function.setup_context is not Function.setup_context:
                    result = function.forward(*sample)
                    function.setup_context(own, sample, result)
                else:
                    result = function.forward(own, *sample)
                results = list(result) if isinstance(result, tuple) else [result]
                ctx.count = len(results)
                attributes, ctx.structure = _tree.flatten(_attributes(own))
                ctx.places = [k for k, a in enumerate(attributes) if isinstance(a, Tensor)]
                ctx.attributes = [None if isinstance(a, Tensor) else a for a in attributes]
                kept = [*(own._to_save or own._to_save_forward), *(attributes[k] for k in ctx.places)]
                ctx.constant = [any(r is c for c in own._constant) for r in results]
                return [*results, *kept]

            batch, outputs = trace_sample(one, args, dims, size)
            whole = [
                (
                    t if t is None or t._id not in batch.values else batch.values[t._id],
                    t is not None and t._id in batch.values,
                )
                for t in outputs
            ]
            results = [t if b else t.expand((size, *t.shape)) for t, b in whole[: ctx.count]]
            ctx.inner, ctx.batched = inner[0], [b for _, b in whole[ctx.count :]]
            # what was saved is an argument, a result, or something in between
            ctx.save_for_backward(*(_same(t, args, results, batch) for t, _ in whole[ctx.count :]))
            ctx.mark_non_differentiable(*(r for r, c in zip(results, ctx.constant, strict=True) if c))
            inner[0]._to_save = inner[0]._to_save_forward = ()
            _set_attributes(inner[0], ctx.structure, ctx.attributes)
            return tuple(results) if ctx.count > 1 else results[0]

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            batch, parts = _again(ctx, backward, grads, [0] * len(grads), size)
            return tuple(
                None if p is None else batch.whole(p) if d is not None else batch.whole(p).sum(0)
                for p, d in zip(parts, dims, strict=True)
            )

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            batch, parts = _again(ctx, function.jvp, tangents, dims, size)
            found = [None if p is None else batch.whole(p) for p in parts]
            return tuple(found) if ctx.count > 1 else found[0]

    Mapped.__name__ = Mapped.__qualname__ = function.__name__
    return Mapped


def _again(
    ctx: Any, method: Callable, given: Sequence[Any], dims: Sequence[int | None], size: int
) -> tuple[Any, list[Any]]:
    """A method of the function, traced on one sample of what is given and of what the context keeps, run on all."""
    from tapegrad.func._vmap import trace_sample

    saved, own = ctx.saved_tensors, ctx.inner
    count = len(saved) - len(ctx.places)

    def one(*values: Any) -> list[Any]:
        kept, attributes = values[len(given) :], list(ctx.attributes)
        for place, value in zip(ctx.places, kept[count:], strict=True):
            attributes[place] = value
        own._saved = [lambda v=v: v for v in kept[:count]]
        _set_attributes(own, ctx.structure, attributes)
        try:
            result = method(own, *values[: len(given)])
        finally:
            own._saved = []
            _set_attributes(own, ctx.structure, ctx.attributes)
        return list(result) if isinstance(result, tuple | list) else [result]

    values = [*given, *saved]
    places = [*dims, *(0 if b else None for b in ctx.batched)]
    return trace_sample(one, values, [None if v is None else d for d, v in zip(places, values, strict=True)], size)


def _attributes(context: FunctionCtx) -> dict[str, Any]:
    # what the user has put into a context beside what it has itself
    own = vars(FunctionCtx(context._function, ()))
    return {name: value for name, value in vars(context).items() if name not in own}


def _set_attributes(context: FunctionCtx, structure: _tree.Structure, leaves: list[Any]) -> None:
    vars(context).update(_tree.unflatten(leaves, structure))


def _same(t: Any, args: Any, results: Any, batch: Any) -> Any:
    for known in (*args, *results):
        if isinstance(known, Tensor) and isinstance(t, Tensor) and known._id == t._id:
            return known
    return t
