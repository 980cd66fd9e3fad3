"""Samples from arrays and files, and what is refused."""

import os
import pickle

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.batch import _sources
from tapegrad.batch._parameters import open_params
from tapegrad.batch._sources import open_data
from tests.batch.models import samples

X = samples(10)


def zarr_array(path):
    zarr = pytest.importorskip("zarr")
    made = zarr.create_array(str(path), shape=X.shape, chunks=(3, 4), dtype=X.dtype, overwrite=True)
    made[:] = X
    return made


def parquet(path, columns, groups=3):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table(columns), path, row_group_size=groups)
    return str(path)


def npy(path, array=X):
    np.save(path, array)
    return str(path)


def opened(kind, folder):
    """The same ten samples from everywhere."""
    if kind == "array":
        return X
    if kind == "list":
        return X.tolist()
    if kind == "tensor":
        return tg.tensor(X)
    if kind == "npy":
        return npy(folder / "x.npy")
    if kind == "path object":
        return folder / os.path.basename(npy(folder / "x.npy"))
    if kind == "npy in Fortran order":
        return npy(folder / "x.npy", np.asfortranarray(X))
    if kind == "npy of big-endian numbers":
        return npy(folder / "x.npy", X.astype(">f8"))
    if kind == "memory map":
        return np.load(npy(folder / "x.npy"), mmap_mode="r")
    if kind == "part of a memory map":
        return np.load(npy(folder / "x.npy", np.concatenate([X, X])), mmap_mode="r")[10:]
    if kind == "zarr":
        zarr_array(folder / "x.zarr")
        return str(folder / "x.zarr")
    if kind == "zarr array":
        return zarr_array(folder / "x.zarr")
    if kind == "Dask array":
        return pytest.importorskip("dask.array").from_array(X, chunks=(4, 3))
    raise AssertionError(kind)


KINDS = [
    "array",
    "list",
    "tensor",
    "npy",
    "path object",
    "npy in Fortran order",
    "npy of big-endian numbers",
    "memory map",
]
KINDS += ["part of a memory map", "zarr", "zarr array", "Dask array"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same(kind, tmp_path):
    data = open_data(opened(kind, tmp_path))
    assert (data.samples, data.sample_bytes) == (10, 32)
    for start, stop in ((0, 10), (2, 7), (9, 10)):
        for again in (data, pickle.loads(pickle.dumps(data))):
            found = again.read(start, stop)
            np.testing.assert_array_equal(found, X[start:stop])
            assert found.dtype == np.float64
            assert found.dtype.isnative
            assert found.flags.writeable
            assert not np.shares_memory(found, X)
    assert open_data(opened(kind, tmp_path)).describe().keys() == data.describe().keys()


def test_a_whole_memory_map_is_read_as_the_file_it_is(tmp_path):
    mapped = np.load(npy(tmp_path / "x.npy"), mmap_mode="r")
    assert isinstance(open_data(mapped).sources[0], _sources.NpyFile)
    assert isinstance(open_data(mapped[1:]).sources[0], _sources.ArraySource)


def test_trees_keep_their_structure(tmp_path):
    data = open_data({"x": npy(tmp_path / "x.npy"), "y": (X[:, 0], X[:, 1:])})
    found = data.read(3, 5)
    np.testing.assert_array_equal(found["x"], X[3:5])
    np.testing.assert_array_equal(found["y"][1], X[3:5, 1:])
    assert [s.name for s in data.sources] == ["data['x']", "data['y'][0]", "data['y'][1]"]


def test_a_zarr_group_is_a_dict(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group.create_array("y", data=X[:, 0])
    group.create_array("x", data=X)
    found = open_data(str(tmp_path / "g.zarr")).read(1, 3)
    assert list(found) == ["x", "y"]
    np.testing.assert_array_equal(found["y"], X[1:3, 0])


def test_a_parquet_dataset_is_a_dict_of_columns(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    columns = {"a": X[:, 0], "k": np.arange(10, dtype=np.int32), "ok": X[:, 1] > 0, "list": list(X)}
    columns["fixed"] = arrow.FixedSizeListArray.from_arrays(X.reshape(-1), 4)
    folder = tmp_path / "set.parquet"
    folder.mkdir()
    table = arrow.table(columns)
    from pyarrow import parquet as files

    files.write_table(table.slice(0, 4), folder / "0.parquet", row_group_size=3)
    files.write_table(table.slice(4), folder / "1.parquet", row_group_size=4)
    data = open_data(str(folder))
    for start, stop in ((0, 10), (2, 9), (5, 6)):
        for again in (data, pickle.loads(pickle.dumps(data))):
            found = again.read(start, stop)
            np.testing.assert_array_equal(found["a"], X[start:stop, 0])
            np.testing.assert_array_equal(found["k"], np.arange(start, stop))
            np.testing.assert_array_equal(found["ok"], X[start:stop, 1] > 0)
            np.testing.assert_array_equal(found["list"], X[start:stop])
            np.testing.assert_array_equal(found["fixed"], X[start:stop])
    assert data.sources[1].dtype == np.int32


def test_nulls_are_nan_where_there_is_one(tmp_path):
    assert np.isnan(open_data(parquet(tmp_path / "a.parquet", {"a": [1.0, None, 3.0]})).read(0, 3)["a"][1])
    with pytest.raises(ValueError, match=r"column 'a' of data has 1 nulls near row 0, and int64 has no NaN"):
        open_data(parquet(tmp_path / "b.parquet", {"a": [1, None, 3]}))


def test_columns_that_are_no_numbers(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"a": [1.0, 2.0], "name": ["x", "y"]})
    with pytest.raises(
        TypeError, match=r"columns that are no numbers: 'name' \(string\); pass pyarrow.dataset.dataset"
    ):
        open_data(path)
    import pyarrow
    from pyarrow import dataset

    chosen = dataset.dataset(path, schema=pyarrow.schema([("a", pyarrow.float64())]))
    np.testing.assert_array_equal(open_data(chosen).read(0, 2)["a"], [1, 2])


def test_lists_of_uneven_length(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"a": [[1.0, 2.0], [3.0, 4.0], [5.0]]})
    with pytest.raises(ValueError, match="samples of uneven shape: row 2 holds 1 numbers, row 0 2; pad them"):
        open_data(path).read(0, 3)
    path = parquet(tmp_path / "b.parquet", {"a": [[1.0, 2.0]] * 3 + [[5.0]] * 3})
    with pytest.raises(ValueError, match="samples of uneven shape: near row 3 they hold 1 numbers, row 0 2"):
        open_data(path).read(3, 6)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ([[1.0, 2.0], [3.0]], ValueError, r"data has samples of uneven shape, \(1,\), \(2,\); .*pad them"),
        (np.array([[1.0], [1.0, 2.0]], object), ValueError, "holds Python objects, as arrays of samples of uneven"),
        (np.array(["a", "b"]), TypeError, "data has dtype <U1, which tensors cannot hold; convert it"),
        (np.zeros(3, complex), TypeError, "dtype complex128"),
        (np.float64(3.0), TypeError, "data is a float64; give an array"),
        (np.array(3.0), ValueError, "data has no first axis"),
        (np.zeros((0, 3)), ValueError, "data has no samples"),
        ((), ValueError, "data is empty"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, ValueError, r"data\['x'\] has 3, data\['y'\] has 4"),
        (7, TypeError, "data is a int; give an array"),
        (["x.npy", "y.npy"], TypeError, "data is a list of paths; .* give a tuple of paths"),
        ({"x": np.zeros(3), "y": None}, TypeError, r"data\['y'\] is a NoneType"),
        ("/no/such/file.npy", FileNotFoundError, "there is no file /no/such/file.npy"),
        (__file__, ValueError, "is no .npy file, no .zarr store and no Parquet dataset"),
    ],
)
def test_what_is_no_data(data, kind, message):
    with pytest.raises(kind, match=message):
        open_data(data)


