"""Properties that hold for any shapes, values and indices."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tapegrad as tg
from tests.helpers import unbroadcast

# kernels compile at first use, which is no property of the example
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
finite = st.floats(-100, 100, allow_subnormal=False)
arrays = hnp.arrays(np.float64, hnp.array_shapes(max_dims=4, max_side=4), elements=finite)


@quick
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4), st.integers(0, 2**32 - 1))
def test_gradient_of_a_broadcast_product_has_the_operands_shape_and_sum(shapes, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(s) for s in shapes.input_shapes)
    x, y = tg.tensor(a, requires_grad=True), tg.tensor(b, requires_grad=True)
    out = x * y
    assert tuple(out.shape) == shapes.result_shape
    out.sum().backward()
    np.testing.assert_allclose(
        x.grad.numpy(), unbroadcast(np.broadcast_to(b, shapes.result_shape), a.shape), atol=1e-12
    )
    np.testing.assert_allclose(
        y.grad.numpy(), unbroadcast(np.broadcast_to(a, shapes.result_shape), b.shape), atol=1e-12
    )


@quick
@given(arrays, st.data())
def test_basic_indexing_agrees_with_numpy_and_scatters_its_gradient(a, data):
    index = data.draw(hnp.basic_indices(a.shape, allow_newaxis=True))
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, slice) and p.step is not None and p.step < 0 for p in parts):
        return
    x = tg.tensor(a, requires_grad=True)
    part = x[index]
    np.testing.assert_array_equal(part.detach().numpy(), a[index])
    part.sum().backward()
    expected = np.zeros_like(a)
    expected[index] = 1
    np.testing.assert_array_equal(x.grad.numpy(), expected)


@quick
@given(arrays, st.data())
def test_sum_over_any_dims_agrees_with_numpy(a, data):
    dims = data.draw(st.sets(st.integers(0, a.ndim - 1), min_size=1).map(lambda s: tuple(sorted(s))))
    keep = data.draw(st.booleans())
    x = tg.tensor(a, requires_grad=True)
    total = x.sum(dims, keep)
    np.testing.assert_allclose(total.detach().numpy(), a.sum(axis=dims, keepdims=keep), rtol=1e-12, atol=1e-10)
    total.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.ones_like(a))


@quick
@given(arrays, st.randoms(use_true_random=False))
def test_permuting_and_reshaping_back_is_the_identity(a, random):
    order = list(range(a.ndim))
    random.shuffle(order)
    x = tg.tensor(a, requires_grad=True)
    back = x.permute(order).permute([order.index(d) for d in range(a.ndim)]).reshape(-1).reshape(a.shape)
    np.testing.assert_array_equal(back.detach().numpy(), a)
    (back * back).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * a)


@quick
@given(st.lists(st.sampled_from(["add", "mul", "sin", "view", "inplace", "detach"]), max_size=12), finite)
def test_a_chain_of_operations_has_the_gradient_of_its_chain_rule(steps, start):
    x = tg.tensor([start / 100], dtype=tg.float64, requires_grad=True)
    y, value, slope = x * 1, start / 100, 1.0
    for step in steps:
        if step == "add":
            y, value = y + 0.5, value + 0.5
        elif step == "mul":
            y, value, slope = y * 0.9, value * 0.9, slope * 0.9
        elif step == "sin":
            y, value, slope = y.sin(), np.sin(value), slope * np.cos(value)
        elif step == "view":
            y = y.reshape(1, 1)[0]
        elif step == "inplace":
            y = y.clone().mul_(1.1)
            value, slope = value * 1.1, slope * 1.1
        else:
            y, value = y + y.detach(), 2 * value
    y.sum().backward()
    np.testing.assert_allclose(y.item(), value, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(x.grad.item(), slope, rtol=1e-10, atol=1e-12)


@quick
@given(arrays)
def test_numpy_shares_memory_both_ways(a):
    t = tg.from_numpy(a)
    a.flat[0] = 7.0
    assert t.reshape(-1)[0].item() == 7.0
    t.mul_(2)
    assert a.flat[0] == 14.0
