"""Passes over captured code, and its memory plan, each by itself."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.program.memory import Places, last_uses, planned, rounded
from tapegrad.program.passes import optimised, simplified, with_own_results, without_dead, without_repetition
from tapegrad.program.values import COMPUTED, CONSTANT, VIEW, Code, Guard
from tests.program.helpers import captured, names, run


class TestPasses:
    def test_what_depends_on_no_input_is_constant(self):
        code = captured(lambda x: x * (tg.arange(3.0) * 2 + 1).sin(), 3)
        assert names(code) == ["to_float64", "mul"] or names(code) == ["mul"]
        assert [v.kind for v in code.steps[-1].operands()][1] == CONSTANT

    def test_copies_and_products_with_one_go(self):
        code = captured(lambda x: (x.clone() * 1.0 * tg.ones(3, dtype=tg.float64)).clone() + 0.0, 3)
        assert names(code) == ["clone", "mul", "mul", "clone", "add"]
        assert names(simplified(code)) == ["add"]

    def test_a_product_with_one_that_broadcasts_stays(self):
        code = captured(lambda x: x * tg.ones(2, 3, dtype=tg.float64), 3)
        assert names(simplified(code)) == ["mul"]

    def test_nothing_is_computed_twice(self):
        code = captured(lambda x, y: (x[1:] * y).sin() + (x[1:] * y).sin() * (x[:-1] * y), 3, 2)
        assert names(code).count("mul") == 4
        less = without_repetition(code)
        assert names(less) == ["mul", "sin", "mul", "mul", "add"]
        x, y = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.7])
        expected = np.sin(x[1:] * y) * (1 + x[:-1] * y)
        np.testing.assert_allclose(run(less, x, y)[0], expected)

    def test_guards_are_met_once(self):
        def g(x):
            y = x.sum() > 0
            z = x.sum() > 0
            return x * 2 if y and z else x

        code = captured(g, 3)
        assert names(code).count("guard") == 2
        assert names(without_repetition(code)).count("guard") == 1

    def test_what_nobody_needs_goes(self):
        code = captured(lambda x: (x.sin().exp().sum(), x * 2)[1], 3)
        assert len(code.steps) == 4
        assert names(without_dead(code)) == ["mul"]

    def test_what_guards_need_stays(self):
        def g(x):
            return x * 2 if x.sin().sum() > 0 else x

        assert names(without_dead(captured(g, 3))) == ["sin", "sum", "gt", "guard", "mul"]

    def test_results_are_values_of_their_own(self):
        code = with_own_results(captured(lambda x: (x, x.reshape(3, 1) * 1, tg.ones(2), x * 2, x.expand(2, 3)), 3))
        assert all(v.kind == COMPUTED and v.contiguous for v in code.outputs)
        assert len(set(code.outputs)) == 5

    def test_writes_to_parts_are_values(self):
        def g(x):
            y = x * 1
            y[1] = x[0] * 2
            y[2:] = 0.0
            return y

        code = optimised(captured(g, 4))
        assert names(code).count("copy_slices") == 2
        x = np.array([3.0, 1.0, 2.0, 5.0])
        np.testing.assert_allclose(run(code, x)[0], [3.0, 6.0, 0.0, 0.0])


class TestMemory:
    def test_stretches_are_joined_and_reused(self):
        places = Places()
        a, b, c = places.take(100), places.take(64), places.take(10)
        assert len({a, b, c}) == 3
        places.give(a, 100)
        places.give(b, 64)
        assert places.take(150) == a
        places.give(c, 10)
        before = places.size
        assert places.take(16) >= 0
        assert places.size == before

    def test_the_smallest_stretch_that_fits_is_taken(self):
        places = Places()
        kept = [places.take(n) for n in (256, 16, 64, 16)]
        places.give(kept[0], 256)
        places.give(kept[2], 64)
        assert places.take(60) == kept[2]

    @pytest.mark.parametrize("seed", range(5))
    def test_no_two_living_values_overlap(self, seed):
        rng = np.random.default_rng(seed)

        def g(x, y):
            values = [x, y]
            for _ in range(30):
                a, b = (values[k] for k in rng.integers(0, len(values), 2))
                how = rng.integers(0, 5)
                made = [a * b, a + b.sin(), (a @ b), a.t() * b, a.sum(0) + b][how]
                values.append(made / 3)
            return values[-1] + values[-5]

        code = optimised(captured(g, (4, 4), (4, 4)))
        elsewhere = {*code.inputs, *code.outputs}
        places, size = planned(code, elsewhere)
        last = last_uses(code)
        born = {v: n for n, s in enumerate(code.steps) for v in s.results()}
        for v, start in places.items():
            assert start + rounded(v.nbytes()) <= size
            for w, other in places.items():
                # a value may take the place of an operand that dies where it is made
                if v is not w and born[v] < last[w] and born[w] < last[v]:
                    assert start + v.nbytes() <= other or other + w.nbytes() <= start
        a, b = rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
        rng = np.random.default_rng(seed)
        expected = g(tg.tensor(a), tg.tensor(b))
        np.testing.assert_allclose(run(code, a, b)[0], expected.numpy(), rtol=1e-12)

    def test_long_chains_take_little(self):
        def g(x):
            for _ in range(200):
                x = (x * 0.5).sin()
            return x

        _, size = planned(code := optimised(captured(g, 1000)), {*code.inputs, *code.outputs})
        assert size <= 2 * 8064

    def test_kinds(self):
        code = captured(lambda x: x[1:] * 2, 3)
        step = code.steps[0]
        assert step.inputs[0].kind == VIEW
        assert step.inputs[0].root() == (code.inputs[0], 8)
        assert isinstance(code, Code)
        assert not isinstance(step, Guard)
