"""Parameters of a job: trees of tensors, arrays and numbers, or files of these."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from tapegrad import _tree, dtypes
from tapegrad.tensor import Tensor


def open_params(params: Any) -> Any:
    """A tree of arrays of its own.

    Args:
        params: a tree of tensors, arrays and numbers, which count as float64; the path of a ``.npz`` (a dict of arrays), ``.npy`` or
            ``.json`` file (whose lists of numbers are arrays of float64); or None.

    Raises:
        FileNotFoundError: for a path where nothing is.
        TypeError: for leaves that are no numbers.
        ValueError: for other files.

    >>> open_params({"w": [1, 2.5], "b": 0})
    {'w': [array(1.), array(2.5)], 'b': array(0.)}
    """
    if isinstance(params, str | os.PathLike):
        return _opened(os.fspath(params))
    if params is None:
        return None
    leaves, structure = _tree.flatten(params)
    named = [name for name, _ in _tree.named_leaves(params, "params")]
    return _tree.unflatten([_array(name, v) for name, v in zip(named, leaves, strict=True)], structure)


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().numpy()
    if isinstance(value, int | float) and not isinstance(value, bool | np.generic):
        value = np.float64(value)
    array = np.array(value)
    array = array.astype(array.dtype.newbyteorder("="))
    try:
        dtypes.of_numpy(array.dtype)
    except TypeError:
        raise TypeError(
            f"batch: {name} is a {type(value).__name__} of dtype {array.dtype}; parameters are tensors, arrays and numbers"
        ) from None
    return array


def _opened(path: str) -> Any:
    if not os.path.exists(path):
        raise FileNotFoundError(f"batch: params: there is no file {path}")
    suffix = Path(path).suffix
    try:
        if suffix == ".json":
            return _arrays(json.loads(Path(path).read_text(encoding="utf-8")))
        if suffix not in (".npy", ".npz"):
            raise ValueError("its name ends with none of .npz, .npy and .json")
        with open(path, "rb") as file:
            found = np.load(file)
            if isinstance(found, np.ndarray):
                return _array("params", found)
            return {name: _array(f"params[{name!r}]", found[name]) for name in found.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"batch: params: cannot read {path}: {error}") from None


def _arrays(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _arrays(value) for name, value in found.items()}
    try:
        array = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        raise ValueError("it holds something else than numbers, lists of one length of these, and objects") from None
    return array
