"""Where a compiled function parts from the function itself."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import tapegrad as tg
from tapegrad import _tree

from .compare import Disagreement
from .functions import Drawn, function_of
from .messages import BY_ONE, LEAF_WRITTEN, WRITTEN_TO

TOLERANCE = 1e-10  # of the largest element
# what compiling refuses, and says so
REFUSED = ("A view was created in no_grad mode", "compile: ", "Output 0 of", "vmap: ", *LEAF_WRITTEN)


class Given(NamedTuple):
    """The arguments of one call."""

    positional: list[Any]
    named: dict[str, Any]

    def tensors(self) -> list[Any]:
        """All that are tensors."""
        found = [v for v in (*self.positional, *self.named.values()) if isinstance(v, tg.Tensor)]
        return list({id(t): t for t in found}.values())


class Refused(Exception):
    """The function is one that cannot be compiled."""


def _outcome(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, Exception | None]:
    tg.manual_seed(5)
    try:
        return function(*args, **kwargs), None
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error).startswith(REFUSED):
            raise Refused(str(error)) from None
        return None, error


class Comparison:
    """A function and its compiled twin, run side by side.

    Args:
        drawn: the function.
        seed: of what is varied.
    """

    def __init__(self, drawn: Drawn, seed: int) -> None:
        self.drawn, self.random = drawn, random.Random(f"calls {seed}")
        self.compiled = tg.compile(drawn.function, max_programs=self.random.choice((1, 2, 64, 64)))
        self.scalar, self.compiled_scalar = _total(drawn.function), tg.compile(_total(drawn.function))

    def run(self) -> Disagreement | None:
        """The first disagreement, or None."""
        ways = [self._tensors] * 3 + [self._arrays, self._value_and_grad, self._mapped, self._without_grad]
        ways += [self._outside_written, self._other_dtype, self._other_name]
        for way in [self._tensors, *self.random.choices(ways, k=7)]:
            parted = way()
            if parted is not None:
                return parted
        return None

    # ways to call

    def _tensors(self) -> Disagreement | None:
        how = self.random.choice(("plain", "plain", "strided", "aliased", "some"))
        shift = self.random.choice((0.0, 0.0, 0.013, -0.7, 1.9))
        return self._calls(f"tensors {how} {shift}", lambda: self._given(shift, how), self.random.random() < 0.4)

    def _without_grad(self) -> Disagreement | None:
        shift = self.random.choice((0.0, 0.013, -0.7))
        with self.random.choice((tg.no_grad, tg.inference_mode))():
            return self._calls(f"without gradients {shift}", lambda: self._given(shift, "bare"), False)

    def _other_dtype(self) -> Disagreement | None:
        return self._calls("float32", lambda: self._given(0.1, "float"), False)

    def _outside_written(self) -> Disagreement | None:
        with tg.no_grad():
            for t in self.drawn.outside:
                t.mul_(1.1).add_(0.03)
        return self._tensors()

    def _other_name(self) -> Disagreement | None:
        self.drawn.space["factor"] = self.random.choice((1.5, 0.7, -2))
        return self._tensors()

    def _arrays(self) -> Disagreement | None:
        shift = self.random.choice((0.0, 0.013, -0.7))
        positional, named = self._moved(shift)
        if self.random.random() < 0.3:
            positional = [np.asfortranarray(a) for a in positional]
        found, error = _outcome(self.compiled, *positional, **named, scale=2.0)
        given = Given([tg.tensor(a) for a in positional], {n: tg.tensor(a) for n, a in named.items()})
        expected, wanted = _outcome(self.drawn.function, *given.positional, **given.named, scale=2.0)
        return self._parted(f"arrays {shift}", found, expected, error, wanted, arrays=True)

    def _value_and_grad(self) -> Disagreement | None:
        shift = self.random.choice((0.0, 0.013, -0.7))
        positional, named = self._moved(shift)
        count = len(positional)
        argnums: Any = self.random.choice((0, -1, tuple(range(count))))
        wrap = self.random.choice((tg.tensor, np.array))
        args, kwargs = [wrap(a) for a in positional], {n: wrap(a) for n, a in named.items()}
        found, error = _outcome(
            self.compiled_scalar.value_and_grad, *args, argnums=argnums, has_aux=True, **kwargs, scale=2.0
        )
        args, kwargs = [tg.tensor(a) for a in positional], {n: tg.tensor(a) for n, a in named.items()}
        expected, wanted = _outcome(
            tg.value_and_grad(self.scalar, argnums=argnums, has_aux=True), *args, **kwargs, scale=2.0
        )
        return self._parted(
            f"value_and_grad {argnums} {shift}", found, expected, error, wanted, wrap is np.array, values_only=True
        )

    def _mapped(self) -> Disagreement | None:
        # vmap has the text of its first sample printed
        if self.drawn.draws or self.drawn.named or "str(" in self.drawn.source:
            return None
        shifts = self.random.choices((0.0, 0.013, -0.7, 1.9), k=self.random.choice((1, 2, 3, 20)))
        samples = [self._moved(shift)[0] for shift in shifts]
        batch = [tg.tensor(np.stack(arrays)) for arrays in zip(*samples, strict=True)]

        def one(*args: Any) -> Any:
            return tg.value_and_grad(self.scalar, argnums=tuple(range(len(args))), has_aux=True)(*args, scale=2.0)

        def mapped(*args: Any) -> Any:
            function = tg.value_and_grad(self.compiled_scalar, argnums=tuple(range(len(args))), has_aux=True)
            return tg.vmap(lambda *a: function(*a, scale=2.0))(*args)

        def looped() -> list[Any]:
            return [one(*(tg.tensor(a) for a in arrays)) for arrays in samples]

        rows, wanted = _outcome(looped)
        if wanted is not None:
            return None
        flat = [_tree.flatten(row) for row in rows]
        if any(not isinstance(leaf, tg.Tensor) for leaf in flat[0][0]):
            return None
        if len({tuple(leaf.shape for leaf in leaves) for leaves, _ in flat}) > 1:
            return None
        try:
            found, error = _outcome(mapped, *batch)
        except Refused:
            return None
        if WRITTEN_TO in str(error):
            return None
        expected = _tree.unflatten([tg.stack(leaves) for leaves in zip(*(f[0] for f in flat), strict=True)], flat[0][1])
        return self._parted(f"vmap {shifts}", found, expected, error, None, values_only=True)

    # arguments

    def _moved(self, shift: float) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        return [a + shift for a in self.drawn.arguments], {n: a + shift for n, a in self.drawn.named.items()}

    def _given(self, shift: float, how: str) -> Given:
        positional, named = self._moved(shift)

        def made(k: int, array: np.ndarray) -> Any:
            if how == "float":
                return tg.tensor(array.astype(np.float32), requires_grad=True)
            t = tg.tensor(array, requires_grad=how not in ("bare",) and not (how == "some" and k))
            if how == "strided" and t.ndim:
                t = t.detach()
                t = t.mT.contiguous().mT if t.ndim > 1 and k % 2 else tg.stack([t, t], -1)[..., 0]
                t.requires_grad_()
            return t

        given = [made(k, a) for k, a in enumerate(positional)]
        if how == "aliased":
            for k, t in enumerate(given[1:], 1):
                if t.shape == given[0].shape:
                    given[k] = given[0]
        return Given(given, {n: made(0, a) for n, a in named.items()})

    # comparing

    def _calls(self, what: str, given: Callable[[], Given], twice: bool) -> Disagreement | None:
        runs = []
        for function in (self.compiled, self.drawn.function):
            arguments = given()
            result, error = _outcome(function, *arguments.positional, **arguments.named, scale=2.0)
            after = tg.rand(1)
            runs.append((arguments, result, error, after))
        (a, found, error, numbers), (b, expected, wanted, others) = runs
        parted = self._parted(what, found, expected, error, wanted)
        if parted is not None or wanted is not None:
            return parted
        if numbers.item() != others.item():
            return Disagreement("random numbers", f"{what}: the generator is somewhere else afterwards")
        return self._gradients(what, (a, found), (b, expected), twice)

    def _gradients(
        self, what: str, run: tuple[Given, Any], eager: tuple[Given, Any], twice: bool
    ) -> Disagreement | None:
        outside = [t for t in self.drawn.outside if t.requires_grad]
        orders: list[Any] = []
        errors: list[Any] = []
        for given, result in (run, eager):
            leaves = [*(t for t in given.tensors() if t.requires_grad), *outside]
            results = [t for t in _tree.flatten(result)[0] if isinstance(t, tg.Tensor)]
            slopes: list[Any] = []
            found, error = None, None
            if any(t.requires_grad for t in results) and leaves:
                found, error = _outcome(_slopes, results, leaves, twice)
            slopes = found or []
            if twice and slopes and error is None and any(g.requires_grad for g in slopes):
                more, error = _outcome(_slopes, slopes, leaves, False)
                slopes = slopes + (more or [])
            elif twice and slopes:
                slopes = slopes + [tg.zeros_like(g) for g in slopes]  # no second derivative and zeros are the same
            orders.append(slopes)
            errors.append(error)
        # checkpoint's second run does not see what was written to its arguments meanwhile; a program does, and refuses
        unseen = "checkpoint" in self.drawn.source and WRITTEN_TO in str(errors[0])
        if errors[1] is not None or unseen:
            return None
        return self._parted(f"gradients of {what}", orders[0], orders[1], errors[0], None, values_only=True)

    def _parted(
        self,
        what: str,
        found: Any,
        expected: Any,
        error: Exception | None,
        wanted: Exception | None,
        arrays: bool = False,
        values_only: bool = False,
    ) -> Disagreement | None:
        if error is not None or wanted is not None:
            if type(error) is type(wanted) and str(error) == str(wanted):
                return None
            # what eager refuses, such as gradients of what was written to after it was saved, a program may do rightly
            if any(text in str(wanted) for text in (WRITTEN_TO, *BY_ONE)) or (
                what.startswith("without") and error is None
            ):
                return None
            return Disagreement(f"{what.split()[0]} raised", f"{what}: compiled raised {error!r}, eager {wanted!r}")
        (a, structure), (b, other) = _tree.flatten(found), _tree.flatten(expected)
        if structure != other and not values_only:
            return Disagreement("structure", f"{what}: the result is {found}, eager's {expected}")
        if len(a) != len(b):
            return Disagreement("count", f"{what}: {len(a)} results, eager {len(b)}")
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            if not isinstance(y, tg.Tensor):
                if x != y or type(x) is not type(y):
                    return Disagreement("plain", f"{what}: result {k} is {x!r}, eager's {y!r}")
                continue
            if arrays != isinstance(x, np.ndarray):
                return Disagreement("kind", f"{what}: result {k} is a {type(x).__name__}")
            if not arrays and not values_only and tg.is_grad_enabled() and x.requires_grad != y.requires_grad:
                return Disagreement("requires_grad", f"{what}: result {k} has requires_grad={x.requires_grad}")
            x, y = (v if isinstance(v, np.ndarray) else v.detach().numpy() for v in (x, y))
            if x.shape != y.shape or x.dtype != y.dtype:
                return Disagreement("facts", f"{what}: result {k} is {x.shape} {x.dtype}, eager's {y.shape} {y.dtype}")
            finite = y[np.isfinite(y)] if y.dtype.kind == "f" else y
            scale = max(float(np.abs(finite).max()), 1.0) if finite.size and y.dtype.kind == "f" else 1.0
            tolerance = (TOLERANCE if y.dtype == np.float64 else 1e-4) * scale
            if not np.allclose(x, y, 0 if y.dtype.kind != "f" else 1e-12, tolerance, equal_nan=True):
                return Disagreement("value", f"{what}: result {k} is\n{x!r}, eager's\n{y!r}")
        return None


def _slopes(results: Sequence[Any], leaves: Sequence[Any], twice: bool) -> list[Any]:
    total: Any = 0
    for k, t in enumerate(results):
        if t.requires_grad:
            total = total + (t * (0.5 + k)).sum() + (t * t).sum() * 0.1
    found = tg.autograd.grad(total, leaves, create_graph=twice, allow_unused=True, materialize_grads=True)
    return list(found)


def _total(function: Callable) -> Callable:
    def total(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        found = [t for t in _tree.flatten(result)[0] if isinstance(t, tg.Tensor) and t.dtype.is_floating_point]
        value = sum((t.double().sum() for t in found), tg.zeros((), dtype=tg.float64))
        return value, [t.detach() for t in found]

    return total


def parted(seed: int) -> Disagreement | None:
    """Where the compiled function of a seed parts from eager first.

    Raises:
        Refused: if compiling refuses it.
    """
    with warnings.catch_warnings(), contextlib.suppress(FloatingPointError):
        warnings.simplefilter("ignore")
        drawn = function_of(seed)
        return None if drawn is None else Comparison(drawn, seed).run()
    return None
