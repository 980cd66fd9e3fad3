"""Memory does not grow over thousands of rounds, a recorded op is small, compaction keeps gradients right."""

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tests.helpers import leaf

ROUNDS = 20_000
WARM = 2_000  # kernels loaded, methods replaced, caches of every layer filled
F = tg.nn.functional


def counters():
    """What the engine holds; exact, so it may not move at all."""
    gc.collect()
    s = rt.state
    return {
        "live buffers": int(s["live_buffers"]),
        "live storages": int(s["live_storages"]),
        "live rows": int(s["row_count"] - s["dead_rows"]),
        "used bytes": int(s["used_bytes"]),
        "layouts": int(s["layout_count"]),
    }


def resident():
    """Bytes of memory this process has; None where the system does not say."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError:
        return None
    # the peak, which a leak raises as well
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def evaluating():
    """A network evaluated without `no_grad`."""
    w1, b1, w2 = leaf(np.full((4, 8), 0.1)), leaf(np.zeros(8)), leaf(np.full((8, 1), 0.2))
    x = tg.ones(2, 4, dtype=tg.float64)

    def step(k):
        y = tg.tanh(x @ w1 + b1) @ w2
        assert y.requires_grad

    return step


def training():
    """A network trained."""
    w, b = leaf(np.full((3, 4), 0.1)), leaf(np.zeros(3))
    optimizer = tg.optim.SGD([w, b], lr=0.01, momentum=0.9)
    x, labels = tg.ones(2, 4, dtype=tg.float64), tg.tensor([0, 2])

    def step(k):
        optimizer.zero_grad()
        F.cross_entropy(F.relu(F.linear(x, w, b)), labels).backward()
        optimizer.step()

    return step


def retaining():
    """A shared part differentiated again and again with `retain_graph=True`."""
    x = leaf([0.5, 1.5])
    shared = (x * 2).exp()

    def step(k):
        (shared.sin() * 3.0).sum().backward(retain_graph=True)
        if k % 100 == 0:
            x.grad = None

    return step


def dropping():
    """Graphs built and forgotten."""
    x = leaf([0.5, 1.5, 2.5])

    def step(k):
        _ = (x[1:] * x[:-1]).exp().sum() / 2.0

    return step


def failing():
    """Operations that are refused: wrong shapes, indices, roots, leaves, and graphs already freed."""
    x, m = leaf([1.0, 2.0]), leaf(np.ones((2, 3)))
    three = tg.ones(3, dtype=tg.float64)

    def freed():
        y = x.exp().sum()
        y.backward()
        y.backward()

    attempts = [
        lambda: x * 2 + three,
        lambda: x.exp() @ three,
        lambda: m @ m,
        lambda: (x * x).reshape(3),
        lambda: (x + 1)[5],
        lambda: tg.cat([m, m.sin(), three]),
        lambda: (x * x).backward(),
        lambda: x.add_(1),
        lambda: F.cross_entropy(m * 2, tg.tensor([0, 7])),
        lambda: m.sum(dim=4),
        lambda: tg.tensor(["a"]),
        freed,
    ]

    def step(k):
        try:
            attempts[k % len(attempts)]()
        except (RuntimeError, IndexError, TypeError, ValueError):
            return
        raise AssertionError(f"attempt {k % len(attempts)} was not refused")

    return step


def beside_an_old_intermediate():
    """Short graphs beside one that lives on, which keeps them from the tape's end."""
    x = leaf([0.5, 1.5])
    old = [(x * 2).exp(), None, None]

    def step(k):
        (x.sin() * 2.0).sum().backward()
        x.grad = None
        # one more lives for a few rounds, so that dead rows lie between live ones
        old[1 + k % 2] = (x * 3.0).cos()

    return step


