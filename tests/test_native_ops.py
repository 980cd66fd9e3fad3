"""Operations that users declare: what can be declared, what tells one from another, compiled functions on arrays, what runs."""

import gc
import linecache
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import numba
import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd import elementwise, native_op
from tapegrad.engine import structs
from tapegrad.engine.runtime import rt
from tapegrad.ops._rule import OPS, PUBLIC, built_in_ops


@elementwise
def softsquare(x, c):
    return x * x / (c + abs(x))


@numba.njit
def newton_root(a):
    """Square root by Newton's method."""
    if a < 0:
        raise ValueError("a root of a negative number")
    y = a
    for _ in range(30):
        y = 0.5 * (y + a / y)
    return y


@elementwise
def root(x):
    return newton_root(x)


@root.backward
def _(g, out):
    return g / (2 * out)


def on_tape(arrays):
    return [tg.tensor(a, requires_grad=True) for a in arrays]


def state_of_tape():
    gc.collect()
    s = rt.state
    return int(s.row_count), int(s.live_buffers), int(s.live_storages), int(s.used_bytes)


def check_like(call, reference, arrays, orders=2):
    """Compare values and derivatives with those of a composition of operations."""
    results = []
    for function in (call, reference):
        tensors = on_tape(arrays)
        total = function(*tensors)
        values = [total]
        for _ in range(orders):
            weights = tg.tensor(np.linspace(0.5, 1.5, total.numel()).reshape(tuple(total.shape)))
            found = tg.autograd.grad((total * weights).sum(), tensors, create_graph=orders > 1, materialize_grads=True)
            values += found
            total = sum(g.sum() * (k + 1) for k, g in enumerate(found))
        results.append([v.detach().numpy() for v in values])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------- what can be a scalar expression


def declared_in(source, /, **names):
    """A function from text, with its source where a notebook would have it."""
    namespace = {"__name__": "notebook", "tg": tg, "np": np, "math": math, "numba": numba} | names
    text = textwrap.dedent(source)
    declared_in.count += 1
    file = f"<cell {declared_in.count}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    exec(compile(text, file, "exec"), namespace)
    return namespace["f"]


declared_in.count = 0


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("    if x > 0:\n        return x\n    return -x", "has no blocks; write 'a if test else b'"),
        ("    for k in range(3):\n        x = x * x\n    return x", "has no blocks"),
        ("    return x if x > 0 else helper(x)", "neither a pointwise operation nor compiled"),
        ("    return x * weights", "tensors and arrays must be inputs"),
        ("    return x * text", "it is a str, where a number is wanted"),
        ("    return x & 1", "no bits"),
        ("    return tg.sum(x)", "there is no pointwise operation 'sum' of 1 operands"),
        ("    return tg.exp(x, x)", "there is no pointwise operation|takes 1 operands, not 2"),
        ("    return math.gamma(x)", "there is no pointwise operation 'gamma'"),
        ("    return math.remainder(x, 2)", "neither a pointwise operation nor compiled"),
        ("    return x.real", "attributes of a scalar"),
        ("    return [x][0]", "no part of a scalar expression"),
        ("    return x in (1, 2)", "no part of a scalar expression"),
        ("    return tg.atan2(x, other=x)", "by position"),
        ("    return x, x", "one scalar expression"),
        ("    y = x", "has to return a scalar expression"),
        ("    return tg.digamma(tg.digamma(x)) * tg.lgamma(x)", None),
        ("    return tg.bitwise_and(x, x)", "not for floating point numbers"),
    ],
)
def test_what_is_no_scalar_expression(body, problem):
    def helper(x):
        return x

    names = {"helper": helper, "weights": np.ones(3), "text": "a"}
    text = f"def f(x):\n{body}\n"
    if problem is None:
        elementwise(declared_in(text, **names)).declared()
        return
    with pytest.raises(TypeError, match=problem):
        elementwise(declared_in(text, **names))


