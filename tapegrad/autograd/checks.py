"""What `gradcheck` looks at: reverse and forward mode against differences, in batches, and with parts left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tapegrad import errors
from tapegrad.autograd.backward import grad
from tapegrad.autograd.differences import (
    Case,
    GradcheckError,
    by_elements,
    needs_grad,
    projection,
    tensors_of,
)
from tapegrad.autograd.functional import unit_tensors
from tapegrad.creation import from_copy, ones_like, zeros_like
from tapegrad.tensor import Tensor

# ---- by reverse mode ----


def _pulled_back(case: Case, root: Tensor, starts: Iterable[Tensor]) -> list[np.ndarray]:
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


def _analytical(case: Case, root: Tensor, start: Tensor | None = None) -> list[np.ndarray]:
    # all rows, or the one that a start gives; twice, for they must not change
    first, second = (_pulled_back(case, root, unit_tensors(root) if start is None else [start]) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        with np.errstate(invalid="ignore"):
            apart = np.abs(a - b)
        if np.any(apart > case.nondet_tol):
            raise GradcheckError(errors.GRADCHECK_NOT_REENTRANT.format(case.nondet_tol))
    return first


def check_reverse(case: Case, roots: list[Tensor], numerical: list[list[np.ndarray]]) -> None:
    """Gradients are those of the differences."""
    directions = case.directions()
    for i, root in enumerate(roots):
        if not case.fast:
            for j, a in enumerate(_analytical(case, root)):
                _compare(case, i, j, a, numerical[j][i], "")
            continue
        v = projection(root, 1, i)
        gradients = _analytical(case, root, from_copy(v.reshape(root.shape)))
        for j, (u, g) in enumerate(zip(directions, gradients, strict=True)):
            a, n = np.asarray(g[:, 0] @ u), np.asarray(numerical[j][i] @ v)
            if not case.close(a, n, float(u.sum() * v.sum())):
                _fail_fast(case, i, j, a, n, _analytical(case, root)[j], "")


def check_batched_rows(case: Case, roots: list[Tensor]) -> None:
    """Gradients for a batch of starts are those for one start after the other."""
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


def check_absent_outputs(case: Case, roots: list[Tensor]) -> None:
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


def check_zero_start(case: Case, roots: list[Tensor], masked: bool) -> None:
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


def _tangents(case: Case, given: Sequence[Tensor | None]) -> list[Tensor]:
    """The tangents of the compared outputs for tangents of the variables; None is no tangent."""
    from tapegrad.autograd import forward_ad  # type: ignore[attr-defined]

    wanted = iter(given)
    with forward_ad.dual_level():
        at = []
        for t in case.points:
            tangent = next(wanted) if needs_grad(t) else None
            primal = t.detach() if isinstance(t, Tensor) else t
            at.append(primal if tangent is None else forward_ad.make_dual(primal, tangent))
        outputs = tensors_of(case.func(*at))
        found = []
        for i in case.compared:
            value, tangent = forward_ad.unpack_dual(outputs[i])
            if case.check_grad_dtypes and tangent is not None and tangent.dtype is not value.dtype:
                raise GradcheckError("Forward AD gradient has dtype mismatch.")
            found.append((zeros_like(value) if tangent is None else tangent).detach())
    return found


def _tangents_along(case: Case, j: int, direction: Tensor) -> list[Tensor]:
    return _tangents(case, [direction if k == j else zeros_like(t) for k, t in enumerate(case.variables())])


def _pushed_forward(case: Case, j: int, t: Tensor) -> list[np.ndarray]:
    """The Jacobians of the compared outputs by one variable."""
    rows = [[d.numpy().reshape(-1) for d in _tangents_along(case, j, start)] for start in unit_tensors(t)]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def check_forward(case: Case, numerical: list[list[np.ndarray]]) -> None:
    """Tangents are those of the differences."""
    for j, (t, u) in enumerate(zip(case.variables(), case.directions(), strict=True)):
        if not case.fast:
            for i, a in enumerate(_pushed_forward(case, j, t)):
                _compare(case, i, j, a, numerical[j][i], _FORWARD)
            continue
        for i, tangent in enumerate(_tangents_along(case, j, from_copy(u.reshape(t.shape)))):
            a, n = tangent.numpy().reshape(-1), numerical[j][i]
            if not case.close(a, n, float(u.sum())):
                _fail_fast(case, i, j, a, n, _pushed_forward(case, j, t)[i], _FORWARD)


def check_absent_tangents(case: Case) -> None:
    """An input without a tangent must count as one with a tangent of zeros."""
    variables = case.variables()
    along: list[Tensor | None] = [
        from_copy(u.reshape(t.shape)) for t, u in zip(variables, case.directions(), strict=True)
    ]
    for j, t in enumerate(variables):
        with_zeros = _tangents(case, [*along[:j], zeros_like(t), *along[j + 1 :]])
        without = _tangents(case, [*along[:j], None, *along[j + 1 :]])
        for i, (expected, got) in enumerate(zip(with_zeros, without, strict=True)):
            if not case.close(got.numpy(), expected.numpy()):
                raise GradcheckError(errors.GRADCHECK_TANGENT.format(output=i, input=j, got=got, expected=expected))


def check_batched_tangents(case: Case) -> None:
    """Tangents under `vmap` are those of one direction after the other."""
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


def _compare(case: Case, i: int, j: int, analytical: np.ndarray, numerical: np.ndarray, mode: str) -> None:
    if not case.close(analytical, numerical):
        raise GradcheckError(_mismatch(i, j, analytical, numerical, mode))


def _fail_fast(case: Case, i: int, j: int, a: np.ndarray, n: np.ndarray, analytical: np.ndarray, mode: str) -> None:
    numerical = by_elements(case, case.variables()[j], [case.compared[i]])[0]
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
