"""What lives how long: tensors, storage shared with NumPy, threads and forks."""

import gc
import os
import weakref

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import in_threads, leaf, same, vals

CANT_NUMPY = r"^Can't call numpy\(\) on Tensor that requires grad. Use tensor.detach\(\).numpy\(\) instead.$"


def dead(*refs):
    gc.collect()
    return [r() is None for r in refs] == [True] * len(refs)


# ---- tensors die ----


def test_a_dropped_tensor_dies_at_once():
    x = tg.ones(3)
    r = weakref.ref(x)
    del x
    assert r() is None


def test_a_dropped_result_dies_at_once():
    x = leaf([1.0, 2.0])
    y = x * 2
    r = weakref.ref(y)
    del y
    assert r() is None


def test_a_weakref_is_alive_while_its_tensor_is():
    x = leaf([1.0])
    r = weakref.ref(x)
    gc.collect()
    assert r() is x


def test_a_leaf_dies_with_its_last_result():
    x = leaf([1.0, 2.0])
    r = weakref.ref(x)
    y = (x * x).sum()
    del x
    gc.collect()
    y.backward()
    del y
    assert dead(r)


def test_a_leaf_with_a_grad_dies():
    x = leaf([1.0, 2.0])
    (x * x).sum().backward()
    x_ref, g_ref = weakref.ref(x), weakref.ref(x.grad)
    del x
    assert dead(x_ref, g_ref)


def test_intermediates_die_when_not_saved():
    x = leaf([1.0, 2.0])
    h = x + 1
    r = weakref.ref(h)
    y = (h + 1).sum()
    del h
    assert dead(r)
    y.backward()
    same(x.grad, [1.0, 1.0])


def test_a_view_keeps_the_values_of_its_dead_base():
    x = tg.arange(6.0)
    v = x[2:4]
    del x
    gc.collect()
    trash = [tg.full((6,), -1.0) for _ in range(100)]
    same(v, [2.0, 3.0])
    assert len(trash) == 100


def test_a_saved_operand_outlives_its_name():
    x = leaf([1.0, 2.0])
    c = tg.tensor([3.0, 4.0], dtype=tg.float64)
    y = (x * c).sum()
    del c
    gc.collect()
    trash = [tg.full((2,), -1.0, dtype=tg.float64) for _ in range(100)]
    y.backward()
    same(x.grad, [3.0, 4.0])
    assert len(trash) == 100


def test_the_grad_outlives_its_leaf():
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    g = x.grad
    del x
    gc.collect()
    trash = [leaf([-1.0, -1.0]) for _ in range(100)]
    same(g, [3.0, 3.0])
    assert len(trash) == 100


def test_a_grad_fn_outlives_its_tensor():
    y = leaf([1.0, 2.0]) * 2
    node = y.grad_fn
    del y
    gc.collect()
    assert type(node).__name__ == "MulBackward0"
    assert node.name() == "MulBackward0"


def test_a_tensor_in_a_cycle_is_collected():
    class Holder:
        pass

    h = Holder()
    h.x = leaf([1.0])
    h.y = h.x * 2
    h.me = h
    refs = weakref.ref(h), weakref.ref(h.x), weakref.ref(h.y)
    del h
    assert dead(*refs)


def test_the_error_of_a_failed_op_does_not_hold_on():
    x = leaf([1.0, 2.0])
    r = weakref.ref(x)
    with pytest.raises(RuntimeError):
        x @ tg.ones(3, dtype=tg.float64)
    del x
    assert dead(r)


def test_many_forgotten_graphs_leave_an_old_one_whole():
    x = leaf([1.0, 2.0])
    old = (x * x).exp()
    for k in range(2000):
        _ = (x * k).sin().sum()
    old.sum().backward()
    same(x.grad, 2 * np.array([1.0, 2.0]) * np.exp([1.0, 4.0]))


# ---- storage shared with NumPy ----


def test_numpy_is_a_view_both_ways():
    x = tg.zeros(3)
    a = x.numpy()
    a[0] = 5
    x[1] = 7
    same(x, [5.0, 7.0, 0.0])
    np.testing.assert_array_equal(a, [5.0, 7.0, 0.0])


def test_numpy_of_a_strided_view_keeps_strides():
    x = tg.arange(6.0).reshape(2, 3)
    a = x.t().numpy()
    assert a.shape == (3, 2)
    assert a.strides == (4, 12)
    a[2, 0] = -1
    assert x[0, 2].item() == -1.0


def test_numpy_keeps_the_memory_alive():
    x = tg.arange(1000.0)
    a = x.numpy()
    r = weakref.ref(x)
    del x
    gc.collect()
    trash = [tg.full((1000,), -1.0) for _ in range(50)]
    np.testing.assert_array_equal(a, np.arange(1000.0))
    assert len(trash) == 50
    del a
    assert dead(r)


