"""Large parallel work gives the same numbers in forked processes and on any number of threads."""

import os

import pytest

from tests.processes import run

# the sort of work that is shared among cores
LARGE = """
import hashlib, json, os
import numpy as np
import tapegrad as tg

def large():
    rng = np.random.default_rng(0)
    results = []
    for dtype in ("float32", "float64"):
        x = tg.tensor(rng.standard_normal((700, 901)).astype(dtype), requires_grad=True)
        row = tg.tensor(rng.standard_normal(901).astype(dtype), requires_grad=True)
        y = (x * row).sin() + (x * x + 1).log() * row.sigmoid()
        labels = tg.tensor(rng.integers(0, 901, 700))
        loss = tg.nn.functional.cross_entropy(y, labels) + (y.t().exp() * x.t()).mean() + x.softmax(0).amax()
        loss.backward()
        with tg.no_grad():
            more = [y.sum(), y.sum(0), y.sum(1), y.var(), y.var(0), y.mean(1), y.amax(0), y.argmax(1)]
            more += [y.prod(1), y.cumsum(0), y.cumsum(1), y.logsumexp(0), y.std(1), x.t().contiguous()]
        results += [y, loss, x.grad, row.grad, *more]
    return [hashlib.sha256(r.detach().contiguous().numpy().tobytes()).hexdigest() for r in results]
"""

FORK = (
    LARGE
    + """
def in_child():
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if large() == expected else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

expected = large() if WORKED_BEFORE else None
if expected is None:
    pid = os.fork()  # nothing but the import has happened
    if pid == 0:
        code = 1
        try:
            large()
            code = 0
        finally:
            os._exit(code)
    first = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    expected = large()
    print(json.dumps([first, in_child()]))
else:
    print(json.dumps([in_child(), in_child(), 0 if large() == expected else 2]))
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("worked_before", [False, True], ids=["after import", "after large parallel work"])
def test_a_fork_computes_the_same(worked_before):
    codes, _ = run(FORK.replace("WORKED_BEFORE", str(worked_before)))
    assert set(codes) == {0}


def test_results_do_not_depend_on_the_number_of_threads():
    text = LARGE + "print(json.dumps([large(), large()]))"
    one, _ = run(text, NUMBA_NUM_THREADS=1)
    two, _ = run(text, NUMBA_NUM_THREADS=2)
    three, _ = run(text, NUMBA_NUM_THREADS=3)
    assert one[0] == one[1]
    assert one == two
    assert one == three


def test_products_keep_to_one_core_where_they_are_told_to():
    from tapegrad.engine import blas

    controls = blas._thread_controls()
    if controls is None:
        pytest.skip("SciPy's BLAS does not say how many threads it uses")
    before = controls[0]()
    with blas.one_thread():
        assert controls[0]() == 1
    assert controls[0]() == before
