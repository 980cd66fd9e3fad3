"""Progress of long work: a bar on a terminal, plain lines in a pipe or a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from typing import Generic, TypeVar

from tqdm import tqdm

__all__ = ["Progress"]

T = TypeVar("T")


class Progress(Generic[T]):
    """Iterate over ``items`` and tell on standard error how far the work is, its rate and the time left.

    Args:
        items: what is worked through.
        label: what the work is called.
        unit: what one item is called.
        lines: how many plain lines to write at most where there is no terminal.

    Attributes:
        note: a few words to show beside the progress, set by the loop's body.

    Example:
        >>> work = Progress(range(20), "training", "epoch")  # doctest: +SKIP
        >>> for epoch in work:  # doctest: +SKIP
        ...     work.note = f"loss {train(epoch):.3f}"
    """

    def __init__(self, items: Collection[T], label: str, unit: str, lines: int = 10) -> None:
        self.items = items
        self.label = label
        self.unit = unit
        self.lines = lines
        self.note = ""

    def __iter__(self) -> Iterator[T]:
        return self._bar() if sys.stderr.isatty() else self._plain()

    def _bar(self) -> Iterator[T]:
        with tqdm(self.items, desc=self.label, unit=f" {self.unit}", dynamic_ncols=True) as bar:
            for item in bar:
                yield item
                bar.set_postfix_str(self.note, refresh=False)

    def _plain(self) -> Iterator[T]:
        total, start, written = len(self.items), time.perf_counter(), 0
        for done, item in enumerate(self.items, 1):
            yield item
            if done * self.lines // total > written:
                written = done * self.lines // total
                rate = done / max(time.perf_counter() - start, 1e-9)
                parts = [
                    f"{self.label}: {done}/{total} {self.unit}s",
                    f"{rate:.1f} {self.unit}s/s",
                    f"{(total - done) / rate:.1f} s left",
                    self.note,
                ]
                print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)
