"""Values and gradients of a run of samples are those of eager execution, sample by sample."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.batch._chunk import WritesToInput, compute, compute_each, compute_sum
from tests.batch.models import PARAMS, branching, by_hand, energy, loss, samples


@pytest.mark.parametrize("wrt", [("params",), ("data",), ("params", "data"), ("data", "params")])
@pytest.mark.parametrize("f", [loss, branching])
def test_equals_backward_sample_by_sample(f, wrt):
    data = samples(13)
    values, lines = by_hand(f, data, PARAMS, wrt)
    done = compute(f, PARAMS, data, wrt)
    np.testing.assert_allclose(done.values, values, rtol=1e-13)
    joined = np.concatenate([g.reshape(13, -1) for g in done.gradients], 1)
    np.testing.assert_allclose(joined, lines, rtol=1e-12, atol=1e-14)
    assert not done.failures


def test_without_params():
    data = samples(5)
    values, lines = by_hand(energy, data, wrt=("data",))
    done = compute(energy, None, data, ("data",))
    np.testing.assert_allclose(done.values, values, rtol=1e-13)
    np.testing.assert_allclose(done.gradients[0], lines, rtol=1e-13)


def test_equals_torch():
    torch = pytest.importorskip("torch")
    data = samples(6, dtype=np.float32)
    w = torch.tensor(PARAMS["w"])

    def of_torch(x):
        return (torch.tanh(x * w) * torch.sin(x)).sum()

    x = torch.tensor(data, dtype=torch.float64, requires_grad=True)
    of_torch(x).backward()
    done = compute(lambda p, s: (tg.tanh(s * p) * tg.sin(s)).sum(), PARAMS["w"], data.astype(np.float64), ("data",))
    np.testing.assert_allclose(done.gradients[0], x.grad.numpy(), rtol=1e-12)


def test_a_tree_of_data_and_integer_data():
    data = {"x": samples(4), "k": np.array([0, 1, 2, 1])}
    done = compute(lambda p, s: s["x"].sum() * p * s["k"], np.array(2.0), data, ("params",))
    np.testing.assert_allclose(done.gradients[0], data["x"].sum(1) * data["k"])


def test_a_gradient_that_is_the_same_for_all_or_zero():
    done = compute(lambda p, x: p["w"].sum() + 0 * x.sum(), PARAMS, samples(3), ("params",))
    np.testing.assert_array_equal(done.gradients[0], np.ones((3, 4)))
    np.testing.assert_array_equal(done.gradients[1], np.zeros(3))
    done = compute(lambda p, x: x.sum(), PARAMS, samples(3), ("params",))
    np.testing.assert_array_equal(done.gradients[0], np.zeros((3, 4)))


def picky(params, x):
    """Fails on samples that begin with a large number."""
    if x[0] > 1:
        raise ArithmeticError("too\nlarge")
    return (x * params["w"]).sum()


def test_failing_samples_are_nan_and_told_apart():
    data = samples(6) / 10
    data[[1, 4], 0] = 5
    data[2, 3] = np.nan
    done = compute(picky, PARAMS, data, ("params",))
    assert done.failures == {
        1: "ArithmeticError: too large",
        2: "the value is NaN: the sample itself holds NaN",
        4: "ArithmeticError: too large",
    }
    assert np.isnan(done.values[[1, 2, 4]]).all()
    assert all(np.isnan(g[[1, 2, 4]]).all() for g in done.gradients)
    values, lines = by_hand(picky, data[[0, 3, 5]], PARAMS)
    np.testing.assert_allclose(done.values[[0, 3, 5]], values)
    np.testing.assert_allclose(done.gradients[0][[0, 3, 5]], lines[:, :4])


def test_all_samples_may_fail():
    done = compute(picky, PARAMS, np.full((3, 4), 9.0), ("params", "data"))
    assert len(done.failures) == 3
    assert [g.shape for g in done.gradients] == [(3, 4), (3,), (3, 4)]


def test_a_nan_gradient_of_a_finite_value():
    done = compute(lambda x: tg.sqrt(x).sum() * 0 + x.sum(), None, np.array([[1.0], [0.0]]), ("data",))
    assert done.failures == {1: "the gradient is NaN"}
    assert np.isnan(done.values[1])


def test_infinities_are_numbers():
    done = compute(lambda x: tg.log(x).sum(), None, np.array([[1.0], [0.0]]), ("data",))
    assert not done.failures
    assert done.values[1] == -np.inf
    assert done.gradients[0][1, 0] == np.inf


@pytest.mark.parametrize("f", [lambda p, x: (x.mul_(2) * p).sum(), lambda p, x: (p.mul_(2) * x).sum()])
@pytest.mark.parametrize("wrt", ["params", "data"])
def test_writing_to_inputs_is_refused(f, wrt):
    with pytest.raises(WritesToInput, match="the function writes to its inputs"):
        compute_each(f, np.ones(4), samples(3), (wrt,))


@pytest.mark.parametrize("f", [loss, branching])
def test_sums(f):
    data = samples(13)
    values, lines = by_hand(f, data, PARAMS)
    done = compute_sum(f, PARAMS, data, 4)
    np.testing.assert_allclose(done.values, values, rtol=1e-13)
    np.testing.assert_allclose(done.total[0], values.sum(), rtol=1e-12)
    np.testing.assert_allclose(done.total[1], lines[:, :4].sum(0), rtol=1e-12)
    np.testing.assert_allclose(done.total[2], lines[:, 4].sum(), rtol=1e-12)


def test_sums_leave_out_samples_that_fail():
    data = samples(9)
    data[[0, 5]] = np.nan
    done = compute_sum(loss, PARAMS, data, 4)
    assert list(done.failures) == [0, 5]
    values, lines = by_hand(loss, np.delete(data, [0, 5], 0), PARAMS)
    np.testing.assert_allclose(done.total[0], values.sum(), rtol=1e-12)
    np.testing.assert_allclose(done.total[1], lines[:, :4].sum(0), rtol=1e-12)
