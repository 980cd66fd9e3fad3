"""Small real data sets shipped with the package, for demonstrations and tests."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["digits"]

_FULL_INK = np.float32(16)


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The UCI handwritten digits: 1,797 grey images of 8×8 pixels and what they show.

    Alpaydin and Kaynak, 1998, CC BY 4.0; see ``tapegrad/data/README.md``.

    Returns:
        ``(images, labels)``: float32 of shape (1797, 64), scaled to 0..1, and int64 of shape (1797,).
        Both are fresh arrays, to be changed at will.

    Example:
        >>> images, labels = digits()
        >>> images.shape, int(labels[0])
        ((1797, 64), 0)
    """
    with (files("tapegrad") / "data" / "digits.npz").open("rb") as file:
        # NumPy's annotation asks for all of IO[bytes]; reading needs only read and seek.
        stored: Any = file
        with np.load(stored) as arrays:
            return arrays["images"].astype(np.float32) / _FULL_INK, arrays["labels"].astype(np.int64)
