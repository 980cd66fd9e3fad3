"""Finding the operation whose derivative fails or gives NaN."""

from __future__ import annotations

import contextlib
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tapegrad.autograd.attached import attach, attachment
from tapegrad.autograd.watching import watching
from tapegrad.tensor import Tensor

_HERE = str(Path(__file__).parent.parent)
_local = threading.local()


def is_anomaly_enabled() -> bool:
    """Whether anomaly detection is on in this thread."""
    return getattr(_local, "enabled", False)


def is_anomaly_check_nan_enabled() -> bool:
    """Whether anomaly detection, when on, also looks for NaN."""
    return getattr(_local, "check_nan", True)


class set_detect_anomaly:
    """Switch anomaly detection on or off, for good or, as a context manager, for a block.

    Args:
        mode: whether it is on.
        check_nan: whether a derivative that gives NaN is an error.
    """

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        self._before = (is_anomaly_enabled(), is_anomaly_check_nan_enabled())
        _switch(mode, check_nan)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: Any) -> None:
        _switch(*self._before)


class detect_anomaly:
    """Within this block, an error in backward shows where its operation was recorded, and NaN in a derivative is an error.

    Every operation notes the call stack, and sweeps run in Python: for debugging only.

    Args:
        check_nan: whether a derivative that gives NaN is an error.

    >>> import tapegrad as tg
    >>> x = tg.tensor(0.0, requires_grad=True)
    >>> with tg.autograd.detect_anomaly():
    ...     (tg.sqrt(x) * 0.0).backward()
    Traceback (most recent call last):
        ...
    RuntimeError: Function 'SqrtBackward0' returned nan values in its 0th output.
    """

    def __init__(self, check_nan: bool = True) -> None:
        self._check_nan = check_nan
        self._set: set_detect_anomaly | None = None
        warnings.warn(
            "Anomaly Detection has been enabled. This mode will increase the runtime and should only be enabled for debugging.",
            stacklevel=2,
        )

    def __enter__(self) -> None:
        self._set = set_detect_anomaly(True, self._check_nan)

    def __exit__(self, *exception: Any) -> None:
        assert self._set is not None
        self._set.__exit__(*exception)


def _switch(mode: bool, check_nan: bool) -> None:
    if mode and not is_anomaly_enabled():
        _local.watch = contextlib.ExitStack()
        _local.watch.enter_context(watching(_note_place))
    elif not mode and is_anomaly_enabled():
        _local.watch.close()
    _local.enabled, _local.check_nan = mode, check_nan


def _note_place(index: int, out: int) -> None:
    stack = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(_HERE)]
    attach(out).recorded_at = "".join(traceback.format_list(stack))


def explain(name: str, out: int) -> None:
    """Warn where the operation whose derivative failed was recorded."""
    attached = attachment(out)
    if attached is not None and attached.recorded_at:
        text = f"Error detected in {name}. Traceback of forward call that caused the error:\n{attached.recorded_at}"
    else:
        text = (
            f"Error detected in {name}. No forward pass information available. Enable detect anomaly during forward pass for "
            "more information."
        )
    warnings.warn(text, stacklevel=2)


def check_for_nan(name: str, parts: Sequence[Tensor | None]) -> None:
    """Refuse NaN in what an operation passes on.

    Raises:
        RuntimeError: naming the operation.
    """
    for position, part in enumerate(parts):
        if part is not None and bool(part.detach().isnan().any()):  # type: ignore[attr-defined]
            raise RuntimeError(f"Function '{name}' returned nan values in its {position}th output.")
