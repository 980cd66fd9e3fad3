r"""Derivatives compared with finite differences: `gradcheck` for first ones, `gradgradcheck` for second ones.

For each output :math:`f_i` and input :math:`x_j` that take part, the Jacobian is found twice: by central differences,
:math:`(f_i(x_j + \epsilon) - f_i(x_j - \epsilon)) / 2 \epsilon` with each element moved in place, and by the sweeps under test. Both have
a row an element of the input and a column an element of the output. In fast mode only :math:`v^T J u` is compared, for one random
:math:`u` and :math:`v` each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapegrad import dtypes, errors
from tapegrad.autograd.backward import grad
from tapegrad.autograd.functional import unit_tensors
from tapegrad.creation import from_copy, ones_like, zeros_like
from tapegrad.metadata import Size
from tapegrad.tensor import Tensor

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck"]


class GradcheckError(RuntimeError):
    """A derivative that `gradcheck` or `gradgradcheck` found to be wrong."""


def gradcheck(
    func: Callable,
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    r"""Compare the gradients of a function with finite differences.

    The values a and n, analytical and numerical, agree if :math:`|a - n| \le \text{atol} + \text{rtol} \, |n|`. The defaults are meant
    for float64.

    Args:
        func: a function of the inputs that returns a tensor or a tuple of tensors.
        inputs: a tensor or a tuple; the floating tensors in it that require grad are the ones differentiated by. Their elements are moved
            in place and put back.
        eps: the step of the differences.
        atol: absolute tolerance.
        rtol: relative tolerance.
        raise_exception: raise an error that shows both Jacobians, instead of returning False.
        nondet_tol: how far two runs of the same backward may differ.
        check_undefined_grad: also leave out one output at a time, which must be the same as a gradient of zeros for it.
        check_grad_dtypes: refuse gradients of another dtype than their input.
        check_batched_grad: also compare ``is_grads_batched=True`` with one sweep after the other.
        check_batched_forward_grad: also compare forward mode under `vmap` with one direction after the other.
        check_forward_ad: compare forward mode too.
        check_backward_ad: compare reverse mode.
        fast_mode: compare random projections of the Jacobians, at the cost of a few calls.
        masked: allow rounding where gradients must be zero.

    Returns:
        True if all agree.

    Raises:
        GradcheckError: if something does not agree; a RuntimeError.
        ValueError: if no input requires grad.
        RuntimeError: if elements of an input share memory.
        TypeError: if `func` returns anything but tensors.
        AssertionError: if options contradict each other, or shapes or dtypes change with the elements.

    >>> import tapegrad as tg
    >>> x = tg.tensor([0.5, 2.0], dtype=tg.float64, requires_grad=True)
    >>> tg.autograd.gradcheck(tg.sin, (x,))
    True
    >>> tg.autograd.gradcheck(lambda x: x * x.detach(), (x,), raise_exception=False)
    False
    """
    if not (check_forward_ad or check_backward_ad):
        raise AssertionError(errors.GRADCHECK_NO_MODE.format("check_forward_ad", "check_backward_ad"))
    if check_batched_grad and not check_backward_ad:
        raise AssertionError(errors.GRADCHECK_OPTION.format("check_batched_grad", "check_backward_ad"))
    if check_batched_forward_grad and not check_forward_ad:
        raise AssertionError(errors.GRADCHECK_OPTION.format("check_batched_forward_grad", "check_forward_ad"))
    points = _as_tuple(inputs)
    _check_inputs(points)
    outputs = _tensors_of(func(*points))
    compared = [i for i, out in enumerate(outputs) if out.requires_grad]
    case = _Case(func, points, compared, eps, atol, rtol, nondet_tol, check_grad_dtypes, fast_mode)
    try:
        if compared:
            roots = [outputs[i] for i in compared]
            numerical = _numerical(case, compared)
            if check_backward_ad:
                _check_reverse(case, roots, numerical)
            if check_forward_ad:
                _check_forward(case, numerical)
            if check_forward_ad and check_undefined_grad:
                _check_absent_tangents(case)
            if check_batched_forward_grad:
                _check_batched_tangents(case)
            if check_batched_grad:
                _check_batched_rows(case, roots)
            if check_backward_ad and check_undefined_grad:
                _check_absent_outputs(case, roots)
            if check_backward_ad:
                _check_zero_start(case, roots, bool(masked))
        else:
            _check_constant(case, outputs)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(
    func: Callable,
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    r"""Compare the derivatives of gradients with finite differences.

    The function checked is :math:`(x, v) \mapsto v^T J(x)`, with the Jacobian as reverse mode finds it.

    Args:
        func: a function of the inputs that returns a tensor or a tuple of tensors.
        inputs: a tensor or a tuple, as for `gradcheck`.
        grad_outputs: the v, one for each output that requires grad; None for random ones. None in their place is a v of ones.
        gen_non_contig_grad_outputs: whether random v are not contiguous.
        check_fwd_over_rev: compare forward mode.
        check_rev_over_rev: compare reverse mode.
        eps, atol, rtol, raise_exception, nondet_tol, check_undefined_grad, check_grad_dtypes, check_batched_grad, fast_mode, masked: as for
            `gradcheck`.

    Returns:
        True if all agree.

    Raises:
        GradcheckError: if something does not agree.
        ValueError: if no input and no v requires grad, or no output does.
        RuntimeError, TypeError, AssertionError: as for `gradcheck`.

    >>> import tapegrad as tg
    >>> x = tg.tensor([0.5, 2.0], dtype=tg.float64, requires_grad=True)
    >>> tg.autograd.gradgradcheck(tg.sin, (x,))
    True
    """
    if not (check_fwd_over_rev or check_rev_over_rev):
        raise AssertionError(errors.GRADCHECK_NO_MODE.format("check_fwd_over_rev", "check_rev_over_rev"))
    if check_undefined_grad and not check_rev_over_rev:
        raise AssertionError(errors.GRADCHECK_OPTION.format("check_undefined_grad", "check_rev_over_rev"))
    if check_batched_grad and not check_rev_over_rev:
        raise AssertionError(errors.GRADCHECK_OPTION.format("check_batched_grad", "check_rev_over_rev"))
    points = _as_tuple(inputs)
    outputs = [out for out in _tensors_of(func(*points)) if out.requires_grad]
    if not outputs:
        raise ValueError(errors.GRADGRADCHECK_NO_OUTPUT)
    if grad_outputs is None:
        starts: tuple = tuple(_random_start(out, gen_non_contig_grad_outputs, k) for k, out in enumerate(outputs))
    else:
        starts = tuple(
            ones_like(out) if v is None else v for out, v in zip(outputs, _as_tuple(grad_outputs), strict=True)
        )
    needed = [_requires_grad(t) for t in (*points, *starts)]

    def gradients(*given: Any) -> tuple[Tensor, ...]:
        # forward mode hands over tensors outside the graph
        given = tuple(t.requires_grad_() if need else t for t, need in zip(given, needed, strict=True))
        at, v = given[: len(points)], given[len(points) :]
        roots = [out for out in _tensors_of(func(*at)) if out.requires_grad]
        found = grad(roots, [t for t in at if _requires_grad(t)], v, create_graph=True, allow_unused=True)
        return tuple(g for g in found if g is not None)

    return gradcheck(
        gradients,
        (*points, *starts),
        eps=eps,
        atol=atol,
        rtol=rtol,
        raise_exception=raise_exception,
        nondet_tol=nondet_tol,
        check_undefined_grad=check_undefined_grad,
        check_grad_dtypes=check_grad_dtypes,
        check_batched_grad=check_batched_grad,
        check_forward_ad=check_fwd_over_rev,
        check_backward_ad=check_rev_over_rev,
        fast_mode=fast_mode,
        masked=masked,
    )


@dataclass(frozen=True)
class _Case:
    """A function at a point, which of its outputs are compared, and how."""

    func: Callable
    points: tuple
    compared: list[int]
    eps: float
    atol: float
    rtol: float
    nondet_tol: float
    check_grad_dtypes: bool
    fast: bool

    def variables(self) -> list[Tensor]:
        """The inputs differentiated by."""
        return [t for t in self.points if _requires_grad(t)]

    def values(self, positions: list[int]) -> list[np.ndarray]:
        """Copies of outputs for the elements that the inputs have now."""
        outputs = _tensors_of(self.func(*self.points))
        return [outputs[i].numpy(force=True).copy() for i in positions]

    def close(self, analytical: np.ndarray, numerical: np.ndarray, scale: float = 1.0) -> bool:
        """Whether two Jacobians agree."""
        return np.allclose(analytical, numerical, self.rtol, self.atol * scale)


def _as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _tensors_of(result: Any) -> tuple[Tensor, ...]:
    found = _as_tuple(result)
    for i, out in enumerate(found):
        if not isinstance(out, Tensor):
            raise TypeError(errors.GRADCHECK_OUTPUT.format(i, type(out).__name__))
    return found


def _random_start(out: Tensor, gapped: bool, seed: int) -> Tensor:
    shape = (*out.shape, 2) if gapped else out.shape
    values = from_copy(np.random.default_rng(seed).uniform(-1, 1, shape).astype(out.dtype.numpy))
    return (values.select(-1, 0) if gapped else values).requires_grad_()


def _check_inputs(points: tuple) -> None:
    for i, t in enumerate(points):
        if not _requires_grad(t):
            continue
        if t.dtype is not dtypes.float64:
            warnings.warn(errors.GRADCHECK_DTYPE.format(i), stacklevel=3)
        sides = list(zip(t.shape, t.stride(), strict=True))
        if any(step == 0 and extent > 1 for extent, step in sides):
            raise RuntimeError(errors.GRADCHECK_STRIDE_0.format(i))
        places = np.zeros((), np.int64)
        for extent, step in sides:
            places = np.add.outer(places, step * np.arange(extent))
        if np.unique(places).size != t.numel():
            raise RuntimeError(errors.GRADCHECK_OVERLAP.format(i=i, shape=list(t.shape), strides=list(t.stride())))
    if not any(_requires_grad(t) for t in points):
        raise ValueError(errors.GRADCHECK_NO_GRAD)


def _directions(case: _Case) -> list[np.ndarray]:
    # u: one for each variable
    return [_projection(t, 0, j) for j, t in enumerate(case.variables())]


def _projection(t: Tensor, *seed: int) -> np.ndarray:
    # positive entries, so that errors of one sign do not cancel; a generator of its own leaves the user's alone
    found = np.random.default_rng(seed).random(t.numel()).astype(t.dtype.numpy)
    return found / np.linalg.norm(found) if found.size else found


# ---- by differences ----


def _difference(case: _Case, t: Tensor, place: Any, step: Any, positions: list[int]) -> list[np.ndarray]:
    """The change of outputs, flat and per eps, when elements of an input move by a step either way."""
    elements = t.data.numpy()  # the memory that the function sees; writes through NumPy leave versions alone
    kept = elements[place].copy()
    try:
        elements[place] = kept - step
        low = case.values(positions)
        elements[place] = kept + step
        high = case.values(positions)
    finally:
        elements[place] = kept
    for a, b in zip(low, high, strict=True):
        for what, of_a, of_b in (("shape", Size(a.shape), Size(b.shape)), ("dtype", a.dtype, b.dtype)):
            if of_a != of_b:
                where = "" if place is ... else f"on index {place} "
                message = errors.GRADCHECK_PERTURBED.format(what=what, place=where, eps=case.eps, low=of_a, high=of_b)
                raise AssertionError(message)
    with np.errstate(over="ignore", invalid="ignore"):
        return [((b - a) / (2 * case.eps)).reshape(-1) for a, b in zip(low, high, strict=True)]


def _by_elements(case: _Case, t: Tensor, positions: list[int]) -> list[np.ndarray]:
    """The Jacobians of outputs by one input."""
    rows = [_difference(case, t, place, case.eps, positions) for place in np.ndindex(*t.shape)]
    if not rows:
        return [np.zeros((0, value.size)) for value in case.values(positions)]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _numerical(case: _Case, positions: list[int]) -> list[list[np.ndarray]]:
    """For each variable, for each output, the Jacobian; in fast mode its product with the variable's direction."""
    variables = case.variables()
    if not case.fast:
        return [_by_elements(case, t, positions) for t in variables]
    return [
        _difference(case, t, ..., case.eps * u.reshape(t.shape), positions)
        for t, u in zip(variables, _directions(case), strict=True)
    ]


