"""Einstein summation: an equation is parsed once a signature, and carried out as products of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad.ops._arguments import check_tensors
from tapegrad.ops._public import composite
from tapegrad.ops.linalg import matmul
from tapegrad.tensor import Tensor

# labels are small integers: 0 to 51 for letters, from here on for the dims an ellipsis stands for
_ELLIPSIS = 52
_MAX_PLANS = 1 << 12

_plans: dict[tuple, _Plan] = {}


class _Operand(NamedTuple):
    labels: tuple[int, ...]
    diagonals: tuple[tuple[int, int], ...]  # pairs of dims to be read together, in order
    squeezed: tuple[int, ...]  # dims of extent one that broadcast, last first


class _Plan(NamedTuple):
    operands: tuple[_Operand, ...]
    output: tuple[int, ...]
    order: tuple[tuple[int, ...], ...]


def _label(character: str) -> int:
    return ord(character) - 65 if character <= "Z" else ord(character) - 71


def _name(label: int) -> str:
    return "..." if label >= _ELLIPSIS else chr(label + 65 if label < 26 else label + 71)


def _parse_side(text: str, where: str, equation: str, start: int) -> list[int | None]:
    # labels of one operand or of the output, None for the ellipsis
    found: list[int | None] = []
    k = 0
    while k < len(text):
        c = text[k]
        if c == " ":
            k += 1
        elif c == ".":
            if None in found:
                raise RuntimeError(f"einsum(): found '.' for {where} but an ellipsis (...) was already found")
            if text[k : k + 3] != "...":
                dots = " (...)" if where == "output" else ""
                raise RuntimeError(f"einsum(): found '.' for {where} that is not part of any ellipsis{dots}")
            found.append(None)
            k += 3
        elif c.isascii() and c.isalpha():
            found.append(_label(c))
            k += 1
        else:
            raise RuntimeError(
                f"einsum(): invalid subscript given at index {start + k} in the equation string, "
                "subscripts must be in [a-zA-Z]"
            )
    return found


def _parse(equation: str, count: int) -> tuple[list[list[int | None]], list[int | None] | None]:
    left, arrow, right = equation.partition("->")
    parts, start = [], 0
    for position, text in enumerate(left.split(",")):
        parts.append(_parse_side(text, f"operand {position}", equation, start))
        start += len(text) + 1
    if len(parts) > count:
        raise RuntimeError("einsum(): fewer operands were provided than specified in the equation")
    if len(parts) < count:
        raise RuntimeError("einsum(): more operands were provided than specified in the equation")
    return parts, _parse_side(right, "output", equation, len(left) + 2) if arrow else None


def _parse_lists(arguments: Sequence[Any]) -> tuple[list[Tensor], list[list[int | None]], Any]:
    # einsum(x, [0, 1], y, [1, 2], [0, 2])
    def labels(given: Sequence[Any]) -> list[int | None]:
        for value in given:
            if value is not Ellipsis and not 0 <= value < _ELLIPSIS:
                raise ValueError("einsum(): subscript in subscript list is not within the valid range [0, 52)")
        return [None if value is Ellipsis else int(value) for value in given]

    pairs = len(arguments) // 2
    operands = [arguments[2 * k] for k in range(pairs)]
    parts = [labels(arguments[2 * k + 1]) for k in range(pairs)]
    return operands, parts, labels(arguments[-1]) if len(arguments) % 2 else None


def _expand(
    parts: list[list[int | None]], output: list[int | None] | None, shapes: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[int]]:
    # ellipses become labels of their own, aligned at the right
    widest, operands = 0, []
    for position, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
        named, ndim = sum(label is not None for label in part), len(shape)
        if None not in part and named != ndim:
            raise RuntimeError(
                f"einsum(): the number of subscripts in the equation ({named}) does not match the number "
                f"of dimensions ({ndim}) "
                f"for operand {position} and no ellipsis was given"
            )
        if named > ndim:
            raise RuntimeError(
                f"einsum(): the number of subscripts in the equation ({named}) is more than the number of "
                f"dimensions ({ndim}) "
                f"for operand {position}"
            )
        widest = max(widest, ndim - named)
    for part, shape in zip(parts, shapes, strict=True):
        covered = len(shape) - sum(label is not None for label in part)
        labels: list[int] = []
        for label in part:
            labels += range(_ELLIPSIS + widest - covered, _ELLIPSIS + widest) if label is None else [label]
        operands.append(labels)
    dots = list(range(_ELLIPSIS, _ELLIPSIS + widest))
    if output is None:
        seen = [label for labels in operands for label in labels if label < _ELLIPSIS]
        return operands, dots + [label for label in range(_ELLIPSIS) if seen.count(label) == 1]
    result: list[int] = []
    for label in output:
        if label is None:
            result += dots
            continue
        if label in result:
            raise RuntimeError(f"einsum(): output subscript {_name(label)} appears more than once in the output")
        if not any(label in labels for labels in operands):
            raise RuntimeError(
                f"einsum(): output subscript {_name(label)} does not appear in the equation for any input operand"
            )
        result.append(label)
    return operands, result


def _make_plan(parts: Any, output: Any, shapes: Sequence[Sequence[int]]) -> _Plan:
    operands, result = _expand(parts, output, shapes)
    sizes: dict[int, int] = {}
    reduced = []
    for position, (labels, shape) in enumerate(zip(operands, shapes, strict=True)):
        kept: list[int] = []
        extents: list[int] = []
        diagonals: list[tuple[int, int]] = []
        for label, extent in zip(labels, shape, strict=True):
            if label in kept:
                at = kept.index(label)
                if extents[at] != extent:
                    raise RuntimeError(
                        f"einsum(): subscript {_name(label)} is repeated for operand {position} but the "
                        "sizes don't match, "
                        f"{extent} != {extents[at]}"
                    )
                diagonals.append((at, len(kept)))
                continue
            kept.append(label)
            extents.append(extent)
        for label, extent in zip(kept, extents, strict=True):
            known = sizes.get(label, 1)
            if known != 1 and extent not in (1, known):
                raise RuntimeError(
                    f"einsum(): subscript {_name(label)} has size {extent} for operand {position} which "
                    "does not broadcast "
                    f"with previously seen size {known}"
                )
            sizes[label] = extent if known == 1 else known
        reduced.append((kept, extents, diagonals))
    made = []
    for kept, extents, diagonals in reduced:
        thin = [d for d, label in enumerate(kept) if extents[d] == 1 and sizes[label] != 1]
        left = tuple(label for d, label in enumerate(kept) if d not in thin)
        made.append(_Operand(left, tuple(diagonals), tuple(reversed(thin))))
    return _Plan(tuple(made), tuple(result), _order(made, result, sizes))


def _order(operands: Sequence[_Operand], output: Sequence[int], sizes: dict[int, int]) -> tuple:
    # which operands to contract together; a result goes to the end of the list
    if len(operands) < 3:
        return ((0, 1),) * (len(operands) - 1)
    dense = {label: k for k, label in enumerate(sorted(sizes))}
    arguments: list[Any] = []
    for operand in operands:
        shape = tuple(sizes[label] for label in operand.labels)
        arguments += [np.broadcast_to(np.float32(0), shape), [dense[label] for label in operand.labels]]
    how = "optimal" if len(operands) < 5 else "greedy"
    path = np.einsum_path(*arguments, [dense[label] for label in output], optimize=(how, 2**62))[0]
    steps: list[tuple[int, ...]] = []
    for step in path[1:]:
        # NumPy may join three and more in one step: take them two by two
        indices = sorted(step)
        steps.append((indices[0], indices[1]))
        left = len(operands) - len(steps)
        for extra in range(2, len(indices)):
            steps.append((indices[extra] - extra, left - 1))
            left -= 1
    return tuple(steps)


def _permuted(t: Any, have: Sequence[int], want: Sequence[int]) -> Any:
    return t if list(have) == list(want) else t.permute(*(list(have).index(label) for label in want))


def _summed(t: Any, labels: list[int], keep: set[int]) -> tuple[Any, list[int]]:
    gone = [d for d, label in enumerate(labels) if label not in keep]
    return (t.sum(gone) if gone else t), [label for label in labels if label in keep]


def _extent(t: Any, labels: Sequence[int], chosen: Sequence[int]) -> int:
    size = 1
    for label in chosen:
        size *= t.shape[list(labels).index(label)]
    return size


def _contract(a: Any, la: list[int], b: Any, lb: list[int], keep: Sequence[int]) -> tuple[Any, list[int]]:
    """The product of two operands, summed over the labels that nothing after it needs."""
    kept = set(keep)
    a, la = _summed(a, la, kept | set(lb))
    b, lb = _summed(b, lb, kept | set(la))
    shared = [label for label in la if label in lb]
    # batch labels in the order of the output spare a permutation at the end
    batch = [label for label in keep if label in shared]
    inner = [label for label in shared if label not in kept]
    rows = [label for label in la if label not in lb]
    columns = [label for label in lb if label not in la]
    if not inner:
        result = batch + rows + columns
        a, b = _permuted(a, la, batch + rows), _permuted(b, lb, batch + columns)
        if columns and (rows or not batch):
            a = a.reshape(*a.shape, *(1,) * len(columns))
        if rows and batch:
            b = b.reshape(*b.shape[: len(batch)], *(1,) * len(rows), *b.shape[len(batch) :])
        return a * b, result
    outside = tuple(a.shape[la.index(label)] for label in batch)
    shape_rows = tuple(a.shape[la.index(label)] for label in rows)
    shape_columns = tuple(b.shape[lb.index(label)] for label in columns)
    m, k, n = _extent(a, la, rows), _extent(a, la, inner), _extent(b, lb, columns)
    a, b = _permuted(a, la, batch + rows + inner), _permuted(b, lb, batch + inner + columns)
    if len(rows) != 1 or len(inner) != 1:
        a = a.reshape(*outside, m, k)
    if len(columns) != 1 or len(inner) != 1:
        b = b.reshape(*outside, k, n)
    product = matmul(a, b)
    if len(rows) != 1 or len(columns) != 1:
        product = product.reshape(*outside, *shape_rows, *shape_columns)  # type: ignore[attr-defined]
    return product, batch + rows + columns


def _einsum_reference(equation, *arrays):
    return np.einsum(equation, *arrays)


@composite(
    samples=[
        (((2, 3), (3, 4)), {"before": ("ij,jk->ik",)}),
        (((3, 3),), {"before": ("ii->i",)}),
        (((5, 2, 3), (5, 3, 4)), {"before": ("bij,bjk",)}),
        (((2, 3), (4, 2, 3)), {"before": ("...i,...i->...",)}),
        (((2, 3), (3, 4), (4, 2)), {"before": ("ij,jk,kl->il",)}),
        (((2,), (3,)), {"before": ("i,j->ji",)}),
    ],
    reference=_einsum_reference,
    method=False,
)
def einsum(*args: Any) -> Tensor:
    r"""Products of the elements of tensors, summed over the indices an equation leaves out of its result.

    ``einsum("ij,jk->ik", a, b)`` is the matrix product :math:`\sum_j a_{ij} b_{jk}`. Without an arrow the
    result has the indices that occur once, in alphabetical order; an ellipsis stands for any number of dims
    that broadcast; an index twice in one operand takes its diagonal. Indices may also be given as lists of
    integers, one after each operand.

    Args:
        args: the equation and the operands, or operands and lists of indices.

    Raises:
        RuntimeError: if the equation does not fit the operands.

    >>> import tapegrad as tg
    >>> tg.einsum("ij,j->i", tg.ones(2, 3), tg.tensor([1.0, 2.0, 3.0]))
    tensor([6., 6.])
    """
    if len(args) < 2:
        raise ValueError(
            "einsum(): must specify the equation string and at least one operand, or at least one operand "
            "and its subscripts list"
        )
    equation = args[0]
    key: tuple
    if isinstance(equation, str):
        operands = list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else list(args[1:])
        parts, output = None, None
        key = (equation,)
    else:
        operands, parts, output = _parse_lists(args)
        key = (tuple(map(tuple, parts)), None if output is None else tuple(output))
    check_tensors(operands, 1)
    key = (*key, *(t.shape for t in operands))
    plan = _plans.get(key)
    if plan is None:
        if isinstance(equation, str):
            parts, output = _parse(equation, len(operands))
        plan = _make_plan(parts, output, [t.shape for t in operands])
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        _plans[key] = plan
    for t in operands[1:]:
        if t.dtype is not operands[0].dtype:
            raise RuntimeError(f"expected scalar type {operands[0].dtype.tensor_type} but found {t.dtype.tensor_type}")
    return _carry_out(plan, operands)


def _carry_out(plan: _Plan, tensors: Sequence[Any]) -> Tensor:
    left: list[tuple[Any, list[int]]] = []
    for t, operand in zip(tensors, plan.operands, strict=True):
        for first, second in operand.diagonals:
            # the diagonal comes last; it belongs where its index stood first
            t = t.diagonal(0, first, second)
            t = t.permute(*range(first), t.ndim - 1, *range(first, t.ndim - 1))
        for d in operand.squeezed:
            t = t.squeeze(d)
        left.append((t, list(operand.labels)))
    for step in plan.order:
        j, i = max(step), min(step)
        (b, lb), (a, la) = left.pop(j), left.pop(i)
        needed = list(plan.output)
        for _, labels in left:
            needed += [label for label in labels if label not in needed]
        left.append(_contract(a, la, b, lb, needed))
    result, labels = left[0]
    if len(tensors) > 1:
        return _permuted(result, labels, plan.output)
    gone = [label for label in labels if label not in plan.output]
    result = result.permute(*(labels.index(label) for label in (*plan.output, *gone)))
    return result.sum(list(range(len(plan.output), len(labels)))) if gone else result
