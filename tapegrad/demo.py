"""What ``tapegrad demo`` runs: one layer differentiated, then a small network trained on real digits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import tapegrad as tg
from tapegrad import datasets
from tapegrad._progress import Progress
from tapegrad.engine import kernels
from tapegrad.nn import functional as F
from tapegrad.tensor import Tensor

__all__ = ["TARGET", "Trained", "differentiate", "run", "train"]

TARGET = 0.95

_SEED = 0
_HELD_OUT = 360
_HIDDEN = 64
_EPOCHS = 20
_BATCH = 32


@dataclass(frozen=True)
class Trained:
    """What came out of the training.

    Attributes:
        accuracy: share of the held-out digits that are recognised.
        loss: mean loss over the last epoch.
        steps: training steps taken.
        seconds: time for all steps but the first.
        first_step: time for the first step, which compiles or loads the kernels.
    """

    accuracy: float
    loss: float
    steps: int
    seconds: float
    first_step: float


def differentiate(echo: Callable[[str], object] = print) -> None:
    """Show loss, gradients and ``grad_fn`` of a network of one layer.

    Args:
        echo: takes each piece of text.
    """
    tg.manual_seed(_SEED)
    x = tg.ones(5)
    y = tg.zeros(3)
    w = tg.randn(5, 3, requires_grad=True)
    b = tg.randn(3, requires_grad=True)
    z = tg.matmul(x, w) + b
    loss = F.binary_cross_entropy_with_logits(z, y)
    loss.backward()
    echo("z = matmul(x, w) + b; loss = binary_cross_entropy_with_logits(z, y); loss.backward()\n")
    echo(f"z.grad_fn     {z.grad_fn}")
    echo(f"loss.grad_fn  {loss.grad_fn}")
    echo(f"loss    {loss!r}")
    echo(f"w.grad  {str(w.grad).replace(chr(10), chr(10) + ' ' * 8)}")
    echo(f"b.grad  {b.grad}")


def train() -> Trained:
    """Train a 64-64-10 network on 1,437 digits and count how many of 360 others it recognises.

    Returns:
        Accuracy, loss and timings.

    Example:
        >>> train().accuracy > 0.95
        True
    """
    images, labels = datasets.digits()
    rng = np.random.default_rng(_SEED)
    order = rng.permutation(len(images))
    held_out, training = order[:_HELD_OUT], order[_HELD_OUT:]

    tg.manual_seed(_SEED)
    pixels, classes = images.shape[1], 10
    w1 = _weights(_HIDDEN, pixels)
    b1 = tg.zeros(_HIDDEN, requires_grad=True)
    w2 = _weights(classes, _HIDDEN)
    b2 = tg.zeros(classes, requires_grad=True)
    optimizer = tg.optim.SGD([w1, b1, w2, b2], lr=0.1, momentum=0.9)

    def network(x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)

    def step(batch: NDArray[np.int64]) -> float:
        x, y = tg.from_numpy(images[batch]), tg.from_numpy(labels[batch])
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    start = time.perf_counter()
    step(training[:_BATCH])
    first_step = time.perf_counter() - start

    losses: list[float] = []
    steps = 1
    start = time.perf_counter()
    epochs = Progress(range(_EPOCHS), "training", "epoch")
    for _ in epochs:
        shuffled = rng.permutation(training)
        losses = [step(shuffled[i : i + _BATCH]) for i in range(0, len(shuffled), _BATCH)]
        steps += len(losses)
        epochs.note = f"loss {np.mean(losses):.4f}"
    seconds = time.perf_counter() - start

    with tg.no_grad():
        guesses = network(tg.from_numpy(images[held_out])).argmax(dim=1)
    accuracy = float(np.mean(guesses.numpy() == labels[held_out]))
    return Trained(accuracy, float(np.mean(losses)), steps, seconds, first_step)


def run(echo: Callable[[str], object] = print) -> Trained:
    """Run both parts and tell what they took.

    Args:
        echo: takes each piece of text.

    Returns:
        What came out of the training.
    """
    # CPU time since the process began: the package is imported before any line of this module can run.
    started = time.process_time()
    echo("1. Gradients of a network of one layer\n")
    start = time.perf_counter()
    differentiate(echo)
    first_gradient = time.perf_counter() - start

    echo("\n2. Training a 64-64-10 network on 1,437 handwritten digits\n")
    trained = train()
    echo(f"held-out accuracy  {trained.accuracy:.1%} of {_HELD_OUT} digits never trained on")
    echo(f"training loss      {trained.loss:.4f} over the last epoch")

    used = kernels.cache_info()
    rate = (trained.steps - 1) / trained.seconds
    echo("\n3. What it took\n")
    echo(f"start and import   {started:.2f} s of CPU time")
    echo(f"first gradient     {first_gradient:.2f} s")
    echo(f"first step         {trained.first_step:.2f} s, with compiling or loading its kernels")
    echo(f"training           {trained.seconds:.2f} s for {trained.steps} steps, {rate:,.0f} steps/s")
    echo(f"kernels            {used['compiled']} compiled, {used['loaded']} loaded from {used['path']}")
    echo(f"peak memory        {_peak_memory()}")
    return trained


def _weights(rows: int, columns: int) -> Tensor:
    """Normal weights that keep the scale of what passes through a layer followed by relu."""
    return (tg.randn(rows, columns) * (2 / columns) ** 0.5).requires_grad_()


def _peak_memory() -> str:
    """The largest resident size of this process so far, as text."""
    try:
        import resource
    except ImportError:  # Windows
        return "not known on this platform"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{peak * unit / 2**20:,.0f} MiB"
