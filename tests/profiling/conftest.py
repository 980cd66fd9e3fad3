"""After a test of profiles the engine's entry points are its own again."""

import pytest

from tapegrad.engine.runtime import rt


@pytest.fixture(autouse=True)
def nobody_watches_afterwards():
    yield
    assert int(rt.state.watched) == 0
    assert not hasattr(rt.record, "__wrapped__")
    assert not hasattr(rt.run_program, "__wrapped__")
