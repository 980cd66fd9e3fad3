"""`root`, `least_squares` and `curve_fit` take the steps of Jacobians written by hand, dense and sparse."""

import warnings

import numpy as np
import pytest
import scipy.optimize
from scipy import sparse
from scipy.optimize import Bounds, OptimizeWarning

import tapegrad as tg
from tapegrad.optimize import curve_fit, least_squares, root
from tapegrad.optimize._recorded import Residuals
from tapegrad.optimize._unknowns import Unknowns

F64 = tg.float64


class Mine(Exception):
    pass


# systems of equations


def system(x):
    return tg.stack([x[0] ** 2 + x[1] ** 2 - 4, tg.exp(x[0]) + x[1] - 1])


def system_by_hand(x):
    return np.array([x[0] ** 2 + x[1] ** 2 - 4, np.exp(x[0]) + x[1] - 1])


def jacobian_by_hand(x):
    return np.array([[2 * x[0], 2 * x[1]], [np.exp(x[0]), 1]])


START = np.array([1.0, -1.7])
SOLUTION = [1.004168738, -1.729637288]


@pytest.mark.parametrize("method", ["hybr", "lm"])
def test_roots_with_the_jacobian(method):
    calls = []

    def f(x):
        calls.append(x)
        return system(x)

    found = root(f, START, method=method)
    expected = scipy.optimize.root(system_by_hand, START, jac=jacobian_by_hand, method=method)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-12)
    np.testing.assert_allclose(found.x, SOLUTION, rtol=1e-8)
    assert (found.nfev, found.njev) == (expected.nfev, expected.njev)
    assert len(calls) <= found.nfev  # the Jacobian comes from the same evaluation


@pytest.mark.parametrize("method", ["broyden1", "anderson", "krylov", "df-sane"])
def test_roots_without_derivatives(method):
    recorded = []

    def f(x):
        out = system(x)
        recorded.append(out.requires_grad)
        return out

    np.testing.assert_allclose(root(f, START, method=method).x, SOLUTION, rtol=1e-3)
    assert not any(recorded)


def test_roots_in_a_structure():
    x0 = {"x": tg.tensor(1.0, dtype=F64), "y": np.array([-1.7])}
    found = root(
        lambda p, c: {"circle": p["x"] ** 2 + p["y"] ** 2 - c, "curve": [tg.exp(p["x"]) + p["y"] - 1]}, x0, args=(4.0,)
    )
    assert isinstance(found.x["x"], tg.Tensor)
    assert found.x["x"].shape == ()
    np.testing.assert_allclose([found.x["x"].item(), found.x["y"].item()], SOLUTION, rtol=1e-8)


def test_callbacks_of_root():
    seen = []
    root(system, tg.from_numpy(START), method="krylov", callback=lambda x, f: seen.append((x, f)))
    assert all(isinstance(x, tg.Tensor) and f.shape == (2,) for x, f in seen)


@pytest.mark.parametrize("method", ["hybr", "lm"])
def test_a_sparse_system(method):
    n = 40
    pattern = sparse.diags_array([np.ones(n), np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1, -1])

    def broyden_tridiagonal(x):
        zero = tg.zeros(1, dtype=F64)
        return (3 - 2 * x) * x - tg.cat([zero, x[:-1]]) - 2 * tg.cat([x[1:], zero]) + 1

    found = root(broyden_tridiagonal, -np.ones(n), method=method, jac_sparsity=pattern)
    dense = root(broyden_tridiagonal, -np.ones(n), method=method)
    assert found.success
    np.testing.assert_allclose(found.x, dense.x, rtol=1e-10)
    with pytest.raises(
        ValueError, match=r"the Jacobian is -2 in row \d+, column \d+, which is outside the given sparsity"
    ):
        root(broyden_tridiagonal, -np.ones(n), method=method, jac_sparsity=np.tri(n))


def test_options_of_root():
    assert root(system, START, tol=1e-1).nfev < root(system, START, tol=1e-10).nfev
    assert "maxfev = 2" in root(system, START, options={"maxfev": 2}).message
    with pytest.raises(ValueError, match="does not apply: the Jacobian comes from the tape"):
        root(system, START, options={"col_deriv": 1})
    with pytest.raises(ValueError, match="Unknown solver"):
        root(system, START, method="bisect")


@pytest.mark.parametrize("method", ["hybr", "krylov"])
def test_as_many_equations_as_unknowns(method):
    with pytest.raises(ValueError, match="f returned 3 numbers for 2 unknowns: there must be as many equations"):
        root(lambda x: tg.stack([x[0], x[1], x[0]]), START, method=method)


