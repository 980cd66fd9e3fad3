"""The same job on Dask workers."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import pickle
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tapegrad.batch._extras import needed
from tapegrad.batch._job import Job, Piece
from tapegrad.batch._workers import Task

_SECONDS_TO_ANSWER = 15
_RETRIES = 3
_LOST = "batch: the connection to the Dask scheduler is lost; start it again and resume"
_jobs: dict[str, Job] = {}
_loading = threading.Lock()


def connect(address: str) -> Any:
    """A client of a scheduler.

    Args:
        address: such as tcp://host:8786.

    Raises:
        ConnectionError: if it does not answer.
    """
    distributed = needed("distributed", "dask", "a Dask scheduler")
    try:
        return distributed.Client(address, timeout=_SECONDS_TO_ANSWER, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConnectionError(
            f"batch: the scheduler at {address} does not answer within {_SECONDS_TO_ANSWER} s ({type(error).__name__}); start one with "
            "`dask scheduler`, or check the address"
        ) from None


def workers_of(client: Any) -> int:
    """How many tasks the workers run at once.

    Raises:
        TypeError: if this is no client.
        RuntimeError: if it has no workers, or they cannot be sent tasks.
    """
    distributed = needed("distributed", "dask", "a Dask client")
    if not isinstance(client, distributed.Client):
        raise TypeError(f"batch: client must be a dask.distributed.Client, got {type(client).__name__}")
    if client.asynchronous:
        raise TypeError("batch: client must not be asynchronous")
    try:
        client.wait_for_workers(1, timeout=_SECONDS_TO_ANSWER)
    except (TimeoutError, distributed.TimeoutError):
        raise RuntimeError(
            f"batch: the scheduler at {client.scheduler.address} has no workers; start some with `dask worker ADDRESS`"
        ) from None
    return sum(client.nthreads().values())


def on_cluster(client: Any, job: Job, tasks: Sequence[Task]) -> Iterator[list[Piece]]:
    """The results of some tasks, in the order they are done, as many at a time as are there.

    Workers read files by themselves, from the same paths; arrays in memory are sent piece by piece. A task whose worker is lost is
    done by another one.

    Args:
        client: of the scheduler.
        job: what to do.
        tasks: first sample and end of each.

    Raises:
        TypeError: if the function cannot be sent.
        RuntimeError: if workers die again and again on one task.
        ConnectionError: if the scheduler is lost.
    """
    distributed = needed("distributed", "dask", "a Dask client")
    name, packed = _packed(job)
    waiting = iter(tasks)
    running: set[Any] = set()

    def fill() -> None:
        while len(running) < 2 * max(sum(client.nthreads().values()), 1):
            task = next(waiting, None)
            if task is None:
                return
            chunk = job.data.read(*task) if job.data.in_memory else None
            running.add(client.submit(_work, name, sent, *task, chunk, pure=False, retries=_RETRIES))

    sent = client.submit(_same, packed, key=f"tapegrad-job-{name}", retries=_RETRIES)
    try:
        fill()
        while running:
            try:
                with client.as_current(), _connected(distributed):
                    done = distributed.wait(running, timeout=_SECONDS_TO_ANSWER, return_when="FIRST_COMPLETED").done
            except (TimeoutError, distributed.TimeoutError):
                done = set()
            if client.status != "running":
                raise ConnectionError(_LOST)
            for future in done:
                running.discard(future)
                piece = _result(distributed, future)
                fill()
                yield [piece]
    finally:
        if client.status == "running":
            client.cancel(list(running))


def _result(distributed: Any, future: Any) -> Piece:
    try:
        with _connected(distributed):
            return future.result()
    except ImportError as error:
        raise ImportError(
            f"batch: Dask workers cannot import what the function needs ({error}); install it there, or start them in the folder of the "
            "module"
        ) from None
    except distributed.scheduler.KilledWorker as error:
        raise RuntimeError(
            f"batch: Dask workers died again and again on one chunk, as happens when memory runs out ({error}); resume with workers that "
            "have more memory, or a smaller chunk_size"
        ) from None


@contextlib.contextmanager
def _connected(distributed: Any) -> Iterator[None]:
    # what Dask says of a scheduler that is lost, in our words
    try:
        yield
    except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
        raise ConnectionError(f"{_LOST} ({type(error).__name__})") from None


def _packed(job: Job) -> tuple[str, bytes]:
    # without the data that is sent piece by piece
    cloudpickle = needed("cloudpickle", "dask", "a Dask client")
    sent = copy.copy(job)
    if job.data.in_memory:
        sent.data = None  # type: ignore[assignment]
    try:
        packed = cloudpickle.dumps(sent)
    except Exception as error:
        raise TypeError(
            f"batch: the function (or what it closes over) cannot be sent to Dask workers: {error}; define it at the top of a module that "
            "they can import"
        ) from None
    return hashlib.sha256(packed).hexdigest(), packed


def _same(packed: bytes) -> bytes:
    return packed


def _work(name: str, packed: bytes, start: int, stop: int, chunk: Any) -> Piece:
    with _loading:
        if name not in _jobs:
            _jobs.clear()
            _jobs[name] = pickle.loads(packed)
        job = _jobs[name]
    return job.run(start, stop, chunk)
