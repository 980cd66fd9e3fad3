"""Running a recorded program: its rows forward, over buffers of its own, without Python and without the interpreter lock.

A program has a STATE block of its own, so the kernels of the tape run unchanged: `kernel(state of the program, row, start, stop)`.
Whatever can be known beforehand stands in its steps (see program/native.py); nothing here allocates, and nothing is shared with
other programs but the kernel tables, which only grow.
"""

import numpy as np

from tapegrad.engine.layout import begin_plan, plan
from tapegrad.engine.record import run_kernel
from tapegrad.engine.structs import (
    OPERAND_OFFSET,
    STEP_OFFSET,
    buffer_of,
    call_kernel,
    i64,
    internal_words,
    record_at,
    state_at,
    u8,
)

# how a step runs
FLAT, STRIDED, PLAIN, MERGING, GUARD, CALL, SAMPLES = range(7)

# one step: a kernel call, a guard, or something for Python to do
STEP = np.dtype(
    [
        ("kernel", "i8"),
        ("row", "i8"),
        ("items", "i8"),  # of a guard, the bytes to compare
        ("work", "i8"),
        ("how", "i4"),
        ("moves", "i4"),  # FLAT: bit k, operand k runs along
        ("target", "i4"),  # STRIDED: the layout looped over; GUARD: the buffer; SAMPLES: how many
        ("spare", "i4"),
        ("layout0", "i4"),  # STRIDED: of the result, 0 where absent, as of the three operands
        ("layout1", "i4"),
        ("layout2", "i4"),
        ("layout3", "i4"),
        ("expected", "i8"),  # GUARD: address of the bytes that were there; SAMPLES: of what moves (see `_run_samples`)
    ],
    align=True,
)

# what a run of a program reaches
PROGRAM = np.dtype(
    [
        ("state", "i8"),
        ("steps", "i8"),
        ("count", "i8"),
        ("binds", "i8"),  # triples: number of an address given, buffer, bytes from that address on
        ("bind_count", "i8"),
        ("stopped", "i8"),  # the step that stopped the last run
    ],
    align=True,
)

STEP_SIZE = STEP.itemsize
step_at = record_at(STEP)
program_at = record_at(PROGRAM)

# answers of a run; a kernel that failed answers with its own negative number
FINISHED, OTHER_PATH, FOR_PYTHON = 0, 1, 2


@internal_words
def _differs(data, expected, nbytes):
    a = u8(data)
    b = u8(expected)
    for k in range(nbytes):
        if a[k] != b[k]:
            return True
    return False


@internal_words
def _run_samples(P, kernel, row, items, work, size, table):
    """Run a kernel once a sample.

    The table has whether partial results are merged, a number of buffers, and for each its id and the bytes from one sample to the next.
    """
    words = i64(table)
    for sample in range(size):
        run_kernel(P, kernel, row, items, work)
        if words[0]:
            call_kernel(kernel, P, row, -1, items)
        direction = 1 if sample < size - 1 else 1 - size
        for j in range(words[1]):
            buffer_of(P, words[2 + 2 * j]).data += direction * words[3 + 2 * j]


@internal_words
def run_steps(P, program, start):
    """Run the steps of a program whose buffers are bound, from step `start` on; as `run_program` answers."""
    s = state_at(P)
    p = program_at(program)
    along = i64(P + STEP_OFFSET)
    operand = i64(P + OPERAND_OFFSET)
    for k in range(start, p.count):
        step = step_at(p.steps + k * STEP_SIZE)
        how = step.how
        items = step.items
        if how == FLAT:
            s.flat = 1
            moves = step.moves
            for q in range(4):
                along[q] = moves >> q & 1
        elif how == STRIDED:
            begin_plan(P)
            operand[0] = step.layout0
            operand[1] = step.layout1
            operand[2] = step.layout2
            operand[3] = step.layout3
            items = plan(P, step.target)
        elif how == GUARD:
            if _differs(buffer_of(P, step.target).data, step.expected, items):
                p.stopped = k
                return OTHER_PATH
            continue
        elif how == CALL:
            p.stopped = k
            return FOR_PYTHON
        if how == SAMPLES:
            _run_samples(P, step.kernel, step.row, items, step.work, step.target, step.expected)
        else:
            run_kernel(P, step.kernel, step.row, items, step.work)
        if how == MERGING:
            call_kernel(step.kernel, P, step.row, -1, items)
        if s.failure:
            failure = s.failure
            s.failure = 0
            p.stopped = k
            return failure
    return FINISHED


@internal_words
def begin_run(S, program, addresses):
    """Bind the buffers of a program, and have it use as many threads as the tape."""
    p = program_at(program)
    P = p.state
    s = state_at(P)
    s.threads = state_at(S).threads
    s.parallel = state_at(S).parallel
    if s.parallel == 0:
        s.threads = 1
    given = i64(addresses)
    binds = i64(p.binds)
    for k in range(p.bind_count):
        buffer_of(P, binds[3 * k + 1]).data = given[binds[3 * k]] + binds[3 * k + 2]


@internal_words
def run_program(S, program, addresses, start):
    """Run a program.

    Args:
        S: the state of the tape, which knows how many threads to use.
        program: address of a PROGRAM record that nobody else runs meanwhile.
        addresses: address of the addresses of what it is given and where its results go.
        start: the first step to run.

    Returns:
        FINISHED; OTHER_PATH if a guard met another value than was recorded; FOR_PYTHON at a step that Python does; or what a kernel that failed wants answered.
    """
    begin_run(S, program, addresses)
    return run_steps(program_at(program).state, program, start)


@internal_words
def run_blocks(S, program, addresses, moves, words, count):
    """Run a program several times, on addresses that move on after each run.

    Args:
        S: the state of the tape.
        program: address of a PROGRAM record that nobody else runs meanwhile.
        addresses: address of the addresses of the first run; afterwards, of those that follow the last run that got to its end.
        moves: address of the bytes by which each address moves.
        words: number of addresses.
        count: number of runs.

    Returns:
        As `run_program` of the first run that does not get to its end, else FINISHED.
    """
    given = i64(addresses)
    step = i64(moves)
    for _ in range(count):
        answer = run_program(S, program, addresses, 0)
        if answer != FINISHED:
            return answer
        for k in range(words):
            given[k] += step[k]
    return FINISHED