def test_functions_that_cannot_be_declared():
    with pytest.raises(TypeError, match="a lambda: write it with def"):
        elementwise(lambda x: x)
    with pytest.raises(TypeError, match=r"expected a plain Python function, but got a CPUDispatcher; leave out @njit"):
        elementwise(newton_root)
    with pytest.raises(TypeError, match="f has 4 inputs; an elementwise operation has 1 to 3"):
        elementwise(declared_in("def f(a, b, c, d): return a"))
    with pytest.raises(TypeError, match="an input cannot be called 'g', which is the derivative by the result"):
        elementwise(declared_in("def f(x, g): return x"))
    with pytest.raises(TypeError, match="must be one that is given by position"):
        elementwise(declared_in("def f(x, *, y): return x"))
    namespace = {}
    exec("def f(x): return x * x", namespace)
    with pytest.raises(TypeError, match=r"the source of f, .* cannot be had: define it in a file or a notebook cell"):
        elementwise(namespace["f"])


def test_a_source_edited_since_is_noticed():
    f = declared_in("def f(x):\n    return x * x\n")
    file = f.__code__.co_filename
    text = "def f(x):\n    return x * x * x\n"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    with pytest.raises(TypeError, match="is not what it was compiled from"):
        elementwise(f)


def test_names_may_be_defined_later():
    f = elementwise(declared_in("def f(x): return factor * x"))
    with pytest.raises(NameError, match="name 'factor' is not defined"):
        f(tg.ones(2))
    f.__wrapped__.__globals__["factor"] = 3
    assert f(tg.ones(2)).tolist() == [3.0, 3.0]


def test_an_operation_cannot_call_itself():
    f = elementwise(declared_in("def f(x): return again(x)"))
    f.__wrapped__.__globals__["again"] = f
    with pytest.raises(TypeError, match="f: the function calls itself"):
        f(tg.ones(2))


# ---------------------------------------------------------------- identity


def test_equal_declarations_share_an_opcode_and_others_do_not():
    def make(factor):
        @elementwise
        def scaled(x):
            return factor * x * x

        return scaled

    twice, again, thrice = make(2.0), make(2.0), make(3.0)
    x = tg.tensor(1.5, requires_grad=True)
    y = twice(x)
    count = len(OPS)
    assert again(x).item() == y.item() == 4.5
    assert len(OPS) == count
    assert thrice(x).item() == 6.75
    assert len(OPS) == count + 1
    y.backward()  # the first one is undisturbed
    assert x.grad.item() == 6.0


def test_users_operations_are_not_built_in():
    elementwise(declared_in("def f(x): return tg.exp(x) * 7"))(tg.ones(2))
    assert "f" not in PUBLIC
    assert not hasattr(tg.Tensor, "f")
    assert all(op.__module__.startswith("tapegrad.") for op in built_in_ops())


def test_the_table_of_operations_may_be_full(monkeypatch):
    f = elementwise(declared_in("def f(x): return x * 17.25"))
    monkeypatch.setattr(structs, "MAX_OPS", len(OPS))
    with pytest.raises(
        RuntimeError,
        match=r"f would be operation number \d+, and a process holds at most \d+\. .*make what varies an input",
    ):
        f(tg.ones(2))
    monkeypatch.undo()
    assert f(tg.ones(())).item() == 17.25


def test_a_function_of_the_same_name_is_another_one():
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    results = []
    for body in ("a + 1", "a * 3", "a + 1"):
        helper = declared_in(f"@numba.njit\ndef f(a): return {body}")
        f = elementwise(declared_in("def f(x): return helper(x)", helper=helper))
        f.backward(declared_in("def f(g, x): return g * helper(x)", helper=helper))
        y = f(x)
        results.append((y.tolist(), tg.autograd.grad(y.sum(), x)[0].tolist()))
    assert results == [([2.0, 3.0],) * 2, ([3.0, 6.0],) * 2, ([2.0, 3.0],) * 2]


PROGRAM = """
import sys
import numba
import numpy as np
import tapegrad as tg
import {module} as helpers

@numba.njit
def through(x):
    return helpers.scaled(x)

@tg.autograd.elementwise
def f(x):
    return through(x)

@f.backward
def _(g, x):
    return g * through(1.0)

@numba.njit
def fill(x, out):
    out[:] = x + helpers.middle() + helpers.scaled(0.5)

x = tg.ones(2, dtype=tg.float64, requires_grad=True)
y = f(x)
y.sum().backward()
z = tg.autograd.native_op(fill)(x.detach())
from tapegrad.engine import kernels
print(y.tolist(), x.grad.tolist(), z.tolist(), kernels.counts["compiled"])
"""


