"""The kinds of statement that random programs are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .program import Step

if TYPE_CHECKING:
    from .generate import Generator

FLOAT = "dtype=tg.float64"


def literal(g: Generator, shape: Sequence[int]) -> str:
    """The text of a tensor with given extents, where equal elements are not rare."""
    if 0 in shape:
        return f"tg.zeros({tuple(shape)}, {FLOAT})"
    few = g.chance(0.15)

    def values(shape: Sequence[int]) -> Any:
        if not shape:
            return g.number() if few else round(g.random.uniform(-2, 2), 2)
        return [values(shape[1:]) for _ in range(shape[0])]

    return f"tg.tensor({values(shape)}, {FLOAT})"


def leaf(g: Generator) -> Step:
    shape = [g.one((1, *g.extents)) for _ in range(g.one((0, 1, 1, 2, 2, 2, 3, 3)))]
    return g.makes(literal(g, shape) + g.one((".requires_grad_()", ".requires_grad_()", "")))


# pointwise

SMOOTH = """
{0}.sin() | {0}.cos() | {0}.tanh() | tg.sigmoid({0}) | ({0} * 0.5).exp() | tg.erf({0}) | tg.erfc({0}) | {0}.atan() | {0}.square()
-{0} | ({0} * {0} + 0.5).log() | ({0}.square() + 0.3).sqrt() | 1.2 / ({0} * {0} + 1) | ({0}.square() + 1).rsqrt() | {0} ** 3
{0} ** 2 | 2 ** {0} | {0}.expm1() | {0}.sinh() | {0}.cosh() | {0}.asinh() | ({0} * {0}).log1p() | ({0}.square() + 1).reciprocal()
({0}.square() + 1).lgamma() | ({0}.square() + 1).digamma() | ({0}.sigmoid() * 0.9 + 0.05).logit() | ({0} * 0.3).tan() | ({0}.tanh() * 0.9).asin()
({0}.tanh() * 0.9).acos() | ({0}.tanh() * 0.9).atanh() | ({0}.square() + 1.1).acosh() | {0}.exp2() | ({0}.square() + 1).log2()
({0}.square() + 1).log10() | {0} + 0.3 | 2.5 - {0} | {0} * 1.7 | {0} / 1.5 | ({0} * {0} + 0.5) ** 1.5 | 0.4 - {0} * 2
tg.nn.functional.gelu({0}) | tg.nn.functional.silu({0}) | tg.nn.functional.softplus({0}) | tg.nn.functional.mish({0})
tg.nn.functional.logsigmoid({0}) | tg.rad2deg({0} * 0.1) | tg.rsub({0}, 1.5) | {0}.add(0.5, alpha=2) | {0}.double()
"""
BENT = """
{0}.abs() | {0}.relu() | {0}.clamp(-0.513, 0.817) | {0}.clamp(min=0.113) | {0}.clamp_max(0.717) | {0}.floor() | {0}.ceil() | {0}.sign()
{0}.round() | {0}.trunc() | {0}.frac() | tg.nn.functional.leaky_relu({0}, 0.1) | tg.nn.functional.elu({0}) | {0}.fmod(0.717)
{0}.remainder(0.717) | tg.where({0} > 0.117, {0}, -{0}) | tg.where({0} > 0.051, 0.5, {0}) | {0}.masked_fill({0} > 0.513, 0.2) | {0}.nan_to_num()
tg.nn.functional.hardtanh({0}) | tg.nn.functional.softsign({0}) | {0} * ({0} > 0.213)
"""
PAIRS = """
{0} + {1} | {0} - {1} | {0} * {1} | {0} * {1} | {0} / ({1} * {1} + 1) | tg.maximum({0}, {1}) | tg.minimum({0}, {1})
tg.atan2({0}, {1}.square() + 0.5) | tg.hypot({0}, {1} + 3) | tg.where({0} > 0.117, {0}, {1}) | tg.where({0} > {1}, {0}, {1})
{0}.lerp({1}, 0.3) | tg.addcmul({0}, {1}, {0}, value=0.5) | tg.addcdiv({0}, {1}, {0}.square() + 1) | tg.logaddexp({0}, {1})
({0}.square() + 0.5) ** {1} | {0} * 0.3 + {1} * 0.7 | tg.xlogy({0}, {1}.square() + 0.5) | {0}.remainder({1}.square() + 0.5)
{0}.sub({1}, alpha=0.5) | {0}.add({1}, alpha=2) | {0} * {1}.detach() | {0}.fmod({1}.square() + 0.5) | {0}.clamp(max={1})
tg.nn.functional.mse_loss({0}, {1}) | tg.nn.functional.smooth_l1_loss({0}, {1}, reduction='sum')
{0}.masked_fill({1} > 0.051, 0.5) | {0}.div({1}.square() + 0.5) | {0}.lerp({1}, {0}) | tg.addcmul({0}, {0}, {1})
"""


def _forms(table: str) -> list[str]:
    return [form.strip() for line in table.strip().splitlines() for form in line.split(" | ")]


_smooth, _bent, _pairs = map(_forms, (SMOOTH, BENT, PAIRS))


def pointwise(g: Generator) -> Step | None:
    x = g.pick()
    return x and g.makes(g.one(_smooth if g.chance(0.75) else _bent), x)


def pair(g: Generator) -> Step | None:
    a = g.pick()
    b = a and g.partner(g[a].shape)
    return b and g.makes(g.one(_pairs), a, b)


# reductions


def reduction(g: Generator) -> Step | None:
    x = g.pick()
    if x is None:
        return None
    t = g[x]
    d = g.dim(t)
    keep = g.one(("", ", keepdim=True"))
    forms = [f"{{0}}.{op}()" for op in ("sum", "mean", "amax", "prod", "norm", "max", "min", "var", "std")]
    forms += [f"{{0}}.{op}({d}{keep})" for op in ("sum", "sum", "mean", "mean", "amax", "amin", "logsumexp", "prod")]
    forms += [f"{{0}}.max({d}{keep})[0]", f"{{0}}.min({d}{keep})[0]", f"{{0}}.norm(2, {d}{keep})"]
    forms += [f"{{0}}.var({d}{keep})", f"{{0}}.std({d}{keep})", f"{{0}}.var({d}, correction=0{keep})"]
    forms += [f"{{0}}.{op}({d})" for op in ("cumsum", "cumsum", "cumprod", "logcumsumexp")]
    forms += [
        f"{{0}}.softmax({d})",
        f"{{0}}.log_softmax({d})",
        f"{{0}}.sort({d})[0]",
        *[f"{{0}}.cummax({d})[0]"] * (t.numel() > 0),
    ]
    if t.ndim > 1:
        dims = tuple(g.random.sample(range(-t.ndim, 0), 2))
        forms += [f"{{0}}.{op}({dims}{keep})" for op in ("sum", "mean", "amax", "logsumexp", "var")]
        forms += ["{0}.trace()"] * (t.ndim == 2)
    return g.makes(g.one(forms), x)


# views and other arrangements


def _split_extent(g: Generator, n: int) -> tuple[int, ...]:
    return g.one([(k, n // k) for k in range(1, n + 1) if n % k == 0] or [(0, 1), (1, 0), (0, 3)])


def basic_index(g: Generator, shape: Sequence[int]) -> str:
    """The text of an index made of ints, slices, None and an ellipsis."""
    items = []
    for n in shape[: g.random.randint(min(1, len(shape)), len(shape))]:
        what = g.random.random()
        if what < 0.35 and (n or g.chance(0.1)):
            items.append(str(g.random.randrange(-n, n + g.chance(0.03)) if n else 0))
        elif what < 0.5:
            items.append(":")
        else:
            start, stop = (g.one(("", *range(-n, n + 1))) for _ in range(2))
            items.append(f"{start}:{stop}{g.one(('', '', ':2', ':3'))}")
    if g.chance(0.15):
        items.insert(g.random.randint(0, len(items)), "None")
    if not items or (g.chance(0.15) and len(items) < len(shape)):
        items.insert(g.random.randint(0, len(items)), "...")
    return ", ".join(items)


def view(g: Generator) -> Step | None:
    x = g.pick()
    if x is None:
        return None
    t = g[x]
    n = t.ndim
    d = g.dim(t)
    forms = [f"{{0}}[{basic_index(g, t.shape)}]"] * 4 if n else ["{0}[None]", "{0}[...]"]
    order = g.random.sample(range(n), n)
    sizes = list(t.shape)
    if n:
        k = g.random.randrange(n)
        sizes[k : k + 1] = _split_extent(g, sizes[k])
        forms += [f"{{0}}.transpose({d}, {g.dim(t)})", f"{{0}}.permute({order})", f"{{0}}.movedim({d}, {g.dim(t)})"]
        forms += [f"{{0}}.flatten({g.random.randint(0, k)}, {k})", f"{{0}}.unfold({k}, 2, 2)"]
        forms += [f"{{0}}.select({d}, {g.random.randint(-1, 1)})", f"{{0}}.narrow({d}, 0, {g.random.randint(0, 2)})"]
        if n == 2:
            forms += ["{0}.t()", "{0}.T"]
        if n > 1:
            a, b = g.random.sample(range(n), 2)
            forms += [f"{{0}}.diagonal({g.random.randint(-1, 1)}, {a}, {b})", "{0}.mT"]
    wide = [g.random.randint(1, 3) if e == 1 else g.one((-1, e)) for e in t.shape]
    wide = [g.random.randint(1, 2)] * g.chance(0.4) + wide
    forms += [f"{{0}}.expand({wide})", f"{{0}}.{g.one(('reshape', 'view'))}({g.random.sample(sizes, len(sizes))})"]
    forms += [
        "{0}.reshape(-1)",
        f"{{0}}.reshape({sizes})",
        f"{{0}}.unsqueeze({d})",
        "{0}.squeeze()",
        f"{{0}}.squeeze({d})",
    ]
    return g.makes(g.one(forms), x)


def parts(g: Generator) -> Step | None:
    x = g.pick(lambda t: t.ndim > 0)
    if x is None:
        return None
    d = g.random.randrange(-g[x].ndim, g[x].ndim)
    n = g[x].shape[d]
    cut = g.random.randint(0, n)
    form = g.one(
        (f"{{0}}.split([{cut}, {n - cut}], {d})", f"{{0}}.unbind({d})", f"{{0}}.chunk(2, {d})", f"{{0}}.split(2, {d})")
    )
    count = (
        n if "unbind" in form else 2 if "[" in form else -(-n // max(-(-n // 2), 1)) if "chunk" in form else -(-n // 2)
    )
    if 1 < count < 5:
        return Step(form, (x,), tuple(g.name() for _ in range(count)))
    return g.makes(form + "[-1]", x)


def rearranged(g: Generator) -> Step | None:
    x = g.pick()
    if x is None:
        return None
    t = g[x]
    d = g.dim(t)
    forms = [
        f"{{0}}.flip({d})",
        f"{{0}}.roll(1, {d})",
        "{0}.roll(2)",
        f"{{0}}.repeat({[2] * max(t.ndim, 1)})",
        "{0}.clone()",
    ]
    forms += [
        "{0}.tile(2)",
        f"{{0}}.repeat_interleave(2, {d})",
        "{0}.contiguous()",
        f"{{0}}.sort({d}, descending=True)[0]",
    ]
    if t.ndim:
        forms += [
            "{0}.diag_embed()",
            "tg.nn.functional.pad({0}, (1, 0))",
        ]
        forms += ["tg.nn.functional.pad({0}, (-1, 2), value=0.5)"] * (t.shape[-1] > 0)
    if t.ndim in (1, 2):
        forms += ["{0}.diag()"]
    if t.ndim > 1:
        forms += ["{0}.tril()", "{0}.triu(1)", "tg.rot90({0})"]
    return g.makes(g.one(forms), x)


def places(g: Generator, n: int, distinct: bool = False) -> list[int]:
    """Indices into a dim; now and then one out of range."""
    if not n:
        return [0] if g.chance(0.1) else []
    if g.chance(0.02) and not distinct:
        return [n]
    if distinct:
        return g.random.sample(range(n), g.random.randint(1, n))
    return [g.random.randrange(-n, n) for _ in range(g.random.randint(1, 4))]


def numbers(values: Sequence[Any]) -> str:
    """The text of a tensor of integers."""
    return f"tg.tensor({values}, dtype=tg.int64)"


def mask(g: Generator, shape: Sequence[int]) -> str:
    """The text of a mask."""
    if 0 in shape:
        return f"tg.zeros({tuple(shape)}, dtype=tg.bool)"

    def values(shape: Sequence[int]) -> Any:
        return [values(shape[1:]) for _ in range(shape[0])] if shape else g.chance(0.5)

    return f"tg.tensor({values(shape)}, dtype=tg.bool)"


def advanced_index(g: Generator, shape: Sequence[int], distinct: bool = False) -> str:
    """The text of an index with masks or arrays of places."""
    n = len(shape)
    if not n or g.chance(0.3):
        return mask(g, shape[: g.random.randint(0, n)])
    items = [":"] * n
    d = g.random.randrange(n)
    if n > 1 and g.chance(0.3) and 0 not in shape:
        e = (d + 1) % n
        pairs = g.random.sample(
            [(i, j) for i in range(shape[d]) for j in range(shape[e])],
            g.random.randint(1, 2) if shape[d] * shape[e] > 1 else 1,
        )
        items[d], items[e] = (numbers([p[k] for p in pairs]) for k in (0, 1))
    elif g.chance(0.3):
        items[d] = numbers([places(g, shape[d], distinct or 0 in shape)])
    else:
        items[d] = numbers(places(g, shape[d], distinct or 0 in shape))
    for k in range(n):
        if items[k] == ":" and shape[k] and g.chance(0.3):
            items[k] = g.one((str(g.random.randrange(shape[k])), "1:", "::2"))
    if g.chance(0.1):
        items.insert(0, "None")
    return ", ".join(map(str, items))


def taken(g: Generator) -> Step | None:
    x = g.pick()
    if x is None:
        return None
    t = g[x]
    forms = [f"{{0}}[{advanced_index(g, t.shape)}]"] * 2
    forms += [
        "{0}[{0} > 0.317]",
        "{0}.masked_select({0} < 0.413)",
        f"{{0}}.take({numbers(places(g, t.numel()))})",
    ]
    if t.ndim:
        d = g.random.randrange(-t.ndim, t.ndim)
        rows = places(g, t.shape[d])
        forms += [f"{{0}}.index_select({d}, {numbers(rows)})"] * 2
        shape = [g.random.randint(min(1, n), n) for n in t.shape]
        shape[d] = 2
        if t.shape[d]:
            forms += [f"{{0}}.gather({d}, {indices(g, shape, t.shape[d])})"]
    return g.makes(g.one(forms), x)


def indices(g: Generator, shape: Sequence[int], n: int) -> str:
    """The text of a tensor of places below `n`."""
    if 0 in shape:
        return f"tg.zeros({tuple(shape)}, dtype=tg.int64)"

    def values(shape: Sequence[int]) -> Any:
        return [values(shape[1:]) for _ in range(shape[0])] if shape else g.random.randrange(n)

    return numbers(values(shape))


def joined(g: Generator) -> Step | None:
    a = g.pick()
    if a is None:
        return None
    t = g[a]
    same = g.pick(lambda u: u.shape == t.shape)
    if g.chance(0.5) or not t.ndim:
        d = g.random.randint(-t.ndim - 1, t.ndim)
        return g.makes(g.one((f"tg.stack([{{0}}, {{1}}], {d})", f"tg.stack([{{0}}, {{1}}, {{0}}], {d})")), a, same)
    d = g.random.randrange(t.ndim)
    other = g.pick(
        lambda u: u.ndim == t.ndim and all(m == n or k == d for k, (m, n) in enumerate(zip(u.shape, t.shape)))
    )
    form = g.one(
        (f"tg.cat([{{0}}, {{1}}], {d})", f"tg.cat([{{1}}, {{0}}, {{0}}], {d - t.ndim})", "tg.hstack([{0}, {1}])")
    )
    return g.makes(form, a, other if not g.chance(0.03) else g.pick())


def product(g: Generator) -> Step | None:
    a = g.pick(lambda t: t.ndim > 0)
    if a is None:
        return None
    t = g[a]
    b = g.pick(lambda u: u.ndim > 0 and u.shape[max(u.ndim - 2, 0)] == t.shape[-1])
    form = "{0} @ {1}"
    if b is None or g.chance(0.3):
        b = g.pick(lambda u: u.ndim > 1 and u.shape[-1] == t.shape[-1])
        form = "{0} @ {1}.mT"
    if b is None:
        b, form = a, g.one(("{0} @ {1}.mT", "{0} @ {1}", "tg.outer({0}.reshape(-1), {1}.reshape(-1))"))
    u = g[b]
    if form == "{0} @ {1}" and g.chance(0.5):
        special = {(1, 1): "tg.dot({0}, {1})", (2, 2): "{0}.mm({1})", (2, 1): "{0}.mv({1})", (3, 3): "{0}.bmm({1})"}
        form = special.get((t.ndim, u.ndim), "tg.matmul({0}, {1})")
        if form == "{0}.mm({1})":
            form = g.one(
                (
                    form,
                    "tg.einsum('ij,jk->ki', {0}, {1})",
                    "tg.addmm({0} @ {1}, {0}, {1}, beta=0.5)",
                    "tg.tensordot({0}, {1}, 1)",
                )
            )
    if form == "{0} @ {1}.mT" and u.ndim == 2 and g.chance(0.4):
        form = "tg.nn.functional.linear({0}, {1})"
    return g.makes(form, a, b)


# writes


def write(g: Generator) -> Step | None:
    x = g.pick()
    if x is None:
        return None
    t = g[x]
    n = g.number()
    forms = [f"{{0}}.{op}({n})" for op in ("add_", "mul_", "sub_", "div_", "fill_", "clamp_min_")]
    forms += [f"{{0}} {op}= {n}" for op in "+-*/"]
    forms += [
        f"{{0}}.{op}_()" for op in ("sin", "tanh", "sigmoid", "neg", "relu", "zero", "abs", "square", "cos", "atan")
    ]
    forms += [
        "{0}.clamp_(-0.713, 0.917)",
        "{0}.mul_(0.3).exp_()",
        "{0}.pow_(2)",
        f"{{0}}.masked_fill_({mask(g, t.shape)}, {n})",
    ]
    if g.chance(0.4):
        return Step(g.one(forms), (x,), writes=True)
    y = g.partner(t.shape, within=True)
    forms = [f"{{0}}.{op}_({{1}})" for op in ("add", "mul", "sub", "copy", "copy")] + ["{0}.div_({1} * {1} + 1)"]
    forms += [f"{{0}} {op}= {{1}}" for op in "+-*"] + ["{0}.add_({1}, alpha=0.5)", "{0}.addcmul_({1}, {1}, value=0.5)"]
    forms += ["{0}.lerp_({1}, 0.3)", "{0}.masked_fill_({1} > 0.213, 0.5)"]
    return y and Step(g.one(forms), (x, y), writes=True)


def write_part(g: Generator) -> Step | None:
    x = g.pick()
    if x is None:
        return None
    t = g[x]
    advanced = g.chance(0.4)
    index = advanced_index(g, t.shape, True) if advanced else basic_index(g, t.shape)
    try:
        shape = eval(f"t[{index}]", {"t": torch.empty(t.shape), "tg": torch}).shape
    except (IndexError, ValueError, RuntimeError):
        shape = torch.Size()
    if g.chance(0.3):
        form = g.one((f"{{0}}[{index}] = {g.number()}", f"{{0}}[{index}] += 0.5", f"{{0}}[{index}] *= 0.5"))
        return Step(form, (x,), writes=True)
    y = g.partner(shape, within=True)
    form = g.one(
        (f"{{0}}[{index}] = {{1}}", f"{{0}}[{index}] = {{1}}", f"{{0}}[{index}] += {{1}}", f"{{0}}[{index}] *= {{1}}")
    )
    return y and Step(form, (x, y), writes=True)


def write_rows(g: Generator) -> Step | None:
    x = g.pick(lambda t: t.ndim > 0 and t.numel() > 0)
    if x is None:
        return None
    t = g[x]
    d = g.random.randrange(-t.ndim, t.ndim)
    n = t.shape[d]
    rows = g.random.sample(range(n), g.random.randint(1, n))
    many = [g.random.randrange(n) for _ in range(g.random.randint(1, 3))]
    place = g.one(("", "_"))
    wanted = list(t.shape)
    wanted[d] = len(rows)
    source = g.pick(lambda u: list(u.shape) == wanted)
    if source and g.chance(0.6):
        op = g.one(
            (
                f"index_copy{place}({d}, {numbers(rows)}, {{1}})",
                f"index_add{place}({d}, {numbers(rows)}, {{1}}, alpha=0.5)",
            )
        )
        return _perhaps_new(g, f"{{0}}.{op}", (x, source), place)
    wanted[d] = len(many)
    source = g.pick(lambda u: list(u.shape) == wanted)
    if source and g.chance(0.5):
        full = indices(g, wanted, n)
        op = g.one((f"index_add{place}({d}, {numbers(many)}, {{1}})", f"scatter_add{place}({d}, {full}, {{1}})"))
        return _perhaps_new(g, f"{{0}}.{op}", (x, source), place)
    source = g.pick(lambda u: u.ndim == 0)
    if source and g.chance(0.5):
        return _perhaps_new(
            g,
            f"{{0}}.index_put{place}(({numbers([r % t.shape[0] for r in many])},), {{1}}, accumulate=True)",
            (x, source),
            place,
        )
    op = g.one(
        (
            f"index_fill{place}({d}, {numbers(rows)}, {g.number()})",
            f"masked_fill{place}({mask(g, t.shape)}, {g.number()})",
        )
    )
    return _perhaps_new(g, f"{{0}}.{op}", (x,), place)


def _perhaps_new(g: Generator, form: str, operands: tuple[str, ...], place: str) -> Step:
    return Step(form, operands, writes=True) if place else g.makes(form, *operands)


# the graph


def graph(g: Generator) -> Step | None:
    x = g.pick()
    if x is None:
        return None
    t = g[x]
    forms = ["{0}.detach()"] * 2 + [
        "{0}.detach().requires_grad_()",
        "{0}.detach().clone().requires_grad_()",
        "{0}.clone()",
    ]
    if t.is_leaf and t.grad is not None:
        forms += ["{0}.grad.clone()"] * 4 + ["{0}.grad * 2"]
    changes = ["{0}.requires_grad_()"]
    changes += ["{0}.retain_grad()"] * 3
    changes += ["{0}.detach_()"] * (not t.retains_grad)
    changes += ["{0}.requires_grad_(False)"] * t.is_leaf
    if t.is_leaf and t.grad is not None:
        changes += ["{0}.grad = None", "{0}.grad.zero_()", "{0}.grad *= 0.5"]
    return g.makes(g.one(forms), x) if g.chance(0.5) else Step(g.one(changes), (x,))


def no_grad(g: Generator) -> None:
    if not g.no_grad:
        g.no_grad = g.random.randint(1, 4)


def forget(g: Generator) -> Step | None:
    x = g.pick() if len(g.floats()) > 2 else None
    return x and Step("del {0}", (x,))


_scalars = ("{}.sum()", "({} * {}).sum()", "{}.sin().sum()", "{}.mean()", "({} * 0.5).exp().sum()")


def _scalar(g: Generator, name: str) -> str:
    return g.one(_scalars).replace("{}", name)


def sweep(g: Generator) -> Step | None:
    differentiable = g.floats(lambda t: t.requires_grad)
    if not differentiable:
        return None
    late = range(1, len(differentiable) + 1)
    roots = g.random.choices(differentiable, late, k=1 + g.chance(0.3))
    wanted = g.random.sample(differentiable, min(g.random.randint(1, 3), len(differentiable)))
    options = ", retain_graph=True" * (g.retains or g.chance(0.5))
    if g.twice and g.chance(0.6):
        options = ", create_graph=True"
    # operands are numbered: the roots come first
    places = [f"{{{k}}}" for k in range(len(roots) + len(wanted))]
    from_, to = places[: len(roots)], places[len(roots) :]
    outputs, gradients = f"[{', '.join(from_)}]", ""
    if g.chance(0.75):
        outputs = f"[{', '.join(_scalar(g, p) for p in from_)}]" if len(roots) > 1 else _scalar(g, from_[0])
    elif g.chance(0.95):
        gradients = ", [" + ", ".join(literal(g, g[r].shape) for r in roots) + "]"
    inputs = f"[{', '.join(to)}]"
    if g.chance(0.5):
        unused = g.one((", allow_unused=True", ", allow_unused=True", ", materialize_grads=True", ""))
        form = f"tg.autograd.grad({outputs}, {inputs}{gradients}{options}{unused})"
        if len(wanted) == 1:
            return g.makes(form + "[0]", *roots, *wanted)
        return Step(form, (*roots, *wanted), tuple(g.name() for _ in wanted))
    if g.chance(0.2):
        if not options and not all(g[name].is_leaf for name in wanted):
            options = ", retain_graph=True"  # PyTorch frees what computed an input too
        return Step(f"tg.autograd.backward({outputs}{gradients}{options}, inputs={inputs})", (*roots, *wanted))
    if outputs[0] != "[":
        return Step(f"{outputs}.backward({options[2:]})", tuple(roots))
    return Step(f"tg.autograd.backward({outputs}{gradients}{options})", tuple(roots))


KINDS: dict[Callable[[Generator], Step | None], float] = {
    leaf: 2,
    pointwise: 10,
    pair: 12,
    reduction: 6,
    view: 14,
    parts: 3,
    rearranged: 4,
    taken: 5,
    joined: 5,
    product: 5,
    write: 8,
    write_part: 7,
    write_rows: 3,
    graph: 5,
    no_grad: 1.5,
    forget: 2,
    sweep: 2,
}
