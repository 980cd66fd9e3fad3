"""Extreme values and where they are: amax, max, argmax, median and kin."""

from __future__ import annotations

import builtins
import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.ops import _fold_places
from tapegrad.ops import pointwise as pw
from tapegrad.ops._fold import (
    check_input,
    fold_op,
    normal_dims,
    one_dim,
    plan_of,
    refuse_empty,
    select_op,
)
from tapegrad.ops._kernel import empty
from tapegrad.ops._public import export
from tapegrad.ops._rule import Real
from tapegrad.ops.reduction import SAMPLES, numpy_reduction, wanted
from tapegrad.tensor import Tensor


def _extreme(op: Any, input: Any, dim: Any, keepdim: Any) -> Tensor:
    check_input(op.name, input)
    dims = normal_dims(op.name, dim, input.ndim)
    x, plan = plan_of(input, dims, builtins.bool(keepdim))
    refuse_empty(op.public_name, plan, dim, input)
    shared = empty(plan.kept, x.dtype) if wanted(x) else None
    return op.fold(x, plan, x.dtype, (), shared, 1 if shared is None else 2, (), 2)


@fold_op(
    inputs=["x", "shared"],
    choose=_fold_places.shared_extremes(True),
    reference=numpy_reduction(np.amax),
    samples=SAMPLES,
)
def amax(op, input, dim=None, keepdim=False):
    r"""Largest element, over all or some dims; equal ones share the gradient evenly, and NaN wins.

    .. math:: \max_k x_k

    Args:
        input: the tensor.
        dim: dim or dims to reduce; all by default.
        keepdim: keep reduced dims with extent one.

    Raises:
        IndexError: over a dim without elements.

    >>> import tapegrad as tg
    >>> tg.amax(tg.tensor([[1.0, 5.0], [3.0, 2.0]]), 1)
    tensor([5., 3.])
    """
    return _extreme(op, input, dim, keepdim)


@fold_op(
    inputs=["x", "shared"],
    choose=_fold_places.shared_extremes(False),
    reference=numpy_reduction(np.amin),
    samples=SAMPLES,
)
def amin(op, input, dim=None, keepdim=False):
    r"""Smallest element, :math:`\min_k x_k`, over all or some dims; see `amax`."""
    return _extreme(op, input, dim, keepdim)


def _share(g, x, shared, out):
    return g / shared if x == out or (x != x and out != out) else 0.0


for _op in (amax, amin):
    _op.forward(_fold_places.extreme_kernel)
    _op.backward(_share)
    _op.public_name = _op.name


def _named(op: Any, name: str) -> Any:
    op.public_name = name
    return op


norms_of_infinity = {
    True: _named(amax.twin("norm_inf", "LinalgVectorNormBackward0"), "norm"),
    False: _named(amin.twin("norm_minus_inf", "LinalgVectorNormBackward0"), "norm"),
}
_max_all = _named(amax.twin("max_all", "MaxBackward1"), "max")
_min_all = _named(amin.twin("min_all", "MinBackward1"), "min")
_aminmax = (
    _named(amin.twin("min_of_pair", "AminmaxBackward0"), "aminmax"),
    _named(amax.twin("max_of_pair", "AminmaxBackward0"), "aminmax"),
)


def result_tuple(name: str, fields: str) -> Any:
    """A named tuple of results that prints as PyTorch's do."""
    made = namedtuple(name, fields)

    def show(self: Any) -> str:
        inside = ",\n".join(f"{f}={v!r}" for f, v in zip(self._fields, self, strict=True))
        return f"tapegrad.return_types.{name}(\n{inside})"

    made.__repr__ = show  # type: ignore[method-assign]
    made.__module__ = "tapegrad.return_types"
    return made


_PAIRS = {name: result_tuple(name, "values indices") for name in ("max", "min", "median")}
_AMINMAX = result_tuple("aminmax", "min max")


