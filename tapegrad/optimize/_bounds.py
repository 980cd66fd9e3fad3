"""Bounds of unknowns, in their structure or as SciPy takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import Bounds

from tapegrad._tree import named_children
from tapegrad.optimize._unknowns import Unknowns
from tapegrad.tensor import Tensor


def bounds_by_pairs(bounds: Any, unknowns: Unknowns) -> Bounds | None:
    """Bounds for `minimize`.

    Args:
        bounds: None; SciPy's `Bounds`; one (low, high) an element; or the structure of the unknowns with one (low, high) a leaf. None
            for a pair or an end of one is no bound.
        unknowns: what they bound.

    Raises:
        ValueError: for other forms, or if they do not match the unknowns.
    """
    if bounds is None or isinstance(bounds, Bounds):
        return bounds
    ends = _pair_an_element(bounds, unknowns)
    if ends is None:
        ends = _pair_a_leaf(unknowns.tree, bounds, unknowns.name)
    return _numbers(ends, unknowns)


def bounds_by_sides(bounds: Any, unknowns: Unknowns) -> Bounds:
    """Bounds for `least_squares`.

    Args:
        bounds: None; SciPy's `Bounds`; (lower, upper), each of them a number, an array of one number an element, or the structure of the
            unknowns; or as a dict, named tuple or dataclass, the structure of the unknowns with one (low, high) a leaf.
        unknowns: what they bound.

    Raises:
        ValueError: for other forms, or if they do not match the unknowns.
    """
    if isinstance(bounds, Bounds):
        return bounds
    if type(bounds) not in (list, tuple, np.ndarray):
        return _numbers(_pair_a_leaf(unknowns.tree, bounds, unknowns.name), unknowns)
    if len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (lower, upper), but got {len(bounds)} elements")
    low, high = (_side(side, unknowns, infinite) for side, infinite in zip(bounds, (-np.inf, np.inf), strict=True))
    return _numbers((low, high), unknowns)


def _numbers(ends: tuple[np.ndarray, np.ndarray], unknowns: Unknowns) -> Bounds:
    for side in ends:
        if np.isnan(side).any():
            raise ValueError(
                f"a bound of {unknowns.place(int(np.argmax(np.isnan(side))))} is nan: use None for no bound"
            )
    return Bounds(*ends)


def _side(side: Any, unknowns: Unknowns, infinite: float) -> np.ndarray:
    if not isinstance(side, Tensor) and named_children(side) is None and np.ndim(side) == 0:
        return np.full(unknowns.size, infinite if side is None else float(side))
    if type(side) in (list, tuple) and len(side) == unknowns.size and all(np.ndim(v) == 0 for v in side):
        return np.array([_end(v, (), unknowns.name, infinite) for v in side])
    if isinstance(side, np.ndarray) and side.shape == (unknowns.size,):
        return side.astype(np.float64)
    return _leafwise(unknowns.tree, side, unknowns.name, infinite)


def _leafwise(tree: Any, values: Any, path: str, infinite: float) -> np.ndarray:
    children = named_children(tree)
    if tree is None:
        return np.empty(0)
    if children is None:
        return _end(values, np.shape(tree), path, infinite).reshape(-1)
    others = _matching(children, values, path)
    parts = [_leafwise(child, others[name], path + name, infinite) for name, child in children.items()]
    return np.concatenate([np.empty(0), *parts])


def _pair_an_element(bounds: Any, unknowns: Unknowns) -> tuple[np.ndarray, np.ndarray] | None:
    """The ends of a sequence of one pair an element; None if it is none."""
    if type(bounds) not in (list, tuple, np.ndarray) or len(bounds) != unknowns.size:
        return None
    for pair in bounds:
        if type(pair) not in (list, tuple, np.ndarray) or len(pair) != 2 or any(np.ndim(v) for v in pair):
            return None
    low, high = zip(*bounds, strict=True)
    return (
        np.array([-np.inf if v is None else float(v) for v in low]),
        np.array([np.inf if v is None else float(v) for v in high]),
    )


def _pair_a_leaf(tree: Any, bounds: Any, path: str) -> tuple[np.ndarray, np.ndarray]:
    children = named_children(tree)
    if tree is None:
        return np.empty(0), np.empty(0)
    if children is None:
        shape = tuple(np.shape(tree))
        if bounds is None:
            bounds = (None, None)
        if type(bounds) not in (list, tuple) or len(bounds) != 2:
            raise ValueError(
                f"bounds of {path} must be a pair (low, high) of numbers, arrays of shape {shape}, or None for no bound, but got "
                f"{bounds!r}"
            )
        low, high = (_end(v, shape, path, i) for v, i in zip(bounds, (-np.inf, np.inf), strict=True))
        return low.reshape(-1), high.reshape(-1)
    others = _matching(children, bounds, path)
    pairs = [_pair_a_leaf(child, others[name], path + name) for name, child in children.items()]
    lows, highs = zip(*pairs, strict=True) if pairs else ((), ())
    return np.concatenate([np.empty(0), *lows]), np.concatenate([np.empty(0), *highs])


def _matching(children: dict[str, Any], values: Any, path: str) -> dict[str, Any]:
    """The parts of bounds for the parts of the unknowns; None is no bound of any."""
    if values is None:
        return dict.fromkeys(children)
    found = named_children(values) or {}
    if found.keys() != children.keys():
        missing = [path + name for name in children if name not in found]
        what = f"there are none for {', '.join(missing)}" if missing else ""
        extra = [f"bounds{name}" for name in found if name not in children]
        what += (" and " if missing and extra else "") + (f"nothing is bounded by {', '.join(extra)}" if extra else "")
        raise ValueError(f"bounds do not have the structure of {path}: {what}; give None where there is no bound")
    return found


def _end(value: Any, shape: tuple[int, ...], path: str, infinite: float) -> np.ndarray:
    array = np.asarray(
        infinite if value is None else value.detach() if isinstance(value, Tensor) else value, np.float64
    )
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"a bound of {path} has shape {array.shape}, which does not expand to {shape}") from None