def _check_constant(case: _Case, outputs: tuple[Tensor, ...]) -> None:
    """Outputs outside the graph must not change with the inputs."""
    positions = [i for i, out in enumerate(outputs) if out.dtype.is_floating_point]
    for parts in _numerical(case, positions):
        if any(np.any(np.abs(part) > case.nondet_tol) for part in parts):
            raise GradcheckError("Numerical gradient for function expected to be zero")


# ---- by reverse mode ----


def _pulled_back(case: _Case, root: Tensor, starts: Iterable[Tensor]) -> list[np.ndarray]:
    """For each variable its gradients for each start, as columns."""
    variables = case.variables()
    columns: list[list[np.ndarray]] = [[] for _ in variables]
    for start in starts:
        found = grad(root, variables, start, retain_graph=True, allow_unused=True)
        for column, t, g in zip(columns, variables, found, strict=True):
            if g is not None and g.shape != t.shape:
                raise GradcheckError(f"Analytical gradient has incorrect size: {g.shape} for an input of {t.shape}")
            if g is not None and g.dtype is not t.dtype and case.check_grad_dtypes:
                raise GradcheckError(f"Gradient has dtype mismatch: {g.dtype} for an input of {t.dtype}")
            column.append(_array(g, t).reshape(-1))
    return [
        np.stack(column, 1) if column else np.zeros((t.numel(), 0))
        for column, t in zip(columns, variables, strict=True)
    ]


