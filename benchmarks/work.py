"""What is measured: one table of workloads, and one of figures of the engine alone.

A workload is written once, for any library with PyTorch's interface: a function of the library module `T`
that prepares its data and returns a callable of no arguments; what that returns lets the answers be compared.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

Job = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """One row of the comparison.

    Attributes:
        name: what the row is called.
        make: takes a library and returns what is timed.
        minimum: how many times faster than PyTorch it must be.
        expected: how many times faster it is expected to be.
        hips: makes the same for HIPS autograd, where it can do it.
    """

    name: str
    make: Callable[[Any], Job]
    minimum: float
    expected: float
    hips: Callable[[], Job] | None = None


WORKLOADS: list[Work] = []


def _row(
    name: str, minimum: float, expected: float, hips: Callable[[], Job] | None = None, **settings: Any
) -> Callable:
    def add(function: Callable) -> Callable:
        WORKLOADS.append(Work(name, lambda T: function(T, **settings), minimum, expected, hips))
        return function

    return add


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _leaf(T: Any, array: Any) -> Any:
    return T.tensor(array, requires_grad=True)


# A decorator further down runs first: rows are declared from the bottom up.


@_row("1,000 small ops, 10 elements, float64, forward and backward", 8, 12, shape=(10,))
@_row("1,000 small ops, 0-d, float64, forward and backward", 8, 12, shape=())
def small_ops(T: Any, shape: tuple[int, ...]) -> Job:
    """A chain of 500 products and 500 sums, differentiated."""
    x, c = _leaf(T, np.full(shape, 0.7)), T.tensor(np.full(shape, 0.1))

    def run() -> Any:
        x.grad = None
        y = x
        for _ in range(500):
            y = y * 0.999 + c
        (y.sum() if shape else y).backward()
        return y, x.grad

    return run


@_row("1,000 small ops, 0-d, float64, with ten hooks and ten custom functions among them", 3, 4)
def small_ops_and_users_code(T: Any) -> Job:
    """The same chain, with code of the user's here and there, which must cost its own calls only."""
    x, c = _leaf(T, np.array(0.7)), T.tensor(np.array(0.1))

    class Same(T.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g

    def run() -> Any:
        x.grad = None
        y = x
        for k in range(500):
            y = y * 0.999 + c
            if k % 50 == 0:
                y.register_hook(lambda g: None)
                y = Same.apply(y)
        y.backward()
        return y, x.grad

    return run


@_row("1,000 small ops, 10 elements, float64, under no_grad", 3, 4, shape=(10,))
@_row("1,000 small ops, 0-d, float64, under no_grad", 3, 4, shape=())
def small_ops_without_gradients(T: Any, shape: tuple[int, ...]) -> Job:
    """The same chain, not recorded."""
    x, c = _leaf(T, np.full(shape, 0.7)), T.tensor(np.full(shape, 0.1))

    def run() -> Any:
        with T.no_grad():
            y = x
            for _ in range(500):
                y = y * 0.999 + c
        return (y,)

    return run


@_row("Rosenbrock of 100 elements through slices, float64, forward and backward", 4, 8)
def rosenbrock(T: Any) -> Job:
    """A dozen ops on vectors, two of them slices."""
    x = _leaf(T, np.linspace(-1, 1, 100))

    def run() -> Any:
        x.grad = None
        a, b = x[:-1], x[1:]
        y = (100 * (b - a**2) ** 2 + (1 - a) ** 2).sum()
        y.backward()
        return y, x.grad

    return run


@_row("4-16-1 tanh network, 8 samples, float32, forward and backward", 4, 8)
def small_network(T: Any) -> Job:
    """Two small layers and a mean square."""
    rng = _rng()
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x, target = T.tensor(normal(8, 4)), T.tensor(normal(8, 1))
    parameters = [_leaf(T, p) for p in (normal(4, 16), normal(16), normal(16, 1), normal(1))]
    w1, b1, w2, b2 = parameters

    def run() -> Any:
        for p in parameters:
            p.grad = None
        guess = T.tanh(x @ w1 + b1) @ w2 + b2
        loss = ((guess - target) ** 2).mean()
        loss.backward()
        return loss, *(p.grad for p in parameters)

    return run


@_row("training step, 784-256-10 relu, batch 64, float32, with SGD's update", 1.1, 1.4)
def training_step(T: Any) -> Job:
    """What a training loop does with one batch."""
    rng = _rng()
    F = T.nn.functional
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    images, labels = T.tensor(normal(64, 784)), T.tensor(rng.integers(0, 10, 64))
    parameters = [
        _leaf(T, 0.03 * p) for p in (normal(256, 784), np.zeros(256, "f4"), normal(10, 256), np.zeros(10, "f4"))
    ]
    w1, b1, w2, b2 = parameters
    optimizer = T.optim.SGD(parameters, lr=0.01)

    def run() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(F.relu(F.linear(images, w1, b1)), w2, b2), labels)
        loss.backward()
        optimizer.step()
        return (loss,)

    return run


