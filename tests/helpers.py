"""What many tests share: numbers, tensors in float64, comparisons, messages word for word, finite differences, counted calls."""

import gc
import re
import sys
import threading

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine.runtime import rt

RNG = np.random.default_rng(7)


def leaf(values, dtype=tg.float64):
    """A tensor that requires grad."""
    return tg.tensor(values, dtype=dtype, requires_grad=True)


def vector(*values, dtype=tg.float64):
    """A vector that requires grad, of numbers."""
    return leaf(list(values), dtype)


def const(values, dtype=tg.float64):
    """A tensor that does not."""
    return tg.tensor(values, dtype=dtype)


def on_tape(values, requires_grad=True):
    """Arrays as tensors."""
    return [tg.tensor(a, requires_grad=requires_grad) for a in values]


def arrays(shapes, dtype="float64"):
    """Normal numbers, an array for each shape."""
    return [RNG.standard_normal(s).astype(dtype) for s in shapes]


def vals(t):
    """The elements as a NumPy array."""
    return t.detach().numpy()


def same(t, expected):
    """Check a tensor's elements, to the last digits of float64."""
    np.testing.assert_allclose(vals(t), expected, rtol=1e-12, atol=0)


def raises(message, kind=RuntimeError):
    """Expect an exception with exactly this message."""
    return pytest.raises(kind, match="^" + re.escape(message) + "$")


def numeric_gradient(value, arrays, k, step=1e-6):
    """Gradient of the number ``value(arrays)`` with respect to array `k`, by central differences."""
    gradient = np.zeros(arrays[k].shape)
    for index in np.ndindex(*arrays[k].shape):
        sides = []
        for sign in (1, -1):
            moved = [a.copy() for a in arrays]
            moved[k][index] += sign * step
            sides.append(value(moved))
        gradient[index] = (sides[0] - sides[1]) / (2 * step)
    return gradient


def numeric_gradients(value, arrays, step=1e-6):
    """Gradients of the number ``value(arrays)`` with respect to every array, by central differences."""
    return [numeric_gradient(value, arrays, k, step) for k in range(len(arrays))]


def differences(f, operands, weights):
    """Gradients of ``(weights * f(*operands)).sum()`` with respect to every operand, by central differences."""
    return numeric_gradients(lambda moved: (weights * f(*moved)).sum(), operands)


def unbroadcast(array, shape):
    """An array summed over what a shape was broadcast along."""
    array = array.sum(tuple(range(array.ndim - len(shape))))
    return array.sum(tuple(d for d, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def weighted(result):
    """One number of all elements of a tensor, each with a weight of its own."""
    return (result * tg.tensor(np.linspace(0.5, 1.5, result.numel()).reshape(tuple(result.shape)))).sum()


def rosen(x):
    """Rosenbrock's function, least at ones."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def bowl(x):
    """A quadratic function, least at ones."""
    return ((x - 1) ** 2).sum()


def state_of_tape():
    """What the tape holds: rows, buffers, storages and bytes."""
    gc.collect()
    s = rt.state
    return int(s.row_count), int(s.live_buffers), int(s.live_storages), int(s.used_bytes)


def in_threads(work, count, seconds=120):
    """What ``work(k)`` returns for every k below `count`, each called in a thread of its own, all at once."""
    results, problems = [None] * count, []

    def run(k):
        try:
            results[k] = work(k)
        except BaseException as problem:
            problems.append(problem)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(count)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(seconds)
        assert not any(t.is_alive() for t in threads), "a thread hangs"
    finally:
        sys.setswitchinterval(interval)
    if problems:
        raise problems[0]
    return results


def nodes_behind(node):
    """A node of the graph and all that gradients flow to from it."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [f for f, _ in node.next_functions]
    return seen


class Square(tg.autograd.Function):
    """A square, as users write an operation."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * x


class Counted:
    """A function that knows how often it was called, and with what."""

    def __init__(self, function):
        self.function = function
        self.calls = []

    def __call__(self, *args):
        self.calls.append(args)
        return self.function(*args)