def _analytical(case: _Case, root: Tensor, start: Tensor | None = None) -> list[np.ndarray]:
    # all rows, or the one that a start gives; twice, for they must not change
    first, second = (_pulled_back(case, root, unit_tensors(root) if start is None else [start]) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        with np.errstate(invalid="ignore"):
            apart = np.abs(a - b)
        if np.any(apart > case.nondet_tol):
            raise GradcheckError(errors.GRADCHECK_NOT_REENTRANT.format(case.nondet_tol))
    return first


def _check_reverse(case: _Case, roots: list[Tensor], numerical: list[list[np.ndarray]]) -> None:
    directions = _directions(case)
    for i, root in enumerate(roots):
        if not case.fast:
            for j, a in enumerate(_analytical(case, root)):
                _compare(case, i, j, a, numerical[j][i], "")
            continue
        v = _projection(root, 1, i)
        gradients = _analytical(case, root, from_copy(v.reshape(root.shape)))
        for j, (u, g) in enumerate(zip(directions, gradients, strict=True)):
            a, n = np.asarray(g[:, 0] @ u), np.asarray(numerical[j][i] @ v)
            if not case.close(a, n, float(u.sum() * v.sum())):
                _fail_fast(case, i, j, a, n, _analytical(case, root)[j], "")


def _check_batched_rows(case: _Case, roots: list[Tensor]) -> None:
    variables = case.variables()
    for i, root in enumerate(roots):
        starts = from_copy(np.random.default_rng(i).standard_normal((2, *root.shape)).astype(root.dtype.numpy))
        rows = [grad(root, variables, start, retain_graph=True, allow_unused=True) for start in starts]
        try:
            batch = grad(root, variables, starts, retain_graph=True, allow_unused=True, is_grads_batched=True)
        except RuntimeError as failure:
            raise GradcheckError(_batched_failure(failure, "check_batched_grad")) from failure
        for j, (t, found) in enumerate(zip(variables, batch, strict=True)):
            expected = np.stack([_array(row[j], t) for row in rows])
            got = np.zeros_like(expected) if found is None else found.numpy(force=True)
            _check_batch(i, j, got, expected, "check_batched_grad")


def _check_absent_outputs(case: _Case, roots: list[Tensor]) -> None:
    """An output left out, whose gradient is then undefined, must count as one with a gradient of zeros."""
    variables = case.variables()
    for k in range(len(roots) if len(roots) > 1 else 0):
        starts = [zeros_like(t) if i == k else ones_like(t) for i, t in enumerate(roots)]
        expected = grad(roots, variables, starts, retain_graph=True, allow_unused=True)
        del starts[k]
        rest = roots[:k] + roots[k + 1 :]
        try:
            found = grad(rest, variables, starts, retain_graph=True, allow_unused=True)
        except (AttributeError, RuntimeError, TypeError) as failure:
            raise GradcheckError(errors.GRADCHECK_UNDEFINED.format(failure)) from failure
        for t, g, e in zip(variables, found, expected, strict=True):
            got, wanted = _array(g, t), _array(e, t)
            if not case.close(got, wanted):
                text = f"{_shown(got)} without output {k}, and {_shown(wanted)} with zeros for it"
                raise GradcheckError(errors.GRADCHECK_UNDEFINED.format(text))


def _check_zero_start(case: _Case, roots: list[Tensor], masked: bool) -> None:
    """Gradients of zeros must give zeros."""
    variables = case.variables()
    found = grad(roots, variables, [zeros_like(t) for t in roots], allow_unused=True)
    for t, g in zip(variables, found, strict=True):
        values = _array(g, t)
        if not (np.allclose(values, 0) if masked else np.all(values == 0)):
            raise GradcheckError("backward not multiplied by grad_output")
        if g is not None and g.dtype is not t.dtype:
            raise GradcheckError("grad is incorrect type")


# ---- by forward mode ----


def _tangents(case: _Case, given: Sequence[Tensor | None]) -> list[Tensor]:
    """The tangents of the compared outputs for tangents of the variables; None is no tangent."""
    from tapegrad.autograd import forward_ad  # type: ignore[attr-defined]

    wanted = iter(given)
    with forward_ad.dual_level():
        at = []
        for t in case.points:
            tangent = next(wanted) if _requires_grad(t) else None
            primal = t.detach() if isinstance(t, Tensor) else t
            at.append(primal if tangent is None else forward_ad.make_dual(primal, tangent))
        outputs = _tensors_of(case.func(*at))
        found = []
        for i in case.compared:
            value, tangent = forward_ad.unpack_dual(outputs[i])
            if case.check_grad_dtypes and tangent is not None and tangent.dtype is not value.dtype:
                raise GradcheckError("Forward AD gradient has dtype mismatch.")
            found.append((zeros_like(value) if tangent is None else tangent).detach())
    return found


def _tangents_along(case: _Case, j: int, direction: Tensor) -> list[Tensor]:
    return _tangents(case, [direction if k == j else zeros_like(t) for k, t in enumerate(case.variables())])


def _pushed_forward(case: _Case, j: int, t: Tensor) -> list[np.ndarray]:
    """The Jacobians of the compared outputs by one variable."""
    rows = [[d.numpy().reshape(-1) for d in _tangents_along(case, j, start)] for start in unit_tensors(t)]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _check_forward(case: _Case, numerical: list[list[np.ndarray]]) -> None:
    for j, (t, u) in enumerate(zip(case.variables(), _directions(case), strict=True)):
        if not case.fast:
            for i, a in enumerate(_pushed_forward(case, j, t)):
                _compare(case, i, j, a, numerical[j][i], _FORWARD)
            continue
        for i, tangent in enumerate(_tangents_along(case, j, from_copy(u.reshape(t.shape)))):
            a, n = tangent.numpy().reshape(-1), numerical[j][i]
            if not case.close(a, n, float(u.sum())):
                _fail_fast(case, i, j, a, n, _pushed_forward(case, j, t)[i], _FORWARD)


def _check_absent_tangents(case: _Case) -> None:
    """An input without a tangent must count as one with a tangent of zeros."""
    variables = case.variables()
    along: list[Tensor | None] = [
        from_copy(u.reshape(t.shape)) for t, u in zip(variables, _directions(case), strict=True)
    ]
    for j, t in enumerate(variables):
        with_zeros = _tangents(case, [*along[:j], zeros_like(t), *along[j + 1 :]])
        without = _tangents(case, [*along[:j], None, *along[j + 1 :]])
        for i, (expected, got) in enumerate(zip(with_zeros, without, strict=True)):
            if not case.close(got.numpy(), expected.numpy()):
                raise GradcheckError(errors.GRADCHECK_TANGENT.format(output=i, input=j, got=got, expected=expected))


def _check_batched_tangents(case: _Case) -> None:
    from tapegrad.func import vmap  # type: ignore[import-not-found]

    for j, t in enumerate(case.variables()):
        directions = from_copy(np.random.default_rng(j).standard_normal((2, *t.shape)).astype(t.dtype.numpy))
        one_by_one = [_tangents_along(case, j, direction) for direction in directions]
        try:
            batch = vmap(lambda direction, j=j: tuple(_tangents_along(case, j, direction)))(directions)
        except RuntimeError as failure:
            raise GradcheckError(_batched_failure(failure, "check_batched_forward_grad")) from failure
        for i, got in enumerate(batch):
            expected = np.stack([tangents[i].numpy() for tangents in one_by_one])
            _check_batch(i, j, got.numpy(force=True), expected, "check_batched_forward_grad")


# ---- verdicts ----

_FORWARD = "computed with forward mode "


def _array(g: Tensor | None, t: Tensor) -> np.ndarray:
    # a gradient's elements, copied; None is zeros
    return np.zeros(t.shape, t.dtype.numpy) if g is None else g.numpy(force=True).copy()


def _shown(values: np.ndarray) -> str:
    return repr(from_copy(values))


def _mismatch(i: int, j: int, analytical: np.ndarray, numerical: np.ndarray, mode: str) -> str:
    return errors.GRADCHECK_MISMATCH.format(
        mode=mode, output=i, input=j, numerical=_shown(numerical), analytical=_shown(analytical)
    )


def _compare(case: _Case, i: int, j: int, analytical: np.ndarray, numerical: np.ndarray, mode: str) -> None:
    if not case.close(analytical, numerical):
        raise GradcheckError(_mismatch(i, j, analytical, numerical, mode))


def _fail_fast(case: _Case, i: int, j: int, a: np.ndarray, n: np.ndarray, analytical: np.ndarray, mode: str) -> None:
    numerical = _by_elements(case, case.variables()[j], [case.compared[i]])[0]
    difference = np.max(np.abs(analytical - numerical))
    message = _mismatch(i, j, a, n, mode) + errors.GRADCHECK_FAST.format(
        numerical=_shown(numerical), analytical=_shown(analytical), difference=difference
    )
    raise GradcheckError(message + (errors.GRADCHECK_FAST_ONLY if case.close(analytical, numerical) else ""))


def _batched_failure(failure: RuntimeError, option: str) -> str:
    return f"While computing batched gradients, got: {failure}\n\n{errors.GRADCHECK_BATCHED.format(option=option)}"


def _check_batch(i: int, j: int, got: np.ndarray, expected: np.ndarray, option: str) -> None:
    if not np.allclose(got, expected):
        raise GradcheckError(
            f"For output {i} and input {j}:\n\n{errors.GRADCHECK_BATCHED.format(option=option)}\n\n"
            f"Got:\n{_shown(got)}\n\nExpected:\n{_shown(expected)}"
        )
