"""Wrong shapes, dtypes, dims, indices and values: the exception's type, its facts, and an intact library."""

import re

import numpy as np
import pytest

import tapegrad as tg

F = tg.nn.functional


def ones(*shape, **options):
    return tg.ones(shape, **options)


def longs(*values):
    return tg.tensor(values, dtype=tg.int64)


def has(*facts):
    """A pattern: the facts, in any order, none of them part of a longer number or word."""
    return "(?is)" + "".join(rf"(?=.*(?<![\w.]){re.escape(str(f))}(?!\w))" for f in facts)


@pytest.fixture(autouse=True)
def gradients_still_work():
    """Whatever failed, an earlier graph and a new one still give the right answer."""
    x = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    earlier = (x * x).sum()
    yield
    (earlier + (x * 2).exp().sum()).backward()
    at = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(x.grad.numpy(), 2 * at + 2 * np.exp(2 * at), rtol=1e-5)


def refuse(*rows):
    """A test for each row: (call on a tensor x of shape (2, 3), exception, facts its message names)."""

    def decorate(f):
        ids = [row[0] for row in rows]
        return pytest.mark.parametrize(("call", "kind", "facts"), [row[1:] for row in rows], ids=ids)(f)

    return decorate


def check(call, kind, facts):
    x = tg.ones(2, 3, requires_grad=True)
    with pytest.raises(kind, match=has(*facts)):
        call(x)
    assert x.grad is None
    assert x._version == 0
    x.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.ones((2, 3)))


# ---- creation ----


@refuse(
    ("int too large", lambda x: tg.tensor([2**63]), ValueError, ["overflow"]),
    ("scalar too large", lambda x: tg.tensor(2**63), ValueError, ["overflow"]),
    (
        "int too small",
        lambda x: tg.tensor([-(2**63) - 1]),
        ValueError,
        ["overflow"],
    ),
    ("uint8 300", lambda x: tg.tensor(300, dtype=tg.uint8), RuntimeError, ["uint8", "overflow"]),
    ("uint8 list", lambda x: tg.tensor([1, 300], dtype=tg.uint8), RuntimeError, ["uint8", "overflow"]),
    ("int8 128", lambda x: tg.tensor([128], dtype=tg.int8), RuntimeError, ["int8", "overflow"]),
    ("int32 2**31", lambda x: tg.tensor([2**31], dtype=tg.int32), RuntimeError, ["int32", "overflow"]),
    ("ragged", lambda x: tg.tensor([[1, 2], [3]]), ValueError, ["length 2", "dim 1", "got 1"]),
    (
        "ragged deep",
        lambda x: tg.tensor([[[1], [2]], [[3], [4, 5]]]),
        ValueError,
        ["length 1", "dim 2", "got 2"],
    ),
    ("row then number", lambda x: tg.tensor([[1, 2], 3]), TypeError, ["sequence"]),
    ("number then row", lambda x: tg.tensor([1, [2]]), TypeError, ["list"]),
    ("string", lambda x: tg.tensor("a"), TypeError, ["str"]),
    ("strings", lambda x: tg.tensor(["a", "b"]), ValueError, ["str"]),
    ("None", lambda x: tg.tensor(None), RuntimeError, ["NoneType"]),
    ("list of None", lambda x: tg.tensor([None]), RuntimeError, ["NoneType"]),
    ("object", lambda x: tg.tensor([object()]), RuntimeError, ["object"]),
    ("dict", lambda x: tg.tensor({1: 2}), RuntimeError, ["dict"]),
    ("object array", lambda x: tg.tensor(np.array([1, None])), TypeError, ["numpy.object_", "float64"]),
    ("string array", lambda x: tg.tensor(np.array(["a"])), TypeError, ["numpy.str_"]),
    ("from object", lambda x: tg.from_numpy(np.array([1, None])), TypeError, ["numpy.object_"]),
    ("from dates", lambda x: tg.from_numpy(np.zeros(2, "M8[D]")), TypeError, ["numpy.datetime64"]),
    ("from list", lambda x: tg.from_numpy([1, 2]), TypeError, ["list"]),
    ("from reversed", lambda x: tg.from_numpy(np.arange(3)[::-1]), ValueError, ["negative"]),
    ("negative size", lambda x: tg.ones(2, -3), RuntimeError, ["-3"]),
    ("float size", lambda x: tg.zeros(2.5), TypeError, ["float"]),
    ("string size", lambda x: tg.zeros("a"), TypeError, ["str"]),
    ("full without value", lambda x: tg.full((2,)), TypeError, ["fill_value"]),
    ("arange step 0", lambda x: tg.arange(0, 5, 0), RuntimeError, ["step", "nonzero"]),
    ("arange sign", lambda x: tg.arange(5, 0, 1), RuntimeError, ["step", "sign"]),
    ("linspace steps", lambda x: tg.linspace(0, 1, -1), RuntimeError, ["steps"]),
    ("randint empty", lambda x: tg.randint(5, 3, (2,)), RuntimeError, [5, 3]),
    ("eye", lambda x: tg.eye(-1), RuntimeError, ["-1"]),
    ("normal std", lambda x: tg.normal(0.0, -1.0, (2,)), RuntimeError, ["std", "-1"]),
    ("dtype string", lambda x: tg.ones(2, dtype="float32"), TypeError, ["dtype", "str"]),
    ("no GPU", lambda x: x.to("cuda"), (RuntimeError, AssertionError), ["cuda"]),
    ("GPU at birth", lambda x: tg.tensor([1.0], device="cuda"), (RuntimeError, AssertionError), ["cuda"]),
    ("no such device", lambda x: tg.ones(2, device="toaster"), RuntimeError, ["cpu", "toaster"]),
)
def test_creation(call, kind, facts):
    check(call, kind, facts)


