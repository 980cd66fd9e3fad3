"""A job: a function, its parameters, the data, what is asked for, and the work on a run of samples."""

from __future__ import annotations

import hashlib
import inspect
import platform
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from tapegrad import _tree
from tapegrad.batch._chunk import Computed, WritesToInput, compute, compute_each, compute_sum, rows, steered_by_values
from tapegrad.batch._fingerprint import describe_function, describe_params
from tapegrad.batch._reduction import Node, PairwiseSum
from tapegrad.batch._sinks import Column
from tapegrad.batch._sources import Data
from tapegrad.tensor import Tensor

# A block is what is computed at once. It depends on the job alone, and so do all results: neither the size of chunks nor the number of
# workers changes a bit of them. 2 MiB stay in a core's cache; more than 16,384 samples gain nothing. 256 calls take a tenth of a second.
_BLOCK_BYTES, _MOST_IN_BLOCK, _MOST_CALLS_IN_BLOCK = 2 << 20, 1 << 14, 1 << 8
_BLOCKS_IN_CHUNK = 8
_TRIED = 64


class Piece(NamedTuple):
    """What became of a run of samples.

    Attributes:
        start: the first of them.
        stop: one after the last.
        values: one a sample; None once they are written.
        gradients: the leaves, one line a sample; None once they are written, or with a reduction.
        sums: with a reduction, what the blocks add up to.
        failures: samples that failed, and why.
    """

    start: int
    stop: int
    values: np.ndarray | None
    gradients: list[np.ndarray] | None
    sums: list[Node]
    failures: list[tuple[int, str]]


