"""Jobs that end early keep what is committed, go on from there, and end byte-identical; other jobs are refused."""

import errno
import json
import os
import signal
import sys
import textwrap
import time

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.batch import _sinks
from tapegrad.batch._fingerprint import describe_function, differences
from tapegrad.batch._journal import Journal
from tests import processes
from tests.batch.models import PARAMS, loss, samples
from tests.batch.test_run import run
from tests.batch.test_sources import npy

pytestmark = pytest.mark.usefixtures("small_blocks")
DATA = samples(80)


def contents(path):
    """All bytes of a file or of a folder's files."""
    if path.is_file():
        return path.read_bytes()
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


class Stop(Exception):
    """Ends a job from within."""


def ended_after(monkeypatch, chunks, error=Stop):
    """Let jobs end with the given error after some chunks are committed."""
    commit, left = Journal.commit, [chunks]

    def counted(self, *arguments):
        if not left[0]:
            raise error
        left[0] -= 1
        commit(self, *arguments)

    monkeypatch.setattr(Journal, "commit", counted)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("out", ["g.npy", "g.zarr"])
def test_an_ended_job_ends_byte_identical(out, workers, tmp_path, monkeypatch):
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    options = {"workers": workers, "chunk_size": 8}
    run(loss, DATA, PARAMS, out=tmp_path / "whole" / out, values=tmp_path / "whole/v.npy", **options)
    cut, of_values = tmp_path / "cut" / out, tmp_path / "cut/v.npy"
    with monkeypatch.context() as patch:
        ended_after(patch, 3 if workers == 1 else 1)  # several chunks may be committed at once
        with pytest.raises(Stop) as caught:
            run(loss, DATA, PARAMS, out=cut, values=of_values, **options)
    (note,) = caught.value.__notes__
    committed = int(note.split()[1])
    assert note == f"batch: {committed} of 80 samples are committed, and resume=True goes on from there"
    assert committed == 24 if workers == 1 else committed in range(8, 72, 8)
    assert not cut.exists()
    with pytest.raises(FileExistsError, match="there is an unfinished job for this output; go on with resume=True"):
        run(loss, DATA, PARAMS, out=cut, values=of_values)
    if out == "g.zarr":
        (tmp_path / "cut/g.zarr.part/w/c/9.123.partial").write_bytes(b"")  # by a worker ended while it wrote
    report = run(loss, DATA, PARAMS, out=cut, values=of_values, resume=True, chunk_size=16)
    assert (report.samples, report.resumed) == (80, committed)
    assert f", after {committed} that were done before" in str(report)
    assert contents(cut) == contents(tmp_path / "whole" / out)
    assert contents(of_values) == contents(tmp_path / "whole/v.npy")
    report = run(loss, DATA, PARAMS, out=cut, values=of_values, resume=True)
    assert (report.samples, report.resumed) == (80, 80)


@pytest.mark.parametrize("chunks", [0, 1, 3, 9])
def test_a_reduction_resumes_to_the_same_bits(chunks, tmp_path, monkeypatch):
    whole = run(loss, DATA, PARAMS, reduce="mean")
    path = tmp_path / "g.npz"
    with monkeypatch.context() as patch:
        ended_after(patch, chunks)
        with pytest.raises(Stop):
            run(loss, DATA, PARAMS, reduce="mean", out=path, chunk_size=8)
    for _ in range(2):  # the second time there is nothing left to do
        report = run(loss, DATA, PARAMS, reduce="mean", out=path, resume=True, workers=2, chunk_size=8)
        assert report.value == whole.value
        assert report.gradient["w"].tobytes() == whole.gradient["w"].tobytes()
    with np.load(path) as found:
        assert found["w"].tobytes() == whole.gradient["w"].tobytes()
    assert len(list(tmp_path.glob("*.sums-*"))) == 1


def test_failures_are_remembered(tmp_path, monkeypatch):
    data = DATA.copy()
    data[[3, 50]] = np.nan
    with monkeypatch.context() as patch:
        ended_after(patch, 2)
        with pytest.raises(Stop):
            run(loss, data, PARAMS, out=tmp_path / "g.npy", on_error="nan", chunk_size=8)
    report = run(loss, data, PARAMS, out=tmp_path / "g.npy", on_error="nan", resume=True)
    assert report.failed.tolist() == [3, 50]


