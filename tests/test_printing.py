"""Tests of tensor printing: a table of PyTorch's own output, and random comparison with PyTorch itself.

The expected strings were printed by PyTorch 2.13, with ``torch.`` replaced by ``tapegrad.``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from tapegrad.printing import PrintOptions, format_tensor, get_printoptions, set_printoptions

f32, f64 = np.float32, np.float64
inf, nan = np.inf, np.nan


@pytest.fixture(autouse=True)
def default_options() -> Iterator[None]:
    """Start and leave every test with the default print options."""
    set_printoptions(profile="default")
    yield
    set_printoptions(profile="default")


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

WRAPPING = [
    pytest.param(
        np.arange(30),
        {},
        (
            "tensor([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16, 17,\n"
            "        18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29])"
        ),
        id="ints",
    ),
    pytest.param(
        np.arange(25, dtype=f32) / 4,
        {},
        (
            "tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000, 1.2500, 1.5000, 1.7500, 2.0000,\n"
            "        2.2500, 2.5000, 2.7500, 3.0000, 3.2500, 3.5000, 3.7500, 4.0000, 4.2500,\n"
            "        4.5000, 4.7500, 5.0000, 5.2500, 5.5000, 5.7500, 6.0000])"
        ),
        id="floats",
    ),
    pytest.param(
        np.full(12, 123),
        {},
        "tensor([123, 123, 123, 123, 123, 123, 123, 123, 123, 123, 123, 123])",
        id="exactly_one_line",
    ),
    pytest.param(
        np.arange(14) % 2 == 0,
        {},
        (
            "tensor([ True, False,  True, False,  True, False,  True, False,  True, False,\n"
            "         True, False,  True, False])"
        ),
        id="bools",
    ),
    pytest.param(
        np.arange(40, dtype=f32).reshape(2, 20) / 8,
        {},
        (
            "tensor([[0.0000, 0.1250, 0.2500, 0.3750, 0.5000, 0.6250, 0.7500, 0.8750, 1.0000,\n"
            "         1.1250, 1.2500, 1.3750, 1.5000, 1.6250, 1.7500, 1.8750, 2.0000, 2.1250,\n"
            "         2.2500, 2.3750],\n"
            "        [2.5000, 2.6250, 2.7500, 2.8750, 3.0000, 3.1250, 3.2500, 3.3750, 3.5000,\n"
            "         3.6250, 3.7500, 3.8750, 4.0000, 4.1250, 4.2500, 4.3750, 4.5000, 4.6250,\n"
            "         4.7500, 4.8750]])"
        ),
        id="2d",
    ),
    pytest.param(
        np.arange(60).reshape(2, 1, 30),
        {},
        (
            "tensor([[[ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16,\n"
            "          17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]],\n"
            "\n"
            "        [[30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46,\n"
            "          47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59]]])"
        ),
        id="3d",
    ),
    pytest.param(
        np.ones(11, f32),
        {"grad_fn_name": "MulBackward0"},
        "tensor([1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.], grad_fn=<MulBackward0>)",
        id="suffix_fits",
    ),
    pytest.param(
        np.full((2, 7), 1000, f32),
        {"requires_grad": True},
        (
            "tensor([[1000., 1000., 1000., 1000., 1000., 1000., 1000.],\n"
            "        [1000., 1000., 1000., 1000., 1000., 1000., 1000.]], requires_grad=True)"
        ),
        id="suffix_just_fits",
    ),
    pytest.param(
        np.full((2, 10), 10, f32),
        {"requires_grad": True},
        (
            "tensor([[10., 10., 10., 10., 10., 10., 10., 10., 10., 10.],\n"
            "        [10., 10., 10., 10., 10., 10., 10., 10., 10., 10.]],\n"
            "       requires_grad=True)"
        ),
        id="suffix_just_wraps",
    ),
    pytest.param(
        np.full((2, 10), 100, np.int32),
        {},
        (
            "tensor([[100, 100, 100, 100, 100, 100, 100, 100, 100, 100],\n"
            "        [100, 100, 100, 100, 100, 100, 100, 100, 100, 100]], dtype=tapegrad.int32)"
        ),
        id="dtype_just_fits",
    ),
    pytest.param(
        np.full((2, 17), 1, np.int32),
        {},
        (
            "tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],\n"
            "        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]],\n"
            "       dtype=tapegrad.int32)"
        ),
        id="dtype_just_wraps",
    ),
    pytest.param(
        np.ones(14, f32),
        {"grad_fn_name": "CloneBackward0"},
        ("tensor([1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.],\n       grad_fn=<CloneBackward0>)"),
        id="suffix_wraps",
    ),
    pytest.param(
        np.arange(18, dtype=f32).reshape(2, 9) / 4,
        {"grad_fn_name": "CloneBackward0"},
        (
            "tensor([[0.0000, 0.2500, 0.5000, 0.7500, 1.0000, 1.2500, 1.5000, 1.7500, 2.0000],\n"
            "        [2.2500, 2.5000, 2.7500, 3.0000, 3.2500, 3.5000, 3.7500, 4.0000, 4.2500]],\n"
            "       grad_fn=<CloneBackward0>)"
        ),
        id="suffix_wraps_2d",
    ),
    pytest.param(
        f64([0.5] * 6),
        {"grad_fn_name": "CloneBackward0"},
        (
            "tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000], dtype=tapegrad.float64,\n"
            "       grad_fn=<CloneBackward0>)"
        ),
        id="dtype_fits_grad_wraps",
    ),
    pytest.param(
        f64([0.5] * 8),
        {"grad_fn_name": "CloneBackward0"},
        (
            "tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000],\n"
            "       dtype=tapegrad.float64, grad_fn=<CloneBackward0>)"
        ),
        id="both_suffixes_wrap",
    ),
    pytest.param(
        np.full(17, 1, np.int32),
        {},
        "tensor([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], dtype=tapegrad.int32)",
        id="dtype_wraps",
    ),
]

SUMMARY = [
    pytest.param(np.arange(1001), {}, "tensor([   0,    1,    2,  ...,  998,  999, 1000])", id="1d"),
    pytest.param(
        np.arange(2000, dtype=f32),
        {},
        "tensor([0.0000e+00, 1.0000e+00, 2.0000e+00,  ..., 1.9970e+03, 1.9980e+03,\n        1.9990e+03])",
        id="1d_float",
    ),
    pytest.param(
        np.linspace(0, 1, 1500, dtype=f32),
        {},
        "tensor([0.0000e+00, 6.6711e-04, 1.3342e-03,  ..., 9.9867e-01, 9.9933e-01,\n        1.0000e+00])",
        id="1d_fraction",
    ),
    pytest.param(np.ones(1200, bool), {}, "tensor([True, True, True,  ..., True, True, True])", id="1d_bool"),
    pytest.param(
        np.r_[1.5, 2, 3, np.full(1000, 1e20), 4, 5, 6].astype(f32),
        {},
        "tensor([1.5000, 2.0000, 3.0000,  ..., 4.0000, 5.0000, 6.0000])",
        id="hidden_values_do_not_count",
    ),
    pytest.param(
        np.arange(10000, dtype=f32).reshape(100, 100),
        {},
        (
            "tensor([[0.0000e+00, 1.0000e+00, 2.0000e+00,  ..., 9.7000e+01, 9.8000e+01,\n"
            "         9.9000e+01],\n"
            "        [1.0000e+02, 1.0100e+02, 1.0200e+02,  ..., 1.9700e+02, 1.9800e+02,\n"
            "         1.9900e+02],\n"
            "        [2.0000e+02, 2.0100e+02, 2.0200e+02,  ..., 2.9700e+02, 2.9800e+02,\n"
            "         2.9900e+02],\n"
            "        ...,\n"
            "        [9.7000e+03, 9.7010e+03, 9.7020e+03,  ..., 9.7970e+03, 9.7980e+03,\n"
            "         9.7990e+03],\n"
            "        [9.8000e+03, 9.8010e+03, 9.8020e+03,  ..., 9.8970e+03, 9.8980e+03,\n"
            "         9.8990e+03],\n"
            "        [9.9000e+03, 9.9010e+03, 9.9020e+03,  ..., 9.9970e+03, 9.9980e+03,\n"
            "         9.9990e+03]])"
        ),
        id="2d",
    ),
    pytest.param(
        np.arange(2000).reshape(1000, 2),
        {},
        (
            "tensor([[   0,    1],\n"
            "        [   2,    3],\n"
            "        [   4,    5],\n"
            "        ...,\n"
            "        [1994, 1995],\n"
            "        [1996, 1997],\n"
            "        [1998, 1999]])"
        ),
        id="2d_tall",
    ),
    pytest.param(
        np.arange(2000).reshape(2, 1000),
        {},
        ("tensor([[   0,    1,    2,  ...,  997,  998,  999],\n        [1000, 1001, 1002,  ..., 1997, 1998, 1999]])"),
        id="2d_wide",
    ),
    pytest.param(
        np.arange(6000).reshape(6, 1000),
        {},
        (
            "tensor([[   0,    1,    2,  ...,  997,  998,  999],\n"
            "        [1000, 1001, 1002,  ..., 1997, 1998, 1999],\n"
            "        [2000, 2001, 2002,  ..., 2997, 2998, 2999],\n"
            "        [3000, 3001, 3002,  ..., 3997, 3998, 3999],\n"
            "        [4000, 4001, 4002,  ..., 4997, 4998, 4999],\n"
            "        [5000, 5001, 5002,  ..., 5997, 5998, 5999]])"
        ),
        id="2d_six_rows",
    ),
    pytest.param(
        np.zeros((10, 11, 12), f32),
        {},
        (
            "tensor([[[0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         ...,\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.]],\n"
            "\n"
            "        [[0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         ...,\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.]],\n"
            "\n"
            "        [[0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         ...,\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.]],\n"
            "\n"
            "        ...,\n"
            "\n"
            "        [[0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         ...,\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.]],\n"
            "\n"
            "        [[0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         ...,\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.]],\n"
            "\n"
            "        [[0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         ...,\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "         [0., 0., 0.,  ..., 0., 0., 0.]]])"
        ),
        id="3d",
    ),
    pytest.param(
        np.zeros((2, 6, 200), np.int32),
        {},
        (
            "tensor([[[0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0]],\n"
            "\n"
            "        [[0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0],\n"
            "         [0, 0, 0,  ..., 0, 0, 0]]], dtype=tapegrad.int32)"
        ),
        id="3d_short_axes",
    ),
    pytest.param(
        np.ones((1, 2, 50, 60), f32),
        {},
        (
            "tensor([[[[1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          ...,\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.]],\n"
            "\n"
            "         [[1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          ...,\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
            "          [1., 1., 1.,  ..., 1., 1., 1.]]]])"
        ),
        id="4d",
    ),
    pytest.param(
        np.zeros((40, 40), f64),
        {"grad_fn_name": "MulBackward0"},
        (
            "tensor([[0., 0., 0.,  ..., 0., 0., 0.],\n"
            "        [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "        [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "        ...,\n"
            "        [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "        [0., 0., 0.,  ..., 0., 0., 0.],\n"
            "        [0., 0., 0.,  ..., 0., 0., 0.]], dtype=tapegrad.float64,\n"
            "       grad_fn=<MulBackward0>)"
        ),
        id="suffixes",
    ),
]

OPTIONS = [
    pytest.param(f32([0.123456789, 2]), {}, {"precision": 6}, "tensor([0.123457, 2.000000])", id="precision"),
    pytest.param(f32([0.6, 2.5]), {}, {"precision": 0}, "tensor([1, 2])", id="precision_0"),
    pytest.param(f32([1e-9, 2]), {}, {"precision": 1}, "tensor([1.0e-09, 2.0e+00])", id="precision_scientific"),
    pytest.param(f32([1, 2.5]), {}, {"sci_mode": True}, "tensor([1.0000e+00, 2.5000e+00])", id="scientific_forced"),
    pytest.param(
        f32([1, -2]),
        {},
        {"sci_mode": True},
        "tensor([ 1.0000e+00, -2.0000e+00])",
        id="scientific_forced_whole",
    ),
    pytest.param(f32([0, nan]), {}, {"sci_mode": True}, "tensor([0., nan])", id="scientific_forced_zeros"),
    pytest.param(np.array([1, 2]), {}, {"sci_mode": True}, "tensor([1, 2])", id="scientific_forced_ints"),
    pytest.param(
        f32([1e-7, 123456.7]),
        {},
        {"sci_mode": False},
        "tensor([     0.0000, 123456.7031])",
        id="scientific_forbidden",
    ),
    pytest.param(
        f32([1, 3e10]),
        {},
        {"sci_mode": False},
        "tensor([          1., 30000001024.])",
        id="scientific_forbidden_whole",
    ),
    pytest.param(
        np.arange(10), {}, {"threshold": 10}, "tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])", id="threshold_reached"
    ),
    pytest.param(np.arange(10), {}, {"threshold": 5}, "tensor([0, 1, 2,  ..., 7, 8, 9])", id="threshold_exceeded"),
    pytest.param(f32(1.5), {}, {"threshold": 0}, "tensor(1.5000)", id="threshold_0_scalar"),
    pytest.param(np.arange(2000), {}, {"edgeitems": 1}, "tensor([   0,  ..., 1999])", id="edgeitems"),
    pytest.param(np.arange(2000), {}, {"edgeitems": 0}, "tensor([...], size=(2000,))", id="edgeitems_0"),
    pytest.param(
        np.zeros((40, 40), f64),
        {},
        {"edgeitems": 0},
        "tensor([...], size=(40, 40), dtype=tapegrad.float64)",
        id="edgeitems_0_2d",
    ),
    pytest.param(f32([1, 2]), {}, {"edgeitems": 0}, "tensor([1., 2.], size=(2,))", id="edgeitems_0_unsummarised"),
    pytest.param(np.zeros(0, f32), {}, {"edgeitems": 0}, "tensor([])", id="edgeitems_0_empty"),
    pytest.param(
        np.arange(12),
        {},
        {"linewidth": 30},
        "tensor([ 0,  1,  2,  3,  4,\n         5,  6,  7,  8,  9,\n        10, 11])",
        id="linewidth",
    ),
    pytest.param(
        np.zeros(14, f32),
        {},
        {"linewidth": 40},
        "tensor([0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.,\n        0., 0., 0.])",
        id="zeros_count_as_narrow",
    ),
    pytest.param(
        f32([0.5, 1]),
        {"requires_grad": True},
        {"linewidth": 5},
        "tensor([0.5000,\n        1.0000],\n       requires_grad=True)",
        id="linewidth_tiny",
    ),
    pytest.param(
        np.arange(1500, dtype=f32) / 7,
        {},
        {"profile": "short"},
        "tensor([0.00e+00, 1.43e-01,  ..., 2.14e+02, 2.14e+02])",
        id="short_profile",
    ),
    pytest.param(
        f32([0.123456789]),
        {},
        {"profile": "short", "precision": 7},
        "tensor([0.1234568])",
        id="profile_and_override",
    ),
    pytest.param(f32([0.123456789]), {}, {"profile": "none such"}, "tensor([0.1235])", id="unknown_profile"),
]


@pytest.mark.parametrize(("array", "expected"), PLAIN + SCALARS + NONFINITE + SCIENTIFIC)
def test_numbers(array: np.ndarray, expected: str) -> None:
    shown_dtype = f", dtype=tapegrad.{array.dtype.name}"
    assert format_tensor(array) == expected
    # Naming the array's own dtype as the default hides the dtype and leaves the numbers alone.
    if array.dtype.kind == "f":
        assert format_tensor(array, default_dtype=array.dtype) == expected.replace(shown_dtype, "")


@pytest.mark.parametrize(("array", "arguments", "expected"), DTYPES + EMPTY + GRADIENTS + WRAPPING + SUMMARY)
def test_suffixes_and_layout(array: np.ndarray, arguments: dict, expected: str) -> None:
    assert format_tensor(array, **arguments) == expected


@pytest.mark.parametrize(("array", "arguments", "options", "expected"), OPTIONS)
def test_options(array: np.ndarray, arguments: dict, options: dict, expected: str) -> None:
    set_printoptions(**options)
    assert format_tensor(array, **arguments) == expected


def test_prefix_sets_the_indent() -> None:
    array = np.full((2, 2), 27, f32)
    assert format_tensor(array, prefix="Mine(") == "Mine([[27., 27.],\n      [27., 27.]])"
    assert format_tensor(array, prefix="Parameter containing:\ntensor(", requires_grad=True) == (
        "Parameter containing:\n"
        "tensor([[27., 27.],\n"
        "        [27., 27.]], requires_grad=True)"
    )  # fmt: skip


def test_library_name_does_not_move_line_breaks() -> None:
    array = np.full((2, 10), 100, np.int32)
    short = format_tensor(array, library="t")
    assert short.endswith(", dtype=t.int32)")
    assert format_tensor(array, library="a_much_longer_name") == short.replace("t.int32", "a_much_longer_name.int32")


def test_summary_begins_above_the_threshold() -> None:
    assert "..." not in format_tensor(np.zeros((10, 100), f32))
    assert "..." in format_tensor(np.zeros((7, 143), f32))
    set_printoptions(profile="full")
    assert "..." not in format_tensor(np.zeros((7, 143), f32))


def test_large_array_is_summarised_without_reading_it_all() -> None:
    # A broadcast view of 10^12 elements: only its corners may be touched.
    array = np.broadcast_to(f32(1), (10**6, 10**6))
    assert format_tensor(array).count("1.") == 36


def test_array_is_left_unchanged() -> None:
    array = np.arange(6, dtype=f32)
    array.flags.writeable = False
    format_tensor(array)
    assert array.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["a"]), np.array([None]), np.array([], "M8[s]")])
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="expected bool, integer or float"):
        format_tensor(array)


def test_get_printoptions() -> None:
    assert get_printoptions() == PrintOptions(4, 1000, 3, 80, None)
    set_printoptions(precision=0, linewidth=120, sci_mode=True)
    assert get_printoptions() == PrintOptions(0, 1000, 3, 120, True)
    set_printoptions(edgeitems=5)
    assert get_printoptions() == PrintOptions(0, 1000, 5, 120, None)  # sci_mode is reset by every call
    set_printoptions(profile="short", threshold=7)
    assert get_printoptions() == PrintOptions(2, 7, 2, 80, None)
    set_printoptions(profile="full", sci_mode=False)
    saved = get_printoptions()
    assert saved == PrintOptions(4, math.inf, 3, 80, False)
    set_printoptions(profile="default")
    set_printoptions(**saved._asdict())
    assert get_printoptions() == saved


# Comparison with PyTorch itself, where it is installed.

COMPARED_DTYPES = ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    """Return a shape of up to four dimensions, empty or large enough to be summarised now and then."""
    ndim = int(rng.integers(0, 5))
    kind = rng.random()
    if kind < 0.08:
        return tuple(rng.integers(0, 3, ndim).tolist())
    if kind < 0.25:
        largest = {0: 1, 1: 3000, 2: 90, 3: 16, 4: 9}[ndim]
        return tuple(rng.integers(1, largest + 1, ndim).tolist())
    largest = {0: 1, 1: 40, 2: 14, 3: 5, 4: 3}[ndim]
    return tuple(rng.integers(1, largest + 1, ndim).tolist())


def random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return numbers of one of many magnitudes, whole or not, some with zeros, infinities and NaNs."""
    if dtype == "bool":
        return np.asarray(rng.random(shape) < rng.choice([0.1, 0.5, 1.0]))
    if not dtype.startswith("float"):
        limits = np.iinfo(dtype)
        reach = int(10 ** rng.uniform(0, 19))
        low, high = max(limits.min, -reach), min(limits.max, reach)
        if rng.random() < 0.5:
            low = 0
        return np.asarray(rng.integers(low, high, shape, dtype, endpoint=True))
    centre = rng.uniform(-10, 12)
    values = rng.normal(size=shape) * 10 ** (centre + rng.uniform(0, rng.choice([0.1, 2, 8]), shape))
    if rng.random() < 0.2:
        values = rng.normal(size=shape)
    if rng.random() < 0.3:
        values = np.abs(values)
    if rng.random() < 0.3:
        values = np.round(values, int(rng.integers(0, 3)))
    for special in (0.0, -0.0, inf, -inf, nan):
        if rng.random() < 0.12:
            values = np.where(rng.random(shape) < rng.choice([0.05, 0.5, 1.0]), special, values)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(values).astype(dtype)


