"""What the tests of profiles share."""

import collections

import tapegrad as tg


def profiled(function, *args):
    """The profile of a call, and what it returns."""
    with tg.profile() as p:
        result = function(*args)
    return p, result


def counts(p, kind=None):
    """How often each operation ran."""
    return dict(collections.Counter(e.operation for e in p.events if kind in (None, e.kind)))


def of(p, operation, kind="forward"):
    """The only event of an operation."""
    (found,) = [e for e in p.events if (e.operation, e.kind) == (operation, kind)]
    return found


def leaf(*shape):
    """A float64 tensor that requires grad."""
    return tg.rand(*shape, dtype=tg.float64).requires_grad_()
