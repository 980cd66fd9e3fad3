"""Everything there is to compile, for images and CI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tapegrad import dtypes
from tapegrad.engine import native, structs
from tapegrad.engine.runtime import rt
from tapegrad.ops._kernel import KernelOp
from tapegrad.ops._pointwise import Pointwise
from tapegrad.ops._rule import built_in_ops
from tapegrad.ops.operators import install_native_methods


def warmup_jobs(names: Sequence[str]) -> list[tuple[str, Callable[[], None]]]:
    """What to call to have every kernel of some dtypes compiled and cached, with a name for each.

    Args:
        names: of floating dtypes.
    """
    jobs: list[tuple[str, Callable[[], None]]] = [
        (f"tape: {group}", partial(getattr, rt, entry)) for group, entry in rt.groups().items()
    ]
    jobs.append(("parallel driver", rt.load_parallel_driver))
    if native.supported():
        jobs.append(("methods", install_native_methods))
    for name in names:
        dtype: dtypes.dtype = getattr(dtypes, name)
        jobs.append((f"adjoints {name}", partial(rt.load_moves, dtype.code)))
        for op in built_in_ops():
            forward = (isinstance(op, Pointwise) and dtype in op.dtypes) or (
                isinstance(op, KernelOp) and op.kernel is not None
            )
            if not forward:
                continue
            jobs.append((f"{op.name} {name}", partial(op.load_forward, dtype.code)))
            native_reverse = op.kind not in (structs.PYTHON, structs.VIEW) and op.derivative is not None
            if native_reverse and (not isinstance(op, Pointwise) or op.out in (None, dtypes.float32, dtypes.float64)):
                jobs.append((f"{op.name} reverse {name}", partial(op.load_reverse, dtype.code)))
    return jobs