def random_options(rng: np.random.Generator) -> dict:
    """Return print options, the default ones in half of the cases."""
    if rng.random() < 0.5:
        return {}
    choices = {
        "precision": range(9),
        "threshold": [0, 1, 10, 50, 1000, inf],
        "edgeitems": range(6),
        "linewidth": [1, 20, 40, 79, 80, 81, 100, 200],
        "profile": ["default", "short", "full"],
        "sci_mode": [True, False],
    }
    return {name: values[rng.integers(len(values))] for name, values in choices.items() if rng.random() < 0.4}


def assert_like_torch(torch, rng: np.random.Generator, array: np.ndarray, options: dict) -> None:
    """Compare the text of an array with PyTorch's, with a random gradient state and default dtype."""
    tensor = torch.from_numpy(array.copy())
    arguments = {}
    if array.dtype.kind == "f":
        gradient = rng.choice(["none", "leaf", "clone", "product"])
        if gradient != "none":
            tensor.requires_grad_()
            arguments["requires_grad"] = True
        if gradient == "clone":
            tensor = tensor.clone()
            arguments["grad_fn_name"] = "CloneBackward0"
        elif gradient == "product":
            tensor = tensor * 1
            arguments["grad_fn_name"] = "MulBackward0"
    default = str(rng.choice(["float32", "float32", "float64"]))
    try:
        torch.set_default_dtype(getattr(torch, default))
        torch.set_printoptions(profile="default")
        torch.set_printoptions(**options)
        expected = repr(tensor)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_printoptions(profile="default")
    set_printoptions(profile="default")
    set_printoptions(**options)
    actual = format_tensor(array, default_dtype=default, **arguments)
    assert actual == expected.replace("torch.", "tapegrad."), (array.dtype, array.shape, default, options)


