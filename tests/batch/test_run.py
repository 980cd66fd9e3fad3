"""Jobs from every source to every output, and their options."""

import itertools
import multiprocessing
import os
import sys

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.batch._chunk import Calculation
from tapegrad.batch._job import Job
from tapegrad.batch._sources import open_data
from tests import processes
from tests.batch.models import PARAMS, branching, by_hand, energy, loss, samples
from tests.batch.test_sources import KINDS, X, npy, opened, parquet

batch = tg.batch


def run(*arguments, **options):
    return batch.run(*arguments, **{"progress": False, "workers": 1} | options)


def lines_of(path, columns):
    """A Zarr output as lines."""
    group = pytest.importorskip("zarr").open_group(str(path), mode="r")
    assert sorted(group) == sorted(columns)
    return np.concatenate([group[c][:].reshape(group[c].shape[0], -1) for c in columns], 1)


@pytest.mark.parametrize("out", ["npy", "zarr"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_source_to_every_output(kind, out, tmp_path):
    values, lines = by_hand(loss, X, PARAMS)
    path, of_values = tmp_path / f"g.{out}", tmp_path / f"v.{out}"
    report = run(loss, opened(kind, tmp_path), PARAMS, out=path, values=of_values)
    if out == "npy":
        np.testing.assert_allclose(np.load(path), lines, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(np.load(of_values), values, rtol=1e-12)
    else:
        np.testing.assert_allclose(lines_of(path, ["w", "b"]), lines, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lines_of(of_values, ["values"])[:, 0], values)
    assert (report.samples, report.resumed, report.out, report.values) == (10, 0, str(path), str(of_values))
    assert report.failures == []
    assert sorted(p.name for p in tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("out", ["npy", "zarr"])
def test_parquet_to_every_output(out, tmp_path):
    def of_row(p, row):
        return p * row["a"] * tg.sin(row["b"])

    path = tmp_path / f"g.{out}"
    source = parquet(tmp_path / "x.parquet", {"a": X[:, 0], "b": X[:, 1]})
    run(of_row, source, np.array(2.0), wrt=("params", "data"), out=path)
    a, b = X[:, 0], X[:, 1]
    expected = np.stack([a * np.sin(b), 2 * np.sin(b), 2 * a * np.cos(b)], 1)
    found = np.load(path) if out == "npy" else lines_of(path, ["params", "data.a", "data.b"])
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_a_tuple_of_sources(tmp_path):
    def squared(p, sample):
        x, y = sample
        return (x @ p - y) ** 2

    run(squared, (npy(tmp_path / "x.npy"), X[:, 0]), np.ones(4), out=tmp_path / "g.npy")
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), 2 * (X.sum(1) - X[:, 0])[:, None] * X, rtol=1e-12)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["npy", "npy in Fortran order", "zarr", "Dask array"])
def test_workers_read_and_write_by_themselves(kind, tmp_path):
    out = tmp_path / "g.zarr" if kind == "zarr" else tmp_path / "g.npy"
    run(loss, opened(kind, tmp_path), PARAMS, out=out, workers=2, chunk_size=8)
    found = lines_of(out, ["w", "b"]) if kind == "zarr" else np.load(out)
    np.testing.assert_allclose(found, by_hand(loss, X, PARAMS)[1], rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("small_blocks")
def test_workers_read_parquet(tmp_path):
    source = parquet(tmp_path / "x.parquet", {"a": X[:, 0], "b": X[:, 1]})
    run(lambda row: row["a"] * row["b"], source, out=tmp_path / "g.npy", workers=2, chunk_size=8)
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), X[:, 1::-1])


@pytest.mark.usefixtures("small_blocks")
def test_workers_that_are_started_afresh(tmp_path, monkeypatch):
    from tapegrad.batch import _workers

    monkeypatch.setattr(_workers, "_START", "spawn")
    assert _workers.default_workers() == 1
    run(energy, X, out=tmp_path / "g.npy", workers=2, chunk_size=8)
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), by_hand(energy, X, wrt=("data",))[1], rtol=1e-13)
    with pytest.raises(TypeError, match=r"the function cannot be sent to other processes .*define it at the top of a"):
        run(lambda x: x.sum(), X, out=tmp_path / "h.npy", workers=2, chunk_size=8)


def in_a_daemon(pipe):
    pipe.send(run(energy, X, params=None, out=None, values=pipe.recv(), workers=2, chunk_size=8).samples)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only")
def test_processes_that_may_not_start_others_work_alone(tmp_path):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=in_a_daemon, args=(theirs,), daemon=True)
    process.start()
    ours.send(tmp_path / "v.npy")
    assert ours.poll(60)
    assert ours.recv() == 10
    process.join()


