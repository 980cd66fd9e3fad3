"""Operations of the user inside compiled functions: their kernels run natively, and their exceptions arrive."""

import numpy as np
import pytest

import tapegrad as tg
from tests.declared import root, softsquare, waves
from tests.program.helpers import leaf, same
from tests.test_native_ops import picked


def test_elementwise_operations():
    def g(x):
        return (softsquare(x, 2.0) * root(x)).sum()

    f = tg.compile(g)
    for k in (0.3, 1.7):
        x, y = leaf(k, 2.0, dtype=tg.float64), leaf(k, 2.0, dtype=tg.float64)
        f(x).backward()
        g(y).backward()
        same(f(x), g(y), 1e-12)
        same(x.grad, y.grad, 1e-12)
    assert f.stats()["eager"] == 0


def test_array_operations():
    index = tg.tensor([1, 0, 1])

    def g(x, w):
        return (waves(x, w) * picked(x, index, 2.0)[:2]).sum()

    f = tg.compile(g)
    rng = np.random.default_rng(0)
    for _ in range(3):
        a, b = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
        rows = []
        for function in (f, g):
            x, w = tg.tensor(a, requires_grad=True), tg.tensor(b, requires_grad=True)
            value = function(x, w)
            value.backward()
            rows.append((value, x.grad, w.grad))
        for found, expected in zip(*rows, strict=True):
            same(found, expected, 1e-12)
    assert f.stats()["captures"] == 2


def test_exceptions_of_compiled_code_arrive():
    f = tg.compile(lambda x: root(x) * 2)
    same(f(np.array([4.0])), np.array([4.0]))
    with pytest.raises(ValueError, match="a root of a negative number"):
        f(np.array([-4.0]))
    same(f(np.array([9.0])), np.array([6.0]))
    with pytest.raises(ValueError, match="a root of a negative number"):
        f.value_and_grad(np.array(-4.0))
    same(f(np.array([16.0])), np.array([8.0]))
    assert f.stats()["programs"] == 1


def test_functions_with_hooks():
    """Hooks run when the derivative is captured, and what they compute is part of it."""

    def g(x):
        y = x * 2
        y.register_hook(lambda grad: grad * 10)
        return (y * y).sum()

    f = tg.compile(g)
    for k in (1.0, 3.0):
        x, y = leaf(k, 2.0), leaf(k, 2.0)
        f(x).backward()
        g(y).backward()
        same(x.grad, y.grad)
