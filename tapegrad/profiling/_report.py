"""What a profile shows: sums by operation, their table, and a trace for a viewer."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tapegrad.profiling._events import Event

_HEADINGS = ("operation", "kind", "calls", "time", "share", "mean", "bytes", "GB/s", "allocated", "line")
_LEFT = ("operation", "kind", "line")  # columns of words
_LONGEST = 32  # of an operation's name


class Row(NamedTuple):
    """All that ran of one operation in one kind.

    Attributes:
        operation: its name.
        kind: ``"forward"``, ``"view"``, ``"reverse"`` or ``"replayed"`` (see `Event`).
        calls: how often it ran.
        time_ns: the sum of its own times.
        mean_ns: of a call.
        share: of the time of all operations, from 0 to 1.
        bytes: what it read and wrote.
        allocated: bytes of new memory it took.
        line: of the source, where most of the time was spent.
    """

    operation: str
    kind: str
    calls: int
    time_ns: int
    mean_ns: float
    share: float
    bytes: int
    allocated: int
    line: str


# what a table can be sorted by, and how a row is placed
SORTS = {
    "time": lambda r: -r.time_ns,
    "calls": lambda r: -r.calls,
    "mean": lambda r: -r.mean_ns,
    "bytes": lambda r: -r.bytes,
    "allocated": lambda r: -r.allocated,
    "operation": lambda r: (r.operation, r.kind),
}


def rows_of(events: Iterable[Event]) -> list[Row]:
    """The sums by operation and kind, what took most time first."""
    found: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in events:
        found[event.operation, event.kind].append(event)
    total = sum(e.time_ns for group in found.values() for e in group)
    rows = []
    for (operation, kind), group in found.items():
        lines: Counter[str] = Counter()
        for event in group:
            lines[event.line] += event.time_ns
        own = sum(e.time_ns for e in group)
        rows.append(
            Row(
                operation,
                kind,
                len(group),
                own,
                own / len(group),
                own / total,
                sum(e.bytes for e in group),
                sum(e.allocated for e in group),
                lines.most_common(1)[0][0],
            )
        )
    return sorted(rows, key=SORTS["time"])


def table_of(rows: Sequence[Row], total: Row, wall_ns: int, left_out: int) -> str:
    """Rows as a table.

    Args:
        rows: the rows to show.
        total: the sums of all rows.
        wall_ns: how long the profiled block took.
        left_out: how many rows are not shown.
    """
    lines = [list(_HEADINGS), *map(_cells, rows)]
    if rows:
        lines.append(_cells(total))
    widths = [max(len(line[p]) for line in lines) for p in range(len(_HEADINGS))]
    text = [
        "  ".join(
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for cell, width, name in zip(line, widths, _HEADINGS, strict=True)
        ).rstrip()
        for line in lines
    ]
    if rows:
        text.insert(-1, "-" * max(map(len, text)))
    if left_out:
        text.append(f"and {left_out} more operations")
    text.append(f"{time_text(total.time_ns)} in operations, of {time_text(wall_ns)} in all")
    return "\n".join(text)


def _cells(row: Row) -> list[str]:
    return [
        row.operation if len(row.operation) <= _LONGEST else row.operation[: _LONGEST - 3] + "...",
        row.kind,
        f"{row.calls:,}",
        time_text(row.time_ns),
        f"{row.share:.1%}",
        time_text(row.mean_ns),
        bytes_text(row.bytes),
        f"{row.bytes / row.time_ns:.3g}" if row.bytes else "",  # a byte in a nanosecond is a gigabyte in a second
        bytes_text(row.allocated),
        row.line,
    ]


def sum_of(rows: Sequence[Row]) -> Row:
    """The sums of rows."""
    calls, own = sum(r.calls for r in rows), sum(r.time_ns for r in rows)
    moved, allocated = sum(r.bytes for r in rows), sum(r.allocated for r in rows)
    return Row("all", "", calls, own, own / max(calls, 1), sum(r.share for r in rows), moved, allocated, "")


def time_text(ns: float) -> str:
    """A time with its unit.

    >>> time_text(850), time_text(12_345), time_text(2.5e9)
    ('850 ns', '12.3 us', '2.50 s')
    """
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{_short(ns / size)} {unit}"
    return f"{ns:.0f} ns"


def bytes_text(count: int) -> str:
    """A number of bytes with its unit.

    >>> bytes_text(0), bytes_text(800), bytes_text(1536)
    ('0 B', '800 B', '1.50 KiB')
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{_short(count / size)} {unit}"
    return f"{count} B"


def _short(value: float) -> str:
    # three digits, or all before the point
    return f"{value:.{max(2 - len(str(int(value))) + 1, 0)}f}"


def trace_of(events: Iterable[Event], start_ns: int, thread: int) -> dict[str, Any]:
    """Events of a thread in the Trace Event Format, times in microseconds since a start."""
    where = {"pid": os.getpid(), "tid": thread}
    found = [
        {
            "name": e.operation,
            "cat": e.kind,
            "ph": "X",
            "ts": (e.start_ns - start_ns) / 1000,
            "dur": e.span_ns / 1000,
            **where,
            "args": {
                "time_ns": e.time_ns,
                "bytes": e.bytes,
                "allocated": e.allocated,
                "shapes": {"read": [list(s) for s in e.reads], "written": [list(s) for s in e.writes]},
                "dtype": e.dtype,
                "line": e.line,
            },
        }
        for e in sorted(events, key=lambda e: e.start_ns)
    ]
    return {"traceEvents": found, "displayTimeUnit": "ns"}
