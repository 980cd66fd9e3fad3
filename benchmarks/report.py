"""``python -m benchmarks.report`` measures every row, writes a table and a picture, and fills the README."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import disk, higher_order  # noqa: F401 - add their rows to FIGURES and WORKLOADS
from benchmarks.programs import RACES, Race
from benchmarks.work import FIGURES, ROOT, WORKLOADS, Figure, Job, Work, cores, torch_or_none

HERE = Path(__file__).resolve().parent
README = ROOT / "README.md"
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"


@dataclass(frozen=True)
class Row:
    """A workload and what it took, in seconds; `theirs` is None without PyTorch, `hips` without HIPS autograd."""

    work: Work
    ours: float
    theirs: float | None
    hips: float | None = None

    @property
    def ratio(self) -> float | None:
        """PyTorch's time over tapegrad's."""
        return None if self.theirs is None else self.theirs / self.ours


def measure(work: Work, peer: Any, quick: bool) -> Row:
    """Time one workload in both libraries."""
    import tapegrad

    jobs = [work.make(tapegrad)] + ([work.make(peer)] if peer else [])
    hips = work.hips is not None and importlib.util.find_spec("autograd") is not None
    if hips:
        jobs.append(work.hips())  # type: ignore[misc]
    medians = _in_turns(jobs, quick)
    return Row(work, medians[0], medians[1] if peer else None, medians[-1] if hips else None)


def race(contest: Race, quick: bool) -> dict[str, tuple[float, float]]:
    """By library that is installed, the median time of a contest's job and that of its first call, with what it takes to make it."""
    jobs, firsts = [], {}
    for library, make in contest.jobs.items():
        start = time.perf_counter()
        try:
            job = make()
            job()
        except ImportError:
            continue
        firsts[library] = time.perf_counter() - start
        while time.perf_counter() - start - firsts[library] < (0.2 if quick else 3.0):
            job()  # programs that run often get loops of their own
        jobs.append(job)
    return {k: (t, first) for t, (k, first) in zip(_in_turns(jobs, quick), firsts.items(), strict=True)}


def _in_turns(jobs: list[Job], quick: bool) -> list[float]:
    """The median time of each job, in turns, so that a busy moment hits all."""
    enough = 0.005 if quick else 0.04
    counts = [_count(job, enough) for job in jobs]
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(3 if quick else 21):
        for job, count, seconds in zip(jobs, counts, times, strict=True):
            # idle threads of OpenMP and OpenBLAS spin for up to 30 ms, on the cores the other library needs
            time.sleep(0.05)
            job()
            seconds.append(_time(job, count))
    return [statistics.median(seconds) for seconds in times]