def test_more_equations_by_levenberg_and_marquardt():
    found = root(lambda x: tg.cat([x - 1, x - 1]), START, method="lm")
    np.testing.assert_allclose(found.x, [1, 1], rtol=1e-8)


# least squares

T = np.linspace(0, 4, 30)
TRUE = np.array([2.0, 1.3, 0.5])
Y = TRUE[0] * np.exp(-TRUE[1] * T) + TRUE[2] + 0.05 * np.sin(37 * T)
TT, YT = tg.from_numpy(T), tg.from_numpy(Y)
GUESS = np.array([1.0, 1.0, 0.0])


def decay(p):
    return p[0] * tg.exp(-p[1] * TT) + p[2] - YT


def decay_by_hand(p):
    return p[0] * np.exp(-p[1] * T) + p[2] - Y


def decay_jacobian(p):
    return np.stack([np.exp(-p[1] * T), -p[0] * T * np.exp(-p[1] * T), np.ones_like(T)], 1)


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
@pytest.mark.parametrize("options", [{}, {"x_scale": "jac"}, {"xtol": 1e-3}, {"max_nfev": 2}], ids=str)
def test_least_squares(method, options):
    calls = []

    def f(p):
        calls.append(p)
        return decay(p)

    found = least_squares(f, GUESS, method=method, **options)
    expected = scipy.optimize.least_squares(decay_by_hand, GUESS, decay_jacobian, method=method, **options)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-9)
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-12)
    np.testing.assert_allclose(found.jac, expected.jac, rtol=1e-7)
    assert (found.nfev, found.njev) == (expected.nfev, expected.njev)
    assert len(calls) == found.nfev


@pytest.mark.parametrize("loss", ["soft_l1", "cauchy", lambda z: np.stack([z, np.ones_like(z), np.zeros_like(z)])])
def test_robust_losses(loss):
    found = least_squares(decay, GUESS, loss=loss, f_scale=0.1)
    expected = scipy.optimize.least_squares(decay_by_hand, GUESS, decay_jacobian, loss=loss, f_scale=0.1)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-8)


BOX = ([1.0, 0.0, 0.6], [1.5, np.inf, np.inf])


@pytest.mark.parametrize(
    "bounds", [BOX, Bounds(*BOX), tuple(np.array(side) for side in BOX)], ids=["lists", "Bounds", "arrays"]
)
def test_bounds_as_scipy_takes_them(bounds):
    guess = np.array([1.2, 1.0, 0.7])
    found = least_squares(decay, guess, bounds)
    expected = scipy.optimize.least_squares(decay_by_hand, guess, decay_jacobian, BOX)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-6)
    assert found.x[2] >= 0.6


def named(p):
    return decay(tg.stack([p["a"], p["k"], p["c"]]))


def test_bounds_in_the_structure():
    guess = {"a": 1.2, "k": 1.0, "c": np.array(0.7)}
    expected = scipy.optimize.least_squares(decay_by_hand, [1.2, 1.0, 0.7], decay_jacobian, BOX).x
    for bounds in (
        ({"a": 1.0, "k": 0.0, "c": 0.6}, {"a": 1.5, "k": None, "c": tg.tensor(np.inf)}),
        ({"a": 1.0, "k": 0.0, "c": 0.6}, [1.5, None, np.inf]),
        {"a": (1.0, 1.5), "k": (0, None), "c": (0.6, None)},
    ):
        found = least_squares(named, guess, bounds)
        np.testing.assert_allclose([found.x["a"], found.x["k"], found.x["c"]], expected, rtol=1e-6)
    assert least_squares(named, guess, (None, 1.25)).x["a"] == pytest.approx(1.25, rel=1e-3)
    free = least_squares(named, guess, None)
    assert free.x["k"] == least_squares(named, guess).x["k"]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0, 1, 2), r"bounds must be a pair \(lower, upper\), but got 3 elements"),
        (({"a": 1.0, "k": 0.0}, 5), r"there are none for x0\['c'\]"),
        (([0, 0], 5), "do not have the structure of x0"),
        ((0, {"a": 1.0, "k": np.ones(2), "c": 0}), r"a bound of x0\['k'\] has shape \(2,\)"),
    ],
)
def test_bounds_that_do_not_match(bounds, message):
    with pytest.raises(ValueError, match=message):
        least_squares(named, {"a": 1.2, "k": 1.0, "c": np.array(0.7)}, bounds)


