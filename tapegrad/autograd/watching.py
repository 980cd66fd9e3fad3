"""Seeing each operation as it is recorded: while somebody watches, the entry points that record are called through here.

A watcher sees what was recorded; an interceptor also sees calls before they are made and may change what they are given. A timer makes
the calls, those of entry points that run what was recorded among them. Nobody watching costs the engine one comparison in methods
without a Python frame, which then step aside.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tapegrad.autograd.rows import Row
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_PRODUCER

_S = rt.S
_HERE = str(Path(__file__).parent.parent)
_local = threading.local()
_lock = threading.Lock()
_watching = _seeing = _timing = 0
# entry points that put a row on the tape
_RECORDING = ("record", "record_scalar", "record_kernel", "record_planned", "record_view", "record_on", "share_leaf")
# entry points that change what there is, or bring in memory of others
_CHANGING = ("mark_written", "take_memory", "set_grad", "move_grad")
_INTERCEPTED = (*_RECORDING, *_CHANGING, "adopt_leaf")
# entry points that run kernels of what was recorded before
_RUNNING = ("sweep_from", "sweep_wanted", "sweep", "run_lanes", "run_program", "run_blocks")
_originals: dict[str, Callable[..., Any]] = {}
_entries: dict[str, Callable[..., Any]] = {}


class Interceptor(Protocol):
    """Sees the calls of entry points by one thread."""

    def before(self, name: str, given: tuple) -> tuple:
        """What an entry point is to be given instead, after the state."""

    def after(self, name: str, given: tuple, answer: int, index: int) -> None:
        """An entry point answered with the id of a buffer; `index` is the row it recorded, negative if none."""


class Timer(Protocol):
    """Makes the calls of entry points for one thread, to know how long each takes."""

    def call(self, name: str, original: Callable[..., int], S: int, given: tuple) -> int:
        """Call an entry point, or others that do the same; its answer. `given` follows the state."""

    def row(self, row: Row, compute: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """Compute what a row of the tape passes on, over tensors."""


def _watched(name: str, original: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(original)
    def entry(S: int, *given: Any) -> int:
        watchers = getattr(_local, "watchers", ())
        interceptors: tuple[Interceptor, ...] = getattr(_local, "interceptors", ())
        if not watchers and not interceptors:
            return _called(name, original, S, given)
        with unwatched():
            for interceptor in reversed(interceptors):
                given = interceptor.before(name, given)
            answer = _called(name, original, S, given)
            if name in _CHANGING:
                for interceptor in interceptors:
                    interceptor.after(name, given, 0, -1)
            elif answer > 0:
                _tell(name, given, answer & ~structs.TRACKED_VIEW, watchers, interceptors)
        return answer

    return entry


def _run(name: str, original: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(original)
    def entry(S: int, *given: Any) -> int:
        return _called(name, original, S, given)

    return entry


def _called(name: str, original: Callable[..., int], S: int, given: tuple) -> int:
    timer = timer_of_thread()
    return original(S, *given) if timer is None else timer.call(name, original, S, given)


def _tell(name: str, given: tuple, k: int, watchers: tuple, interceptors: tuple[Interceptor, ...]) -> None:
    # while somebody watches, `record` writes in place only what it does not put on the tape
    written = name == "record" and given[0] & structs.IN_PLACE
    index = -1 if written or name not in _RECORDING else rt.look(_S, k, LOOK_PRODUCER)
    try:
        if index >= 0:
            for watcher in watchers:
                watcher(index, k)
        for interceptor in interceptors:
            interceptor.after(name, given, k, index)
    except BaseException:
        if name != "record_on" and not written:  # whose result is the caller's own
            rt.release(_S, k)
        raise


@contextlib.contextmanager
def _seen_by(kind: str, who: Any) -> Iterator[None]:
    before = getattr(_local, kind, ())
    setattr(_local, kind, (*before, who))
    _count(watching=1)
    try:
        yield
    finally:
        setattr(_local, kind, before)
        _count(watching=-1)


def watching(watcher: Callable[[int, int], None]) -> contextlib.AbstractContextManager[None]:
    """Have ``watcher(index of the row, id of its result)`` called for what this thread records within the block.

    What it raises is raised by the operation, which is then not recorded.
    """
    return _seen_by("watchers", watcher)


@contextlib.contextmanager
def seeing_writes() -> Iterator[None]:
    """Within the block, compiled code leaves recorded in-place operations to Python, in all threads."""
    _count(seeing=1)
    try:
        yield
    finally:
        _count(seeing=-1)


def intercepting(interceptor: Interceptor) -> contextlib.AbstractContextManager[None]:
    """Have an interceptor see the calls of this thread within the block; the innermost is asked first."""
    return _seen_by("interceptors", interceptor)


@contextlib.contextmanager
def timing(timer: Timer) -> Iterator[None]:
    """Have a timer make the calls of this thread within the block."""
    _count(timing=1)
    _local.timer = timer
    try:
        yield
    finally:
        _local.timer = None
        _count(timing=-1)


def timer_of_thread() -> Timer | None:
    """The timer that makes the calls of this thread."""
    return getattr(_local, "timer", None)


def is_watched() -> bool:
    """Whether somebody sees what this thread records."""
    return bool(getattr(_local, "watchers", ()) or getattr(_local, "interceptors", ()) or timer_of_thread())


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """What this thread records within the block, nobody sees."""
    watchers, interceptors = getattr(_local, "watchers", ()), getattr(_local, "interceptors", ())
    _local.watchers = _local.interceptors = ()
    try:
        yield
    finally:
        _local.watchers, _local.interceptors = watchers, interceptors


def _count(watching: int = 0, seeing: int = 0, timing: int = 0) -> None:
    global _watching, _seeing, _timing
    with _lock:
        watching, seeing, timing = _watching + watching, _seeing + seeing, _timing + timing
        _replace(_INTERCEPTED, _watched, watching + timing > 0)
        _replace(_RUNNING, _run, timing > 0)
        _watching, _seeing, _timing = watching, seeing, timing
        writes = structs.SEES_WRITES if _watching + _seeing else 0
        rt.state["watched"] = writes | (structs.SEES_CALLS if _watching + _timing else 0)


def _replace(names: Sequence[str], made: Callable, watched: bool) -> None:
    # have entry points called through here, or not
    first = names[0]
    if watched == (first in _entries and vars(rt).get(first) is _entries[first]):
        return
    if first not in _entries:
        _originals.update({name: getattr(rt, name) for name in names})
        _entries.update({name: made(name, _originals[name]) for name in names})
    vars(rt).update({name: (_entries if watched else _originals)[name] for name in names})


def source_line() -> str:
    """The innermost line outside of the package that this thread runs, as ``file:line``; nothing if there is none."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):  # type: ignore[redundant-expr]
        frame = frame.f_back  # type: ignore[assignment]
    return "" if frame is None else f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
