"""Compiling in a second process what this one will need soon.

Numba compiles one function at a time. On a machine with two cores the part of the engine that sweeps in reverse can be compiled
while the rest is: with an empty cache the first gradient of a small network came after 7 s instead of 10.
"""

import atexit
import os
import signal
import subprocess
import sys

from tapegrad.engine import kernels

_PROGRAM = "import sys; sys.path[:] = {path!r}; from tapegrad.engine import ahead; ahead.build({groups!r})"


class Ahead:
    """A process that fills the cache with groups of entry points, one after the other.

    Args:
        groups: their names.
    """

    def __init__(self, *groups: str) -> None:
        self._groups = groups
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process, where there is a core for it and an interpreter to run."""
        interpreter = os.path.basename(sys.executable or "").startswith("python")
        if self._process is not None or (os.cpu_count() or 1) < 2 or not interpreter:
            return
        program = _PROGRAM.format(path=sys.path, groups=self._groups)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError:  # no memory, no permission: this process compiles everything
            return
        atexit.register(self._stop, os.getpid())

    def _stop(self, owner: int) -> None:
        if self._process is not None and os.getpid() == owner:  # a forked child has no part in it
            self._process.terminate()
            self._process.wait()

    def wait(self, group: str) -> None:
        """Wait until the process has built a group, or ended."""
        if self._process is None or group not in self._groups:
            return
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == group:
                return


def build(groups: tuple[str, ...]) -> None:
    """Build groups and print the name of each: what the second process does."""
    from tapegrad.engine import runtime

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # removes what is half built
    for group in groups:
        kernels.build_group(group, runtime.GROUPS[group])
        print(group, flush=True)
