"""Optimisers against the published formulas in NumPy, and against PyTorch where it is installed."""

import copy

import numpy as np
import pytest

import tapegrad as tg

STEPS = 12

# Least squares in two parameters of different shapes: loss = |A w + c b - t|^2 / 2.
A = np.random.default_rng(0).normal(size=(6, 4))
C = np.random.default_rng(1).normal(size=6)
T = np.random.default_rng(2).normal(size=6)
W0 = np.random.default_rng(3).normal(size=4)
B0 = np.array(0.3)

SGD_OPTIONS = [
    {"lr": 0.01},
    {"lr": 0.01, "weight_decay": 0.1},
    {"lr": 0.01, "momentum": 0.9},
    {"lr": 0.01, "momentum": 0.9, "dampening": 0.3},
    {"lr": 0.01, "momentum": 0.9, "nesterov": True},
    {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"lr": 0.01, "maximize": True},
    {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "maximize": True},
]
ADAM_OPTIONS = [
    {},
    {"lr": 0.05},
    {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3},
    {"lr": 0.05, "weight_decay": 0.1},
    {"lr": 0.05, "amsgrad": True},
    {"lr": 0.05, "betas": (0.2, 0.3), "amsgrad": True, "weight_decay": 0.1},
    {"lr": 0.05, "maximize": True},
    {"lr": 0.05, "weight_decay": 0.1, "maximize": True},
]
CASES = (
    [("SGD", options) for options in SGD_OPTIONS]
    + [("Adam", options) for options in ADAM_OPTIONS]
    + [("AdamW", options) for options in ADAM_OPTIONS]
)


def case_id(value):
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()) or "defaults"


all_cases = pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)


def gradients(w, b):
    residual = A @ w + C * b - T
    return A.T @ residual, C @ residual


