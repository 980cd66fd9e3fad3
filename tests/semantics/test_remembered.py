"""Transformations of graphs that look like earlier ones: from the third on they are recorded again by compiled code."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd import remembered
from tests.helpers import in_threads, leaf, state_of_tape
from tests.test_higher_order import CASES, Problem, derivative

TIMES = 3  # met, captured, recalled


@pytest.fixture(autouse=True)
def forgetful():
    remembered._known.clear()
    yield
    remembered._known.clear()


def steps():
    """The remembered structures that have steps."""
    return [s for s in remembered._known.values() if not isinstance(s, str)]


def slope(x, function=lambda x: (x.sin() * x).sum()):
    return tg.autograd.grad(function(x), x, create_graph=True)[0]


def second(values):
    x = leaf(values)
    return tg.autograd.grad(slope(x).sum(), x)[0].numpy()


def expected(x):
    return 2 * np.cos(x) - x * np.sin(x)


def test_other_values_of_the_same_structure():
    for k in range(6):
        values = np.linspace(-2, 2, 5) * (k - 2.5)
        np.testing.assert_allclose(second(values), expected(values), rtol=1e-13)
    assert len(steps()) == 1


@pytest.mark.parametrize(("call", "arrays", "still"), CASES[::2])
def test_remembered_derivatives_equal_those_computed_anew(call, arrays, still, monkeypatch):
    problem = Problem(call, arrays, still)
    found = []
    for _ in range(2):
        for time in range(TIMES):
            # the recalled one with other values, some of them zero and of the other sign
            shift = 0.0 if time < TIMES - 1 else -0.2
            moving, parts = problem.second(shift, create_graph=True)
            third = derivative(problem.along(parts[:-1], 1), moving, False)
        found.append([t.detach().numpy() for t in (*parts, *third)])
        monkeypatch.setattr(remembered, "_captured", lambda *_: remembered._REFUSED)
        remembered._known.clear()
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_result_is_the_callers_own():
    for _ in range(TIMES + 1):
        x = leaf([1.0, 2.0, 3.0])
        g = tg.autograd.grad((x * 2).sum(), x, create_graph=True)[0]
        with tg.no_grad():
            np.testing.assert_array_equal(g.numpy(), [2.0, 2.0, 2.0])
            g.mul_(5)


def test_the_same_tensor_twice_is_another_structure():
    # where an adjoint to start from is also an operand of the graph
    for _ in range(2):
        for _ in range(TIMES):
            x, other = leaf([1.0, 2.0]), leaf([5.0, 7.0])
            y = x * x
            for start in (x, other):
                (g,) = tg.autograd.grad(y, x, start, create_graph=True)
                np.testing.assert_array_equal(g.detach().numpy(), 2 * x.detach().numpy() * start.detach().numpy())
                (again,) = tg.autograd.grad(g.sum(), start, retain_graph=True)
                wanted = 4 * x if start is x else 2 * x
                np.testing.assert_array_equal(again.numpy(), wanted.detach().numpy())


def test_whether_an_adjoint_requires_grad_is_part_of_the_structure():
    for _ in range(TIMES):
        for requires in (False, True):
            x = leaf([1.0, 2.0])
            start = tg.tensor([3.0, 4.0], dtype=tg.float64, requires_grad=requires)
            (g,) = tg.autograd.grad(x * 2, x, start, create_graph=True)
            assert g.requires_grad == requires


def test_hooks_and_kept_gradients_are_not_passed_over():
    def run(hooked):
        x = leaf([1.0, 2.0])
        y = x * x
        seen = []
        if hooked:
            y.register_hook(lambda g: seen.append(g.tolist()))
            x.register_hook(lambda g: g * 10)
            y.retain_grad()
        (g,) = tg.autograd.grad(y.sum(), x, create_graph=True)
        return g.tolist(), seen, y.grad.tolist() if hooked else None

    for _ in range(TIMES):
        assert run(False) == ([2, 4], [], None)
    for _ in range(TIMES):
        assert run(True) == ([20, 40], [[1, 1]], [1, 1])


def test_a_freed_graph_and_a_modified_value_are_refused():
    for _ in range(TIMES):
        second([1.0, 2.0])
    x = leaf([1.0, 2.0])
    y = (x.sin() * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        tg.autograd.grad(y, x, create_graph=True)
    x = leaf([1.0, 2.0])
    z = x * 1
    y = (z.sin() * z).sum()
    with tg.no_grad():
        z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tg.autograd.grad(y, x, create_graph=True)


def test_a_graph_that_is_not_retained_is_freed():
    for _ in range(2 * TIMES):
        x = leaf([1.0, 2.0])
        y = (x.sin() * x).sum()
        tg.autograd.grad(y, x, create_graph=True, retain_graph=False)
        with pytest.raises(RuntimeError, match="second time"):
            tg.autograd.grad(y, x, create_graph=True)


def test_derivatives_that_look_at_values_are_computed_anew():
    for values in ([0.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 0.0, 3.0], [0.0, 0.0, 3.0], [1.0, 2.0, 3.0]):
        for _ in range(2):
            x = leaf(values)
            g = slope(x, lambda x: x.prod() * x[0])
            h = tg.autograd.grad(g.sum(), x)[0].tolist()
            a, b, c = values
            np.testing.assert_allclose(h, [2 * b * c + 2 * a * (b + c), 2 * a * c + a * a, 2 * a * b + a * a])


def test_modes():
    def jacobian(grads):
        with tg.set_grad_enabled(grads):
            x = leaf([1.0, 2.0])
            return tg.func.jacfwd(lambda x: x**3)(x)

    for _ in range(2 * TIMES):
        assert jacobian(True).requires_grad
        assert not jacobian(False).requires_grad
        with tg.inference_mode():
            x = tg.ones(2)
            assert tg.func.jacrev(lambda x: x * x)(x).tolist() == [[2, 0], [0, 2]]


def test_batches_of_other_sizes_and_shared_operands():
    rng = np.random.default_rng(0)
    for size in (2, 5, 2, 2, 5, 5, 2):
        a, b = rng.normal(size=(size, 3)), rng.normal(size=3)
        found = tg.vmap(tg.func.grad(lambda x, y: (x * y).sin().sum()), in_dims=(0, None))(tg.tensor(a), tg.tensor(b))
        np.testing.assert_allclose(found.numpy(), np.cos(a * b) * b, rtol=1e-13)


def test_random_numbers_are_drawn_anew():
    draw = tg.vmap(lambda x: x + tg.rand(2), randomness="different")
    found = [draw(tg.zeros(3, 2)).tolist() for _ in range(2 * TIMES)]
    assert len({str(f) for f in found}) == 2 * TIMES


def test_threads():
    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(60):
            values = rng.normal(size=4)
            np.testing.assert_allclose(second(values), expected(values), rtol=1e-12)

    in_threads(work, 4)


def test_what_is_remembered_is_bounded():
    for n in range(1, remembered._KEPT // 2 + 20):
        for _ in range(2):
            second(np.ones(n))
    assert len(remembered._known) <= remembered._KEPT


def test_memory_does_not_grow():
    def rounds(n):
        for _ in range(n):
            second([1.0, 2.0])
            tg.func.hessian(lambda x: (x**3).sum())(tg.ones(3))
        return state_of_tape()[1:]  # dead rows may wait for a compaction

    before = rounds(50)
    assert rounds(500) == before


def test_who_watches_sees_every_operation():
    packed = []

    def pack(t):
        packed.append(t)
        return t

    counts = []
    for _ in range(2 * TIMES):
        packed.clear()
        with tg.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            second([1.0, 2.0])
        counts.append(len(packed))
        second([1.0, 2.0])
    assert len(set(counts)) == 1