def aminmax(input: Tensor, *, dim: Any = None, keepdim: bool = False, axis: Any = None) -> Any:
    """The pair of `amin` and `amax`, as a named tuple ``(min, max)``."""
    check_input("aminmax", input)
    dim = axis if dim is None else dim
    if dim is None and not input.numel():
        raise RuntimeError(
            "aminmax(): cannot compute aminmax over an empty dimension as the operation has no identity."
        )
    return _AMINMAX(*(op(input, dim, keepdim) for op in _aminmax))


# places


def _numpy_places(function: Callable) -> Callable:
    def reference(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        return np.asarray(function(x, axis=dim, keepdims=keepdim))

    return reference


_PLACE_SAMPLES = [s for s in SAMPLES if not isinstance(s[1].get("args", (0,))[0], tuple)]


def _place(op: Any, input: Any, dim: Any, keepdim: Any) -> Tensor:
    name = op.name
    check_input(name, input)
    if input.dtype is dtypes.bool:
        raise RuntimeError(f"{name}(): does not support bool input")
    if dim is None:
        dims = tuple(range(input.ndim))
        if not input.numel():
            raise IndexError(f"{name}(): Expected reduction dim to be specified for input.numel() == 0.")
    else:
        dims = (one_dim(name, dim, input.ndim),) if input.ndim else ()
    x, plan = plan_of(input, dims, builtins.bool(keepdim), ordered=True)
    refuse_empty(name, plan, dims, input)
    return op.run([x], plan, dtypes.int64, 2, per_chunk=2)


@select_op(
    inputs=["x"],
    choose=_fold_places.placed_extremes(True, False),
    reference=_numpy_places(np.argmax),
    samples=_PLACE_SAMPLES,
)
def argmax(op, input, dim=None, keepdim=False):
    r"""Place of the first largest element, :math:`\min \{k : x_k = \max_j x_j\}`; the first NaN wins.

    Args:
        input: the tensor.
        dim: the dim to look along; None for the place in the flattened tensor.
        keepdim: keep the dim with extent one.

    Raises:
        IndexError: if there are no elements.

    >>> import tapegrad as tg
    >>> tg.argmax(tg.tensor([1.0, 5.0, 2.0]))
    tensor(1)
    """
    return _place(op, input, dim, keepdim)


@select_op(
    inputs=["x"],
    choose=_fold_places.placed_extremes(False, False),
    reference=_numpy_places(np.argmin),
    samples=_PLACE_SAMPLES,
)
def argmin(op, input, dim=None, keepdim=False):
    r"""Place of the first smallest element, :math:`\min \{k : x_k = \min_j x_j\}`; see `argmax`."""
    return _place(op, input, dim, keepdim)


for _op in (argmax, argmin):
    _op.forward(_fold_places.extreme_kernel)


def _picked(op: Any, name: str, input: Tensor, dim: Any, keepdim: Any, cost: int) -> Any:
    # values along one dim, and their places
    check_input(name, input)
    if name == "median" and input.dtype is dtypes.bool:
        raise NotImplementedError("\"median_out\" not implemented for 'Bool'")
    dims = (one_dim(name, dim, input.ndim),)[: input.ndim]
    x, plan = plan_of(input, dims, builtins.bool(keepdim), plain=True)
    refuse_empty(name, plan, dims, input)
    places = empty(plan.shape, dtypes.int64)
    return _PAIRS[name](op.run([x, places], plan, x.dtype, cost), places)


def _pick_op(name: str, grad_name: str, kernel: Any, choose: Any, doc: str, reference: Any) -> Any:
    def function(op, input, dim, keepdim=False):
        return _picked(op, name, input, dim, keepdim, 2 if name != "median" else 16)

    function.__name__ = function.__qualname__ = f"{name}_along"
    function.__doc__ = doc
    made = select_op(
        inputs=["x", "places"],
        choose=choose,
        reference=reference,
        domain=Real(),
        grad_name=grad_name,
        method=False,
        public=False,
    )(function)
    made.forward(kernel)
    made.backward(_fold_places.place_parts)
    made.reverse_kernel(_fold_places.place_reverse)
    return made


max_along = _pick_op(
    "max",
    "MaxBackward0",
    _fold_places.extreme_kernel,
    _fold_places.placed_extremes(True, True),
    "Largest elements along one dim.",
    np.amax,
)
min_along = _pick_op(
    "min",
    "MinBackward0",
    _fold_places.extreme_kernel,
    _fold_places.placed_extremes(False, True),
    "Smallest elements along one dim.",
    np.amin,
)
median_along = _pick_op(
    "median",
    "MedianBackward1",
    _fold_places.median_kernel,
    lambda dtype: {"SHARED": False, "PLACES": False},
    "Lower medians along one dim.",
    np.median,
)


@fold_op(
    inputs=["x", "shared"],
    choose=lambda dtype: {"SHARED": True},
    reference=lambda x: np.sort(x.ravel())[(x.size - 1) // 2],
    samples=[(((3, 4),), {}), (((5,),), {})],
    grad_name="MedianBackward0",
    method=False,
    public=False,
)
def median_all(op, input):
    """Lower median of all elements; equal ones share the gradient."""
    x, plan = plan_of(input, normal_dims("median", None, input.ndim), False)
    shared = empty(plan.kept, x.dtype) if wanted(x) else None
    return op.fold(x, plan, x.dtype, (), shared, 16, whole=True)


median_all.forward(_fold_places.median_kernel)
median_all.backward(_share)


def _either_form(name: str, whole: Any, along: Any, pair: Any) -> Callable:
    def function(input, *args, **named):
        check_input(name, input)
        for given, meant in (("axis", "dim"), ("keepdims", "keepdim")):
            if given in named:
                named[meant] = named.pop(given)
        out = named.pop("out", None)
        other = named.pop("other", None)
        if args and isinstance(args[0], Tensor):
            other, args = args[0], args[1:]
        unknown = set(named) - {"dim", "keepdim"}
        if unknown or len(args) > 2 or (other is not None and (args or named)):
            what = f"got an unexpected keyword argument '{sorted(unknown)[0]}'" if unknown else "got too many arguments"
            raise TypeError(f"{name}() {what}")
        if other is not None:
            if pair is None:
                raise TypeError(f"{name}(): argument 'dim' must be int, not Tensor")
            result = pair(input, other)
        else:
            given = dict(zip(("dim", "keepdim"), args, strict=False)) | named
            if given.get("dim") is not None:
                return along(input, **given)
            if not input.numel() and name != "median":
                raise RuntimeError(
                    f"{name}(): Expected reduction dim to be specified for input.numel() == 0. "
                    "Specify the reduction dim with the 'dim' argument."
                )
            result = whole(input)
        return result if out is None else out.copy_(result)

    return function


def _median_whole(input: Tensor) -> Tensor:
    if input.dtype is dtypes.bool:
        raise NotImplementedError("\"median_cpu\" not implemented for 'Bool'")
    if not input.numel():
        if not input.dtype.is_floating_point:
            raise RuntimeError("median(): no median of an empty tensor of integers")
        return pw.mul(input.sum(), math.nan)  # type: ignore[attr-defined]
    return median_all(input)


max = _either_form("max", _max_all, max_along, pw.maximum)
min = _either_form("min", _min_all, min_along, pw.minimum)
median = _either_form("median", _median_whole, median_along, None)
max.__doc__ = r"""Largest element; with `dim` also where it is; of two tensors, element by element.

    .. math:: \max_k x_k

    ``max(input)`` shares the gradient among equal elements; ``max(input, dim, keepdim=False)`` returns a
    named tuple ``(values, indices)`` and gives it to the chosen element; ``max(input, other)`` is `maximum`.

    Raises:
        RuntimeError: of no elements.
        IndexError: over a dim without elements.

    >>> import tapegrad as tg
    >>> tg.max(tg.tensor([[1.0, 5.0], [3.0, 2.0]]), 1).indices
    tensor([1, 0])
    """
min.__doc__ = r"""Smallest element, :math:`\min_k x_k`; forms as `max`."""
median.__doc__ = r"""Lower middle element, of all or along `dim` as a pair with its place; NaN if there is one.

    .. math:: x_{(\lceil n/2 \rceil)}
    """
for _name, _function in (("max", max), ("min", min), ("median", median), ("aminmax", aminmax)):
    _function.__name__ = _function.__qualname__ = _name
    export(_function)
