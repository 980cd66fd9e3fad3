"""Recorded programs: functions captured once and replayed natively (see README.md)."""

from tapegrad.program._compile import Compiled, compile

__all__ = ["Compiled", "compile"]
