"""`vmap`: a function of one sample becomes one of a batch."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad import _tree, errors
from tapegrad.autograd.rows import handle
from tapegrad.autograd.sampling import lifetime, sampling
from tapegrad.autograd.tracing import bare, depth, mark, rows_between, transforming, unmark
from tapegrad.creation import as_tensor
from tapegrad.func._batching import Batch
from tapegrad.grad_mode import set_grad_enabled
from tapegrad.metadata import check_dim
from tapegrad.ops._reading import require
from tapegrad.ops._rule import PUBLIC
from tapegrad.tensor import Tensor

# set by tapegrad.program: a compiled function, or a transformation of one, as a function that runs recorded programs; else None
in_lanes: Callable[[Callable, Any, Any, str], Callable | None] | None = None


def vmap(
    func: Callable,
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable:
    """A function that maps `func` over a dimension of its arguments.

    `func` runs once, on the first sample; what it recorded then runs for all samples at once. So its control flow must not depend
    on values (a shape is fine), and it may be differentiated before or after, and mapped again. It may write in place to its arguments
    and to what it makes itself.

    A function made by `compile`, or a transformation of one, runs as a recorded program instead, over blocks of samples on all cores;
    there control flow may depend on values, and where all data are NumPy arrays, so are the results. Where gradients are wanted of
    the results, it is mapped like any other function, each group of samples that take one path by itself.

    Args:
        func: takes and returns trees of tensors (NumPy arrays count).
        in_dims: the dimension to map over, for all arguments, or a tree of ints and None (not mapped) that is a prefix of the arguments.
        out_dims: where the results get that dimension; None for results that are the same for all samples.
        randomness: whether random functions inside are an "error", give "same" numbers for each sample, or "different" ones.
        chunk_size: run at most so many samples at once.

    Returns:
        The mapped function.

    Raises:
        ValueError: for arguments that have no such dimension or differ in it, or results that are no tensors.
        RuntimeError: where one sample cannot stand for all: if `func` asks for values, writes what differs between samples to a tensor
            made outside of it, calls `backward()`, or registers a hook that gradients from outside would not call.

    >>> import tapegrad as tg
    >>> tg.vmap(tg.dot)(tg.tensor([[1.0, 2.0], [3.0, 4.0]]), tg.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([1., 4.])
    """
    if randomness not in ("error", "different", "same"):
        raise RuntimeError(f"Only allowed values for randomness are 'error', 'different', or 'same'. Got {randomness}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"vmap: chunk_size should be None or greater than 0. (got {chunk_size})")

    quick = None
    if in_lanes is not None and chunk_size is None:
        quick = in_lanes(func, in_dims, out_dims, randomness)

    @functools.wraps(func)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        if quick is not None:
            return quick(*args, **kwargs)
        return run_mapping(checked_call(func, args, kwargs, in_dims), out_dims, randomness, chunk_size)

    return mapped


def _name(func: Callable) -> str:
    return getattr(func, "__name__", repr(func))


class Mapping(NamedTuple):
    """A call of a mapped function, its arguments checked.

    Attributes:
        func: of one sample.
        values: the leaves of the arguments, arrays as tensors.
        dims: of each, the dimension of its samples, None if it is the same for all.
        size: number of samples.
        positional: how many of the leaves are in positional arguments.
        structures: of the positional arguments, and of those by name.
        as_arrays: whether all data are NumPy arrays.
    """

    func: Callable
    values: list[Any]
    dims: list[int | None]
    size: int
    positional: int
    structures: tuple[_tree.Structure, _tree.Structure]
    as_arrays: bool

    def on_leaves(self, *flat: Any) -> Any:
        """The function, of the leaves of its arguments."""
        args, kwargs = self.structures
        return self.func(
            *_tree.unflatten(flat[: self.positional], args), **_tree.unflatten(flat[self.positional :], kwargs)
        )


def checked_call(func: Callable, args: tuple, kwargs: dict, in_dims: Any) -> Mapping:
    """The call that `vmap` of a function makes of some arguments.

    Raises:
        ValueError: see `vmap`.
    """
    name = _name(func)
    head = f"vmap({name}, in_dims={in_dims}, ...)(<inputs>)"
    if not isinstance(in_dims, int | tuple | list) or isinstance(in_dims, bool):
        raise ValueError(
            f"{head}: expected `in_dims` to be int or a (potentially nested) tuple matching the structure of inputs, got: {type(in_dims)}."
        )
    if not args:
        raise ValueError(
            f"vmap({name})(<inputs>): got no inputs. Maybe you forgot to add inputs, or you are trying to vmap over a function with no "
            "inputs. The latter is unsupported."
        )
    leaves, structure = _tree.flatten(tuple(args))
    dims = _tree.spread(tuple(in_dims) if isinstance(in_dims, list) else in_dims, structure)
    if dims is None:
        raise ValueError(
            f"{head}: in_dims is not compatible with the structure of inputs. in_dims has structure {in_dims!r} but inputs has "
            f"structure {_shapes(args)}."
        )
    more, more_structure = _tree.flatten(kwargs)
    dims = [*dims, *(0 if isinstance(v, Tensor | np.ndarray) else None for v in more)]
    values = [as_tensor(v) if isinstance(v, np.ndarray) and v.dtype != object else v for v in (*leaves, *more)]
    count = len(leaves)
    dims = [_checked_dim(head, v, d) for v, d in zip(values, dims, strict=True)]
    sizes = [v.shape[d] for v, d in zip(values, dims, strict=True) if d is not None]
    if not sizes:
        raise ValueError(
            f"{head}: at least one of the inputs must be mapped over, but all in_dims are None; give an int for one of them."
        )
    if any(s != sizes[0] for s in sizes):
        raise ValueError(
            f"vmap: Expected all tensors to have the same size in the mapped dimension, got sizes {sizes} for the mapped dimension"
        )

    given = [v for v in (*leaves, *more) if isinstance(v, Tensor | np.ndarray)]
    as_arrays = all(isinstance(v, np.ndarray) for v in given)
    return Mapping(func, values, dims, sizes[0], count, (structure, more_structure), as_arrays)


def run_mapping(mapping: Mapping, out_dims: Any, randomness: str = "error", chunk_size: int | None = None) -> Any:
    """Run a mapped function.

    Args:
        mapping: the function and its arguments.
        out_dims: see `vmap`, as the rest.
        randomness: as there.
        chunk_size: as there.
    """
    on_leaves, name = mapping.on_leaves, _name(mapping.func)
    values, dims, size = mapping.values, mapping.dims, mapping.size
    if chunk_size is None or chunk_size >= size:
        return _run(on_leaves, name, values, dims, size, out_dims, randomness)
    parts = []
    for start in range(0, size, chunk_size):
        stop = min(start + chunk_size, size)
        part = [v if d is None else v.narrow(d, start, stop - start) for v, d in zip(values, dims, strict=True)]
        parts.append(_run(on_leaves, name, part, dims, stop - start, out_dims, randomness))
    return _joined(parts, out_dims)


def _joined(parts: list[Any], out_dims: Any) -> Any:
    columns = [_tree.flatten(p)[0] for p in parts]
    structure = _tree.flatten(parts[0])[1]
    places = _tree.spread(out_dims, structure)
    assert places is not None
    made = [
        column[0] if place is None else PUBLIC["cat"](list(column), place)
        for column, place in zip(zip(*columns, strict=True), places, strict=True)
    ]
    return _tree.unflatten(made, structure)


def _shapes(args: Any) -> str:
    return str(_tree.map_leaves(lambda v: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__, args))


def _checked_dim(head: str, value: Any, dim: Any) -> int | None:
    if dim is None:
        return None
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise ValueError(
            f"{head}: Got in_dim={dim} for an input but in_dim must be either an integer dimension or None."
        )
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{head}: Got in_dim={dim} for an input but the input is of type {type(value)}. We cannot vmap over non-Tensor arguments, "
            "please use None as the respective in_dim"
        )
    if not -value.ndim <= dim < value.ndim:
        raise ValueError(
            f"{head}: Got in_dim={dim} for some input, but that input is a Tensor of dimensionality {value.ndim} so expected in_dim to "
            f"satisfy -{value.ndim} <= in_dim < {value.ndim}."
        )
    return dim % value.ndim


def _run(on_leaves: Callable, name: str, *how: Any) -> Any:
    made, lifetimes = _mapped(on_leaves, name, *how)
    # within another transformation its trace may still hold some
    if not depth() and any(one() is not None for one in lifetimes):
        gc.collect()  # what only keeps itself alive is nobody's
        if any(one() is not None for one in lifetimes):
            warnings.warn(errors.OUTLIVES_VMAP.format(name=name), UserWarning, stacklevel=4)
    return made


def _mapped(
    on_leaves: Callable,
    name: str,
    values: Sequence[Any],
    dims: Sequence[int | None],
    size: int,
    out_dims: Any,
    randomness: str,
) -> tuple[Any, list[weakref.ref]]:
    # the results for all samples, and what lives as long as those of the first one
    result: list[Any] = []

    def flat(*samples: Any) -> list[Any]:
        leaves, structure = _tree.flatten(on_leaves(*samples))
        result.append(structure)
        return leaves

    batch, outputs = trace_sample(flat, values, dims, size, randomness)
    structure = result[0]
    places = _tree.spread(out_dims, structure)
    if places is None:
        raise ValueError(
            f"vmap({name}, ..., out_dims={out_dims})(<inputs>): out_dims is not compatible with the structure of `outputs`."
        )
    check_results(name, outputs)
    made = []
    for out, place in zip(outputs, places, strict=True):
        if place is None:
            if out._id in batch.values:
                raise ValueError(f"vmap({name}, ...): `{name}` can not return a BatchedTensor when out_dim is None")
            made.append(out)
            continue
        whole = batch.whole(out)
        made.append(whole.movedim(0, check_dim(place, whole.ndim)) if place else whole)  # type: ignore[attr-defined]
    return _tree.unflatten(made, structure), batch.lifetimes


def check_results(function: Any, results: Sequence[Any]) -> None:
    """Refuse the results of a mapped function that are no tensors.

    Args:
        function: the function, or its name.
        results: the leaves of its result.

    Raises:
        ValueError: for the first that is none.
    """
    name = function if isinstance(function, str) else _name(function)
    for out in results:
        if not isinstance(out, Tensor):
            raise ValueError(
                f"vmap({name}, ...): `{name}` must only return Tensors, got type {type(out)}. Did you mean to set out_dims= to None for "
                "output?"
            )


def trace_sample(
    function: Callable,
    values: Sequence[Any],
    dims: Sequence[int | None],
    size: int,
    randomness: str = "error",
    guards: list[tuple[Tensor, bytes]] | None = None,
) -> tuple[Batch, list[Any]]:
    """Run a function on the first sample of some arguments, and its trace on all of them.

    Args:
        function: returns a sequence of tensors and anything else.
        values: the arguments.
        dims: of each argument the dimension of its samples, None if it is the same for all.
        size: number of samples.
        randomness: see `vmap`.
        guards: if given, the function may look at values; it gets the tensors it looked at, and their bytes.

    Returns:
        The batch, and what the function returned for the first sample.
    """
    if size == 0:
        raise ValueError("vmap: got a mapped dimension of size 0; there is no sample to run the function on")
    batch = Batch(size, randomness)
    batch.guards = guards
    arguments: list[Any] = []
    samples = []
    with transforming():
        with sampling(batch):
            for value, dim in zip(values, dims, strict=True):
                if dim is None or value is None:
                    arguments.append(value)
                    continue
                moved = value.movedim(dim, 0) if dim else value
                with set_grad_enabled(False):
                    sample = mark(bare(bare(moved)[0].clone()))
                batch.values[sample._id] = moved
                batch.lifetimes.append(lifetime(sample))
                arguments.append(sample)
                samples.append((sample, handle(sample._id), moved))
            outputs = list(function(*arguments))
        for out in outputs:
            if isinstance(out, Tensor):
                out._refresh()
        ends = [t._id for t in (*outputs, *(condition for condition, _ in batch.required)) if isinstance(t, Tensor)]
        if any(sample._id != given._id for sample, given, _ in samples):  # the function wrote to its argument
            batch.run(rows_between([*ends, *(t._id for t, _, _ in samples)], set(batch.values)))
        else:
            batch.reach(ends)
        for sample, given, moved in samples:
            if sample._id != given._id:  # the function wrote to its argument
                moved.copy_(batch.whole(sample))
            unmark(given)
        for condition, error in batch.required:
            require(batch.whole(condition).all(), error)  # type: ignore[attr-defined]
    return batch, outputs
