"""`profile`: a block of code, and what its operations took."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

from tapegrad.autograd.watching import timer_of_thread
from tapegrad.profiling._events import Event
from tapegrad.profiling._report import SORTS, Row, rows_of, sum_of, table_of, time_text, trace_of
from tapegrad.profiling._timer import Timer


class profile:
    """Within this block, note how long each operation takes and how many bytes it moves.

    All is seen that the thread which entered the block runs, however it is run: operations one by one, sweeps of `backward` and
    `autograd.grad` of any order, maps, hooks, users' functions, each instruction of recorded programs. What other threads run is
    not, the workers of `batch.run` included; nor is what compiled code of your own calls through `native`: time that around the
    call. Making tensors from numbers (`zeros`, `rand`) is no operation. Blocks may be within each other.

    Times are those of the engine: it takes memory, runs the kernel and puts the operation on the tape. Compiled code reads the clock
    around each row of a sweep and each instruction of a program, Python around the call of any other operation. What reading it and
    calling cost (`overhead_ns` for a call) is measured when the block begins and subtracted; what is left is good to some 10 and
    some 100 ns, and never less than 1. A derivative written in Python has the time of its Python code; the operations it runs are
    there by themselves. Waiting for a compiler is in no operation's time, except that of such derivatives: run once before you
    profile.

    Looking takes longer than not looking, by 10 to 30 microseconds an operation and 5 an instruction, which is in `wall_ns` and in no
    operation's time. It changes no result. Derivatives and maps of graphs whose structure is known, which compiled code would
    record again, are worked out by Python code as at first, and `vmap` of a compiled function keeps to one thread.

    The bytes of an operation are those of its operands and its result, each counted once, of what `expand` shows more than once only
    the elements there are, and one element for a Python number. A derivative reads the adjoint of the result and what was saved, and
    writes adjoints of operands; an adjoint that is handed on as it is counts nothing, nor does a view. Bytes allocated are those of
    results and adjoints that take new memory. Instructions of a program take none: each run has a block of its own.

    A program that has run often enough to be fused shows its loops, by the operations that share one, such as ``"mul+exp+add"``.

    Attributes:
        events: each operation that ran, as an `Event`: operation, kind, times, bytes, shapes, line of the source. One takes about 400
            bytes of memory.
        start_ns: when the block began, as `time.perf_counter_ns` tells.
        overhead_ns: what a call of the engine costs that does nothing, with reading the clock, in nanoseconds.

    Raises:
        RuntimeError: if it is entered a second time, or left by another thread.

    >>> import tapegrad as tg
    >>> x = tg.ones(1000, requires_grad=True)
    >>> with tg.profile() as p:
    ...     (x * x).sum().backward()
    >>> [(r.operation, r.kind, r.calls) for r in sorted(p.rows)]
    [('mul', 'forward', 1), ('mul', 'reverse', 1), ('sum', 'forward', 1), ('sum', 'reverse', 1)]
    >>> [r.bytes for r in p.rows if r.operation == "mul" and r.kind == "forward"]  # x and the product, float32
    [8000]

    A replay of a compiled function shows the instructions of its program (the first call, before, records it):

    >>> wave = tg.compile(lambda t: (t.sin() * tg.exp(-t)).sum())
    >>> t = tg.linspace(0, 1, 1000)
    >>> _ = wave(t)
    >>> with tg.profile() as p:
    ...     for _ in range(10):
    ...         _ = wave(t)
    >>> print(p.table(sort="operation"))  # doctest: +ELLIPSIS +NORMALIZE_WHITESPACE
    operation  kind      calls  time  share  mean  bytes  GB/s  allocated  line
    exp        replayed     10   ...
    >>> p.chrome_trace("trace.json")  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.start_ns = self.overhead_ns = self._stop_ns = self._thread = 0
        self._timer: Timer | None = None

    def __enter__(self) -> profile:
        if self._thread:
            raise RuntimeError(
                "profile: a profile is of one block of code, and this one was entered before; make another one with tapegrad.profile()"
            )
        timer = timer_of_thread()
        self._timer = timer if isinstance(timer, Timer) else Timer()
        self.overhead_ns = self._timer.overhead_ns
        self._thread = threading.get_native_id()
        self._timer.join(self)
        self.start_ns = time.perf_counter_ns()
        return self

    def __exit__(self, *exception: Any) -> None:
        stopped = time.perf_counter_ns()
        if self._timer is None or timer_of_thread() is not self._timer:
            raise RuntimeError(
                "profile: the block was left by another thread than the one that entered it; enter and leave a profile in one thread"
            )
        self._stop_ns = stopped
        self._timer.leave(self)
        self._timer = None

    @property
    def wall_ns(self) -> int:
        """How long the block took, or has taken until now, in nanoseconds."""
        return (self._stop_ns or (time.perf_counter_ns() if self.start_ns else 0)) - self.start_ns

    @property
    def rows(self) -> list[Row]:
        """The sums for each operation in each kind, what took most time first.

        Each `Row` has the `operation`, the `kind` (``"forward"``, ``"view"``, ``"reverse"``, ``"replayed"``), the number of `calls`,
        `time_ns`, `mean_ns` of a call, the `share` of the time of all operations, `bytes`, `allocated`, and the `line` of the source
        that most of the time belongs to.
        """
        return rows_of(self.events)

    def table(self, sort: str = "time", limit: int | None = None) -> str:
        """The sums as a table, also what `print` shows.

        Args:
            sort: by ``"time"``, ``"calls"``, ``"mean"``, ``"bytes"``, ``"allocated"``, the largest first, or ``"operation"``.
            limit: how many rows to show at most.

        Raises:
            ValueError: for another `sort`, or a `limit` that is no positive int.

        >>> print(profile())
        operation  kind  calls  time  share  mean  bytes  GB/s  allocated  line
        0 ns in operations, of 0 ns in all
        """
        if sort not in SORTS:
            raise ValueError(f"table: sort must be one of {', '.join(map(repr, SORTS))}, but got {sort!r}")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"table: limit must be a positive int or None, but got {limit!r}")
        rows = sorted(self.rows, key=SORTS[sort])
        shown = rows[:limit]
        return table_of(shown, sum_of(rows), self.wall_ns, len(rows) - len(shown))

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        own = sum(e.time_ns for e in self.events)
        return f"<profile of {len(self.events)} calls, {time_text(own)} in operations>"

    def chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the events to a JSON file for a viewer of traces, such as Perfetto (ui.perfetto.dev) or chrome://tracing.

        An operation that ran others is as long as these took together with the profile's own work.

        Args:
            path: of the file, which is overwritten. Its format is the Trace Event Format: complete events (``"ph": "X"``), ``ts`` and
                ``dur`` in microseconds since the block began; their ``args`` have the fields of `Event`.

        Raises:
            OSError: if it cannot be written.
        """
        with open(path, "w", encoding="utf-8") as file:
            json.dump(trace_of(self.events, self.start_ns, self._thread), file)
