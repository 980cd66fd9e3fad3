"""What the tests of programs share."""

import numpy as np

import tapegrad as tg
from tapegrad.program.capture import Capture
from tapegrad.program.native import Native, Replica
from tapegrad.program.passes import with_own_results
from tapegrad.program.values import Instruction


def same(a, b, tolerance=1e-6):
    """Compare values, dtypes and shapes of tensors or arrays."""
    a, b = (v.detach().numpy() if isinstance(v, tg.Tensor) else np.asarray(v) for v in (a, b))
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def leaf(*values, dtype=None):
    """A vector that requires grad."""
    return tg.tensor(values, dtype=dtype, requires_grad=True)


def captured(function, *shapes, dtype=tg.float64):
    """The code of a function of tensors of ones."""
    capture = Capture()
    given = [capture.argument(tg.ones(s, dtype=dtype)) for s in shapes]
    with capture.running():
        result = function(*given)
        outputs = [capture.result(t) for t in (result if isinstance(result, tuple) else (result,))]
    return capture.code(outputs)


def names(code):
    """What its steps are."""
    return [s.op.name if isinstance(s, Instruction) else getattr(s, "name", "guard") for s in code.steps]


def run(code, *arrays):
    """The outputs of code on arrays."""
    code = with_own_results(code)
    native = Native(code)
    replica = Replica(native)
    outputs = [np.empty(v.shape, v.dtype.numpy) for v in code.outputs]
    replica.addresses[:] = [a.ctypes.data for a in (*arrays, *outputs)]
    assert replica.run() == 0
    return outputs


def collatz(n):
    """How many steps take a number to 1: a loop as long as its values say."""
    steps = tg.zeros(())
    while n > 1:
        n = n / 2 if n % 2 == 0 else 3 * n + 1
        steps = steps + 1
    return steps
