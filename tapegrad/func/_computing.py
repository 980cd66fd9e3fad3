"""NumPy functions of values, over batches."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad.autograd.attached import attach, attachment
from tapegrad.autograd.rows import Row, RowOp, dtype_of, handle, shape_of
from tapegrad.creation import from_copy
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.ops import _reading
from tapegrad.ops._reading import computed
from tapegrad.tensor import Tensor

_S = rt.S


class _Function:
    """What a row computes; attached to its result.

    Args:
        function: of arrays.
        stretches: see `computed`.
    """

    def __init__(self, function: Callable[..., np.ndarray], stretches: Sequence[int]) -> None:
        self.function, self.stretches = function, stretches

    def _output_number(self, k: int) -> int:
        return 0


class _ComputedOp(RowOp):
    # what a NumPy function makes of one sample's values
    def __init__(self) -> None:
        def computed() -> None:
            """A NumPy function of values."""

        super().__init__(computed, structs.PYTHON, "ComputedBackward0", None)
        rt.ops[self.code]["differentiable"] = 0

    def tangent(self, row: Row, given: Sequence[Tensor | None]) -> None:
        """None: no derivative flows through."""


computed_op = _ComputedOp()
computed_op.covered_by = "vmap"


def _record(function: Callable[..., np.ndarray], tensors: Sequence[Tensor], stretches: Sequence[int]) -> Tensor:
    """Call a function of the first sample's values, and record the call to be made for each sample."""
    arrays = [t._memory_array() for t in tensors]
    for array in arrays:
        array.flags.writeable = False
    made = from_copy(function(*arrays))
    rt.record_on(_S, computed_op.code, made._id, 0, 0, 0, rt.attributes(len(tensors), *(t._id for t in tensors)))
    rt.set_flag(_S, made._id, structs.REQUIRES_GRAD, 0)
    attach(made._id).context = _Function(function, stretches)
    return made


_reading.record_computed = _record


def computed_of_all(row: Row, batch: Any) -> Tensor:
    """What a row computes, for all samples of a batch."""
    attached = attachment(row.out)
    assert attached is not None
    call: _Function = attached.context
    values = [batch.values.get(k) for k in row.extra]
    batched = [v is not None for v in values]
    tensors = [handle(k) if v is None else v for k, v in zip(row.extra, values, strict=True)]
    whole = all(not b or p in call.stretches for p, b in enumerate(batched))
    of_all = OfSamples(call.function, batch.size, batched, shape_of(row.out), dtype_of(row.out).numpy, whole)
    return computed(of_all, *tensors, stretches=call.stretches if whole else ())


class OfSamples:
    """A function of one sample's arrays, for all samples.

    Args:
        function: of one sample.
        size: number of samples.
        batched: which arrays have the samples along their first axis.
        shape: of one result.
        kind: its dtype.
        whole: whether the function does for all samples at once.
    """

    def __init__(
        self,
        function: Callable[..., np.ndarray],
        size: int,
        batched: Sequence[bool],
        shape: Sequence[int],
        kind: Any,
        whole: bool,
    ) -> None:
        self.function, self.size, self.batched, self.whole = function, size, batched, whole
        self.shape, self.kind = tuple(shape), kind
        inner = function.func if isinstance(function, functools.partial) else function
        self.__name__ = inner.__name__

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """The results, along the first axis."""
        failed = getattr(_local, "failed", None)
        _local.failed = None  # functions within raise
        try:
            if self.whole:
                with contextlib.nullcontext() if failed is None else contextlib.suppress(Exception):
                    return self.function(*arrays)
            return self._one_by_one(arrays, failed)
        finally:
            _local.failed = failed

    def _one_by_one(self, arrays: Sequence[np.ndarray], failed: set[int] | None) -> np.ndarray:
        made = np.zeros((self.size, *self.shape), self.kind)
        for k in range(self.size):
            try:
                found = self.function(*(a[k] if b else a for a, b in zip(arrays, self.batched, strict=True)))
            except Exception:
                if failed is None:
                    raise
                failed.add(k)
                continue
            if found.shape != self.shape:
                raise RuntimeError(f"vmap: {self.__name__} gives results of shapes {self.shape} and {found.shape}")
            made[k] = found
        return made


_local = threading.local()


@contextlib.contextmanager
def noting_failures() -> Iterator[set[int]]:
    """Samples that a function fails for are noted in the set that this gives, and have zeros for results."""
    failed: set[int] = set()
    _local.failed = failed
    try:
        yield failed
    finally:
        _local.failed = None
