"""Around tests of profiles: no hooks and functions of other tests that sweeps would look out for, and the engine's own entry points after."""

import gc

import pytest

from tapegrad.engine.runtime import rt


@pytest.fixture(autouse=True)
def nobody_watches_afterwards():
    gc.collect()
    yield
    assert int(rt.state.watched) == 0
    assert not hasattr(rt.record, "__wrapped__")
    assert not hasattr(rt.run_program, "__wrapped__")
