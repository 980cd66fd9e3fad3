"""Sparse Jacobians: rows, or columns, that never meet share one product.

Rows without a common column can be added up without mixing their elements, so one pullback gives them all; columns without a
common row share one pushforward. Which lines go together is a colouring of the graph in which two lines are joined if they
meet (A. R. Curtis, M. J. D. Powell, J. K. Reid, "On the estimation of sparse Jacobian matrices", 1974; A. H. Gebremedhin,
F. Manne, A. Pothen, "What color is your Jacobian?", 2005).

The module imports SciPy's sparse arrays: import it where a sparsity is given, not with the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from tapegrad.creation import as_tensor, from_copy
from tapegrad.dtypes import as_dtype, float64
from tapegrad.func._derivatives import vjp
from tapegrad.func._vmap import vmap
from tapegrad.tensor import Tensor

__all__ = ["Colouring", "as_pattern", "colour", "compressed", "sparse_jacobian", "sparsity_of"]

# rows of a dense Jacobian held at a time while its pattern is looked for
_BLOCK = 256


@dataclass(frozen=True)
class Colouring:
    """Which rows or columns of a Jacobian share a product.

    Attributes:
        pattern: boolean `csr_array` of shape (outputs, inputs), its indices sorted.
        by: ``"rows"`` for pullbacks, ``"columns"`` for pushforwards.
        colours: the colour of each row or column, -1 for those without elements.
        count: how many colours there are, which is how many products are needed.
        matrix: the class of the results, `csr_array` or `csr_matrix`.
    """

    pattern: Any
    by: str
    colours: np.ndarray
    count: int
    matrix: type = sparse.csr_array

    def seeds(self, dtype: Any) -> np.ndarray:
        """One row a product, of shape (count, rows or columns): ones at the lines of its colour."""
        return (self.colours == np.arange(self.count)[:, None]).astype(dtype)

    def decompress(self, products: np.ndarray) -> Any:
        """The Jacobian from the products with `seeds`, of shape (count, columns or rows).

        >>> colouring = colour(np.eye(3))
        >>> colouring.count
        1
        >>> colouring.decompress(np.array([[1.0, 2.0, 3.0]])).toarray()
        array([[1., 0., 0.],
               [0., 2., 0.],
               [0., 0., 3.]])
        """
        rows = np.repeat(np.arange(self.pattern.shape[0]), np.diff(self.pattern.indptr))
        columns = self.pattern.indices
        line, across = (rows, columns) if self.by == "rows" else (columns, rows)
        values = products[self.colours[line], across]
        return self.matrix((values, columns.copy(), self.pattern.indptr.copy()), shape=self.pattern.shape)


def as_pattern(sparsity: Any, shape: tuple[int, int] | None = None) -> Any:
    """A sparsity pattern as a boolean `csr_array` with sorted indices.

    Args:
        sparsity: a SciPy sparse array or matrix, whose stored elements count even if they are zero; or a dense array or tensor, whose
            non-zeros count.
        shape: (outputs, inputs) it must have.

    Raises:
        ValueError: if it is not two-dimensional or has another shape.

    >>> as_pattern([[1, 0], [0, 2]]).nnz
    2
    """
    if sparse.issparse(sparsity):
        pattern = sparse.csr_array(sparsity)
    else:
        dense = np.asarray(sparsity.detach() if isinstance(sparsity, Tensor) else sparsity)
        if dense.ndim != 2:
            raise ValueError(f"sparsity must be a matrix of shape (outputs, inputs), but got shape {dense.shape}")
        pattern = sparse.csr_array(dense != 0)
    if shape is not None and pattern.shape != shape:
        raise ValueError(
            f"sparsity has shape {pattern.shape}, but the Jacobian of {shape[0]} outputs by {shape[1]} inputs has shape {shape}"
        )
    ones = np.ones(pattern.nnz, bool)
    pattern = sparse.csr_array((ones, pattern.indices.copy(), pattern.indptr.copy()), shape=pattern.shape)
    pattern.sum_duplicates()
    return pattern


def colour(sparsity: Any, by: str | None = None, shape: tuple[int, int] | None = None) -> Colouring:
    """Group rows without a common column, or columns without a common row, greedily, the ones that meet most others first.

    Args:
        sparsity: as `as_pattern` takes it.
        by: ``"rows"``, ``"columns"``, or None for the side that needs fewer products (rows, if both need as many).
        shape: (outputs, inputs) the pattern must have.

    Raises:
        ValueError: if `by` is something else, or the pattern has another shape.

    >>> band = np.eye(50) + np.eye(50, k=1) + np.eye(50, k=-1)
    >>> colour(band).count
    3
    >>> colour(np.ones((1, 5))).by, colour(np.ones((5, 1))).by
    ('rows', 'columns')
    """
    pattern = as_pattern(sparsity, shape)
    # any colouring by rows has at least as many colours as the fullest column has elements
    least = {
        "rows": np.bincount(pattern.indices, minlength=1).max(initial=0),
        "columns": np.diff(pattern.indptr).max(initial=0),
    }
    if by is not None and by not in least:
        raise ValueError(f"by must be 'rows', 'columns' or None, but got {by!r}")
    matrix = sparse.csr_matrix if isinstance(sparsity, sparse.spmatrix) else sparse.csr_array
    best: Colouring | None = None
    for side in (by,) if by else sorted(least, key=least.__getitem__):
        if best is not None and (best.count, best.by != "rows") < (least[side], side != "rows"):
            continue
        colours = _colours(pattern if side == "rows" else pattern.T.tocsr())
        found = Colouring(pattern, side, colours, int(colours.max(initial=-1)) + 1, matrix)
        if best is None or (found.count, found.by != "rows") < (best.count, best.by != "rows"):
            best = found
    assert best is not None
    return best


def _colours(lines: Any) -> np.ndarray:
    """Colours of the rows of a pattern so that rows of one colour have no common column."""
    count = lines.shape[0]
    if lines.nnz and np.bincount(lines.indices).max() == count:
        return np.arange(count)  # a full column keeps all apart
    meets = lines @ lines.T
    degrees = np.diff(meets.indptr)
    colours = np.full(count, -1)
    taken_by = np.full(count + 1, -1)
    used = 0
    for line in np.argsort(-degrees, kind="stable").tolist():
        if degrees[line] == 0:  # and all that follow: they have no elements
            break
        around = colours[meets.indices[meets.indptr[line] : meets.indptr[line + 1]]]
        taken_by[around] = line  # those not coloured yet write to the last place
        colours[line] = free = int(np.argmax(taken_by[: used + 1] != line))
        used = max(used, free + 1)
    return colours


def sparse_jacobian(
    sparsity: Any,
    pullback: Callable[[Tensor], Tensor] | None = None,
    pushforward: Callable[[Tensor], Tensor] | None = None,
    *,
    dtype: Any = None,
    batched: bool = False,
    check: bool = True,
) -> Any:
    r"""The Jacobian :math:`J` of a function at a point, from products with it, one for each colour of its sparsity pattern.

    Args:
        sparsity: the pattern, as `as_pattern` takes it, or a `Colouring` to use it many times.
        pullback: :math:`v \mapsto J^T v`, from a tensor of one element an output to one of one element an input.
        pushforward: :math:`u \mapsto J u`, the other way; with both, the one that needs fewer products is used.
        dtype: of the tensors given to them; float64 if None.
        batched: whether they take and return several such vectors at once, as the rows of a matrix.
        check: compare a product with a random vector too, which costs one more: a non-zero outside the pattern makes elements
            inside it wrong, and is found unless it is a tiny part, about :math:`\epsilon^{0.4}`, of the others in its line.

    Returns:
        A `csr_array` of shape (outputs, inputs) with the elements of the pattern (a `csr_matrix` if the pattern is a SciPy matrix).

    Raises:
        ValueError: if neither function is given, or the Jacobian has a non-zero outside the pattern.

    >>> import tapegrad as tg
    >>> x = tg.tensor([1.0, 2.0, 3.0], dtype=tg.float64)
    >>> sparse_jacobian(np.eye(3), pullback=lambda v: 2 * x * v).toarray()
    array([[2., 0., 0.],
           [0., 4., 0.],
           [0., 0., 6.]])
    """
    if pullback is None and pushforward is None:
        raise ValueError("sparse_jacobian() needs a pullback, a pushforward, or both")
    colouring = sparsity if isinstance(sparsity, Colouring) else None
    if colouring is None:
        colouring = colour(sparsity, "columns" if pullback is None else "rows" if pushforward is None else None)
    product = pullback if colouring.by == "rows" else pushforward
    if product is None:
        wanted = "pullback" if colouring.by == "rows" else "pushforward"
        raise ValueError(f"a colouring by {colouring.by} needs a {wanted}")
    numpy_dtype = (float64 if dtype is None else as_dtype(dtype)).numpy
    across = colouring.pattern.shape[colouring.by == "rows"]

    def products(vectors: np.ndarray) -> np.ndarray:
        if not len(vectors):
            return np.empty((0, across), numpy_dtype)
        tensors = from_copy(vectors)
        if batched:
            return _array_of(product(tensors), (len(vectors), across))
        return np.stack([_array_of(product(t), (across,)) for t in tensors])

    seeds = colouring.seeds(numpy_dtype)
    if not check:
        return colouring.decompress(products(seeds))
    rng = np.random.default_rng(0)
    mix = (rng.uniform(0.5, 1.5, seeds.shape[1]) * rng.choice([-1, 1], seeds.shape[1])).astype(numpy_dtype)
    found = products(np.vstack([seeds, mix]))
    jacobian = colouring.decompress(found[:-1])
    _check(colouring, jacobian, mix, found[-1], products)
    return jacobian


def compressed(
    name: str,
    results: Sequence[Tensor],
    arguments: Sequence[Tensor],
    sparsity: Any,
    pullback: Callable[[Tensor], Tensor] | None = None,
    pushforward: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """The sparse Jacobian of one result by one argument, of any shapes.

    Args:
        name: of the transformation, for messages.
        results: of the function at this point.
        arguments: it is differentiated with respect to.
        sparsity: as `sparse_jacobian` takes it.
        pullback: from a tensor like the result to one like the argument; or
        pushforward: the other way.

    Raises:
        RuntimeError: if there are several results or arguments.
        ValueError: as `sparse_jacobian`.
    """
    if len(results) != 1 or len(arguments) != 1:
        raise RuntimeError(
            f"{name}: sparsity is for a function of one tensor that returns one tensor, but there are {len(arguments)} and {len(results)}"
        )
    shape = (results[0].numel(), arguments[0].numel())
    if isinstance(sparsity, Colouring):
        as_pattern(sparsity.pattern, shape)
    else:
        sparsity = colour(sparsity, "columns" if pullback is None else "rows", shape)
    product = pushforward if pullback is None else pullback
    assert product is not None
    like = arguments[0] if pullback is None else results[0]

    def flat(vector: Tensor) -> Tensor:
        return product(vector.reshape(like.shape)).reshape(-1)  # type: ignore[operator]

    side = "pushforward" if pullback is None else "pullback"
    return sparse_jacobian(sparsity, **{side: vmap(flat)}, dtype=like.dtype, batched=True)  # type: ignore[arg-type]


def _array_of(result: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(result, Tensor):
        raise TypeError(f"a product with a Jacobian must be a Tensor, but got {type(result).__name__}")
    array = result.detach().numpy()
    if array.size != math.prod(shape):
        raise ValueError(
            f"a product with the Jacobian has {array.size} elements where sparsity says {math.prod(shape)}: sparsity has the shape "
            "(outputs, inputs)"
        )
    return array.reshape(shape)


def _check(colouring: Colouring, jacobian: Any, mix: np.ndarray, mixed: np.ndarray, products: Callable) -> None:
    """Compare a product with the Jacobian itself with one with what the pattern made of it."""
    along = jacobian if colouring.by == "columns" else jacobian.T
    with np.errstate(invalid="ignore", over="ignore"):
        expected, scale = along @ mix, abs(along) @ abs(mix)
        eps = max(float(np.finfo(dtype).eps) for dtype in (mix.dtype, mixed.dtype))
        nothing = eps**0.8 * scale[np.isfinite(scale)].max(initial=0)
        wrong = ~(abs(mixed - expected) <= eps**0.4 * scale + nothing)
        wrong &= np.isfinite(mixed) | np.isfinite(expected)
        if wrong.any():
            place = int(np.argmax(np.where(wrong, abs(mixed - expected), -1)))
            _refuse(colouring, place, mix, lambda some: float(products(some[None])[0][place]), nothing)


def _refuse(
    colouring: Colouring, place: int, mix: np.ndarray, product: Callable[[np.ndarray], float], nothing: float
) -> None:
    """Raise for a column (coloured by rows) or row whose elements do not add up to a product."""
    pattern = colouring.pattern if colouring.by == "columns" else colouring.pattern.T.tocsr()
    lines = np.arange(mix.size)
    # the line to blame is one that the pattern leaves empty there: halve them until one is left
    suspects = np.setdiff1d(lines, pattern.indices[pattern.indptr[place] : pattern.indptr[place + 1]])
    while suspects.size > 1:
        half, rest = np.array_split(suspects, 2)
        suspects = rest if abs(product(np.where(np.isin(lines, half), mix, 0))) <= nothing else half
    value = product((lines == suspects).astype(mix.dtype)) if suspects.size else 0.0
    if abs(value) <= nothing:
        line = "column" if colouring.by == "rows" else "row"
        raise ValueError(
            f"products with the Jacobian do not agree in {line} {place}: the function gives different results for one point, or loses "
            "most of its digits there; check=False leaves the comparison out"
        )
    row, column = (suspects[0], place) if colouring.by == "rows" else (place, suspects[0])
    raise ValueError(
        f"the Jacobian is {value:g} in row {row}, column {column}, which is outside the given sparsity; add the element to it"
    )


def sparsity_of(f: Callable[[Tensor], Tensor], x: Any, samples: int = 2) -> Any:
    """Where the Jacobian of a function is not zero at a point and at random points beside it.

    Derivatives here are exact, so an element that is zero at all these points is one that the function does not depend on there. What
    only another branch of the function depends on (of `where`, `relu`, `max`, an ``if``) is not in the pattern; the check of
    `sparse_jacobian` finds it when the function gets there.

    Args:
        f: from a tensor to a tensor, of any shapes.
        x: where: a floating tensor or array.
        samples: how many points beside it, each element off by up to a thousandth (of itself, if it is more than 1).

    Returns:
        A boolean `csr_array` of shape (outputs, inputs). It costs one reverse sweep an output at each point.

    Raises:
        RuntimeError: if `f` is no function from one floating tensor to one tensor.

    >>> import tapegrad as tg
    >>> sparsity_of(lambda x: x[1:] * x[:-1], tg.zeros(3)).toarray()
    array([[ True,  True, False],
           [False,  True,  True]])
    """
    centre = as_tensor(x).detach().numpy()
    rng = np.random.default_rng(0)
    steps = [np.zeros_like(centre)]
    steps += [1e-3 * rng.uniform(-1, 1, centre.shape) * np.maximum(abs(centre), 1) for _ in range(samples)]
    pattern = None
    for step in steps:
        out, pull = vjp(f, np.asarray(centre + step, centre.dtype))
        if not isinstance(out, Tensor):
            raise RuntimeError(f"sparsity_of: f must return one Tensor, but returned {type(out).__name__}")
        blocks = [sparse.csr_array((0, centre.size), dtype=bool)]
        for first in range(0, out.numel(), _BLOCK):
            count = min(_BLOCK, out.numel() - first)
            units = np.eye(count, out.numel(), first, dtype=out.dtype.numpy).reshape(count, *out.shape)
            (rows,) = vmap(pull)(from_copy(units))
            blocks.append(sparse.csr_array(rows.numpy().reshape(count, centre.size) != 0))
        found = sparse.vstack(blocks, format="csr")
        pattern = found if pattern is None else pattern + found
    return as_pattern(pattern)
