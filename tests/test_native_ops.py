"""Operations on arrays that users declare by functions compiled with Numba."""

import numba
import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd import native_op
from tapegrad.ops._rule import OPS
from tests.declared import add_waves, fill_waves, softsquare, waves, waves_over_tensors
from tests.helpers import numeric_gradients, on_tape, state_of_tape, weighted


def check_like(call, reference, arrays, orders=2):
    """Compare values and derivatives with those of a composition of operations."""
    results = []
    for function in (call, reference):
        tensors = on_tape(arrays)
        total = function(*tensors)
        values = [total]
        for _ in range(orders):
            found = tg.autograd.grad(weighted(total), tensors, create_graph=orders > 1, materialize_grads=True)
            values += found
            total = sum(g.sum() * (k + 1) for k, g in enumerate(found))
        results.append([v.detach().numpy() for v in values])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@numba.njit
def fill_picked(x, index, scale, out):
    for i in range(index.size):
        if index[i] >= x.shape[0]:
            raise IndexError("no such row")
        out[i] = scale[()] * x[index[i]]


@numba.njit
def add_picked(g, x, index, scale, gx, gscale):
    for i in range(index.size):
        if np.abs(g[i]).max() > 100:
            raise OverflowError("a gradient too large")
        gx[index[i]] += scale[()] * g[i]
        gscale += (g[i] * x[index[i]]).sum()


picked = native_op(fill_picked, add_picked, lambda x, index, scale: (index[0], x[1]), name="picked")


def draw(shape, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 2, shape)


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (3,)), ((2, 1), (3,)), ((), ()), ((4,), ())], ids=str)
def test_array_operation(shapes):
    arrays = [draw(s) for s in shapes]
    check_like(waves, lambda x, w: w * tg.sin(x), arrays)


def test_array_operation_agrees_with_finite_differences():
    x, w = draw((2, 3)), draw((3,), 1)
    tensors = on_tape([x, w])
    found = tg.autograd.grad(weighted(waves(*tensors)), tensors)
    expected = numeric_gradients(lambda moved: weighted(waves(*on_tape(moved, False))).item(), [x, w])
    for g, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(g.numpy(), e, rtol=1e-7)


def test_array_operation_with_a_shape_of_its_own():
    x = draw((4, 3))
    index, scale = tg.tensor([3, 0, 3, 3, 1]), np.array(1.5)
    check_like(lambda x, scale: picked(x, index, scale), lambda x, scale: scale * x[index], [x, scale], 1)
    result = picked(tg.tensor(x), index, 2.0)
    np.testing.assert_array_equal(result.numpy(), 2 * x[index.numpy()])
    empty = picked(tg.tensor(x, requires_grad=True), index[:0], 2.0)
    assert empty.shape == (0, 3)
    empty.sum().backward()


def test_array_operation_on_strided_and_equal_operands():
    def call(op, x):
        return op(x.t(), x.t()) + op(x[:, :1], x).t() * 2 + op(x, 1.0).t()

    check_like(lambda x: call(waves, x), lambda x: call(lambda a, b: b * tg.sin(a), x), [draw((3, 4))])


def test_array_operation_adds_to_gradients():
    x = tg.tensor([0.5, 1.0], dtype=tg.float64, requires_grad=True)
    for k in (1, 2, 3):
        (waves(x, 1.0) + x * 2 + waves(x, 1.0)).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), k * (2 * np.cos([0.5, 1.0]) + 2), rtol=1e-14)
    w = tg.tensor([1.0, 2.0], dtype=tg.float64, requires_grad=True)
    (g,) = tg.autograd.grad(waves(x, w).sum(), w)  # that of x is not wanted
    np.testing.assert_allclose(g.numpy(), np.sin([0.5, 1.0]), rtol=1e-14)


