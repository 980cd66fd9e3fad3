"""User-written functions over batches."""

from __future__ import annotations

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
        RuntimeError: if it has neither a `vmap` nor `generate_vmap_rule`, or both; and for a `vmap` that returns no pair.
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
        if function.generate_vmap_rule:
            raise RuntimeError(errors.TWO_VMAPS.format(name=function.__name__))
        returned = function.vmap(VmapInfo(batch.size, batch.randomness), tuple(dims), *args)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise RuntimeError(errors.VMAP_RETURNS.format(given=type(returned)))
        return _in_front(*returned, batch.size)
    if not function.generate_vmap_rule:
        raise RuntimeError(errors.NO_VMAP.format(name=function.__name__))
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
            saved = ctx.saved_tensors

            def one(*values: Any) -> list[Any]:
                own, kept = ctx.inner, values[len(grads) :]
                count = len(kept) - len(ctx.places)
                own._saved = [lambda v=v: v for v in kept[:count]]
                attributes = list(ctx.attributes)
                for place, value in zip(ctx.places, kept[count:], strict=True):
                    attributes[place] = value
                _set_attributes(own, ctx.structure, attributes)
                try:
                    result = backward(own, *values[: len(grads)])
                finally:
                    own._saved = []
                    _set_attributes(own, ctx.structure, ctx.attributes)
                return list(result) if isinstance(result, tuple | list) else [result]

            flags = [*([0] * len(grads)), *(0 if b else None for b in ctx.batched)]
            batch, parts = trace_sample(
                one,
                [*grads, *saved],
                [f if v is not None else None for f, v in zip(flags, [*grads, *saved], strict=True)],
                size,
            )
            return tuple(
                None if p is None else batch.whole(p) if d is not None else batch.whole(p).sum(0)
                for p, d in zip(parts, dims, strict=True)
            )

    Mapped.__name__ = Mapped.__qualname__ = function.__name__
    return Mapped


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
