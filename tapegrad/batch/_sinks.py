"""Where results go: ``.npy`` files and Zarr stores that take them piece by piece, and files for one gradient.

While a job runs, its outputs have ``.part`` at the end of their names; what is there of a job that was ended is kept under that name.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tapegrad.batch._extras import needed
from tapegrad.batch._journal import folder_to_disk, to_disk


class Column(NamedTuple):
    """One leaf of what is written for each sample.

    Attributes:
        name: what an array of it is called.
        shape: of one sample.
        dtype: of its elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of elements of one sample."""
        return int(np.prod(self.shape, dtype=np.int64))


class Sink(ABC):
    """An output with something for each sample.

    Args:
        path: its final name.
        columns: what is written for each sample.
        samples: how many there are.
        block: samples that are always written together, from a multiple of their number on.
    """

    def __init__(self, path: str, columns: Sequence[Column], samples: int, block: int) -> None:
        self.path, self.columns, self.samples, self.block = path, list(columns), samples, block
        self.part = path + ".part"

    @property
    def bytes(self) -> int:
        """How much it will hold at most, headers aside."""
        return self.samples * sum(c.size * c.dtype.itemsize for c in self.columns)

    @abstractmethod
    def create(self) -> None:
        """Make an output without samples."""

    @abstractmethod
    def write(self, start: int, lines: np.ndarray) -> None:
        """Write some samples from one on; from any process, in any order.

        Args:
            start: the first of them.
            lines: of each, the columns flattened and joined.
        """

    @abstractmethod
    def sync(self, start: int, stop: int) -> None:
        """Have the samples from one to another written to disk."""

    @abstractmethod
    def check(self) -> None:
        """Refuse to go on with something else than `create` made."""

    def finish(self) -> None:
        """Give the output its final name."""
        if os.path.exists(self.part):  # else it was given before a crash
            if os.path.isdir(self.path):  # a folder with files is not replaced by a rename
                remove(self.path)
            os.replace(self.part, self.path)
            folder_to_disk(os.path.dirname(self.path))


def remove(path: str) -> None:
    """Delete a file, or a folder with all that is in it; nothing may be there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


