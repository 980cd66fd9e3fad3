"""`func.grad`, `func.jacrev` and their like of compiled functions, outside of other transformations: one recorded program each."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import _tree
from tests.program.helpers import same

TRANSFORMATIONS = [
    tg.func.grad,
    tg.func.grad_and_value,
    tg.func.value_and_grad,
    tg.func.jacrev,
    tg.func.jacfwd,
    tg.func.hessian,
]


def energy(w, x):
    return ((w * x).sin() * tg.exp(-x)).sum()


def field(w, x):
    return {"a": (w * x).cumsum(0), "b": (x.sort().values * w, (w * w).sum())}


def branching(w, x):
    return (w * x).sum() ** 2 if x[0] > 0.5 else (w * x).sin().prod()


def leaves(tree):
    return _tree.flatten(tree)[0]


def agree(found, expected):
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        same(one, other, 1e-12)


def numbers(*shape):
    return np.random.default_rng(len(shape)).uniform(0.1, 1, shape)


def inputs():
    return tg.tensor(numbers(4)), tg.tensor(numbers(4) + 0.1)


@pytest.mark.parametrize("transform", TRANSFORMATIONS)
@pytest.mark.parametrize("argnums", [0, (0, 1)])
def test_values(transform, argnums):
    compiled = tg.compile(energy)
    for shift in (0.0, 0.1):
        w, x = inputs()
        agree(transform(compiled, argnums)(w + shift, x), transform(energy, argnums)(w + shift, x))
    assert compiled.stats()["captures"] == 1
    assert compiled.stats()["replays"] == 2


@pytest.mark.parametrize("transform", [tg.func.jacrev, tg.func.jacfwd])
def test_trees(transform):
    compiled = tg.compile(field)
    for shift in (0.0, 0.1):
        w, x = inputs()
        agree(transform(compiled)(w, x + shift), transform(field)(w, x + shift))
    assert compiled.stats()["captures"] == 1


def test_arrays_count_as_tensors():
    compiled = tg.compile(energy)
    found = tg.func.jacrev(compiled)(numbers(4), numbers(4))
    assert isinstance(found, tg.Tensor)
    same(found, tg.func.jacrev(energy)(tg.tensor(numbers(4)), tg.tensor(numbers(4))))


@pytest.mark.parametrize("transform", TRANSFORMATIONS)
def test_results_stay_differentiable(transform):
    compiled = tg.compile(energy)
    found = []
    for f in (energy, compiled, compiled):
        w, x = inputs()
        w.requires_grad_()
        total = sum((t**2).sum() for t in leaves(transform(f)(w, x)))
        found.append(tg.autograd.grad(total, w)[0])
    same(found[1], found[0], 1e-10)
    same(found[2], found[0], 1e-10)


def test_tensors_from_outside():
    w, x = inputs()
    w.requires_grad_()
    found = tg.func.jacrev(tg.compile(lambda x: energy(w, x)))(x)
    expected = tg.func.jacrev(lambda x: energy(w, x))(x)
    same(found, expected)
    same(tg.autograd.grad(found.sum(), w)[0], tg.autograd.grad(expected.sum(), w)[0])


@pytest.mark.parametrize("transform", TRANSFORMATIONS)
def test_branches(transform):
    compiled = tg.compile(branching)
    for first in (0.2, 0.8, 0.3, 0.9):
        w, x = inputs()
        x[0] = first
        agree(transform(compiled, 1)(w, x), transform(branching, 1)(w, x))
    assert compiled.stats()["captures"] == 2


def test_what_comes_beside():
    f = lambda x: ((x**2).sum(), {"twice": x * 2, "name": "x"})
    (grads, aux), (expected, _) = (tg.func.grad(g, has_aux=True)(tg.tensor([1.0, 2.0])) for g in (tg.compile(f), f))
    same(grads, expected)
    same(aux["twice"], tg.tensor([2.0, 4.0]))
    assert aux["name"] == "x"


def test_errors_are_those_of_the_transformation():
    compiled = tg.compile(lambda x: x * 2)
    with pytest.raises(RuntimeError, match=r"Expected f\(\*args\) to return a scalar tensor, got tensor with 1 dims"):
        tg.func.grad(compiled)(tg.ones(2))
    picked = tg.func.jacrev(tg.compile(lambda x, k: x[k] * 2))
    same(picked(tg.ones(3), tg.tensor([0, 2])), tg.func.jacrev(lambda x: x[[0, 2]] * 2)(tg.ones(3)))
    with pytest.raises(IndexError, match="index 7 is out of bounds"):
        picked(tg.ones(3), tg.tensor([0, 7]))


def test_within_other_transformations():
    compiled = tg.compile(energy)
    w, x = inputs()
    rows = tg.tensor(numbers(20, 4))
    for transform in (tg.func.grad, tg.func.hessian, tg.func.jacrev):
        nested = lambda f, transform=transform: tg.vmap(transform(f), (None, 0))(w, rows)
        same(nested(compiled), nested(energy), 1e-12)
        outer = lambda f, transform=transform: tg.func.jacrev(lambda w: transform(f)(w, x))(w)
        same(outer(compiled), outer(energy), 1e-12)
        pushed = lambda f, transform=transform: tg.func.jvp(lambda w: transform(f)(w, x), (w,), (x,))[1]
        same(pushed(compiled), pushed(energy), 1e-12)


def test_a_transformation_made_anew_is_the_same():
    compiled = tg.compile(energy)
    for _ in range(3):
        tg.func.hessian(compiled)(*inputs())
        tg.vmap(tg.func.hessian(compiled), (None, 0))(inputs()[0], tg.tensor(numbers(20, 4)))
    assert compiled.stats()["captures"] == 2


def test_random_numbers():
    f = lambda x: (x * tg.rand(3)).sum()
    compiled = tg.func.grad(tg.compile(f))
    results = []
    for g in (compiled, tg.func.grad(f)):
        tg.manual_seed(1)
        results.append([g(tg.ones(3)) for _ in range(3)])
    for a, b in zip(*results, strict=True):
        same(a, b)
