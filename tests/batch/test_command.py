"""`tapegrad batch`: what it writes, and how it fails."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from click.testing import CliRunner

from tapegrad.batch import _sinks
from tapegrad.cli import main
from tests import processes
from tests.batch.models import samples

X = samples(20)
MODEL = """
import tapegrad as tg

def loss(params, x):
    return ((x @ params["w"]) - params["b"]) ** 2

def energy(x):
    return (x * x).sum()

def pair(params, sample):
    x, y = sample
    return (x @ params["w"] - y) ** 2

def vector(x):
    return x

def writes(x):
    x += 1
    return x.sum()

def random(x):
    return (x * tg.rand(4)).sum()

def writes_later(x):
    if x[0] > 5:
        x += 1
    return (x * x).sum()

def dies(x):
    if float(x[0]) > 5:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return x.sum()

def picky(x):
    if x[0] > 5:
        raise ValueError("too large")
    return x.sum()

class Model:
    @staticmethod
    def energy(x):
        return (x * x).sum()
"""
W = np.array([1.0, -1.0, 0.5, 2.0])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module, data and parameters, and in it."""
    (tmp_path / "model_of_command.py").write_text(textwrap.dedent(MODEL))
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", X[:, 0])
    np.savez(tmp_path / "p.npz", w=W, b=np.array(0.5))
    (tmp_path / "p.json").write_text(json.dumps({"w": W.tolist(), "b": 0.5}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("model_of_command", None)


def invoke(function, *arguments):
    return CliRunner().invoke(main, ["batch", f"model_of_command:{function}", *map(str, arguments)])


@pytest.mark.parametrize("params", ["p.npz", "p.json"])
def test_gradients_with_respect_to_params(folder, params):
    result = invoke("loss", "--data", "x.npy", "--params", params, "--out", "g.npy", "--values", "v.npy")
    assert result.exit_code == 0, result.output
    error = X @ W - 0.5
    np.testing.assert_allclose(np.load("v.npy"), error**2)
    np.testing.assert_allclose(np.load("g.npy"), 2 * error[:, None] * np.column_stack([X, -np.ones(20)]), rtol=1e-12)
    assert "20 samples in " in result.output
    assert "gradients  g.npy" in result.output
    assert "batch: 1/1 chunks, " in result.output


def test_without_params_with_workers(folder):
    result = invoke("energy", "--data", "x.npy", "--out", "g.npy", "--workers", 2, "--chunk-size", 8)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(np.load("g.npy"), 2 * X)
    assert invoke("Model.energy", "--data", "x.npy", "--out", "m.npy").exit_code == 0


def test_reduction_and_several_sources(folder):
    result = invoke(
        "pair", "--data", "x.npy", "--data", "y.npy", "--params", "p.npz", "--reduce", "mean", "--out", "g.npz"
    )
    assert result.exit_code == 0, result.output
    with np.load("g.npz") as found:
        np.testing.assert_allclose(found["w"], (2 * (X @ W - X[:, 0])[:, None] * X).mean(0))
    assert "value      " in result.output


def test_wrt_both(folder):
    result = invoke("loss", "--data", "x.npy", "--params", "p.npz", "--wrt", "params,data", "--out", "g.npy")
    assert result.exit_code == 0, result.output
    assert np.load("g.npy").shape == (20, 9)


def test_failing_samples(folder):
    data = X.copy()
    data[[3, 4], 0] = 7
    np.save("x.npy", data)
    result = invoke("picky", "--data", "x.npy", "--out", "g.npy")
    assert result.exit_code == 1
    assert "Error: the function fails on sample 3: ValueError: too large; mend " in result.output
    assert "such samples and list them: --on-error nan" in result.output
    assert "0 of 20 samples are committed" in result.output
    result = invoke("picky", "--data", "x.npy", "--out", "g.npy", "--on-error", "nan", "--resume")
    assert result.exit_code == 0, result.output
    assert "failed     2 samples\n           3 to 4: ValueError: too large" in result.output


@pytest.mark.parametrize(
    ("function", "arguments", "code", "message"),
    [
        ("loss", [], 2, "Missing option '--data'"),
        ("loss", ["--data", "x.npy", "--reduce", "max"], 2, "'max' is not one of 'sum', 'mean'"),
        ("loss", ["--data", "x.npy", "--on-error", "skip"], 2, "'skip' is not one of 'raise', 'nan'"),
        ("loss", ["--data", "x.npy", "--workers", "many"], 2, "'many' is not a valid integer"),
        ("loss", ["--data", "no.npy", "--params", "p.npz", "--out", "g.npy"], 1, "there is no file no.npy"),
        ("loss", ["--data", "x.npy", "--params", "no.npz", "--out", "g.npy"], 1, "params: there is no file no.npz"),
        ("loss", ["--data", "x.npy", "--params", "p.npz"], 1, "there is nowhere to put results"),
        ("loss", ["--data", "x.npy", "--out", "g.npy"], 1, "f(sample), without params, but does not take these"),
        ("energy", ["--data", "x.npy", "--out", "g.txt"], 1, "out must end with .npy or .zarr"),
        ("energy", ["--data", "x.npy", "--out", "g.npy", "--wrt", "weights"], 1, "wrt must be 'params', 'data'"),
        ("energy", ["--data", "x.npy", "--out", "g.npy", "--workers", "0"], 1, "workers must be None or a positive"),
        ("energy", ["--data", "x.npy", "--out", "no/g.npy"], 1, "there is no folder no; make it first"),
        ("energy", ["--data", "x.npy", "--out", "y.npy"], 1, "the output exists; give another name, replace it with --overwrite"),
        ("energy", ["--data", "p.json", "--out", "g.npy"], 1, "is no .npy file, no .zarr store and no Parquet dataset"),
        ("vector", ["--data", "x.npy", "--out", "g.npy"], 1, "must return a scalar"),
        ("nothing", ["--data", "x.npy", "--out", "g.npy"], 1, "has no 'nothing'; it has Model, dies, energy, loss, pair"),
    ],
)  # fmt: skip
def test_errors_and_exit_codes(folder, function, arguments, code, message):
    result = invoke(function, *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("model", 2, "'model' is not MODULE:FUNCTION, such as model:loss"),
        ("no_such_module:f", 1, "cannot import module 'no_such_module': ModuleNotFoundError"),
        ("broken:f", 1, "cannot import module 'broken': SyntaxError"),
    ],
)
def test_functions_that_cannot_be_imported(folder, name, code, message):
    (folder / "broken.py").write_text("def f(:\n")
    result = CliRunner().invoke(main, ["batch", name, "--data", "x.npy", "--out", "g.npy"])
    assert result.exit_code == code
    assert message in result.output


def cut_short():
    with open("x.npy", "r+b") as file:
        file.truncate(500)


@pytest.mark.parametrize(
    ("function", "data", "message"),
    [
        ("energy", cut_short, "is cut short: its header announces 20 samples (640 bytes), and 11 are there"),
        ("energy", lambda: np.save("x.npy", np.full((20, 4), "a")), "has dtype <U1, which tensors cannot hold; convert it"),
        ("energy", lambda: np.save("x.npy", X.astype(int)), "which has dtype int64; store it as float32 or float64"),
        ("energy", lambda: np.save("x.npy", np.array([[1.0], [1.0, 2.0]], object)), "holds Python objects; save it as"),
        ("writes", None, "the function writes to its inputs"),
        ("random", None, "it uses random numbers, or state that changes"),
    ],
)  # fmt: skip
def test_data_and_functions_that_are_refused(folder, function, data, message):
    if data is not None:
        data()
    result = invoke(function, "--data", "x.npy", "--out", "g.npy")
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert not os.path.exists("g.npy.journal")


def test_parts_of_uneven_length(folder):
    np.save("y.npy", X[:7, 0])
    result = invoke("pair", "--data", "x.npy", "--data", "y.npy", "--params", "p.npz", "--out", "g.npy")
    assert result.exit_code == 1
    assert "all parts of data must have the same number of samples, but data[0] has 20, data[1] has 7" in result.output


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("function", "bad", "message"),
    [
        ("energy", np.nan, "the function fails on sample 13: the value is NaN: the sample itself holds NaN; mend the"),
        ("picky", 9.0, "the function fails on sample 13: ValueError: too large"),
        ("writes_later", 9.0, "the function writes to its inputs"),
    ],
)
def test_what_is_committed_before_a_bad_sample_is_kept(folder, function, bad, message):
    data = X.copy()
    data[13, 0] = bad
    np.save("x.npy", data)
    arguments = ("--data", "x.npy", "--out", "g.npy", "--chunk-size", 8, "--workers", 1)
    result = invoke(function, *arguments)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert "8 of 20 samples are committed, and --resume goes on from there" in result.output
    np.save("x.npy", X)
    result = invoke(function, *arguments, "--resume")
    assert result.exit_code == 1
    assert "begun by another job: content of data is another" in result.output
    assert "start afresh with --overwrite" in result.output


