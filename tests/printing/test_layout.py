"""Where lines break and what is left out of large tensors, against tables.

The expected strings were printed by PyTorch 2.13, with ``torch.`` replaced by ``tapegrad.``.
"""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.printing import format_tensor, set_printoptions

f32, f64 = np.float32, np.float64

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

# a matrix too large to be printed whole, as it stands within a larger tensor
CORNERS_3D = (
    "[[0., 0., 0.,  ..., 0., 0., 0.],\n"
    "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
    "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
    "         ...,\n"
    "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
    "         [0., 0., 0.,  ..., 0., 0., 0.],\n"
    "         [0., 0., 0.,  ..., 0., 0., 0.]]"
)
CORNERS_4D = (
    "[[1., 1., 1.,  ..., 1., 1., 1.],\n"
    "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
    "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
    "          ...,\n"
    "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
    "          [1., 1., 1.,  ..., 1., 1., 1.],\n"
    "          [1., 1., 1.,  ..., 1., 1., 1.]]"
)

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
        "tensor(["
        + ",\n\n        ".join([CORNERS_3D, CORNERS_3D, CORNERS_3D, "...", CORNERS_3D, CORNERS_3D, CORNERS_3D])
        + "])",
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
        f"tensor([[{CORNERS_4D},\n\n         {CORNERS_4D}]])",
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


@pytest.mark.parametrize(("array", "arguments", "expected"), WRAPPING + SUMMARY)
def test_layout(array: np.ndarray, arguments: dict, expected: str) -> None:
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
