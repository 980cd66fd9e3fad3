"""Numbers, dtypes and gradient suffixes as text, against tables.

The expected strings were printed by PyTorch 2.13, with ``torch.`` replaced by ``tapegrad.``.
"""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.printing import format_tensor

f32, f64 = np.float32, np.float64
inf, nan = np.inf, np.nan

PLAIN = [
    pytest.param(f32([1, 2.5, -3]), "tensor([ 1.0000,  2.5000, -3.0000])", id="float"),
    pytest.param(np.full((2, 2), 27, f32), "tensor([[27., 27.],\n        [27., 27.]])", id="whole_floats"),
    pytest.param(np.array([1, 2]), "tensor([1, 2])", id="int64"),
    pytest.param(np.array([True, False]), "tensor([ True, False])", id="bool"),
    pytest.param(
        np.array([[False, False], [True, False]]),
        "tensor([[False, False],\n        [ True, False]])",
        id="bool_2d",
    ),
    pytest.param(np.array([[1, -20], [300, 4]]), "tensor([[  1, -20],\n        [300,   4]])", id="int_widths"),
    pytest.param(
        np.array([-(2**63), 2**63 - 1]),
        "tensor([-9223372036854775808,  9223372036854775807])",
        id="int64_extremes",
    ),
    pytest.param(f32([-1.5, 22.25, -333]), "tensor([  -1.5000,   22.2500, -333.0000])", id="negative_floats"),
    pytest.param(f32([-1, 22, -333]), "tensor([  -1.,   22., -333.])", id="negative_whole_floats"),
    pytest.param(f32([-0.0, 0.0, 1.5]), "tensor([-0.0000, 0.0000, 1.5000])", id="negative_zero"),
    pytest.param(f32([-0.0, 0.0]), "tensor([-0., 0.])", id="negative_zeros_only"),
    pytest.param(f32([[0.00012, -0.00012]]), "tensor([[ 0.0001, -0.0001]])", id="rounds_to_zero"),
    pytest.param(f32([0.12345, 2.00005, 0.99996]), "tensor([0.1235, 2.0001, 1.0000])", id="rounding"),
    pytest.param(f32([0.1, 16777216]), "tensor([1.0000e-01, 1.6777e+07])", id="float32_is_exact_binary"),
    pytest.param(np.ones((1, 1, 1), f32), "tensor([[[1.]]])", id="one_element_3d"),
    pytest.param(
        np.arange(8, dtype=f32).reshape(2, 2, 2),
        "tensor([[[0., 1.],\n         [2., 3.]],\n\n        [[4., 5.],\n         [6., 7.]]])",
        id="3d",
    ),
    pytest.param(
        np.arange(16).reshape(2, 2, 2, 2),
        (
            "tensor([[[[ 0,  1],\n"
            "          [ 2,  3]],\n"
            "\n"
            "         [[ 4,  5],\n"
            "          [ 6,  7]]],\n"
            "\n"
            "\n"
            "        [[[ 8,  9],\n"
            "          [10, 11]],\n"
            "\n"
            "         [[12, 13],\n"
            "          [14, 15]]]])"
        ),
        id="4d",
    ),
    pytest.param(
        np.arange(6, dtype=f32).reshape(2, 3).T,
        "tensor([[0., 3.],\n        [1., 4.],\n        [2., 5.]])",
        id="transposed",
    ),
    pytest.param(np.arange(5)[::-1], "tensor([4, 3, 2, 1, 0])", id="reversed"),
]

SCALARS = [
    pytest.param(f32(3.14159), "tensor(3.1416)", id="float"),
    pytest.param(f32(27), "tensor(27.)", id="whole"),
    pytest.param(f32(-0.0), "tensor(-0.)", id="negative_zero"),
    pytest.param(f32(1e-5), "tensor(1.0000e-05)", id="small"),
    pytest.param(f32(123456789), "tensor(1.2346e+08)", id="large"),
    pytest.param(f32(nan), "tensor(nan)", id="nan"),
    pytest.param(f32(-inf), "tensor(-inf)", id="minus_inf"),
    pytest.param(f64(0.1), "tensor(0.1000, dtype=tapegrad.float64)", id="float64"),
    pytest.param(np.int64(-7), "tensor(-7)", id="int"),
    pytest.param(np.uint8(7), "tensor(7, dtype=tapegrad.uint8)", id="uint8"),
    pytest.param(np.bool_(True), "tensor(True)", id="bool"),
]

