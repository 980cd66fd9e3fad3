"""The files of a job: begun, resumed, written to, committed and finished."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapegrad import _tree
from tapegrad.batch._fingerprint import differences
from tapegrad.batch._job import Job, Piece
from tapegrad.batch._journal import Committed, Failure, Journal, as_ranges
from tapegrad.batch._reduction import PairwiseSum
from tapegrad.batch._sinks import Column, Sink, open_sink, remove, save_tree


class Outputs:
    """The sinks of a job, its journal, and the file of a reduced gradient, which is written once at the end.

    Args:
        job: what is computed.
        out: path of the gradients.
        values: path of the values.

    Attributes:
        failures: samples that failed among those committed.
        journal: None where there is no file to be written.
    """

    def __init__(self, job: Job, out: str | None, values: str | None) -> None:
        self.job, self.out, self.values = job, out, values
        samples, block = job.data.samples, job.block
        self.failures: list[Failure] = []
        self.sums = PairwiseSum()
        self.finished = False
        self._begun = False
        self.of_values: Sink | None = None
        self.of_gradients: Sink | None = None
        if values is not None:
            self.of_values = open_sink(
                values, [Column("values", (), job.calculation.value_dtype)], samples, block, joined=False
            )
        if out is not None and job.reduce is None:
            self.of_gradients = open_sink(out, job.columns, samples, block)
        self.sinks = [s for s in (self.of_values, self.of_gradients) if s is not None]
        anchor = out or values
        self.journal = None if anchor is None else Journal(anchor + ".journal")

    def begin(self, resume: bool, on_error: str) -> Committed:
        """Go on with a job, or start one; returns how far it is."""
        nothing = Committed(0, [], [], False)
        if self.journal is None:
            return nothing
        if resume and os.path.exists(self.journal.path):
            return self._resume(self.journal, on_error)
        for path in (self.out, self.values):
            if resume and path is not None and os.path.lexists(path):
                raise FileExistsError(
                    errno.EEXIST,
                    "batch: cannot resume: the output exists, but no journal beside it tells what it was made of; start afresh with "
                    "overwrite=True",
                    path,
                )
        self._check_room()
        description = self._describe()
        self.journal.create(description)
        self._begun = True
        for path in (self.out, self.values):
            if path is not None:
                remove(path + ".part")
        for sink in self.sinks:
            sink.create()
        return nothing

    def _describe(self) -> dict[str, str]:
        base = os.path.dirname(os.path.abspath(self.out or self.values or ""))
        return {
            "out": str(self.out and os.path.basename(self.out)),
            "values": str(self.values and os.path.relpath(self.values, base)),
            **self.job.describe(),
        }

    def _resume(self, journal: Journal, on_error: str) -> Committed:
        before, done = journal.resume()
        changed = differences(before, self._describe())
        if changed:
            raise ValueError(
                f"batch: cannot resume {self.out or self.values}, which was begun by another job: {'; '.join(changed)}. Run the same job "
                "to go on, or start afresh with overwrite=True"
            )
        if done.failures and on_error == "raise":
            first = done.failures[0]
            raise ValueError(
                f"batch: cannot resume with on_error='raise': sample {first.start:,} failed ({first.reason}) and was passed over with "
                "on_error='nan'; resume with that, or start afresh with overwrite=True"
            )
        for sink in self.sinks:
            if not done.samples and not done.finished:
                sink.create()
            elif os.path.exists(sink.part):
                sink.check()
            elif done.samples < self.job.data.samples or not os.path.exists(sink.path):
                raise FileNotFoundError(f"batch: cannot resume: {sink.part} is gone; start afresh with overwrite=True")
        self.failures = done.failures
        self.sums = PairwiseSum(done.sums)
        self.finished, self._begun = done.finished, True
        return done

    def _check_room(self) -> None:
        for sink in self.sinks:
            room = shutil.disk_usage(os.path.dirname(sink.path) or ".")
            if Path(sink.path).suffix == ".npy" and room.free < sink.bytes:
                raise OSError(
                    errno.ENOSPC,
                    f"batch: the disk has no room for the output: it needs {sink.bytes:,} bytes, and {room.free:,} are free",
                    sink.path,
                )

    def write(self, first: int, values: np.ndarray, lines: np.ndarray) -> None:
        """Write some samples to the sinks, from any process."""
        if self.of_values is not None:
            self.of_values.write(first, values)
        if self.of_gradients is not None:
            self.of_gradients.write(first, lines)

    def write_piece(self, piece: Piece) -> Piece:
        """Write what a piece holds; returns what is left to note of it."""
        for block in piece.blocks:
            self.write(*block)
        return piece._replace(blocks=[])

    def work(self, start: int, stop: int) -> Piece:
        """Compute and write a piece; with a failing sample in it, it is not known yet whether it will be committed."""
        return self.job.run(start, stop, write=self.write)

    def commit(self, pieces: Sequence[Piece]) -> None:
        """Note that neighbouring pieces are done, once they are on disk."""
        failures = as_ranges(f for piece in pieces for f in piece.failures)
        for piece in pieces:
            for node in piece.sums:
                self.sums.add(node)
        if self.journal is not None:
            for sink in self.sinks:
                sink.sync(pieces[0].start, pieces[-1].stop)
            self.journal.commit(pieces[-1].stop, failures, self.sums.nodes())
        self.failures += failures

    def finish(self) -> tuple[float | None, Any]:
        """Give the outputs their final names; returns the reduced value and gradient, if there are some."""
        value, gradient = None, None
        if self.job.reduce:
            value, gradient = self.job.result(self.sums, sum(f.stop - f.start for f in self.failures))
        if self.finished:
            return value, gradient
        for sink in self.sinks:
            sink.finish()
        if self.job.reduce and self.out is not None:
            save_tree(self.out, self.job.columns, _tree.flatten(gradient)[0])
        if self.journal is not None:
            self.journal.finish()
        return value, gradient

    def release(self) -> None:
        """In a process that only computes: let go of the journal."""
        if self.journal is not None:
            self.journal.close()

    def close(self) -> None:
        """Let others at the job. One of which nothing is committed leaves nothing behind."""
        if self.journal is None:
            return
        if self._begun and not self.journal.committed():
            self.journal.remove()
            for path in (self.out, self.values):
                if path is not None:
                    remove(path + ".part")
        self.journal.close()
