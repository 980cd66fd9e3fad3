"""The same job on Dask workers: the same bytes, also when one of them is lost."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

import tapegrad as tg
from tests.batch.models import PARAMS, by_hand, samples
from tests.batch.test_run import lines_of, run
from tests.batch.test_sources import npy

distributed = pytest.importorskip("distributed")
DATA = samples(64)


@pytest.fixture(scope="module")
def client():
    """Two workers in processes of their own."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as made,
    ):
        yield made


@pytest.fixture(autouse=True)
def small_blocks_everywhere(small_blocks):
    """Blocks are decided once, in the process that starts the job."""


def functions():
    """Functions that are sent by value, as those of a notebook are; the workers need not import this module."""

    def loss(params, x):
        return (tg.tanh(x * params["w"] + params["b"]) ** 2).sum()

    def slow(params, x):
        import time

        if float(x[0]) > 100:  # a path of its own for every sample, so that it is called once a sample
            return x.sum() * params["w"].sum()
        time.sleep(0.01)
        return (tg.tanh(x * params["w"] + params["b"]) ** 2).sum()

    def picky(params, x):
        if x[0] > 5:
            raise ArithmeticError("too large")
        return (x * params["w"]).sum()

    def deadly(params, x):
        import os

        if x[0] > 5:
            os._exit(1)
        return (x * params["w"]).sum()

    made = {"loss": loss, "slow": slow, "picky": picky, "deadly": deadly}
    for f in made.values():
        f.__module__ = "__main__"
    return made


F = functions()


@pytest.mark.parametrize("source", ["array", "file", "Dask array"])
def test_the_same_bytes(client, source, tmp_path):
    data = {
        "array": lambda: DATA,
        "file": lambda: npy(tmp_path / "x.npy", DATA),
        "Dask array": lambda: pytest.importorskip("dask.array").from_array(DATA, chunks=(10, 4)),
    }[source]()
    here, there = tmp_path / "here.npy", tmp_path / "there.npy"
    run(F["loss"], DATA, PARAMS, out=here)
    report = run(F["loss"], data, PARAMS, out=there, client=client, chunk_size=16)
    assert report.samples == 64
    assert there.read_bytes() == here.read_bytes()
    np.testing.assert_allclose(np.load(here), by_hand(F["loss"], DATA, PARAMS)[1], rtol=1e-12, atol=1e-14)


def test_the_same_bits_of_a_reduction(client):
    found = [run(F["loss"], DATA, PARAMS, reduce="mean", client=c) for c in (None, client)]
    assert found[0].value == found[1].value
    assert found[0].gradient["w"].tobytes() == found[1].gradient["w"].tobytes()


def replaced(client, pids):
    """Whether other processes come to be the workers; one that died may be asked still for a while."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if client.run(os.getpid) != pids:
                return True
        except OSError:
            pass
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_worker_that_is_killed_is_replaced(client, tmp_path):
    pids = client.run(os.getpid)
    path, journal = tmp_path / "g.npy", tmp_path / "g.npy.journal"

    def kill_one():
        end = time.monotonic() + 60
        while not (journal.exists() and '{"samples"' in journal.read_text()) and time.monotonic() < end:
            time.sleep(0.005)
        os.kill(next(iter(pids.values())), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    run(F["slow"], DATA, PARAMS, out=path, values=tmp_path / "v.npy", client=client, chunk_size=8)
    killer.join()
    assert replaced(client, pids)
    values, lines = by_hand(F["loss"], DATA, PARAMS)
    np.testing.assert_allclose(np.load(path), lines, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), values, rtol=1e-12)


def test_failing_samples(client, tmp_path):
    data = DATA.copy()
    data[[20, 21], 0] = 9
    with pytest.raises(RuntimeError, match="the function fails on sample 20: ArithmeticError: too large"):
        run(F["picky"], data, PARAMS, out=tmp_path / "g.npy", client=client, chunk_size=8)
    report = run(F["picky"], data, PARAMS, out=tmp_path / "g.npy", client=client, on_error="nan", resume=True)
    assert report.failed.tolist() == [20, 21]


def test_a_function_that_cannot_be_imported_there(client, tmp_path):
    import types

    module = types.ModuleType("only_here")
    exec("def f(x):\n    return x.sum()\n", module.__dict__)
    sys.modules["only_here"] = module
    try:
        with pytest.raises(ImportError, match=r"Dask workers cannot import what the function needs .*only_here"):
            run(module.f, DATA, out=tmp_path / "g.npy", client=client)
    finally:
        del sys.modules["only_here"]


def test_a_function_that_cannot_be_sent(client, tmp_path):
    lock = threading.Lock()

    def f(x):
        with lock:
            return x.sum()

    with pytest.raises(TypeError, match="cannot be sent to Dask workers"):
        run(f, DATA, out=tmp_path / "g.npy", client=client)
    assert not os.listdir(tmp_path)  # where nothing is committed, nothing is left


def test_zarr_output(client, tmp_path):
    pytest.importorskip("zarr")
    run(F["loss"], DATA, PARAMS, out=tmp_path / "g.zarr", client=client)
    np.testing.assert_allclose(
        lines_of(tmp_path / "g.zarr", ["w", "b"]), by_hand(F["loss"], DATA, PARAMS)[1], rtol=1e-12
    )


def test_no_workers(tmp_path, monkeypatch):
    from tapegrad.batch import _dask

    monkeypatch.setattr(_dask, "_SECONDS_TO_ANSWER", 1)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as idle,
        pytest.raises(RuntimeError, match="has no workers; start some with `dask worker ADDRESS`"),
    ):
        run(F["loss"], DATA, PARAMS, out=tmp_path / "g.npy", client=idle)


def test_workers_that_die_again_and_again(client, tmp_path, monkeypatch):
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 1)
    data = DATA.copy()
    data[40, 0] = 9
    with pytest.raises(RuntimeError, match="Dask workers died again and again on one chunk") as caught:
        run(F["deadly"], data, PARAMS, out=tmp_path / "g.npy", client=client, chunk_size=8)
    assert "of 64 samples are committed" in caught.value.__notes__[-1]


def test_a_scheduler_that_goes_away(tmp_path, monkeypatch):
    from tapegrad.batch import _dask

    monkeypatch.setattr(_dask, "_SECONDS_TO_ANSWER", 1)
    journal = tmp_path / "g.npy.journal"
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0")

    def close():
        end = time.monotonic() + 60
        while not (journal.exists() and journal.read_text().count('{"samples"') > 2) and time.monotonic() < end:
            time.sleep(0.005)
        cluster.close()

    closer = threading.Thread(target=close)
    with distributed.Client(cluster, set_as_default=False, timeout=2) as made:
        closer.start()
        with pytest.raises(ConnectionError, match="the connection to the Dask scheduler is lost") as caught:
            run(F["slow"], DATA, PARAMS, out=tmp_path / "g.npy", client=made, chunk_size=8)
        closer.join()
    assert "samples are committed, and resume=True goes on from there" in caught.value.__notes__[-1]
