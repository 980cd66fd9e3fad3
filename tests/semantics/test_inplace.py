"""In-place operations: version checks, leaves, views, indexed assignment, refusals."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import errors
from tests.helpers import const, leaf, raises, same, vals

NAME = tg.__name__
LEAF = "a leaf Variable that requires grad is being used in an in-place operation."
LEAF_VIEW = "a view of a leaf Variable that requires grad is being used in an in-place operation."


def modified(what, version, output_of=None):
    """The message of a saved tensor that was written to; PyTorch 2.13 words two parts otherwise."""
    torch = NAME == "torch"
    node = f", which is output 0 of {output_of if torch else output_of + 'Backward0'}," if output_of else ""
    option = ", check_nan=False" if torch else ""
    return raises(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"[{NAME}.{what}]{node} is at version {version}; expected version 0 instead. Hint: enable anomaly "
        "detection to find the operation that failed to compute its gradient, with "
        f"{NAME}.autograd.set_detect_anomaly(True{option})."
    )


# ---- versions ----


def test_every_in_place_op_raises_the_version_by_one():
    x = const([1.0, 2.0])
    assert x._version == 0
    x.add_(1)
    x *= 2
    x[0] = 5
    x.zero_()
    x.fill_(3)
    x.copy_(const([1.0, 1.0]))
    assert x._version == 6


def test_views_share_the_version():
    x = const([1.0, 2.0, 3.0])
    v = x[:2]
    v.add_(1)
    assert x._version == v._version == 1
    x.zero_()
    assert x._version == v._version == 2


def test_detach_shares_the_version_and_data_does_not():
    x = const([1.0, 2.0])
    x.detach().add_(1)
    assert x._version == 1
    x.data.add_(1)
    assert x._version == 1
    same(x, [3.0, 4.0])


# ---- a saved tensor that was written to ----


def test_saved_operand_of_mul():
    x = leaf([1.0, 2.0, 3.0], tg.float32)
    y = x * 2
    z = y * y
    y += 1
    with modified("FloatTensor [3]", 1, "Add"):
        z.sum().backward()


def test_saved_result_of_exp_double_matrix():
    x = leaf([[1.0, 2.0]])
    y = x.exp()
    y.mul_(2).mul_(3)
    with modified("DoubleTensor [1, 2]", 2, "Exp"):
        y.sum().backward()


def test_saved_leaf_has_no_output_number():
    x, c = leaf([1.0, 2.0]), const([3.0, 4.0])
    z, square = x * c, x * x
    with tg.no_grad():
        c.add_(1)
        x.add_(1)
    for y in (z, square):
        with modified("DoubleTensor [2]", 1):
            y.sum().backward()


@pytest.mark.parametrize(
    "write",
    [
        lambda c: c[:1].add_(1),
        lambda c: c.detach().zero_(),
        lambda c: c.__setitem__(0, 9.0),
        lambda c: c.t().fill_(2),
    ],
    ids=["through a view", "through detach", "setitem", "through t"],
)
def test_writing_through_an_alias_is_noticed(write):
    x, c = leaf([1.0, 2.0]), const([3.0, 4.0])
    z = (x * c).sum()
    write(c)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()
    assert x.grad is None


def test_writing_through_data_is_not_noticed():
    x, c = leaf([1.0, 2.0]), const([3.0, 4.0])
    z = (x * c).sum()
    c.data.fill_(10)
    z.backward()
    same(x.grad, [10.0, 10.0])


def test_nothing_saved_nothing_to_fear():
    x = leaf([1.0, 2.0])
    y = x * 1
    z = (y + y).sum()
    y.zero_()
    z.backward()
    same(x.grad, [2.0, 2.0])


# ---- leaves ----


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x.zero_(),
        lambda x: x.fill_(2),
        lambda x: x.copy_(tg.ones(2)),
        lambda x: x.__imul__(2),
        lambda x: x.exp_(),
    ],
    ids=["add_", "zero_", "fill_", "copy_", "imul", "exp_"],
)
def test_in_place_on_a_leaf_is_refused(write):
    x = leaf([1.0, 2.0])
    with raises(LEAF):
        write(x)
    same(x, [1.0, 2.0])
    assert x._version == 0


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x[:1].add_(1),
        lambda x: x.t().zero_(),
        lambda x: x.__setitem__(0, 5.0),
        lambda x: x[0].fill_(1),
    ],
    ids=["slice", "t", "setitem", "select"],
)
def test_in_place_on_a_view_of_a_leaf_is_refused(write):
    x = leaf([1.0, 2.0])
    with raises(LEAF_VIEW):
        write(x)
    same(x, [1.0, 2.0])


def test_in_place_on_a_leaf_under_no_grad():
    x = leaf([1.0, 2.0])
    with tg.no_grad():
        x -= 0.5
        x[0] = 9
    same(x, [9.0, 1.5])
    assert x.is_leaf
    assert x.requires_grad
    (x * x).sum().backward()
    same(x.grad, [18.0, 3.0])


def test_writing_to_the_view_made_under_no_grad_is_refused():
    x = leaf([1.0, 2.0])
    with tg.no_grad():
        v = x[:1]
    with pytest.raises(RuntimeError, match="A view was created in no_grad mode"):
        v.add_(1)


def test_a_gradient_cannot_be_written_to_a_view_of_a_constant_made_under_no_grad():
    x, c = leaf([1.0, 2.0]), const([3.0, 4.0])
    with tg.no_grad():
        v = c[:]
    v.mul_(2)
    for write in (lambda: v.sub_(x), lambda: v.__setitem__(0, x[0]), lambda: v[:1].copy_(x[:1]), lambda: v.pow_(x)):
        with pytest.raises(RuntimeError, match="A view was created in no_grad mode"):
            write()
    with tg.no_grad():
        v.sub_(x)
    same(c, [5.0, 6.0])


@pytest.mark.parametrize(
    ("write", "slope"),
    [
        (lambda y: y.addcmul_(y, y, value=0.5), lambda y: 1 + y),
        (lambda y: y.addcmul_(y * 1, y), lambda y: 1 + 2 * y),
        (lambda y: y.addcdiv_(y, y), lambda y: 1 + 0 * y),
        (lambda y: y.mul_(y), lambda y: 2 * y),
        (lambda y: y.mul_(y.detach()), None),
        (lambda y: y.div_(y.detach()), None),
        (lambda y: y.lerp_(y.detach(), y.detach()), None),
        (lambda y: y.view(2).mul_(y), None),
        (lambda y: y.mul_(y[:]), None),
    ],
    ids=["twice", "second", "quotient", "itself", "detached", "divisor", "weight", "view", "whole view"],
)
@pytest.mark.parametrize("create", [False, True])
def test_operands_that_are_overwritten_with_the_result_count_as_they_were_or_are_refused(write, slope, create):
    x = leaf([-0.25, 1.5])
    y = x.atan()
    old = y.detach().clone()
    write(y)
    if slope is None:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward(create_graph=create)
    else:
        y.sum().backward(create_graph=create)
        np.testing.assert_allclose(vals(x.grad), vals(slope(old)) / (1 + vals(x) ** 2))


def test_a_result_of_views_within_an_operation_may_be_written_to():
    x = leaf([1.0, 2.0])
    with tg.no_grad():
        y = x.reshape(2, 1).roll(1)
    y.mul_(x.reshape(2, 1))
    y[:1].mul_(x[0])
    y.sum().backward()
    same(x.grad, [4.0, 1.0])


def test_a_leaf_without_elements_is_refused_as_a_leaf():
    x = tg.zeros(3, 0, 0, requires_grad=True)
    for write in (lambda: x.zero_(), lambda: x.fill_(1), lambda: x.add_(1)):
        with pytest.raises(RuntimeError, match=r"^a leaf Variable that requires grad"):
            write()


def test_a_tensor_without_elements_does_not_overlap_itself():
    x = tg.ones(0, 1).expand(0, 3)
    assert x.stride(1) == 0
    assert x.add_(1).shape == (0, 3)


def test_assigning_data_replaces_the_values():
    x = leaf([1.0, 2.0])
    x.data = const([5.0, 6.0, 7.0])
    same(x, [5.0, 6.0, 7.0])
    assert x.requires_grad
    (x * x).sum().backward()
    same(x.grad, [10.0, 12.0, 14.0])


# ---- gradients through in-place operations ----


@pytest.mark.parametrize(
    ("f", "value", "gradient"),
    [
        (lambda y: y.add_(5), [7.0, 9.0], [2.0, 2.0]),
        (lambda y: y.mul_(5), [10.0, 20.0], [10.0, 10.0]),
        (lambda y: y.mul_(const([1.0, 3.0])), [2.0, 12.0], [2.0, 6.0]),
        (lambda y: y.zero_(), [0.0, 0.0], [0.0, 0.0]),
        (lambda y: y.fill_(4), [4.0, 4.0], [0.0, 0.0]),
        (lambda y: y.copy_(const([8.0, 9.0])), [8.0, 9.0], [0.0, 0.0]),
        (lambda y: y.add_(y), [4.0, 8.0], [4.0, 4.0]),
        (lambda y: y.sub_(1).mul_(3).neg_(), [-3.0, -9.0], [-6.0, -6.0]),
        (lambda y: y.add_(1, alpha=2).div_(4), [1.0, 1.5], [0.5, 0.5]),
        (lambda y: y.exp_(), np.exp([2.0, 4.0]), 2 * np.exp([2.0, 4.0])),
        (lambda y: y.clamp_(max=3), [2.0, 3.0], [2.0, 0.0]),
    ],
    ids=["add", "mul", "mul vector", "zero", "fill", "copy", "add itself", "chain", "alpha", "exp", "clamp"],
)
def test_in_place_on_a_non_leaf(f, value, gradient):
    x = leaf([1.0, 2.0])
    y = x * 2
    assert f(y) is y
    same(y, value)
    y.sum().backward()
    same(x.grad, gradient)


def test_augmented_assignment_keeps_the_object():
    x = leaf([3.0])
    y = z = x * 1
    y += 1
    y *= 4
    y /= 2
    assert y is z
    same(y, [8.0])
    y.backward()
    same(x.grad, [2.0])


def test_mul_by_itself_in_place_keeps_the_old_value_for_its_backward():
    x = leaf([3.0])
    y = x * 1
    y.mul_(y)
    same(y, [9.0])
    y.backward()
    same(x.grad, [6.0])


def test_a_constant_becomes_a_result_by_a_write():
    x, c = leaf([1.0, 2.0]), const([3.0, 4.0])
    c.mul_(x)
    assert c.requires_grad
    assert not c.is_leaf
    c.sum().backward()
    same(x.grad, [3.0, 4.0])
    assert x.requires_grad


def test_copy_passes_gradients_to_its_source():
    x, row = leaf(np.ones((2, 3))), leaf([1.0, 2.0, 3.0], tg.float32)
    y = x * 1
    y.copy_(row)
    (y * y).sum().backward()
    same(x.grad, np.zeros((2, 3)))
    same(row.grad, [4.0, 8.0, 12.0])
    assert row.grad.dtype == tg.float32


def test_fill_with_a_tensor_passes_the_sum():
    v, y = leaf(3.0), leaf([1.0, 2.0]) * 1
    y.fill_(v)
    (y * const([1.0, 10.0])).sum().backward()
    same(v.grad, 11.0)


def test_detach_in_place():
    x = leaf([1.0, 2.0])
    y = x * 2
    assert y.detach_() is y
    assert y.grad_fn is None
    assert not y.requires_grad
    with pytest.raises(RuntimeError, match="Can't detach views in-place"):
        (x * 1)[:1].detach_()


# ---- indexed assignment ----

V = [10.0, 20.0]
MASK = tg.tensor([True, False, False, True])


@pytest.mark.parametrize(
    ("index", "value", "result", "gx", "gv"),
    [
        (1, 5.0, [1, 5, 3, 4], [1, 0, 3, 4], None),
        (-1, 7.0, [1, 2, 3, 7], [1, 2, 3, 0], 4.0),
        (slice(1, 3), V, [1, 10, 20, 4], [1, 0, 0, 4], [2, 3]),
        (slice(None, None, 2), [9.0], [9, 2, 9, 4], [0, 2, 0, 4], [4]),
        (slice(None), 6.0, [6] * 4, [0] * 4, 10.0),
        (..., [[5.0]], [5] * 4, [0] * 4, [[10]]),
        (MASK, V, [10, 2, 3, 20], [0, 2, 3, 0], [1, 4]),
        (MASK, 0.5, [0.5, 2, 3, 0.5], [0, 2, 3, 0], None),
        ([3, 0], V, [20, 2, 3, 10], [0, 2, 3, 0], [4, 1]),
        (tg.tensor([2, 1]), 8.0, [1, 8, 8, 4], [1, 0, 0, 4], 5.0),
        (tg.tensor([[0], [-1]]), [[10.0], [20.0]], [10, 2, 3, 20], [0, 2, 3, 0], [[1], [4]]),
    ],
    ids=[
        "int",
        "scalar",
        "slice",
        "step",
        "all",
        "ellipsis",
        "mask",
        "mask-number",
        "list",
        "array",
        "array-2d",
    ],
)
def test_setitem(index, value, result, gx, gv):
    x = leaf([1.0, 2.0, 3.0, 4.0])
    v = value if gv is None else leaf(value)
    y = x * 1
    y[index] = v
    same(y, result)
    (y * const([1.0, 2.0, 3.0, 4.0])).sum().backward()
    same(x.grad, gx)
    if gv is not None:
        same(v.grad, gv)


def test_setitem_into_a_constant_makes_a_result():
    x, c = leaf([1.0, 2.0]), tg.zeros(2, 2, dtype=tg.float64)
    c[0] = x
    c[1, 0] = x[1] * 3
    same(c, [[1.0, 2.0], [6.0, 0.0]])
    c.sum().backward()
    same(x.grad, [1.0, 4.0])


# ---- refusals leave everything as it was ----


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda y: y.add_(tg.ones(2, 2)), r"shape \[2\].*shape \[2, 2\]"),
        (lambda y: y.mul_(tg.ones(3)), r"\(2\).*\(3\)"),
        (lambda y: y.copy_(tg.ones(3)), r"\(2\).*\(3\)"),
        (lambda y: y.__setitem__(slice(None), tg.ones(3)), r"\(2\).*\(3\)"),
        (lambda y: y.fill_(tg.ones(2)), "0-dimension"),
    ],
    ids=["broadcast", "shape", "copy", "setitem", "fill"],
)
def test_refused_write_changes_nothing(write, message):
    x = leaf([1.0, 2.0])
    y = x * x
    with pytest.raises(RuntimeError, match=message):
        write(y)
    same(y, [1.0, 4.0])
    assert y._version == 0
    y.sum().backward()
    same(x.grad, [2.0, 4.0])


@pytest.mark.parametrize(
    ("dtype", "write", "result", "output"),
    [
        (tg.int64, lambda c: c.add_(1.5), "Float", "Long"),
        (tg.int64, lambda c: c.__itruediv__(2), "Float", "Long"),
        (tg.int32, lambda c: c.mul_(tg.ones(2)), "Float", "Int"),
        (tg.bool, lambda c: c.add_(1), "Long", "Bool"),
    ],
)
def test_result_that_cannot_be_cast_is_refused(dtype, write, result, output):
    c = tg.ones(2, dtype=dtype)
    with raises(f"result type {result} can't be cast to the desired output type {output}"):
        write(c)
    assert c.tolist() == [1, 1]
    assert c._version == 0


def test_empty_tensors_are_written_to():
    for shape in ((0,), (2, 0), (0, 3), (2, 0, 3)):
        x = const(np.ones(shape))
        assert x.add_(x) is x
        assert x.mul_(2).copy_(x).shape == shape
    with raises(errors.SELF_OVERLAP):
        const([1.0]).expand(3).add_(1)
