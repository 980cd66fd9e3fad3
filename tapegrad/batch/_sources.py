"""Where samples come from: arrays, ``.npy`` files, Zarr stores, Parquet datasets, Dask arrays, and tuples and dicts of these."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tapegrad import _tree, dtypes
from tapegrad.batch._extras import needed
from tapegrad.tensor import Tensor


class Source(ABC):
    """Samples along the first axis of something that is never loaded whole.

    Attributes:
        name: how to call it in messages.
        shape: of all samples together.
        dtype: of their elements.
        in_memory: whether the elements are in this process's memory and nowhere else.
    """

    in_memory = False

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.name, self.shape, self.dtype = name, tuple(int(n) for n in shape), np.dtype(dtype).newbyteorder("=")
        if not self.shape:
            raise ValueError(f"batch: {name} has no first axis to take samples from; its shape is ()")
        try:
            dtypes.of_numpy(self.dtype)
        except TypeError:
            raise TypeError(
                f"batch: {name} has dtype {np.dtype(dtype)}, which tensors cannot hold; convert it, for example with "
                ".astype('float64')"
            ) from None

    @property
    def sample_bytes(self) -> int:
        """Memory of one sample."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Some of the samples, in memory of their own."""

    @abstractmethod
    def identity(self) -> str:
        """Something that changes when the samples do."""


def _native(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    # contiguous, writable, of the machine's byte order
    return np.array(array, dtype, order="C")


class ArraySource(Source):
    """An array in memory."""

    in_memory = True

    def __init__(self, name: str, array: np.ndarray) -> None:
        if array.dtype == object:
            raise ValueError(
                f"batch: {name} holds Python objects, as arrays of samples of uneven shape do; all samples must have one shape: pad "
                "them, and give their lengths as another array"
            )
        super().__init__(name, array.shape, array.dtype)
        self.array = array

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some of the samples, copied."""
        return _native(self.array[start:stop], self.dtype)

    def identity(self) -> str:
        """A hash of all elements."""
        return hashed(self.array)


class NpyFile(Source):
    """A ``.npy`` file in C order, read piece by piece.

    It is read rather than mapped: a file that is cut short meanwhile is an exception then, not the end of the process.
    """

    def __init__(self, name: str, path: str | os.PathLike) -> None:
        self.path = os.path.abspath(path)
        with open(self.path, "rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = header(file)
            except ValueError as error:
                raise ValueError(f"batch: {name} ({path}) is no .npy file: {error}") from None
            self.offset = file.tell()
        self.stored = dtype
        self.fortran = fortran and len(shape) > 1
        if dtype.hasobject:
            raise TypeError(f"batch: {name} ({path}) holds Python objects; save it as an array of numbers of one shape")
        super().__init__(name, shape, dtype)
        announced, there = self.sample_bytes * self.shape[0], os.path.getsize(self.path) - self.offset
        if there < announced:
            raise ValueError(
                f"batch: {name} ({path}) is cut short: its header announces {self.shape[0]:,} samples ({announced:,} bytes), and "
                f"{there // max(self.sample_bytes, 1):,} are there ({there:,} bytes); write the file again"
            )
        self.state = _state_of(self.path)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some of the samples.

        Raises:
            RuntimeError: if the file is not what it was when the job started.
        """
        if self.state != _state_of(self.path):
            raise RuntimeError(
                f"batch: {self.name} ({self.path}) was changed while the job was running; start afresh with overwrite=True"
            )
        if self.fortran:
            return _native(np.load(self.path, mmap_mode="r")[start:stop], self.dtype)
        stop = min(stop, self.shape[0])
        count = (stop - start) * int(np.prod(self.shape[1:], dtype=np.int64))
        read = np.fromfile(self.path, self.stored, count, offset=self.offset + start * self.sample_bytes)
        return read.reshape(stop - start, *self.shape[1:]).astype(self.dtype, copy=False)

    def identity(self) -> str:
        """Size and time of the last change."""
        return self.state


def _state_of(path: str) -> str:
    found = os.stat(path)
    return f"{found.st_size} bytes, changed at {found.st_mtime_ns}"


class ZarrSource(Source):
    """An array of a Zarr store."""

    def __init__(self, name: str, array: Any) -> None:
        super().__init__(name, array.shape, array.dtype)
        self.array = array

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some of the samples."""
        return _native(self.array[start:stop], self.dtype)

    def identity(self) -> str:
        """Sizes and times of the last change of all files; for a store that is no folder, what its metadata say."""
        root = getattr(self.array.store, "root", None)
        if root is None:
            return hashlib.sha256(repr(self.array.metadata).encode()).hexdigest()
        folder = Path(root) / self.array.path
        states = (f"{file.relative_to(folder)}: {_state_of(str(file))}" for file in sorted(_files(folder)))
        return hashlib.sha256("\n".join(states).encode()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


class ParquetTable:
    """Rows of a Parquet dataset, read by row groups, the last of which is kept."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name = name
        self.schema = dataset.schema
        self.files = list(dataset.files)
        self.groups: list[Any] = []
        starts = [0]
        for fragment in dataset.get_fragments():
            for group in fragment.split_by_row_group():
                count = sum(g.num_rows for g in group.row_groups)
                self.groups.append(group)
                starts.append(starts[-1] + count)
        self.starts = np.array(starts)
        self._kept: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": (-1, {})}

    def column(self, column: str, start: int, stop: int) -> np.ndarray:
        """Some rows of a column."""
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        parts = []
        while first < len(self.groups) and self.starts[first] < stop:
            at = int(self.starts[first])
            parts.append(self._group(first)[column][max(start - at, 0) : stop - at])
            first += 1
        return np.concatenate(parts)

    def _group(self, number: int) -> dict[str, np.ndarray]:
        if self._kept[0] != number:
            table = self.groups[number].to_table(schema=self.schema, use_threads=False)
            self._kept = (number, {c: self._numbers(c, table[c], int(self.starts[number])) for c in table.column_names})
        return self._kept[1]

    def _numbers(self, name: str, column: Any, start: int) -> np.ndarray:
        arrow = needed("pyarrow", "batch", "a Parquet dataset")
        kind = column.type
        if column.null_count and not arrow.types.is_floating(kind):
            raise ValueError(
                f"batch: column {name!r} of {self.name} has {column.null_count} nulls near row {start}, and {kind} has no NaN to stand "
                "for them; fill them, or store the column as a floating dtype"
            )
        if not _is_list(kind):
            return column.to_numpy()
        whole = column.combine_chunks()
        lengths = np.asarray(whole.value_lengths()) if not arrow.types.is_fixed_size_list(kind) else None
        size = kind.list_size if lengths is None else int(lengths[0]) if len(lengths) else 0
        if lengths is not None and (lengths != size).any():
            row = int(np.flatnonzero(lengths != size)[0])
            raise ValueError(
                f"batch: column {name!r} of {self.name} has samples of uneven shape: row {start + row} holds {lengths[row]} numbers, row "
                f"{start} {size}; pad them to one length"
            )
        return whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)


