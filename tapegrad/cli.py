"""The command line: ``tapegrad demo``, ``tapegrad batch``, ``tapegrad info``, ``tapegrad warmup``."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable
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
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option(
    "--data",
    "data",
    required=True,
    multiple=True,
    metavar="PATH",
    help="A .npy file, .zarr store or Parquet dataset; several make each sample a tuple.",
)
@click.option("--params", metavar="PATH", help="Parameters: a .npz, .npy or .json file.")
@click.option("--wrt", metavar="NAMES", help="What to differentiate with respect to: params, data, or params,data.")
@click.option("--out", metavar="PATH", help="Gradients: a .npy file or .zarr store; with --reduce also .npz.")
@click.option("--values", metavar="PATH", help="Values: a .npy file or .zarr store.")
@click.option("--reduce", type=click.Choice(["sum", "mean"]), help="Write one gradient, the sum or mean of all.")
@click.option("--chunk-size", type=int, metavar="N", help="Samples to commit at once; does not change results.")
@click.option("--workers", type=int, metavar="N", help="Processes, by default one a core; does not change results.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished job.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "nan"]),
    default="raise",
    show_default=True,
    help="End at a sample that fails, or write NaN for it and list it.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Compute on the workers of this Dask scheduler.")
def batch(function: str, data: tuple[str, ...], scheduler: str | None, **options: Any) -> None:
    """Compute the value and gradient of FUNCTION for every sample of a data set.

    FUNCTION(params, sample), or FUNCTION(sample) without --params, returns a scalar tensor; MODULE is looked for in the current
    folder first. What is committed survives whatever ends the job: --resume goes on from there.

    Exits with 1 if the job fails, with 2 for wrong usage, with 130 if it is interrupted.
    """
    from tapegrad.batch import run

    f = _imported(function)
    if options["chunk_size"] is None:
        options["chunk_size"] = "auto"
    if options["wrt"] is not None:
        options["wrt"] = tuple(options["wrt"].split(","))
    try:
        with contextlib.ExitStack() as ending:
            client = None
            if scheduler is not None:
                from tapegrad.batch._dask import connect

                client = ending.enter_context(connect(scheduler))
            report = run(f, data[0] if len(data) == 1 else data, client=client, **options)
    except KeyboardInterrupt as stop:
        click.echo(_as_options(str(stop) or "interrupted"), err=True)
        sys.exit(130)
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError) as error:
        raise click.ClickException(_told(error)) from error
    click.echo(str(report))


def _imported(name: str) -> Callable:
    """The function that ``MODULE:FUNCTION`` names."""
    import importlib

    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise click.BadParameter(f"{name!r} is not MODULE:FUNCTION, such as model:loss", param_hint="MODULE:FUNCTION")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise click.ClickException(
            f"cannot import module {module_name!r}: {type(error).__name__}: {error}; run this in the folder it is in, or install it"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            known = ", ".join(sorted(n for n, v in vars(found).items() if callable(v) and not n.startswith("_"))[:10])
            raise click.ClickException(f"module {module_name!r} has no {path!r}; it has {known or 'no functions'}")
        found = getattr(found, part)
    return found


def _told(error: BaseException) -> str:
    """An error of a job, with what is kept of it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("batch: ")]
    return "\n".join(_as_options(line) for line in (text, *notes))


def _as_options(text: str) -> str:
    for name, option in (
        ("resume=True", "--resume"),
        ("overwrite=True", "--overwrite"),
        ("on_error='nan'", "--on-error nan"),
        ("on_error='raise'", "--on-error raise"),
        ("chunk_size", "--chunk-size"),
        ("workers=1", "--workers 1"),
    ):
        text = text.replace(name, option)
    return text.removeprefix("batch: ")


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
