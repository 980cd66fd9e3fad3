"""What a function may do while `vmap` runs it on the first sample of a batch, and what it may not, since that stands for all."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad import errors, random
from tapegrad.autograd.attached import attach, attachment
from tapegrad.autograd.rows import Row, handle, operands, shape_of
from tapegrad.autograd.tracing import Draw, bare, is_traced, mark, recorder_of_thread, rows_between
from tapegrad.autograd.watching import seeing_writes
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_OP, LOOK_STORAGE
from tapegrad.grad_mode import is_grad_enabled
from tapegrad.ops import _reading
from tapegrad.tensor import Tensor

_S = rt.S
_lock = threading.Lock()
_local = threading.local()

# set by tapegrad.func: applies a function of single samples to batches
map_samples: Callable[[Callable, Sequence[Any], Sequence[bool], int], list[Any]] | None = None


class SteeredByValues(RuntimeError):
    """Values that differ between samples were asked for where one run stands for all."""


class _Sample:
    """A run of a function on the first sample of a batch.

    Args:
        batch: has the ids of the sample's buffers in `values`, a `size`, and a `randomness`.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self._began = int(rt.state["storages_made"])

    def made_outside(self, t: Tensor) -> bool:
        """Whether a tensor lies in memory that was there before, or that is not the library's own."""
        k = rt.look(_S, t._id, LOOK_STORAGE)
        while k:
            storage = rt.storage(k)
            if storage["number"] < self._began or storage["owner"]:
                return True
            k = int(storage["root"])
        return False

    def differs(self, tensors: Sequence[Any]) -> bool:
        """Whether the values of some tensors differ between samples."""
        ids = [t._id for t in tensors if isinstance(t, Tensor) and is_traced(t)]
        known = self.batch.values
        return any(k in known for k in ids) or any(
            k in known for row in rows_between(ids, known) for k in operands(row)
        )


@contextlib.contextmanager
def sampling(batch: Any) -> Iterator[None]:
    """This thread runs a function on the first sample of a batch: its values must neither steer it nor leave it."""
    before = _samples()
    sample = _Sample(batch)
    _local.samples = (*before, sample)
    with _lock:
        _reading.sampling += 1
    try:
        with seeing_writes():
            yield
    finally:
        _local.samples = before
        with _lock:
            _reading.sampling -= 1


def _samples() -> tuple[_Sample, ...]:
    return getattr(_local, "samples", ())


@contextlib.contextmanager
def one_sample() -> Iterator[None]:
    """What this thread runs belongs to one sample, whose values it may read."""
    before = _samples()
    _local.samples = ()
    try:
        yield
    finally:
        _local.samples = before


@contextlib.contextmanager
def users_forward() -> Iterator[None]:
    """What this thread runs is a user's `forward`, which has no gradients of its own to lose."""
    before = getattr(_local, "forward", False)
    _local.forward = True
    try:
        yield
    finally:
        _local.forward = before


def is_sampling() -> bool:
    """Whether this thread runs a function on the first sample of a batch."""
    return bool(_samples())


class _Lifetime:
    # kept by the place of a sample on the tape
    pass


def lifetime(sample: Tensor) -> weakref.ref:
    """What is dead once nothing is left that was computed from a sample while it was traced."""
    made = _Lifetime()
    attach(sample._id).metadata[_Lifetime] = made
    return weakref.ref(made)


def differ(tensors: Sequence[Any]) -> bool:
    """Whether the values of some tensors differ between samples."""
    return any(sample.differs(tensors) for sample in _samples())


def samples_carry_gradients() -> bool:
    """Whether the sample this thread runs a function on stands for tensors that require grad."""
    return any(t.requires_grad for sample in _samples() for t in sample.batch.values.values())


@contextlib.contextmanager
def watching_reads() -> Iterator[list[Tensor]]:
    """The traced tensors that this thread turns into numbers meanwhile, as a list that grows."""
    before = getattr(_local, "reads", None)
    found: list[Tensor] = []
    _local.reads = found
    try:
        yield found
    finally:
        _local.reads = before


def refuse_reading(t: Tensor) -> None:
    """Refuse to turn a tensor into numbers while its samples are not told apart.

    Raises:
        RuntimeError: if this thread is inside `vmap`.
    """
    reads = getattr(_local, "reads", None)
    if reads is not None:
        reads.append(t)
    elif is_sampling() and is_traced(t):
        raise SteeredByValues(
            f"vmap: the values of a tensor of shape {list(t.shape)} that differs between samples were asked for (by .item(), an `if`, "
            "float(), indexing with it, NumPy ...). Inside vmap a function runs once for all samples, so values cannot steer it: use "
            "tapegrad.where or masks, or loop over the samples."
        )


def before_reading(t: Tensor) -> bool:
    """Refuse to turn a tensor into numbers while its samples are not told apart, and tell who records a program.

    Returns:
        Whether what is read must not be written to.

    Raises:
        RuntimeError: if this thread is inside `vmap`, unless the batch notes what steers the function.
    """
    samples = _samples()
    if len(samples) == 1 and samples[0].batch.guards is not None:
        if samples[0].differs([t]):
            t._refresh()
            samples[0].batch.guards.append((handle(t._id), np.ascontiguousarray(t._memory_array()).tobytes()))
            return True
    else:
        refuse_reading(t)
    recorder = recorder_of_thread()
    return recorder is not None and recorder.read(t)


def before_printing(t: Tensor) -> None:
    """Tell who records a program that what it does may depend on a tensor's text; elsewhere `vmap` prints the first sample."""
    if recorder_of_thread() is not None:
        before_reading(t)


