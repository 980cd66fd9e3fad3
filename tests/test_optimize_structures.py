"""Unknowns and bounds of `tapegrad.optimize` in any structure."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
from scipy.optimize import Bounds

import tapegrad as tg
from tapegrad import _tree
from tapegrad.optimize import minimize
from tests.helpers import Counted, bowl, rosen

# structures


class Pair(NamedTuple):
    a: object
    b: object


@dataclasses.dataclass(frozen=True)
class Model:
    weight: object
    bias: object
    total: float = dataclasses.field(init=False, default=0.0)


@dataclasses.dataclass
class Slotted:
    __slots__ = ("w",)
    w: object


F32, F64 = tg.float32, tg.float64
STRUCTURES = {
    "tensor": tg.tensor([1.0, 2.0], dtype=F64),
    "matrix": tg.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64),
    "tensor of float32": tg.tensor([1.0, 2.0]),
    "tensor of no dimensions": tg.tensor(2.0, dtype=F64),
    "array": np.array([1.0, 2.0]),
    "matrix array": np.arange(6.0).reshape(2, 3),
    "array of float32": np.array([1.0, 2.0], np.float32),
    "number": 3.0,
    "NumPy number": np.float32(3.0),
    "dict": {"w": tg.tensor([1.0, 2.0], dtype=F64), "b": np.array(1.5)},
    "nested": {"layers": [(tg.ones(2, 2, dtype=F64), tg.zeros(2)), (np.ones(3), 0.5)], "none": None},
    "list": [tg.tensor([1.0]), tg.tensor(2.0, dtype=F64)],
    "list with numbers": [1.0, tg.tensor([2.0], dtype=F64)],
    "tuple": (np.ones(2), np.ones((1, 2))),
    "named tuple": Pair(1.0, tg.tensor([2.0, 3.0], dtype=F64)),
    "dataclass": Model(tg.ones(3, dtype=F64), 0.5),
    "slots": Slotted(np.ones(2)),
    "empty part": {"w": np.ones(2), "none": np.ones((0, 3))},
}


def leaves(tree):
    return [leaf for leaf in _tree.flatten(tree)[0] if leaf is not None]


def distance(tree):
    """Squared distance of every element from 5."""
    return sum((((leaf - 5) ** 2).sum() for leaf in leaves(tree)), tg.tensor(0.0))


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("method", ["L-BFGS-B", "trust-ncg"])
def test_every_structure_comes_back(name, method):
    x0 = STRUCTURES[name]
    f = Counted(distance)
    found = minimize(f, x0, method=method)
    (given,) = f.calls[0]
    for tree in (found.x, given):
        assert type(tree) is type(x0) or not leaves(x0)[0] is not x0
        assert len(leaves(tree)) == len(leaves(x0))
    for result, seen, start in zip(leaves(found.x), leaves(given), leaves(x0), strict=True):
        assert type(result) is type(start)
        assert isinstance(seen, tg.Tensor)
        shape, dtype = np.shape(start), getattr(start, "dtype", float)
        assert np.shape(result) == seen.shape == shape
        assert seen.dtype == tg.dtypes.as_dtype(dtype if dtype is not float else F64)
        if hasattr(start, "dtype"):
            assert result.dtype == start.dtype
        np.testing.assert_allclose(np.asarray(result), np.full(shape, 5.0), rtol=1e-4)
    assert isinstance(found.fun, float)


def test_containers_keep_their_kind():
    for name in ("dict", "named tuple", "dataclass", "slots", "list", "tuple"):
        x0 = STRUCTURES[name]
        assert type(minimize(distance, x0).x) is type(x0)
    found = minimize(distance, STRUCTURES["nested"]).x
    assert list(found) == ["layers", "none"]
    assert found["none"] is None
    assert isinstance(found["layers"][0], tuple)


def test_the_start_is_not_changed():
    w = tg.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    x0 = {"w": w, "b": np.zeros(2)}
    found = minimize(distance, x0)
    assert x0["w"] is w
    assert w.tolist() == [1, 2]
    assert w.grad is None
    assert x0["b"].tolist() == [0, 0]
    assert not found.x["w"].requires_grad


@pytest.mark.parametrize("x0", [[1.0, 2.0], (1, 2), [[1, 2.0], [3, 4]], [np.float64(1.0), 2]])
def test_a_list_of_numbers_is_an_array_as_in_scipy(x0):
    f = Counted(distance)
    found = minimize(f, x0)
    assert isinstance(f.calls[0][0], tg.Tensor)
    assert isinstance(found.x, np.ndarray)
    assert found.x.shape == np.shape(x0)
    assert found.x.dtype == np.float64


def test_integers_become_float64_as_in_scipy():
    for x0 in (np.array([1, 2]), 3, {"a": 1, "b": np.arange(2)}):
        for leaf in leaves(minimize(distance, x0).x):
            assert np.asarray(leaf).dtype == np.float64


def test_an_objective_in_float32():
    x0 = tg.tensor([1.1, 1.2])
    found = minimize(rosen, x0, tol=1e-3)
    assert found.x.dtype is F32
    np.testing.assert_allclose(found.x.numpy(), [1, 1], atol=1e-2)


@pytest.mark.parametrize(
    ("x0", "message"),
    [
        ({"w": tg.arange(3)}, r"x0\['w'\] is a tensor of tapegrad.int64, but unknowns must be float32 or float64"),
        (tg.tensor([True]), r"x0 is a tensor of tapegrad.bool"),
        ([np.ones(2), "abc"], r"x0\[1\] must be a Tensor, an array or a number, or a dict, .* but got str"),
        (Model(np.ones(2), {1: True}), r"x0.bias\[1\] must be .* but got bool"),
        (np.array([1j]), "x0 is an array of complex128, but unknowns must be float32 or float64"),
        (np.array(["a"]), "x0 is an array of <U1"),
        (tg.tensor([1.0]).to(tg.float16), "x0 is a tensor of tapegrad.float16"),
        ({1, 2}, "x0 must be .* but got set"),
        (Model, "x0 must be .* but got type"),
    ],
)
def test_starts_that_are_nothing_to_differentiate_by(x0, message):
    with pytest.raises(TypeError, match=message):
        minimize(distance, x0)


@pytest.mark.parametrize("x0", [[], {}, None, np.ones(0), {"a": np.ones((0, 2))}])
def test_nothing_to_solve_for(x0):
    with pytest.raises(ValueError, match="x0 has no elements"):
        minimize(distance, x0)


# bounds

BOX = [(0.0, 0.5), (None, 0.25), (None, None), (2.0, None)]


@pytest.mark.parametrize(
    "method", ["L-BFGS-B", "TNC", "SLSQP", "trust-constr", "Nelder-Mead", "Powell", "COBYQA", None]
)
def test_bounds_as_scipy_takes_them(method):
    for bounds in (
        BOX,
        np.array([(0, 0.5), (-np.inf, 0.25), (-np.inf, np.inf), (2, np.inf)]),
        Bounds([0, -np.inf, -np.inf, 2], [0.5, 0.25, np.inf, np.inf]),
    ):
        found = minimize(bowl, np.array([0.1, 0.1, 0.1, 3.0]), method=method, bounds=bounds)
        np.testing.assert_allclose(found.x, [0.5, 0.25, 1, 2], atol=1e-3)


def solve(x0, bounds):
    return minimize(lambda tree: sum(bowl(leaf) for leaf in leaves(tree)), x0, bounds=bounds).x


def test_bounds_in_the_structure():
    x0 = {"a": tg.zeros(2, dtype=F64), "b": 0.0, "c": [np.zeros((2, 2)), 3.0]}
    found = solve(
        x0,
        {"c": [(None, np.array([0.5, 2.0])), (2, np.inf)], "b": None, "a": (tg.tensor([-1.0, -2.0]), tg.tensor(0.25))},
    )
    assert found["a"].tolist() == pytest.approx([0.25, 0.25])
    assert found["b"] == pytest.approx(1)
    np.testing.assert_allclose(found["c"][0], [[0.5, 1], [0.5, 1]], rtol=1e-5)
    assert found["c"][1] == pytest.approx(2)


def test_bounds_for_one_tensor():
    assert solve(tg.zeros(3, dtype=F64), (None, 0.5)).tolist() == [0.5, 0.5, 0.5]
    assert solve(np.zeros((1, 3)), (None, np.array([0.5, 0.25, 0.75]))).tolist() == [[0.5, 0.25, 0.75]]
    assert solve(0.0, (None, 0.5)) == 0.5
    assert solve(np.zeros(2), [(0, 0.5), (0, 0.25)]).tolist() == [0.5, 0.25]  # as SciPy takes it


def test_bounds_of_a_list_of_tensors():
    x0 = [np.zeros(2), np.zeros(1)]
    assert [part.tolist() for part in solve(x0, [(None, 0.5), (0, 0.25)])] == [[0.5, 0.5], [0.25]]
    assert [part.tolist() for part in solve(x0, [(None, 0.5), (0, 0.25), (0, 0.75)])] == [[0.5, 0.25], [0.75]]
    assert [part.tolist() for part in solve(Pair(*x0), Pair(None, (0, 0.75)))][1] == [0.75]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"a": (0, 1)}, r"do not have the structure of x0: there are none for x0\['b'\]; give None"),
        ({"a": (0, 1), "b": None, "c": None}, r"nothing is bounded by bounds\['c'\]"),
        ({"x": None, "b": None}, r"there are none for x0\['a'\] and nothing is bounded by bounds\['x'\]"),
        ({"a": 1.0, "b": None}, r"bounds of x0\['a'\] must be a pair \(low, high\) .* of shape \(2,\), .* but got 1.0"),
        ({"a": (0, 1, 2), "b": None}, r"bounds of x0\['a'\] must be a pair"),
        (
            {"a": (np.zeros(3), None), "b": None},
            r"a bound of x0\['a'\] has shape \(3,\), which does not expand to \(2,\)",
        ),
        ({"a": (np.array([0, np.nan]), None), "b": None}, r"a bound of x0\['a'\]\[1\] is nan: use None"),
        ([(0, 1)], "do not have the structure of x0"),
        (3.0, "do not have the structure of x0"),
    ],
)
def test_bounds_that_do_not_match(bounds, message):
    with pytest.raises(ValueError, match=message):
        solve({"a": np.zeros(2), "b": np.zeros(1)}, bounds)


def test_bounds_the_wrong_way_round():
    with pytest.raises(ValueError, match="bound"):
        solve(np.zeros(2), [(1, 0), (0, 1)])
