"""Methods of `Tensor` without a Python frame answer as the methods they replace."""

import numpy as np
import pytest

from tests.processes import run

METHODS = '''
import json, math, operator, warnings
import numpy as np
import tapegrad as tg
from tapegrad.engine.runtime import rt

class Sub(tg.Tensor):
    """A class of a user."""

class Own(tg.Tensor):
    def __add__(self, other):
        return ("own", super().__mul__(other))

class Strange:
    def __radd__(self, other):
        return "strange sum"
    def __lt__(self, other):
        return "strange less"
    def __gt__(self, other):
        return "strange more"
    def __rmul__(self, other):
        raise KeyError("strange product")

def tensors():
    for dtype in (tg.float32, tg.float64, tg.int64, tg.uint8, tg.bool):
        yield tg.tensor([0, 1, 1], dtype=dtype)
        yield tg.tensor(1, dtype=dtype)
    yield tg.tensor([[0.5], [2.0]], dtype=tg.float64, requires_grad=True)
    yield tg.tensor([0.5, -0.0, math.nan], requires_grad=True)
    yield tg.tensor([2**62 + 1, -5, 2**53 + 1])
    yield tg.ones(0)
    yield tg.ones(4, 5)
    yield tg.ones(2, 3).t()[:, 1]
    yield tg.tensor([1.0, 2.0]).as_subclass(Sub) if hasattr(tg.Tensor, "as_subclass") else tg.ones(2)

class Index:
    def __index__(self):
        return 3

class Int(int):
    pass

class Float(float):
    pass

OPERANDS = [2, -3, 0, 2.5, math.inf, math.nan, -0.0, True, False, 300, -1, 1e300, 2**31, 2**53 + 1, 2**62 + 1]
OPERANDS += [2**63 - 1, -2**63, 2**63, 2**64, 10**400, -10**400, 1 + 2j, None, "a", [1], (1.0, 2.0), object]
OPERANDS += [Strange(), Index(), Int(3), Float(0.5), np.float64(2.0), np.float32(0.1), np.int64(3)]
OPERANDS += [np.bool_(True), np.ones(3), np.ones((2, 3), np.float32)]
BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.lt, operator.le, operator.gt,
          operator.ge, operator.eq, operator.ne]
UNARY = ["exp", "sin", "neg", "abs", "sqrt", "log", "sigmoid", "relu", "tanh", "floor", "round", "square"]
UNARY += ["sign", "isnan", "logical_not", "bitwise_not", "__neg__", "__abs__", "reciprocal", "erf"]

def told(value):
    if isinstance(value, tg.Tensor):
        shown = [type(value).__name__, str(value.dtype), value.shape, value.requires_grad, value.is_leaf]
        return shown + [repr(value.detach().tolist()), type(value.grad_fn).__name__]
    if isinstance(value, tuple):
        return [told(v) for v in value]
    if isinstance(value, np.ndarray):
        return ["array", str(value.dtype), value.tolist().__repr__()]
    return [type(value).__name__, repr(value) if not callable(value) else ""]

def outcome(function, *arguments, **named):
    try:
        return told(function(*arguments, **named))
    except Exception as error:
        return [type(error).__name__, str(error)]

def refused(function, *arguments):
    # CPython itself refuses what is not a tensor as first argument, with a TypeError
    return outcome(function, *arguments)[0] in ("TypeError", "AttributeError")

def outcomes():
    found = {}
    made = list(tensors())
    for i, x in enumerate(made):
        for op in BINARY:
            for j, other in enumerate(OPERANDS):
                found[f"{op.__name__} {i} operand {j}"] = outcome(op, x, other)
                found[f"reflected {op.__name__} {i} operand {j}"] = outcome(op, other, x)
            for j, other in enumerate(made):
                found[f"{op.__name__} {i} tensor {j}"] = outcome(op, x, other)
        for name in UNARY:
            method = getattr(tg.Tensor, name)
            found[f"{name} {i}"] = outcome(method, x)
            found[f"{name} {i} bound"] = outcome(getattr(x, name))
            found[f"{name} {i} two"] = outcome(method, x, 1, 2)
            found[f"{name} {i} one"] = outcome(method, x, "a")
    x = tg.tensor([0.25, 1.26])
    for name in UNARY:
        found[f"{name} of a number"] = refused(getattr(tg.Tensor, name), 3)
        found[f"{name} named"] = [outcome(getattr(x, name), nonsense=1)[0]]
    found["round decimals"] = outcome(x.round, decimals=1)
    found["add called with a number"] = refused(tg.Tensor.__add__, 3, x)
    found["add without operand"] = [outcome(tg.Tensor.__add__, x)[0]]
    found["add with two"] = [outcome(x.__add__, 1, 2)[0]]
    found["add unknown"] = outcome(lambda: x.__add__(None) is NotImplemented)
    found["hash"] = outcome(lambda: hash(x) == hash(x) and {x: 1}[x] == 1)
    found["in a list"] = outcome(lambda: [v is x for v in [x]])
    found["sum"] = outcome(sum, [x, x, x])
    for mode in (tg.no_grad, tg.inference_mode):
        with mode():
            leaf = made[10]
            found[mode.__name__] = [outcome(f, leaf) for f in (operator.neg, tg.Tensor.exp, lambda t: t * 2)]
    found["default dtype"] = in_double(lambda: [outcome(operator.mul, made[4], 0.5), outcome(made[4].exp)])
    found["gradient"] = outcome(gradient)
    found["freed"] = outcome(freed)
    for kind in (Sub, Own):
        found[f"uninitialised {kind.__name__}"] = [outcome(lambda: kind.__new__(kind) + 1)[0]]
    found["subclass"] = subclass(Sub)
    found["own"] = subclass(Own)
    found["written"] = outcome(written)
    return found

def in_double(function):
    tg.set_default_dtype(tg.float64)
    try:
        return function()
    finally:
        tg.set_default_dtype(tg.float32)

def subclass(kind):
    y = kind([1.0, 2.0]) if kind_works(kind) else None
    if y is None:
        return "cannot be made"
    pairs = [(y, 2.0), (2.0, y), (y, y), (y, tg.ones(2)), (tg.ones(2), y)]
    return [outcome(op, a, b) for op in BINARY for a, b in pairs]

def kind_works(kind):
    try:
        return isinstance(kind([1.0, 2.0]), kind)
    except Exception:
        return False

def gradient():
    x = tg.tensor([0.5, 1.5], dtype=tg.float64, requires_grad=True)
    y = 1 - (2 / x - x * x.exp()).sin() + -x * 3 + abs(x) / 2
    y.sum().backward()
    return x.grad

def freed():
    x = tg.tensor([0.5, 1.5], requires_grad=True)
    y = (x * x).exp().sum()
    y.backward()
    y.backward()

def written():
    x = tg.tensor([0.5, 1.5], requires_grad=True)
    y = x * 1.0
    z = y.exp() * y
    y += 1
    z.sum().backward()

# the comparison takes more operations than those after which methods are replaced: that is put off meanwhile
rt.state["native"] = 1
before = outcomes()
frames = [type(getattr(tg.Tensor, n)).__name__ for n in ("__add__", "exp")]
rt.state["native"] = 0
x = tg.ones(2)
for _ in range(1500):
    x = x * 1.0
after = outcomes()
frames += [type(getattr(tg.Tensor, n)).__name__ for n in ("__add__", "exp")]
different = {k: [before[k], after[k]] for k in before if repr(before[k]) != repr(after[k])}
print(json.dumps([len(before), frames, different]))
'''