def test_nothing_is_left_where_nothing_is_committed(tmp_path, monkeypatch):
    run(loss, DATA, PARAMS, out=tmp_path / "old.npy")
    old = contents(tmp_path / "old.npy")
    ended_after(monkeypatch, 0)
    for options in (
        {"out": "g.npy"},
        {"out": "g.zarr", "values": tmp_path / "v.npy"},
        {"out": "g.npz", "reduce": "sum"},
    ):
        with pytest.raises(Stop) as caught:
            run(loss, DATA, PARAMS, **options | {"out": tmp_path / options["out"]})
        assert caught.value.__notes__ == ["batch: 0 of 80 samples are committed"]
    with pytest.raises(Stop):
        run(loss, DATA + 1, PARAMS, out=tmp_path / "old.npy", overwrite=True)
    assert contents(tmp_path) == {"old.npy": old}


def test_resuming_what_never_began(tmp_path):
    assert run(loss, DATA, PARAMS, out=tmp_path / "g.npy", resume=True).resumed == 0


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A job of 80 samples from a file, ended after 24."""
    source = npy(tmp_path / "x.npy", DATA)
    with monkeypatch.context() as patch:
        ended_after(patch, 3)
        with pytest.raises(Stop):
            run(loss, source, PARAMS, out=tmp_path / "g.npy", chunk_size=8)
    return {"f": loss, "data": source, "params": PARAMS, "out": tmp_path / "g.npy", "resume": True}


def other_loss(params, x):
    return (tg.tanh(x * params["w"] + params["b"]) ** 3).sum()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"f": other_loss}, "code of loss is gone; .*code of other_loss is new"),
        ({"params": PARAMS | {"w": np.ones(4)}}, r"params\['w'\] is another"),
        ({"params": {"w": PARAMS["w"], "c": PARAMS["b"], "b": PARAMS["b"]}}, r"params\['c'\] is new"),
        ({"params": {"w": PARAMS["w"].astype("f4"), "b": PARAMS["b"]}}, r"params\['w'\] is another"),
        ({"wrt": "data"}, "wrt was params and is data"),
        ({"wrt": ("params", "data")}, "wrt was params and is params, data"),
        ({"reduce": "sum"}, "reduce was None and is sum"),
        ({"values": "v.npy"}, "values was None and is .*v.npy"),
        ({"data": DATA}, "content of data is another"),
    ],
)
def test_another_job_is_refused(begun, change, difference):
    with pytest.raises(ValueError, match=f"cannot resume .*g.npy, which was begun by another job: .*{difference}"):
        run(**begun | change)
    assert run(**begun).resumed == 24


@pytest.mark.parametrize(
    ("array", "difference"),
    [
        (DATA + 1, "content of data is another.*the result of the function for sample 0 is another"),
        (DATA.astype("f4"), "dtype of data was float64 and is float32"),
        (DATA[:60], r"shape of data was \[80, 4\] and is \[60, 4\]"),
        (np.concatenate([DATA[:-1], DATA[:1]]), "content of data is another"),
    ],
)
def test_data_that_changed_are_refused(begun, array, difference):
    np.save(begun["data"], array)
    with pytest.raises(ValueError, match=difference):
        run(**begun)


def test_an_array_in_memory_that_changed_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        ended_after(patch, 3)
        with pytest.raises(Stop):
            run(loss, DATA, PARAMS, out=tmp_path / "g.npy", chunk_size=8)
    changed = DATA.copy()
    changed[70, 1] += 1e-9
    with pytest.raises(ValueError, match="begun by another job: content of data is another"):
        run(loss, changed, PARAMS, out=tmp_path / "g.npy", resume=True)


def test_a_file_cut_short_is_refused_when_resumed(begun):
    os.truncate(begun["data"], 1000)
    with pytest.raises(ValueError, match="is cut short"):
        run(**begun)


def test_an_output_that_was_tampered_with_is_refused(begun, tmp_path):
    part = tmp_path / "g.npy.part"
    kept = part.read_bytes()
    part.write_bytes(kept[:-8])
    with pytest.raises(ValueError, match="it was changed since; start afresh"):
        run(**begun)
    part.unlink()
    with pytest.raises(FileNotFoundError, match=r"g\.npy\.part is gone; start afresh"):
        run(**begun)
    np.save(tmp_path / "other.npy", np.zeros((3, 5), "f4"))
    os.replace(tmp_path / "other.npy", part)
    with pytest.raises(ValueError, match=r"has shape \(3, 5\) and dtype float32 where this job writes"):
        run(**begun)
    part.write_bytes(kept)
    assert run(**begun).resumed == 24


def test_a_torn_entry_of_the_journal_is_dropped(begun, tmp_path):
    journal = tmp_path / "g.npy.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1]) == {"samples": 24}
    for torn in (lines[-1][:-1], lines[-1][:5], b"\0" * 40, b'"text"\n' + lines[-1]):
        journal.write_bytes(b"".join(lines[:-1]) + torn)
        reading = Journal(str(journal))
        assert reading.resume()[1].samples == 16
        reading.close()
    journal.write_bytes(b"no journal\n")
    with pytest.raises(ValueError, match="is no journal of a job; delete it, or start afresh with overwrite=True"):
        run(**begun)
    assert run(**begun | {"resume": False, "overwrite": True}).resumed == 0


def test_a_crash_between_the_last_renames(tmp_path, monkeypatch):
    options = {"out": tmp_path / "g.npy", "values": tmp_path / "v.npy", "chunk_size": 8}
    with monkeypatch.context() as patch:
        finish = _sinks.Sink.finish

        def crash(self):
            finish(self)
            raise Stop

        patch.setattr(_sinks.Sink, "finish", crash)
        with pytest.raises(Stop):
            run(loss, DATA, PARAMS, **options)
    assert (tmp_path / "v.npy").exists()
    assert (tmp_path / "g.npy.part").exists()
    assert run(loss, DATA, PARAMS, resume=True, **options).resumed == 80
    assert np.load(tmp_path / "g.npy").shape == (80, 5)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(workers, tmp_path, monkeypatch):
    path = tmp_path / "g.npy"
    write = _sinks.NpySink.write

    def full(self, start, arrays):
        if start >= 40:
            raise OSError(errno.ENOSPC, "No space left on device", self.part)
        write(self, start, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(_sinks.NpySink, "write", full)
        with pytest.raises(
            OSError, match="the disk is full: 40 of 80 samples are committed, and resume=True"
        ) as caught:
            run(loss, DATA, PARAMS, out=path, chunk_size=8, workers=workers)
    assert caught.value.errno == errno.ENOSPC
    assert run(loss, DATA, PARAMS, out=path, resume=True).resumed == 40


def test_a_disk_without_room_for_the_output(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="no room for the output: it needs 3,200 bytes, and 100 are free"):
        run(loss, DATA, PARAMS, out=tmp_path / "g.npy")
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs file locks")
def test_two_processes_at_one_job(begun, tmp_path):
    journal = Journal(str(tmp_path / "g.npy.journal"))
    journal.resume()
    for options in ({}, {"resume": False, "overwrite": True}):
        with pytest.raises(BlockingIOError, match="another process is at work on this job"):
            run(**begun | options)
    journal.close()
    assert run(**begun).resumed == 24


# jobs in processes of their own

JOB = """
import json, os, sys, time
import numpy as np, tapegrad as tg
from tapegrad.batch import _job
_job._MOST_IN_BLOCK = 8