def test_a_file_that_is_cut_short(tmp_path):
    path = npy(tmp_path / "x.npy")
    os.truncate(path, os.path.getsize(path) - 40)
    with pytest.raises(ValueError, match=r"cut short: its header announces 10 samples \(320 bytes\), and 8 are there"):
        open_data(path)


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"hello, world")
    with pytest.raises(ValueError, match=r"is no \.npy file"):
        open_data(tmp_path / "x.npy")
    (tmp_path / "y.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is no \.npy file"):
        open_data(tmp_path / "y.npy")
    np.save(tmp_path / "o.npy", np.array([{}, []], object))
    with pytest.raises(TypeError, match="holds Python objects"):
        open_data(tmp_path / "o.npy")
    pytest.importorskip("pyarrow")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match="is no Parquet dataset, or is cut short"):
        open_data(tmp_path / "p.parquet")


def test_a_file_that_changes_while_it_is_read(tmp_path):
    data = open_data(npy(tmp_path / "x.npy"))
    npy(tmp_path / "x.npy", X[:5])
    with pytest.raises(RuntimeError, match="was changed while the job was running"):
        data.read(0, 3)


def test_a_dask_array_of_unknown_shape():
    array = pytest.importorskip("dask.array").from_array(np.arange(4.0), chunks=2)
    with pytest.raises(ValueError, match=r"call its compute_chunk_sizes\(\) first"):
        open_data(array[array > 1])


@pytest.mark.parametrize("module", ["zarr", "pyarrow"])
def test_packages_that_are_missing(module, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / {"zarr": "x.zarr", "pyarrow": "x.parquet"}[module]
    path.mkdir()
    with pytest.raises(ImportError, match=rf"needs {module}: pip install 'tapegrad\[batch\]'"):
        open_data(path)


def test_params(tmp_path):
    np.savez(tmp_path / "p.npz", w=np.ones(2, np.float32), b=np.array(1.0))
    np.save(tmp_path / "p.npy", X)
    (tmp_path / "p.json").write_text('{"w": [1, 2], "layers": {"b": 3}}')
    found = open_params(tmp_path / "p.npz")
    assert list(found) == ["w", "b"]
    assert found["w"].dtype == np.float32
    np.testing.assert_array_equal(open_params(str(tmp_path / "p.npy")), X)
    found = open_params(tmp_path / "p.json")
    np.testing.assert_array_equal(found["w"], [1.0, 2.0])
    assert found["layers"]["b"].dtype == np.float64
    tensor = tg.ones(2)
    copied = open_params([tensor])[0]
    copied[0] = 5
    assert tensor.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b"{", "cannot read"),
        ("p.json", b'{"a": "x"}', "something else than numbers"),
        ("p.json", b"[[1], [1, 2]]", "something else than numbers"),
        ("p.npz", b"", "cannot read"),
        ("p.npz", b"PK\x03\x04 and then nothing", "cannot read"),
        ("p.txt", b"1", r"ends with none of \.npz, \.npy and \.json"),
    ],
)
def test_params_that_cannot_be_read(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_params(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_params(tmp_path / ("no" + name))
    with pytest.raises(TypeError, match=r"params\['a'\] is a str"):
        open_params({"a": "text"})
