"""The engine of a batch job: values and gradients of a function for a run of samples.

A function runs once for all samples of a run. Where it cannot (its values steer it, or it fails on some sample) it is called once a
sample, so that what comes out is what eager execution gives. Which of the two happens depends on the samples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad import _tree
from tapegrad.creation import from_numpy
from tapegrad.errors import LEAF_IN_PLACE, LEAF_VIEW_IN_PLACE
from tapegrad.func import value_and_grad, vmap
from tapegrad.tensor import Tensor


class Computed(NamedTuple):
    """What a run of samples gave.

    Attributes:
        values: one a sample, NaN where the function failed.
        gradients: the leaves of the gradient in tree order, each with the samples along its first axis; NaN where the function failed.
        failures: why it failed, by number of the sample within the run.
    """

    values: np.ndarray
    gradients: list[np.ndarray]
    failures: dict[int, str]


class Summed(NamedTuple):
    """What a run of samples adds up to.

    Attributes:
        values: one a sample, NaN where the function failed.
        total: the sum of the values, then the leaves of the summed gradient; samples that failed are left out.
        failures: why it failed, by number of the sample within the run.
    """

    values: np.ndarray
    total: list[np.ndarray]
    failures: dict[int, str]


def compute(f: Callable, params: Any, chunk: Any, wrt: Sequence[str]) -> Computed:
    """The value and gradient of a function for each sample of a run.

    Args:
        f: ``f(params, sample)``, or ``f(sample)`` where `params` is None; returns a scalar tensor.
        params: a tree of arrays, or None.
        chunk: a tree of arrays with the samples along their first axis.
        wrt: what to differentiate with respect to, of "params" and "data".

    Raises:
        RuntimeError: if the function writes to its arguments.

    >>> import numpy as np, tapegrad as tg
    >>> done = compute(lambda w, x: (w * x).sum(), np.array([2.0, 3.0]), np.array([[1.0, 4.0], [0.0, 1.0]]), ["params"])
    >>> done.values.tolist(), done.gradients[0].tolist()
    ([14.0, 3.0], [[1.0, 4.0], [0.0, 1.0]])
    """
    call = _Call(f, params, chunk)
    try:
        values, gradients = call.all_samples(wrt)
    except MemoryError:
        raise
    except Exception:
        return call.one_by_one(wrt)
    failures = _not_a_number(values, gradients, chunk)
    for k in failures:
        for array in (values, *gradients):
            array[k] = np.nan
    return Computed(values, gradients, failures)


def compute_each(f: Callable, params: Any, chunk: Any, wrt: Sequence[str]) -> Computed:
    """As `compute`, by calling the function for each sample, whether it needs that or not.

    >>> import numpy as np, tapegrad as tg
    >>> compute_each(tg.sin, None, np.zeros(2), ["data"]).gradients
    [array([1., 1.])]
    """
    return _Call(f, params, chunk).one_by_one(wrt)


def steered_by_values(f: Callable, params: Any, chunk: Any, wrt: Sequence[str]) -> bool:
    """Whether a function must be called for each sample.

    >>> import numpy as np, tapegrad as tg
    >>> steered_by_values(lambda x: x if x > 0 else -x, None, np.ones(2), ["data"]), steered_by_values(tg.abs, None, np.ones(2), ["data"])
    (True, False)
    """
    try:
        _Call(f, params, chunk).all_samples(wrt)
    except MemoryError:
        raise
    except Exception:
        return True
    return False


def compute_sum(f: Callable, params: Any, chunk: Any, most: int) -> Summed:
    """The values of a function for each sample of a run, and the sum of the gradients with respect to `params`.

    Args:
        f: ``f(params, sample)``, returns a scalar tensor.
        params: a tree of arrays.
        chunk: a tree of arrays with the samples along their first axis.
        most: of how many samples to hold single gradients, where they are needed to tell which sample failed.

    Raises:
        RuntimeError: if the function writes to its arguments.

    >>> import numpy as np, tapegrad as tg
    >>> done = compute_sum(lambda w, x: (w * x).sum(), np.array([2.0, 3.0]), np.array([[1.0, 4.0], [0.0, 1.0]]), 8)
    >>> [array.tolist() for array in done.total]
    [17.0, [1.0, 5.0]]
    """
    try:
        values, total = _Call(f, params, chunk).added()
        if not any(np.isnan(array).any() for array in (values, *total)):
            return Summed(values, total, {})
    except MemoryError:
        raise
    except Exception:
        pass  # each sample is tried by itself below
    parts, totals, failures = [], [], {}
    count = samples_of(chunk)
    for start in range(0, count, most):
        part = compute(f, params, rows(chunk, start, start + most), ["params"])
        good = np.array([k not in part.failures for k in range(len(part.values))])
        parts.append(part.values)
        totals.append([array[good].sum(0) for array in (part.values, *part.gradients)])
        failures.update({start + k: reason for k, reason in part.failures.items()})
    return Summed(np.concatenate(parts), [np.sum(column, axis=0) for column in zip(*totals, strict=True)], failures)


def samples_of(chunk: Any) -> int:
    """How many samples a run has."""
    return len(_tree.flatten(chunk)[0][0])


def rows(chunk: Any, start: int, stop: int) -> Any:
    """Some of the samples of a run."""
    return _tree.map_leaves(lambda array: array[start:stop], chunk)


def reason_of(error: Exception) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Call:
    # a function and the tensors it is given
    def __init__(self, f: Callable, params: Any, chunk: Any) -> None:
        self.f, self.chunk = f, chunk
        data = _tree.map_leaves(from_numpy, chunk)
        self.arguments: tuple = (data,) if params is None else (_tree.map_leaves(from_numpy, params), data)
        self.places = {"data": len(self.arguments) - 1, "params": 0}
        self.tensors = _tree.flatten(self.arguments)[0]
        self.versions = [t._version for t in self.tensors]

    def all_samples(self, wrt: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Values and gradients, by one run of the function."""
        both = value_and_grad(self.f, tuple(self.places[w] for w in wrt))
        values, gradients = vmap(both, (*[None] * (len(self.arguments) - 1), 0))(*self.arguments)
        self.check_unwritten()
        return _array(values), [_array(g) for g in _tree.flatten(gradients)[0]]

    def added(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Values, and the sum of values and of gradients, by one run of the function."""

        def total(params: Any) -> tuple[Tensor, Tensor]:
            values = vmap(self.f, (None, 0))(params, self.arguments[1])
            return values.sum(), values

        (added, values), gradient = value_and_grad(total, has_aux=True)(self.arguments[0])
        self.check_unwritten()
        if values.ndim != 1:
            raise RuntimeError("the function returns no scalar")
        return _array(values), [_array(t) for t in (added, *_tree.flatten(gradient)[0])]

    def one_by_one(self, wrt: Sequence[str]) -> Computed:
        """Values and gradients, by calling the function once a sample."""
        both = value_and_grad(self.f, tuple(self.places[w] for w in wrt))
        results: dict[int, list[np.ndarray]] = {}
        failures: dict[int, str] = {}
        count = samples_of(self.chunk)
        for k in range(count):
            sample = _tree.map_leaves(lambda t: t[k], self.arguments[-1])  # noqa: B023 - called at once
            try:
                value, gradients = both(*self.arguments[:-1], sample)
                results[k] = [_array(t) for t in (value, *_tree.flatten(gradients)[0])]
            except MemoryError:
                raise
            except Exception as error:
                if str(error) in (LEAF_IN_PLACE, LEAF_VIEW_IN_PLACE):  # what is differentiated is a leaf
                    raise WritesToInput(WritesToInput.message) from None
                failures[k] = reason_of(error)
            self.check_unwritten()
        columns = self._columns(results, wrt, count)
        nans = _not_a_number(columns[0], columns[1:], self.chunk)
        failures = {k: failures.get(k, nans[k]) for k in sorted(nans)}
        for k in failures:
            for column in columns:
                column[k] = np.nan
        return Computed(columns[0], columns[1:], failures)

    def _columns(self, results: dict[int, list[np.ndarray]], wrt: Sequence[str], count: int) -> list[np.ndarray]:
        # NaN where a call failed; a gradient has the shape and dtype of what it is taken with respect to
        first = next(iter(results.values()), [np.zeros(())])
        like = [(first[0].shape, first[0].dtype)]
        for w in wrt:
            leaves = _tree.flatten(self.arguments[self.places[w]])[0]
            arrays = [t.detach().numpy() for t in leaves]
            like += [(a.shape[1:] if w == "data" else a.shape, a.dtype) for a in arrays]
        columns = [np.full((count, *shape), np.nan, dtype) for shape, dtype in like]
        for k, row in results.items():
            for column, array in zip(columns, row, strict=True):
                column[k] = array
        return columns

    def check_unwritten(self) -> None:
        """Refuse a function that wrote to what it was given."""
        if [t._version for t in self.tensors] != self.versions:
            raise WritesToInput(WritesToInput.message)


class WritesToInput(RuntimeError):
    """A function writes to its arguments."""

    message = (
        "batch: the function writes to its inputs, which other samples and later runs see too; compute a new tensor instead "
        "(x = x + 1, not x += 1), or write to a copy (x.clone())"
    )


def _array(t: Tensor) -> np.ndarray:
    return np.array(t.detach().numpy())  # memory of its own, to be written to


def _not_a_number(values: np.ndarray, gradients: Sequence[np.ndarray], chunk: Any) -> dict[int, str]:
    # samples whose value or gradient holds NaN, and why
    if not any(array.size and np.isnan(array.min()) for array in (values, *gradients)):
        return {}
    found = {}
    of_data = [leaf for leaf in _tree.flatten(chunk)[0] if leaf.dtype.kind == "f"]
    bad = np.isnan(values)
    for gradient in gradients:
        bad = bad | np.isnan(gradient).reshape(len(values), -1).any(1)
    for k in np.flatnonzero(bad):
        what = "the value is NaN" if np.isnan(values[k]) else "the gradient is NaN"
        given = any(np.isnan(leaf[k]).any() for leaf in of_data)
        found[int(k)] = f"{what}: the sample itself holds NaN" if given else what
    return found
