"""What reductions share: the geometry they work on, and kernels that fold runs of elements into one.

A reduction sees its input as (outer, run, inner): for each outer and inner index the run is folded. With
``inner == 1`` a work item is one outer row; else it is a block of columns, folded side by side. A large full
reduction is cut into chunks of fixed size, folded independently and merged in order, so the result does not
depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tapegrad import dtypes
from tapegrad.engine.kernels import build_typed
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META
from tapegrad.metadata import check_dim, layout_facts
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._kernel import KernelOp, ReductionOp
from tapegrad.ops._rule import Real
from tapegrad.tensor import Tensor

# elements of a chunk of a full reduction; columns of a block, with one and with two words each on the stack
CHUNK = 16384
COLUMNS = 256
PAIR_COLUMNS = 128

P = T = A = OUT = SIZE = G = ROW = BLOCK = FINISH = None  # filled in for each dtype


class Plan(NamedTuple):
    """How a reduction runs over one layout."""

    outer: int
    run: int
    inner: int
    shape: tuple[int, ...]  # of the result
    kept: tuple[int, ...]  # of the result before dims are dropped, in the order of the operand
    order: tuple[int, ...] | None  # permutation the operand needs first

    def items(self, columns: int = COLUMNS) -> int:
        """Work items: rows, or blocks of columns."""
        return self.outer if self.inner == 1 else self.outer * -(-self.inner // columns)

    def work(self, cost: int, columns: int = COLUMNS) -> int:
        """Cost of an item, given that of an element in quarter nanoseconds."""
        return max(self.run * min(self.inner, columns) * cost, 4)


_plans: dict[tuple, Plan] = {}


def normal_dims(name: str, dim: Any, ndim: int) -> tuple[int, ...]:
    """The dims to reduce, counted from the front; all for None and ``()``.

    Raises:
        IndexError: for one that does not exist.
        RuntimeError: for one that is there twice.
        TypeError: for what is no int.
    """
    if dim is None:
        return tuple(range(ndim))
    chosen = dim if isinstance(dim, tuple | list) else (dim,)
    if not chosen:
        return tuple(range(ndim))
    found = []
    for d in chosen:
        if isinstance(d, bool) or not hasattr(d, "__index__"):
            raise TypeError(f"{name}(): argument 'dim' must be int or tuple of ints, not {type(d).__name__}")
        k = check_dim(d, ndim)
        if k in found:
            raise RuntimeError(f"dim {k} appears multiple times in the list of dims")
        found.append(k)
    return tuple(found) if ndim else ()


def one_dim(name: str, dim: Any, ndim: int) -> int:
    """A single dim, counted from the front."""
    if isinstance(dim, bool) or not hasattr(dim, "__index__"):
        raise TypeError(f"{name}(): argument 'dim' must be int, not {type(dim).__name__}")
    return check_dim(dim, ndim)


def _pattern(shape: Sequence[int], reduced: set[int], order: Sequence[int]) -> tuple[int, int, int] | None:
    # (outer, run, inner) if in this order the reduced dims stand together
    outer = run = inner = 1
    stage = 0
    for d in order:
        if shape[d] == 1:
            continue
        if d in reduced:
            if stage == 2:
                return None
            stage = 1
            run *= shape[d]
        elif stage == 0:
            outer *= shape[d]
        else:
            stage = 2
            inner *= shape[d]
    return outer, run, inner


def _memory_order(shape: Sequence[int], strides: Sequence[int]) -> list[int] | None:
    # the dims from the slowest to the fastest, if the elements fill their memory
    order = sorted((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: -strides[d])
    step = 1
    for d in reversed(order):
        if strides[d] != step:
            return None
        step *= shape[d]
    return order


def _make_plan(layout: int, dims: tuple[int, ...], keepdim: bool, ordered: bool, plain: bool = False) -> Plan:
    shape, strides, contiguous = layout_facts(layout)
    reduced = set(dims)
    kept = tuple(1 if d in reduced else n for d, n in enumerate(shape))
    result = kept if keepdim else tuple(n for d, n in enumerate(shape) if d not in reduced)
    if 0 in shape:
        run = math.prod(shape[d] for d in dims)
        return Plan(math.prod(kept), run, 1, result, kept, None)
    order: list[int] | None = list(range(len(shape)))
    if not contiguous and not plain:
        order = _memory_order(shape, strides)
    if order is not None:
        left = [d for d in order if d not in reduced]
        gone = [d for d in order if d in reduced]
        if left == sorted(left) and (not ordered or gone == sorted(gone)):
            found = _pattern(shape, reduced, order)
            if found is not None:
                return Plan(*found, result, kept, None)
    left = [d for d in range(len(shape)) if d not in reduced]
    permutation = (*left, *sorted(reduced))
    kept = tuple(kept[d] for d in permutation)
    run = math.prod(shape[d] for d in reduced)
    return Plan(math.prod(kept), run, 1, result, kept, permutation)


def plan_of(
    x: Tensor, dims: tuple[int, ...], keepdim: bool, ordered: bool = False, plain: bool = False
) -> tuple[Tensor, Plan]:
    """The operand as its kernel can read it, and how to run over it.

    Args:
        x: the operand.
        dims: those to reduce, from `normal_dims`.
        keepdim: whether they stay, with extent one.
        ordered: whether the order of a run's elements matters.
        plain: whether the operand must be contiguous.
    """
    if x._is_view():
        x._refresh()
    layout = rt.look(rt.S, x._id, LOOK_META) >> 16
    key = (layout, dims, keepdim, ordered, plain)
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) > 4096:
            _plans.clear()
        plan = _plans[key] = _make_plan(*key)
    if plan.order is not None:
        x = x.permute(plan.order).contiguous()  # type: ignore[attr-defined]
    elif plain:
        x = x.contiguous()  # type: ignore[attr-defined]
    return x, plan


def check_input(name: str, x: Any) -> None:
    """Refuse what is no tensor, and dtypes there are no kernels for."""
    check_tensor(name, x)
    if x.dtype is dtypes.float16:
        raise RuntimeError(f"\"{name}\" not implemented for 'Half'")


def refuse_empty(name: str, plan: Plan, dim: Any, x: Tensor) -> None:
    """Refuse a reduction without identity over no elements; `dim` is the user's argument."""
    if plan.run:
        return
    if dim is None or dim == ():
        raise RuntimeError(
            f"{name}(): Expected reduction dim to be specified for input.numel() == 0. "
            "Specify the reduction dim with the 'dim' argument."
        )
    for d in dim if isinstance(dim, tuple | list) else (dim,):
        if x.shape[d] == 0:
            raise IndexError(f"{name}(): Expected reduction dim {d} to have non-zero size.")


