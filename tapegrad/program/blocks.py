"""Programs of blocks of samples, run over many samples on all cores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tapegrad import _tree
from tapegrad.autograd.watching import timer_of_thread
from tapegrad.engine.programs import FINISHED
from tapegrad.engine.runtime import address_of_array, rt
from tapegrad.func._computing import noting_failures
from tapegrad.program.capture import Argument, Captured
from tapegrad.program.draws import DrawnForSamples
from tapegrad.program.fusion import Fusing
from tapegrad.program.native import ALONE, Native, Replica
from tapegrad.program.program import KernelRaised, address_of
from tapegrad.program.values import Code, Guard

_WORTH_THREADS = 1 << 19  # bytes


class Result(NamedTuple):
    """One result of a function, for one sample."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Path:
    """A program of one block of samples, all of which take the path of the one it was captured along.

    Attributes:
        block: number of samples.
        results: of the function, for one sample.
        structure: of the results.
        looked_at: what the function looked at, after the results: for one sample, its bytes.
        steered: whether other values may take another path.
        tracked: whether a gradient flows through a result.
        replays: how many blocks it ran.
    """

    def __init__(
        self, code: Code, block: int, structure: _tree.Structure, looked_at: Sequence[bytes], tracked: bool
    ) -> None:
        self.code, self.block, self.structure, self.tracked = code, block, structure, tracked
        self.native = Native(code)
        self._fusing = Fusing(code)
        outputs = [Result(tuple(v.shape[1:]), v.dtype.numpy) for v in code.outputs]
        count = len(outputs) - len(looked_at)
        self.results, self.guards = outputs[:count], outputs[count:]
        self.steered = bool(looked_at) or any(isinstance(s, Guard) for s in code.steps)
        self.looked_at = [np.frombuffer(expected, np.uint8) for expected in looked_at]
        self.outside = [(k, v.source) for k, v in enumerate(code.inputs) if isinstance(v.source, Captured)]
        self.arguments = [(k, v.source.position) for k, v in enumerate(code.inputs) if isinstance(v.source, Argument)]
        self.drawn = [(k, v.source) for k, v in enumerate(code.inputs) if isinstance(v.source, DrawnForSamples)]
        self.replays = 0
        self._pool: list[Replica] = []

    def same(self, found: Sequence[np.ndarray], count: int) -> np.ndarray:
        """Which of some samples take this path, by what they had where the function looked."""
        good = np.ones(count, bool)
        for array, expected in zip(found, self.looked_at, strict=True):
            good &= (array.reshape(len(array), -1).view(np.uint8) == expected).all(1)
        return good

    def kept_of_sample(self) -> int:
        """Bytes of memory that one sample takes in a replica, which a block had better find in the cache."""
        return max(self.native.arena // self.block, 1)

    def nbytes_of_sample(self) -> int:
        """Bytes of memory that one sample takes in a replica and among the results."""
        return self.kept_of_sample() + sum(v.nbytes() for v in self.code.outputs) // self.block

    def run(
        self,
        sources: Sequence[np.ndarray],
        mapped: Sequence[bool],
        count: int,
        outs: list[np.ndarray],
        draws: Sequence[np.ndarray] = (),
        raised: np.ndarray | None = None,
    ) -> bool:
        """Run on some samples.

        Args:
            sources: the data among the arguments, contiguous.
            mapped: which of them have samples along their first axis.
            count: number of samples.
            outs: where results go, and what was looked at, with samples along the first axis.
            draws: the random numbers, in order; contiguous.
            raised: if given, samples that an exception is raised for, which may be since they do not take this path, are set in it.

        Returns:
            Whether what the function looked at outside of the samples is what it was.

        Raises:
            Outdated: if a tensor from outside has another shape or dtype.
            KernelRaised: if compiled code of the user raised an exception.
        """
        first, last = np.zeros((2, self.native.given), np.int64)
        step = np.zeros(self.native.given, np.int64)
        for k, source in self.outside:
            first[k] = address_of(source)
        for k, p in self.arguments:
            first[k] = address_of_array(sources[p])
            step[k] = sources[p].strides[0] if mapped[p] else 0
        for (k, numbers), array in zip(self.drawn, draws, strict=True):
            first[k] = address_of_array(array)
            step[k] = array.strides[0] if numbers.mapped else 0
        end = count - self.block
        rest = count % self.block
        last[:] = first + end * step
        tails = [np.empty((self.block, *a.shape[1:]), a.dtype) for a in outs] if rest else []
        start = len(self.code.inputs)
        for j, array in enumerate(outs):
            first[start + j], step[start + j] = address_of_array(array), array[:1].nbytes
            if rest:
                last[start + j] = address_of_array(tails[j])
        blocks = count // self.block
        self.replays += blocks + (rest > 0)
        self._fuse(self.replays)

        def run(some: range) -> bool:
            at = some.start * self.block
            return self._run(first + at * step, self.block * step, len(some), at, raised)

        done = all(_shared_out(run, range(blocks), count * self.nbytes_of_sample() > _WORTH_THREADS))
        if rest:  # the last block begins early, so that it is whole
            done = self._run(last, step, 1, end, raised) and done
        for array, tail in zip(outs, tails, strict=bool(rest)):
            array[count - rest :] = tail[self.block - rest :]
        return done

    def is_fused(self) -> bool:
        """Whether it runs with loops compiled for it."""
        return self.native.code is not self.code

    def expect(self, samples: int) -> None:
        """Have loops compiled for it now, if so many more samples would have that done on the way."""
        self._fuse(self.replays + samples // self.block)

    def _fuse(self, runs: int) -> None:
        code = self._fusing.ask(runs) if runs >= self._fusing.due else None
        if code is not None:
            self.native, self._pool = Native(code), []

    def _run(self, first: np.ndarray, moves: np.ndarray, count: int, at: int, raised: np.ndarray | None) -> bool:
        # some blocks, the first at some addresses and with some sample
        try:
            replica = self._pool.pop()
        except IndexError:  # others use them all
            replica = Replica(self.native, ALONE)
        replica.addresses[: len(first)] = first
        if raised is not None and self.native.calls:
            answer = self._run_apart(replica, moves, count, at, raised)
        else:
            answer = replica.run_blocks(moves, count)
        if answer != FINISHED:
            if not isinstance(replica.stopped(), Guard):
                raise KernelRaised
            return False
        self._pool.append(replica)
        return True

    def _run_apart(self, replica: Replica, moves: np.ndarray, count: int, at: int, raised: np.ndarray) -> int:
        # as the replica's `run_blocks`, with what raises noted
        for first in range(at, at + count * self.block, self.block):
            try:
                with noting_failures() as noted:
                    answer = replica.run()
            except Exception:  # of what the samples share
                answer, noted = FINISHED, set(range(self.block))
            raised[[first + k for k in noted]] = True
            if answer != FINISHED:
                return answer
            replica.addresses += moves
        return FINISHED


# threads


_workers: list[ThreadPoolExecutor] = []


def _shared_out(function: Callable[[range], bool], jobs: range, worthwhile: bool) -> list[bool]:
    """Call a function with equal parts of some jobs, one part a core where that is worthwhile."""
    alone = not worthwhile or timer_of_thread() is not None  # who times sees one thread
    threads = 1 if alone else min(int(rt.state.threads), len(jobs))
    if threads <= 1:
        return [function(jobs)]
    if not _workers:
        _workers.append(ThreadPoolExecutor(int(rt.state.threads), thread_name_prefix="tapegrad-lanes"))
    edges = [len(jobs) * n // threads for n in range(threads + 1)]
    parts = [jobs[a:b] for a, b in itertools.pairwise(edges)]
    waiting = [_workers[0].submit(function, part) for part in parts[1:]]
    try:
        found = [function(parts[0])]
    finally:
        others = [w.exception() for w in waiting]  # nobody writes to the results any more
    for error in others:
        if error is not None:
            raise error
    return [*found, *(w.result() for w in waiting)]