class Job:
    """A batch gradient job.

    Args:
        f: ``f(params, sample)``, or ``f(sample)`` where `params` is None.
        params: a tree of arrays, or None.
        data: the samples.
        wrt: what to differentiate with respect to.
        reduce: None, "sum" or "mean".
        skip: whether samples that fail are passed over.

    Raises:
        TypeError: if the function does not take these arguments, or returns no scalar.
        RuntimeError: if it writes to its arguments, depends on state that changes, or fails.
    """

    def __init__(
        self, f: Callable, params: Any, data: Data, wrt: Sequence[str], reduce: str | None, skip: bool
    ) -> None:
        self.f, self.params, self.data, self.wrt, self.reduce = f, params, data, tuple(wrt), reduce
        self.columns = self._columns()
        self.function = describe_function(f)  # before it is first called, which may change what it closes over
        self._check_signature()
        self.tried, self._sample, self.value_dtype, self._known = self._try(skip)
        most = _MOST_IN_BLOCK
        if steered_by_values(f, params, self._sample, self.wrt):
            most = min(most, _MOST_CALLS_IN_BLOCK)
        of_gradient = sum(c.size * c.dtype.itemsize for c in self.columns)
        self.block = _fitting(data.sample_bytes + (0 if reduce else of_gradient), most)
        self._most = _fitting(data.sample_bytes + of_gradient, most)

    def describe(self) -> dict[str, str]:
        """All that results depend on, hashed, by name."""
        return {
            "tapegrad": version("tapegrad"),
            "Python": platform.python_version().rpartition(".")[0],
            "wrt": ", ".join(self.wrt),
            "reduce": str(self.reduce),
            "number of samples in a block": str(self.block),
            **({} if self.params is None else describe_params(self.params)),
            **self.data.describe(),
            **self.function,
            f"the result of the function for sample {self.tried}": self._known,
        }

    def chunk_size(self, asked: int | str, workers: int) -> int:
        """How many samples are committed at once: a number of whole blocks."""
        blocks = -(-self.data.samples // self.block)
        if isinstance(asked, str):
            return max(1, min(_BLOCKS_IN_CHUNK, blocks // (4 * workers))) * self.block
        return -(-asked // self.block) * self.block

    def run(self, start: int, stop: int, chunk: Any = None) -> Piece:
        """Compute a run of samples.

        Args:
            start: the first sample, a multiple of the block.
            stop: one after the last.
            chunk: the samples, if they are read already.
        """
        with _turn:
            if chunk is None:
                chunk = self.data.read(start, stop)
            sums = PairwiseSum()
            values, gradients, failures = [], [], []
            for first in range(start, stop, self.block):
                part = rows(chunk, first - start, first - start + self.block)
                done: Any
                if self.reduce:
                    done = compute_sum(self.f, self.params, part, self._most)
                    sums.add(Node(0, first // self.block, done.total))
                else:
                    done = compute(self.f, self.params, part, self.wrt)
                    gradients.append(done.gradients)
                values.append(done.values)
                failures += [(first + k, reason) for k, reason in done.failures.items()]
            self._check_steady(stop)
        joined = [np.concatenate(column) for column in zip(*gradients, strict=True)]
        return Piece(start, stop, np.concatenate(values), joined, sums.nodes(), failures)

    def result(self, sums: PairwiseSum, failed: int) -> tuple[float, Any]:
        """The reduced value and gradient, the latter in the structure of the parameters."""
        count = self.data.samples - failed if self.reduce == "mean" else 1
        with np.errstate(invalid="ignore"):  # the mean of no samples is NaN
            value, *leaves = (np.asarray(a / a.dtype.type(count)) for a in sums.total())
        leaves = [a.astype(c.dtype, copy=False) for a, c in zip(leaves, self.columns, strict=True)]
        return float(value), _tree.unflatten(leaves, _tree.flatten(self.params)[1])

    def _columns(self) -> list[Column]:
        found = []
        for w in self.wrt:
            if w == "params":
                found += [(name, a.shape, a.dtype) for name, a in _tree.named_leaves(self.params, "params")]
            else:
                tree = _tree.unflatten(self.data.sources, self.data.structure)
                found += [(name, s.shape[1:], s.dtype) for name, s in _tree.named_leaves(tree, "data")]
        for name, _, dtype in found:
            if dtype.kind != "f" or dtype.itemsize < 4:
                raise TypeError(
                    f"batch: cannot differentiate with respect to {name}, which has dtype {dtype}; store it as float32 or float64, or "
                    "choose another wrt"
                )
        plain = [name.replace("['", ".").replace("']", "").replace("[", ".").replace("]", "") for name, _, _ in found]
        if len(self.wrt) == 1:  # the leaves of one tree need not say which
            plain = [name.partition(".")[2] or name for name in plain]
        return [Column(name, tuple(shape), dtype) for name, (_, shape, dtype) in zip(plain, found, strict=True)]

    def _check_signature(self) -> None:
        if not callable(self.f):
            raise TypeError(f"batch: the function is a {type(self.f).__name__}, which cannot be called")
        given = ("sample",) if self.params is None else ("params", "sample")
        try:
            inspect.signature(self.f).bind(*given)
        except TypeError as error:
            raise TypeError(
                f"batch: the function is called as f({', '.join(given)}), {'without' if self.params is None else 'with'} params, but "
                f"does not take these arguments: {error}"
            ) from None
        except ValueError:  # one that tells nothing about its arguments
            pass

    def _try(self, skip: bool) -> tuple[int, Any, np.dtype, str]:
        # the first sample that works: its number, elements, the dtype of its value, and a hash of its results
        reasons = []
        for k in range(min(_TRIED if skip else 1, self.data.samples)):
            sample = self.data.read(k, k + 1)
            done = self._one(sample)
            if done.failures:
                reasons.append(done.failures[0])
                continue
            known = _hash(done)
            if _hash(self._one(sample)) != known:
                raise RuntimeError(
                    f"batch: the function gives two results for sample {k} when called twice: it uses random numbers, or state that "
                    "changes; let it depend on params and sample alone"
                )
            return k, sample, done.values.dtype, known
        if not skip:
            raise RuntimeError(failed(0, reasons[0]))
        raise RuntimeError(f"batch: the function fails on each of the first {len(reasons)} samples: {reasons[0]}")

    def _one(self, chunk: Any) -> Computed:
        # one sample, by a call that tells a wrong result from a failing one
        wrong: list[Exception] = []
        given = _tree.flatten((self.params, chunk))[0]
        before = [None if a is None else a.tobytes() for a in given]

        def checked(*arguments: Any) -> Any:
            y = self.f(*arguments)
            if not isinstance(y, Tensor) or y.ndim or not y.dtype.is_floating_point:
                found = f"a tensor of shape {list(y.shape)} and dtype {y.dtype}" if isinstance(y, Tensor) else type(y)
                wrong.append(
                    TypeError(
                        f"batch: the function must return a scalar, a floating tensor of shape [], for each sample, but returned {found}; "
                        "reduce it, for example with .sum()"
                    )
                )
                raise wrong[0]
            return y

        done = compute_each(checked, self.params, chunk, self.wrt)
        if wrong:
            raise wrong[0]
        if before != [None if a is None else a.tobytes() for a in given]:
            raise WritesToInput(WritesToInput.message)
        return done

    def _check_steady(self, stop: int) -> None:
        # state that changed since the job began would make results depend on their order
        if _hash(compute_each(self.f, self.params, self._sample, self.wrt)) != self._known:
            raise RuntimeError(
                f"batch: before sample {stop:,} the function began to give another result for sample {self.tried} than at the start: it "
                "depends on state that changes (or this worker's processor computes otherwise); let it depend on params and sample alone"
            )


_turn = threading.Lock()  # threads share the tape


def failed(k: int, reason: str) -> str:
    """What to say of a sample that ends a job."""
    return (
        f"batch: the function fails on sample {k:,}: {reason}; mend the sample or the function and start afresh, or have NaN written for "
        "such samples and list them: on_error='nan'"
    )


def _fitting(size: int, most: int) -> int:
    # the largest power of two of samples of this size that make a block
    return 1 << min(max(_BLOCK_BYTES // max(size, 1), 1), most).bit_length() - 1


def _hash(done: Computed) -> str:
    found = hashlib.sha256()
    for array in (done.values, *done.gradients):
        found.update(array.tobytes())
    return found.hexdigest()