def test_residuals_in_a_structure_and_further_arguments():
    def f(p, scale, *, shift):
        return {"first": scale * (p["w"] - shift), "rest": (p["b"] - 2, [p["w"].sum() - 2 * shift])}

    x0 = {"w": tg.zeros(2, dtype=F64), "b": tg.zeros((), dtype=F64)}
    found = least_squares(f, x0, args=(3.0,), kwargs={"shift": 1.5})
    assert found.x["w"].tolist() == pytest.approx([1.5, 1.5])
    assert found.x["b"].item() == pytest.approx(2)
    assert found.jac.shape == (4, 3)


def test_callbacks_of_least_squares():
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result.x)

    least_squares(named, {"a": 1.2, "k": 1.0, "c": np.array(0.7)}, callback=callback)
    assert seen
    assert list(seen[0]) == ["a", "k", "c"]


def test_derivatives_cannot_be_given():
    for name in ("jac", "diff_step"):
        with pytest.raises(TypeError, match=f"least_squares\\(\\) takes no '{name}'"):
            least_squares(decay, GUESS, **{name: 1})


# a chain of springs: every residual has two neighbours

N = 60
CHAIN = sparse.diags_array([np.ones(N), np.ones(N - 1)], offsets=[0, 1], shape=(N, N)).tocsr()
TARGET = np.sin(np.arange(N))


def chain(x):
    inner = 10 * (x[1:] - x[:-1] ** 2)
    return tg.cat([inner, x[-1:] - 1]) + 0.1 * (x - tg.from_numpy(TARGET))


def chain_by_hand(x):
    return np.append(10 * (x[1:] - x[:-1] ** 2), x[-1] - 1) + 0.1 * (x - TARGET)


def chain_jacobian(x):
    main = 0.1 + np.append(-20 * x[:-1], 1)
    return sparse.diags_array([main, np.full(N - 1, 10.0)], offsets=[0, 1]).tocsr()


@pytest.mark.parametrize("method", ["trf", "dogbox"])
@pytest.mark.parametrize(
    "pattern", [CHAIN, CHAIN.toarray() != 0, sparse.csr_matrix(CHAIN)], ids=["array", "dense", "matrix"]
)
def test_a_sparse_jacobian(method, pattern):
    sweeps = []

    def f(x):
        sweeps.append(0)
        return chain(x)

    start = np.full(N, 0.5)
    found = least_squares(f, start, method=method, jac_sparsity=pattern)
    expected = scipy.optimize.least_squares(chain_by_hand, start, chain_jacobian, method=method)
    assert sparse.issparse(found.jac)
    assert found.nfev == expected.nfev == len(sweeps)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.jac.toarray(), expected.jac.toarray(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [{"method": "lm"}, {"tr_solver": "exact"}], ids=str)
def test_solvers_that_take_dense_jacobians_get_them(options):
    found = least_squares(chain, np.full(N, 0.5), jac_sparsity=CHAIN, **options)
    assert isinstance(found.jac, np.ndarray)
    np.testing.assert_allclose(found.x, least_squares(chain, np.full(N, 0.5), **options).x, rtol=1e-6, atol=1e-8)


def test_a_sparse_jacobian_takes_a_product_a_colour():
    residuals = Residuals(chain, Unknowns(np.ones(N)), sparsity=CHAIN)
    np.testing.assert_allclose(residuals.jacobian(TARGET).toarray(), chain_jacobian(TARGET).toarray(), rtol=1e-13)
    assert residuals._sparsity.count == 2
    assert residuals.jacobian(TARGET).dtype == np.float64


def test_a_sparsity_that_is_wrong():
    with pytest.raises(
        ValueError, match=r"the Jacobian is 10 in row \d+, column \d+, which is outside the given sparsity"
    ):
        least_squares(chain, np.full(N, 0.5), jac_sparsity=sparse.eye_array(N))
    with pytest.raises(ValueError, match=r"sparsity has shape \(60, 59\), but the Jacobian of 60 outputs by 60 inputs"):
        least_squares(chain, np.full(N, 0.5), jac_sparsity=CHAIN[:, 1:])


def test_a_sparse_jacobian_in_float32():
    x0 = {"x": tg.full((N,), 0.5)}
    found = least_squares(lambda p: chain(p["x"].double()).float(), x0, jac_sparsity=CHAIN, xtol=1e-4, ftol=1e-4)
    assert found.x["x"].dtype is tg.float32
    expected = scipy.optimize.least_squares(chain_by_hand, np.full(N, 0.5), chain_jacobian)
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-2)


# grad modes and errors


@pytest.mark.parametrize("mode", [tg.no_grad, tg.inference_mode])
@pytest.mark.parametrize("sparsity", [None, CHAIN])
def test_grad_modes_of_the_caller_change_nothing(mode, sparsity):
    expected = least_squares(chain, np.full(N, 0.5), jac_sparsity=sparsity).x.tolist()
    with mode():
        assert least_squares(chain, np.full(N, 0.5), jac_sparsity=sparsity).x.tolist() == expected
        assert root(system, START).success
        assert curve_fit(curve, T, Y)[0][0] == pytest.approx(2, rel=0.1)