# ---- shapes ----


@pytest.mark.filterwarnings("ignore:Using a target size")
@refuse(
    ("add", lambda x: x + ones(2), RuntimeError, [3, 2, "dimension 1"]),
    ("mul", lambda x: x * ones(3, 2), RuntimeError, [3, 2, "dimension 1"]),
    ("comparison", lambda x: x < ones(4), RuntimeError, [3, 4]),
    ("where", lambda x: tg.where(x > 0, ones(4), x), RuntimeError, [3, 4]),
    ("matmul", lambda x: x @ ones(2, 3), RuntimeError, ["2x3"]),
    ("matmul vector", lambda x: x @ ones(2), RuntimeError, ["2x3", 2]),
    ("matmul 0-d", lambda x: x @ tg.tensor(1.0), RuntimeError, ["1D", "0D"]),
    ("dot", lambda x: tg.dot(x[0], ones(2)), RuntimeError, [3, 2]),
    ("dot 2-d", lambda x: tg.dot(x, x[0]), RuntimeError, ["1D", "2D"]),
    ("mm 1-d", lambda x: tg.mm(x[0], ones(3, 3)), RuntimeError, ["matrix"]),
    ("bmm", lambda x: tg.bmm(ones(2, 3, 4), ones(3, 4, 5)), RuntimeError, [2, 3, 4]),
    ("linear", lambda x: F.linear(x, ones(4, 2)), RuntimeError, ["2x3", "2x4"]),
    ("einsum", lambda x: tg.einsum("ij,jk", x, x), RuntimeError, ["j", 2, 3]),
    ("einsum output", lambda x: tg.einsum("ij->k", x), RuntimeError, ["k"]),
    ("view", lambda x: x.view(4), RuntimeError, ["[4]", 6]),
    ("reshape", lambda x: x.reshape(4, -1), RuntimeError, ["[4, -1]", 6]),
    ("two -1", lambda x: x.reshape(-1, -1), RuntimeError, ["one dimension"]),
    ("reshape float", lambda x: x.reshape(1.5), TypeError, ["float"]),
    ("expand", lambda x: x.expand(4, 3), RuntimeError, [4, 2, "[4, 3]", "[2, 3]"]),
    ("expand rank", lambda x: x.expand(3), RuntimeError, [1, 2]),
    ("cat", lambda x: tg.cat([x, ones(2, 4)]), RuntimeError, [3, 4, "number 1"]),
    ("cat rank", lambda x: tg.cat([x, ones(3)]), RuntimeError, [2, 1]),
    ("cat of nothing", lambda x: tg.cat([]), ValueError, ["non-empty"]),
    ("cat of numbers", lambda x: tg.cat([x, 1]), TypeError, ["element 1", "int"]),
    ("cat of a tensor", lambda x: tg.cat(x), TypeError, ["Tensor"]),
    ("stack", lambda x: tg.stack([x, ones(3)]), RuntimeError, ["[2, 3]", "[3]", "entry 1"]),
    ("split sizes", lambda x: x.split([1, 3]), RuntimeError, [2, "[1, 3]"]),
    ("split 0", lambda x: x.split(0), RuntimeError, [0]),
    ("chunk 0", lambda x: x.chunk(0), RuntimeError, [0]),
    ("narrow", lambda x: x.narrow(1, 2, 5), RuntimeError, [2, 5, 3]),
    ("repeat", lambda x: x.repeat(2), RuntimeError, ["dimensions"]),
    ("mask", lambda x: x.masked_fill(tg.tensor([True] * 4), 0.0), RuntimeError, [4, 3]),
    ("mse_loss", lambda x: F.mse_loss(x[0], ones(2)), RuntimeError, [3, 2]),
    ("bce", lambda x: F.binary_cross_entropy_with_logits(x[0], ones(2)), ValueError, ["[2]", "[3]"]),
    ("cross_entropy batch", lambda x: F.cross_entropy(x, longs(0)), ValueError, [2, 1]),
    ("nll_loss batch", lambda x: F.nll_loss(x, longs(0, 1, 2)), ValueError, [2, 3]),
    ("class weights", lambda x: F.cross_entropy(x, longs(0, 1), weight=ones(2)), RuntimeError, [3, "[2]"]),
)
def test_shapes(call, kind, facts):
    check(call, kind, facts)


