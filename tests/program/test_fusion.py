"""Pointwise instructions gathered into loops: which ones, what they compute, and when."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.engine.structs import SELECT
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import built_in_ops
from tapegrad.program import fusion
from tapegrad.program.fused import loop_of
from tapegrad.program.fusion import Fusing, fused
from tapegrad.program.passes import optimised
from tapegrad.program.values import Fusion
from tests.helpers import in_threads
from tests.program.helpers import captured, names, run


@pytest.fixture
def at_once(monkeypatch):
    """Programs are fused after their first run."""
    for name in ("_PAID", "_LOADED", "_GATHERED"):
        monkeypatch.setattr(fusion, name, 0.0)


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def operands(op, dtype, count=37):
    """Arrays that an op is declared for."""
    rng = np.random.default_rng(op.code)
    intervals = op.domain.intervals
    spans = [intervals[min(k, len(intervals) - 1)] for k in range(op.arity)]
    arrays = [rng.uniform(*span, count) for span in spans]
    if dtype == tg.bool:
        arrays = [a > np.mean(span) for a, span in zip(arrays, spans, strict=True)]
    kinds = [dtype.numpy] * op.arity
    if op.kind == SELECT:
        arrays[0] = rng.uniform(size=count) > 0.5
        kinds[0] = np.dtype(bool)
    return [a.astype(kind) for a, kind in zip(arrays, kinds, strict=True)]


# every operation in float64, some of them in other dtypes: a loop of forty takes seconds to compile
@pytest.mark.parametrize(
    ("dtype", "every"), [(tg.float64, 1), (tg.float32, 3), (tg.int8, 5), (tg.bool, 3)], ids=lambda v: str(v)
)
def test_every_operation_computes_the_same_in_a_loop(dtype, every):
    ops = [op for op in built_in_ops() if type(op) is Pointwise and dtype in op.dtypes][::every]
    assert len(ops) > 5
    for first in range(0, len(ops), 40):
        some = ops[first : first + 40]
        arrays = [a for op in some for a in operands(op, dtype)]

        def function(*given, some=some):
            left = iter(given)
            return tuple(op(*[next(left) for _ in range(op.arity)]) for op in some)

        with tg.no_grad():
            code = captured_from(function, arrays)
        loops = fused(code)
        assert [type(s) for s in loops.steps] == [Fusion]
        for op, a, b in zip(some, run(loops, *arrays), run(code, *arrays), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, err_msg=op.name)


def captured_from(function, arrays):
    """The code of a function of arrays."""
    from tapegrad.program.capture import Capture

    capture = Capture()
    given = [capture.argument(tg.from_numpy(a)) for a in arrays]
    with capture.running():
        outputs = [capture.result(t) for t in function(*given)]
    return capture.code(outputs)


class TestGroups:
    def test_a_chain_is_one_loop(self):
        code = optimised(captured(lambda x, y: (x * y).sin() + x.exp() / (x * y), 5, 5))
        assert len(code.steps) == 5
        made = fused(code)
        assert names(made) == ["mul+sin+exp+true_divide+add"]
        assert made.steps[0].writes == (code.outputs[0],)
        x, y = np.linspace(1, 2, 5), np.linspace(-1, 3, 5)
        assert_same_bits(run(made, x, y), run(code, x, y))

    def test_what_others_need_is_written(self):
        code = optimised(captured(lambda x: (x.sin() * 2, (x.sin() * 2).sum(), x.sin() * 2 + 1), 6))
        made = fused(code)
        assert names(made) == ["sin+mul+add", "sum_all"] or len(made.steps) == 2
        x = np.linspace(0, 1, 6)
        assert_same_bits(run(made, x), run(code, x))

    def test_what_needs_the_loop_waits_for_it(self):
        # the sum of sines stands before the cosines, which do not need it
        code = optimised(captured(lambda x: (x.sin().exp().sum(), x.cos() * 2 + x.sin().exp()), 6))
        made = fused(code)
        assert isinstance(made.steps[0], Fusion)
        assert len(made.steps[0].parts) == 5
        x = np.linspace(0, 1, 6)
        assert_same_bits(run(made, x), run(code, x))

    def test_what_needs_a_sum_comes_after_it(self):
        code = optimised(captured(lambda x: x.exp() * 2 / (x.exp() * 2).sum() + 1, 6))
        made = fused(code)
        assert [type(s) is Fusion for s in made.steps] == [True, False, True]
        x = np.linspace(0, 1, 6)
        assert_same_bits(run(made, x), run(code, x))

    def test_elements_in_another_order_are_read_from_memory(self):
        code = optimised(captured(lambda x: x.sin().neg() + x.sin().neg().flip(0) * 2, 6))
        x = np.linspace(0, 1, 6)
        assert_same_bits(run(fused(code), x), run(code, x))
        code = optimised(captured(lambda x: (x * 2 + 1) * (x * 2 + 1).t(), (3, 3)))
        x = np.linspace(0, 1, 9).reshape(3, 3)
        assert_same_bits(run(fused(code), x), run(code, x))

    def test_another_shape_of_the_same_elements_is_the_same(self):
        code = optimised(captured(lambda x: (x * 2 + 1).reshape(6).exp() * 3, (2, 3)))
        assert len(fused(code).steps) == 1
        x = np.linspace(0, 1, 6).reshape(2, 3)
        assert_same_bits(run(fused(code), x), run(code, x))

    def test_a_part_of_what_is_computed_is_read_from_memory(self):
        code = optimised(captured(lambda x: (x[:4] * 2 + 1) + (x * 3 - 1)[1:5], 6))
        x = np.linspace(0, 1, 6)
        assert_same_bits(run(fused(code), x), run(code, x))

    def test_numbers_for_all_elements_stand_still(self):
        code = optimised(captured(lambda x, s: (x * s + s * s).exp() - s, 5, ()))
        x, s = np.linspace(1, 2, 5), np.array(0.3)
        assert_same_bits(run(fused(code), x, s), run(code, x, s))

    def test_writes_in_place(self):
        def function(x):
            y = x * 2
            y[1:3] = x[2:4].exp() + 1
            y += x.sin() * 3
            return y * y + 1

        code = optimised(captured(function, 5))
        x = np.linspace(0, 1, 5)
        assert_same_bits(run(fused(code), x), run(code, x))

    def test_no_elements(self):
        code = optimised(captured(lambda x: x.exp() * 2 + 1, 0))
        assert_same_bits(run(fused(code), np.zeros(0)), [np.zeros(0)])

    def test_guards_stay_where_they_are(self):
        def function(x):
            y = (x * 2).exp()
            return y.sin() * 3 if y.sum() > 0 else y

        made = fused(optimised(captured(function, 4)))
        order = [type(s).__name__ for s in made.steps]
        assert order[0] == "Fusion"
        assert order[-1] == "Fusion"
        assert "Guard" in order

    def test_rounds_of_a_loop_share_one(self):
        def function(x, y):
            for _ in range(60):
                x, y = x + 0.1 * y.sin(), y - 0.1 * x * x.cos() + 0.01
            return x, y

        code = optimised(captured(function, 5, 5))
        made = fused(code)
        loops = [s for s in made.steps if isinstance(s, Fusion)]
        assert len(made.steps) < 15
        assert sum(len(s.parts) for s in loops) >= len(code.steps) - 2
        assert len({loop_of(s) for s in loops}) <= 3 < len(loops)
        x, y = np.linspace(0, 1, 5), np.linspace(1, 2, 5)
        assert_same_bits(run(made, x, y), run(code, x, y))

    def test_many_results(self):
        code = optimised(captured(lambda x: tuple((x * k).sin() + k for k in range(30)), 40))
        x = np.linspace(0, 1, 40)
        assert_same_bits(run(fused(code), x), run(code, x))


# shapes of operands, and the extents of the loops that compute them, none where no loop does
BROADCAST = [
    (((16, 8), (8,)), (16, 8)),
    (((16, 8), (16, 1)), (16, 8)),
    (((16, 1), (1, 9)), (16, 9)),
    (((4, 5, 1), (4, 1, 9)), (4, 5, 9)),
    (((4, 5, 9), (4, 1, 1)), (4, 45)),
    (((4, 5, 9), (5, 9)), (4, 45)),
    (((4, 5, 9), (5, 1)), (4, 5, 9)),
    (((2, 3, 4, 9), (3, 4, 1)), (2, 12, 9)),
    (((2, 1, 3, 1, 8), (8,)), (6, 8)),
    (((2, 3, 4, 9), (3, 1, 9)), None),  # four loops
    (((16, 7), (16, 1)), None),  # a short inner one
    (((1, 1), (1,)), (1,)),
    (((16, 9), (1, 1)), (144,)),
]


class TestBroadcasting:
    @pytest.mark.parametrize(("shapes", "extents"), BROADCAST)
    def test_operands_that_stand_still_along_some_dims(self, shapes, extents):
        code = optimised(captured(lambda x, y: (x * y + x).exp() - y, *shapes))
        made = fused(code)
        found = [s.extents for s in made.steps if isinstance(s, Fusion)]
        if extents:
            assert found == [extents]
        assert extents or all(len(e) == 1 for e in found)
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=s) for s in shapes]
        assert_same_bits(run(made, *arrays), run(code, *arrays))

    def test_expanded_and_transposed_views(self):
        def function(x, y):
            return (x.expand(12, 16) * y + x.unsqueeze(0)).sin() + y.t().reshape(12, 16) * y[:, :1]

        code = optimised(captured(function, 16, (12, 16)))
        x, y = np.linspace(0, 1, 16), np.linspace(1, 2, 192).reshape(12, 16)
        assert_same_bits(run(fused(code), x, y), run(code, x, y))

    def test_what_a_loop_computes_is_broadcast_from_memory(self):
        code = optimised(captured(lambda x: (x.sin() * 2) + (x.sin() * 2)[:, :1] * (x.sin() * 2)[0], (9, 9)))
        x = np.linspace(0, 1, 81).reshape(9, 9)
        assert_same_bits(run(fused(code), x), run(code, x))

    def test_broadcasts_of_different_shapes_of_as_many_elements(self):
        code = optimised(
            captured(lambda x, y: (x * y[:, None] + 1).reshape(8, 12) * x.reshape(8, 12)[0].exp(), (12, 8), 12)
        )
        x, y = np.linspace(0, 1, 96).reshape(12, 8), np.linspace(1, 2, 12)
        assert_same_bits(run(fused(code), x, y), run(code, x, y))

    def test_a_layer_on_all_cores(self):
        code = optimised(captured(lambda x, b, s: ((x + b).tanh() * s).relu() * x, (3000, 64), 64, (3000, 1)))
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=s) for s in ((3000, 64), (64,), (3000, 1))]
        made = fused(code)
        assert [s.extents for s in made.steps] == [(3000, 64)]
        assert_same_bits(run(made, *arrays), run(code, *arrays))


class TestWhen:
    def test_first_runs_do_not_compile_loops(self):
        compiled = tg.compile(lambda x: (x * 1.25 + 0.5).exp() * 3.5)
        for _ in range(5):
            compiled(np.ones(3))
        assert compiled.stats()["fused"] == 0

    def test_a_program_that_runs_often_is_fused(self, monkeypatch):
        monkeypatch.setattr(fusion, "_PAID", 1e-4)
        monkeypatch.setattr(fusion, "_GATHERED", 0.0)
        compiled = tg.compile(lambda x: (x * 1.5 + 0.5).exp() * 3.0)
        x = np.linspace(0, 1, 50)
        expected = compiled(x)
        runs = 0
        while not compiled.stats()["fused"]:
            np.testing.assert_array_equal(compiled(x), expected)
            runs += 1
            assert runs < 100_000
        assert runs > 1
        np.testing.assert_array_equal(compiled(x), expected)
        np.testing.assert_allclose(compiled(x + 1), np.exp((x + 1) * 1.5 + 0.5) * 3, rtol=1e-14)

    def test_what_takes_too_long_to_compile_is_not(self, monkeypatch, at_once):
        monkeypatch.setattr(fusion, "_LONGEST", 0.0)
        fusing = Fusing(optimised(captured(lambda x: (x * 0.8125).exp() + 0.40625, 5)))
        assert fusing.ask(10**9) is None
        assert fusing.due == float("inf")

    def test_nothing_to_fuse(self):
        assert Fusing(optimised(captured(lambda x: x.sum(), 5))).due == float("inf")

    def test_gradients_and_other_paths(self, at_once):
        def function(x, y):
            z = (x * y).sin() + x.exp()
            return ((z * 2 + 1).log() if z.sum() > 3 else (z * z * 0.5 + 1)).sum()

        compiled = tg.compile(function)
        rng = np.random.default_rng(0)
        for _ in range(6):
            x, y = rng.uniform(0, 1, (2, 3))
            value, gradients = compiled.value_and_grad(x, y, argnums=(0, 1))
            a, b = (tg.tensor(v, requires_grad=True) for v in (x, y))
            expected = function(a, b)
            expected.backward()
            assert_same_bits([value, *gradients], [expected.detach().numpy(), a.grad.numpy(), b.grad.numpy()])
        assert compiled.stats()["fused"] > 0

    def test_lanes(self, at_once):
        def function(w, x):
            return (w * x).tanh().sum() if x[0] > 0 else (w - x).exp().sum()

        run = tg.vmap(tg.value_and_grad(tg.compile(function)), in_dims=(None, 0))
        rng = np.random.default_rng(0)
        w, x = rng.normal(size=4), rng.normal(size=(333, 4))
        first = run(w, x)
        for _ in range(3):
            again = run(w, x)
            assert_same_bits(again, first)
        for k in (0, 7, 332):
            value, gradient = tg.value_and_grad(function)(tg.tensor(w), tg.tensor(x[k]))
            np.testing.assert_allclose(first[0][k], value.item(), rtol=1e-14)
            np.testing.assert_allclose(first[1][k], gradient.numpy(), rtol=1e-14)

    def test_threads(self, at_once):
        compiled = tg.compile(lambda x: ((x * 0.625).exp() * 2.5 + x).sum())
        x = np.linspace(0, 1, 100)
        expected = float(compiled(x))
        for found in in_threads(lambda _: {float(compiled(x)) for _ in range(50)}, 4):
            assert found == {expected}
        assert compiled.stats()["fused"] == 1

    def test_loops_are_kept_on_disk(self, at_once):
        made = fused(optimised(captured(lambda x: (x * 0.375 + 2.25).cos() * x, 8)))
        loop = loop_of(made.steps[0])
        loop.kernel()
        assert loop.is_at_hand()