class NpySink(Sink):
    """A ``.npy`` file, a line for each sample: the columns flattened and joined; a single number is not made a line of one."""

    def __init__(self, path: str, columns: Sequence[Column], samples: int, block: int, joined: bool) -> None:
        super().__init__(path, columns, samples, block)
        self.dtype = np.result_type(*(c.dtype for c in self.columns))
        self.size = sum(c.size for c in self.columns)
        self.shape = (samples, self.size) if joined else (samples,)
        self._offset = 0  # of the first sample, once the file is there

    @property
    def bytes(self) -> int:
        """How much it will hold, the header aside."""
        return self.samples * self.size * self.dtype.itemsize

    def _header(self) -> int:
        with open(self.part, "rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if (shape, dtype) != (self.shape, self.dtype):
                raise ValueError(
                    f"batch: {self.part} has shape {shape} and dtype {dtype} where this job writes {self.shape} and {self.dtype}; start "
                    "afresh with overwrite=True"
                )
            return file.tell()

    def create(self) -> None:
        """Make a file of the final size, of zeros that take no space yet."""
        with open(self.part, "wb") as file:
            described = np.lib.format.dtype_to_descr(self.dtype)
            np.lib.format.write_array_header_1_0(
                file, {"descr": described, "fortran_order": False, "shape": self.shape}
            )
            self._offset = file.tell()
            file.truncate(self._offset + self.bytes)
            to_disk(file)
        folder_to_disk(os.path.dirname(self.part))

    def write(self, start: int, lines: np.ndarray) -> None:
        """Write lines."""
        left = np.ascontiguousarray(lines, self.dtype).reshape(-1).view(np.uint8).data
        offset = self._offset + start * self.size * self.dtype.itemsize
        with open(self.part, "r+b", buffering=0) as file:
            file.seek(offset)
            while left:
                left = left[file.write(left) :]

    def sync(self, start: int, stop: int) -> None:
        """Have the file written to disk."""
        with open(self.part, "r+b") as file:
            to_disk(file)

    def check(self) -> None:
        """Refuse a file of another shape, dtype or length."""
        self._offset = self._header()
        length = self._offset + self.bytes
        if os.path.getsize(self.part) != length:
            raise ValueError(
                f"batch: {self.part} has {os.path.getsize(self.part):,} bytes where the job left {length:,}: it was changed since; start "
                "afresh with overwrite=True"
            )


class ZarrSink(Sink):
    """A Zarr group with one array a column, in Zarr chunks of one block."""

    def _arrays(self) -> list[Any]:
        group = needed("zarr", "batch", "a .zarr output").open_group(self.part, mode="r+")
        return [group[c.name] for c in self.columns]

    def create(self) -> None:
        """Make the arrays, all of zeros."""
        zarr = needed("zarr", "batch", "a .zarr output")
        remove(self.part)
        group = zarr.open_group(self.part, mode="w", zarr_format=3)
        for c in self.columns:
            rows = min(self.block, self.samples)
            group.create_array(
                c.name,
                shape=(self.samples, *c.shape),
                chunks=(rows, *(max(n, 1) for n in c.shape)),
                dtype=c.dtype,
                fill_value=0,
                config={"write_empty_chunks": True},
            )
        _sync_tree(self.part)
        folder_to_disk(os.path.dirname(self.part))

    def write(self, start: int, lines: np.ndarray) -> None:
        """Write whole Zarr chunks."""
        place = 0
        if lines.ndim == 1:
            lines = lines[:, None]
        for target, column in zip(self._arrays(), self.columns, strict=True):
            part = lines[:, place : place + column.size].astype(column.dtype)
            target.set_basic_selection(slice(start, start + len(lines)), part.reshape(-1, *column.shape))
            place += column.size

    def sync(self, start: int, stop: int) -> None:
        """Have the files of these samples written to disk."""
        for c in self.columns:
            folder = Path(self.part, c.name, "c")
            for number in range(start // self.block, -(-stop // self.block)):
                file = folder.joinpath(str(number), *"0" * len(c.shape))
                if file.exists():  # an array of no elements has none
                    _sync_file(file)
                    folder_to_disk(str(file.parent))
            if folder.exists():
                folder_to_disk(str(folder))
                folder_to_disk(str(folder.parent))

    def check(self) -> None:
        """Refuse a store with other arrays."""
        try:
            found = [Column(c.name, a.shape[1:], a.dtype) for c, a in zip(self.columns, self._arrays(), strict=True)]
        except (KeyError, FileNotFoundError):
            found = []
        if found != self.columns:
            raise ValueError(
                f"batch: {self.part} has other arrays than this job writes; start afresh with overwrite=True"
            )
        for left in Path(self.part).rglob("*.partial"):  # by a process that was ended while it wrote
            left.unlink()


def _sync_tree(path: str) -> None:
    for found in [Path(path), *Path(path).rglob("*")]:
        if found.is_file():
            _sync_file(found)
        else:
            folder_to_disk(str(found))


def _sync_file(path: Path) -> None:
    with open(path, "r+b") as file:
        to_disk(file)


def open_sink(path: str, columns: Sequence[Column], samples: int, block: int, joined: bool = True) -> Sink:
    """The sink that a file's name asks for.

    Args:
        path: ends with .npy or .zarr.
        columns: what is written for each sample.
        samples: how many there are.
        block: samples that are always written together.
        joined: whether a .npy file has a second axis.
    """
    if Path(path).suffix == ".zarr":
        return ZarrSink(path, columns, samples, block)
    return NpySink(path, columns, samples, block, joined)


def save_tree(path: str, columns: Sequence[Column], arrays: Sequence[np.ndarray]) -> None:
    """Write one gradient: as an array (several leaves flattened and joined), as an ``.npz`` or a Zarr group with one array a leaf.

    Args:
        path: ends with .npy, .npz or .zarr.
        columns: the leaves.
        arrays: their elements.
    """
    part = path + ".part"
    remove(part)
    if Path(path).suffix == ".zarr":
        group = needed("zarr", "batch", "a .zarr output").open_group(part, mode="w", zarr_format=3)
        for c, array in zip(columns, arrays, strict=True):
            group.create_array(c.name, data=array)
        _sync_tree(part)
    else:
        with open(part, "wb") as file:
            if Path(path).suffix == ".npz":
                np.savez(file, **{c.name: array for c, array in zip(columns, arrays, strict=True)})  # type: ignore[arg-type]
            else:
                np.save(file, arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(-1) for a in arrays]))
            to_disk(file)
    if os.path.isdir(path):
        remove(path)
    os.replace(part, path)
    folder_to_disk(os.path.dirname(path))
