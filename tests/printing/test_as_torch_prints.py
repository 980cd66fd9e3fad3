"""Random arrays, options and gradient states as text, beside PyTorch itself."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.printing import format_tensor, set_printoptions

f32, f64 = np.float32, np.float64
inf, nan = np.inf, np.nan

COMPARED_DTYPES = ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    """Return a shape of up to four dimensions, empty or large enough to be summarised now and then."""
    ndim = int(rng.integers(0, 5))
    kind = rng.random()
    if kind < 0.08:
        return tuple(rng.integers(0, 3, ndim).tolist())
    if kind < 0.25:
        largest = {0: 1, 1: 3000, 2: 90, 3: 16, 4: 9}[ndim]
        return tuple(rng.integers(1, largest + 1, ndim).tolist())
    largest = {0: 1, 1: 40, 2: 14, 3: 5, 4: 3}[ndim]
    return tuple(rng.integers(1, largest + 1, ndim).tolist())


def random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return numbers of one of many magnitudes, whole or not, some with zeros, infinities and NaNs."""
    if dtype == "bool":
        return np.asarray(rng.random(shape) < rng.choice([0.1, 0.5, 1.0]))
    if not dtype.startswith("float"):
        limits = np.iinfo(dtype)
        reach = int(10 ** rng.uniform(0, 19))
        low, high = max(limits.min, -reach), min(limits.max, reach)
        if rng.random() < 0.5:
            low = 0
        return np.asarray(rng.integers(low, high, shape, dtype, endpoint=True))
    centre = rng.uniform(-10, 12)
    values = rng.normal(size=shape) * 10 ** (centre + rng.uniform(0, rng.choice([0.1, 2, 8]), shape))
    if rng.random() < 0.2:
        values = rng.normal(size=shape)
    if rng.random() < 0.3:
        values = np.abs(values)
    if rng.random() < 0.3:
        values = np.round(values, int(rng.integers(0, 3)))
    for special in (0.0, -0.0, inf, -inf, nan):
        if rng.random() < 0.12:
            values = np.where(rng.random(shape) < rng.choice([0.05, 0.5, 1.0]), special, values)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(values).astype(dtype)


def random_options(rng: np.random.Generator) -> dict:
    """Return print options, the default ones in half of the cases."""
    if rng.random() < 0.5:
        return {}
    choices = {
        "precision": range(9),
        "threshold": [0, 1, 10, 50, 1000, inf],
        "edgeitems": range(6),
        "linewidth": [1, 20, 40, 79, 80, 81, 100, 200],
        "profile": ["default", "short", "full"],
        "sci_mode": [True, False],
    }
    return {name: values[rng.integers(len(values))] for name, values in choices.items() if rng.random() < 0.4}


def assert_like_torch(torch, rng: np.random.Generator, array: np.ndarray, options: dict) -> None:
    """Compare the text of an array with PyTorch's, with a random gradient state and default dtype."""
    tensor = torch.from_numpy(array.copy())
    arguments = {}
    if array.dtype.kind == "f":
        gradient = rng.choice(["none", "leaf", "clone", "product"])
        if gradient != "none":
            tensor.requires_grad_()
            arguments["requires_grad"] = True
        if gradient == "clone":
            tensor = tensor.clone()
            arguments["grad_fn_name"] = "CloneBackward0"
        elif gradient == "product":
            tensor = tensor * 1
            arguments["grad_fn_name"] = "MulBackward0"
    default = str(rng.choice(["float32", "float32", "float64"]))
    try:
        torch.set_default_dtype(getattr(torch, default))
        torch.set_printoptions(profile="default")
        torch.set_printoptions(**options)
        expected = repr(tensor)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_printoptions(profile="default")
    set_printoptions(profile="default")
    set_printoptions(**options)
    actual = format_tensor(array, default_dtype=default, **arguments)
    assert actual == expected.replace("torch.", "tapegrad."), (array.dtype, array.shape, default, options)


@pytest.mark.parametrize("dtype", COMPARED_DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_random_arrays_like_torch(dtype: str, seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng([seed, COMPARED_DTYPES.index(dtype)])
    for _ in range(150):
        assert_like_torch(torch, rng, random_array(rng, dtype, random_shape(rng)), random_options(rng))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_wrapping_like_torch(dtype: str) -> None:
    """Rows of every length, where the last line and its suffixes end on either side of the limit."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    for length in range(1, 60):
        for value in (1, 22, 333, 4444, 0.5):
            for shape in ((length,), (2, length)):
                assert_like_torch(torch, rng, np.full(shape, value).astype(dtype), {})


def test_float_rounding_like_torch() -> None:
    """Numbers near the limits between the notations and near ties of the last printed digit."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    for limit in (1e-4, 1e-3, 0.00005, 0.12345, 0.99995, 1.0, 999.99995, 1000.0, 1e8, 1e12):
        for dtype in (f32, f64):
            below, above = np.nextafter(dtype(limit), dtype([0, inf]))
            for values in ([limit], [below], [above], [1, limit], [below, 1], [1, above], [-above, limit]):
                assert_like_torch(torch, rng, np.array(values, dtype), {})


def test_extreme_floats_like_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(13)
    for dtype in (np.float16, f32, f64):
        limits = np.finfo(dtype)
        tiny = limits.smallest_subnormal
        for values in ([limits.max, -limits.max], [limits.tiny, 1], [tiny], [tiny, limits.max], [limits.eps]):
            assert_like_torch(torch, rng, np.array(values, dtype), {})


def test_bfloat16_like_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(17)
    for _ in range(200):
        tensor = torch.from_numpy(random_array(rng, "float32", random_shape(rng))).bfloat16()
        actual = format_tensor(tensor.float().numpy(), dtype_name="bfloat16")
        assert actual == repr(tensor).replace("torch.", "tapegrad.")


def test_prefix_like_torch() -> None:
    torch = pytest.importorskip("torch")

    class SomeVerboselyNamedTensor(torch.Tensor):
        """A subclass, which PyTorch prints under its own name."""

    rng = np.random.default_rng(19)
    for _ in range(200):
        array = random_array(rng, "float64", random_shape(rng))
        tensor = torch.from_numpy(array)
        expected = repr(tensor.as_subclass(SomeVerboselyNamedTensor)).replace("torch.", "tapegrad.")
        assert format_tensor(array, prefix="SomeVerboselyNamedTensor(") == expected
        expected = repr(torch.nn.Parameter(tensor)).replace("torch.", "tapegrad.")
        assert format_tensor(array, prefix="Parameter containing:\ntensor(", requires_grad=True) == expected
