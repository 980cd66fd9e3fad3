"""The engine of a batch job: values and gradients of a function for a run of samples.

The function is recorded once in each process and replayed over all samples of a run (see `program.Lanes`). Where it cannot be
recorded, or fails, it is called sample by sample, so that what comes out is what eager execution gives. Which of these happens, and
which samples are computed together, depends on the samples of the run alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad import _tree, dtypes
from tapegrad.creation import from_numpy
from tapegrad.errors import LEAF_IN_PLACE, LEAF_VIEW_IN_PLACE
from tapegrad.func import value_and_grad, vmap
from tapegrad.ops._rule import PUBLIC
from tapegrad.program import Lanes
from tapegrad.tensor import Tensor

# where something fails, so many samples are searched for it one by one
_SEARCHED = 64
# samples whose gradients are added up within a program: many make a large product, but 16 runs and more share a cache
_FEWEST_IN_RUN, _MOST_IN_RUN, _RUNS_BYTES = 16, 256, 1 << 20


class Computed(NamedTuple):
    """What a run of samples gave.

    Attributes:
        values: one a sample, NaN where the function failed.
        lines: the leaves of each sample's gradient, flattened and joined in tree order; NaN where the function failed.
        failures: why it failed, by number of the sample within the run.
    """

    values: np.ndarray
    lines: np.ndarray
    failures: dict[int, str]


class Summed(NamedTuple):
    """What a run of samples adds up to.

    Attributes:
        values: one a sample, NaN where the function failed.
        total: the sum of the values, and that of the gradients' lines; samples that failed are left out.
        failures: why it failed, by number of the sample within the run.
    """

    values: np.ndarray
    total: list[np.ndarray]
    failures: dict[int, str]


class Calculation:
    """A function's values and gradients, recorded once and replayed over any number of samples.

    Args:
        f: ``f(params, sample)``, or ``f(sample)`` where `params` is None; returns a scalar tensor.
        params: a tree of arrays, or None.
        wrt: what to differentiate with respect to, of "params" and "data".
        value_dtype: of the function's values.

    Attributes:
        by_one: whether each sample is computed by a call of its own, for a function that is not worth recording.
        run: how many samples are added up at a time.
        recorded: whether somebody had it recorded in this process.

    >>> import numpy as np, tapegrad as tg
    >>> of = Calculation(lambda w, x: (w * x).sum(), np.array([2.0, 3.0]), ["params"])
    >>> done = of.compute(np.array([[1.0, 4.0], [0.0, 1.0]]))
    >>> done.values.tolist(), done.lines.tolist()
    ([14.0, 3.0], [[1.0, 4.0], [0.0, 1.0]])
    >>> [array.tolist() for array in of.compute_sum(np.array([[1.0, 4.0], [0.0, 1.0]]), 8).total]
    [17.0, [1.0, 5.0]]
    """

    def __init__(self, f: Callable, params: Any, wrt: Sequence[str], value_dtype: Any = np.float64) -> None:
        self.f, self.params, self.wrt, self.value_dtype = f, params, tuple(wrt), np.dtype(value_dtype)
        self.by_one = False
        self.run = _MOST_IN_RUN
        self._place = {"params": 0, "data": 0 if params is None else 1}
        self._start()

    def _start(self) -> None:
        f, dims = self.f, (None,) * self._place["data"] + (0,)
        both = value_and_grad(f, tuple(self._place[w] for w in self.wrt))

        @functools.wraps(f)  # so that Lanes sees what f refers to
        def each(*arguments: Any) -> tuple[Tensor, Tensor]:
            value, gradients = both(*arguments)
            return value, _joined(gradients)

        def run(params: Any, samples: Any) -> tuple[Tensor, Tensor]:
            values = vmap(f, (None, 0))(params, samples)
            return values.sum(), values

        both_of_run = value_and_grad(run, has_aux=True)

        @functools.wraps(f)
        def added(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
            (total, values), gradient = both_of_run(*arguments)
            return values, total, _joined(gradient)

        self._both, self._each, self._added = both, Lanes(each, dims), Lanes(added, dims)
        self._room: list[np.ndarray] = []
        self.recorded = False

    def __getstate__(self) -> dict:
        # recorded anew in another process
        return {k: v for k, v in self.__dict__.items() if k not in ("_both", "_each", "_added", "_room", "recorded")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start()

    def expect(self, samples: int) -> None:
        """Say how many samples are to come, so that loops worth compiling for them are compiled before."""
        self._each.expect(samples)
        self._added.expect(samples // self.run)

    def compute(self, chunk: Any) -> Computed:
        """The value and gradient of the function for each sample of a run.

        Args:
            chunk: a tree of arrays with the samples along their first axis.

        Returns:
            Arrays that the next call writes to.

        Raises:
            WritesToInput: if the function writes to its arguments.
        """
        call = _Call(self, chunk)
        values, lines = self._outputs(call)
        failures: dict[int, str] = {}
        self._fill(call, values, lines, 0, failures)
        for k, reason in _not_a_number(values, lines, chunk).items():
            failures.setdefault(k, reason)
        for k in failures:
            values[k] = lines[k] = np.nan
        return Computed(values, lines, dict(sorted(failures.items())))

    def settle(self, chunk: Any) -> bool:
        """Find out from some samples whether to record the function, and how many samples to add up at a time.

        Returns:
            Whether it was recorded.
        """
        call = _Call(self, chunk)
        try:
            self._each(*call.arguments, out=list(self._outputs(call)), failed={})
            self.by_one = self._each.singles > call.count // 2
        except MemoryError:
            raise
        except Exception:
            self.by_one = True
        programs = self._each.programs()
        if programs:
            fitting = _RUNS_BYTES // (16 * programs[0].kept_of_sample())
            self.run = 1 << min(max(fitting, _FEWEST_IN_RUN), _MOST_IN_RUN).bit_length() - 1
        return bool(programs)

    def _outputs(self, call: _Call) -> tuple[np.ndarray, np.ndarray]:
        size, dtype = call.line
        if not self._room or len(self._room[0]) < call.count or self._room[1].shape[1] != size:
            self._room = [np.empty(call.count, self.value_dtype), np.empty((call.count, size), dtype)]
        return self._room[0][: call.count], self._room[1][: call.count]

    def _fill(self, call: _Call, values: np.ndarray, lines: np.ndarray, first: int, failures: dict[int, str]) -> None:
        if not self.by_one:
            try:
                failed: dict[int, Exception] = {}
                self._each(*call.arguments, out=[values, lines], failed=failed)
                call.check(*failed.values())
                failures.update({first + k: reason_of(error) for k, error in failed.items()})
                for k in failed:
                    values[k] = lines[k] = np.nan
                return
            except (MemoryError, WritesToInput):
                raise
            except Exception:
                pass  # found out about below
            if call.count > _SEARCHED:
                middle = call.count // 2
                self._fill(call.part(0, middle), values[:middle], lines[:middle], first, failures)
                self._fill(call.part(middle, call.count), values[middle:], lines[middle:], first + middle, failures)
                return
        for k in range(call.count):
            try:
                value, gradients = self._both(*call.sample(k))
                found = [t.detach().numpy() for t in (value, *_tree.flatten(gradients)[0])]
                values[k], lines[k] = found[0], np.concatenate([a.reshape(-1) for a in found[1:]])
            except MemoryError:
                raise
            except Exception as error:
                call.check(error)
                failures[first + k] = reason_of(error)
                values[k] = lines[k] = np.nan
            call.check()

    def compute_sum(self, chunk: Any, most: int) -> Summed:
        """The values of the function for each sample of a run, and the sum of the gradients with respect to `params`.

        Args:
            chunk: as for `compute`.
            most: of how many samples to hold single gradients, where they are needed to tell which sample failed.

        Raises:
            WritesToInput: as `compute`.
        """
        call = _Call(self, chunk)
        if not self.by_one:
            try:
                values, total = self._add(call)
                if not any(np.isnan(array).any() for array in (values, *total)):
                    return Summed(values, total, {})
            except (MemoryError, WritesToInput):
                raise
            except Exception:
                pass  # each sample is tried by itself below
        parts, totals, failures = [], [], {}
        for start in range(0, call.count, most):
            part = self.compute(rows(chunk, start, start + most))
            good = np.array([k not in part.failures for k in range(len(part.values))])
            parts.append(part.values.copy())
            totals.append([array[good].sum(0) for array in (part.values, part.lines)])
            failures.update({start + k: reason for k, reason in part.failures.items()})
        return Summed(np.concatenate(parts), [np.sum(column, axis=0) for column in zip(*totals, strict=True)], failures)

    def _add(self, call: _Call) -> tuple[np.ndarray, list[np.ndarray]]:
        # in runs of one length, and one of what is left
        size, dtype = call.line
        values = np.empty(call.count, self.value_dtype)
        totals = []
        whole = call.count - call.count % self.run
        for start, stop, length in ((0, whole, self.run), (whole, call.count, call.count - whole)):
            if start == stop:
                continue
            runs = call.in_runs(start, stop, length)
            sums = [np.empty(runs.count, self.value_dtype), np.empty((runs.count, size), dtype)]
            self._added(*runs.arguments, out=[values[start:stop].reshape(runs.count, length), *sums])
            runs.check()
            totals.append([array.sum(0) for array in sums])
        return values, [np.sum(column, axis=0) for column in zip(*totals, strict=True)]


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
    # a calculation's function, and the tensors it is given for some samples
    def __init__(self, calculation: Calculation, chunk: Any) -> None:
        self._calculation, self._chunk = calculation, chunk
        data = _tree.map_leaves(from_numpy, chunk)
        params = calculation.params
        self.arguments: tuple = (data,) if params is None else (_tree.map_leaves(from_numpy, params), data)
        self.count = samples_of(chunk)
        self._tensors = _tree.flatten(self.arguments)[0]
        self._versions = [t._version for t in self._tensors]

    @property
    def line(self) -> tuple[int, np.dtype]:
        """Numbers in a sample's gradient, and their dtype."""
        calculation = self._calculation
        leaves = [
            leaf[0] if w == "data" else leaf
            for w in calculation.wrt
            for leaf in _tree.flatten(calculation.params if w == "params" else self._chunk)[0]
        ]
        return sum(leaf.size for leaf in leaves), np.result_type(*(leaf.dtype for leaf in leaves))

    def sample(self, k: int) -> tuple:
        """The arguments for one sample."""
        return *self.arguments[:-1], _tree.map_leaves(lambda t: t[k], self.arguments[-1])

    def part(self, start: int, stop: int) -> _Call:
        """The call for some of the samples."""
        return _Call(self._calculation, rows(self._chunk, start, stop))

    def in_runs(self, start: int, stop: int, length: int) -> _Call:
        """The call for some of the samples, with runs of them in place of samples."""
        return _Call(
            self._calculation,
            _tree.map_leaves(lambda a: a[start:stop].reshape(-1, length, *a.shape[1:]), self._chunk),
        )

    def check(self, *errors: Exception) -> None:
        """Refuse a function that wrote to what it was given; what is differentiated is a leaf, on which that raises."""
        if [t._version for t in self._tensors] != self._versions or any(
            str(e) in (LEAF_IN_PLACE, LEAF_VIEW_IN_PLACE) for e in errors
        ):
            raise WritesToInput(WritesToInput.message)