@_row("exp*log + tanh*sin + sigmoid, 10⁶ elements, float32, forward and backward", 1, 2, dtype="float32")
@_row("exp*log + tanh*sin + sigmoid, 10⁶ elements, float64, forward and backward", 1, 2, dtype="float64")
def transcendental(T: Any, dtype: str) -> Job:
    """Large pointwise work."""
    x = _leaf(T, np.linspace(0.5, 2, 10**6).astype(dtype))

    def run() -> Any:
        x.grad = None
        y = T.exp(x) * T.log(x) + T.tanh(x) * T.sin(x) + T.sigmoid(x)
        y.sum().backward()
        return y, x.grad

    return run


@_row("matmul 512×512, float64", 1, 1.3)
def matmul(T: Any) -> Job:
    """One matrix product."""
    rng = _rng()
    a, b = T.tensor(rng.standard_normal((512, 512))), T.tensor(rng.standard_normal((512, 512)))
    return lambda: (a @ b,)


@_row("cross entropy 1024×1000, float32, forward and backward", 1, 1.3)
def cross_entropy(T: Any) -> Job:
    """A loss over many classes."""
    rng = _rng()
    logits = _leaf(T, rng.standard_normal((1024, 1000)).astype(np.float32))
    labels = T.tensor(rng.integers(0, 1000, 1024))

    def run() -> Any:
        logits.grad = None
        loss = T.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        return loss, logits.grad

    return run


@_row("var + mean + amax of 2000×1000, float64, over all", 1, 1.3, dtype="float64")
@_row("var + mean + amax of 2000×1000, float64, over dim 1", 1, 1.3, dtype="float64", dim=1)
@_row("var + mean + amax of 2000×1000, float64, over dim 0", 1, 1.3, dtype="float64", dim=0)
@_row("var + mean + amax of 2000×1000, float32, over all", 1, 1.3, dtype="float32")
@_row("var + mean + amax of 2000×1000, float32, over dim 1", 1, 1.3, dtype="float32", dim=1)
@_row("var + mean + amax of 2000×1000, float32, over dim 0", 1, 1.3, dtype="float32", dim=0)
def reductions(T: Any, dtype: str, **where: int) -> Job:
    """Three reductions of one matrix."""
    x = T.tensor(_rng().standard_normal((2000, 1000)).astype(dtype))
    return lambda: (T.var(x, **where), T.mean(x, **where), T.amax(x, **where))