def test_a_client_without_dask(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"a Dask client needs distributed: pip install 'tapegrad\[dask\]'"):
        run(energy, X, out=tmp_path / "g.npy", client=object())


def test_samples_without_elements(tmp_path):
    run(lambda p, x: (p * x).sum(), np.zeros((5, 0)), np.zeros(0), wrt=("params", "data"), out=tmp_path / "g.npy")
    assert np.load(tmp_path / "g.npy").shape == (5, 0)


def test_whatever_the_grad_mode(tmp_path):
    weight = tg.tensor(X[0], requires_grad=True)
    for k, mode in enumerate((tg.no_grad, tg.enable_grad, tg.inference_mode)):
        with mode():
            run(lambda x: (weight * x * x).sum(), X, out=tmp_path / f"{k}.npy")
        np.testing.assert_allclose(np.load(tmp_path / f"{k}.npy"), 2 * X[0] * X, rtol=1e-13)


@pytest.mark.parametrize("wrt", ["params", "data", ("params", "data"), ("data", "params"), ["data"]])
def test_wrt(wrt, tmp_path):
    run(loss, X, PARAMS, wrt=wrt, out=tmp_path / "g.npy")
    expected = by_hand(loss, X, PARAMS, (wrt,) if isinstance(wrt, str) else wrt)[1]
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), expected, rtol=1e-12, atol=1e-14)


def test_without_params_the_data_are_differentiated(tmp_path):
    run(energy, X, out=tmp_path / "g.npy", values=tmp_path / "v.npy")
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), by_hand(energy, X, wrt=("data",))[1], rtol=1e-13)


def test_values_alone(tmp_path):
    run(loss, X, PARAMS, values=tmp_path / "v.npy")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), by_hand(loss, X, PARAMS)[0], rtol=1e-13)
    assert sorted(os.listdir(tmp_path)) == ["v.npy", "v.npy.journal"]