def test_array_operation_dtypes():
    x32, x64, whole = tg.ones(2), tg.ones(2, dtype=tg.float64), tg.tensor([1, 2])
    assert waves(x32, x32).dtype is tg.float32
    assert waves(x32, x64).dtype is tg.float64
    assert waves(x32, 2).dtype is tg.float32
    assert waves(whole, x32).dtype is tg.float32
    x32.requires_grad_()
    waves(x32, x64).sum().backward()
    assert x32.grad.dtype is tg.float32
    with pytest.raises(TypeError, match="at least one argument must be a floating point tensor, but got int64, float"):
        waves(whole, 1.0)
    with pytest.raises(TypeError, match="float16 tensors are for storage only"):
        waves(x64.half(), 1.0)


def test_array_operation_refuses_wrong_calls():
    x = tg.ones(3, dtype=tg.float64)
    with pytest.raises(TypeError, match=r"waves\(\) takes 2 arguments \(x, w\) but got 1"):
        waves(x)
    with pytest.raises(TypeError, match=r"waves\(\): argument 'w' must be Tensor or Number, not ndarray"):
        waves(x, np.ones(3))
    with pytest.raises(
        RuntimeError,
        match=r"The size of tensor a \(3\) must match the size of tensor b \(2\).*waves got shapes \[3\], \[2\]",
    ):
        waves(x, tg.ones(2))
    with pytest.raises(
        TypeError, match=r"the forward function cannot be compiled for x: float64\[:\].* out: float64\[:, :\]"
    ):
        native_op(fill_waves, shape=lambda x, w: (1, 3))(x, x)
    with pytest.raises(RuntimeError, match="argument 'index' requires grad, but backward has no parameter 'gindex'"):
        picked(tg.ones(2, 2), tg.ones(2, requires_grad=True), 1.0)
    for shape in (3, (-1,), (2.5,), None):
        wrong = native_op(fill_waves, shape=lambda x, w, shape=shape: shape)
        with pytest.raises(TypeError, match="the shape function must return a tuple of sizes, but returned"):
            wrong(x, x)
    with pytest.raises(RuntimeError, match="requires grad, but there is no backward"):
        native_op(fill_waves)(x.requires_grad_(), 1.0)


def test_array_operation_refuses_wrong_functions():
    @numba.njit
    def clash(x, gx, out):
        pass

    @numba.njit
    def other(g, x, y, gx):
        pass

    @numba.njit
    def idle(g, x, w):
        pass

    with pytest.raises(
        TypeError,
        match=r"argument 'forward' must be a function compiled with @numba.njit, but got the Python function waves_over",
    ):
        native_op(waves_over_tensors)
    with pytest.raises(
        TypeError, match=r"argument 'backward' must be a function compiled with @numba.njit, but got a Elementwise"
    ):
        native_op(fill_waves, softsquare)
    with pytest.raises(TypeError, match="'gx' is called like one of backward's"):
        native_op(clash)
    with pytest.raises(TypeError, match="backward's parameter 'y' is none of g, x, w, out, gx, gw, need"):
        native_op(fill_waves, other)
    with pytest.raises(TypeError, match="backward fills none of the gradients gx, gw"):
        native_op(fill_waves, idle)
    with pytest.raises(TypeError, match="tensor_backward is for higher orders"):
        native_op(fill_waves, tensor_backward=waves_over_tensors)
    with pytest.raises(TypeError, match="forward takes one to 3 arrays and the array to fill"):
        native_op(numba.njit(lambda out: None), name="nothing")


def test_operands_cannot_be_written_to():
    @numba.njit
    def overwrite(x, out):
        x[0] = 1.0

    with pytest.raises(
        TypeError, match=r"(?s)overwrite: the forward function cannot be compiled .*[Cc]annot modify readonly array"
    ):
        native_op(overwrite)(tg.ones(2))