def slow(params, x):
    if float(x[0]) > 100:  # a path of its own for every sample, so that it is called once a sample
        return (x * params).sum()
    time.sleep(float(os.environ["PAUSE"]))
    return (tg.sin(x) * params).sum()

try:
    report = tg.batch.run(slow, "x.npy", np.arange(4.0), out=OUT, reduce=REDUCE, chunk_size=8, workers=WORKERS, resume=True,
                          progress=False)
except KeyboardInterrupt as error:
    print(json.dumps(str(error)))
    sys.exit(130)
print(json.dumps([report.samples, report.resumed]))
"""


def start(folder, seconds, workers, out="g.npy", reduce=None):
    text = f"import os; os.chdir({str(folder)!r})" + textwrap.dedent(JOB)
    for name, value in {"WORKERS": workers, "OUT": repr(out), "REDUCE": repr(reduce)}.items():
        text = text.replace(name, str(value))
    return processes.start(text, PAUSE=seconds)


def wait_for(folder, samples, process, out="g.npy"):
    """Wait until some samples are committed; how many are."""
    journal, end = folder / f"{out}.journal", time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if journal.exists():
            done = [json.loads(line).get("samples", 0) for line in journal.read_text().splitlines()[1:-1]]
            if done and done[-1] >= samples:
                return done[-1]
        time.sleep(0.005)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize(
    ("out", "reduce", "kills"), [("g.npy", None, (8, 40)), ("g.zarr", None, (32,)), ("g.npz", "sum", (32,))]
)
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_job_resumes_to_the_same_bytes(out, reduce, kills, tmp_path):
    if out == "g.zarr":
        pytest.importorskip("zarr")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        np.save(folder / "x.npy", DATA)
    for seen in kills:
        process = start(killed, 0.01, 2, out, reduce)
        wait_for(killed, seen, process, out)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (killed / out).exists()
    (samples, resumed), _ = processes.finish(start(killed, 0, 2, out, reduce))
    assert samples == 80
    assert kills[-1] <= resumed < 80

    def quick(params, x):
        if float(x[0]) > 100:
            return (x * params).sum()
        return (tg.sin(x) * params).sum()

    run(quick, DATA, np.arange(4.0), out=whole / out, reduce=reduce)
    assert contents(killed / out) == contents(whole / out)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_an_interrupted_job_ends_cleanly(workers, tmp_path):
    np.save(tmp_path / "x.npy", DATA)
    process = start(tmp_path, 0.004, workers)
    seen = wait_for(tmp_path, 16, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    said = json.loads(output)
    committed = int(said.split()[2])
    assert said == f"batch: interrupted: {committed} of 80 samples are committed, and resume=True goes on from there"
    assert committed >= seen
    assert processes.finish(start(tmp_path, 0, 2))[0] == [80, committed]


DIES = """
import json, os, signal
import numpy as np, tapegrad as tg
from tapegrad.batch import _job
_job._MOST_IN_BLOCK = 8
first = os.getpid()