# ---- dims ----

RANGE = ["[-2, 1]"]


@refuse(
    ("sum", lambda x: x.sum(2), IndexError, [*RANGE, 2]),
    ("sum negative", lambda x: x.sum(-3), IndexError, [*RANGE, "-3"]),
    ("sum twice", lambda x: x.sum((0, 0)), RuntimeError, [0]),
    ("sum string", lambda x: x.sum("a"), TypeError, ["str"]),
    ("sum float", lambda x: x.sum(1.5), TypeError, ["float"]),
    ("mean", lambda x: x.mean(5), IndexError, [*RANGE, 5]),
    ("max", lambda x: x.max(4), IndexError, [*RANGE, 4]),
    ("max of nothing", lambda x: ones(0).max(), RuntimeError, [0]),
    ("max over nothing", lambda x: ones(0, 3).max(0), IndexError, ["non-zero"]),
    ("argmax of nothing", lambda x: ones(0).argmax(), IndexError, [0]),
    ("softmax", lambda x: x.softmax(2), IndexError, [*RANGE, 2]),
    ("cumsum", lambda x: x.cumsum(2), IndexError, [*RANGE, 2]),
    ("sort", lambda x: x.sort(2), IndexError, [*RANGE, 2]),
    ("squeeze", lambda x: x.squeeze(4), IndexError, [*RANGE, 4]),
    ("unsqueeze", lambda x: x.unsqueeze(4), IndexError, ["[-3, 2]", 4]),
    ("transpose", lambda x: x.transpose(0, 2), IndexError, [*RANGE, 2]),
    ("permute short", lambda x: x.permute(0), RuntimeError, [2, 1]),
    ("permute twice", lambda x: x.permute(0, 0), RuntimeError, ["duplicate"]),
    ("permute range", lambda x: x.permute(0, 5), IndexError, [*RANGE, 5]),
    ("t", lambda x: x.reshape(1, 2, 3).t(), RuntimeError, ["3D"]),
    ("movedim", lambda x: x.movedim(0, 4), IndexError, [*RANGE, 4]),
    ("flatten", lambda x: x.flatten(1, 0), RuntimeError, ["start_dim", "end_dim"]),
    ("flip", lambda x: x.flip(3), IndexError, [*RANGE, 3]),
    ("diagonal same", lambda x: x.diagonal(0, 1, 1), RuntimeError, [1]),
    ("diagonal 1-d", lambda x: x[0].diagonal(), IndexError, ["[-1, 0]", 1]),
    ("cat", lambda x: tg.cat([x, x], 3), IndexError, [*RANGE, 3]),
    ("gather", lambda x: x.gather(2, longs([0])), IndexError, [*RANGE, 2]),
    ("size", lambda x: x.size(2), IndexError, [*RANGE, 2]),
)
def test_dims(call, kind, facts):
    check(call, kind, facts)


# ---- indices ----


