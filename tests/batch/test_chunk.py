"""Values and gradients of a run of samples are those of eager execution, sample by sample."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.batch._chunk import Calculation, WritesToInput
from tests.batch.models import PARAMS, branching, by_hand, energy, loss, samples


@pytest.mark.parametrize("wrt", [("params",), ("data",), ("params", "data"), ("data", "params")])
@pytest.mark.parametrize("f", [loss, branching])
def test_equals_backward_sample_by_sample(f, wrt):
    data = samples(13)
    values, lines = by_hand(f, data, PARAMS, wrt)
    done = Calculation(f, PARAMS, wrt).compute(data)
    np.testing.assert_allclose(done.values, values, rtol=1e-13)
    np.testing.assert_allclose(done.lines, lines, rtol=1e-12, atol=1e-14)
    assert not done.failures


def test_without_params():
    data = samples(5)
    values, lines = by_hand(energy, data, wrt=("data",))
    done = Calculation(energy, None, ("data",)).compute(data)
    np.testing.assert_allclose(done.values, values, rtol=1e-13)
    np.testing.assert_allclose(done.lines, lines, rtol=1e-13)


def test_equals_torch():
    torch = pytest.importorskip("torch")
    data = samples(6, dtype=np.float32)
    w = torch.tensor(PARAMS["w"])

    def of_torch(x):
        return (torch.tanh(x * w) * torch.sin(x)).sum()

    x = torch.tensor(data, dtype=torch.float64, requires_grad=True)
    of_torch(x).backward()
    done = Calculation(lambda p, s: (tg.tanh(s * p) * tg.sin(s)).sum(), PARAMS["w"], ("data",)).compute(
        data.astype(np.float64)
    )
    np.testing.assert_allclose(done.lines, x.grad.numpy(), rtol=1e-12)


def test_a_tree_of_data_and_integer_data():
    data = {"x": samples(4), "k": np.array([0, 1, 2, 1])}
    done = Calculation(lambda p, s: s["x"].sum() * p * s["k"], np.array(2.0), ("params",)).compute(data)
    np.testing.assert_allclose(done.lines[:, 0], data["x"].sum(1) * data["k"])


def test_a_gradient_that_is_the_same_for_all_or_zero():
    done = Calculation(lambda p, x: p["w"].sum() + 0 * x.sum(), PARAMS, ("params",)).compute(samples(3))
    np.testing.assert_array_equal(done.lines, [[1, 1, 1, 1, 0]] * 3)
    done = Calculation(lambda p, x: x.sum(), PARAMS, ("params",)).compute(samples(3))
    np.testing.assert_array_equal(done.lines, np.zeros((3, 5)))


def picky(params, x):
    """Fails on samples that begin with a large number."""
    if x[0] > 1:
        raise ArithmeticError("too\nlarge")
    return (x * params["w"]).sum()


def test_failing_samples_are_nan_and_told_apart():
    data = samples(6) / 10
    data[[1, 4], 0] = 5
    data[2, 3] = np.nan
    done = Calculation(picky, PARAMS, ("params",)).compute(data)
    assert done.failures == {
        1: "ArithmeticError: too large",
        2: "the value is NaN: the sample itself holds NaN",
        4: "ArithmeticError: too large",
    }
    assert np.isnan(done.values[[1, 2, 4]]).all()
    assert np.isnan(done.lines[[1, 2, 4]]).all()
    values, lines = by_hand(picky, data[[0, 3, 5]], PARAMS)
    np.testing.assert_allclose(done.values[[0, 3, 5]], values)
    np.testing.assert_allclose(done.lines[[0, 3, 5]], lines)


def test_all_samples_may_fail():
    done = Calculation(picky, PARAMS, ("params", "data")).compute(np.full((3, 4), 9.0))
    assert len(done.failures) == 3
    assert done.lines.shape == (3, 9)
    assert np.isnan(done.lines).all()


def test_a_nan_gradient_of_a_finite_value():
    done = Calculation(lambda x: tg.sqrt(x).sum() * 0 + x.sum(), None, ("data",)).compute(np.array([[1.0], [0.0]]))
    assert done.failures == {1: "the gradient is NaN"}
    assert np.isnan(done.values[1])


def test_infinities_are_numbers():
    done = Calculation(lambda x: tg.log(x).sum(), None, ("data",)).compute(np.array([[1.0], [0.0]]))
    assert not done.failures
    assert done.values[1] == -np.inf
    assert done.lines[1, 0] == np.inf


@pytest.mark.parametrize("f", [lambda p, x: (x.mul_(2) * p).sum(), lambda p, x: (p.mul_(2) * x).sum()])
@pytest.mark.parametrize("wrt", ["params", "data"])
def test_writing_to_inputs_is_refused(f, wrt):
    calculation = Calculation(f, np.ones(4), (wrt,))
    for calculation.by_one in (True, False):
        with pytest.raises(WritesToInput, match="the function writes to its inputs"):
            calculation.compute(samples(3))


@pytest.mark.parametrize("f", [loss, branching])
def test_sums(f):
    data = samples(13)
    values, lines = by_hand(f, data, PARAMS)
    done = Calculation(f, PARAMS, ("params",)).compute_sum(data, 4)
    np.testing.assert_allclose(done.values, values, rtol=1e-13)
    np.testing.assert_allclose(done.total[0], values.sum(), rtol=1e-12)
    np.testing.assert_allclose(done.total[1], lines.sum(0), rtol=1e-12)


def test_sums_leave_out_samples_that_fail():
    data = samples(9)
    data[[0, 5]] = np.nan
    done = Calculation(loss, PARAMS, ("params",)).compute_sum(data, 4)
    assert list(done.failures) == [0, 5]
    values, lines = by_hand(loss, np.delete(data, [0, 5], 0), PARAMS)
    np.testing.assert_allclose(done.total[0], values.sum(), rtol=1e-12)
    np.testing.assert_allclose(done.total[1], lines.sum(0), rtol=1e-12)


def test_how_many_samples_are_added_up_at_a_time():
    def run(f, params, data):
        calculation = Calculation(f, params, ("params",))
        calculation.settle(data)
        return calculation.run

    assert run(loss, PARAMS, samples(40)) == 256
    assert run(lambda p, x: tg.tanh(x @ p).sum(), np.ones((4, 2000)), samples(40)) == 16
    assert 16 < run(lambda p, x: tg.tanh(x @ p).sum(), np.ones((4, 25)), samples(40)) < 256


def test_sums_of_several_runs_and_a_rest():
    data = samples(600)
    done = Calculation(loss, PARAMS, ("params",)).compute_sum(data, 64)
    each = Calculation(loss, PARAMS, ("params",)).compute(data)
    np.testing.assert_allclose(done.values, each.values, rtol=1e-13)
    np.testing.assert_allclose(done.total[1], each.lines.sum(0), rtol=1e-11)
