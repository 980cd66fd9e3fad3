"""Running a program from compiled code: any thread takes a free replica, runs it, and gives it back."""

import numpy as np

from tapegrad.engine.atomics import count_up, give_word, take_word
from tapegrad.engine.programs import FINISHED, run_program
from tapegrad.engine.structs import i64, internal_words, record_at, u8

# replicas of one or more programs, which are the paths of one function
POOL = np.dtype(
    [
        ("state", "i8"),  # says how many threads a run may use
        ("slots", "i8"),  # how many runs there may be at a time
        ("programs", "i8"),
        ("arguments", "i8"),
        ("outputs", "i8"),
        ("sizes", "i8"),  # address of the outputs' bytes
        ("busy", "i8"),  # address of a cache line a slot, whose first word is 1 while somebody runs
        (
            "entries",
            "i8",
        ),  # of each slot's programs: address of the PROGRAM, of its addresses, number of its first output
        ("missed", "i8"),  # address of the number of runs that no path was right for
    ],
    align=True,
)
ENTRY_WORDS, LINE = 3, 64

pool_at = record_at(POOL)


@internal_words
def _copy_bytes(source, target, nbytes):
    a = u8(source)
    b = u8(target)
    for k in range(nbytes):
        b[k] = a[k]


@internal_words
def run_pooled(pool, given):
    """Run the path that fits some arguments.

    Args:
        pool: address of a POOL record.
        given: address of the addresses of the arguments, then of where the outputs go.

    Returns:
        Whether there was such a path; the outputs are not written to if there was not.
    """
    p = pool_at(pool)
    g = i64(given)
    slot = 0
    while not take_word(p.busy + LINE * slot):
        slot += 1
        if slot == p.slots:
            slot = 0
    found = False
    for q in range(p.programs):
        entry = i64(p.entries + 8 * ENTRY_WORDS * (slot * p.programs + q))
        addresses = i64(entry[1])
        for k in range(p.arguments):
            addresses[k] = g[k]
        if run_program(p.state, entry[0], entry[1], 0) == FINISHED:
            for k in range(p.outputs):
                _copy_bytes(addresses[entry[2] + k], g[p.arguments + k], i64(p.sizes)[k])
            found = True
            break
    give_word(p.busy + LINE * slot)
    if not found:
        count_up(p.missed)
    return found