@refuse(
    ("int", lambda x: x[2], IndexError, [2, "dimension 0", "size 2"]),
    ("negative", lambda x: x[:, -5], IndexError, ["-5", "dimension 1", "size 3"]),
    ("array", lambda x: x[longs(0, 2)], IndexError, [2, "dimension 0", "size 2"]),
    ("list", lambda x: x[:, [0, 7]], IndexError, [7, "size 3"]),
    ("float", lambda x: x[1.5], IndexError, ["integers", "float"]),
    ("nan", lambda x: x[float("nan")], IndexError, ["integers", "float"]),
    ("float array", lambda x: x[tg.tensor([0.0])], IndexError, ["long", "bool"]),
    ("too many", lambda x: x[0, 0, 0], IndexError, [2]),
    ("0-d", lambda x: x[0, 0][0], IndexError, ["0-dim"]),
    ("negative step", lambda x: x[::-1], ValueError, ["step"]),
    ("mask", lambda x: x[tg.tensor([True] * 3)], IndexError, ["[3]", "[2, 3]"]),
    ("mask column", lambda x: x[:, tg.tensor([True] * 2)], IndexError, ["[2]", "[2, 3]", "index 1"]),
    ("two arrays", lambda x: x[longs(0, 1), longs(0, 1, 2)], IndexError, ["[2]", "[3]"]),
    ("write int", lambda x: x.detach().__setitem__(5, 1.0), IndexError, [5, "size 2"]),
    ("write array", lambda x: x.detach().__setitem__(longs(5), 1.0), IndexError, [5, "size 2"]),
    ("write shape", lambda x: x.clone().__setitem__(0, ones(2)), RuntimeError, [3, 2]),
    ("write list", lambda x: x.clone().__setitem__(0, "ab"), TypeError, ["str"]),
    ("select", lambda x: x.select(1, 7), IndexError, [7, "[2, 3]", "dimension 1"]),
    ("gather", lambda x: x.gather(1, longs([3])), RuntimeError, [3, "dimension 1", "size 3"]),
    ("gather negative", lambda x: x.gather(1, longs([-1])), RuntimeError, ["-1", "size 3"]),
    ("gather rank", lambda x: x.gather(1, longs(0)), RuntimeError, ["dimensions"]),
    ("gather shape", lambda x: x.gather(1, longs([0], [0], [0])), RuntimeError, ["[3, 1]", "[2, 3]"]),
    ("gather dtype", lambda x: x.gather(1, tg.tensor([[0.0]])), RuntimeError, ["int64"]),
    ("index_select", lambda x: x.index_select(0, longs(2)), IndexError, ["out of range"]),
    ("index_select negative", lambda x: x.index_select(0, longs(-1)), IndexError, ["out of range"]),
    ("index_select rank", lambda x: x.index_select(0, longs([0])), IndexError, ["vector"]),
    ("index_select dtype", lambda x: x.index_select(0, ones(1)), RuntimeError, ["int64"]),
    ("scatter", lambda x: x.scatter(0, longs([5]), x), RuntimeError, [5, "dimension 0", "size 2"]),
    ("index_add", lambda x: x.index_add(0, longs(5), x[:1]), (IndexError, RuntimeError), ["out of"]),
    ("take", lambda x: x.take(longs(6)), IndexError, [6]),
    ("embedding", lambda x: F.embedding(longs(2), x), IndexError, ["out of range"]),
    ("embedding negative", lambda x: F.embedding(longs(-1), x), IndexError, ["out of range"]),
    ("embedding dtype", lambda x: F.embedding(ones(1), x), RuntimeError, ["Long", "Int"]),
    ("cross_entropy class", lambda x: F.cross_entropy(x, longs(0, 3)), IndexError, [3, "out of bounds"]),
    (
        "cross_entropy negative",
        lambda x: F.cross_entropy(x, longs(0, -1)),
        IndexError,
        ["-1", "out of bounds"],
    ),
    ("nll_loss class", lambda x: F.nll_loss(x, longs(0, 3)), IndexError, [3, "out of bounds"]),
    ("one_hot class", lambda x: F.one_hot(longs(0, 3), 3), RuntimeError, ["num_classes"]),
    ("one_hot negative", lambda x: F.one_hot(longs(-1)), RuntimeError, ["non-negative"]),
    ("topk", lambda x: x.topk(4), RuntimeError, ["k", "out of range"]),
)
def test_indices(call, kind, facts):
    check(call, kind, facts)


