"""Runs in PyTorch, which keep to what both libraries must agree on."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from .messages import TWICE, says
from .program import Failure, Run, Step

LARGEST = 1e3  # a tame value is no larger


class Outside(Exception):
    """A program that is not for comparing: its values are not tame, or the libraries differ in it on purpose."""


class Reference(Run):
    """A program under way in PyTorch.

    Where tapegrad documents that it differs, or PyTorch's answer is an accident of its implementation, a statement raises `Outside`.
    """

    def __init__(self) -> None:
        super().__init__(torch)
        # kept alive, so that their addresses stay theirs:
        self._apart: list[Any] = []  # results whose memory PyTorch lays out otherwise, or shares between gradients
        self._rewritten: list[Any] = []  # what was written to without recording
        self._written: list[Any] = []  # all that was written to
        self._twice = False  # whether derivatives have been recorded

    def step(self, step: Step) -> Failure | None:
        """Run one statement.

        Raises:
            Outside: if it, or its result, is not for comparing.
        """
        missing = [name for name in step.operands if name not in self.names]
        if missing:
            raise Outside(f"{missing[0]} is not defined")
        operands = [self.names[name] for name in step.operands]
        if step.writes:
            self._check_write(step, *operands)
        elif "grad" in step.form or "inputs=" in step.form:
            self._check_places(step, operands)
        elif "detach_" in step.form:
            self._check_bases(operands)
        before = {_storage(t) for _, t in self.tensors()}
        failure = super().step(step)
        if failure is not None:
            _check_failure(step, failure)
            return failure
        self._twice = self._twice or "create_graph" in step.form
        for name in step.results:
            self._settle(name, step.form, before)
        if step.writes:
            _check_tame(operands[0])
        for _, t in self.tensors():
            if t._base is not None and t.requires_grad and _is_leaf(t):
                raise Outside("a view that requires a gradient of its own, or because its base does")
        return None

    def is_apart(self, t: Any) -> bool:
        """Whether PyTorch lays out a tensor's memory otherwise, or shares it with another gradient."""
        return _shares(t, self._apart)

    def _check_write(self, step: Step, target: Any, *others: Any) -> None:
        if self.is_apart(target):
            raise Outside("results of operands that are not contiguous lie otherwise in memory")
        if any(_overlap(target, t) for t in others):
            raise Outside("elements that are read at other places while they are written")
        self._written.append(target)
        if step.no_grad or not target.requires_grad:
            self._rewritten.append(target)
        for _, t in self.tensors():
            if t.retains_grad and t._base is not None and t is not target and _shares(t, [target]):
                raise Outside("a view whose gradient is retained, and that PyTorch places anew")

    def _check_places(self, step: Step, operands: list[Any]) -> None:
        if step.form == "{0}.requires_grad_()":
            self._check_bases(operands)
        if any(map(_is_part, operands)):
            retained = "inputs=" in step.form or any(t.retains_grad for _, t in self.tensors())
            if retained or "retain_grad" in step.form:
                raise Outside("PyTorch takes the parts of one split for one node, whose hooks all run together")
        if self._twice and any(t._base is not None and t._version for t in operands):
            raise Outside("what a write to a view saved counts as computed from the view in PyTorch")
        views = [t for t in operands if t._base is not None]
        if any(_shares(t, self._rewritten) for t in views):
            raise Outside("a view that PyTorch has given another place in the graph since its base was written to")
        for t in filter(self.is_apart, operands):
            if any(u is not t and _storage(u) == _storage(t) for _, u in self.tensors()):
                raise Outside("gradients that share memory")
        known = [id(t) for _, t in self.tensors()]
        if any(id(t._base) not in known and _shares(t, self._written) for t in views):
            raise Outside("a result that is a view of something nameless in PyTorch")

    def _check_bases(self, operands: list[Any]) -> None:
        if any(t._base is base for _, t in self.tensors() for base in operands):
            raise Outside("views that PyTorch places anew when their base is taken out of the graph, or put into it")

    def _settle(self, name: str, form: str, before: set[int]) -> None:
        # give a result the layout it has in tapegrad
        value = self.names[name]
        gradient = "autograd.grad" in form
        if not isinstance(value, torch.Tensor):
            return
        _check_tame(value)
        if "std(" in form and not (value.detach().abs() > 1e-6).all():
            raise Outside("a standard deviation of rounding errors")
        if _storage(value) in before and not gradient:
            return
        contiguous = value.is_contiguous()
        if not contiguous:
            leaf = value.is_leaf and value.requires_grad
            value = value.detach().contiguous().requires_grad_() if leaf else value.contiguous()
            self.names[name] = value
        if gradient or not contiguous:
            self._apart.append(value)


def _check_failure(step: Step, failure: Failure) -> None:
    if "its base or another view of its base has been modified inplace" in failure.message:
        raise Outside("one of several views used after a write to their base")
    if "inputs=" in step.form and says(failure, TWICE):
        raise Outside("PyTorch runs what computed an input, too")


def _is_leaf(t: Any) -> bool:
    # a view that must not be used after its base was written to answers with an error
    try:
        return t.is_leaf
    except RuntimeError:
        raise Outside("one of several views is there after a write to their base") from None


def _is_part(t: Any) -> bool:
    return t.grad_fn is not None and t.grad_fn.name().startswith(("Split", "Unbind"))


def _storage(t: Any) -> int:
    # empty tensors share nothing
    return t.untyped_storage().data_ptr() if t.numel() else -id(t)


def _shares(t: Any, others: list[Any]) -> bool:
    base = t if t._base is None else t._base
    return any(u is base or u._base is base or _storage(u) == _storage(base) for u in others)


def _overlap(a: Any, b: Any) -> bool:
    same = a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr()
    return not same and _storage(a) == _storage(b) and bool(_places(a) & _places(b))


def _places(t: Any) -> set[int]:
    # where in its storage the elements lie
    steps = (range(0, n * s, s) if s else (0,) for n, s in zip(t.shape, t.stride()))
    return {t.storage_offset() + sum(place) for place in itertools.product(*steps)}


def _check_tame(t: Any) -> None:
    if t.is_floating_point() and t.numel():
        largest = t.detach().abs().max().item()
        if not largest <= LARGEST:  # NaN is no larger and no smaller
            raise Outside("a value that is not tame")
