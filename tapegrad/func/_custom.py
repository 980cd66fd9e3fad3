"""User-written functions over batches."""

from __future__ import annotations

from typing import Any, NamedTuple

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
        RuntimeError: if it has neither a `vmap` nor `generate_vmap_rule`.
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
        result, out_dims = function.vmap(VmapInfo(batch.size, "error"), tuple(dims), *args)
        return _in_front(result, out_dims, batch.size)
    if not function.generate_vmap_rule:
        raise RuntimeError(
            f"You tried to vmap over {function.__name__}, but it does not have vmap support. Please override and implement the vmap "
            "staticmethod or set generate_vmap_rule=True."
        )
    result = _mapped(function, tuple(dims), batch.size).apply(*args)
    return list(result) if isinstance(result, tuple) else [result]


def _in_front(result: Any, dims: Any, size: int) -> list[Tensor]:
    results = list(result) if isinstance(result, tuple) else [result]
    places = list(dims) if isinstance(dims, tuple) else [dims] * len(results)
    return [r.expand((size, *r.shape)) if d is None else r.movedim(d, 0) for r, d in zip(results, places, strict=True)]


def _mapped(function: type[Function], dims: tuple, size: int) -> type[Function]:
    """The function over batches as a function itself: its forward and its backward each traced on one sample."""
    from tapegrad.func._vmap import trace_sample

    class Mapped(Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            inner: list[FunctionCtx] = []

            def one(*sample: Any) -> list[Any]:
                own = FunctionCtx(function, sample)
                inner.append(own)
                if function.setup_context is not Function.setup_context:
                    result = function.forward(*sample)
                    function.setup_context(own, sample, result)
                else:
                    result = function.forward(own, *sample)
                results = list(result) if isinstance(result, tuple) else [result]
                ctx.count = len(results)
                return [*results, *(own._to_save or own._to_save_forward)]

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
            inner[0]._to_save = inner[0]._to_save_forward = ()
            return tuple(results) if ctx.count > 1 else results[0]

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            saved = ctx.saved_tensors

            def one(*values: Any) -> list[Any]:
                own = ctx.inner
                own._saved = [lambda v=v: v for v in values[len(grads) :]]
                result = function.backward(own, *values[: len(grads)])
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


def _same(t: Any, args: Any, results: Any, batch: Any) -> Any:
    for known in (*args, *results):
        if isinstance(known, Tensor) and isinstance(t, Tensor) and known._id == t._id:
            return known
    return t
