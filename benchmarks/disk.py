"""A batch job from disk to disk, beside the same work in memory and beside copying the same bytes.

Each is timed in processes of its own, one after the other, with kernels loaded before. The function is one unit of a logistic regression, of 8 inputs with 8 weights
and a bias: for each sample of ``x.npy``, its loss is written to one file and its 9 derivatives to another, 144 bytes in and out.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.work import ROOT, _figure, _rng

_INPUTS, _CHUNK = 8, 1 << 18
_PARAMS = {"w": np.linspace(-1, 1, _INPUTS), "b": np.array(0.1)}


def loss(params: Any, x: Any) -> Any:
    """How far one sample is from being told apart."""
    import tapegrad as tg

    return tg.nn.functional.softplus(-(x @ params["w"] + params["b"]))


def _clear(folder: Path) -> None:
    # just before the clock starts, so that all begin with as much free memory that the machine has at hand
    for name in ("g.npy", "v.npy", "g.npy.journal"):
        (folder / name).unlink(missing_ok=True)


def job(folder: Path) -> tuple[float, float]:
    """Seconds of the job, and the most memory that it and its workers held, in MB."""
    import tapegrad as tg

    few = np.load(folder / "x.npy", mmap_mode="r")[:64]
    tg.batch.run(loss, few, _PARAMS, out=folder / "few.npy", overwrite=True, progress=False)
    _clear(folder)
    report = tg.batch.run(
        loss, folder / "x.npy", _PARAMS, out=folder / "g.npy", values=folder / "v.npy", progress=False
    )
    workers = len(os.sched_getaffinity(0))
    # getrusage would tell what the process that started this one held
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    peak += workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return report.seconds, peak / 1000


def in_memory(folder: Path) -> tuple[float, float]:
    """Seconds of the same values and gradients, of an array in memory, into arrays that are dropped; and 0."""
    import tapegrad as tg

    x = np.load(folder / "x.npy")
    run = tg.vmap(tg.value_and_grad(tg.compile(loss)), (None, 0))
    run(_PARAMS, x[:_CHUNK]), run(_PARAMS, x[:_CHUNK])
    start = time.perf_counter()
    for k in range(0, len(x), _CHUNK):
        run(_PARAMS, x[k : k + _CHUNK])
    return time.perf_counter() - start, 0.0


def copying(folder: Path) -> tuple[float, float]:
    """Seconds of reading the file and writing as many bytes as the job does, which are on disk after each chunk; and 0."""
    size = 8 * _INPUTS * _CHUNK
    read, more = bytearray(size), bytes(size // _INPUTS)
    _clear(folder)
    start = time.perf_counter()
    with (
        open(folder / "x.npy", "rb", buffering=0) as x,
        open(folder / "g.npy", "wb", buffering=0) as g,
        open(folder / "v.npy", "wb", buffering=0) as v,
    ):
        while count := x.readinto(read):
            for file, data in ((g, read), (g, more), (v, more)):
                file.write(memoryview(data)[: count if data is read else count // _INPUTS])
            for file in (g, v):
                os.fsync(file.fileno())
    return time.perf_counter() - start, 0.0


def _measured(what: str, folder: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.disk", what, str(folder)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, capture_output=True, check=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


_known: dict[bool, tuple[float, float]] = {}


def measure(quick: bool) -> tuple[float, float]:
    """The job's time over the longer of the two others', each the shortest of some rounds; and its peak memory in MB."""
    if quick not in _known:
        samples = 1_000_000 if quick else 10_000_000
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float64, (samples, _INPUTS))
            for k in range(0, samples, _CHUNK):
                x[k : k + _CHUNK] = _rng().normal(size=x[k : k + _CHUNK].shape)
            x.flush()
            del x
            names = ("job", "in_memory", "copying")
            rounds = [[_measured(what, folder) for what in names] for _ in range(1 if quick else 5)]
        times = [min(r[k][0] for r in rounds) for k in range(3)]
        print("  " + ", ".join(f"{what} {samples / t:,.0f} samples/s" for what, t in zip(names, times, strict=True)))
        _known[quick] = times[0] / max(times[1:]), max(r[0][1] for r in rounds)
    return _known[quick]


@_figure("a job of 10⁷ samples of 8 numbers, from disk to disk, over computing or copying them", "times", 1.25)
def job_from_disk_to_disk(quick: bool) -> float | None:
    """Of the two the one that takes longer; a job at 0.8 of its rate is at the limit."""
    return measure(quick)[0] if sys.platform.startswith("linux") else None


@_figure("peak memory of this job, with its workers", "MB", 1000)
def memory_of_job(quick: bool) -> float | None:
    """What the process and its workers held at most, each by itself, added up."""
    return measure(quick)[1] if sys.platform.startswith("linux") else None


if __name__ == "__main__":
    print(json.dumps({"job": job, "in_memory": in_memory, "copying": copying}[sys.argv[1]](Path(sys.argv[2]))))
