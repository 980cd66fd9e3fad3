"""Random functions: the statements of a random program, with control flow, random numbers and derivatives among them."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import tapegrad as tg

from .generate import generate
from .program import Step

# statements that leave something behind, ask about places on the tape, or need the graph of something from outside
LEFT_OUT = ("backward(", "grad(", ".grad", "retain_grad", "detach_(", "is_leaf", "_version", ".requires_grad_(", "del ")
MOST_RESULTS = 4
EXTRA = 0.25  # of the statements are followed by one of these

EXTRAS = """
if {v}.sum() > {c}:
    {v} = {v} * 1.1
else:
    {v} = {v}.tanh()
---
for _ in range(abs(int({v}.detach().clamp(-9, 9).nan_to_num().sum())) % 3):
    {v} = {v} * 0.7 + 0.1
---
n = 0
while n < 4 and {v}.abs().sum() > {c} + 2:
    {v}, n = {v} * 0.5, n + 1
---
{v} = {v} * (2 if {c} < {v}.sum() < 1.5 else 3)
---
{v} = {v} * float({v}.detach().sum().item() > {c})
---
{v} = {v} * len(f"{{{v}.detach().sum().item():.0f}}")
---
{v} = {v} * str({v}.detach().sum() > {c}).count("T")
---
{v} = {v} * [0.5, 1.5][int(bool({v}.detach().numpy().sum() > {c}))]
---
{v} = {v} * max([t.sum() for t in ({v}, {v} * 0.5)])
---
{v} = {v} * min({v}.detach().reshape(-1).tolist(), default=1.0).is_integer()
---
{v} = {v} * tg.rand({v}.shape, dtype=tg.float64)
---
{v} = {v} + tg.randn_like({v})
---
{v} = tg.nn.functional.dropout({v}, 0.3)
---
{v} = {v} + tg.func.grad(lambda t: (t * t).sin().sum())({v})
---
{v} = tg.func.vjp(tg.tanh, {v})[1]({v})[0]
---
{v} = tg.func.jvp(tg.sin, ({v},), ({v},))[1]
---
{v} = tg.vmap(lambda row: (row * 0.7).cos() * row.sum())({v})
---
{v} = tg.utils.checkpoint.checkpoint(tg.sin, {v}, use_reentrant=False)
---
{v} = Cube.apply({v})
---
{v} = helper({v}) * scale
---
{v} = {v}[{v} > {c}].sum() + {v}
---
with tg.no_grad():
    {v} = {v} * {v}.detach().cos()
---
with tg.enable_grad():
    inner = {v}.detach().requires_grad_()
    {v} = {v} * 0.5 + tg.autograd.grad((inner * inner * inner).sum(), inner)[0]
---
{v} = tg.where({v}.sum() > {c}, {v}, -{v})
---
{v} = {v}.clone(); {v} += {v}.sum()
---
{v} = tg.stack([t * (k + 1) for k, t in enumerate({v})])
---
{v} = {v} * np.asarray({v}.detach()).clip(-1, 1).round().sum()
---
{v} = {v} + tg.tensor({v}.detach().round().clamp(-2, 2).tolist(), dtype=tg.float64)
"""
_extras = [text.strip("\n") for text in EXTRAS.split("---")]

HELPERS = """
factor = 1.5

def helper(x):
    return x * factor

class Cube(tg.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x * 0.1

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 0.3 * x * x
"""


class Drawn(NamedTuple):
    """A random function.

    Attributes:
        function: of positional arguments, then of those in `named`, then of a number ``scale``.
        source: its text.
        space: the names it refers to.
        arguments: examples of its positional arguments, float64.
        named: examples of its keyword arguments.
        outside: the tensors it refers to.
    """

    function: Callable
    source: str
    space: dict[str, Any]
    arguments: list[np.ndarray]
    named: dict[str, np.ndarray]
    outside: list[Any]

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return any(word in self.source for word in ("rand", "dropout"))


class _Drawing:
    # a function being drawn; every statement is tried as it comes
    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"function {seed}")
        self.space: dict[str, Any] = {"tg": tg, "np": np}
        exec(HELPERS, self.space)
        self.names = dict(self.space, scale=2.0)
        self.lines: list[str] = []
        self.roles: dict[str, list[tuple[str, np.ndarray]]] = {"positional": [], "named": []}
        self.outside: list[Any] = []
        for step in generate(seed):
            self._add(step)
            if step.results and step.results[0] in self.names and self.random.random() < EXTRA:
                self._try(self.random.choice(_extras).format(v=step.results[0], c=round(self.random.uniform(-1, 1), 2)))

    def _add(self, step: Step) -> None:
        if not step.operands and step.form.startswith("tg.tensor("):
            value = eval(step.form, {"tg": tg})
            if value.dtype.is_floating_point:
                self._leaf(step.results[0], value)
                return
        if any(word in step.form for word in LEFT_OUT) or any(o not in self.names for o in step.operands):
            return
        self._try(f"with tg.no_grad():\n    {step.line()}" if step.no_grad else step.line())

    def _leaf(self, name: str, value: Any) -> None:
        first = not self.roles["positional"]
        role = "positional" if first else self.random.choice(("positional",) * 3 + ("named", "outside", "outside"))
        other = f"{role[0]}{name}"
        if role == "outside":
            self.space[other] = value
            self.outside.append(value)
        else:
            self.roles[role].append((other, value.detach().numpy().copy()))
        self.names[other] = value.detach().requires_grad_(role != "outside" or value.requires_grad)
        self._try(f"{name} = {other} * 1" if self.random.random() < 0.7 else f"{name} = {other}")

    def _try(self, text: str) -> None:
        before = dict(self.names)
        try:
            exec(text, self.names)
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
            self.names = before
            return
        self.lines.append(text)

    def drawn(self) -> Drawn:
        results = [n for n, v in self.names.items() if n[0] == "v" and n[1:].isdigit() and isinstance(v, tg.Tensor)]
        chosen = sorted(self.random.sample(results, min(len(results), MOST_RESULTS)))
        listed = ", ".join(chosen)
        form = self.random.choice(("({},)", "[{}]", "({},)", "dict(a=[{}], b=('text', None, 2.5))", "([{}], 3)"))
        form = chosen[0] if len(chosen) == 1 and self.random.random() < 0.5 else form.format(listed)
        names = [name for name, _ in self.roles["positional"]]
        head = ", ".join([*names, "*", *(n for n, _ in self.roles["named"]), "scale"])
        body = textwrap.indent("\n".join([*self.lines, f"return {form}"]), "    ")
        source = f"def f({head}):\n{body}"
        exec(source, self.space)
        return Drawn(
            self.space["f"],
            source,
            self.space,
            [value for _, value in self.roles["positional"]],
            dict(self.roles["named"]),
            self.outside,
        )


def function_of(seed: int) -> Drawn | None:
    """The function of a seed; None if the program of the seed has no tensors to be arguments."""
    drawing = _Drawing(seed)
    return drawing.drawn() if drawing.roles["positional"] else None