def torch_or_none() -> Any:
    """PyTorch on all cores, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(cores())
    return torch


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- the engine alone ----


@dataclass(frozen=True)
class Figure:
    """One figure of the engine.

    Attributes:
        name: what is measured.
        unit: of what.
        limit: what it may be at most.
        measure: takes whether to be quick and returns the figure, None where it cannot be had.
    """

    name: str
    unit: str
    limit: float
    measure: Callable[[bool], float | None]


FIGURES: list[Figure] = []


def _figure(name: str, unit: str, limit: float) -> Callable:
    def add(function: Callable) -> Callable:
        FIGURES.append(Figure(name, unit, limit, function))
        return function

    return add


def _chain(count: int) -> tuple[float, float]:
    # seconds to record `count` scalar ops, and to differentiate them
    import tapegrad as tg

    x, c = _leaf(tg, 0.7), tg.tensor(0.1)
    start = time.perf_counter()
    y = x
    for _ in range(count // 2):
        y = y * 0.999 + c
    middle = time.perf_counter()
    y.backward()
    return middle - start, time.perf_counter() - middle


def _best_chain(count: int, rounds: int) -> tuple[float, float]:
    _chain(4000)  # compiled, and past the point where methods are replaced
    recorded, reversed_ = zip(*(_chain(count) for _ in range(rounds)), strict=True)
    return statistics.median(recorded) / count, statistics.median(reversed_) / count


@_figure("cost of a recorded op, forward and backward, at 10⁶ ops over that at 2·10³", "×", 1.6)
def growth(quick: bool) -> float:
    """How the cost of an op grows with the tape."""
    long = sum(_best_chain(10**6, 1 if quick else 5))
    return long / sum(_best_chain(2000, 21 if quick else 201))


@_figure("reverse sweep over scalars", "ns an instruction", 30)
def reverse_sweep(quick: bool) -> float:
    """Time of `backward` alone."""
    return _best_chain(10**5, 3 if quick else 15)[1] * 1e9


_RESIDENT = """
import gc, os, sys
import tapegrad as tg

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def chain(count):
    y = x = tg.tensor(0.5, requires_grad=True)
    for _ in range(count // 2):
        y = (y * x).sin()
    return y

chain(4000).backward()
before = resident()
y = chain({count})
print((resident() - before) / {count})
"""


@_figure("memory of a recorded scalar op whose operands are kept, by resident set size", "bytes", 200)
def resident_bytes(quick: bool) -> float | None:
    """What a process grows by, everything counted."""
    if not Path("/proc/self/statm").exists():
        return None
    return float(_python(_RESIDENT.replace("{count}", str(10**5 if quick else 10**6)))[1])


@_figure("kernels compiled or loaded by `import tapegrad`", "kernels", 0)
def kernels_at_import(quick: bool) -> float:
    """Importing must compile nothing."""
    text = "import tapegrad\nfrom tapegrad.engine.kernels import counts as n\nprint(n['compiled'] + n['loaded'])"
    return float(_python(text)[1])


# the network of the tutorials: one layer and its loss, from an empty process to the first gradient
SEEDS_NETWORK = """
import tapegrad as torch

x, y = torch.ones(5), torch.zeros(3)
w, b = torch.randn(5, 3, requires_grad=True), torch.randn(3, requires_grad=True)
z = torch.matmul(x, w) + b
loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y)
loss.backward()
print(w.grad, b.grad)
"""


@_figure("tutorial network to its first gradient, whole process, empty kernel cache", "s", 8)
def cold_process(quick: bool) -> float:
    """A user's first minute."""
    _python("import tapegrad")
    seconds = []
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(_python(SEEDS_NETWORK, TAPEGRAD_CACHE_DIR=folder)[0])
    return statistics.median(seconds)


@_figure("the same, warm, over `python -c 'import torch'`", "×", 0.6)
def warm_process(quick: bool) -> float | None:
    """Every later start."""
    try:
        _python("import torch")
    except subprocess.CalledProcessError:
        return None
    _python(SEEDS_NETWORK)
    rounds = [(_python(SEEDS_NETWORK)[0], _python("import torch")[0]) for _ in range(3 if quick else 11)]
    ours, theirs = zip(*rounds, strict=True)
    return statistics.median(ours) / statistics.median(theirs)


# where bytecode lies that pip would have compiled for an installed package
_BYTECODE = tempfile.TemporaryDirectory(prefix="bytecode-")


def _python(text: str, **environment: str) -> tuple[float, str]:
    # wall time and output of a program in a process of its own
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=ROOT,
        env=own | {"PYTHONPYCACHEPREFIX": _BYTECODE.name} | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - start, done.stdout
