"""nn.functional: softmax, losses and activations against NumPy and PyTorch."""

import numpy as np
import pytest

import tapegrad as tg
import tapegrad.nn.functional as F

# PyTorch warns of what its own mean of kl_div means
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RNG = np.random.default_rng(0)
LOSSES = ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits"]
REDUCTIONS = ["mean", "sum", "none"]


def compare(function, *arrays, tolerance=1e-10, names=True):
    """One function of the two modules on the same arrays: value, gradients and the name of its node."""
    torch = pytest.importorskip("torch")
    import torch.nn.functional as TF

    ours = [tg.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    theirs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    found, expected = function(F, *ours), function(TF, *theirs)
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    assert found.shape == tuple(expected.shape)
    if names:
        assert found.grad_fn.name() == expected.grad_fn.name()
    g = np.random.default_rng(1).normal(size=tuple(expected.shape)).astype(arrays[0].dtype)
    found.backward(tg.tensor(g))
    expected.backward(torch.tensor(g))
    for x, y in zip(ours, theirs, strict=True):
        if y.grad is not None:
            np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=tolerance, atol=tolerance)


def test_softmax_matches_numpy():
    a = RNG.normal(size=(3, 70, 5))
    for dim in (0, 1, 2):
        e = np.exp(a - a.max(axis=dim, keepdims=True))
        expected = e / e.sum(axis=dim, keepdims=True)
        np.testing.assert_allclose(F.softmax(tg.tensor(a), dim).numpy(), expected, rtol=1e-13)
        np.testing.assert_allclose(F.log_softmax(tg.tensor(a), dim).numpy(), np.log(expected), rtol=1e-11)


@pytest.mark.parametrize("shape", [(), (4,), (3, 5), (2, 40, 150)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
def test_softmax_matches_pytorch(name, shape):
    a = np.asarray(RNG.normal(size=shape))
    for dim in range(max(len(shape), 1)):
        compare(lambda f, x, dim=dim: getattr(f, name)(x, dim), a)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(4,), (3, 5), (300, 70), (2, 3, 4), (2, 40, 150), (2, 3, 4, 5)], ids=str)
def test_class_losses_match_pytorch(shape, reduction):
    a = RNG.normal(size=shape)
    classes = shape[0] if len(shape) == 1 else shape[1]
    t = np.asarray(RNG.integers(0, classes, () if len(shape) == 1 else (shape[0], *shape[2:])))
    weight = RNG.uniform(0.5, 1.5, classes)
    names = len(shape) != 3 or reduction != "none"
    compare(lambda f, x, t: f.cross_entropy(x, t, reduction=reduction), a, t, names=names)
    compare(lambda f, x, t: f.nll_loss(x, t, ignore_index=1, reduction=reduction), a, t, names=names)

    def weighted(f, x, t, w, smoothing=0.0):
        return f.cross_entropy(x, t, weight=w.detach(), ignore_index=1, reduction=reduction, label_smoothing=smoothing)

    compare(weighted, a, t, weight, names=names)
    compare(lambda f, x, t, w: weighted(f, x, t, w, 0.1), a, t, weight, names=False)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 4, 3)], ids=str)
