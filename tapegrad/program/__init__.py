"""Recorded programs: functions captured once and replayed natively (see README.md)."""

from tapegrad.program._compile import Compiled, compile
from tapegrad.program.callable import Native
from tapegrad.program.lanes import Lanes

__all__ = ["Compiled", "Lanes", "Native", "compile"]
