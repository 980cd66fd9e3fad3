"""Reductions, extremes, scans and norms: values, gradients, dtypes, edges and errors."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.ops import extremes, norms, reduction, scan
from tapegrad.ops._rule import PUBLIC

# PyTorch warns where a variance has no degrees of freedom
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPES = [(), (5,), (3, 4), (2, 3, 4), (0, 3), (3, 0), (40, 300)]
FOLDS = [
    "sum",
    "mean",
    "prod",
    "var",
    "std",
    "amax",
    "amin",
    "nansum",
    "nanmean",
    "norm",
    "logsumexp",
    "all",
    "any",
    "count_nonzero",
]
PICKS = ["max", "min", "argmax", "argmin", "median"]
SCANS = ["cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"]


def call(name, x, *args, **kwargs):
    return PUBLIC[name](x, *args, **kwargs)


def test_full_reductions_match_numpy():
    a = np.random.default_rng(0).normal(size=(37, 53))
    x = tg.from_numpy(a)
    pairs = {
        "sum": a.sum(),
        "mean": a.mean(),
        "var": a.var(ddof=1),
        "std": a.std(ddof=1),
        "amax": a.max(),
        "amin": a.min(),
        "norm": np.sqrt((a * a).sum()),
        "argmax": a.argmax(),
        "argmin": a.argmin(),
        "median": np.sort(a.ravel())[(a.size - 1) // 2],
    }
    for name, expected in pairs.items():
        np.testing.assert_allclose(call(name, x).numpy(), expected, rtol=1e-12)


def test_chunked_reduction_equals_numpy_and_repeats_bit_by_bit():
    a = np.random.default_rng(1).normal(size=200_003)
    x = tg.from_numpy(a)
    for name, expected in (
        ("sum", a.sum()),
        ("var", a.var(ddof=1)),
        ("amax", a.max()),
        ("argmax", a.argmax()),
    ):
        first = call(name, x).numpy()
        np.testing.assert_allclose(first, expected, rtol=1e-11, atol=1e-11)
        np.testing.assert_array_equal(first, call(name, x).numpy())


def test_float32_sums_are_kept_in_float64():
    x = tg.ones(1 << 22, dtype=tg.float32) * 0.1
    assert float(x.sum()) == np.float32(np.float64(np.float32(0.1)) * (1 << 22))


@pytest.mark.parametrize("shape", [(3, 4, 5)])
def test_any_layout_gives_the_same(shape):
    a = np.random.default_rng(2).normal(size=shape)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)):
        x = tg.from_numpy(np.ascontiguousarray(a.transpose(order)))
        back = tuple(np.argsort(order))
        for dim in (0, 1, (0, 2), (1, 2), None):
            y = x.permute(back)
            np.testing.assert_allclose(y.sum(dim).numpy(), a.sum(axis=dim), rtol=1e-12)
            np.testing.assert_allclose(y.var(dim).numpy(), a.var(axis=dim, ddof=1), rtol=1e-12)
        assert int(y.argmax()) == a.argmax()


def test_prod_gradient_with_zeros():
    for values, expected in (([2.0, 3, 4], [12, 8, 6]), ([2.0, 0, 4], [0, 8, 0]), ([0.0, 0, 4], [0, 0, 0])):
        x = tg.tensor(values, requires_grad=True)
        x.prod().backward()
        assert x.grad.tolist() == expected


def test_cumprod_gradient_with_zeros():
    x = tg.tensor([2.0, 0.0, 3.0, 0.0, 5.0], dtype=tg.float64, requires_grad=True)
    x.cumprod(0).sum().backward()
    assert x.grad.tolist() == [1.0, 8.0, 0.0, 0.0, 0.0]


def test_ties_share_or_choose():
    x = tg.tensor([1.0, 3.0, 3.0], requires_grad=True)
    x.amax().backward()
    assert x.grad.tolist() == [0, 0.5, 0.5]
    x.grad = None
    x.max(0).values.backward()
    assert x.grad.tolist() == [0, 1, 0]


def test_nan_wins():
    x = tg.tensor([[1.0, float("nan"), 3.0], [1.0, 2.0, 3.0]])
    assert np.isnan(x.amax(1).numpy()).tolist() == [True, False]
    assert x.argmax(1).tolist() == [1, 2]
    assert x.max(1).indices.tolist() == [1, 2]


def test_zero_safe_gradients():
    for function in (tg.Tensor.norm, tg.Tensor.std):
        x = tg.zeros(3, requires_grad=True)
        function(x).backward()
        assert x.grad.tolist() == [0, 0, 0]


def test_pairs_print_their_fields():
    assert repr(tg.tensor([1.0, 2.0]).max(0)) == ("tapegrad.return_types.max(\nvalues=tensor(2.),\nindices=tensor(1))")


@pytest.mark.parametrize(
    ("expression", "error", "message"),
    [
        (
            lambda x: x.sum(2),
            IndexError,
            "Dimension out of range (expected to be in range of [-2, 1], but got 2)",
        ),
        (lambda x: x.sum((0, -2)), RuntimeError, "dim 0 appears multiple times in the list of dims"),
        (
            lambda x: x.long().mean(),
            RuntimeError,
            "mean(): could not infer output dtype. Input dtype must be either a floating point or complex "
            "dtype. Got: Long",
        ),
        (
            lambda x: x.long().var(),
            RuntimeError,
            "std and var only support floating point and complex dtypes",
        ),
        (
            lambda x: tg.zeros(0).max(),
            RuntimeError,
            "max(): Expected reduction dim to be specified for input.numel() == 0. "
            "Specify the reduction dim with the 'dim' argument.",
        ),
        (
            lambda x: tg.zeros(0, 3).amax(0),
            IndexError,
            "amax(): Expected reduction dim 0 to have non-zero size.",
        ),
        (lambda x: tg.tensor([True]).argmax(), RuntimeError, "argmax(): does not support bool input"),
    ],
)
def test_errors(expression, error, message):
    with pytest.raises(error) as caught:
        expression(tg.zeros(2, 3))
    assert str(caught.value) == message


def assert_same(ours, theirs, tolerance=1e-10):
    ours = ours if isinstance(ours, tuple) else (ours,)
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    for a, b in zip(ours, theirs, strict=True):
        assert tuple(a.shape) == tuple(b.shape)
        assert str(a.dtype).split(".")[1] == str(b.dtype).split(".")[1]
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=tolerance, atol=tolerance)
        assert (a.grad_fn and a.grad_fn.name()) == (b.grad_fn and b.grad_fn.name())


@pytest.mark.parametrize("name", FOLDS + PICKS + SCANS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_pytorch(name, shape):
    torch = pytest.importorskip("torch")
    a = np.asarray(np.random.default_rng(3).normal(size=shape))
    calls = [] if name in SCANS or name == "logsumexp" else [{}]
    key = {"p": 2} if name == "norm" else {}
    calls += [{**key, "dim": d} for d in range(max(a.ndim, 1))]
    if name not in (*SCANS, "count_nonzero") and a.ndim:
        calls.append({**key, "dim": -1, "keepdim": True})
    for options in calls:
        x, y = tg.tensor(a, requires_grad=True), torch.tensor(a, requires_grad=True)
        try:
            expected = getattr(torch, name)(y, **options)
        except (RuntimeError, IndexError) as error:
            with pytest.raises(type(error)):
                call(name, x, **options)
            continue
        if name == "median" and not a.size:
            continue
        found = call(name, x, **options)
        assert_same(found, expected)
        first, wanted = (r[0] if isinstance(r, tuple) else r for r in (found, expected))
        if wanted.grad_fn is None:
            continue
        g = np.random.default_rng(4).normal(size=tuple(wanted.shape))
        first.backward(tg.tensor(g))
        wanted.backward(torch.tensor(g))
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, bool])
@pytest.mark.parametrize(
    "name",
    [
        "sum",
        "prod",
        "amax",
        "amin",
        "max",
        "min",
        "all",
        "any",
        "cumsum",
        "cumprod",
        "cummax",
        "count_nonzero",
    ],
)
def test_integers_match_pytorch(name, dtype):
    torch = pytest.importorskip("torch")
    a = np.random.default_rng(5).integers(0, 4, (4, 5)).astype(dtype)
    calls = [(0,), (1,)] if name in SCANS else [(), (0,), (1,)]
    for args in calls:
        assert_same(call(name, tg.tensor(a), *args), getattr(torch, name)(torch.tensor(a), *args))


@pytest.mark.parametrize("p", [0, 1, 2, 3, 0.5, 1.5, -1, float("inf"), -float("inf"), "fro"])
def test_norms_match_pytorch(p):
    torch = pytest.importorskip("torch")
    a = np.random.default_rng(6).normal(size=(3, 4))
    a[1, 2] = 0
    for dim in (None, 0, (0, 1)):
        x, y = tg.tensor(a, requires_grad=True), torch.tensor(a, requires_grad=True)
        found, expected = tg.norm(x, p, dim), torch.norm(y, p, dim)
        assert_same(found, expected)
        if p == 0:
            continue
        found.sum().backward()
        expected.sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_modules_declare_what_is_public():
    for module in (reduction, extremes, scan, norms):
        assert module.__doc__
    assert all(name in PUBLIC for name in [*FOLDS, *PICKS, *SCANS, "aminmax", "var_mean", "std_mean"])


@pytest.mark.parametrize("name", ["prod", "var", "std", "amax", "max", "median"])
def test_gradient_is_right_after_a_call_without_one(name):
    a = np.random.default_rng(7).normal(size=(3, 4))
    call(name, tg.tensor(a))
    x, y = tg.tensor(a, requires_grad=True), tg.tensor(a.T.copy(), requires_grad=True)
    call(name, x).backward()
    call(name, y.t()).backward()
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy().T, rtol=1e-12)
    assert np.abs(x.grad.numpy()).max() > 0