NONFINITE = [
    pytest.param(f32([nan, nan]), "tensor([nan, nan])", id="nan_only"),
    pytest.param(f32([[inf], [-inf]]), "tensor([[inf],\n        [-inf]])", id="inf_only"),
    pytest.param(f32([1, inf, -inf, nan]), "tensor([1., inf, -inf, nan])", id="with_whole"),
    pytest.param(f32([20, inf, 12345, nan]), "tensor([   20.,    inf, 12345.,    nan])", id="with_wide_whole"),
    pytest.param(f32([0.5, inf, -inf, nan, 0]), "tensor([0.5000,    inf,   -inf,    nan, 0.0000])", id="with_fraction"),
    pytest.param(
        f32([1e-7, inf, -inf, nan, 0]),
        "tensor([1.0000e-07,        inf,       -inf,        nan, 0.0000e+00])",
        id="with_scientific",
    ),
    pytest.param(f32([0, nan]), "tensor([0., nan])", id="with_zero"),
]

SCIENTIFIC = [
    pytest.param(f32([0.5, 500]), "tensor([  0.5000, 500.0000])", id="ratio_1000_is_plain"),
    pytest.param(f32([0.5, 500.5]), "tensor([5.0000e-01, 5.0050e+02])", id="ratio_above_1000"),
    pytest.param(f32([1, 1000]), "tensor([   1., 1000.])", id="whole_ratio_1000"),
    pytest.param(f32([1, 1001]), "tensor([1.0000e+00, 1.0010e+03])", id="whole_ratio_above_1000"),
    pytest.param(f32([1e8]), "tensor([100000000.])", id="max_1e8_is_plain"),
    pytest.param(f32([100000008]), "tensor([1.0000e+08])", id="max_above_1e8"),
    pytest.param(f64([1e-4]), "tensor([0.0001], dtype=tapegrad.float64)", id="min_1e-4_is_plain"),
    pytest.param(f64([0.9999e-4]), "tensor([9.9990e-05], dtype=tapegrad.float64)", id="min_below_1e-4"),
    pytest.param(f32([1e-4]), "tensor([1.0000e-04])", id="float32_1e-4_is_below"),
    pytest.param(f32([0, 500, 2.5]), "tensor([  0.0000, 500.0000,   2.5000])", id="zero_does_not_count"),
    pytest.param(
        f32([[-1e-6, 2], [3e10, -4]]),
        "tensor([[-1.0000e-06,  2.0000e+00],\n        [ 3.0000e+10, -4.0000e+00]])",
        id="negatives",
    ),
    pytest.param(
        f64([1e-300, 1, 1e150]),
        "tensor([1.0000e-300,  1.0000e+00, 1.0000e+150], dtype=tapegrad.float64)",
        id="three_digit_exponent",
    ),
    pytest.param(
        f64([1e-308, 1e308]),
        "tensor([1.0000e-308, 1.0000e+308], dtype=tapegrad.float64)",
        id="overflowing_ratio",
    ),
    pytest.param(np.float16([65504, 1]), "tensor([6.5504e+04, 1.0000e+00], dtype=tapegrad.float16)", id="float16_max"),
]

DTYPES = [
    pytest.param(f64([1, 2.5]), {}, "tensor([1.0000, 2.5000], dtype=tapegrad.float64)", id="float64"),
    pytest.param(f64([1, 2.5]), {"default_dtype": "float64"}, "tensor([1.0000, 2.5000])", id="float64_by_default"),
    pytest.param(
        f32([1, 2.5]),
        {"default_dtype": "float64"},
        "tensor([1.0000, 2.5000], dtype=tapegrad.float32)",
        id="float32_not_default",
    ),
    pytest.param(np.array([1]), {"default_dtype": "float64"}, "tensor([1])", id="int64_not_default"),
    pytest.param(np.float16([0.1, 2]), {}, "tensor([0.1000, 2.0000], dtype=tapegrad.float16)", id="float16"),
    pytest.param(
        f32([0.10009765625, 2]),
        {"dtype_name": "bfloat16"},
        "tensor([0.1001, 2.0000], dtype=tapegrad.bfloat16)",
        id="bfloat16",
    ),
    pytest.param(np.int32([1, -2]), {}, "tensor([ 1, -2], dtype=tapegrad.int32)", id="int32"),
    pytest.param(np.int16([1, -2]), {}, "tensor([ 1, -2], dtype=tapegrad.int16)", id="int16"),
    pytest.param(np.int8([-128, 127]), {}, "tensor([-128,  127], dtype=tapegrad.int8)", id="int8"),
    pytest.param(np.uint8([0, 255]), {}, "tensor([  0, 255], dtype=tapegrad.uint8)", id="uint8"),
    pytest.param(np.uint16([0, 65535]), {}, "tensor([    0, 65535], dtype=tapegrad.uint16)", id="uint16"),
    pytest.param(np.uint64([2**64 - 1]), {}, "tensor([18446744073709551615], dtype=tapegrad.uint64)", id="uint64"),
]

