"""The data shipped with the package is what its README says."""

from importlib.resources import files

import numpy as np
import pytest

from tapegrad import datasets


def test_digits_shapes_dtypes_and_scale():
    images, labels = datasets.digits()
    assert images.shape == (1797, 64)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    assert labels.shape == (1797,)
    assert labels.dtype == np.int64


def test_digits_counts_and_ink():
    images, labels = datasets.digits()
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.unique(images * 16).tolist() == list(range(17))
    assert int((images * 16).sum(dtype=np.float64)) == 561718
    assert (images[0].reshape(8, 8)[0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_digits_are_fresh_arrays():
    images, labels = datasets.digits()
    images[:] = -1
    labels[:] = -1
    again, labels_again = datasets.digits()
    assert again.min() == 0
    assert labels_again.min() == 0


def test_digits_equal_scikit_learn():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = datasets.digits()
    assert np.array_equal(images * 16, source.data)
    assert np.array_equal(labels, source.target)


def test_digits_are_small_and_attributed():
    data = files("tapegrad") / "data"
    assert len((data / "digits.npz").read_bytes()) < 100_000
    readme = (data / "README.md").read_text(encoding="utf-8")
    assert "Alpaydin" in readme
    assert "CC BY 4.0" in readme
