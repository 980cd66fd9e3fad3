"""The one tape of a process as Python sees it: its state, its entry points, and what to do when compiled code asks for help.

All threads share the tape; the interpreter lock, which entry points hold, keeps its rows apart. Nothing is compiled or loaded
before the first tensor is made.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from tapegrad.engine import adjoints, kernels, layout, memory, record, replay, structs, tape

_WORD, _REAL, _FLAG = types.int64, types.float64, types.boolean

# name: implementation, result, arguments
_ENTRIES: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
    "start": (tape.start, types.void, (_WORD,) * 4),
    "release": (tape.release, _WORD, (_WORD,) * 2),
    "look": (tape.look, _WORD, (_WORD,) * 3),
    "retain": (tape.retain, types.void, (_WORD,) * 2),
    "set_flag": (tape.set_flag, types.void, (_WORD,) * 4),
    "set_mark": (tape.set_mark, types.void, (_WORD,) * 3),
    "set_grad": (tape.set_grad, types.void, (_WORD,) * 3),
    "cut": (tape.cut, types.void, (_WORD,) * 2),
    "new_attributes": (tape.new_attributes, _WORD, (_WORD,) * 2),
    "free_block": (tape.free_block, types.void, (_WORD,) * 2),
    "drop_orphans": (memory.drop_orphans, types.void, (_WORD,)),
    "trim_cache": (memory.trim_cache, types.void, (_WORD,)),
    "contiguous_of": (layout.contiguous_of, _WORD, (_WORD,) * 2),
    "broadcast": (layout.broadcast, _WORD, (_WORD,) * 3),
    "record": (record.record, _WORD, (_WORD,) * 5),
    "record_scalar": (record.record_scalar, _WORD, (_WORD, _WORD, _WORD, _REAL)),
    "record_view": (record.record_view, _WORD, (_WORD,) * 7),
    "record_kernel": (record.record_kernel, _WORD, (_WORD,) * 8),
    "record_on": (record.record_on, _WORD, (_WORD,) * 6),
    "constant": (record.constant, _WORD, (_WORD,) * 3),
    "new_leaf": (record.new_leaf, _WORD, (_WORD,) * 3),
    "adopt_leaf": (record.adopt_leaf, _WORD, (_WORD,) * 7),
    "share_leaf": (record.share_leaf, _WORD, (_WORD,) * 3),
    "take_memory": (record.take_memory, types.void, (_WORD,) * 3),
    "mark_written": (record.mark_written, types.void, (_WORD,) * 4),
    "set_mode": (record.set_mode, _WORD, (_WORD,) * 2),
    "mode_of_thread": (record.mode_of_thread, _WORD, (_WORD,)),
    "seed": (replay.seed, _FLAG, (_WORD,) * 3),
    "sweep": (replay.sweep, _WORD, (_WORD,) * 2),
    "mark_paths": (replay.mark_paths, types.void, (_WORD,) * 3),
    "clear_marks": (replay.clear_marks, types.void, (_WORD,) * 3),
    "finish_row": (replay.finish_row, types.void, (_WORD,) * 2),
    "wanted_inputs": (replay.wanted_inputs, _WORD, (_WORD,) * 2),
    "accumulate_adjoint": (replay.accumulate_adjoint, _FLAG, (_WORD,) * 3),
    "abandon": (replay.abandon, types.void, (_WORD,) * 2),
    "settle": (replay.settle, _WORD, (_WORD,)),
    "adjoint_copy": (replay.adjoint_copy, _WORD, (_WORD,) * 2),
    "adjoint_buffer": (replay.adjoint_buffer, _WORD, (_WORD,) * 2),
    "intern_layout": (layout.intern_from, _WORD, (_WORD,) * 3),
}


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class Runtime:
    """The tape's state block, and its entry points as attributes that are loaded when first used."""

    def __init__(self) -> None:
        self._block = np.zeros(structs.STATE.itemsize // 8 + 8, np.int64)
        base = _address(self._block)
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
        self._started = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        entry = _ENTRIES.get(name)
        if entry is None:
            raise AttributeError(name)
        if not self._started:
            self._started = True
            self._start()
        implementation, result, arguments = entry
        function = kernels.build_entry(implementation, result(*arguments))
        setattr(self, name, function)
        return function

    def _start(self) -> None:
        state = self.state
        state.ops, state.forward, state.reverse = (
            _address(self.ops),
            _address(self.forward),
            _address(self.reverse),
        )
        state.cache_limit = 512 << 20
        state.threads = numba.get_num_threads()
        self.start(self.S, 1 << 12, 1 << 12, 64)
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
                raise RuntimeError(
                    f"tensors have at most {structs.MAX_DIMS} dimensions, but got shape {list(shape)}"
                )
            self._scratch[:n] = shape
            self._scratch[structs.MAX_DIMS : structs.MAX_DIMS + n] = strides
            k = self._layouts[shape, strides] = self.intern_layout(self.S, n, _address(self._scratch))
        return k

    def attributes(self, *words: int) -> int:
        """Address of a new attribute block: ``[size, extra inputs, …]`` from its second word on."""
        block = self.new_attributes(self.S, len(words) + 1)
        if block == 0:
            raise MemoryError("no memory for the attributes of an operation")
        for k, word in enumerate(words, 1):
            ctypes.c_int64.from_address(block + 8 * k).value = word
        return block

    # looking at the tables

    def buffer(self, k: int) -> Any:
        """A view of one row of the buffer table; valid until the table grows."""
        return self._look(self.state.buffers + k * structs.BUFFER_SIZE, structs.BUFFER)

    def row(self, index: int) -> Any:
        """A view of one row of the tape; valid until the table grows."""
        return self._look(self.state.rows + index * structs.ROW_SIZE, structs.ROW)

    def storage(self, k: int) -> Any:
        """A view of one row of the storage table; valid until the table grows."""
        return self._look(self.state.storages + k * structs.STORAGE_SIZE, structs.STORAGE)

    def layout_row(self, k: int) -> Any:
        """A view of one row of the layout table; valid until the table grows."""
        return self._look(self.state.layouts + k * structs.LAYOUT_SIZE, structs.LAYOUT)

    @staticmethod
    def _look(address: int, dtype: np.dtype) -> Any:
        memory = (ctypes.c_char * dtype.itemsize).from_address(int(address))
        return np.frombuffer(memory, dtype)[0]


rt = Runtime()
