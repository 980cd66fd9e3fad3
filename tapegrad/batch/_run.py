"""`tapegrad.batch.run`."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tapegrad._progress import Progress
from tapegrad.batch._job import Job, Piece, failed
from tapegrad.batch._journal import Committed
from tapegrad.batch._outputs import Outputs
from tapegrad.batch._parameters import open_params
from tapegrad.batch._report import Report
from tapegrad.batch._sources import Data, open_data
from tapegrad.batch._workers import Processes, Task, default_workers, here, may_start

_Path = str | os.PathLike


def run(
    f: Callable,
    data: Any,
    params: Any = None,
    wrt: str | Sequence[str] | None = None,
    out: _Path | None = None,
    values: _Path | None = None,
    reduce: str | None = None,
    chunk_size: int | str = "auto",
    workers: int | None = None,
    progress: bool = True,
    resume: bool = False,
    on_error: str = "raise",
    client: Any = None,
    overwrite: bool = False,
) -> Report:
    r"""The value and gradient of a function for every sample of a data set, from disk to disk.

    Samples are read, computed and committed chunk by chunk: a chunk is on disk before the journal beside the output
    (``<out>.journal``) says so. A job that ends early, however it does, keeps what is committed (in ``<out>.part``) and goes on from
    there with ``resume=True``; its outputs are then the same, byte for byte. The journal stays when the job is done, and tells what
    the output was made of; ``resume=True`` finds nothing left to do then.

    The function is recorded once in each process and replayed over blocks of samples (see `compile` and `vmap`), whose size depends on
    the function and its inputs only, as does everything else that decides last bits: which samples share a matrix product, and that
    products keep to one core. A reduction adds up the samples of short runs, the runs of a block, and then the blocks in pairs, in a
    binary tree that their number alone decides: :math:`((b_0 + b_1) + (b_2 + b_3)) + b_4` for five. So no bit of any result depends on
    `chunk_size`, `workers` or `client`.

    Args:
        f: ``f(params, sample)``, or ``f(sample)`` without `params`; returns a floating tensor of shape []. It sees tensors. Where values
            steer it, samples are told apart by the paths they take; where nearly every one takes its own, or it cannot be recorded, it
            is called once a sample. It must not write to its arguments, nor depend on state that changes.
        data: an array, the path of a ``.npy`` file, ``.zarr`` store or Parquet dataset, a Zarr array or group, a PyArrow dataset, a Dask
            array, or a tuple or dict of these with one first axis, of any dtype tensors hold. A sample is what remains without that axis:
            of a Zarr group or Parquet dataset, a dict of its arrays or columns.
        params: a tree of tensors, arrays and numbers (which count as float64), or the path of a ``.npz``, ``.npy`` or ``.json`` file.
        wrt: "params", "data" or a tuple of both: float32 or float64. By default "params" if there are some, else "data".
        out: a ``.npy`` file of shape (samples, size), with the gradient's leaves flattened and joined in tree order; or a ``.zarr`` store
            with one array of shape (samples, \*leaf) a leaf. With `reduce`, one gradient in the shape of `params`: in a ``.npy`` file (of
            one axis if there are several leaves), ``.npz`` or ``.zarr`` with one array a leaf; it is in the report, too.
        values: a ``.npy`` file or ``.zarr`` store of the values, of shape (samples,).
        reduce: "sum" or "mean" of values and gradients with respect to `params`, over all samples that did not fail.
        chunk_size: how many samples to work on and commit at once, rounded up to whole blocks; chunks that are done together are
            committed together.
        workers: processes to compute in; 1 is this one. By default one a core on Linux, where they are forked, and 1 elsewhere, where
            they must import the function (kernels use all cores by themselves).
        progress: whether to tell on standard error how far the job is.
        resume: go on with an unfinished job, if there is one.
        on_error: "raise" ends the job at the first sample on which the function raises, or whose value or gradient is NaN. "nan" makes
            value and gradient of such samples NaN, and lists them in the report.
        client: a ``dask.distributed.Client`` to compute on instead. Its workers must see files under the same paths and be able to
            import what the function needs.
        overwrite: replace outputs that exist, once the new ones are whole.

    Returns:
        What was done: samples, seconds, failed samples, paths; see `Report`.

    Raises:
        ValueError: for options that do not go together, samples of uneven shape, files that are cut short, and a job other than the one to
            be resumed.
        TypeError: for a function that returns no scalar, and dtypes that cannot be used.
        RuntimeError: for a sample that fails, a function that writes to its arguments or depends on state, and workers that die.
        FileExistsError: if an output exists.
        FileNotFoundError: if an input does not.
        OSError: if the disk is full or broken.

    >>> import os, tempfile
    >>> import numpy as np, tapegrad as tg
    >>> def loss(w, sample):
    ...     x, y = sample
    ...     return (x @ w - y) ** 2
    >>> x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 2.0])
    >>> path = os.path.join(tempfile.mkdtemp(), "grads.npy")
    >>> report = tg.batch.run(loss, (x, y), params=np.array([0.0, 1.0]), out=path, progress=False)
    >>> np.load(path)
    array([[ 2.,  4.],
           [12., 16.]])
    >>> tg.batch.run(loss, (x, y), params=np.array([0.0, 1.0]), reduce="mean", progress=False).gradient
    array([ 7., 10.])
    """
    start = time.perf_counter()
    out, values = (None if path is None else os.fspath(path) for path in (out, values))
    _check_options(out, values, reduce, chunk_size, workers, resume, overwrite, on_error)
    opened, parameters = open_data(data), open_params(params)
    chosen = _chosen(wrt, parameters, reduce)
    _check_paths(opened, params, out, values, resume, overwrite)
    job = Job(f, parameters, opened, chosen, reduce, on_error == "nan")
    if client is None:
        threads = default_workers() if workers is None else workers
    else:
        from tapegrad.batch import _dask

        threads = _dask.workers_of(client)
    with contextlib.ExitStack() as ending:
        outputs = Outputs(job, out, values)
        ending.callback(outputs.close)
        done = outputs.begin(resume, on_error)
        tasks = _tasks(done.samples, opened.samples, job.chunk_size(chunk_size, threads))
        results = _results(job, outputs, tasks, threads, client, ending)
        _commit_all(job, outputs, done, tasks, results, progress, on_error)
        value, gradient = outputs.finish()
    return Report(
        opened.samples, time.perf_counter() - start, done.samples, outputs.failures, out, values, gradient, value
    )


def _check_options(
    out: str | None,
    values: str | None,
    reduce: str | None,
    chunk_size: int | str,
    workers: int | None,
    resume: bool,
    overwrite: bool,
    on_error: str,
) -> None:
    if reduce not in (None, "sum", "mean"):
        raise ValueError(f"batch: reduce must be None, 'sum' or 'mean', got {reduce!r}")
    if on_error not in ("raise", "nan"):
        raise ValueError(f"batch: on_error must be 'raise' or 'nan', got {on_error!r}")
    if chunk_size != "auto" and (not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1):
        raise ValueError(f"batch: chunk_size must be 'auto' or a positive number of samples, got {chunk_size!r}")
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise ValueError(f"batch: workers must be None or a positive number of processes, got {workers!r}")
    if resume and overwrite:
        raise ValueError("batch: resume=True goes on with an output and overwrite=True replaces it: choose one")
    if out is None and values is None and reduce is None:
        raise ValueError("batch: there is nowhere to put results: give out=, values=, or reduce=")
    if resume and out is None and values is None:
        raise ValueError("batch: without out= or values= nothing is kept that could be resumed")
    for name, path, kinds in (
        ("out", out, (".npy", ".npz", ".zarr") if reduce else (".npy", ".zarr")),
        ("values", values, (".npy", ".zarr")),
    ):
        if path is not None and Path(path).suffix not in kinds:
            raise ValueError(f"batch: {name} must end with {' or '.join(kinds)}, got {path!r}")
        if path is not None and not os.path.isdir(os.path.dirname(path) or "."):
            raise FileNotFoundError(f"batch: {name}: there is no folder {os.path.dirname(path)}; make it first")
    if out is not None and values is not None and os.path.abspath(out) == os.path.abspath(values):
        raise ValueError(f"batch: out and values are the same file, {out}")


def _chosen(wrt: Any, params: Any, reduce: str | None) -> tuple[str, ...]:
    if wrt is None:
        wrt = "data" if params is None else "params"
    chosen = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= {"params", "data"}:
        raise ValueError(f"batch: wrt must be 'params', 'data' or a tuple of both, got {wrt!r}")
    if params is None and "params" in chosen:
        raise ValueError("batch: wrt names params, but there are none; give params=")
    if reduce and chosen != ("params",):
        raise ValueError(
            f"batch: reduce={reduce!r} adds up gradients with respect to params, not {' and '.join(chosen)}; gradients with respect to "
            "data are different for each sample"
        )
    return chosen


def _check_paths(data: Data, params: Any, out: str | None, values: str | None, resume: bool, overwrite: bool) -> None:
    inputs = set(data.paths())
    if isinstance(params, str | os.PathLike):
        inputs.add(os.path.abspath(params))
    for path in (out, values):
        if path is None:
            continue
        if os.path.abspath(path) in inputs:
            raise ValueError(f"batch: {path} is an input of the job and cannot be an output, too")
        if resume or overwrite:
            continue
        if os.path.lexists(path):
            raise FileExistsError(
                errno.EEXIST,
                "batch: the output exists; give another name, replace it with overwrite=True, or go on with resume=True",
                path,
            )
        for rest in (path + ".journal", path + ".part"):
            if os.path.lexists(rest):
                raise FileExistsError(
                    errno.EEXIST,
                    "batch: there is an unfinished job for this output; go on with resume=True, or start afresh with overwrite=True",
                    rest,
                )


def _tasks(start: int, stop: int, size: int) -> list[Task]:
    return [(k, min(k + size, stop)) for k in range(start, stop, size)]


def _results(
    job: Job, outputs: Outputs, tasks: list[Task], workers: int, client: Any, ending: contextlib.ExitStack
) -> Iterator[list[Piece]]:
    # pieces that are written, in the order they are done, as many at a time as are there
    if client is not None:
        from tapegrad.batch._dask import on_cluster

        pieces = on_cluster(client, job, tasks)
        ending.callback(pieces.close)  # type: ignore[attr-defined]
        return ([outputs.write_piece(piece) for piece in some] for some in pieces)
    if workers == 1 or len(tasks) < 2 or not may_start():
        return here(outputs.work, tasks)
    job.prepare()  # before there are several to do it
    processes = Processes(outputs.work, min(workers, len(tasks)), outputs.release)
    ending.callback(processes.stop)
    return processes.results(tasks)


def _commit_all(
    job: Job,
    outputs: Outputs,
    done: Committed,
    tasks: list[Task],
    results: Iterator[list[Piece]],
    progress: bool,
    on_error: str,
) -> None:
    arrived: dict[int, Piece] = {}
    committed = done.samples
    begin = time.perf_counter()
    told = Progress(tasks, "batch", "chunk", lines=20) if progress else None
    try:
        for start, stop in told or tasks:
            while start >= committed and start not in arrived:
                arrived |= {piece.start: piece for piece in next(results)}
            if start >= committed:
                committed = _commit(outputs, arrived, start, on_error)
            if told is not None:
                rate = (stop - done.samples) / max(time.perf_counter() - begin, 1e-9)
                told.note = f"{stop:,} of {job.data.samples:,} samples, {rate:,.0f} samples/s"
    except (Exception, KeyboardInterrupt) as error:
        kept = _kept(job, outputs)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"batch: interrupted: {kept}") from None
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"batch: the disk is full: {kept}; make room first", error.filename) from error
        error.add_note(f"batch: {kept}")
        raise


def _commit(outputs: Outputs, arrived: dict[int, Piece], start: int, on_error: str) -> int:
    # the pieces from a sample on, as far as they are there: together, for a disk takes its time; returns where they end
    together: list[Piece] = []
    while start in arrived:
        piece = arrived[start]
        if piece.failures and on_error == "raise":
            if not together:
                raise RuntimeError(failed(*piece.failures[0]))
            break
        together.append(arrived.pop(start))
        start = piece.stop
    outputs.commit(together)
    return start


def _kept(job: Job, outputs: Outputs) -> str:
    if outputs.journal is None:
        return "nothing was to be kept"
    committed = outputs.journal.committed()
    kept = f"{committed:,} of {job.data.samples:,} samples are committed"
    return f"{kept}, and resume=True goes on from there" if committed else kept