class _Chosen:
    """Placeholders chosen by dtype, `axis`/`keepdims`/`out`, and twins with another name of `grad_fn`."""

    def __init__(self, function: Callable, *, choose: Callable[[int], dict] | None = None, **options: Any) -> None:
        super().__init__(function, **options)
        self.options = options | {"choose": choose}
        self.choose = choose or (lambda dtype: {})
        self.along: Any = self  # the op under its name for given dims
        # whether a second input is made depends on who needs a gradient, so such a call is worked out each time
        self.remembers = type(self).remembers and len(self.inputs) == 1

    def call(self, *args: Any, **named: Any) -> Any:
        """The call, worked out: NumPy's names for arguments, and `out`."""
        out = None
        if named:
            if "axis" in named:
                named["dim"] = named.pop("axis")
            if "keepdims" in named:
                named["keepdim"] = named.pop("keepdims")
            out = named.pop("out", None)
        try:
            result = self.function(self, *args, **named)  # type: ignore[attr-defined]
        except TypeError as error:
            # the op itself is the first parameter, which the user does not see
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            raise TypeError(str(error)) from None
        return result if out is None else out.copy_(result)

    def geometry_word(self) -> int:
        """Attribute word where the geometry starts."""
        return 5 + len(getattr(self, "reduction_parameters", ()))

    def load_forward(self, dtype: int) -> None:
        """Build or load the forward kernel for a dtype code."""
        label = f"{self.name}_forward"  # type: ignore[attr-defined]
        more = {"G": self.geometry_word()} | self.choose(dtype)
        rt.forward[self.code, dtype] = build_typed(self.kernel, dtype, label, **more)  # type: ignore[attr-defined]

    def load_reverse(self, dtype: int) -> None:
        """Build or load the reverse kernel for a dtype code."""
        if not self.native:  # type: ignore[attr-defined]
            super().load_reverse(dtype)  # type: ignore[misc]
            return
        label = f"{self.name}_reverse"  # type: ignore[attr-defined]
        more = {"G": self.geometry_word()} | self.choose(dtype)
        rt.reverse[self.code, dtype] = build_typed(self.native, dtype, label, **more)  # type: ignore[attr-defined]

    def twin(self, name: str, grad_name: str, samples: Sequence[Any] = ()) -> Any:
        """The same op, not public, under another name and another name of its `grad_fn`."""

        def function(*args: Any, **named: Any) -> Any:
            return self.function(*args, **named)  # type: ignore[attr-defined]

        function.__name__ = function.__qualname__ = name
        function.__doc__ = self.__doc__
        function.__module__ = self.__module__
        options = self.options | {
            "grad_name": grad_name,
            "samples": samples,
            "public": False,
            "method": False,
        }
        if not samples and options.get("domain") is None:
            options["domain"] = Real()
        other = type(self)(function, **options)
        other.kernel = self.kernel  # type: ignore[attr-defined]
        if self.derivative is not None:  # type: ignore[attr-defined]
            other.backward(self.derivative)  # type: ignore[attr-defined]
        if self.native is not None:  # type: ignore[attr-defined]
            other.reverse_kernel(self.native)  # type: ignore[attr-defined]
        other.rule_of_second = getattr(self, "rule_of_second", None)
        return other