def test_exceptions_of_array_operations():
    x = tg.ones((2, 3), dtype=tg.float64, requires_grad=True)
    index = tg.tensor([0, 1, 1])
    y = picked(x, index, 1.0)
    states = []
    for _ in range(3):
        with pytest.raises(IndexError, match="no such row"):
            picked(x, index + 1, 1.0)
        with pytest.raises(OverflowError, match="a gradient too large"):
            (y * 1000).sum().backward()
        with pytest.raises(OverflowError, match="a gradient too large"):
            tg.autograd.grad((y * 1000).sum(), x, create_graph=True)
        states.append(state_of_tape())
    assert states[0] == states[1] == states[2]
    y.sum().backward()
    assert x.grad.tolist() == [[1.0] * 3, [2.0] * 3]


def test_a_native_backward_alone_gives_first_derivatives_only():
    x = tg.ones((2, 3), dtype=tg.float64, requires_grad=True)
    scale = tg.tensor(2.0, dtype=tg.float64, requires_grad=True)
    y = picked(x, tg.tensor([0, 1, 1]), scale)
    found = tg.autograd.grad(y.sum(), (x, scale), create_graph=True)
    assert [g.tolist() for g in found] == [[[2.0] * 3, [4.0] * 3], 9.0]
    with pytest.raises(
        RuntimeError,
        match="picked was declared with a native backward only; give tensor_backward= to differentiate it twice",
    ):
        found[0].sum().backward()


def test_hooks_see_array_operations():
    x = tg.tensor([0.5, 1.0], dtype=tg.float64, requires_grad=True)
    for op in (waves, native_op(fill_waves, add_waves)):
        seen = []
        y = op(x, 2.0)
        y.grad_fn.register_hook(
            lambda inputs, outputs, seen=seen: seen.append((inputs[0].tolist(), outputs[0].tolist()))
        )
        with pytest.warns(UserWarning, match="Anomaly Detection"), tg.autograd.detect_anomaly():
            (g,) = tg.autograd.grad(y.sum(), x, retain_graph=True)
        y.sum().backward()
        np.testing.assert_allclose(g.numpy(), 2 * np.cos([0.5, 1.0]), rtol=1e-14)
        assert seen == [(g.tolist(), [1.0, 1.0])] * 2


def test_what_is_kept_and_wanted():
    @numba.njit
    def square(x, out):
        out[:] = x * x

    @numba.njit
    def square_backward(g, out, need, gx):
        gx[:] = g * 2 * np.sqrt(out) * need

    x = tg.tensor([2.0, 3.0], requires_grad=True)
    y = native_op(square, square_backward)(x)
    assert y.grad_fn.name() == "SquareBackward0"
    with tg.no_grad():
        x += 1  # forward's operand is not kept
    y.sum().backward()
    assert x.grad.tolist() == [4.0, 6.0]
    y = native_op(square, square_backward)(x)
    y.detach().zero_()
    with pytest.raises(
        RuntimeError, match=r"\[2\]\], which is output 0 of SquareBackward0, is at version 1; expected version 0"
    ):
        y.sum().backward()


def test_tensor_backward_returns_one_gradient_an_input():
    wrong = native_op(fill_waves, add_waves, tensor_backward=lambda g, x: g * x)
    x = tg.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="tensor_backward returned 1 gradients for 2 inputs"):
        tg.autograd.grad(wrong(x, 1.0).sum(), x, create_graph=True)


def test_array_operations_of_one_definition_share_opcodes():
    again = native_op(fill_waves, add_waves, name="waves", tensor_backward=waves_over_tensors)
    x = tg.ones(3)
    waves(x, x)
    count = len(OPS)
    again(x, x)
    assert len(OPS) == count
    waves(x[None], x)  # of two dimensions
    assert len(OPS) == count + 1 or len(OPS) == count


def test_a_kernel_in_memory_where_content_cannot_be_told(tmp_path, monkeypatch):
    @numba.vectorize
    def halved(x):
        return x / 2

    @numba.njit
    def fill(x, out):
        out[:] = halved(x)

    monkeypatch.setenv("TAPEGRAD_CACHE_DIR", str(tmp_path))
    assert native_op(fill)(tg.ones(2)).tolist() == [0.5, 0.5]
    assert not any(file.name.startswith("fill") for file in tmp_path.iterdir())