def test_compiled_methods_answer_as_the_methods_they_replace():
    (count, frames, different), _ = run(METHODS, PYTHONWARNINGS="ignore")
    assert count > 5_000
    assert frames[:2] == ["function", "function"]
    if frames[2:] == frames[:2]:
        pytest.skip("methods are not replaced on this interpreter")
    assert frames[2:] == ["method_descriptor", "method_descriptor"]
    assert different == {}


def test_methods_are_replaced_after_a_thousand_operations():
    text = """
import json
import tapegrad as tg
from tapegrad.engine import native

x, answers = tg.tensor([1.0, 2.0], requires_grad=True), []
for _ in range(1200):
    y = ((1.5 - x) * 2 + x / 3).exp()
    answers.append(y.detach().numpy().tobytes().hex())
kept = x * 2  # made before nothing else is
y.sum().backward()
print(json.dumps([len(set(answers)), type(tg.Tensor.__add__).__name__, native.supported(), x.grad.tolist()]))
"""
    (distinct, kind, supported, gradient), _ = run(text)
    assert distinct == 1
    assert kind == ("method_descriptor" if supported else "function")
    y = np.exp((1.5 - np.array([1.0, 2.0])) * 2 + np.array([1.0, 2.0]) / 3)
    np.testing.assert_allclose(gradient, y * (-2 + 1 / 3), rtol=1e-5)
