"""Whole Jacobians and Hessians: one sweep, or one push of tangents, for a batch of unit vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tapegrad import _tree
from tapegrad.creation import eye, ones_like, zeros_like
from tapegrad.func._derivatives import Linear, Recorded, as_program, chosen_arguments, tensors_of
from tapegrad.func._vmap import trace_sample, vmap
from tapegrad.tensor import Tensor


def _basis(t: Tensor) -> Tensor:
    n = t.numel()
    return eye(n, dtype=t.dtype).reshape((n, *t.shape))


def _mapped(function: Callable, vectors: Tensor, randomness: str, chunk_size: int | None) -> list[Tensor]:
    if chunk_size is not None:
        return vmap(function, randomness=randomness, chunk_size=chunk_size)(vectors)
    batch, results = trace_sample(function, [vectors], [0], vectors.shape[0], randomness)
    return [batch.whole(t) for t in results]


def jacrev(
    func: Callable,
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    sparsity: Any = None,
) -> Callable:
    r"""A function that computes the Jacobian of `func` by reverse mode: one sweep, batched over the results' elements.

    Args:
        func: returns a tree of tensors; with `has_aux` a pair of that and anything.
        argnums: which positional arguments to differentiate with respect to.
        has_aux: whether `func` returns a pair.
        chunk_size: how many elements of the result to sweep from at once; all by default.
        sparsity: where the Jacobian of one result by one argument may differ from zero, a matrix of shape (elements of the result,
            elements of the argument), SciPy's sparse or dense, or a `tapegrad.func.colour` of it by rows. Rows that never meet then
            share one sweep, one more checks the pattern, and what is returned is a SciPy matrix of that shape.

    Returns:
        A function of the same arguments. For each result it returns, in the structure of the arguments, tensors of shape
        ``(*result.shape, *argument.shape)``, :math:`\partial y_i / \partial x_j`.

    Raises:
        ValueError: if the Jacobian has a non-zero outside `sparsity`; it names the place.

    >>> import tapegrad as tg
    >>> tg.func.jacrev(lambda x: x**2)(tg.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """

    @functools.wraps(func)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        run = Recorded("jacrev", func, args, kwargs, chosen_arguments("jacrev", argnums, args), has_aux)
        roots, structure = tensors_of("jacrev", run.output)
        if sparsity is not None:
            from tapegrad.func._sparse import compressed

            def pull(start: Tensor) -> Tensor:
                return run.pull_back(roots, [start], True)[0]

            found = compressed("jacrev", roots, run.leaves, sparsity, pullback=pull)
            return (found, run.finished(run.aux)) if has_aux else found
        rows = []
        for root in roots:

            def pull_back(start: Tensor, root: Tensor = root) -> list[Tensor]:
                return run.pull_back([root], [start], True)

            if root.numel() == 1:
                parts = pull_back(ones_like(root).detach())
            elif root.numel():
                parts = _mapped(pull_back, _basis(root), "error", chunk_size)
            else:
                parts = [zeros_like(t).expand((0, *t.shape)) for t in run.leaves]
            shaped = [p.reshape((*root.shape, *t.shape)) for p, t in zip(parts, run.leaves, strict=True)]
            trees = run.in_trees(shaped)
            rows.append(trees[0] if isinstance(argnums, int) else tuple(trees))
        result = run.finished(_tree.unflatten(rows, structure))
        return (result, run.finished(run.aux)) if has_aux else result

    return as_program(jacobian) if sparsity is None else jacobian


def jacfwd(
    func: Callable,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
    chunk_size: int | None = None,
    sparsity: Any = None,
) -> Callable:
    r"""A function that computes the Jacobian of `func` by forward mode: one push, batched over the arguments' elements.

    Args:
        func: returns a tree of tensors; with `has_aux` a pair of that and anything.
        argnums: which positional arguments to differentiate with respect to.
        has_aux: whether `func` returns a pair.
        randomness: as for `vmap`.
        chunk_size: how many elements of an argument to push at once; all by default.
        sparsity: as for `jacrev`, or a colouring by columns; columns that never meet share one push.

    Returns:
        As `jacrev`.

    Raises:
        ValueError: as `jacrev`.

    >>> import tapegrad as tg
    >>> tg.func.jacfwd(lambda x: x**2)(tg.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """

    @functools.wraps(func)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        run = Linear("jacfwd", func, args, kwargs, chosen_arguments("jacfwd", argnums, args), has_aux)
        if sparsity is not None:
            from tapegrad.func._sparse import compressed

            found = compressed("jacfwd", run.ends, run.seeds, sparsity, pushforward=lambda t: run.push({0: t})[0])
            return (found, run.aux) if has_aux else found
        columns = []
        for number, seed in enumerate(run.seeds):

            def push(tangent: Tensor, number: int = number) -> list[Tensor]:
                return run.push({number: tangent})

            if seed.numel():
                parts = _mapped(push, _basis(seed), randomness, chunk_size)
            else:
                parts = [zeros_like(t).expand((0, *t.shape)) for t in run.ends]
            columns.append(
                [p.movedim(0, -1).reshape((*t.shape, *seed.shape)) for p, t in zip(parts, run.ends, strict=True)]
            )
        rows = []
        for k in range(len(run.ends)):
            trees, start = [], 0
            for structure in run.structures:
                stop = start + structure.leaves
                trees.append(_tree.unflatten([c[k] for c in columns[start:stop]], structure))
                start = stop
            rows.append(trees[0] if isinstance(argnums, int) else tuple(trees))
        result = _tree.unflatten(rows, run.structure)
        return (result, run.aux) if has_aux else result

    return as_program(jacobian) if sparsity is None else jacobian


def hessian(func: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    r"""A function that computes the Hessian of `func`, :math:`\partial^2 y / \partial x_i \partial x_j`, forward over reverse.

    >>> import tapegrad as tg
    >>> tg.func.hessian(lambda x: (x**3).sum())(tg.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    return jacfwd(jacrev(func, argnums), argnums)
