"""The one tape of a process as Python sees it: its state, its entry points, and what to do when compiled code asks for help.

All threads share the tape; the interpreter lock, which entry points hold, keeps its rows apart. Nothing is compiled or loaded
before the first tensor is made.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from tapegrad.engine import (
    adjoints,
    ahead,
    kernels,
    lanes,
    layout,
    leaves,
    memory,
    modes,
    paths,
    planned,
    programs,
    record,
    remembered,
    replay,
    selective,
    settle,
    structs,
    tape,
    timed,
)

# Entry points are compiled and loaded in groups, the usual ones first: a group costs little more than one function does, about 10 ms from the cache.
# Within a group a number selects the function; each takes the state's address and then integers (`record_scalar` ends with a float).
GROUPS: dict[str, tuple[Any, ...]] = {
    "control": (
        tape.start,
        tape.release,
        tape.look,
        tape.retain,
        tape.retain_place,
        tape.release_place,
        tape.set_flag,
        tape.set_grad,
        tape.new_attributes,
        tape.copy_attributes,
        tape.free_block,
        memory.drop_orphans,
        layout.contiguous_of,
        layout.intern_from,
        leaves.new_constant,
        leaves.new_leaf,
        leaves.share_leaf,
        modes.set_mode,
        modes.mode_of_thread,
    ),
    "sharing": (
        tape.mark_older,
        tape.attach,
        tape.retain_with,
        tape.move_grad,
        tape.cut,
        leaves.adopt_leaf,
        leaves.take_memory,
        leaves.mark_written,
    ),
    "recording": (
        record.record,
        record.record_scalar,
        record.record_kernel,
        planned.record_planned,
        planned.keep_plan,
    ),
    "viewing": (record.record_view, record.record_on),
    "lanes": (lanes.run_lanes,),
    "remembered": (remembered.describe_graph, remembered.run_steps, remembered.free_rows),
    "programs": (programs.run_program, programs.run_blocks),
    "reverse": (replay.sweep_from, replay.sweep, settle.settle),
    "selecting": (
        selective.sweep_wanted,
        selective.end_wanted,
        paths.find_paths,
        paths.reaches_other_leaf,
        replay.finish_row,
        replay.free_saved,
        paths.wanted_inputs,
        paths.describe_row,
        paths.keep_rows,
        paths.leave_sweep,
        replay.accumulate_adjoint,
        settle.adjoint_buffer,
        settle.adjoint_copy,
        settle.adjoint_drop,
        settle.abandon,
    ),
    "stepping": (replay.begin_from, replay.next_row, selective.begin_wanted, timed.time_rows),
    "timing": (timed.time_program,),
}
# groups that touch nothing threads share, so that they release the interpreter lock
_UNLOCKED = ("programs",)
_GROUP_OF = {function.py_func.__name__: group for group, functions in GROUPS.items() for function in functions}


def address_of_array(array: np.ndarray) -> int:
    """Where its elements are."""
    return array.__array_interface__["data"][0]


class Runtime:
    """The tape's state block, and its entry points as attributes that are loaded when first used."""

    def __init__(self) -> None:
        self._block = np.zeros(structs.STATE.itemsize // 8 + 8, np.int64)
        base = address_of_array(self._block)
        self.S = (base + 63) & -64
        start = (self.S - base) // 8
        words = self._block[start : start + structs.STATE.itemsize // 8]
        self.state = words.view(structs.STATE).view(np.recarray)[0]
        self.ops = np.zeros(structs.MAX_OPS, structs.OP)
        self.forward = np.zeros((structs.MAX_OPS, structs.DTYPE_SLOTS), np.int64)
        self.reverse = np.zeros((structs.MAX_OPS, structs.DTYPE_SLOTS), np.int64)
        self._scratch = np.zeros(2 * structs.MAX_DIMS, np.int64)
        self._layouts: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        self._contiguous: dict[tuple[int, ...], int] = {}
        self._lock = threading.RLock()
        self._ahead = ahead.Ahead("recording", "reverse", "selecting")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        group = _GROUP_OF.get(name)
        if group is None:
            raise AttributeError(name)
        with self._lock:
            if name not in self.__dict__:
                self._ahead.wait(group)
                compiling = self._ahead.start if group == "control" else None
                functions = kernels.build_group(group, GROUPS[group], compiling, group in _UNLOCKED)
                if group == "control":
                    self._start(functions["start"])
                else:
                    self.look  # noqa: B018 - loads the control group, which starts the tape
                self.__dict__.update(functions)
        return self.__dict__[name]

    def _start(self, start: Callable[..., Any]) -> None:
        state = self.state
        state.ops, state.forward, state.reverse = (
            address_of_array(self.ops),
            address_of_array(self.forward),
            address_of_array(self.reverse),
        )
        state.cache_limit = 512 << 20
        state.threads = numba.get_num_threads()
        start(self.S, 1 << 12, 1 << 12, 64)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        # GNU OpenMP cannot start threads again in a forked child; results do not depend on their number
        self.state.threads = 1

    def load_parallel_driver(self) -> None:
        """Load what shares a large kernel among cores."""
        self.state.parallel = kernels.build_parallel_driver()

    def load_moves(self, dtype: int) -> None:
        """Load the kernels that carry adjoints of a dtype code between shapes."""
        for row, function in adjoints.MOVES.items():
            if not self.forward[row, dtype]:
                self.forward[row, dtype] = kernels.build_typed(function, dtype)

    @staticmethod
    def groups() -> dict[str, str]:
        """One entry point of each group of them, by the group's name."""
        return {group: entry for entry, group in _GROUP_OF.items()}

    # layouts

    def layout(self, shape: tuple[int, ...]) -> int:
        """Id of the contiguous layout of a shape."""
        k = self._contiguous.get(shape)
        if k is None:
            strides, step = [], 1
            for extent in reversed(shape):
                strides.append(step)
                step *= extent
            k = self._contiguous[shape] = self.strided_layout(shape, tuple(reversed(strides)))
        return k

    def strided_layout(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
        """Id of the layout with these extents and strides in elements."""
        k = self._layouts.get((shape, strides))
        if k is None:
            n = len(shape)
            if n > structs.MAX_DIMS:
                raise RuntimeError(f"tensors have at most {structs.MAX_DIMS} dimensions, but got shape {list(shape)}")
            with self._lock:
                self._scratch[:n] = shape
                self._scratch[structs.MAX_DIMS : structs.MAX_DIMS + n] = strides
                k = self.intern_from(self.S, n, address_of_array(self._scratch))
            if k == 0:
                raise RuntimeError(f"a tensor of shape {list(shape)} has too many elements")
            self._layouts[shape, strides] = k
        return k

    def attributes(self, *words: int) -> int:
        """Address of a new attribute block: ``[size, extra inputs, …]`` from its second word on."""
        block = self.new_attributes(self.S, len(words) + 1)
        if block == 0:
            raise MemoryError("no memory for the attributes of an operation")
        self._words(len(words)).from_address(block + 8)[:] = words
        return block

    @staticmethod
    @functools.cache
    def _words(n: int) -> Any:
        return ctypes.c_int64 * n

    # looking at the tables

    def buffer(self, k: int) -> Any:
        """A view of one row of the buffer table; valid until the table grows."""
        return self._look(self.state["buffers"] + k * structs.BUFFER_SIZE, structs.BUFFER)

    def row(self, index: int) -> Any:
        """A view of one row of the tape; valid until the table grows."""
        return self._look(self.state["rows"] + index * structs.ROW_SIZE, structs.ROW)

    def storage(self, k: int) -> Any:
        """A view of one row of the storage table; valid until the table grows."""
        return self._look(self.state["storages"] + k * structs.STORAGE_SIZE, structs.STORAGE)

    def layout_row(self, k: int) -> Any:
        """A view of one row of the layout table; valid until the table grows."""
        return self._look(self.state["layouts"] + k * structs.LAYOUT_SIZE, structs.LAYOUT)

    @staticmethod
    def _look(address: int, dtype: np.dtype) -> Any:
        memory = (ctypes.c_char * dtype.itemsize).from_address(int(address))
        return np.frombuffer(memory, dtype)[0]


rt = Runtime()
