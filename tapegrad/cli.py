"""The command line: ``tapegrad demo``, ``tapegrad info``, ``tapegrad warmup``."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import click

# Everything else is imported inside the commands, so that --help and a mistyped command answer at once.

__all__ = ["main"]

_DTYPES = ("float32", "float64")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tapegrad", prog_name="tapegrad")
def main() -> None:
    """PyTorch-like automatic differentiation on a flat tape, run by Numba-compiled kernels."""


@main.command()
def demo() -> None:
    """Differentiate one layer, train a network on real digits, tell what it took.

    Works without a network, in seconds. Exits with 1 if the trained network recognises too few digits.
    """
    from tapegrad import demo as demonstration

    trained = demonstration.run(click.echo)
    if trained.accuracy < demonstration.TARGET:
        raise click.ClickException(
            f"held-out accuracy {trained.accuracy:.1%} is below {demonstration.TARGET:.0%}: "
            "something is wrong with this installation"
        )


@main.command()
def info() -> None:
    """Show versions, cores, threading, BLAS and the kernel cache."""
    import numba
    import scipy

    from tapegrad.engine import kernels

    packages = ("tapegrad", "numpy", "numba", "llvmlite", "scipy")
    cache = kernels.cache_info()
    blas: dict[str, Any] = scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    rows = [
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        *((name, version(name)) for name in packages),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("cores", f"{_usable_cores()} usable of {os.cpu_count()}"),
        ("threads", f"{numba.get_num_threads()} (Numba layer: {_threading_layer()})"),
        ("blas", f"{blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip()),
        ("cache", cache["path"]),
        ("", f"{cache['files']:,} files, {cache['bytes'] / 2**20:,.1f} MiB"),
    ]
    for name, value in rows:
        click.echo(f"{name:<10}{value}")


@main.command()
@click.option(
    "--dtype",
    type=click.Choice([*_DTYPES, "all"]),
    default="all",
    show_default=True,
    help="Compile the kernels of this dtype.",
)
def warmup(dtype: str) -> None:
    """Compile every kernel and keep it in the cache, for images and CI."""
    import time

    from tapegrad import ops
    from tapegrad._progress import Progress
    from tapegrad.engine import kernels

    jobs = ops.warmup_jobs(list(_DTYPES) if dtype == "all" else [dtype])
    start = time.perf_counter()
    progress = Progress(jobs, "compiling", "kernel", lines=20)
    for name, compile_kernel in progress:
        progress.note = name
        compile_kernel()
    cache = kernels.cache_info()
    click.echo(
        f"{len(jobs)} kernels ready in {time.perf_counter() - start:.1f} s: "
        f"{cache['files']:,} files, {cache['bytes'] / 2**20:,.1f} MiB in {cache['path']}"
    )


def _usable_cores() -> int | None:
    """Cores this process may use, which a container or an affinity mask may hold below the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _threading_layer() -> str:
    """Numba's threading layer: the one in use, or the one asked for as long as nothing ran in parallel."""
    import numba

    try:
        return str(numba.threading_layer())
    except ValueError:
        return f"{numba.config.THREADING_LAYER}, not started"


if __name__ == "__main__":
    main()
