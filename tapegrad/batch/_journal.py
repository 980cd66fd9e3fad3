"""The journal of a job: what it is, and how far it is on disk; one JSON value a line.

An entry is written after what it announces is on disk, and is itself on disk before the next chunk is announced. What a crash leaves of
an entry is no JSON, or has no end of line, and is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tapegrad.batch._reduction import Node


class Failure(NamedTuple):
    """Neighbouring samples that failed for the same reason.

    Attributes:
        start: the first of them.
        stop: one after the last.
        reason: why, in one line.
    """

    start: int
    stop: int
    reason: str


class Committed(NamedTuple):
    """How far a job is.

    Attributes:
        samples: how many are on disk.
        failures: those of them that failed.
        sums: what they add up to, empty without a reduction.
        finished: whether the outputs have their final names.
    """

    samples: int
    failures: list[Failure]
    sums: list[Node]
    finished: bool


class Journal:
    """A journal in a file beside the output.

    Args:
        path: of the journal.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: Any = None
        self._sums = ""

    def create(self, description: dict[str, str]) -> None:
        """Start the journal of a job."""
        if os.path.exists(self.path):
            self._open()  # unless another process is at work on it
            self.close()
        self.remove()
        temporary = self.path + ".new"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps({"job": description}) + "\n")
            to_disk(file)
        os.replace(temporary, self.path)
        folder_to_disk(os.path.dirname(self.path))
        self._open()

    def resume(self) -> tuple[dict[str, str], Committed]:
        """Read the journal of a job and go on with it.

        Returns:
            The description it was created with, and how far it is.

        Raises:
            BlockingIOError: if another process is at work on the job.
            ValueError: if the file is no journal.
        """
        self._open()
        entries, length = self._entries()
        if not entries or "job" not in entries[0]:
            raise ValueError(
                f"batch: {self.path} is no journal of a job; delete it, or start afresh with overwrite=True"
            )
        self._file.truncate(length)
        self._file.seek(length)
        done = [e for e in entries if "samples" in e]
        samples = done[-1]["samples"] if done else 0
        self._sums = done[-1].get("sums", "") if done else ""
        failures = [Failure(*f) for e in done for f in e.get("failed", ())]
        return entries[0]["job"], Committed(samples, failures, self._load_sums(), "finished" in entries[-1])

    def _entries(self) -> tuple[list[dict], int]:
        # whole entries, and the length of the file up to the last
        entries, length = [], 0
        with open(self.path, "rb") as file:
            for line in file:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if not isinstance(entry, dict):
                    break
                entries.append(entry)
                length += len(line)
        return entries, length

    def committed(self) -> int:
        """How many samples the file says are on disk."""
        return max((entry.get("samples", 0) for entry in self._entries()[0]), default=0)

    def _open(self) -> None:
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115 - open until the job ends
        try:
            import fcntl
        except ImportError:  # a system without locks of this kind
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise BlockingIOError(
                f"batch: another process is at work on this job (it holds {self.path}); wait for it, or end it"
            ) from None
        except OSError:  # a file system without locks
            pass
        self._file.seek(0, os.SEEK_END)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}  # other processes compute, and leave the journal alone

    def commit(self, samples: int, failures: list[Failure], sums: list[Node]) -> None:
        """Note that everything up to a sample is on disk.

        Args:
            samples: how many samples.
            failures: those that failed since the last entry.
            sums: what all samples add up to, empty without a reduction.
        """
        entry: dict[str, Any] = {"samples": samples}
        before = self._sums
        if failures:
            entry["failed"] = failures
        if sums:
            self._sums = entry["sums"] = f"{os.path.basename(self.path)}.sums-{samples}.npz"
            self._save_sums(sums)
        self._append(entry)
        if sums and before:
            os.remove(self._beside(before))

    def finish(self) -> None:
        """Note that the outputs have their final names."""
        self._append({"finished": True})

    def _append(self, entry: dict[str, Any]) -> None:
        left = memoryview(json.dumps(entry).encode() + b"\n")
        while left:
            left = left[self._file.write(left) :]
        to_disk(self._file)

    def _beside(self, name: str) -> str:
        return os.path.join(os.path.dirname(self.path), name)

    def _save_sums(self, sums: list[Node]) -> None:
        arrays = {f"{n.level} {n.number} {k}": array for n in sums for k, array in enumerate(n.arrays)}
        with open(self._beside(self._sums), "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            to_disk(file)
        folder_to_disk(os.path.dirname(self.path))

    def _load_sums(self) -> list[Node]:
        if not self._sums or not os.path.exists(self._beside(self._sums)):
            return []
        nodes: dict[tuple[int, int], list[np.ndarray]] = {}
        with np.load(self._beside(self._sums)) as found:
            for name in found.files:
                level, number, _ = map(int, name.split())
                nodes.setdefault((level, number), []).append(found[name])
        return [Node(level, number, arrays) for (level, number), arrays in nodes.items()]

    def close(self) -> None:
        """Let go of the file, and of the lock on it."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Delete the journal and what belongs to it."""
        folder, name = os.path.split(self.path)
        for file in os.listdir(folder or "."):
            if file == name or file.startswith(f"{name}.sums-"):
                os.remove(os.path.join(folder, file))


def as_ranges(failures: Iterable[tuple[int, str]]) -> list[Failure]:
    """Failed samples, in order, with neighbours of one reason together.

    >>> as_ranges([(3, "x"), (4, "x"), (6, "x")])
    [Failure(start=3, stop=5, reason='x'), Failure(start=6, stop=7, reason='x')]
    """
    found: list[Failure] = []
    for k, reason in failures:
        if found and found[-1].stop == k and found[-1].reason == reason:
            found[-1] = found[-1]._replace(stop=k + 1)
        else:
            found.append(Failure(k, k + 1, reason))
    return found


def to_disk(file: Any) -> None:
    """Have the system write a file to disk before going on."""
    file.flush()
    os.fsync(file.fileno())


def folder_to_disk(folder: str) -> None:
    """Have the system write a folder to disk, so that the names in it last."""
    if os.name == "nt":  # folders cannot be opened there, and renames are written through
        return
    handle = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
