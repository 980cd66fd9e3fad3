"""Figures of the engine alone, recorded in `extra_info`; a busy machine moves them, so none is asserted."""

import pytest

from benchmarks import disk  # noqa: F401 - adds its figures to FIGURES
from benchmarks.work import FIGURES


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.measure.__name__)
def test_figure(benchmark, figure):
    benchmark.group = "engine"
    value = benchmark.pedantic(figure.measure, args=(True,), rounds=1)
    if value is None:
        pytest.skip(f"cannot be measured here: {figure.name}")
    benchmark.extra_info.update(figure=figure.name, value=value, unit=figure.unit, limit=figure.limit)