@pytest.mark.parametrize("dtype", COMPARED_DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_random_arrays_like_torch(dtype: str, seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng([seed, COMPARED_DTYPES.index(dtype)])
    for _ in range(150):
        assert_like_torch(torch, rng, random_array(rng, dtype, random_shape(rng)), random_options(rng))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_wrapping_like_torch(dtype: str) -> None:
    """Rows of every length, where the last line and its suffixes end on either side of the limit."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    for length in range(1, 60):
        for value in (1, 22, 333, 4444, 0.5):
            for shape in ((length,), (2, length)):
                assert_like_torch(torch, rng, np.full(shape, value).astype(dtype), {})


def test_float_rounding_like_torch() -> None:
    """Numbers near the limits between the notations and near ties of the last printed digit."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    for limit in (1e-4, 1e-3, 0.00005, 0.12345, 0.99995, 1.0, 999.99995, 1000.0, 1e8, 1e12):
        for dtype in (f32, f64):
            below, above = np.nextafter(dtype(limit), dtype([0, inf]))
            for values in ([limit], [below], [above], [1, limit], [below, 1], [1, above], [-above, limit]):
                assert_like_torch(torch, rng, np.array(values, dtype), {})


def test_extreme_floats_like_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(13)
    for dtype in (np.float16, f32, f64):
        limits = np.finfo(dtype)
        tiny = limits.smallest_subnormal
        for values in ([limits.max, -limits.max], [limits.tiny, 1], [tiny], [tiny, limits.max], [limits.eps]):
            assert_like_torch(torch, rng, np.array(values, dtype), {})


def test_bfloat16_like_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(17)
    for _ in range(200):
        tensor = torch.from_numpy(random_array(rng, "float32", random_shape(rng))).bfloat16()
        actual = format_tensor(tensor.float().numpy(), dtype_name="bfloat16")
        assert actual == repr(tensor).replace("torch.", "tapegrad.")


def test_prefix_like_torch() -> None:
    torch = pytest.importorskip("torch")

    class SomeVerboselyNamedTensor(torch.Tensor):
        """A subclass, which PyTorch prints under its own name."""

    rng = np.random.default_rng(19)
    for _ in range(200):
        array = random_array(rng, "float64", random_shape(rng))
        tensor = torch.from_numpy(array)
        expected = repr(tensor.as_subclass(SomeVerboselyNamedTensor)).replace("torch.", "tapegrad.")
        assert format_tensor(array, prefix="SomeVerboselyNamedTensor(") == expected
        expected = repr(torch.nn.Parameter(tensor)).replace("torch.", "tapegrad.")
        assert format_tensor(array, prefix="Parameter containing:\ntensor(", requires_grad=True) == expected
