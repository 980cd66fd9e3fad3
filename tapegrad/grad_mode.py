"""Whether operations are recorded, per thread: `no_grad`, `enable_grad`, `set_grad_enabled`, `inference_mode`."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import INFERENCE_MODE, NO_GRAD_MODE

_S = rt.S


def is_grad_enabled() -> bool:
    """Whether operations of this thread are recorded.

    >>> import tapegrad as tg
    >>> with tg.no_grad():
    ...     tg.is_grad_enabled()
    False
    """
    return not rt.mode_of_thread(_S) & NO_GRAD_MODE


def is_inference_mode_enabled() -> bool:
    """Whether this thread is in inference mode."""
    return bool(rt.mode_of_thread(_S) & INFERENCE_MODE)


class _Default:
    """Restores the default mode when its thread ends: the system may give its identity to a new thread."""

    def __del__(self, set_mode: Any = rt, S: int = _S) -> None:
        set_mode.set_mode(S, 0)


_of_thread = threading.local()


def _set(mode: int) -> int:
    if not hasattr(_of_thread, "end"):
        _of_thread.end = _Default()
    before = rt.set_mode(_S, mode)
    if before < 0:
        raise RuntimeError("more than 64 threads have switched gradients off at once; use fewer threads")
    return before


class _Mode:
    """A grad mode as a context manager and as a decorator of functions and generators."""

    def __init__(self) -> None:
        self._before: list[int] = []

    def _mode(self) -> int:
        raise NotImplementedError

    def _again(self) -> _Mode:
        return type(self)()

    def __enter__(self) -> None:
        self._before.append(_set(self._mode()))

    def __exit__(self, *exception: Any) -> None:
        _set(self._before.pop())

    def __call__(self, function: Callable) -> Callable:
        if inspect.isclass(function):
            function.__init__ = self(function.__init__)  # type: ignore[method-assign]
            return function
        if inspect.isgeneratorfunction(function):
            return self._wrap_generator(function)

        @functools.wraps(function)
        def wrapped(*args: Any, **named: Any) -> Any:
            with self._again():
                return function(*args, **named)

        return wrapped

    def _wrap_generator(self, function: Callable) -> Callable:
        # the mode holds while the generator runs, not while its consumer does
        @functools.wraps(function)
        def wrapped(*args: Any, **named: Any) -> Any:
            generator = function(*args, **named)
            resume, value = generator.send, None
            while True:
                try:
                    with self._again():
                        item = resume(value)
                except StopIteration as stop:
                    return stop.value
                try:
                    value = yield item
                    resume = generator.send
                except GeneratorExit:
                    with self._again():
                        generator.close()
                    raise
                except BaseException as error:
                    resume, value = generator.throw, error

        return wrapped


class _Bare(_Mode):
    # usable as a decorator without parentheses
    def __new__(cls, function: Callable | None = None) -> Any:
        made = object.__new__(cls)
        if function is None:
            return made
        made.__init__()  # type: ignore[misc]
        return made(function)

    def __init__(self, function: Callable | None = None) -> None:
        super().__init__()


class no_grad(_Bare):
    """Context manager and decorator: operations are not recorded.

    >>> import tapegrad as tg
    >>> x = tg.ones(2, requires_grad=True)
    >>> with tg.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    def _mode(self) -> int:
        return rt.mode_of_thread(_S) | NO_GRAD_MODE


class enable_grad(_Bare):
    """Context manager and decorator: operations are recorded, also inside `no_grad`."""

    def _mode(self) -> int:
        return rt.mode_of_thread(_S) & ~NO_GRAD_MODE


class set_grad_enabled(_Mode):
    """Switch recording on or off, at once; as a context manager or decorator, until its end.

    Args:
        mode: whether to record.
    """

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.mode = bool(mode)
        self._earlier = _set(self._mode())

    def _mode(self) -> int:
        mode = rt.mode_of_thread(_S)
        return mode & ~NO_GRAD_MODE if self.mode else mode | NO_GRAD_MODE

    def _again(self) -> _Mode:
        return set_grad_enabled(self.mode)

    def __enter__(self) -> None:
        self._before.append(self._earlier)
        _set(self._mode())

    def __call__(self, function: Callable) -> Callable:
        _set(self._earlier)
        return super().__call__(function)


class inference_mode(_Mode):
    """Context manager and decorator: `no_grad`, and results that can never be part of a graph.

    Args:
        mode: False leaves the mode.
    """

    def __new__(cls, mode: Any = True) -> Any:
        made = object.__new__(cls)
        if isinstance(mode, bool):
            return made
        made.__init__(True)  # type: ignore[misc]
        return made(mode)

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = mode

    def _mode(self) -> int:
        mode = rt.mode_of_thread(_S)
        return mode | INFERENCE_MODE | NO_GRAD_MODE if self.mode else mode & ~(INFERENCE_MODE | NO_GRAD_MODE)

    def _again(self) -> _Mode:
        return inference_mode(self.mode)
