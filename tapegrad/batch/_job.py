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
from tapegrad.batch._chunk import Calculation, Computed, WritesToInput, rows
from tapegrad.batch._fingerprint import describe_function, describe_params
from tapegrad.batch._reduction import Node, PairwiseSum
from tapegrad.batch._sinks import Column
from tapegrad.batch._sources import Data
from tapegrad.engine.blas import one_thread
from tapegrad.tensor import Tensor

# A block is what is computed at once. It depends on the job alone, and so do all results: neither the size of chunks nor the number of
# workers changes a bit of them. What is read and written for a block stays in the cache that cores share; more than 65,536 samples gain
# nothing. What cannot be recorded has intermediate values of all samples of a block in memory. 256 calls take a tenth of a second.
_BLOCK_BYTES, _MOST_IN_BLOCK, _MOST_MAPPED_IN_BLOCK, _MOST_CALLS_IN_BLOCK = 16 << 20, 1 << 16, 1 << 12, 1 << 8
_BLOCKS_IN_CHUNK = 4
# samples among which one is looked for that works, and those that tell whether paths are worth recording
_TRIED, _TOLD = 64, 32

# takes the first sample of a block, the values and the lines
Write = Callable[[int, np.ndarray, np.ndarray], None]


class Piece(NamedTuple):
    """What became of a run of samples.

    Attributes:
        start: the first of them.
        stop: one after the last.
        sums: with a reduction, what the blocks add up to.
        failures: samples that failed, and why.
        blocks: first sample, values and lines of each block, as far as these are not written yet.
    """

    start: int
    stop: int
    sums: list[Node]
    failures: list[tuple[int, str]]
    blocks: list[tuple[int, np.ndarray, np.ndarray]]


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
        self._samples = data.samples
        with _turn, one_thread():
            self.tried, self._sample, value_dtype, self._known = self._try(skip)
            self.calculation = Calculation(f, params, self.wrt, value_dtype)
            of_gradient = sum(c.size * c.dtype.itemsize for c in self.columns)
            count = min(_TOLD, _fitting(data.sample_bytes + of_gradient, _MOST_IN_BLOCK), data.samples)
            pairs = zip(_tree.flatten(self._sample)[0], _tree.flatten(data.read(0, count))[0], strict=True)
            told = _tree.unflatten([np.concatenate(pair) for pair in pairs], data.structure)
            recorded = self.calculation.settle(told)
        by_one = self.calculation.by_one
        most = min(
            _MOST_IN_BLOCK, _MOST_CALLS_IN_BLOCK if by_one else _MOST_IN_BLOCK if recorded else _MOST_MAPPED_IN_BLOCK
        )
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
            "number of samples added up at a time": str(self.calculation.run if self.reduce else 1),
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

    def run(self, start: int, stop: int, chunk: Any = None, write: Write | None = None) -> Piece:
        """Compute a run of samples.

        Args:
            start: the first sample, a multiple of the block.
            stop: one after the last.
            chunk: the samples, if they are read already.
            write: takes what each block gives, from its first sample on; without it, that is kept in the piece.
        """
        self.prepare()
        with _turn, one_thread():
            sums = PairwiseSum()
            blocks: list[tuple[int, np.ndarray, np.ndarray]] = []
            failures: list[tuple[int, str]] = []
            for first in range(start, stop, self.block):
                last = min(first + self.block, stop)
                part = self.data.read(first, last) if chunk is None else rows(chunk, first - start, last - start)
                done: Any
                if self.reduce:
                    done = self.calculation.compute_sum(part, self._most)
                    sums.add(Node(0, first // self.block, done.total))
                    lines = np.empty((len(done.values), 0))
                else:
                    done = self.calculation.compute(part)
                    lines = done.lines
                if write is None:
                    blocks.append((first, done.values.copy(), lines.copy()))
                else:
                    write(first, done.values, lines)
                failures += [(first + k, reason) for k, reason in done.failures.items()]
            self._check_steady(stop)
        return Piece(start, stop, sums.nodes(), failures, blocks)

    def prepare(self) -> None:
        """Record the function in this process: along one and the same sample everywhere, whatever the process computes then."""
        with _turn, one_thread():
            if self.calculation.recorded:
                return
            self.calculation.recorded = True
            alike = _tree.map_leaves(lambda a: np.repeat(a, min(self.block, self._samples), 0), self._sample)
            if self.reduce:
                self.calculation.compute_sum(alike, self._most)
            else:
                self.calculation.compute(alike)
            self.calculation.expect(self._samples)

    def result(self, sums: PairwiseSum, failed: int) -> tuple[float, Any]:
        """The reduced value and gradient, the latter in the structure of the parameters."""
        count = self.data.samples - failed if self.reduce == "mean" else 1
        with np.errstate(invalid="ignore"):  # the mean of no samples is NaN
            value, line = (np.asarray(a / a.dtype.type(count)) for a in sums.total())
        parts = np.split(line, np.cumsum([c.size for c in self.columns])[:-1])
        leaves = [a.reshape(c.shape).astype(c.dtype) for a, c in zip(parts, self.columns, strict=True)]
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
            done, value_dtype = self._one(sample)
            if done.failures:
                reasons.append(done.failures[0])
                continue
            known = _hash(done)
            if _hash(self._one(sample)[0]) != known:
                raise RuntimeError(
                    f"batch: the function gives two results for sample {k} when called twice: it uses random numbers, or state that "
                    "changes; let it depend on params and sample alone"
                )
            return k, sample, value_dtype, known
        if not skip:
            raise RuntimeError(failed(0, reasons[0]))
        raise RuntimeError(f"batch: the function fails on each of the first {len(reasons)} samples: {reasons[0]}")

    def _one(self, chunk: Any) -> tuple[Computed, np.dtype]:
        # one sample, by a call that tells a wrong result from a failing one; and the dtype of its value
        wrong: list[Exception] = []
        found_dtypes = [np.dtype(np.float64)]
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
            found_dtypes.append(y.dtype.numpy)
            return y

        done = self._alone(checked, chunk)
        if wrong:
            raise wrong[0]
        if before != [None if a is None else a.tobytes() for a in given]:
            raise WritesToInput(WritesToInput.message)
        return done, found_dtypes[-1]

    def _alone(self, f: Callable, chunk: Any) -> Computed:
        # what eager calls give
        eager = Calculation(f, self.params, self.wrt)
        eager.by_one = True
        return eager.compute(chunk)

    def _check_steady(self, stop: int) -> None:
        # state that changed since the job began would make results depend on their order
        if _hash(self._alone(self.f, self._sample)) != self._known:
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
    for array in (done.values, done.lines):
        found.update(array.tobytes())
    return found.hexdigest()
