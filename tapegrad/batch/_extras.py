"""Packages that only some jobs need."""

from __future__ import annotations

import importlib
from types import ModuleType


def needed(module: str, extra: str, what: str) -> ModuleType:
    """A module of an optional package.

    Args:
        module: its name.
        extra: which extra of tapegrad brings it.
        what: what needs it.

    Raises:
        ImportError: if it is not installed, with what to install.

    >>> needed("json", "batch", "a test").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package}: pip install 'tapegrad[{extra}]'", name=package) from error
