"""What `set_printoptions` changes, against tables.

The expected strings were printed by PyTorch 2.13, with ``torch.`` replaced by ``tapegrad.``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from tapegrad.printing import PrintOptions, format_tensor, get_printoptions, set_printoptions

f32, f64 = np.float32, np.float64
nan = np.nan

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


@pytest.mark.parametrize(("array", "arguments", "options", "expected"), OPTIONS)
def test_options(array: np.ndarray, arguments: dict, options: dict, expected: str) -> None:
    set_printoptions(**options)
    assert format_tensor(array, **arguments) == expected


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