def test_trial_points_outside_the_domain_are_drawn_back_from():
    f = lambda x: x.log() - 1
    for method in ("trf", "dogbox"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = least_squares(f, [9.0], method=method)
        assert found.x[0] == pytest.approx(np.e)
    with pytest.raises(ValueError, match=r"f returned nan in element 0 of its result at x = \[-"):
        least_squares(f, [9.0], method="lm")
    with pytest.raises(ValueError, match=r"f returned nan in element 1 of its result at x = \[ 9\. -9\.\]"):
        least_squares(f, [9.0, -9.0])


def test_a_nan_in_the_jacobian_is_named():
    f = lambda p: tg.stack([p["a"].sum(), ((p["a"] ** 2).sum().sqrt() * 0)])
    for sparsity in (None, np.ones((2, 2))):
        with pytest.raises(
            ValueError, match=r"the derivative of element \d of f with respect to x0\['a'\]\[0\] is nan"
        ):
            least_squares(f, {"a": np.zeros(2)}, jac_sparsity=sparsity)


SOLVERS = [
    (root, {"method": "hybr"}),
    (root, {"method": "lm"}),
    (least_squares, {"method": "trf"}),
    (least_squares, {"method": "dogbox"}),
    (least_squares, {"method": "lm"}),
]


@pytest.mark.parametrize(("solver", "options"), SOLVERS)
def test_results_cut_off_from_the_unknowns(solver, options):
    with pytest.raises(TypeError, match="f must return a Tensor computed from the unknowns, but returned ndarray"):
        solver(lambda x: x.detach().numpy(), START, **options)
    with pytest.raises(TypeError, match=r"but returned float at \[1\]: keep"):
        solver(lambda x: [x[0], x[1].item()], START, **options)
    with pytest.raises(TypeError, match="but returned NoneType"):
        solver(lambda x: None, START, **options)
    with pytest.raises(RuntimeError, match="f returned a tensor that is cut off from the unknowns"):
        solver(lambda x: x.detach() * 2, START, **options)


@pytest.mark.parametrize(("solver", "options"), [*SOLVERS, (root, {"method": "krylov"})])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_exceptions_pass(solver, options, at):
    count = iter(range(1, 1000))

    def f(x):
        if next(count) == at:
            raise Mine("stopped")
        return system(x)

    with pytest.raises(Mine, match="stopped"):
        solver(f, np.array([0.5, 0.5]), **options)


def test_residuals_that_do_not_depend_on_the_unknowns():
    found = least_squares(lambda x: tg.ones(3), START)
    assert found.x.tolist() == START.tolist()
    assert found.jac.tolist() == np.zeros((3, 2)).tolist()


# curves


def curve(t, a, k, c):
    return a * tg.exp(-k * t) + c


def curve_by_hand(t, a, k, c):
    return a * np.exp(-k * t) + c


def curve_jacobian(t, a, k, c):
    return decay_jacobian([a, k, c])


SIGMA = 0.1 + 0.01 * T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"p0": GUESS},
        {"p0": [1.0, 2.0, 3.0], "method": "trf"},
        {"method": "dogbox"},
        {"sigma": SIGMA},
        {"sigma": SIGMA, "absolute_sigma": True},
        {"sigma": np.diag(SIGMA) + 0.01, "absolute_sigma": True},
        {"sigma": 0.1},
        {"bounds": ([0, 0, 0], [3, np.inf, 0.4])},
        {"bounds": (-1, 1.5)},
        {"bounds": (0, np.inf), "p0": GUESS + 0.1, "loss": "cauchy", "f_scale": 0.1},
        {"maxfev": 60},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_curves(options):
    popt, pcov = curve_fit(curve, T, Y, **options)
    if isinstance(options.get("sigma"), float):  # which SciPy takes only without a Jacobian
        options = options | {"sigma": np.full(T.shape, options["sigma"])}
    expected, covariance = scipy.optimize.curve_fit(curve_by_hand, T, Y, jac=curve_jacobian, **options)
    np.testing.assert_allclose(popt, expected, rtol=1e-6)
    np.testing.assert_allclose(pcov, covariance, rtol=1e-4)


def test_all_that_scipy_returns():
    _, _, info, message, code = curve_fit(curve, T, Y, full_output=True)
    assert info["fvec"].shape == T.shape
    assert isinstance(message, str)
    assert code in (1, 2, 3, 4)