def test_float32_stays_float32(tmp_path):
    run(energy, X.astype(np.float32), out=tmp_path / "g.npy", values=tmp_path / "v.npy")
    assert np.load(tmp_path / "g.npy").dtype == np.float32
    assert np.load(tmp_path / "v.npy").dtype == np.float32


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("f", [loss, branching])
def test_no_byte_depends_on_chunks_or_workers(f, tmp_path):
    data, found = samples(83), set()
    for k, (size, workers) in enumerate(itertools.product((1, 8, 20, 83, 1000, "auto"), (1, 2))):
        path = tmp_path / f"{k}.npy"
        run(f, data, PARAMS, out=path, values=tmp_path / f"{k}.v.npy", chunk_size=size, workers=workers)
        found.add(path.read_bytes() + (tmp_path / f"{k}.v.npy").read_bytes())
    assert len(found) == 1
    np.testing.assert_allclose(np.load(path), by_hand(f, data, PARAMS)[1], rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("f", [loss, branching])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_no_bit_of_a_reduction_depends_on_chunks_or_workers(f, reduce, tmp_path):
    data, found = samples(83), set()
    for size, workers in itertools.product((1, 8, 24, 1000, "auto"), (1, 3)):
        report = run(f, data, PARAMS, reduce=reduce, chunk_size=size, workers=workers)
        found.add((report.value, report.gradient["w"].tobytes(), report.gradient["b"].tobytes()))
    assert len(found) == 1
    values, lines = by_hand(f, data, PARAMS)
    np.testing.assert_allclose(report.value, getattr(values, reduce)(), rtol=1e-12)
    np.testing.assert_allclose(report.gradient["w"], getattr(lines, reduce)(0)[:4], rtol=1e-12)
    np.testing.assert_allclose(report.gradient["b"], getattr(lines, reduce)(0)[4], rtol=1e-12)
    assert report.gradient["b"].shape == ()


@pytest.mark.parametrize("suffix", ["npy", "npz", "zarr"])
def test_a_reduced_gradient_on_disk(suffix, tmp_path):
    path = tmp_path / f"g.{suffix}"
    report = run(loss, X, PARAMS, reduce="mean", out=path, values=tmp_path / "v.npy")
    expected = by_hand(loss, X, PARAMS)[1].mean(0)
    if suffix == "npy":
        found = np.load(path)
    elif suffix == "npz":
        with np.load(path) as file:
            found = np.append(file["w"], file["b"])
    else:
        group = pytest.importorskip("zarr").open_group(str(path), mode="r")
        found = np.append(group["w"][:], group["b"][()])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(report.gradient["w"], expected[:4], rtol=1e-12)
    assert np.load(tmp_path / "v.npy").shape == (10,)
    run(lambda p, x: (p * x).sum(), X, np.ones((1, 4)), reduce="sum", out=tmp_path / "one.npy")
    assert np.load(tmp_path / "one.npy").shape == (1, 4)


def logarithm(p, x):
    if x[0] > 1:
        raise ArithmeticError("too large")
    return p * x.sum()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("workers", [1, 2])
def test_failing_samples(workers, tmp_path):
    data = samples(50) / 10
    data[[0, 17, 18], 0] = 2
    data[[30, 31], 2] = np.nan
    path = tmp_path / "g.npy"
    report = run(
        logarithm,
        data,
        np.array(1.0),
        out=path,
        values=tmp_path / "v.npy",
        on_error="nan",
        workers=workers,
        chunk_size=8,
    )
    assert report.failed.tolist() == [0, 17, 18, 30, 31]
    assert report.failures == [
        (0, 1, "ArithmeticError: too large"),
        (17, 19, "ArithmeticError: too large"),
        (30, 32, "the value is NaN: the sample itself holds NaN"),
    ]
    assert np.flatnonzero(np.isnan(np.load(path)[:, 0])).tolist() == [0, 17, 18, 30, 31]
    assert np.flatnonzero(np.isnan(np.load(tmp_path / "v.npy"))).tolist() == [0, 17, 18, 30, 31]
    assert "failed     5 samples" in str(report)
    good = np.delete(data, report.failed, 0)
    report = run(logarithm, data, np.array(1.0), reduce="mean", on_error="nan", workers=workers, chunk_size=8)
    np.testing.assert_allclose(report.gradient, good.sum(1).mean(), rtol=1e-12)
    assert report.failed.tolist() == [0, 17, 18, 30, 31]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_sample_ends_the_job_and_what_is_done_is_kept(workers, tmp_path):
    data = samples(50) / 10
    data[37, 0] = 2
    with pytest.raises(
        RuntimeError, match="the function fails on sample 37: ArithmeticError: too large; mend"
    ) as caught:
        run(logarithm, data, np.array(1.0), out=tmp_path / "g.npy", workers=workers, chunk_size=8)
    assert caught.value.__notes__ == ["batch: 32 of 50 samples are committed, and resume=True goes on from there"]
    np.testing.assert_allclose(np.load(tmp_path / "g.npy.part")[:32, 0], data[:32].sum(1))
    report = run(logarithm, data, np.array(1.0), out=tmp_path / "g.npy", on_error="nan", resume=True)
    assert (report.resumed, report.failed.tolist()) == (32, [37])
    with pytest.raises(ValueError, match=r"cannot resume with on_error='raise': sample 37 failed"):
        run(logarithm, data, np.array(1.0), out=tmp_path / "g.npy", resume=True)


def test_the_first_sample_fails(tmp_path):
    with pytest.raises(RuntimeError, match="the function fails on sample 0: the value is NaN: the sample itself holds"):
        run(loss, X * np.nan, PARAMS, out=tmp_path / "g.npy")
    with pytest.raises(RuntimeError, match="the function fails on each of the first 10 samples: the value is NaN"):
        run(loss, X * np.nan, PARAMS, out=tmp_path / "g.npy", on_error="nan")
    assert not os.listdir(tmp_path)


counter = itertools.count()


def counting(p, x):
    return (p * x).sum() + next(counter)


class ChangesLater:
    """Gives other results after some calls."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, p, x):
        self.calls -= 1
        return (p * x).sum() * (2 if self.calls < 0 else 1)


def writes(p, x):
    x += 1
    return (p * x).sum()


@pytest.mark.parametrize(
    ("f", "kind", "message"),
    [
        (lambda p, x: p * x, TypeError, r"must return a scalar, .*returned a tensor of shape \[4\] and dtype tapegrad"),
        (lambda p, x: 3.0, TypeError, "must return a scalar, .* returned <class 'float'>; reduce it"),
        (lambda p, x: (p * x).sum().long(), TypeError, r"must return a scalar, .*dtype tapegrad.int64"),
        (lambda p, x: None, TypeError, "must return a scalar"),
        (lambda x: x.sum(), TypeError, r"called as f\(params, sample\), with params, but does not take these"),
        (3, TypeError, "the function is a int, which cannot be called"),
        (writes, RuntimeError, "the function writes to its inputs"),
        (lambda p, x: (p.mul_(2) * x).sum(), RuntimeError, "the function writes to its inputs"),
        (counting, RuntimeError, "gives two results for sample 0 when called twice"),
        (lambda p, x: (p * x + tg.rand(4)).sum(), RuntimeError, "it uses random numbers, or state that changes"),
        (lambda p, x: (p @ x[:3]).sum(), RuntimeError, "fails on sample 0: RuntimeError: "),
    ],
)
def test_functions_that_are_refused(f, kind, message, tmp_path):
    kept = X.copy()
    with pytest.raises(kind, match=message):
        run(f, X, np.ones(4), out=tmp_path / "g.npy")
    np.testing.assert_array_equal(X, kept)
    assert not os.listdir(tmp_path)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("workers", [1, 2])
def test_state_that_changes_on_the_way(workers, tmp_path):
    with pytest.raises(
        RuntimeError, match=r"began to give another result for sample 0 than at the start: it depends on"
    ) as caught:
        run(ChangesLater(6), samples(64), np.ones(4), out=tmp_path / "g.npy", workers=workers, chunk_size=8)
    assert "samples are committed" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, "nowhere to put results"),
        ({"out": "g.txt"}, ValueError, r"out must end with \.npy or \.zarr, got 'g.txt'"),
        ({"out": "g.npz"}, ValueError, r"out must end with \.npy or \.zarr"),
        ({"values": "v.npz"}, ValueError, r"values must end with \.npy or \.zarr"),
        ({"out": "g.npy", "values": "g.npy"}, ValueError, "out and values are the same file"),
        ({"out": "/no/such/folder/g.npy"}, FileNotFoundError, "there is no folder /no/such/folder"),
        ({"reduce": "max"}, ValueError, "reduce must be None, 'sum' or 'mean', got 'max'"),
        ({"reduce": "sum", "wrt": "data"}, ValueError, "adds up gradients with respect to params, not data"),
        ({"reduce": "sum", "resume": True}, ValueError, "nothing is kept that could be resumed"),
        ({"out": "g.npy", "on_error": "skip"}, ValueError, "on_error must be 'raise' or 'nan', got 'skip'"),
        ({"out": "g.npy", "chunk_size": 0}, ValueError, "chunk_size must be 'auto' or a positive number"),
        ({"out": "g.npy", "chunk_size": "big"}, ValueError, "chunk_size must be 'auto' or a positive number"),
        ({"out": "g.npy", "workers": 0}, ValueError, "workers must be None or a positive number"),
        ({"out": "g.npy", "wrt": "weights"}, ValueError, "wrt must be 'params', 'data' or a tuple of both"),
        ({"out": "g.npy", "wrt": ()}, ValueError, "wrt must be"),
        ({"out": "g.npy", "params": None, "wrt": "params"}, ValueError, "wrt names params, but there are none"),
        ({"out": "g.npy", "resume": True, "overwrite": True}, ValueError, "choose one"),
        (
            {"out": "g.npy", "params": {"w": np.ones(4, int)}},
            TypeError,
            r"respect to params\['w'\], which has dtype int64",
        ),
        ({"out": "g.npy", "params": {"w": "x"}}, TypeError, r"params\['w'\] is a str"),
        ({"out": "g.npy", "client": 3}, TypeError, "client must be a dask.distributed.Client, got int"),
    ],
)
def test_options_that_are_refused(options, kind, message, tmp_path, monkeypatch):
    if "client" in options:
        pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        run(loss, X, **{"params": PARAMS} | options)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".npy")]


def test_integer_data_cannot_be_differentiated(tmp_path):
    with pytest.raises(TypeError, match="with respect to data, which has dtype int64; store it as float32 or float64"):
        run(energy, np.arange(4), out=tmp_path / "g.npy")


def test_an_output_that_exists(tmp_path):
    path = tmp_path / "g.npy"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="the output exists; give another name, replace it with overwrite=True"):
        run(loss, X, PARAMS, out=path)
    with pytest.raises(FileExistsError, match="no journal beside it tells what it was made of"):
        run(loss, X, PARAMS, out=path, resume=True)
    assert path.read_bytes() == b"precious"
    run(loss, X, PARAMS, out=path, overwrite=True)
    first = path.read_bytes()
    run(loss, X + 1, PARAMS, out=path, overwrite=True)
    assert path.read_bytes() != first
    folder = tmp_path / "g.zarr"
    for data in (X, X + 1):
        run(loss, data, PARAMS, out=folder, overwrite=True)
    np.testing.assert_allclose(lines_of(folder, ["w", "b"]), np.load(path))


def test_an_input_is_no_output(tmp_path):
    source = npy(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="is an input of the job and cannot be an output, too"):
        run(energy, source, out=source, overwrite=True)
    np.testing.assert_array_equal(np.load(source), X)


def test_the_report(tmp_path):
    report = run(loss, X, PARAMS, reduce="mean", out=tmp_path / "g.npy")
    assert report.rate == pytest.approx(10 / report.seconds)
    lines = str(report).splitlines()
    assert lines[0].startswith("10 samples in ")
    assert lines[1].startswith("value      ")
    assert lines[2] == f"gradients  {tmp_path / 'g.npy'}"


@pytest.mark.usefixtures("small_blocks")
def test_progress_in_plain_lines(tmp_path, capsys):
    run(loss, samples(40), PARAMS, out=tmp_path / "g.npy", progress=True, chunk_size=8)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("batch: 5/5 chunks, ")
    assert "s left, 40 of 40 samples, " in lines[-1]


def test_a_path_of_its_own_for_every_sample(tmp_path):
    def every(p, x):
        return (p * x).sum() * float(x[0])

    data = samples(300)
    report = run(every, data, np.ones(4), out=tmp_path / "g.npy", values=tmp_path / "v.npy")
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), data * data[:, :1], rtol=1e-12)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), data.sum(1) * data[:, 0], rtol=1e-12)
    assert report.rate > 100


@pytest.mark.parametrize("reduce", [None, "sum"])
def test_chunks_and_workers_change_no_bit(reduce, tmp_path, monkeypatch):
    from tapegrad.batch import _job

    def layer(p, x):  # a product whose last bits depend on how many rows there are, and on where one stands
        y = tg.tanh(x @ p["w"]).sum() + p["b"]
        return y if x[0] > 0 else y * x[1] if x[1] > 0 else -y

    monkeypatch.setattr(_job, "_MOST_IN_BLOCK", 512)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(3000, 32)).astype("f4")
    params = {"w": rng.normal(size=(32, 64)).astype("f4"), "b": np.float32(0.5).reshape(())}
    found = set()
    for k, options in enumerate(
        ({}, {"chunk_size": 512}, {"chunk_size": 512, "workers": 2}, {"chunk_size": 1024, "workers": 3})
    ):
        out = tmp_path / f"{k}.npy"
        run(layer, data, params, out=out, wrt="params" if reduce else "data", reduce=reduce, **options)
        found.add(out.read_bytes())
    assert len(found) == 1


def test_threads_of_blas_change_no_bit(tmp_path):
    text = f"""
import hashlib, json, numpy as np, tapegrad as tg
rng = np.random.default_rng(0)
w = rng.normal(size=(784, 128)).astype("f4")
tg.batch.run(lambda p, x: tg.tanh(x @ p).sum(), rng.normal(size=(200, 784)).astype("f4"), w, wrt="data",
             out={str(tmp_path / "g.npy")!r}, overwrite=True, workers=1, progress=False)
print(json.dumps(hashlib.sha256(open({str(tmp_path / "g.npy")!r}, "rb").read()).hexdigest()))
"""
    found = {processes.run(text, OPENBLAS_NUM_THREADS=k, OMP_NUM_THREADS=k)[0] for k in (1, 2)}
    assert len(found) == 1


def test_blocks_fit_a_cache_and_take_no_time(monkeypatch):
    def block(f, data, params=PARAMS, reduce=None):
        return Job(f, params, open_data(data), ("params",), reduce, False).block

    assert block(loss, samples(9)) == 65536
    assert block(branching, samples(9)) == 65536
    assert block(lambda p, x: p["w"].sum() * float(x[0]), samples(40)) == 256
    wide = np.ones((2, 3000))
    assert block(lambda p, x: (p * x).sum(), wide, np.ones(3000)) == 256  # of 48,000 bytes each
    assert block(lambda p, x: (p * x).sum(), wide, np.ones(3000), "sum") == 512
    assert block(lambda p, x: (p * x).sum(), np.ones(2), np.ones(300_000)) == 4
    monkeypatch.setattr(Calculation, "settle", lambda self, chunk: False)  # could not be recorded
    assert block(loss, samples(40)) == 4096


def test_more_gradients_than_fit_a_block(tmp_path):
    w = np.random.default_rng(0).normal(size=(4, 300_000))
    run(lambda p, x: tg.tanh(x @ p).sum(), X[:3], w, out=tmp_path / "g.npy", chunk_size=2, workers=2)
    expected = X[:3, :, None] * (1 - np.tanh(X[:3] @ w) ** 2)[:, None]
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), expected.reshape(3, -1), rtol=1e-8, atol=1e-12)
