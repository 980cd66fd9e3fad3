"""Operations that users declare: what can be a scalar expression, what tells one from another, what runs, and what stays."""

import linecache
import sys

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.autograd import elementwise
from tapegrad.engine import structs
from tapegrad.ops._rule import OPS, PUBLIC, built_in_ops
from tests import processes
from tests.declared import declared_in, newton_root, root, softsquare, waves
from tests.helpers import state_of_tape

# ---------------------------------------------------------------- what can be a scalar expression


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
import json
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
print(json.dumps([y.tolist(), x.grad.tolist(), z.tolist(), kernels.counts["compiled"]]))
"""


def test_a_change_in_what_is_called_is_noticed_by_the_cache(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(module="helpers_of_a_test"))

    def run(factor, middle):
        (tmp_path / "helpers_of_a_test.py").write_text(
            f"import numba\nimport numpy as np\nFACTOR = {factor}\ntable = np.zeros(5000)\ntable[2500] = {middle}\n"
            "@numba.njit\ndef scaled(x):\n    return FACTOR * x\n@numba.njit\ndef middle():\n    return table.sum()\n"
        )
        start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.dont_write_bytecode = True; "
        return processes.run(start + f"import runpy; runpy.run_path({str(tmp_path / 'program.py')!r})")[0]

    first = run(2.0, 1.0)
    assert first[:3] == [[2.0, 2.0], [2.0, 2.0], [3.0, 3.0]]
    assert run(3.0, 1.0)[:3] == [[3.0, 3.0], [3.0, 3.0], [3.5, 3.5]]
    assert run(3.0, 2.0)[:3] == [[3.0, 3.0], [3.0, 3.0], [4.5, 4.5]]
    again = run(2.0, 1.0)
    assert again[:3] == first[:3]
    assert again[3] == 0  # all from the cache


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