def test_a_change_in_what_is_called_is_noticed_by_the_cache(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(module="helpers_of_a_test"))
    root = str(Path(__file__).resolve().parents[1])

    def run(factor, middle):
        (tmp_path / "helpers_of_a_test.py").write_text(
            f"import numba\nimport numpy as np\nFACTOR = {factor}\ntable = np.zeros(5000)\ntable[2500] = {middle}\n"
            "@numba.njit\ndef scaled(x):\n    return FACTOR * x\n@numba.njit\ndef middle():\n    return table.sum()\n"
        )
        code = f"import sys; sys.path[:0] = [{root!r}, {str(tmp_path)!r}]; sys.dont_write_bytecode = True; import runpy; runpy.run_path({str(tmp_path / 'program.py')!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("] ")

    first = run(2.0, 1.0)
    assert first[:3] == ["[2.0, 2.0", "[2.0, 2.0", "[3.0, 3.0"]
    assert run(3.0, 1.0)[:3] == ["[3.0, 3.0", "[3.0, 3.0", "[3.5, 3.5"]
    assert run(3.0, 2.0)[:3] == ["[3.0, 3.0", "[3.0, 3.0", "[4.5, 4.5"]
    again = run(2.0, 1.0)
    assert again[:3] == first[:3]
    assert int(again[3]) == 0  # all from the cache


# ---------------------------------------------------------------- what runs, and what stays


def python_calls(work):
    """How many Python functions some work calls."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("operation", ["derived", "declared", "array"])
def test_a_sweep_calls_no_python(operation):
    call = {
        "derived": lambda x: softsquare(x, 1.0),
        "declared": root,
        "array": lambda x: waves(x, x),
    }[operation]
    counts = []
    for length in (1, 3, 30):
        x = tg.full((5,), 2.0, dtype=tg.float64, requires_grad=True)
        y = x
        for _ in range(length):
            y = call(y)
        total = y.sum()
        counts.append(python_calls(lambda total=total: total.backward()))
    assert counts[1] == counts[2]  # the first loads kernels
    assert counts[1] < 12


def test_thousands_of_calls_do_not_grow():
    x = tg.full((5,), 2.0, dtype=tg.float64, requires_grad=True)
    bad = tg.full((5,), -1.0, dtype=tg.float64)

    def rounds(count):
        for _ in range(count):
            (softsquare(x, 1.0) + root(x) + waves(x, x)).sum().backward()
            x.grad = None
            with pytest.raises(ValueError, match="negative number"):
                root(bad)
        return state_of_tape()

    rounds(3)
    codes = len(OPS)
    before = rounds(1)
    assert rounds(3000) == before
    assert len(OPS) == codes


# ---------------------------------------------------------------- compiled functions on arrays


@numba.njit
def fill_waves(x, w, out):
    for i in np.ndindex(out.shape):
        out[i] = w[i] * math.sin(x[i])


@numba.njit
def add_waves(g, x, w, gx, gw):
    for i in np.ndindex(g.shape):
        gx[i] += g[i] * w[i] * math.cos(x[i])
        gw[i] = g[i] * math.sin(x[i])


def waves_over_tensors(g, x, w):
    return g * w * tg.cos(x), g * tg.sin(x)


waves = native_op(fill_waves, add_waves, name="waves", tensor_backward=waves_over_tensors)


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
    weights, step = draw((2, 3), 2), 1e-6
    tensors = on_tape([x, w])
    found = tg.autograd.grad((waves(*tensors) * tg.tensor(weights)).sum(), tensors)
    for k, array in enumerate((x, w)):
        for index in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = [x.copy(), w.copy()]
                moved[k][index] += sign * step
                sides.append((waves(*map(tg.tensor, moved)).numpy() * weights).sum())
            assert found[k].numpy()[index] == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-7)


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