def sgd_reference(p, g, s, lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
    d = (-g if maximize else g) + weight_decay * p
    if momentum:
        s["b"] = momentum * s["b"] + (1 - dampening) * d if "b" in s else d
        d = d + momentum * s["b"] if nesterov else s["b"]
    return p - lr * d


def adam_reference(
    p,
    g,
    s,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0,
    amsgrad=False,
    maximize=False,
    decoupled=False,
):
    g = -g if maximize else g
    if decoupled:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    s["t"] = s.get("t", 0) + 1
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g**2
    s["largest"] = np.maximum(s.get("largest", 0), s["v"])
    m_hat = s["m"] / (1 - betas[0] ** s["t"])
    v_hat = (s["largest"] if amsgrad else s["v"]) / (1 - betas[1] ** s["t"])
    return p - lr * m_hat / (np.sqrt(v_hat) + eps)


def adamw_reference(p, g, s, weight_decay=1e-2, **options):
    return adam_reference(p, g, s, weight_decay=weight_decay, decoupled=True, **options)


REFERENCES = {"SGD": sgd_reference, "Adam": adam_reference, "AdamW": adamw_reference}


def reference_trajectory(name, options):
    w, b = W0, B0
    w_state, b_state, path = {}, {}, []
    for _ in range(STEPS):
        w_grad, b_grad = gradients(w, b)
        w = REFERENCES[name](w, w_grad, w_state, **options)
        b = REFERENCES[name](b, b_grad, b_state, **options)
        path.append(np.append(w, b))
    return np.array(path)


def parameters(library, dtype="float64"):
    dtype = getattr(library, dtype)
    return (
        library.tensor(W0, dtype=dtype, requires_grad=True),
        library.tensor(B0, dtype=dtype, requires_grad=True),
    )


def one_step(library, optimizer, w, b):
    a, c, t = (library.tensor(x, dtype=w.dtype) for x in (A, C, T))
    optimizer.zero_grad()
    residual = library.matmul(a, w) + c * b - t
    loss = (residual * residual).sum() / 2
    loss.backward()
    optimizer.step()
    return np.append(w.detach().numpy(), b.detach().numpy())


def trajectory(library, name, options, dtype="float64", steps=STEPS):
    w, b = parameters(library, dtype)
    optimizer = getattr(library.optim, name)([w, b], **options)
    return np.array([one_step(library, optimizer, w, b) for _ in range(steps)])


@all_cases
def test_trajectory_follows_the_published_formula(name, options):
    expected = reference_trajectory(name, options)
    np.testing.assert_allclose(trajectory(tg, name, options), expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(trajectory(tg, name, options, "float32"), expected, rtol=2e-4, atol=2e-5)


@all_cases
def test_trajectory_equals_pytorch(name, options):
    torch = pytest.importorskip("torch")
    for dtype, rtol in (("float64", 1e-12), ("float32", 2e-5)):
        expected = trajectory(torch, name, options, dtype)
        np.testing.assert_allclose(trajectory(tg, name, options, dtype), expected, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_defaults_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    ours = getattr(tg.optim, name)(parameters(tg)).defaults
    theirs = getattr(torch.optim, name)(parameters(torch)).defaults
    assert ours == {option: theirs[option] for option in ours}
    assert set(theirs) - set(ours) <= {"foreach", "capturable", "differentiable", "fused"}


@all_cases
def test_saved_state_resumes_the_same_trajectory(name, options):
    whole = trajectory(tg, name, options)
    w, b = parameters(tg)
    optimizer = getattr(tg.optim, name)([w, b], **options)
    for _ in range(STEPS // 2):
        one_step(tg, optimizer, w, b)

    saved = optimizer.state_dict()
    w2 = w.detach().clone().requires_grad_()
    b2 = b.detach().clone().requires_grad_()
    resumed = getattr(tg.optim, name)([w2, b2], lr=123.0)
    resumed.load_state_dict(saved)
    one_step(tg, optimizer, w, b)  # must not touch what was loaded
    path = [one_step(tg, resumed, w2, b2) for _ in range(STEPS - STEPS // 2)]
    assert np.array_equal(np.array(path), whole[STEPS // 2 :])


def test_state_dict_is_made_of_positions_and_options():
    w, b = parameters(tg)
    optimizer = tg.optim.Adam([{"params": [w]}, {"params": b, "lr": 0.5}], lr=0.1)
    one_step(tg, optimizer, w, b)
    saved = optimizer.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1]]
    assert [group["lr"] for group in saved["param_groups"]] == [0.1, 0.5]
    assert sorted(saved["state"]) == [0, 1]
    assert set(saved["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert saved["state"][0]["step"] == 1


def test_loading_takes_the_dtype_of_the_parameters():
    w, b = parameters(tg)
    optimizer = tg.optim.SGD([w, b], momentum=0.9)
    one_step(tg, optimizer, w, b)
    w2, b2 = parameters(tg, "float32")
    resumed = tg.optim.SGD([w2, b2], momentum=0.9)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state[w2]["momentum_buffer"].dtype == tg.float32
    one_step(tg, resumed, w2, b2)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (1, "loaded state dict has a different number of parameter groups"),
        (
            2,
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group",
        ),
    ],
)
def test_loading_another_shape_of_groups_is_refused(groups, message):
    w, b = parameters(tg)
    saved = tg.optim.SGD([{"params": [w]}, {"params": [b]}]).state_dict()
    w, b = parameters(tg)
    other = tg.optim.SGD([w, b]) if groups == 1 else tg.optim.SGD([{"params": [w, b]}, {"params": [tg.ones(1)]}])
    before = copy.copy(other.param_groups)
    with pytest.raises(ValueError) as error:
        other.load_state_dict(saved)
    assert str(error.value) == message
    assert other.param_groups == before


def test_groups_have_their_own_options():
    w, b = parameters(tg)
    optimizer = tg.optim.SGD([{"params": [w]}, {"params": b, "lr": 0.02, "momentum": 0.9}], lr=0.01)
    path = np.array([one_step(tg, optimizer, w, b) for _ in range(3)])

    w_expected, b_expected, state = W0, B0, {}
    for row in path:
        w_grad, b_grad = gradients(w_expected, b_expected)
        w_expected = sgd_reference(w_expected, w_grad, {}, lr=0.01)
        b_expected = sgd_reference(b_expected, b_grad, state, lr=0.02, momentum=0.9)
        np.testing.assert_allclose(row, np.append(w_expected, b_expected), rtol=1e-12)


def test_a_group_added_later_is_optimised_with_the_defaults():
    w, b = parameters(tg)
    optimizer = tg.optim.SGD([w], lr=0.01)
    assert one_step(tg, optimizer, w, b)[-1] == B0
    b.grad = None
    optimizer.add_param_group({"params": b})
    assert optimizer.param_groups[1]["lr"] == 0.01
    assert one_step(tg, optimizer, w, b)[-1] != B0


def test_options_changed_between_steps_count():
    w, b = parameters(tg)
    optimizer = tg.optim.SGD([w, b], lr=0.01)
    first = one_step(tg, optimizer, w, b)
    optimizer.param_groups[0]["lr"] = 0.0
    assert np.array_equal(one_step(tg, optimizer, w, b), first)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_learning_rate_may_be_a_tensor_of_one_element(name):
    expected = trajectory(tg, name, {"lr": 0.25}, steps=3)
    assert np.array_equal(trajectory(tg, name, {"lr": tg.tensor(0.25)}, steps=3), expected)


def test_parameters_without_gradient_are_left_alone():
    w, b = parameters(tg)
    for optimizer in (
        tg.optim.SGD([w, b], weight_decay=0.1, momentum=0.9),
        tg.optim.AdamW([w, b], weight_decay=0.1),
    ):
        optimizer.step()
        assert np.array_equal(w.detach().numpy(), W0)
        assert not optimizer.state_dict()["state"]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_step_records_nothing(name):
    w, b = parameters(tg)
    optimizer = getattr(tg.optim, name)([w, b])
    one_step(tg, optimizer, w, b)
    assert w.is_leaf
    assert w.requires_grad
    assert w.grad_fn is None
    for state in optimizer.state.values():
        assert not any(value.requires_grad for value in state.values() if isinstance(value, tg.Tensor))


def test_zero_grad():
    w, b = parameters(tg)
    optimizer = tg.optim.SGD([w, b])
    optimizer.zero_grad(set_to_none=False)
    assert w.grad is None
    (w.sum() * b).backward()
    kept = w.grad
    optimizer.zero_grad(set_to_none=False)
    assert w.grad is kept or np.shares_memory(w.grad.numpy(), kept.numpy())
    assert w.grad.tolist() == [0, 0, 0, 0]
    optimizer.zero_grad()
    assert w.grad is None
    assert b.grad is None


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    w, b = parameters(tg)
    optimizer = tg.optim.SGD([w, b], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (w * w).sum() + b * b
        loss.backward()
        return loss

    with tg.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(W0 @ W0 + B0**2)
    assert w.tolist() == pytest.approx([0, 0, 0, 0])
    assert optimizer.step() is None


def test_parameters_may_come_from_a_generator():
    optimizer = tg.optim.SGD(p for p in parameters(tg))
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_repr():
    optimizer = tg.optim.SGD([{"params": parameters(tg)}, {"params": tg.ones(1), "lr": 2}], lr=1)
    assert repr(optimizer) == (
        "SGD (\n"
        "Parameter Group 0\n"
        "    dampening: 0\n    lr: 1\n    maximize: False\n"
        "    momentum: 0\n    nesterov: False\n    weight_decay: 0\n"
        "\n"
        "Parameter Group 1\n"
        "    dampening: 0\n    lr: 2\n    maximize: False\n"
        "    momentum: 0\n    nesterov: False\n    weight_decay: 0\n"
        ")"
    )


BAD_OPTIONS = [
    ("SGD", {"lr": -0.1}, "Invalid learning rate: -0.1"),
    ("SGD", {"momentum": -1}, "Invalid momentum value: -1"),
    ("SGD", {"weight_decay": -1}, "Invalid weight_decay value: -1"),
    ("SGD", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
    (
        "SGD",
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        "Nesterov momentum requires a momentum and zero dampening",
    ),
    ("Adam", {"lr": -0.1}, "Invalid learning rate: -0.1"),
    ("Adam", {"lr": float("nan")}, "Invalid learning rate: nan"),
    ("Adam", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
    ("Adam", {"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
    ("Adam", {"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
    ("AdamW", {"weight_decay": -1}, "Invalid weight_decay value: -1"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError) as error:
        getattr(tg.optim, name)(parameters(tg), **options)
    assert str(error.value) == message


@pytest.mark.parametrize(("name", "options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_as_pytorch_does(name, options, message):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError) as error:
        getattr(torch.optim, name)(parameters(torch), **options)
    assert str(error.value) == message


def test_a_learning_rate_of_several_elements_is_refused():
    with pytest.raises(ValueError, match=r"^Tensor lr must be 1-element$"):
        tg.optim.SGD(parameters(tg), lr=tg.tensor([0.1, 0.2]))


def non_leaf(w, b):
    return [w * 2]


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        (lambda w, b: [], ValueError, "optimizer got an empty parameter list"),
        (
            lambda w, b: w,
            TypeError,
            "params argument given to the optimizer should be an iterable of Tensors or dicts, but got ",
        ),
        (lambda w, b: [w, 1], TypeError, "optimizer can only optimize Tensors, but one of the params is int"),
        (
            lambda w, b: [{"params": {w}}],
            TypeError,
            "optimizer parameters need to be organized in ordered collections",
        ),
        (non_leaf, ValueError, "can't optimize a non-leaf Tensor"),
        (
            lambda w, b: [{"params": [w]}, {"params": [b, w]}],
            ValueError,
            "some parameters appear in more than one parameter group",
        ),
        (
            lambda w, b: [{"params": [w]}, b],
            TypeError,
            "param_group must be a dict, but got <class ",
        ),
    ],
)
def test_bad_parameters_are_refused(params, kind, message):
    with pytest.raises(kind) as error:
        tg.optim.SGD(params(*parameters(tg)))
    assert str(error.value).startswith(message)


def test_duplicate_parameters_warn():
    w, _ = parameters(tg)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        tg.optim.SGD([w, w])


def test_a_non_leaf_that_retains_its_gradient_may_be_optimised():
    w, _ = parameters(tg)
    doubled = w * 2
    doubled.retain_grad()
    tg.optim.SGD([doubled])


def test_a_subclass_needs_only_an_update_rule():
    class Sign(tg.optim.Optimizer):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, {"lr": lr})

        def update(self, group):
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"])

    w, b = parameters(tg)
    moved = one_step(tg, Sign([w, b], lr=0.25), w, b)
    w_grad, b_grad = gradients(W0, B0)
    np.testing.assert_allclose(moved, np.append(W0 - 0.25 * np.sign(w_grad), B0 - 0.25 * np.sign(b_grad)))
