"""Random functions, compiled: values, gradients to the second order and what requires them are those of an eager run, or it is refused.

`python -m tests.programs --compiled` runs as many as you like.
"""

import numpy as np
import pytest

pytest.importorskip("torch")

import tapegrad as tg
from tests.programs.functions import Drawn, function_of
from tests.programs.recorded import Comparison, Refused, parted

PORTION = 6


def check(first, count):
    refused = 0
    for seed in range(first, first + count):
        try:
            found = parted(seed)
        except Refused:
            refused += 1
            continue
        if found is not None:
            pytest.fail(f"seed {seed}: {found.text}\n\n{function_of(seed).source}", pytrace=False)
    assert refused <= max(count // 4, 3)


@pytest.mark.parametrize("first", range(0, 4 * PORTION, PORTION))
def test_compiled_functions_are_as_eager(first):
    check(first, PORTION)


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(24, 5064, 50 * PORTION))
def test_five_thousand_compiled_functions_are_as_eager(first):
    check(first, 50 * PORTION)


def test_a_seed_is_a_function():
    assert function_of(3).source == function_of(3).source != function_of(4).source


class TestWhatIsFound:
    """A function whose compiled twin is another one."""

    def found(self, function, other):
        drawn = Drawn(function, "", {}, [np.array([0.5, 2.0])], {}, [])
        comparison = Comparison(drawn, 0)
        comparison.compiled = tg.compile(other)
        parted = comparison.run()
        return None if parted is None else parted.kind

    @pytest.mark.parametrize(
        ("other", "kind"),
        [
            (lambda x, *, scale: x.sin() * scale, None),
            (lambda x, *, scale: x.sin() * scale + 1e-8, "value"),
            (lambda x, *, scale: x.sin() * x.detach() / x.detach() * scale + (x - x.detach()) * 1e-7, "value"),
            (lambda x, *, scale: (x.sin() * scale).detach(), "requires_grad"),
            (lambda x, *, scale: x.sin()[None] * scale, "facts"),
            (lambda x, *, scale: [x.sin() * scale], "structure"),
            (lambda x, *, scale: x.sin() * scale + 0 * tg.rand(2, dtype=tg.float64), "random numbers"),
            (lambda x, *, scale: x.sin() * scale * tg.ones(3, dtype=tg.float64), "tensors raised"),
        ],
    )
    def test_what_is_wrong_is_found(self, other, kind):
        assert self.found(lambda x, *, scale: x.sin() * scale, other) == kind
