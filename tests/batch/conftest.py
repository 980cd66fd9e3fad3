"""What tests of batch jobs share."""

import pytest


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of eight samples, so that little data have many."""
    from tapegrad.batch import _job

    monkeypatch.setattr(_job, "_MOST_IN_BLOCK", 8)