class Fold(_Chosen, ReductionOp):
    """A reduction with a pointwise derivative and a kernel chosen by dtype."""

    def fold(
        self,
        x: Tensor,
        plan: Plan,
        dtype: dtypes.dtype,
        parameters: Sequence[float] = (),
        second: Tensor | None = None,
        cost: int = 1,
        words: Sequence[int] = (),
        per_chunk: int = 1,
        columns: int = COLUMNS,
        whole: bool = False,
    ) -> Tensor:
        """Record and run it.

        Args:
            x: operand from `plan_of`.
            plan: from `plan_of`.
            dtype: of the result.
            parameters: values of the declared parameters.
            second: the second input.
            cost: of an element, in quarter nanoseconds.
            words: for the kernel, after the geometry.
            per_chunk: words of partial result of a chunk.
            columns: columns of a block.
            whole: never cut a run into chunks.
        """
        items, work = plan.items(columns), plan.work(cost, columns)
        if not whole and items == 1 and plan.run > CHUNK and plan.inner == 1:
            items = -per_chunk * -(-plan.run // CHUNK)
            work = CHUNK * cost // per_chunk
        words = [plan.outer, plan.run, plan.inner, *words]
        return self.launch_reduction([x, second], plan.shape, plan.kept, dtype, parameters, words, items, work)


class Select(_Chosen, KernelOp):
    """An op with kernels of its own chosen by dtype; its geometry stands where a plain `Fold` has it."""

    def run(
        self,
        inputs: Sequence[Tensor | None],
        plan: Plan,
        dtype: dtypes.dtype,
        cost: int = 2,
        shape: Sequence[int] | None = None,
        words: Sequence[int] = (),
        columns: int = COLUMNS,
        per_chunk: int = 0,
    ) -> Tensor:
        """Record and run it (see `Fold.fold`; without `per_chunk` a run is never cut)."""
        geometry = [0, plan.outer, plan.run, plan.inner, *words]
        items, work = plan.items(columns), plan.work(cost, columns)
        if per_chunk and items == 1 and plan.run > CHUNK and plan.inner == 1:
            items = -per_chunk * -(-plan.run // CHUNK)
            work = CHUNK * cost // per_chunk
        return self.launch(inputs, plan.shape if shape is None else shape, dtype, geometry, items, work)


def fold_op(**options: Any) -> Callable[[Callable], Fold]:
    """Declare a reduction with a pointwise derivative."""
    return lambda function: Fold(function, **options)


def select_op(**options: Any) -> Callable[[Callable], Select]:
    """Declare an op along one dim with kernels of its own."""
    return lambda function: Select(function, **options)