def _is_list(kind: Any) -> bool:
    types = needed("pyarrow", "batch", "a Parquet dataset").types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


class ParquetColumn(Source):
    """A column of a Parquet dataset: numbers, or lists of numbers of one length."""

    def __init__(self, name: str, table: ParquetTable, column: str) -> None:
        self.table, self.column = table, column
        count = int(table.starts[-1])
        first = table.column(column, 0, 1) if count else np.zeros(0)
        super().__init__(name, (count, *first.shape[1:]), first.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some rows.

        Raises:
            ValueError: where rows have no numbers, or another number of them than the first row.
        """
        found = self.table.column(self.column, start, stop)
        if found.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"batch: {self.name} has samples of uneven shape: near row {start} they hold {found.shape[1]} numbers, row 0 "
                f"{self.shape[1]}; pad them to one length"
            )
        return _native(found, self.dtype)

    def identity(self) -> str:
        """Sizes and times of the last change of all files."""
        return "; ".join(f"{os.path.basename(file)}: {_state_of(file)}" for file in self.table.files)


class DaskSource(Source):
    """A Dask array, of which only the blocks that hold a run of samples are computed."""

    def __init__(self, name: str, array: Any) -> None:
        if any(n != n for n in array.shape):
            raise ValueError(f"batch: {name} is a Dask array of unknown shape; call its compute_chunk_sizes() first")
        super().__init__(name, array.shape, array.dtype)
        self.array = array

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some of the samples, computed in this process."""
        return _native(self.array[start:stop].compute(scheduler="synchronous"), self.dtype)

    def identity(self) -> str:
        """The name that Dask derives from what the array is computed from."""
        return str(self.array.name)


def hashed(array: np.ndarray) -> str:
    """A hash of an array's elements.

    >>> import numpy as np
    >>> hashed(np.zeros(3)) == hashed(np.zeros(6)[::2])
    True
    """
    found = hashlib.sha256()
    count = max((1 << 22) // max(array.nbytes // max(len(array), 1), 1), 1) if array.ndim else 1
    pieces = [array] if not array.ndim else (array[k : k + count] for k in range(0, len(array), count))
    for piece in pieces:
        found.update(np.ascontiguousarray(piece).data)
    return found.hexdigest()


class Data:
    """A tree of sources with one first axis.

    Attributes:
        sources: the leaves.
        samples: how long the first axis is.
    """

    def __init__(self, tree: Any) -> None:
        leaves, self.structure = _tree.flatten(tree)
        self.sources: list[Source] = leaves
        if not leaves:
            raise ValueError("batch: data is empty; give an array, a file, or a tuple or dict of these")
        self.samples = leaves[0].shape[0]
        if any(leaf.shape[0] != self.samples for leaf in leaves):
            found = ", ".join(f"{leaf.name} has {leaf.shape[0]:,}" for leaf in leaves)
            raise ValueError(f"batch: all parts of data must have the same number of samples, but {found}")
        if not self.samples:
            raise ValueError("batch: data has no samples: its first axis has length 0")

    @property
    def in_memory(self) -> bool:
        """Whether some of it is in this process's memory only."""
        return any(source.in_memory for source in self.sources)

    @property
    def sample_bytes(self) -> int:
        """Memory of one sample."""
        return sum(source.sample_bytes for source in self.sources)

    def read(self, start: int, stop: int) -> Any:
        """Some of the samples: a tree of arrays."""
        arrays = [source.read(start, stop) for source in self.sources]
        for source, array in zip(self.sources, arrays, strict=True):
            if len(array) != min(stop, self.samples) - start:
                raise RuntimeError(
                    f"batch: {source.name} gave {len(array):,} samples from {start:,} on where {stop - start:,} should be: it was cut "
                    "short while the job was running; write it again"
                )
        return _tree.unflatten(arrays, self.structure)

    def describe(self) -> dict[str, str]:
        """What changes when the data do, by name of the part."""
        made = {}
        for source in self.sources:
            made[f"shape of {source.name}"] = str(list(source.shape))
            made[f"dtype of {source.name}"] = str(source.dtype)
            made[f"content of {source.name}"] = source.identity()
        return made

    def paths(self) -> Iterator[str]:
        """The files it is read from, as far as they are files of this machine."""
        for source in self.sources:
            if isinstance(source, NpyFile):
                yield source.path
            elif isinstance(source, ParquetColumn):
                yield from map(os.path.abspath, source.table.files)
            elif isinstance(source, ZarrSource) and getattr(source.array.store, "root", None) is not None:
                yield os.path.abspath(source.array.store.root)


def open_data(data: Any) -> Data:
    """Open whatever samples may come from.

    Args:
        data: an array, a path, a Zarr array or group, a PyArrow dataset, a Dask array, or tuples and dicts of these.

    Raises:
        FileNotFoundError: for a path where nothing is.
        TypeError: for anything else, and dtypes that tensors cannot hold.
        ValueError: for samples of uneven shape or number, and files that are cut short.

    >>> import numpy as np
    >>> open_data({"x": np.zeros((3, 2)), "y": np.ones(3)}).read(1, 3)
    {'x': array([[0., 0.],
           [0., 0.]]), 'y': array([1., 1.])}
    """
    return Data(_opened("data", data))


def _opened(name: str, data: Any) -> Any:
    if isinstance(data, str | os.PathLike):
        return _opened_path(name, os.fspath(data))
    if isinstance(data, Tensor):
        return ArraySource(name, data.detach().numpy())
    if isinstance(data, np.memmap):
        return _unmapped(name, data) or ArraySource(name, data)
    if isinstance(data, np.ndarray):
        return ArraySource(name, data)
    module = type(data).__module__.partition(".")[0]
    if module == "zarr":
        return _opened_zarr(name, data)
    if module == "dask" and hasattr(data, "chunks"):
        return DaskSource(name, data)
    if module == "pyarrow" and hasattr(data, "get_fragments"):
        return _opened_parquet(name, data)
    if isinstance(data, list):
        return ArraySource(name, _from_list(name, data))
    children = _tree.named_children(data)
    if children is None:
        raise TypeError(
            f"batch: {name} is a {type(data).__name__}; give an array, a .npy file, a .zarr store, a Parquet dataset, a Dask array, or a "
            "tuple or dict of these"
        )
    parts = [_opened(name + path, child) for path, child in children.items()]
    return _rebuilt(data, parts)


def _rebuilt(tree: Any, parts: list[Any]) -> Any:
    structure = _tree.flatten(tree)[1]
    shallow = structure._replace(parts=tuple(_tree.LEAF for _ in structure.parts))
    return _tree.unflatten(parts, shallow)


def _from_list(name: str, data: list) -> np.ndarray:
    if any(isinstance(v, str | os.PathLike) for v in data):
        raise TypeError(f"batch: {name} is a list of paths; a list is an array of samples: give a tuple of paths")
    try:
        return np.asarray([np.asarray(v) for v in data])
    except ValueError:
        shapes = sorted({np.shape(v) for v in data})
        raise ValueError(
            f"batch: {name} has samples of uneven shape, {', '.join(map(str, shapes[:3]))}; all samples must have one shape: pad them, "
            "and give their lengths as another array"
        ) from None


def _unmapped(name: str, array: np.memmap) -> Source | None:
    # a mapping of a whole .npy file is read instead, so that its pages do not count as memory
    path = array.filename
    if path is None or array.mode == "c" or not isinstance(array.base, type(array._mmap)):  # type: ignore[attr-defined]
        return None
    try:
        source = NpyFile(name, path)
    except (OSError, ValueError, TypeError):
        return None
    same = source.shape == array.shape and source.stored == array.dtype and source.offset == array.offset
    return source if same else None


def _opened_path(name: str, path: str) -> Any:
    if not os.path.exists(path):
        raise FileNotFoundError(f"batch: {name}: there is no file {path}")
    suffix = Path(path).suffix
    if suffix == ".npy":
        return NpyFile(name, path)
    if suffix == ".zarr":
        return _opened_zarr(name, needed("zarr", "batch", "a Zarr store").open(path, mode="r"))
    if suffix in (".parquet", ".pq") or (os.path.isdir(path) and any(Path(path).rglob("*.parquet"))):
        arrow = needed("pyarrow", "batch", "a Parquet dataset")
        datasets = needed("pyarrow.dataset", "batch", "a Parquet dataset")
        try:
            return _opened_parquet(name, datasets.dataset(path, format="parquet"))
        except arrow.ArrowInvalid as error:
            raise ValueError(
                f"batch: {name} ({path}) is no Parquet dataset, or is cut short: {error}; write it again"
            ) from None
    raise ValueError(f"batch: {name}: {path} is no .npy file, no .zarr store and no Parquet dataset")


def _opened_zarr(name: str, found: Any) -> Any:
    if hasattr(found, "shape"):
        return ZarrSource(name, found)
    members = sorted(found.members())
    if not members:
        raise ValueError(f"batch: {name} is a Zarr group without arrays")
    return {key: _opened_zarr(f"{name}[{key!r}]", member) for key, member in members}


def _opened_parquet(name: str, dataset: Any) -> Any:
    types = needed("pyarrow", "batch", "a Parquet dataset").types
    kinds = [(field.name, field.type.value_type if _is_list(field.type) else field.type) for field in dataset.schema]
    wrong = [
        f"{column!r} ({kind})"
        for column, kind in kinds
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
    ]
    if wrong or not kinds:
        raise TypeError(
            f"batch: {name} has columns that are no numbers: {', '.join(wrong) or 'it has no columns at all'}; pass "
            "pyarrow.dataset.dataset(path, schema=...) with those columns that are"
        )
    table = ParquetTable(name, dataset)
    return {column: ParquetColumn(f"{name}[{column!r}]", table, column) for column, _ in kinds}