def _time(job: Job, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        job()
    return (time.perf_counter() - start) / count


def _count(job: Job, enough: float) -> int:
    # calls that take `enough` seconds together
    for _ in range(3):  # compiled, and past the point where methods are replaced
        job()
    return max(1, round(enough / max(_time(job, 1), 1e-9)))


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def ratio_table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| work | PyTorch | tapegrad | ratio | at least | expected | HIPS autograd |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        ratio = "–" if r.ratio is None else f"{r.ratio:.2f}"
        if r.ratio is not None and r.ratio < r.work.minimum:
            ratio = f"**{ratio}** (below)"
        lines.append(
            f"| {r.work.name} | {_seconds(r.theirs)} | {_seconds(r.ours)} | {ratio} "
            f"| {r.work.minimum:g} | {r.work.expected:g} | {_seconds(r.hips) if r.work.hips else ''} |"
        )
    return "\n".join(lines)


def race_table(races: list[tuple[Race, dict[str, tuple[float, float]]]]) -> str:
    """The contests in Markdown: how many times tapegrad's time each library takes."""
    lines = [
        "| work | tapegrad | its first call | peer | its time | ratio | at least |",
        "|---|--:|--:|---|--:|--:|--:|",
    ]
    for contest, times in races:
        ours, first = times["tapegrad"]
        for library, least in contest.least.items():
            head = f"| {contest.name} | {_seconds(ours)} | {_seconds(first)} | {library} "
            if library not in times:
                lines.append(f"{head}| – | – | {least:.3g} |")
                continue
            theirs = times[library][0]
            ratio = f"{theirs / ours:.2f}" if theirs >= least * ours else f"**{theirs / ours:.2f}** (below)"
            lines.append(f"{head}| {_seconds(theirs)} | {ratio} | {least:.3g} |")
    return "\n".join(lines)


def figure_table(figures: list[tuple[Figure, float | None]]) -> str:
    """The engine's figures in Markdown."""
    lines = ["| figure | measured | at most |", "|---|--:|--:|"]
    for figure, value in figures:
        shown = "–" if value is None else f"{value:.3g} {figure.unit}"
        if value is not None and value > figure.limit:
            shown = f"**{shown}** (above)"
        lines.append(f"| {figure.name} | {shown} | {figure.limit:g} {figure.unit} |")
    return "\n".join(lines)


def machine() -> str:
    """Where and with what this is measured, in one line."""
    versions = []
    for package in ("numpy", "numba", "torch", "jax"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return (
        f"{_processor()}, {cores()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {', '.join(versions)}, {datetime.date.today()}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def picture(rows: list[Row], file: Path) -> bool:
    """Draw the ratios as bars on a logarithmic axis; False without ratios or without matplotlib."""
    known = [r for r in reversed(rows) if r.ratio is not None]
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
        from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
    except ImportError:
        return False
    if not known:
        return False
    ratios = [r.ratio or 0.0 for r in known]
    minima = [r.work.minimum for r in known]
    places = range(len(known))
    canvas = Canvas(figsize=(11, 0.42 * len(known) + 1.4), dpi=110, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    colours = ["#2a7f62" if a >= b else "#c0504d" for a, b in zip(ratios, minima, strict=True)]
    low, high = min(0.5, *ratios) * 0.8, max(*ratios, *minima) * 2
    # from 1 outwards: to the right faster than PyTorch, to the left slower
    axes.barh(places, [a - 1 for a in ratios], left=1, height=0.62, color=colours)
    axes.scatter(minima, places, marker="|", s=190, linewidths=2.2, color="black", zorder=3, label="at least")
    for place, ratio, minimum in zip(places, ratios, minima, strict=True):
        # beside the bar and beside the mark, whichever ends further right
        axes.annotate(f"{ratio:.2f}", (max(ratio, minimum, 1), place), (6, 0), textcoords="offset points", va="center")
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(
        FixedLocator([t for t in (0.1, 0.2, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256) if low <= t <= high])
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_yticks(list(places), [r.work.name for r in known])
    axes.set_xlabel("PyTorch's time / tapegrad's (right of 1: tapegrad is faster)")
    axes.legend(loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    canvas.savefig(file)
    return True


def fill_readme(text: str, readme: Path = README) -> None:
    """Put a text between the README's two markers."""
    whole = readme.read_text(encoding="utf-8")
    before, found, rest = whole.partition(START)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{readme} has no markers {START} and {END}")
    readme.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rounds only: to see that everything runs")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md", help="the Markdown file to write")
    parser.add_argument("--readme", type=Path, default=README, help="the README to fill between its markers")
    options = parser.parse_args()

    peer = torch_or_none()
    rows = []
    for work in WORKLOADS:
        rows.append(row := measure(work, peer, options.quick))
        ratio = "" if row.ratio is None else f", ratio {row.ratio:.2f}"
        print(f"{work.name}: {_seconds(row.ours)}{ratio}", flush=True)
    races = []
    for contest in RACES:
        races.append((contest, times := race(contest, options.quick)))
        print(f"{contest.name}: {', '.join(f'{k} {_seconds(t)}' for k, (t, _) in times.items())}", flush=True)
    figures = []
    for figure in FIGURES:
        figures.append((figure, value := figure.measure(options.quick)))
        print(f"{figure.name}: {'not known' if value is None else f'{value:.3g} {figure.unit}'}", flush=True)

    table = ratio_table(rows)
    parts = ["# Benchmarks", machine() + "."]
    if options.quick:
        parts.append("Measured with `--quick`: a few rounds only, not to be relied on.")
    parts += [
        "PyTorch's time / tapegrad's: both in one process on all cores, in turns, medians.",
        table,
    ]
    drawn = options.output.with_name("ratios.png")
    if picture(rows, drawn):
        parts.append(f"![The ratios as bars]({drawn.name})")
    note = (
        "Another library's time / tapegrad's, as above, after three seconds of calls: by then tapegrad's programs run with loops compiled for "
        "them, and what others compile as they go is compiled."
    )
    parts += ["## Recorded programs", note, race_table(races)]
    parts += ["## The engine alone", figure_table(figures)]
    text = "\n\n".join(parts) + "\n"
    options.output.write_text(text, encoding="utf-8")
    fill_readme(f"{table}\n\n{machine()}. More in [benchmarks/RESULTS.md](benchmarks/RESULTS.md).", options.readme)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