# ---- dtypes, arguments, values ----


@refuse(
    ("matmul dtypes", lambda x: x @ ones(3, 2, dtype=tg.float64), RuntimeError, ["float", "double"]),
    ("matmul ints", lambda x: x @ ones(3, 2, dtype=tg.int64), RuntimeError, ["float", "long"]),
    ("where condition", lambda x: tg.where(x, x, x), RuntimeError, ["boolean", "Float"]),
    ("float mask", lambda x: x.masked_fill(x, 0.0), RuntimeError, ["boolean"]),
    ("float classes", lambda x: F.cross_entropy(x, ones(2)), RuntimeError, ["Long", "Float"]),
    ("one_hot floats", lambda x: F.one_hot(ones(1)), RuntimeError, ["LongTensor"]),
    ("mean of ints", lambda x: longs(1, 2).mean(), RuntimeError, ["Long"]),
    ("softmax of ints", lambda x: longs(1).softmax(0), RuntimeError, ["Long"]),
    ("bool subtraction", lambda x: (x > 0) - (x > 0), RuntimeError, ["bool"]),
    ("float and", lambda x: x & x, (NotImplementedError, TypeError), []),
    ("add string", lambda x: x + "a", TypeError, ["str"]),
    ("add None", lambda x: x + None, TypeError, ["NoneType"]),
    ("add list", lambda x: x + [1.0], TypeError, ["list"]),
    ("less string", lambda x: x < "a", TypeError, ["str"]),
    ("sin of a number", lambda x: tg.sin(1.0), TypeError, ["sin", "Tensor", "float"]),
    ("sin of a string", lambda x: tg.sin("a"), TypeError, ["sin", "Tensor", "str"]),
    ("sin of nothing", lambda x: tg.sin(), TypeError, ["sin"]),
    ("sin of two", lambda x: tg.sin(x, x), TypeError, ["sin", 1, 2]),
    ("clamp without bounds", lambda x: tg.clamp(x), RuntimeError, ["min", "max", "None"]),
    ("no such attribute", lambda x: x.no_such_name, AttributeError, ["Tensor", "no_such_name"]),
    ("reduction", lambda x: F.mse_loss(x, x, reduction="bogus"), ValueError, ["bogus"]),
    ("dropout", lambda x: F.dropout(x, p=2.0), ValueError, ["2.0"]),
    ("bce range", lambda x: F.binary_cross_entropy(x * 2, ones(2, 3)), RuntimeError, [0, 1]),
    ("smoothing", lambda x: F.cross_entropy(x, longs(0, 1), label_smoothing=2.0), RuntimeError, [2]),
    ("int // 0", lambda x: longs(1) // 0, RuntimeError, ["ZeroDivisionError"]),
    ("bool of many", lambda x: bool(x), RuntimeError, ["ambiguous"]),
    ("bool of none", lambda x: bool(ones(0)), RuntimeError, ["ambiguous"]),
    ("item of many", lambda x: x.item(), RuntimeError, [6]),
    ("float of many", lambda x: float(x), ValueError, ["one element"]),
    ("int of nan", lambda x: int(tg.tensor(float("nan"))), ValueError, ["NaN"]),
    ("index of float", lambda x: range(3)[tg.tensor(1.0)], TypeError, ["integer"]),
    ("len of 0-d", lambda x: len(x[0, 0]), TypeError, ["0-d"]),
    ("iter of 0-d", lambda x: iter(x[0, 0]), TypeError, ["0-d"]),
)
def test_dtypes_arguments_and_values(call, kind, facts):
    check(call, kind, facts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tg.empty(2**57),
        lambda: tg.empty(2**40, 2**40),
        lambda: tg.ones(1).expand(2**40, 2**40),
        lambda: tg.ones(1).expand(2**35, 1) + tg.ones(1).expand(1, 2**35),
        lambda: tg.ones(1).expand(2**50).clone(),
    ],
    ids=["bytes", "elements", "view", "broadcast", "copy"],
)
def test_sizes_beyond_any_machine_are_refused(make):
    with pytest.raises((RuntimeError, MemoryError)):
        make()
    x = tg.tensor(2.0, requires_grad=True)
    (x * x).backward()
    assert x.grad.item() == 4.0
