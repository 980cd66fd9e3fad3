"""A user's function at the vectors SciPy asks for: evaluated once, differentiated as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from tapegrad._tree import named_leaves
from tapegrad.autograd import grad, inference_mode, no_grad
from tapegrad.creation import eye, from_copy, zeros
from tapegrad.dtypes import float32, float64
from tapegrad.func._sparse import Colouring, colour, sparse_jacobian
from tapegrad.ops.joining import cat
from tapegrad.optimize._unknowns import Unknowns
from tapegrad.tensor import Tensor

# whatever the caller's mode is: neither inference mode nor no_grad
_recording = inference_mode(False)

# how far aside, relative to an element and to 1, a result without a graph is looked at again
_ASIDE = 1e-4


class Point:
    """An evaluation with its graph.

    Attributes:
        vector: the unknowns.
        x: the leaf that holds them.
        out: the result.
        gradient: its gradient, once that was computed.
        slope: the gradient with a graph of its own, once that was recorded.
    """

    __slots__ = ("gradient", "out", "slope", "vector", "x")

    def __init__(self, vector: np.ndarray, x: Tensor, out: Tensor) -> None:
        self.vector = vector
        self.x = x
        self.out = out
        self.gradient: np.ndarray | None = None
        self.slope: Tensor | None = None

    def pull(self, result: Tensor, cotangent: Tensor | None = None, **options: Any) -> Tensor:
        r""":math:`J^T v` for a result's Jacobian and a cotangent, zero where there is no connection; see `autograd.grad`."""
        if not result.requires_grad:
            leading = cotangent.shape[:1] if options.get("is_grads_batched") and cotangent is not None else ()
            return zeros(*leading, self.vector.size, dtype=float64)
        (found,) = grad(result, self.x, cotangent, materialize_grads=True, **options)
        assert found is not None
        return found


