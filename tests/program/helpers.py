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


# of mapped functions

W = np.linspace(0.5, 2.0, 5)


def samples(size, width=5):
    return np.random.default_rng(size).uniform(0, 1, (size, width))


def branching(w, x):
    if x[0] > 0.5:
        return (w * x).sum()
    return (w * x).sin().sum() if x[1] > 0.3 else x.exp().sum()


def arrays_of(result):
    leaves = result if isinstance(result, tuple | list) else [result]
    return [t.detach().numpy() if isinstance(t, tg.Tensor) else t for t in leaves]


def agree(found, expected, tolerance=1e-12):
    for a, b in zip(arrays_of(found), arrays_of(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def only_lanes(compiled):
    """The paths recorded for a compiled function that was mapped."""
    (lanes,) = compiled.lanes.values()
    return lanes.programs()


def only_programs(lanes):
    """The recorded paths, where nothing ran in another way."""
    assert lanes.programs()
    assert not any(kind.mapped_only for kind in lanes._kinds.values())
    return lanes.programs()