class WritesToInput(RuntimeError):
    """A function writes to its arguments."""

    message = (
        "batch: the function writes to its inputs, which other samples and later runs see too; compute a new tensor instead "
        "(x = x + 1, not x += 1), or write to a copy (x.clone())"
    )


def _joined(tree: Any) -> Tensor:
    # the leaves of a gradient as one line
    leaves = [t.reshape(-1) for t in _tree.flatten(tree)[0]]
    if len(leaves) == 1:
        return leaves[0]
    dtype = functools.reduce(dtypes.promote_types, (t.dtype for t in leaves))
    return PUBLIC["cat"]([t.to(dtype) for t in leaves])


def _not_a_number(values: np.ndarray, lines: np.ndarray, chunk: Any) -> dict[int, str]:
    # samples whose value or gradient holds NaN, and why
    if not any(array.size and np.isnan(array.min()) for array in (values, lines)):
        return {}
    found = {}
    of_data = [leaf for leaf in _tree.flatten(chunk)[0] if leaf.dtype.kind == "f"]
    for k in np.flatnonzero(np.isnan(values) | np.isnan(lines).any(1)):
        what = "the value is NaN" if np.isnan(values[k]) else "the gradient is NaN"
        given = any(np.isnan(leaf[k]).any() for leaf in of_data)
        found[int(k)] = f"{what}: the sample itself holds NaN" if given else what
    return found
