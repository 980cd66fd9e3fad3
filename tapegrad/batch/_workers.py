"""Work done in this process, or in several beside it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

Task = tuple[int, int]
_START = "fork" if sys.platform.startswith("linux") else "spawn"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_AHEAD = 4  # tasks a worker is given at a time, so that it need not wait for the next one while others are committed


def default_workers() -> int:
    """Processes to use where nothing is said: one a core where they can be forked, else this one, whose kernels use all cores."""
    return len(os.sched_getaffinity(0)) if _START == "fork" else 1


def may_start() -> bool:
    """Whether this process may start others, which those of a pool (and Dask workers) may not."""
    return not multiprocessing.current_process().daemon


def here(work: Callable[[int, int], Any], tasks: Sequence[Task]) -> Iterator[list[Any]]:
    """The results of some tasks, worked on in this process, as many at a time as are there.

    Args:
        work: takes the numbers of a task.
        tasks: pairs of numbers.

    >>> list(here(lambda start, stop: stop - start, [(0, 2), (2, 5)]))
    [[2], [3]]
    """
    for task in tasks:
        yield [work(*task)]


class Processes:
    """Processes that work on tasks; they end with this one.

    On Linux they are forked, and so know the function whatever it is; elsewhere they are started afresh and must be able to import it.

    Args:
        work: takes the numbers of a task.
        count: how many processes.
        close: called first in each process, to let go of what it should not inherit.

    Raises:
        TypeError: if the function cannot be sent to them.
    """

    def __init__(self, work: Callable[[int, int], Any], count: int, close: Callable[[], None]) -> None:
        fork = _START == "fork"
        context: Any = multiprocessing.get_context(_START)
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                inherited = [*self._pipes, ours] if fork else []
                process = context.Process(
                    target=_serve, args=(work, theirs, inherited, close if fork else None), daemon=True
                )
                with warnings.catch_warnings():
                    # forking beside threads is tested: the tape's locks are released, its kernels go on with one thread
                    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
                    process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.stop()
            raise TypeError(
                f"batch: the function cannot be sent to other processes ({error}); define it at the top of a module, or use workers=1"
            ) from None

    def results(self, tasks: Sequence[Task]) -> Iterator[list[Any]]:
        """The results of some tasks, in the order they are done, as many at a time as are there.

        Raises:
            RuntimeError: if a process dies.
            Exception: what the work raised.
        """
        waiting = iter(tasks)
        left = set(tasks)
        raised: tuple[Task, BaseException] | None = None
        for _ in range(_AHEAD):
            for pipe in self._pipes:
                self._give(pipe, waiting)
        while left:
            if raised is not None and min(left) >= raised[0]:
                raise raised[1]  # now that what comes before is done
            found = []
            for pipe, (task, done, value) in self._answers():
                if done:
                    left.discard(task)
                    found.append(value)
                elif raised is None or task < raised[0]:
                    raised = (task, value)
                if raised is None:
                    self._give(pipe, waiting)
            if found:
                yield found

    def _answers(self) -> list[tuple[Any, Any]]:
        # those that are there, at least one, with their pipes
        found, ended = [], None
        ready: list[Any] = connection.wait(self._pipes)
        for pipe in ready:
            try:
                found.append((pipe, pipe.recv()))
                while pipe.poll():
                    found.append((pipe, pipe.recv()))
            except (EOFError, OSError):
                ended = pipe
        if not found:
            self._died(ended)
        return found

    def _give(self, pipe: Any, waiting: Iterator[Task]) -> None:
        task = next(waiting, None)
        if task is not None:
            try:
                pipe.send(task)
            except OSError:
                self._died(pipe)

    def _died(self, pipe: Any) -> None:
        process = self._processes[self._pipes.index(pipe)]
        process.join(5)
        code = process.exitcode
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"ended with code {code}"
        )
        raise RuntimeError(
            f"batch: worker process {process.pid} {how}, as happens when memory runs out; resume with fewer workers or a smaller chunk_size"
        )

    def stop(self) -> None:
        """End the processes, whatever they are at."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()


def _serve(work: Callable, pipe: Any, inherited: list[Any], close: Callable[[], None] | None) -> None:
    # a process ends when its pipe does, that is with the process that started it; on Linux at once
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, int(signal.SIGKILL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the terminal sends to all; the first process tells the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    if close is not None:
        close()
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (task, True, work(*task))
        except BaseException as error:
            answer = (task, False, _sendable(error))
        try:
            pipe.send(answer)
        except OSError:
            return


def _sendable(error: BaseException) -> BaseException:
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker process:\n{trace}")
    return error
