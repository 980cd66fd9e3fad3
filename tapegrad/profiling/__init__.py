"""Where time and memory traffic go: `profile`."""

from tapegrad.profiling._events import Event
from tapegrad.profiling._profile import profile
from tapegrad.profiling._report import Row
