"""Derivatives as functions of functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapegrad import _tree
from tapegrad.autograd.backward import grad as gradients
from tapegrad.autograd.remembered import Graph, transformed
from tapegrad.autograd.rows import Row, handle
from tapegrad.autograd.sampling import samples_carry_gradients
from tapegrad.autograd.tangents import push_forward
from tapegrad.autograd.tracing import (
    alias,
    bare,
    depth,
    is_traced,
    mark,
    recording,
    rows_between,
    transforming,
    unmark,
)
from tapegrad.creation import as_tensor, ones_like, zeros_like
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.grad_mode import is_grad_enabled, set_grad_enabled
from tapegrad.tensor import Tensor

_S = rt.S


# arguments and results


def _tensors(name: str, tree: Any) -> tuple[list[Tensor], _tree.Structure]:
    leaves, structure = _tree.flatten(tree)
    found = []
    for leaf in leaves:
        t = as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf
        if not isinstance(t, Tensor):
            raise RuntimeError(
                f"{name}: expected Tensors (or NumPy arrays) to differentiate, got {type(leaf).__name__}"
            )
        if not t.dtype.is_floating_point:
            raise RuntimeError(
                f"{name}: cannot differentiate a tensor of dtype {t.dtype}; convert it, for example with .double()"
            )
        found.append(t)
    return found, structure


def chosen_arguments(name: str, argnums: Any, args: tuple) -> tuple[int, ...]:
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    if not isinstance(numbers, tuple | list) or not all(isinstance(n, int) for n in numbers):
        raise RuntimeError(f"{name}: argnums must be int or Tuple[int, ...], got: {type(argnums)}")
    if not numbers:
        raise RuntimeError(f"{name}: argnums must be non-empty")
    for n in numbers:
        if not -len(args) <= n < len(args):
            raise RuntimeError(f"{name}: got argnum={n}, but only {len(args)} positional inputs")
    wrapped = tuple(n % len(args) for n in numbers)
    if len(set(wrapped)) != len(wrapped):
        raise RuntimeError(f"{name}: argnums elements must be unique, got {argnums}")
    return wrapped


def _with_aux(name: str, result: Any, has_aux: bool) -> tuple[Any, Any]:
    if not has_aux:
        return result, None
    if not (isinstance(result, tuple) and len(result) == 2):
        raise RuntimeError(f"{name}: output of function f should be a tuple: (output, aux) if has_aux is True")
    return result


def tensors_of(name: str, tree: Any) -> tuple[list[Tensor], _tree.Structure]:
    leaves, structure = _tree.flatten(tree)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise RuntimeError(
                f"{name}: Expected f to be a function that has non-empty output (i.e. output of only Tensors), got {type(leaf).__name__}"
            )
    return leaves, structure


def _released(tree: Any) -> Any:
    # results without the graph that only served a transformation
    with set_grad_enabled(False):
        return _tree.map_leaves(lambda v: alias(v) if isinstance(v, Tensor) and v.requires_grad else v, tree)


def _twin(t: Tensor, grads: bool) -> Tensor:
    # a tensor to differentiate with respect to, at the place of `t` in outer graphs and traces
    if (t.requires_grad and grads) or is_traced(t):
        with set_grad_enabled(grads):
            made = alias(t)
    else:
        made = bare(t)
    rt.set_flag(_S, made._id, structs.INFERENCE, 0)
    rt.set_flag(_S, made._id, structs.REQUIRES_GRAD, 1)
    return made


class Recorded:
    """A function run on twins of its arguments that gradients stop at."""

    def __init__(
        self, name: str, func: Callable, args: Sequence[Any], kwargs: dict, argnums: Sequence[int], aux: bool
    ) -> None:
        self.name = name
        grads = is_grad_enabled()
        given = list(args)
        self.structures, self.leaves, originals = [], [], []
        with transforming():
            for n in argnums:
                leaves, structure = _tensors(name, args[n])
                twins = [_twin(t, grads) for t in leaves]
                originals += leaves
                self.leaves += twins
                self.structures.append(structure)
                given[n] = _tree.unflatten(twins, structure)
            with recording():
                result = func(*given, **kwargs)
        self.output, self.aux = _with_aux(name, result, aux)
        # whether others may differentiate what comes of this: then derivatives are recorded too
        self.outer = grads and (
            any(t.requires_grad for t in originals) or samples_carry_gradients() or self._captures()
        )

    def _captures(self) -> bool:
        roots = [t for t in _tree.flatten(self.output)[0] if isinstance(t, Tensor) and t.requires_grad]
        for t in self.leaves:
            rt.set_flag(_S, t._id, structs.CAPTURE, 1)
        try:
            return any(rt.reaches_other_leaf(_S, t._id) for t in roots)
        finally:
            for t in self.leaves:
                rt.set_flag(_S, t._id, structs.CAPTURE, 0)

    def pull_back(self, roots: Sequence[Tensor], starts: Sequence[Tensor], retain: bool) -> list[Tensor]:
        """The gradients of all leaves, zeros where there are none."""
        pairs = [(r, s) for r, s in zip(roots, starts, strict=True) if r.requires_grad]
        if not pairs:
            return [zeros_like(t) for t in self.leaves]
        with transforming():
            found = gradients(
                [r for r, _ in pairs],
                self.leaves,
                [s for _, s in pairs],
                retain_graph=retain or self.outer,
                create_graph=(self.outer and is_grad_enabled()) or any(s.requires_grad for _, s in pairs),
                allow_unused=True,
            )
        return [zeros_like(t) if g is None else g for g, t in zip(found, self.leaves, strict=True)]

    def in_trees(self, flat: Sequence[Any]) -> list[Any]:
        """Values of the leaves as the arguments hold them."""
        made, start = [], 0
        for structure in self.structures:
            made.append(_tree.unflatten(flat[start : start + structure.leaves], structure))
            start += structure.leaves
        return made

    def finished(self, tree: Any) -> Any:
        """Results as they leave the transformation."""
        return tree if self.outer else _released(tree)


def _grad_and_value(
    name: str, func: Callable, argnums: Any, has_aux: bool, args: tuple, kwargs: dict
) -> tuple[Any, Any, Any]:
    run = Recorded(name, func, args, kwargs, chosen_arguments(name, argnums, args), has_aux)
    y = run.output
    if not isinstance(y, Tensor):
        raise RuntimeError(f"Expected f(*args) to return a Tensor, got type {type(y).__name__}")
    if y.ndim != 0:
        raise RuntimeError(
            f"Expected f(*args) to return a scalar tensor, got tensor with {y.ndim} dims. Maybe you wanted to use the vjp or jacrev APIs "
            "instead?"
        )
    grads = run.in_trees(run.pull_back([y], [ones_like(y).detach()], False))
    return grads[0] if isinstance(argnums, int) else tuple(grads), run.finished(y), run.finished(run.aux)


# set by tapegrad.program: a transformation of a compiled function as what runs it in one recorded program; else None
in_program: Callable[[Callable], Callable | None] = lambda transformation: None


def as_program(transformation: Callable) -> Callable:
    """A transformation that runs in one recorded program, if it is one of a compiled function and no other is under way."""
    program = in_program(transformation)
    if program is None:
        return transformation

    @functools.wraps(transformation)
    def run(*args: Any, **kwargs: Any) -> Any:
        return transformation(*args, **kwargs) if depth() else program(*args, **kwargs)

    return run


def grad(func: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable:
    """A function that computes the gradient of `func`.

    Args:
        func: returns a tensor of one element without dimensions; with `has_aux`, a pair of that and anything.
        argnums: which positional arguments to differentiate with respect to: trees of floating tensors or NumPy arrays.
        has_aux: whether `func` returns a pair.

    Returns:
        A function of the same arguments; it returns a gradient in the structure of the argument (a tuple of them for a tuple
        `argnums`), and with `has_aux` a pair of that and what came with the value.

    Raises:
        RuntimeError: if `func` returns anything else.

    >>> import tapegrad as tg
    >>> tg.func.grad(tg.sin)(tg.tensor(0.0))
    tensor(1.)
    """

    @functools.wraps(func)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        grads, _, aux = _grad_and_value("grad", func, argnums, has_aux, args, kwargs)
        return (grads, aux) if has_aux else grads

    return as_program(gradient)


def grad_and_value(func: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable:
    """As `grad`, but the function returns ``(gradient, value)``, with `has_aux` ``(gradient, (value, aux))``.

    >>> import tapegrad as tg
    >>> tg.func.grad_and_value(tg.exp)(tg.tensor(0.0))
    (tensor(1.), tensor(1.))
    """

    @functools.wraps(func)
    def both(*args: Any, **kwargs: Any) -> Any:
        grads, value, aux = _grad_and_value("grad_and_value", func, argnums, has_aux, args, kwargs)
        return (grads, (value, aux)) if has_aux else (grads, value)

    return as_program(both)


def value_and_grad(func: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable:
    """As `grad`, but the function returns ``(value, gradient)``, with `has_aux` ``((value, aux), gradient)``.

    >>> import tapegrad as tg
    >>> tg.func.value_and_grad(lambda x: x * x)(tg.tensor(3.0))
    (tensor(9.), tensor(6.))
    """

    @functools.wraps(func)
    def both(*args: Any, **kwargs: Any) -> Any:
        grads, value, aux = _grad_and_value("value_and_grad", func, argnums, has_aux, args, kwargs)
        return ((value, aux), grads) if has_aux else (value, grads)

    return as_program(both)


def vjp(func: Callable, *primals: Any, has_aux: bool = False) -> tuple:
    r"""The value of `func` and a function that multiplies cotangents by its Jacobian, :math:`v \mapsto v^T J`.

    Args:
        func: of trees of floating tensors, returning a tree of tensors.
        primals: its arguments.
        has_aux: whether `func` returns a pair of its result and anything else.

    Returns:
        ``(output, vjp_fn)`` or ``(output, vjp_fn, aux)``. `vjp_fn` takes a cotangent in the structure of the output (its leaves as
        arguments, if it is a tuple) and returns a tuple with a tree for each argument; it may be called again.

    >>> import tapegrad as tg
    >>> value, pull_back = tg.func.vjp(tg.sin, tg.tensor([0.0]))
    >>> pull_back(tg.tensor([2.0]))
    (tensor([2.]),)
    """
    run = Recorded("vjp", func, primals, {}, range(len(primals)), has_aux)
    roots, structure = tensors_of("vjp", run.output)

    def vjp_fn(*cotangents: Any) -> Any:
        tree = cotangents[0] if len(cotangents) == 1 and not _takes_several(structure, cotangents) else cotangents
        starts, given = _tree.flatten(tree)
        if given != structure:
            raise RuntimeError(
                f"Expected pytree structure of cotangents to be the same as pytree structure of outputs to the function. cotangents: "
                f"{given}, primal output: {structure}"
            )
        for root, start in zip(roots, starts, strict=True):
            if not isinstance(start, Tensor) or start.shape != root.shape:
                shown = list(start.shape) if isinstance(start, Tensor) else type(start).__name__
                raise RuntimeError(f"vjp: a cotangent for an output of shape {list(root.shape)} has shape {shown}")
        return tuple(run.in_trees(run.pull_back(roots, starts, True)))

    output = run.finished(run.output)
    return (output, vjp_fn, run.finished(run.aux)) if has_aux else (output, vjp_fn)


def _takes_several(structure: _tree.Structure, cotangents: Sequence[Any]) -> bool:
    # a function with a tuple of one result may be given that result's cotangent itself
    return structure.kind is tuple and len(structure.parts) == 1 and not isinstance(cotangents[0], tuple)


class Linear:
    """A function run on traced twins of its arguments, to push tangents through."""

    def __init__(
        self, name: str, func: Callable, args: Sequence[Any], kwargs: dict, argnums: Sequence[int], aux: bool
    ) -> None:
        given = list(args)
        grads = is_grad_enabled()
        self.seeds: list[Tensor] = []
        own: list[Tensor] = []  # seeds that no outer transformation traces
        self.structures = []
        with transforming():
            for n in argnums:
                leaves, structure = _tensors(name, args[n])
                plain = [not is_traced(t) for t in leaves]
                twins = [mark(alias(t)) for t in leaves]
                # a function may write to its arguments: the seeds are what they were given as
                self.seeds += [handle(t._id) for t in twins]
                own += [handle(t._id) for t, p in zip(twins, plain, strict=True) if p]
                self.structures.append(structure)
                given[n] = _tree.unflatten(twins, structure)
            output, self.aux = _with_aux(name, func(*given, **kwargs), aux)
            self.ends, self.structure = tensors_of(name, output)
            for t in self.ends:
                t._refresh()
        for t in own:
            unmark(t)
        # whether others may differentiate what comes of this
        self.outer = grads and (
            any(t.requires_grad for t in self.seeds)
            or samples_carry_gradients()
            or any(t.requires_grad and rt.reaches_other_leaf(_S, t._id) for t in self.ends)
        )
        self.output = self.finished(output)
        self.aux = self.finished(self.aux)

    def finished(self, tree: Any) -> Any:
        """Results as they leave the transformation."""
        return tree if self.outer else _released(tree)

    @property
    def rows(self) -> list[Row]:
        """What the results were computed by."""
        return rows_between([t._id for t in self.ends], {t._id for t in self.seeds})

    def push(self, tangents: dict[int, Tensor]) -> list[Tensor]:
        """The tangents of all results, from those of seeds by number."""
        known = {self.seeds[k]._id: t for k, t in tangents.items()}
        ends = [t._id for t in self.ends]
        outer = is_grad_enabled() and (self.outer or any(t.requires_grad for t in tangents.values()))

        def compute() -> dict[int, Tensor]:
            found = dict(known)
            push_forward(self.rows, found)
            return {k: found[k] for k in ends if k in found}

        with transforming(), set_grad_enabled(outer):
            graph = Graph([t._id for t in self.seeds], ends, list(tangents.values()), True)
            found = transformed(("push", *tangents), graph, compute)
            return [found[t._id] if t._id in found else zeros_like(t) for t in self.ends]

    def checked(self, tangents: Sequence[Any]) -> dict[int, Tensor]:
        """Tangents given as trees, by number of their seed."""
        flat: list[Any] = []
        for tangent, structure in zip(tangents, self.structures, strict=True):
            leaves, found = _tree.flatten(tangent)
            if found != structure:
                raise RuntimeError("jvp: Expected primals and tangents to have the same python structure")
            flat += [as_tensor(v) if isinstance(v, np.ndarray) else v for v in leaves]
        for seed, t in zip(self.seeds, flat, strict=True):
            if not isinstance(t, Tensor) or t.shape != seed.shape or t.dtype is not seed.dtype:
                shown = f"{list(t.shape)} {t.dtype}" if isinstance(t, Tensor) else type(t).__name__
                raise RuntimeError(
                    f"jvp: a tangent must have the shape and dtype of its primal, {list(seed.shape)} {seed.dtype}, but got {shown}"
                )
        return dict(enumerate(flat))


def jvp(func: Callable, primals: tuple, tangents: tuple, *, strict: bool = False, has_aux: bool = False) -> tuple:
    r"""The value of `func` and the product of its Jacobian with tangents, :math:`J t`, by forward mode.

    Args:
        func: of trees of floating tensors, returning a tree of tensors.
        primals: a tuple of its arguments.
        tangents: a tuple of the same structure, shapes and dtypes.
        strict: raise if a result does not depend on the arguments, where zeros would be returned.
        has_aux: whether `func` returns a pair of its result and anything else.

    Returns:
        ``(output, tangent)`` or ``(output, tangent, aux)``.

    >>> import tapegrad as tg
    >>> tg.func.jvp(lambda x: x**3, (tg.tensor(2.0),), (tg.tensor(1.0),))
    (tensor(8.), tensor(12.))
    """
    for what, value in (("primals", primals), ("tangents", tangents)):
        if not isinstance(value, tuple | list):
            raise RuntimeError(f"jvp: Expected {what} to be a tuple. E.g. it should be valid to call f(*primals).")
    if len(primals) != len(tangents):
        raise RuntimeError("jvp: Expected primals and tangents to have the same python structure")
    run = Linear("jvp", func, primals, {}, range(len(primals)), has_aux)
    found = run.push(run.checked(tangents))
    if strict:
        reached = {row.out for row in run.rows} | {t._id for t in run.seeds}
        if any(t._id not in reached for t in run.ends):
            raise RuntimeError("jvp(f, primals, tangents, strict=True): The output of f is independent of the inputs.")
    result = (run.output, _tree.unflatten(found, run.structure))
    return (*result, run.aux) if has_aux else result


def linearize(func: Callable, *primals: Any) -> tuple[Any, Callable]:
    """The value of `func` and its derivative there as a function of tangents, which runs `func` no more.

    >>> import tapegrad as tg
    >>> value, derivative = tg.func.linearize(tg.sin, tg.tensor(0.0))
    >>> derivative(tg.tensor(3.0))
    tensor(3.)
    """
    run = Linear("linearize", func, primals, {}, range(len(primals)), False)

    def derivative(*tangents: Any) -> Any:
        return _tree.unflatten(run.push(run.checked(tangents)), run.structure)

    return run.output, derivative
