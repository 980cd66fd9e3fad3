r"""Derivatives compared with finite differences: `gradcheck` for first ones, `gradgradcheck` for second ones.

For each output :math:`f_i` and input :math:`x_j` that take part, the Jacobian is found twice: by central differences,
:math:`(f_i(x_j + \epsilon) - f_i(x_j - \epsilon)) / 2 \epsilon` with each element moved in place, and by the sweeps under test. Both have
a row an element of the input and a column an element of the output. In fast mode only :math:`v^T J u` is compared, for one random
:math:`u` and :math:`v` each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapegrad import errors
from tapegrad.autograd.backward import grad
from tapegrad.autograd.checks import (
    check_absent_outputs,
    check_absent_tangents,
    check_batched_rows,
    check_batched_tangents,
    check_forward,
    check_reverse,
    check_zero_start,
)
from tapegrad.autograd.differences import (
    Case,
    GradcheckError,
    as_tuple,
    check_constant,
    check_inputs,
    needs_grad,
    numerical_jacobians,
    tensors_of,
)
from tapegrad.creation import from_copy, ones_like
from tapegrad.tensor import Tensor

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck"]


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
    points = as_tuple(inputs)
    check_inputs(points)
    outputs = tensors_of(func(*points))
    compared = [i for i, out in enumerate(outputs) if out.requires_grad]
    case = Case(func, points, compared, eps, atol, rtol, nondet_tol, check_grad_dtypes, fast_mode)
    try:
        if compared:
            roots = [outputs[i] for i in compared]
            numerical = numerical_jacobians(case, compared)
            if check_backward_ad:
                check_reverse(case, roots, numerical)
            if check_forward_ad:
                check_forward(case, numerical)
            if check_forward_ad and check_undefined_grad:
                check_absent_tangents(case)
            if check_batched_forward_grad:
                check_batched_tangents(case)
            if check_batched_grad:
                check_batched_rows(case, roots)
            if check_backward_ad and check_undefined_grad:
                check_absent_outputs(case, roots)
            if check_backward_ad:
                check_zero_start(case, roots, bool(masked))
        else:
            check_constant(case, outputs)
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
    points = as_tuple(inputs)
    outputs = [out for out in tensors_of(func(*points)) if out.requires_grad]
    if not outputs:
        raise ValueError(errors.GRADGRADCHECK_NO_OUTPUT)
    if grad_outputs is None:
        starts: tuple = tuple(_random_start(out, gen_non_contig_grad_outputs, k) for k, out in enumerate(outputs))
    else:
        starts = tuple(
            ones_like(out) if v is None else v for out, v in zip(outputs, as_tuple(grad_outputs), strict=True)
        )
    needed = [needs_grad(t) for t in (*points, *starts)]

    def gradients(*given: Any) -> tuple[Tensor, ...]:
        # forward mode hands over tensors outside the graph
        given = tuple(t.requires_grad_() if need else t for t, need in zip(given, needed, strict=True))
        at, v = given[: len(points)], given[len(points) :]
        roots = [out for out in tensors_of(func(*at)) if out.requires_grad]
        found = grad(roots, [t for t in at if needs_grad(t)], v, create_graph=True, allow_unused=True)
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


def _random_start(out: Tensor, gapped: bool, seed: int) -> Tensor:
    shape = (*out.shape, 2) if gapped else out.shape
    values = from_copy(np.random.default_rng(seed).uniform(-1, 1, shape).astype(out.dtype.numpy))
    return (values.select(-1, 0) if gapped else values).requires_grad_()