EMPTY = [
    pytest.param(f32([]), {}, "tensor([])", id="float"),
    pytest.param(f64([]), {}, "tensor([], dtype=tapegrad.float64)", id="float64"),
    pytest.param(np.array([], np.int64), {}, "tensor([], dtype=tapegrad.int64)", id="int64"),
    pytest.param(np.array([], bool), {}, "tensor([], dtype=tapegrad.bool)", id="bool"),
    pytest.param(np.zeros((0, 3), f32), {}, "tensor([], size=(0, 3))", id="2d"),
    pytest.param(np.zeros((2, 0), f32), {}, "tensor([], size=(2, 0))", id="2d_inner"),
    pytest.param(
        np.zeros((2, 0, 3, 1), np.int64),
        {},
        "tensor([], size=(2, 0, 3, 1), dtype=tapegrad.int64)",
        id="4d_int64",
    ),
    pytest.param(np.zeros((0,), f64), {"default_dtype": "float64"}, "tensor([])", id="float64_by_default"),
    pytest.param(
        np.zeros((0, 0), f32),
        {"default_dtype": "float64"},
        "tensor([], size=(0, 0), dtype=tapegrad.float32)",
        id="float32_not_default",
    ),
    pytest.param(
        np.zeros((0, 3), f64),
        {"requires_grad": True},
        "tensor([], size=(0, 3), dtype=tapegrad.float64, requires_grad=True)",
        id="requires_grad",
    ),
]

GRADIENTS = [
    pytest.param(f32([1, 2]), {"requires_grad": True}, "tensor([1., 2.], requires_grad=True)", id="leaf"),
    pytest.param(
        f64([1, 2]),
        {"requires_grad": True},
        "tensor([1., 2.], dtype=tapegrad.float64, requires_grad=True)",
        id="leaf_float64",
    ),
    pytest.param(
        np.full((2, 2), 27, f32),
        {"grad_fn_name": "MulBackward0"},
        "tensor([[27., 27.],\n        [27., 27.]], grad_fn=<MulBackward0>)",
        id="mul",
    ),
    pytest.param(f32(27), {"grad_fn_name": "MeanBackward0"}, "tensor(27., grad_fn=<MeanBackward0>)", id="mean"),
    pytest.param(
        f32([1, 2]),
        {"requires_grad": True, "grad_fn_name": "CloneBackward0"},
        "tensor([1., 2.], grad_fn=<CloneBackward0>)",
        id="name_goes_before_flag",
    ),
    pytest.param(
        f64([[1, 2]]),
        {"grad_fn_name": "MulBackward0"},
        "tensor([[1., 2.]], dtype=tapegrad.float64, grad_fn=<MulBackward0>)",
        id="float64",
    ),
    pytest.param(
        np.ones((2, 1, 2), f32),
        {"grad_fn_name": "MulBackward0"},
        "tensor([[[1., 1.]],\n\n        [[1., 1.]]], grad_fn=<MulBackward0>)",
        id="3d",
    ),
]


@pytest.mark.parametrize(("array", "expected"), PLAIN + SCALARS + NONFINITE + SCIENTIFIC)
def test_numbers(array: np.ndarray, expected: str) -> None:
    shown_dtype = f", dtype=tapegrad.{array.dtype.name}"
    assert format_tensor(array) == expected
    # Naming the array's own dtype as the default hides the dtype and leaves the numbers alone.
    if array.dtype.kind == "f":
        assert format_tensor(array, default_dtype=array.dtype) == expected.replace(shown_dtype, "")


@pytest.mark.parametrize(("array", "arguments", "expected"), DTYPES + EMPTY + GRADIENTS)
def test_suffixes(array: np.ndarray, arguments: dict, expected: str) -> None:
    assert format_tensor(array, **arguments) == expected


def test_array_is_left_unchanged() -> None:
    array = np.arange(6, dtype=f32)
    array.flags.writeable = False
    format_tensor(array)
    assert array.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["a"]), np.array([None]), np.array([], "M8[s]")])
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="expected bool, integer or float"):
        format_tensor(array)
