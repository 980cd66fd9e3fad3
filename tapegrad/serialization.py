"""Saving tensors, and structures of tensors, to files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any


def save(obj: Any, f: Any) -> None:
    """Save a tensor, or any structure that holds tensors, to a path or an open file.

    Args:
        obj: anything picklable; tensors must be leaves.
        f: a path, or a binary file.
    """
    if hasattr(f, "write"):
        pickle.dump(obj, f, protocol=pickle.HIGHEST_PROTOCOL)
        return
    with Path(f).open("wb") as file:
        pickle.dump(obj, file, protocol=pickle.HIGHEST_PROTOCOL)


# what a file of tensors and containers refers to
_SAFE = {
    "builtins": {"dict", "list", "tuple", "set", "frozenset", "slice", "complex", "bytearray"},
    "collections": {"OrderedDict", "defaultdict"},
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "tapegrad.interchange": {"_unpickle"},
    "tapegrad.metadata": {"Size", "device"},
    "tapegrad.dtypes": None,
}


class _Unpickler(pickle.Unpickler):
    """Refuses everything but tensors, NumPy arrays and plain containers."""

    def find_class(self, module: str, name: str) -> Any:
        names = _SAFE.get(module, set())
        if names is None or name in names:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"the file holds a {module}.{name}, which is not loaded unless you pass weights_only=False; do that only for "
            "files you trust"
        )


def load(f: Any, *, weights_only: bool = True) -> Any:
    """Load what `save` wrote.

    Args:
        f: a path, or a binary file.
        weights_only: refuse anything but tensors, arrays and containers; a pickle can run code.

    Raises:
        pickle.UnpicklingError: if the file holds something else.
    """
    if not hasattr(f, "read"):
        with Path(f).open("rb") as file:
            return load(file, weights_only=weights_only)
    return _Unpickler(f).load() if weights_only else pickle.load(f)
