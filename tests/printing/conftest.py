"""Every test of printing starts and leaves with the default print options."""

from collections.abc import Iterator

import pytest

from tapegrad.printing import set_printoptions


@pytest.fixture(autouse=True)
def default_options() -> Iterator[None]:
    """Start and leave every test with the default print options."""
    set_printoptions(profile="default")
    yield
    set_printoptions(profile="default")