def test_a_numpy_view_is_unchanged_by_thousands_of_later_ops():
    x = leaf(np.linspace(0, 1, 50))
    y = x * 3
    a, g = y.detach().numpy(), None
    expected = a.copy()
    for k in range(3000):
        z = (x * k).exp() + y
        if k % 500 == 0:
            z.sum().backward(inputs=[x], retain_graph=True)
            g = g if g is not None else x.grad.numpy()
            x.grad = None
    np.testing.assert_array_equal(a, expected)
    np.testing.assert_allclose(g, 3.0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int64", "uint8", "bool"])
def test_from_numpy_shares_memory_both_ways(dtype):
    a = np.zeros((2, 2), dtype)
    t = tg.from_numpy(a)
    a[0, 1] = 1
    t[1, 0] = 1
    assert t.tolist() == [[0, 1], [1, 0]]
    assert a.tolist() == [[0, 1], [1, 0]]
    assert t.data_ptr() == a.__array_interface__["data"][0]


def test_from_numpy_keeps_the_array_alive():
    a = np.arange(1000.0)
    t = tg.from_numpy(a)
    del a
    gc.collect()
    trash = [np.full(1000, -1.0) for _ in range(50)]
    same(t, np.arange(1000.0))
    assert len(trash) == 50


def test_from_numpy_keeps_strides_and_tensor_copies():
    a = np.arange(6.0).reshape(2, 3)[:, ::2]
    t, c = tg.from_numpy(a), tg.tensor(a)
    assert t.stride() == (3, 2)
    a[0, 1] = 50
    same(t, [[0.0, 50.0], [3.0, 5.0]])
    same(c, [[0.0, 2.0], [3.0, 5.0]])


def test_as_tensor_shares_when_it_can():
    a = np.zeros(2)
    assert tg.as_tensor(a).data_ptr() == a.__array_interface__["data"][0]
    t = tg.ones(2)
    assert tg.as_tensor(t) is t
    assert tg.as_tensor(t, dtype=tg.float64) is not t


def test_a_leaf_on_numpy_memory_sees_later_values():
    a = np.array([1.0, 2.0])
    x = tg.from_numpy(a).requires_grad_()
    a[:] = 5
    (x * x).sum().backward()
    same(x.grad, [10.0, 10.0])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("call", [lambda t: t.numpy(), np.asarray, np.array, lambda t: t.__array__()])
def test_numpy_while_requiring_grad_is_refused(call):
    x = leaf([1.0, 2.0])
    for t in (x, x * 2):
        with pytest.raises(RuntimeError, match=CANT_NUMPY):
            call(t)
    np.testing.assert_array_equal(x.detach().numpy(), [1.0, 2.0])
    np.testing.assert_array_equal(x.numpy(force=True), [1.0, 2.0])


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
def test_reading_numbers_while_requiring_grad_is_allowed():
    x = leaf([1.0, 2.5])
    assert x.tolist() == [1.0, 2.5]
    assert x[1].item() == 2.5
    assert float(x[1]) == 2.5


# ---- threads and processes ----


def work(seed, rounds):
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        a, b = rng.standard_normal((2, 4)), rng.standard_normal((4, 3))
        x, w = leaf(a), leaf(b)
        y = x @ w
        ((y * y).sum() + y.exp().sum()).backward()
        gy = 2 * (a @ b) + np.exp(a @ b)
        np.testing.assert_allclose(vals(x.grad), gy @ b.T, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(vals(w.grad), a.T @ gy, rtol=1e-10, atol=1e-12)


def test_four_threads_differentiate_their_own_graphs():
    in_threads(lambda seed: work(seed, 100), 4)


def test_a_graph_built_in_one_thread_is_differentiated_in_another():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    in_threads(lambda _: y.backward(), 1)
    same(x.grad, [2.0, 4.0])


def test_a_tensor_dropped_in_another_thread():
    box = [leaf([1.0, 2.0])]
    keep = box[0]
    box.append((keep * keep).sum())
    refs = weakref.ref(box[1])
    in_threads(lambda _: box.clear(), 1)
    assert dead(refs)
    (keep * 2).sum().backward()
    same(keep.grad, [2.0, 2.0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_a_gradient():
    x = leaf([1.0, 2.0, 3.0])
    (x * x).sum().backward()
    pid = os.fork()
    if pid == 0:  # the child must never return into the test runner
        code = 1
        try:
            z = leaf([1.0, 2.0, 3.0])
            (z * z * x).sum().backward()
            code = 0 if vals(z.grad).tolist() == [2.0, 8.0, 18.0] and vals(x.grad).tolist() == [3.0, 8.0, 15.0] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
