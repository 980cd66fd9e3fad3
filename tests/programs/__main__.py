"""Run random programs with PyTorch and with tapegrad, or (`--compiled`) as functions with and without `compile`, and print those
over which they part, those of the tape shrunk."""

from __future__ import annotations

import argparse
import sys

import tapegrad

from .compare import disagreement
from .functions import function_of
from .generate import generate
from .program import listing
from .recorded import Refused, parted
from .shrink import shrunk


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.programs", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="programs to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one (default: %(default)s)")
    parser.add_argument("--most", type=int, default=1, help="stop after this many failures (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="print every program before it is run")
    parser.add_argument(
        "--compiled", action="store_true", help="compare compiled functions with the functions themselves"
    )
    options = parser.parse_args()
    return _compiled(options) if options.compiled else _on_the_tape(options)


def _compiled(options: argparse.Namespace) -> int:
    seen: dict[str, int] = {}
    refused = 0
    for seed in range(options.seed, options.seed + options.count):
        if options.show:
            drawn = function_of(seed)
            print(f"# seed {seed}\n{drawn.source if drawn else ''}\n", flush=True)
        try:
            found = parted(seed)
        except Refused:
            refused += 1
            continue
        if found is None:
            continue
        seen[found.kind] = seen.get(found.kind, 0) + 1
        if seen[found.kind] == 1:
            drawn = function_of(seed)
            print(f"# seed {seed}: {found.text}\n\n{drawn.source if drawn else ''}\n", flush=True)
        if len(seen) >= options.most:
            break
    for kind, times in seen.items():
        print(f"{times:6}  {kind}")
    print(f"{options.count} functions from seed {options.seed}: {refused} refused, {sum(seen.values())} part")
    return bool(seen)


def _on_the_tape(options: argparse.Namespace) -> int:
    seen: dict[str, int] = {}
    for seed in range(options.seed, options.seed + options.count):
        program = generate(seed)
        if options.show:
            print(f"# seed {seed}\n{listing(program)}\n", flush=True)
        parted = disagreement(program, tapegrad)
        if parted is None:
            continue
        seen[parted.kind] = seen.get(parted.kind, 0) + 1
        if seen[parted.kind] > 1:
            continue
        short = shrunk(program, parted.kind, tapegrad)
        again = disagreement(short, tapegrad) or parted
        print(f"# seed {seed}: {again.kind}\n{listing(short)}\n# {again.text}\n".replace("\n# ", "\n\n"), flush=True)
        if len(seen) >= options.most:
            break
    for kind, times in seen.items():
        print(f"{times:6}  {kind}")
    print(f"{options.count} programs from seed {options.seed}: {sum(seen.values())} part")
    return bool(seen)


sys.exit(main())
