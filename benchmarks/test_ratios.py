"""Every workload in PyTorch and in tapegrad, one group a row: ``python -m pytest benchmarks -n 0``."""

import importlib

import numpy as np
import pytest

from benchmarks import higher_order  # noqa: F401 - adds its rows to WORKLOADS
from benchmarks.programs import RACES
from benchmarks.work import WORKLOADS, torch_or_none

rows = pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.name)


@rows
@pytest.mark.parametrize("library", ["torch", "tapegrad"])
def test_work(benchmark, library, work):
    if library == "torch" and torch_or_none() is None:
        pytest.skip("PyTorch is not installed: nothing to compare with")
    run = work.make(importlib.import_module(library))
    run()
    benchmark.group = work.name
    benchmark.extra_info.update(library=library, minimum=work.minimum, expected=work.expected)
    benchmark(run)


@rows
def test_both_libraries_do_the_same_work(work):
    torch = torch_or_none()
    if torch is None:
        pytest.skip("PyTorch is not installed: nothing to compare with")
    tapegrad = importlib.import_module("tapegrad")
    ours, theirs = work.make(tapegrad)(), work.make(torch)()
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().numpy(), b.detach().numpy()
        assert a.dtype == b.dtype
        tolerance = 1e-3 if a.dtype == np.float32 else 1e-9
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("work", [w for w in WORKLOADS if w.hips], ids=lambda work: work.name)
def test_hips_autograd_does_the_same_work(work):
    pytest.importorskip("autograd")
    ours = work.make(importlib.import_module("tapegrad"))()
    for a, b in zip(ours, work.hips()(), strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("contest", RACES, ids=lambda contest: contest.name)
def test_recorded_programs_do_the_same_work(contest):
    from tapegrad._tree import flatten

    def numbers(job):
        found = [np.asarray(v.detach() if hasattr(v, "detach") else v) for v in flatten(job())[0]]
        return sorted(found, key=lambda a: (a.ndim, a.size))

    ours = numbers(contest.jobs["tapegrad"]())
    for library, make in contest.jobs.items():
        if library not in ("JAX", "torch.func", "PyTorch"):
            continue
        try:
            theirs = numbers(make())
        except ImportError:
            continue
        for a, b in zip(ours, theirs, strict=True):
            tolerance = 1e-3 if a.dtype == np.float32 else 1e-8
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())
