"""What was recorded, run with the clock read before and after each part, for who profiles.

The clock is the operating system's function, called by its address: compiled code knows its own time to some 10 nanoseconds, where
Python would take hundreds to call it.
"""

import ctypes
import sys
import time

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapegrad.engine.programs import FINISHED, begin_run, program_at, run_steps
from tapegrad.engine.replay import sweep
from tapegrad.engine.structs import internal_words

# the function that reads a clock, which one (-1 for a function that knows one only), and what the two words it writes count, in nanoseconds
if sys.platform == "win32":
    _read, WHICH = ctypes.windll.kernel32.QueryPerformanceCounter, -1
    _frequency = ctypes.c_int64()
    ctypes.windll.kernel32.QueryPerformanceFrequency(ctypes.byref(_frequency))
    _UNITS = np.array([10**9 // _frequency.value, 0])
else:
    _read, WHICH = ctypes.CDLL(None).clock_gettime, getattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC)
    _UNITS = np.array([10**9, 1])
CLOCK: int = ctypes.cast(_read, ctypes.c_void_p).value

# words of the two readings around a part
TIME_WORDS = 4


@intrinsic
def _call_clock(typing_context, address, which, place):
    """Have the C function at `address` write the time to `place`."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        function = ir.FunctionType(ir.IntType(32), [word] * 2).as_pointer()
        builder.call(builder.inttoptr(args[0], function), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


@internal_words
def read_clock(clock, which, place):
    """Write the time of a clock to two words."""
    _call_clock(clock, place if which < 0 else which, place)


@internal_words
def time_rows(S, start, stop, clock, which, times):
    """`sweep`, with the time before and after written to TIME_WORDS words."""
    read_clock(clock, which, times)
    answer = sweep(S, start, stop)
    read_clock(clock, which, times + 16)
    return answer


@internal_words
def time_program(S, program, addresses, start, idle, clock, which, times):
    """`run_program`, with the time before and after each step.

    Args:
        S: as there, like the next three.
        program: the program.
        addresses: what it is given.
        start: the first step to run.
        idle: 1 to run no step, so that only the clock is read.
        clock: address of the function that reads a clock.
        which: the clock to read.
        times: address of TIME_WORDS words for each step of the program.
    """
    p = program_at(program)
    count = p.count
    begin_run(S, program, addresses)
    answer = FINISHED
    for k in range(start, count):
        p.count = k + 1 - idle
        place = times + k * TIME_WORDS * 8
        read_clock(clock, which, place)
        answer = run_steps(p.state, program, k)
        read_clock(clock, which, place + 16)
        if answer != FINISHED:
            break
    p.count = count
    return answer


def now() -> int:
    """The time of the clock, in nanoseconds."""
    words = np.zeros(2, np.int64)
    place = ctypes.c_void_p(words.ctypes.data)
    _read(place) if WHICH < 0 else _read(WHICH, place)
    return int(nanoseconds(words))


def nanoseconds(words: np.ndarray) -> np.ndarray:
    """Readings of the clock, of two words each along the last axis, in nanoseconds."""
    return words @ _UNITS
