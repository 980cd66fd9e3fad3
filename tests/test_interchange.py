"""Tensors for others: NumPy, DLPack, copies, pickles, files."""

import copy
import io
import pickle

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import const, leaf, raises, same

DTYPES = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "bool"]
LAYOUTS = {
    "0-d": lambda: const(1.5),
    "empty": lambda: const(np.zeros((2, 0, 3))),
    "contiguous": lambda: const([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    "transposed": lambda: const([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).T,
    "strided": lambda: const(np.arange(12.0).reshape(3, 4))[::2, 1::2],
    "expanded": lambda: const([1.0, 2.0]).expand(3, 2),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def through_pickle(x):
    return pickle.loads(pickle.dumps(x))


def through_a_file(x):
    file = io.BytesIO()
    tg.save(x, file)
    file.seek(0)
    return tg.load(file)


# ---- NumPy and DLPack ----


@each_layout
def test_numpy_shows_the_same_elements_in_the_same_memory(layout):
    x = LAYOUTS[layout]()
    a = x.numpy()
    assert a.shape == tuple(x.shape)
    assert a.tolist() == x.tolist()
    if a.size:
        assert a.strides == tuple(8 * s for s in x.stride())
        assert a.__array_interface__["data"][0] == x.data_ptr()


@each_dtype
def test_numpy_keeps_the_dtype(dtype):
    a = tg.ones(2, dtype=getattr(tg, dtype)).numpy()
    assert a.dtype == dtype
    assert a.tolist() == [1, 1]


def test_an_array_keeps_the_memory_alive():
    x = const([1.0, 2.0])
    a = x.numpy()
    del x
    _ = [const([7.0, 7.0]) for _ in range(100)]
    assert a.tolist() == [1.0, 2.0]


def test_numpy_of_a_tensor_that_requires_grad_is_forced():
    x = leaf([1.0, 2.0])
    with raises("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."):
        x.numpy()
    assert x.numpy(force=True).tolist() == [1.0, 2.0]


def test_array_protocol_converts_and_copies():
    x = const([1.0, 2.0])
    assert np.shares_memory(np.asarray(x), x.numpy())
    assert not np.shares_memory(np.array(x, copy=True), x.numpy())
    assert np.asarray(x, dtype=np.float32).dtype == np.float32


@each_layout
def test_dlpack_shares_memory(layout):
    x = LAYOUTS[layout]()
    a = np.from_dlpack(x)
    assert x.__dlpack_device__() == (1, 0)
    assert a.tolist() == x.tolist()
    if a.size:
        assert np.shares_memory(a, x.numpy())


def test_dlpack_to_pytorch():
    torch = pytest.importorskip("torch")
    x = const([1.0, 2.0])
    y = torch.from_dlpack(x)
    y *= 2
    same(x, [2.0, 4.0])


# ---- copies ----


def test_copy_shares_memory_and_the_place_in_the_graph():
    x = leaf([1.0, 2.0])
    twin = copy.copy(x)
    assert twin is not x
    assert twin.requires_grad
    assert twin.is_leaf
    assert twin.data_ptr() == x.data_ptr()
    y = x * 2
    copy.copy(y).sum().backward()
    same(x.grad, [2.0, 2.0])


def test_deepcopy_has_memory_of_its_own():
    x = leaf([1.0, 2.0])
    (x * x).sum().backward()
    twin = copy.deepcopy(x)
    assert twin.requires_grad
    assert twin.data_ptr() != x.data_ptr()
    assert twin.grad.data_ptr() != x.grad.data_ptr()
    same(twin, [1.0, 2.0])
    same(twin.grad, [2.0, 4.0])


def test_deepcopy_copies_a_shared_tensor_once():
    x = const([1.0])
    a, b = copy.deepcopy([x, x])
    assert a is b
    assert a is not x


def test_deepcopy_of_a_result_is_refused():
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy.deepcopy(leaf([1.0]) * 2)


# ---- pickles and files ----


@pytest.mark.parametrize("through", [through_pickle, through_a_file])
@each_layout
def test_layouts_survive_a_pickle(layout, through):
    x = LAYOUTS[layout]()
    y = through(x)
    assert y.shape == x.shape
    assert y.tolist() == x.tolist()


@pytest.mark.parametrize("through", [through_pickle, through_a_file])
@each_dtype
def test_dtypes_survive_a_pickle(dtype, through):
    x = tg.ones(2, 3, dtype=getattr(tg, dtype))
    y = through(x)
    assert y.dtype is x.dtype
    assert y.tolist() == x.tolist()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_requires_grad_survives_a_pickle(requires_grad):
    assert through_pickle(tg.ones(2, requires_grad=requires_grad)).requires_grad is requires_grad


def test_a_result_cannot_be_pickled():
    with raises("Only leaf tensors can be pickled; call detach() on a result of operations first"):
        pickle.dumps(leaf([1.0]) * 2)


def test_containers_of_tensors_survive_a_file(tmp_path):
    x = const([1.0, 2.0])
    tg.save({"w": x, "more": [(x.T, 3), x.shape, x.dtype, np.arange(2)]}, tmp_path / "tensors")
    found = tg.load(tmp_path / "tensors")
    same(found["w"], [1.0, 2.0])
    (t, three), shape, dtype, array = found["more"]
    same(t, [1.0, 2.0])
    assert (three, shape, dtype, array.tolist()) == (3, tg.Size([2]), tg.float64, [0, 1])


def test_optimizer_state_survives_a_file(tmp_path):
    w = leaf([1.0, 2.0])
    optimizer = tg.optim.Adam([w])
    (w * w).sum().backward()
    optimizer.step()
    tg.save(optimizer.state_dict(), tmp_path / "state")
    state = tg.load(tmp_path / "state")
    same(state["state"][0]["exp_avg"], optimizer.state[w]["exp_avg"].tolist())


class Other:
    """Something that is no tensor, array or container."""


def test_other_objects_are_loaded_only_on_request(tmp_path):
    tg.save([Other()], tmp_path / "other")
    with pytest.raises(pickle.UnpicklingError, match="which is not loaded unless you pass weights_only=False"):
        tg.load(tmp_path / "other")
    assert isinstance(tg.load(tmp_path / "other", weights_only=False)[0], Other)
