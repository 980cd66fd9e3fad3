"""Seeing each operation as it is recorded: while somebody watches, the entry points that record are called through here.

A watcher sees what was recorded; an interceptor also sees calls before they are made and may change what they are given. Nobody watching costs the engine one comparison in methods without a Python frame, which then step aside.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_PRODUCER

_S = rt.S
_local = threading.local()
_lock = threading.Lock()
_watching = _seeing = 0
# entry points that put a row on the tape
_RECORDING = ("record", "record_scalar", "record_kernel", "record_planned", "record_view", "record_on", "share_leaf")
# entry points that change what there is, or bring in memory of others
_CHANGING = ("mark_written", "take_memory", "set_grad", "move_grad")
_INTERCEPTED = (*_RECORDING, *_CHANGING, "adopt_leaf")
_unwatched: dict[str, Callable[..., Any]] = {}
_entries: dict[str, Callable[..., Any]] = {}


class Interceptor(Protocol):
    """Sees the calls of entry points by one thread."""

    def before(self, name: str, given: tuple) -> tuple:
        """What an entry point is to be given instead, after the state."""

    def after(self, name: str, given: tuple, answer: int, index: int) -> None:
        """An entry point answered with the id of a buffer; `index` is the row it recorded, negative if none."""


def _watched(name: str, original: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(original)
    def entry(S: int, *given: Any) -> int:
        watchers = getattr(_local, "watchers", ())
        interceptors: tuple[Interceptor, ...] = getattr(_local, "interceptors", ())
        if not watchers and not interceptors:
            return original(S, *given)
        with unwatched():
            for interceptor in reversed(interceptors):
                given = interceptor.before(name, given)
            answer = original(S, *given)
            if name in _CHANGING:
                for interceptor in interceptors:
                    interceptor.after(name, given, 0, -1)
            elif answer > 0:
                _tell(name, given, answer & ~structs.TRACKED_VIEW, watchers, interceptors)
        return answer

    return entry


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
    _count(1, 0)
    try:
        yield
    finally:
        setattr(_local, kind, before)
        _count(-1, 0)


def watching(watcher: Callable[[int, int], None]) -> contextlib.AbstractContextManager[None]:
    """Have ``watcher(index of the row, id of its result)`` called for what this thread records within the block.

    What it raises is raised by the operation, which is then not recorded.
    """
    return _seen_by("watchers", watcher)


@contextlib.contextmanager
def seeing_writes() -> Iterator[None]:
    """Within the block, compiled code leaves recorded in-place operations to Python, in all threads."""
    _count(0, 1)
    try:
        yield
    finally:
        _count(0, -1)


def intercepting(interceptor: Interceptor) -> contextlib.AbstractContextManager[None]:
    """Have an interceptor see the calls of this thread within the block; the innermost is asked first."""
    return _seen_by("interceptors", interceptor)


def is_watched() -> bool:
    """Whether somebody sees what this thread records."""
    return bool(getattr(_local, "watchers", ()) or getattr(_local, "interceptors", ()))


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """What this thread records within the block, nobody sees."""
    watchers, interceptors = getattr(_local, "watchers", ()), getattr(_local, "interceptors", ())
    _local.watchers = _local.interceptors = ()
    try:
        yield
    finally:
        _local.watchers, _local.interceptors = watchers, interceptors


def _count(watching: int, seeing: int) -> None:
    global _watching, _seeing
    with _lock:
        if watching and not _watching:
            if not _entries:
                _unwatched.update({name: getattr(rt, name) for name in _INTERCEPTED})
                _entries.update({name: _watched(name, _unwatched[name]) for name in _INTERCEPTED})
            vars(rt).update(_entries)
        _watching += watching
        _seeing += seeing
        if watching and not _watching:
            vars(rt).update(_unwatched)
        rt.state["watched"] = _watching + _seeing > 0
