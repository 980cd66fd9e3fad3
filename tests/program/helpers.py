"""What the tests of programs share."""

import numpy as np

import tapegrad as tg


def same(a, b, tolerance=1e-6):
    """Compare values, dtypes and shapes of tensors or arrays."""
    a, b = (v.detach().numpy() if isinstance(v, tg.Tensor) else np.asarray(v) for v in (a, b))
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def leaf(*values, dtype=None):
    """A vector that requires grad."""
    return tg.tensor(values, dtype=dtype, requires_grad=True)