def refuse_data(t: Tensor, message: str) -> None:
    """Refuse what reaches past the trace to a tensor's memory.

    Raises:
        RuntimeError: if this thread is inside `vmap`.
    """
    if is_sampling() and is_traced(t):
        raise RuntimeError(message)


def check_write(target: Tensor, sources: Sequence[Any]) -> None:
    """Refuse a write to memory that holds one sample's values only, or that a trace sees under two names; keep what it replaces.

    Args:
        target: the tensor to be written to.
        sources: tensors that its new values come from, and anything else.

    Raises:
        RuntimeError: if this thread is inside `vmap` and what it would compute could not be right.
    """
    base = target._base_tensor()
    whole = target if base is None else base
    for sample in _samples():
        if sample.differs(sources) and sample.made_outside(target):
            raise RuntimeError(
                f"vmap: an in-place operation would write values that differ between samples to a tensor of shape {list(whole.shape)} "
                "that was made outside of the mapped function, which has no place for each sample's. Make the tensor to write to inside "
                "of the function, for example by clone() or tapegrad.zeros_like(), or return the values."
            )
        if sample.differs(sources) and not sample.differs([whole]):
            sample.batch.before[whole._id] = whole.clone()  # type: ignore[attr-defined]
    if is_sampling() and not is_grad_enabled() and whole.requires_grad and not getattr(_local, "forward", False):
        raise RuntimeError(
            f"vmap: a tensor of shape {list(whole.shape)} that requires grad was to be written to in place under no_grad inside of the mapped "
            "function, whose results would lose their gradient. Write outside of no_grad, or to a detached clone()."
        )
    if is_sampling() and rt.look(_S, whole._id, LOOK_OP) == structs.DETACHED:
        raise RuntimeError(_SHARED.format(shape=list(whole.shape)))


_SHARED = (
    "vmap: a tensor of shape {shape} was to be written to in place while it shares memory with another by detach(), which inside of "
    "the mapped function would not change. clone() one of them before."
)


def check_detached(source: int, twin: int) -> None:
    """Refuse a detached twin, given by its buffer and that of its source, either of which was written to since.

    Raises:
        RuntimeError: as above.
    """
    for k in (source, twin):
        buffer = rt.buffer(k)
        if int(rt.storage(int(buffer["storage"]))["graph_version"]) != int(buffer["stamp"]):
            raise RuntimeError(_SHARED.format(shape=list(shape_of(twin))))


def check_hooks(row: Row, value: Tensor) -> None:
    """Refuse hooks on one sample's result where gradients flow through that of all, whose adjoint they would not see.

    Raises:
        RuntimeError: if there are any.
    """
    attached = attachment(row.out)
    if value.requires_grad and attached is not None and (attached.hooks or attached.before or attached.after):
        raise RuntimeError(
            f"vmap: a hook was registered inside of the mapped function on a tensor of shape {list(shape_of(row.out))}, through which "
            "gradients flow to tensors outside of it; the hook would not be called for them. Register it on the results of vmap, or on "
            "its arguments."
        )


class RandomRefused(RuntimeError):
    """Random numbers were asked for where all samples of a `vmap` run at once, and it was not said whether they share them."""


def random_samples(draw: Draw, shape: tuple[int, ...], generator: random.Generator) -> Tensor:
    """Random numbers of a shape; inside `vmap`, as its `randomness` asks.

    Args:
        draw: makes a tensor of random numbers of a shape.
        shape: of one sample's numbers.
        generator: what they are drawn from.

    Raises:
        RandomRefused: where randomness is an error.
    """
    return _random_within(_samples(), draw, shape, generator)


def _random_within(
    around: tuple[_Sample, ...], draw: Draw, shape: tuple[int, ...], generator: random.Generator, samples: int = 0
) -> Tensor:
    # for one sample of the innermost of some maps; the first dim may be that of a map they are within
    if not around:
        recorder = recorder_of_thread()
        return draw(shape) if recorder is None else recorder.drawn(draw, shape, generator, samples)
    *outer, inner = around
    batch = inner.batch
    if batch.randomness == "error":
        raise RandomRefused(
            "vmap: called random operation while in randomness error mode. Please either use the 'same' or 'different' randomness flags "
            "on vmap or perform the randomness operation out of vmap"
        )
    if batch.randomness == "same":
        return _random_within(tuple(outer), draw, shape, generator)
    whole = _random_within(tuple(outer), draw, (batch.size, *shape), generator, batch.size)
    first = mark(bare(whole[0].clone()))
    batch.values[first._id] = whole
    batch.keep.append(first)
    return first


def before_rebinding(target: Tensor, value: Tensor) -> None:
    """Refuse an assignment to `.data` where not all samples have their own, and tell who records a program.

    Raises:
        RuntimeError: if this thread is inside `vmap`, or its program could not repeat it.
    """
    for t in (target, value):
        refuse_data(t, errors.DATA_SET_IN_VMAP)
    recorder = recorder_of_thread()
    if recorder is not None:
        recorder.rebound(target, value)


def _seeded(generator: random.Generator) -> None:
    recorder = recorder_of_thread()
    if recorder is not None:
        recorder.seeded(generator)


def _require_later(condition: Tensor, error: Exception) -> bool:
    batch = _samples()[-1].batch
    if batch.guards is not None:
        return False
    batch.required.append((condition, error))
    return True


random.draw_samples = random_samples
random.seeded = _seeded
_reading.recorder_of_thread = recorder_of_thread
_reading.differ = differ
_reading.require_later = _require_later
_reading.check_write = check_write
_reading.is_sampling = is_sampling