class Recorded:
    """A function of unknowns as one of a vector; the last point is remembered, as SciPy asks for values and derivatives one by one.

    Args:
        f: called with the unknowns in their structure, then the other arguments.
        unknowns: of the problem.
        args: further arguments.
        keywords: further named arguments.
        what: how messages call `f`.
    """

    def __init__(
        self,
        f: Callable,
        unknowns: Unknowns,
        args: Any = (),
        keywords: Mapping[str, Any] | None = None,
        what: str = "f",
    ) -> None:
        if not callable(f):
            raise TypeError(f"{what} must be callable, but got {type(f).__name__}")
        self.f = f
        self.unknowns = unknowns
        self.args = args if isinstance(args, tuple) else (args,)
        self.keywords = keywords or {}
        self.what = what
        self._point: Point | None = None

    @_recording
    def at(self, vector: np.ndarray) -> Point:
        """The evaluation at a vector.

        Raises:
            RuntimeError: if the result is cut off from the unknowns although it changes with them.
        """
        if self._point is None or not np.array_equal(self._point.vector, vector):
            self._point = None  # frees its graph before another is recorded
            point = self._evaluate(vector)
            if not point.out.requires_grad:
                self._check_constant(point)
            self._point = point
        return self._point

    def _evaluate(self, vector: np.ndarray) -> Point:
        vector = np.array(vector, np.float64)
        x = from_copy(vector).requires_grad_()
        return Point(vector, x, self._call(x))

    def _call(self, x: Tensor) -> Tensor:
        return self.joined(self.f(self.unknowns.bind(x), *self.args, **self.keywords))

    def without_graph(self, vector: np.ndarray) -> np.ndarray:
        """The result at a vector, for methods that do without derivatives."""
        with no_grad():
            return array_of(self._call(from_copy(np.array(vector, np.float64))))

    def joined(self, result: Any) -> Tensor:
        """What `f` returned as one tensor."""
        raise NotImplementedError

    def _check_constant(self, point: Point) -> None:
        # without a graph the derivative is zero: right for a constant, wrong for what left the graph on its way
        v = point.vector
        beside = self._evaluate(v + _ASIDE * np.maximum(abs(v), 1))
        if not beside.out.requires_grad and not np.array_equal(
            array_of(beside.out), array_of(point.out), equal_nan=True
        ):
            raise RuntimeError(
                f"{self.what} returned a tensor that is cut off from the unknowns (requires_grad=False), though its value changes with "
                "them: compute it without detach(), item(), numpy() or no_grad()"
            )

    def cut_off(self, value: Any, where: str = "") -> TypeError:
        """The error for a result that is no tensor."""
        return TypeError(
            f"{self.what} must return a Tensor computed from the unknowns, but returned {type(value).__name__}{where}: keep the result a "
            "tensor, without item(), float() or numpy()"
        )

    def check_values(self, values: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Refuse NaN among values.

        Raises:
            ValueError: naming the first.
        """
        if np.isnan(values).any():
            element = f"nan in element {int(np.argmax(np.isnan(values)))} of its result" if values.ndim else "nan"
            raise ValueError(
                f"{self.what} returned {element} at {shown(vector)}: keep the unknowns where it is defined, by bounds or another start"
            )
        return values

    def check_derivatives(self, values: np.ndarray, point: Point) -> np.ndarray:
        """Refuse NaN among derivatives of what is finite itself; by unknowns in the last dimension, by results in the first of two.

        Raises:
            ValueError: naming the first.
        """
        if np.isnan(values).any():
            finite = np.isfinite(array_of(point.out)).reshape(-1, 1)
            if values.ndim == 1:
                finite = finite.all()
            for row, column in np.argwhere(np.isnan(np.atleast_2d(values)) & finite)[:1]:
                of = f"element {row} of {self.what}" if values.ndim > 1 else self.what
                raise ValueError(
                    f"the derivative of {of} with respect to {self.unknowns.place(column)} is nan at {shown(point.vector)}, though its "
                    "value is finite"
                )
        return values


class Objective(Recorded):
    """A function that returns one number.

    Args:
        f, unknowns, args, what: as `Recorded`.
        curvature: whether second derivatives are asked for too, so that graphs are kept for them.
    """

    def __init__(
        self, f: Callable, unknowns: Unknowns, args: Any = (), what: str = "f", curvature: bool = False
    ) -> None:
        super().__init__(f, unknowns, args, None, what)
        self.curvature = curvature
        self._curved: Point | None = None

    def joined(self, result: Any) -> Tensor:
        """The number as a 0-d tensor."""
        if not isinstance(result, Tensor):
            raise self.cut_off(result)
        if result.numel() != 1:
            raise ValueError(
                f"{self.what} must return one number, but returned a tensor of shape {list(result.shape)}: reduce it, as with .sum()"
            )
        return result.reshape(())  # type: ignore[operator]

    def value(self, vector: np.ndarray) -> float:
        """The value, with what `gradient` needs at hand."""
        return float(self.check_values(array_of(self.at(vector).out), vector))

    def value_without_graph(self, vector: np.ndarray) -> float:
        """The value for methods that do without derivatives."""
        return float(self.check_values(self.without_graph(vector), vector))

    @_recording
    def gradient(self, vector: np.ndarray) -> np.ndarray:
        """The gradient, of shape (n,)."""
        point = self.at(vector)
        if point.gradient is None:
            found = array_of(point.pull(point.out, retain_graph=self.curvature))
            point.gradient = self.check_derivatives(found, point)
        return point.gradient.copy()

    def _curved_at(self, vector: np.ndarray) -> tuple[Point, Tensor]:
        # kept beside the last point: a trust region that rejects a step goes on from where it was
        if self._curved is None or not np.array_equal(self._curved.vector, vector):
            self._curved = None
            point = self.at(vector)
            point.slope = point.pull(point.out, create_graph=True)
            self._curved = point
        assert self._curved.slope is not None
        return self._curved, self._curved.slope

    @_recording
    def hessian_product(self, vector: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """The Hessian at a vector times a direction, of shape (n,): the derivative of the gradient along it."""
        point, slope = self._curved_at(vector)
        found = array_of(point.pull(slope, from_copy(np.array(direction, np.float64)), retain_graph=True))
        return self.check_derivatives(found, point)

    @_recording
    def hessian(self, vector: np.ndarray) -> np.ndarray:
        """The Hessian, of shape (n, n), a product a column."""
        point, slope = self._curved_at(vector)
        seeds = eye(vector.size, dtype=slope.dtype)
        found = array_of(point.pull(slope, seeds, retain_graph=True, is_grads_batched=True))
        self.check_derivatives(found.sum(0), point)
        return found


class Residuals(Recorded):
    """A function that returns several numbers: a tensor of any shape, or a structure of tensors, in order.

    Args:
        f, unknowns, args, keywords, what: as `Recorded`.
        sparsity: pattern of its Jacobian, to compute it compressed; None for a dense one.
        nan_in_trials: whether values after the first may be NaN, for methods that draw back from there.
    """

    def __init__(
        self,
        f: Callable,
        unknowns: Unknowns,
        args: Any = (),
        keywords: Mapping[str, Any] | None = None,
        what: str = "f",
        sparsity: Any = None,
        nan_in_trials: bool = False,
    ) -> None:
        super().__init__(f, unknowns, args, keywords, what)
        self._sparsity = sparsity
        self._nan_in_trials = nan_in_trials
        self._tried = False

    def joined(self, result: Any) -> Tensor:
        """The numbers as a 1-d tensor."""
        parts = []
        for path, part in named_leaves(result):
            if not isinstance(part, Tensor):
                raise self.cut_off(part, f" at {path}" if path else "")
            parts.append(part.reshape(-1))  # type: ignore[operator]
        if not parts:
            raise self.cut_off(result)
        return parts[0] if len(parts) == 1 else cat(parts)

    def values(self, vector: np.ndarray) -> np.ndarray:
        """The values, of shape (m,), with what `jacobian` needs at hand."""
        values = array_of(self.at(vector).out)
        if not (self._tried and self._nan_in_trials):
            self.check_values(values, vector)
        self._tried = True
        return values

    def values_without_graph(self, vector: np.ndarray) -> np.ndarray:
        """The values for methods that do without derivatives."""
        return self.check_values(self.without_graph(vector), vector)

    @_recording
    def jacobian(self, vector: np.ndarray) -> Any:
        """The Jacobian, of shape (m, n): an array, or sparse if the sparsity is known."""
        point = self.at(vector)
        if self._sparsity is not None:
            return self._compressed(point)
        seeds = eye(point.out.numel(), dtype=point.out.dtype)
        return self.check_derivatives(array_of(self._pull_rows(point, seeds)), point)

    def dense_jacobian(self, vector: np.ndarray) -> np.ndarray:
        """The Jacobian as an array, computed compressed if its sparsity is known."""
        found = self.jacobian(vector)
        return found if isinstance(found, np.ndarray) else found.toarray()

    def _pull_rows(self, point: Point, rows: Tensor) -> Tensor:
        if rows.shape[0] == 0:
            return zeros(0, point.vector.size, dtype=float64)
        return point.pull(point.out, rows, retain_graph=True, is_grads_batched=True)

    def _compressed(self, point: Point) -> Any:
        if not isinstance(self._sparsity, Colouring):
            self._sparsity = colour(self._sparsity, "rows", (point.out.numel(), point.vector.size))
        dtypes = {point.out.dtype.numpy, *(leaf.dtype for leaf in self.unknowns.leaves)}
        coarsest = float32 if np.dtype(np.float32) in dtypes else float64  # which tells how far products may be apart

        def pullback(rows: Tensor) -> Tensor:
            return self._pull_rows(point, rows).to(coarsest)  # type: ignore[operator]

        found = sparse_jacobian(self._sparsity, pullback, dtype=point.out.dtype, batched=True).astype(np.float64)
        if np.isnan(found.data).any():
            self.check_derivatives(found.toarray(), point)
        return found

    @_recording
    def weighted_hessian(self, vector: np.ndarray, weights: np.ndarray) -> LinearOperator:
        """The sum of the elements' Hessians times weights, as products with it."""
        point = self.at(vector)
        slope = point.pull(point.out, from_copy(weights).to(point.out.dtype), create_graph=True)  # type: ignore[operator]

        @_recording
        def product(direction: np.ndarray) -> np.ndarray:
            along = from_copy(np.array(direction, np.float64).reshape(-1))
            return self.check_derivatives(array_of(point.pull(slope, along, retain_graph=True)), point)

        n = vector.size
        return LinearOperator((n, n), matvec=product, rmatvec=product, dtype=np.float64)


def array_of(t: Tensor) -> np.ndarray:
    """The elements as float64, in an array of their own."""
    return t.detach().numpy().astype(np.float64)


def shown(vector: np.ndarray) -> str:
    """A vector in a message, on one line."""
    return f"x = {np.array2string(np.asarray(vector), threshold=12, edgeitems=3, max_line_width=10**6)}"