def test_classes_that_are_all_ignored(shape, reduction, smoothing):
    a, t = RNG.normal(size=shape), np.ones(() if len(shape) == 1 else (shape[0], *shape[2:]), np.int64)

    def loss(f, x, t):
        return f.cross_entropy(x, t, ignore_index=1, reduction=reduction, label_smoothing=smoothing)

    compare(loss, a, t, names=False)
    x, y = tg.tensor(a, requires_grad=True), tg.tensor(t)
    (slope,) = tg.autograd.grad(loss(F, x, y).sum(), x, create_graph=True)
    assert np.array_equal(slope.detach().numpy(), np.zeros(shape))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_probabilities_match_pytorch(reduction):
    a, p = RNG.normal(size=(3, 4)), RNG.uniform(size=(3, 4))
    compare(lambda f, x, p: f.cross_entropy(x, p, reduction=reduction), a, p, names=False)
    compare(lambda f, x, p: f.cross_entropy(x, p, reduction=reduction, label_smoothing=0.2), a, p, names=False)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (100, 100)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_match_pytorch(name, shape, reduction):
    a, b = np.asarray(RNG.normal(size=shape)), np.asarray(RNG.normal(size=shape))
    compare(lambda f, x, y: getattr(f, name)(x, y, reduction=reduction), a, b)
    single = (a.astype(np.float32), b.astype(np.float32))
    compare(lambda f, x, y: getattr(f, name)(x, y, reduction=reduction), *single, tolerance=1e-4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss", "binary_cross_entropy"])
def test_weighted_losses_match_pytorch(name, reduction):
    a, b, w = RNG.uniform(size=(3, 4)), RNG.uniform(size=(3, 4)), RNG.uniform(size=(3, 4))
    weights = [w, w[0], w[:, :1]] if name == "binary_cross_entropy" else [w]
    for weight in weights:
        compare(
            lambda f, x, y, w: getattr(f, name)(x, y, weight=w.detach(), reduction=reduction), a, b, weight, names=False
        )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_cross_entropy_matches_pytorch(reduction):
    a, b, w = RNG.uniform(size=(3, 4)), RNG.uniform(size=(3, 4)), RNG.uniform(size=(3, 4))
    compare(lambda f, x, y: f.binary_cross_entropy(x, y, reduction=reduction), a, b)
    compare(
        lambda f, x, y, w: f.binary_cross_entropy_with_logits(
            x, y, weight=w.detach(), pos_weight=w.detach(), reduction=reduction
        ),
        a,
        b,
        w,
        names=False,
    )


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", [*REDUCTIONS, "batchmean"])
def test_kl_div_matches_pytorch(reduction, log_target):
    a, b = RNG.normal(size=(3, 4)), RNG.uniform(size=(3, 4))
    compare(lambda f, x, y: f.kl_div(x, y, reduction=reduction, log_target=log_target), a, b)


ACTIVATIONS = {
    "relu": {},
    "softplus": {"beta": 2, "threshold": 1},
    "gelu": {"approximate": "tanh"},
    "silu": {},
    "elu": {"alpha": 0.5},
    "celu": {"alpha": 0.5},
    "leaky_relu": {"negative_slope": 0.3},
    "selu": {},
    "hardtanh": {"min_val": -0.1, "max_val": 0.2},
    "relu6": {},
    "softsign": {},
    "mish": {},
    "logsigmoid": {},
    "normalize": {"dim": 0},
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_match_pytorch(name):
    a = RNG.normal(size=(3, 4)) * 3
    compare(lambda f, x: getattr(f, name)(x, **ACTIVATIONS[name]), a)


def test_pad_cosine_linear_match_pytorch():
    a, b = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4))
    compare(lambda f, x: f.pad(x, (1, 2, 0, 3), value=2), a)
    compare(lambda f, x: f.pad(x, (-1, 2)), a)
    compare(lambda f, x, y: f.cosine_similarity(x, y), a, b)
    compare(lambda f, x, w: f.linear(x, w), a, b, names=False)


def test_dropout_scales_what_it_keeps():
    x = tg.ones(10_000, requires_grad=True)
    y = F.dropout(x, 0.25)
    values = np.unique(y.detach().numpy())
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    assert abs(float(y.mean()) - 1) < 0.05
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())
    assert F.dropout(x, 0.5, training=False) is x
    assert float(F.dropout(x, 1.0).sum()) == 0


def test_one_hot():
    assert F.one_hot(tg.tensor([0, 2])).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert F.one_hot(tg.tensor([[1]]), 3).shape == (1, 1, 3)


def test_extreme_logits_stay_finite():
    x = tg.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    loss = F.cross_entropy(x, tg.tensor([1]))
    loss.backward()
    assert loss.item() == 2000
    assert x.grad.tolist() == [[1, -1, 0]]


def long(*values):
    return tg.tensor(list(values))


@pytest.mark.parametrize(
    ("expression", "error", "message"),
    [
        (lambda x: F.cross_entropy(x, long(0, 1, 5)), IndexError, "Target 5 is out of bounds."),
        (lambda x: F.nll_loss(x, long(0, -1, 1)), IndexError, "Target -1 is out of bounds."),
        (
            lambda x: F.cross_entropy(x, long(0, 1)),
            ValueError,
            "Expected input batch_size (3) to match target batch_size (2).",
        ),
        (
            lambda x: F.cross_entropy(x, long(0, 1, 2).int()),
            RuntimeError,
            "expected target dtype to be Long or Byte, but got Int",
        ),
        (lambda x: F.mse_loss(x, x, reduction="foo"), ValueError, "foo is not a valid value for reduction"),
        *(
            (lambda x, f=f: f(x, x, weight=x[0]), ValueError, "Weights and input must have the same size.")
            for f in (F.mse_loss, F.l1_loss, F.huber_loss)
        ),
        *(
            (
                lambda x, f=f: f(x, x, weight=tg.ones(2, 3, 4)),
                RuntimeError,
                "output with shape [3, 4] doesn't match the broadcast shape [2, 3, 4]",
            )
            for f in (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)
        ),
        (
            lambda x: F.binary_cross_entropy(x + 2, x),
            RuntimeError,
            "all elements of input should be between 0 and 1",
        ),
        (
            lambda x: F.dropout(x, 1.5),
            ValueError,
            "dropout probability has to be between 0 and 1, but got 1.5",
        ),
        (
            lambda x: F.one_hot(long(0, 5), 3),
            RuntimeError,
            "Class values must be smaller than num_classes.",
        ),
        (lambda x: F.pad(x, (1,)), RuntimeError, "Padding length must be divisible by 2"),
        (lambda x: F.hardtanh(x, 2, 1), ValueError, "min_val cannot be greater than max_val"),
    ],
)
def test_errors(expression, error, message):
    x = tg.zeros(3, 4, requires_grad=True)
    with pytest.raises(error) as caught:
        expression(x)
    assert str(caught.value) == message
