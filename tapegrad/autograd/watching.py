"""Seeing each operation as it is recorded: while somebody watches, the entry points that record are called through here.

Nobody watching costs the engine one comparison in methods without a Python frame, which then step aside.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_PRODUCER

_S = rt.S
_local = threading.local()
_lock = threading.Lock()
_watching = _seeing = 0
# entry points that put a row on the tape
_RECORDING = ("record", "record_scalar", "record_kernel", "record_planned", "record_view", "record_on", "share_leaf")
_unwatched: dict[str, Callable[..., Any]] = {}
_entries: dict[str, Callable[..., Any]] = {}


def _watched(name: str, original: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(original)
    def entry(S: int, first: int, *others: Any) -> int:
        answer = original(S, first, *others)
        watchers = getattr(_local, "watchers", ())
        # while somebody watches, `record` writes in place only what it does not put on the tape
        if answer <= 0 or not watchers or (name == "record" and first & structs.IN_PLACE):
            return answer
        k = answer & ~structs.TRACKED_VIEW
        index = rt.look(S, k, LOOK_PRODUCER)
        if index < 0:
            return answer
        # what a watcher records itself is not watched
        _local.watchers = ()
        try:
            for watcher in watchers:
                watcher(index, k)
        except BaseException:
            if name != "record_on":  # whose result is the caller's own
                rt.release(S, k)
            raise
        finally:
            _local.watchers = watchers
        return answer

    return entry


@contextlib.contextmanager
def watching(watcher: Callable[[int, int], None]) -> Iterator[None]:
    """Have ``watcher(index of the row, id of its result)`` called for what this thread records within the block.

    What it raises is raised by the operation, which is then not recorded.
    """
    before = getattr(_local, "watchers", ())
    _local.watchers = (*before, watcher)
    _count(1, 0)
    try:
        yield
    finally:
        _local.watchers = before
        _count(-1, 0)


@contextlib.contextmanager
def seeing_writes() -> Iterator[None]:
    """Within the block, compiled code leaves recorded in-place operations to Python, in all threads."""
    _count(0, 1)
    try:
        yield
    finally:
        _count(0, -1)


def _count(watching: int, seeing: int) -> None:
    global _watching, _seeing
    with _lock:
        if watching and not _watching:
            if not _entries:
                _unwatched.update({name: getattr(rt, name) for name in _RECORDING})
                _entries.update({name: _watched(name, _unwatched[name]) for name in _RECORDING})
            vars(rt).update(_entries)
        _watching += watching
        _seeing += seeing
        if watching and not _watching:
            vars(rt).update(_unwatched)
        rt.state["watched"] = _watching + _seeing > 0