@pytest.mark.parametrize("kind", ["lists", "tensors", "float32"])
def test_data_of_any_kind(kind):
    seen = []

    def f(t, a, k, c):
        seen.append(t)
        return curve(t, a, k, c)

    x, y = {"lists": (T.tolist(), Y.tolist()), "tensors": (TT, YT), "float32": (TT.float(), Y.astype("f4"))}[kind]
    popt, _ = curve_fit(f, x, y, sigma=tg.from_numpy(SIGMA) if kind == "tensors" else None)
    assert all(isinstance(t, tg.Tensor) and t.dtype is F64 for t in seen)
    np.testing.assert_allclose(popt, TRUE, atol=0.1)


def test_two_independent_variables():
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 20))
    for data in ((u, v), np.stack([u, v]), (tg.from_numpy(u), tg.from_numpy(v))):
        popt, _ = curve_fit(lambda xy, a, b: a * xy[0] + b * xy[1] ** 2, data, 2 * u - 3 * v**2)
        np.testing.assert_allclose(popt, [2, -3], rtol=1e-8)
    popt, _ = curve_fit(lambda d, a, b: a * d["u"] + b, {"u": tg.from_numpy(u)}, 2 * u - 3)
    np.testing.assert_allclose(popt, [2, -3], rtol=1e-8)


def test_parameters_in_a_structure():
    expected, covariance = curve_fit(curve, T, Y, GUESS)
    popt, pcov = curve_fit(curve, T, Y, {"c": 0.0, "a": tg.tensor(1.0, dtype=F64), "k": 1.0})
    assert list(popt) == ["c", "a", "k"]
    np.testing.assert_allclose([popt["a"].item(), popt["k"], popt["c"]], expected, rtol=1e-6)
    np.testing.assert_allclose(pcov, covariance[np.ix_([2, 0, 1], [2, 0, 1])], rtol=1e-4)
    popt, _ = curve_fit(lambda t, ak, c: curve(t, ak[0], ak[1], c), T, Y, (np.ones(2), 0.0))
    np.testing.assert_allclose([*popt[0], popt[1]], expected, rtol=1e-6)
    popt, _ = curve_fit(lambda t, p: curve(t, p[0, 0], p[0, 1], p[0, 2]), T, Y, tg.from_numpy(GUESS).reshape(1, 3))
    np.testing.assert_allclose(popt.numpy(), expected[None], rtol=1e-6)
    popt, _ = curve_fit(lambda t, a: a * t, T, 3 * T, 1.0)
    assert popt == pytest.approx(3)
    bounds = {"a": (0, 1.5), "k": None, "c": None}
    popt, _ = curve_fit(curve, T, Y, {"a": 1.0, "k": 1.0, "c": 0.0}, bounds=bounds)
    assert popt["a"] == pytest.approx(1.5, rel=1e-3)


def test_missing_data():
    y = Y.copy()
    y[[3, 7]] = np.nan
    with pytest.raises(ValueError, match="must not contain infs or NaNs"):
        curve_fit(curve, T, y)
    popt, pcov = curve_fit(curve, T, y, nan_policy="omit")
    keep = ~np.isnan(y)
    expected, covariance = curve_fit(curve, T[keep], y[keep])
    np.testing.assert_allclose(popt, expected, rtol=1e-10)
    np.testing.assert_allclose(pcov, covariance, rtol=1e-8)


def test_curves_that_do_not_fit_the_data():
    with pytest.raises(ValueError, match="f returned 1 numbers for 30 data: for a constant, multiply by"):
        curve_fit(lambda t, a: a, T, Y)
    popt, _ = curve_fit(lambda t, a: a * tg.ones_like(t), T, Y)
    assert popt[0] == pytest.approx(Y.mean())
    with pytest.raises(ValueError, match="the signature of f does not tell how many parameters it has: give p0"):
        curve_fit(lambda t, *p: p[0] * t, T, Y)
    with pytest.raises(TypeError, match="curve_fit\\(\\) takes no 'jac'"):
        curve_fit(curve, T, Y, jac=curve_jacobian)
    with pytest.raises(TypeError, match="f must return a Tensor"):
        curve_fit(lambda t, a: t.numpy(), T, Y)
    with pytest.raises(RuntimeError, match="Optimal parameters not found"):
        curve_fit(curve, T, Y, maxfev=2)


def test_a_covariance_that_cannot_be_estimated():
    with pytest.warns(OptimizeWarning, match="Covariance of the parameters could not be estimated"):
        _, pcov = curve_fit(lambda t, a, b: a * t, T, Y)
    assert np.isinf(pcov).all()
