"""What a job tells about itself when it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapegrad.batch._journal import Failure


@dataclass
class Report:
    """What a batch job did.

    Attributes:
        samples: how many samples the data has, all of which are done.
        resumed: how many of them were done when the job started, by the run that it resumed.
        seconds: how long this run took.
        failures: samples that failed, neighbours of one reason together; their values and gradients are NaN, and reductions leave
            them out.
        out: path of the gradients.
        values: path of the values.
        gradient: with a reduction, the reduced gradient: arrays in the structure of `params`.
        value: with a reduction, the reduced value.

    >>> print(Report(samples=1000, seconds=0.5, out="grads.npy", failures=[Failure(3, 5, "the value is NaN")]))
    1,000 samples in 0.5 s, 2,000 samples/s
    gradients  grads.npy
    failed     2 samples
               3 to 4: the value is NaN
    """

    samples: int
    seconds: float
    resumed: int = 0
    failures: list[Failure] = field(default_factory=list)
    out: str | None = None
    values: str | None = None
    gradient: Any = None
    value: float | None = None

    @property
    def rate(self) -> float:
        """Samples per second of this run."""
        return (self.samples - self.resumed) / max(self.seconds, 1e-9)

    @property
    def failed(self) -> np.ndarray:
        """The numbers of the samples that failed, in order.

        >>> Report(10, 0.1, failures=[Failure(3, 5, "x"), Failure(7, 8, "y")]).failed
        array([3, 4, 7])
        """
        parts = [np.arange(f.start, f.stop) for f in self.failures]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def __str__(self) -> str:
        done = self.samples - self.resumed
        lines = [f"{done:,} samples in {self.seconds:.1f} s, {self.rate:,.0f} samples/s"]
        if self.resumed:
            lines[0] += f", after {self.resumed:,} that were done before"
        if self.value is not None:
            lines.append(f"value      {self.value:.6g}")
        if self.out is not None:
            lines.append(f"gradients  {self.out}")
        if self.values is not None:
            lines.append(f"values     {self.values}")
        if self.failures:
            lines.append(f"failed     {sum(f.stop - f.start for f in self.failures):,} samples")
            lines += [
                f"           {f.start if f.stop - f.start == 1 else f'{f.start} to {f.stop - 1}'}: {f.reason}"
                for f in self.failures[:_SHOWN]
            ]
        if len(self.failures) > _SHOWN:
            lines.append(f"           and {len(self.failures) - _SHOWN:,} more: see failures")
        return "\n".join(lines)


_SHOWN = 10