@pytest.mark.usefixtures("small_blocks")
def test_a_full_disk(folder, monkeypatch):
    write = _sinks.NpySink.write

    def full(self, start, lines):
        if start >= 8:
            raise OSError(errno.ENOSPC, "No space left on device", self.part)
        write(self, start, lines)

    arguments = ("--data", "x.npy", "--out", "g.npy", "--chunk-size", 8, "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(_sinks.NpySink, "write", full)
        result = invoke("energy", *arguments)
    assert result.exit_code == 1
    assert (
        "the disk is full: 8 of 20 samples are committed, and --resume goes on from there; make room" in result.output
    )
    assert invoke("energy", *arguments, "--resume").exit_code == 0
    np.testing.assert_allclose(np.load("g.npy"), 2 * X)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only")
def test_a_worker_that_dies(folder):
    data = np.ones((600, 4))
    data[:, 0] = np.linspace(0, 1, 600)
    data[500, 0] = 9
    np.save("x.npy", data)
    done = subprocess.run(
        [sys.executable, "-m", "tapegrad.cli", "batch", "model_of_command:dies", "--data", "x.npy", "--out", "g.npy"]
        + ["--workers", "2", "--chunk-size", "1"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(processes.ROOT), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert (
        "was killed by SIGKILL, as happens when memory runs out; resume with fewer workers or a smaller --chunk-size"
        in done.stderr
    )
    assert "of 600 samples are committed" in done.stderr
    assert "Traceback" not in done.stderr


def test_resume_and_overwrite(folder):
    assert invoke("energy", "--data", "x.npy", "--out", "g.npy").exit_code == 0
    assert "after 20 that were done before" in invoke("energy", "--data", "x.npy", "--out", "g.npy", "--resume").output
    result = invoke("picky", "--data", "x.npy", "--out", "g.npy", "--resume")
    assert result.exit_code == 1
    assert "begun by another job: " in result.output
    assert "code of energy is gone" in result.output
    assert "start afresh with --overwrite" in result.output
    assert invoke("picky", "--data", "x.npy", "--out", "g.npy", "--overwrite").exit_code == 0
    np.testing.assert_array_equal(np.load("g.npy"), 1)
    result = invoke("picky", "--data", "x.npy", "--out", "g.npy", "--overwrite", "--resume")
    assert result.exit_code == 1
    assert "choose one" in result.output


def test_a_scheduler_that_does_not_answer(folder, monkeypatch):
    pytest.importorskip("distributed")
    from tapegrad.batch import _dask

    monkeypatch.setattr(_dask, "_SECONDS_TO_ANSWER", 1)
    result = invoke("energy", "--data", "x.npy", "--out", "g.npy", "--scheduler", "tcp://127.0.0.1:9")
    assert result.exit_code == 1
    assert "the scheduler at tcp://127.0.0.1:9 does not answer within 1 s" in result.output
    assert not os.path.exists("g.npy.journal")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_interrupt_exits_with_130(folder):
    (folder / "slow.py").write_text(
        "import time\nfrom tapegrad.batch import _job\n_job._MOST_IN_BLOCK = 4\n"
        "def f(x):\n    time.sleep(0.2)\n    return x.sum() if float(x[0]) < 9 else x.mean()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tapegrad.cli", "batch", "slow:f", "--data", "x.npy", "--out", "g.npy", "--chunk-size", "4"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(processes.ROOT), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    journal = folder / "g.npy.journal"
    while not (journal.exists() and journal.read_text().count('{"samples"')) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("interrupted: ")
    assert errors.splitlines()[-1].endswith("of 20 samples are committed, and --resume goes on from there")
    assert "Traceback" not in errors