SCENARIOS = [evaluating, training, retaining, dropping, failing, beside_an_old_intermediate]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_memory_does_not_grow(scenario):
    step = scenario()
    for k in range(WARM):
        step(k)
    before, resident_before, blocks_before = counters(), resident(), sys.getallocatedblocks()
    for k in range(WARM, WARM + ROUNDS):
        step(k)
    after, resident_after, blocks_after = counters(), resident(), sys.getallocatedblocks()
    assert after == before
    assert rt.state["row_count"] < 10_000  # dead rows wait for a compaction, but not for long
    # a Python object or an attribute block lost each round would be 20,000
    assert blocks_after - blocks_before < 2_000
    if resident_before is not None:
        assert resident_after - resident_before < 4 << 20
    del step
    gc.collect()


def test_a_scenario_leaves_nothing_behind():
    gc.collect()
    before = counters()
    for scenario in SCENARIOS:
        step = scenario()
        for k in range(50):
            step(k)
        del step
    after = counters()
    constants = 16  # numbers such as 2.0 stay known
    assert after["live rows"] == before["live rows"]
    assert after["live buffers"] - before["live buffers"] <= constants
    assert after["used bytes"] - before["used bytes"] <= constants * 64


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_bytes_of_a_recorded_scalar_op(count):
    def chain(n):
        # each op saves what it was given: the dearest kind
        y = x
        for _ in range(n // 2):
            y = (y * x).sin()
        return y

    x = leaf(0.5)
    chain(4_000).backward()
    before, resident_before = counters(), resident()
    y = chain(count)
    after, resident_after = counters(), resident()
    grown = {name: after[name] - before[name] for name in before}
    assert grown["live rows"] == count
    told = (
        grown["used bytes"]
        + grown["live rows"] * structs.ROW.itemsize
        + grown["live buffers"] * structs.BUFFER.itemsize
        + grown["live storages"] * structs.STORAGE.itemsize
    )
    assert told / count <= 200
    # of a shorter chain one could not tell the ops from what the C library keeps back when a table moves
    if resident_before is not None and count == 1_000_000:
        assert (resident_after - resident_before) / count <= 200
    y.backward()  # a sweep over so long a tape needs no stack
    del y
    assert counters()["live rows"] == before["live rows"]


def test_compaction_keeps_gradients_right():
    x = leaf([0.3, 0.7])
    a = (x * 2).exp()
    for k in range(3_000):
        _ = (x * (k % 7)).sin() + a  # dead at once
    b = (a * x).sin()
    kept, dead = [], []
    for k in range(6_000):
        dead.append((x + 1.0).cos() * b)
        if k % 1_000 == 0:
            kept.append((b * x).cos() * float(k + 1))
    high = int(rt.state["row_count"])
    dead.clear()
    gc.collect()
    assert rt.state["row_count"] < high / 2
    for _ in range(5_000):
        _ = x * x
    total = sum(kept).sum()
    total.backward()

    v = np.array([0.3, 0.7])
    av = np.exp(2 * v)
    bv, db = np.sin(av * v), np.cos(av * v) * (av + 2 * av * v)
    factor = sum(k + 1 for k in range(0, 6_000, 1_000))
    np.testing.assert_allclose(x.grad.numpy(), factor * -np.sin(bv * v) * (bv + v * db), rtol=1e-12)


def test_compaction_under_views_and_in_place_writes():
    x = leaf(np.arange(6.0))
    base = x * 1.0
    view = base[1:4]
    view *= 3.0
    junk = [x.exp() for _ in range(9_000)]
    tail = base.reshape(2, 3) * 2
    del junk
    gc.collect()
    for _ in range(5_000):
        _ = x.exp()
    tail[0] = 7.0
    tail.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 0, 6, 2, 2])


def test_the_highest_use_of_memory_is_one_graphs():
    x = leaf(np.full(1000, 0.5))
    x.sin().sin().sum().backward()
    gc.collect()
    rt.state["peak_bytes"] = start = int(rt.state["used_bytes"])
    for _ in range(500):
        x.sin().sin().sum().backward()
    assert rt.state["peak_bytes"] - start < 10 * 8_000
