"""What matrix products refuse, word for word, and what their gradient functions are called."""

import pytest

import tapegrad as tg
from tapegrad.ops import affine


def test_bool_and_half_are_refused():
    with pytest.raises(NotImplementedError, match="\"addmm_impl_cpu_\" not implemented for 'Bool'"):
        tg.ones(2, 2, dtype=tg.bool) @ tg.ones(2, 2, dtype=tg.bool)


ERRORS = [
    ("a(2,3) @ a(4,5)", "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ("a(5,2,3) @ a(4,5)", "mat1 and mat2 shapes cannot be multiplied (10x3 and 4x5)"),
    ("a(4) @ a(3,2)", "mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)"),
    ("a(2,3) @ a(4)", "size mismatch, got input (2), mat (2x3), vec (4)"),
    ("a(5,2,3) @ a(4)", "size mismatch, got input (10), mat (10x3), vec (4)"),
    (
        "a(5,2,3) @ a(5,4,5)",
        "Expected size for first two dimensions of batch2 tensor to be: [5, 3] but got: [5, 4].",
    ),
    (
        "a(5,2,3) @ a(6,3,5)",
        "The size of tensor a (5) must match the size of tensor b (6) at non-singleton dimension 0: "
        "matmul got shapes [5, 2, 3], [6, 3, 5]",
    ),
    ("a() @ a(2,2)", "both arguments to matmul need to be at least 1D, but they are 0D and 2D"),
    (
        "a(3) @ a(4)",
        "inconsistent tensor size, expected tensor [3] and src [4] to have the same number of elements, "
        "but got 3 and 4 elements respectively",
    ),
    ("a(2,3) @ a(3,4).double()", "expected m1 and m2 to have the same dtype, but got: float != double"),
    ("a(3) @ a(3).double()", "dot : expected both vectors to have same dtype, but found Float and Double"),
    (
        "a(2,3) @ a(3).double()",
        "addmv input tensors must have the same dtype, but got Double, Float, and Double",
    ),
    ("a(2,2,3) @ a(2,3,4).double()", "expected scalar type Float but found Double"),
    ("tg.mm(a(2), a(2,2))", "self must be a matrix"),
    ("tg.mv(a(2,3), a(4,4))", "vector + matrix @ vector expected, got 1, 2, 2"),
    ("tg.bmm(a(2,3), a(2,3,4))", "batch1 must be a 3D tensor"),
    ("tg.addmm(a(4), a(3), a(3,4))", "mat1 must be a matrix, got 1-D tensor"),
    (
        "tg.addmm(a(5), a(2,3), a(3,4))",
        "The expanded size of the tensor (4) must match the existing size (5) at non-singleton dimension 1.  "
        "Target sizes: [2, 4].  Tensor sizes: [5]",
    ),
    ("tg.outer(a(2,2), a(3))", "outer: Expected 1-D argument self, but got 2-D"),
    ("tg.trace(a(3))", "trace: expected a matrix, but got tensor with dim 1"),
    ("tg.cross(a(2,4), a(2,4), dim=0)", "linalg.cross: inputs dimension 0 must have length 3. Got 2 and 2"),
    ("tg.tensordot(a(2,3), a(4,5), dims=-1)", "tensordot expects dims >= 0, but got dims=-1"),
    (
        "tg.matrix_power(a(2,3), 2)",
        "linalg.matrix_power: A must be batches of square matrices, but they are 2 by 3 matrices",
    ),
    (
        "tg.einsum('ij,jk->ik', a(2,3), a(4,4))",
        "einsum(): subscript j has size 4 for operand 1 which does not broadcast with previously seen size 3",
    ),
    ("tg.einsum('ii->ii', a(3,3))", "einsum(): output subscript i appears more than once in the output"),
    (
        "tg.einsum('i->j', a(3))",
        "einsum(): output subscript j does not appear in the equation for any input operand",
    ),
    ("tg.einsum('ij,jk', a(2,3))", "einsum(): fewer operands were provided than specified in the equation"),
    ("tg.einsum('i', a(2), a(3))", "einsum(): more operands were provided than specified in the equation"),
]


@pytest.mark.parametrize(("expression", "message"), ERRORS, ids=[e for e, _ in ERRORS])
def test_error_text(expression, message):
    names = {"tg": tg, "a": lambda *shape: tg.ones(shape)}
    for _ in range(2):  # the second time must not find a plan of the first
        with pytest.raises(RuntimeError) as caught:
            eval(expression, names)
        assert str(caught.value) == message


def test_operands_that_are_no_tensors():
    with pytest.raises(TypeError, match="unsupported operand type"):
        tg.ones(2, 2) @ 3
    with pytest.raises(TypeError, match=r"matmul\(\): argument 'other' \(position 2\) must be Tensor, not int"):
        tg.matmul(tg.ones(2, 2), 3)
    with pytest.raises(TypeError, match=r"mm\(\): argument 'mat2' \(position 2\) must be Tensor, not int"):
        tg.mm(tg.ones(2, 2), 3)


NAMES = [
    ("a(2,3) @ a(3,4)", "MmBackward0"),
    ("a(2,3) @ a(3)", "MvBackward0"),
    ("a(3) @ a(3)", "DotBackward0"),
    ("a(3) @ a(3,4)", "SqueezeBackward4"),
    ("a(5,2,3) @ a(5,3,4)", "UnsafeViewBackward0"),
    ("tg.bmm(a(5,2,3), a(5,3,4))", "BmmBackward0"),
    ("tg.addmm(a(4), a(2,3), a(3,4))", "AddmmBackward0"),
    ("tg.addmv(a(2), a(2,3), a(3))", "AddmvBackward0"),
    ("tg.baddbmm(a(4), a(5,2,3), a(5,3,4))", "BaddbmmBackward0"),
    ("tg.outer(a(2), a(3))", "MulBackward0"),
    ("tg.trace(a(2,2))", "TraceBackward0"),
    ("tg.cross(a(2,3), a(2,3))", "LinalgCrossBackward0"),
    ("linear(a(2,3), a(4,3), a(4))", "AddmmBackward0"),
    ("linear(a(2,3), a(4,3))", "MmBackward0"),
    ("linear(a(5,2,3), a(4,3), a(4))", "ViewBackward0"),
]


@pytest.mark.parametrize(("expression", "name"), NAMES, ids=[e for e, _ in NAMES])
def test_name_of_the_gradient_function(expression, name):
    names = {"tg": tg, "linear": affine.linear, "a": lambda *shape: tg.ones(shape, requires_grad=True)}
    assert eval(expression, names).grad_fn.name() == name