def dies(x):
    if float(x[0]) > 5 and os.getpid() != first:
        os.kill(os.getpid(), signal.SIGKILL)
    return x.sum()

try:
    tg.batch.run(dies, "x.npy", out="g.npy", chunk_size=8, workers=2, progress=False)
except RuntimeError as error:
    print(json.dumps([str(error), *error.__notes__]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only")
def test_a_worker_that_dies(tmp_path):
    data = DATA.copy()
    data[50, 0] = 9
    np.save(tmp_path / "x.npy", data)
    (said, note), _ = processes.run(f"import os; os.chdir({str(tmp_path)!r})" + DIES)
    assert "was killed by SIGKILL, as happens when memory runs out; resume with fewer workers" in said
    assert "of 80 samples are committed" in note


# what a function is


def test_equal_functions_are_equal_and_others_are_not():
    def made(scale, power=2):
        def f(p, x):
            return (p * x * scale).sum() ** power

        return f

    assert describe_function(made(2.0)) == describe_function(made(2.0))
    assert differences(describe_function(made(2.0)), describe_function(made(3.0))) == [
        "scale, which f closes over, is another"
    ]
    assert differences(describe_function(made(np.ones(2))), describe_function(made(np.zeros(2))))
    assert differences(describe_function(made(tg.ones(2))), describe_function(made(tg.zeros(2))))
    assert differences(describe_function(made(tg.sin)), describe_function(made(tg.cos)))
    assert not differences(describe_function(made({"a", "b"})), describe_function(made({"b", "a"})))


SCALE = 1.0


def helper(x, by=2.0):
    return x * by * SCALE


def uses_helper(x):
    """Calls another function."""
    return helper(x).sum()


def test_helpers_globals_and_defaults_count(monkeypatch):
    before = describe_function(uses_helper)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert differences(before, describe_function(uses_helper)) == ["global SCALE is another"]
    monkeypatch.undo()
    monkeypatch.setattr(helper, "__defaults__", (3.0,))
    assert differences(before, describe_function(uses_helper)) == ["defaults of helper is another"]
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "helper", lambda x: x)
    assert differences(before, describe_function(uses_helper))


def test_objects_partials_and_methods():
    import functools

    class Model:
        def __init__(self, w):
            self.w = w
            self.itself = self

        def __call__(self, x):
            return (x * self.w).sum()

        def energy(self, x):
            return (x * self.w).sum() ** 2

    for make in (Model, lambda w: Model(w).energy, lambda w: functools.partial(helper, by=w)):
        assert not differences(describe_function(make(2.0)), describe_function(make(2.0)))
        assert differences(describe_function(make(2.0)), describe_function(make(3.0)))
    assert describe_function(tg.sin) != describe_function(tg.cos)


def test_a_function_is_the_same_in_another_process():
    text = """
import json
from tapegrad.batch._fingerprint import describe_function
KINDS = {"a", "b", "c"}
def f(x, kinds=frozenset("xyz")):
    if x in {"p", "q", "r"}:
        return KINDS
    return [y for y in kinds]
print(json.dumps(describe_function(f)))
"""
    first, _ = processes.run(text, PYTHONHASHSEED=1)
    second, _ = processes.run(text, PYTHONHASHSEED=2)
    assert first == second
