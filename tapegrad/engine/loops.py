"""Source of the loops around a scalar function: forward, and accumulate-into-adjoint.

Every function in it is named after its kernel: compiled code from several cache entries shares one space of symbols, and
Numba takes two functions of one name and type for the same.

An op is declared by scalar expressions. The text written here inlines them into loops that LLVM vectorises: one with
every operand contiguous, some with a scalar operand, and one with any strides.
"""

from collections.abc import Sequence
from typing import Any

from tapegrad.engine import structs
from tapegrad.engine.layout import outer_offset

# code, NumPy name, bytes, pointer constructor
DTYPES = (
    ("float32", 4, "f32"),
    ("float64", 8, "f64"),
    ("int8", 1, "i8"),
    ("int16", 2, "i16"),
    ("int32", 4, "i32"),
    ("int64", 8, "i64"),
    ("uint8", 1, "u8"),
    ("bool", 1, "u8"),
)

# an operand of a loop: its name, and its dtype code or None for a number
Operand = tuple[str, int | None]

_NAMES = [
    "internal",
    "state_at",
    "row_at",
    "buffer_at",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "u8",
    "BUFFER_SIZE",
    "STEP_OFFSET",
    "STORE_OFFSET",
    "ADJOINT_OFFSET",
]


def environment(**more: Any) -> dict[str, Any]:
    """The global names that kernel sources use."""
    return {name: getattr(structs, name) for name in _NAMES} | {"outer_offset": outer_offset} | more


def _read(name: str, dtype: int, index: str) -> str:
    return f"{name}[{index}] != 0" if DTYPES[dtype][0] == "bool" else f"{name}[{index}]"


def _variants(inputs: int) -> list[tuple[int, ...]]:
    if inputs == 1:
        return [(1,)]
    if inputs == 2:
        return [(1, 1), (1, 0), (0, 1)]
    return [(1, 1, 1), (1, 0, 0), (1, 1, 0)]


def _loop(target: str, operands: Sequence[Operand], steps: Sequence[int | str], call: str, how: str) -> list[str]:
    """Lines of one loop: a step of 0 hoists the operand, 1 runs along, a name is a stride; numbers have none."""
    lines, arguments = [], []
    left = iter(steps)
    for name, dtype in operands:
        step = 0 if dtype is None else next(left)
        if dtype is None:
            arguments.append(name)
        elif step == 0:
            lines.append(f"{name}_0 = {_read(name, dtype, '0')}")
            arguments.append(f"{name}_0")
        else:
            arguments.append(_read(name, dtype, "i" if step == 1 else f"i * {step}"))
    lines.append("for i in range(count):")
    lines.append(f"    {target} {how} {call}({', '.join(arguments)})")
    return lines


def _span(
    name: str,
    target: tuple[str, int],
    operands: Sequence[Operand],
    variants: Sequence[tuple[int, ...]],
    call: str,
    reverse: bool,
    in_place: bool = False,
) -> str:
    """A function that runs `call` along one stretch of every operand; `variants` are steps of those that are no numbers."""
    out, out_dtype = target
    streams = [(n, d) for n, d in operands if d is not None]
    names = [n for n, _ in operands]
    strides = [f"s_{n}" for n, _ in streams]
    parameters = [out, *names, "count", "write" if reverse else f"s_{out}", *strides]
    # LLVM vectorises a loop whose result may overlap an operand only behind a check, which the very same elements fail
    lines = [f"same = {out} == {names[0]}"] if in_place else []
    lines += [f"{n} = {DTYPES[d][2]}({n})" for n, d in [target, *streams]]
    hows = ("=", "+=") if reverse else ("=",)
    for variant in variants:
        guard = [f"{stride} == {s}" for stride, s in zip(strides, variant, strict=True)]
        if not reverse:
            guard.insert(0, f"s_{out} == 1")
        lines.append(f"if {' and '.join(guard) or 'True'}:")
        if in_place and variant[0] == 1:
            lines.append("    if same:")
            updated = [(out, out_dtype), *operands[1:]]
            lines += ["        " + line for line in _loop(f"{out}[i]", updated, variant, call, "=")]
            lines.append("        return")
        for how in hows:
            indent = "    "
            if reverse:
                lines.append(f"    if write == {1 if how == '=' else 0}:")
                indent = "        "
            lines += [indent + line for line in _loop(f"{out}[i]", operands, variant, call, how)]
        lines.append("    return")
    if reverse:
        lines.append("if write == 1:")
        lines += ["    " + line for line in _loop(f"{out}[i]", operands, strides, call, "=")]
        lines.append("else:")
        lines += ["    " + line for line in _loop(f"{out}[i]", operands, strides, call, "+=")]
    else:
        lines += _loop(f"{out}[i * s_{out}]", operands, strides, call, "=")
    return f"@internal\ndef {name}({', '.join(parameters)}):\n{_indented(lines, 1)}"


def _indented(lines: Sequence[str], levels: int) -> str:
    return "".join("    " * levels + line + "\n" for line in lines)


def forward_source(
    name: str, scalar: str, inputs: Sequence[tuple[str, int]], out_dtype: int, in_place: bool = False
) -> str:
    """Source of a forward kernel: ``out[i] = scalar(x[i], …)`` for operands (name, dtype code).

    With `in_place` there are loops of their own for a result written over the first operand.
    """
    slots = ("in0", "in1", "in2")
    names = [n for n, _ in inputs]
    span = _span(f"{name}_span", ("out", out_dtype), inputs, _variants(len(inputs)), scalar, False, in_place)
    sizes = {n: DTYPES[d][1] for n, d in inputs} | {"out": DTYPES[out_dtype][1]}
    addresses = "\n".join(
        f"    {n} = buffer_at(s.buffers + r.{slot} * BUFFER_SIZE).data" for n, slot in zip(names, slots, strict=False)
    )
    flat = ", ".join(f"{n} + start * step[{p}] * {sizes[n]}" for p, n in enumerate(["out", *names]))
    strided = ", ".join(f"{n} + outer_offset(S, {p}, j) * {sizes[n]}" for p, n in enumerate(["out", *names]))
    steps = ", ".join(f"step[{p}]" for p in range(len(names) + 1))
    return f"""{span}

def {name}(S, row, start, stop):
    s = state_at(S)
    r = row_at(row)
    step = i64(S + STEP_OFFSET)
    out = buffer_at(s.buffers + r.out * BUFFER_SIZE).data
{addresses}
    if s.flat:
        {name}_span({flat}, stop - start, {steps})
        return
    for j in range(start, stop):
        {name}_span({strided}, s.inner, {steps})
"""


def reverse_source(
    name: str,
    partials: Sequence[tuple[int, str, Sequence[str]]],
    inputs: Sequence[tuple[str, int]],
    out_dtype: int,
    g_position: int = 0,
    parameters: Sequence[str] = (),
) -> str:
    """Source of a reverse kernel: for each wanted input, ``adjoint[i] (+)= partial(g[i], x[i], …)``.

    Args:
        name: of the kernel.
        partials: for each differentiable input its slot, the name of its scalar function, and the operands that takes.
        inputs: (name, dtype code) of the op's inputs.
        out_dtype: dtype code of the result, and so of g.
        g_position: operand whose plan g follows: 0 (like the adjoint) or 4 (like the result).
        parameters: operands read from the attribute block as float64, from word 5 on.
    """
    dtypes: dict[str, int | None] = dict(inputs) | {"g": out_dtype, "out": out_dtype} | dict.fromkeys(parameters)
    position = {n: k + 1 for k, (n, _) in enumerate(inputs)} | {"out": 4, "g": g_position}
    spans: list[str] = []
    calls_flat: list[str] = []
    calls_strided: list[str] = []
    read: list[str] = []
    for slot, scalar, used in partials:
        streams = [u for u in used if dtypes[u] is not None]
        read += [u for u in streams if u not in read and u != "g"]
        variants = [tuple(1 for _ in streams)]
        if g_position == 4:
            # along reduced dims g and the result stand still, along kept ones everything moves
            variants.append(tuple(int(position[u] not in (4, 2)) for u in streams))
        elif len(inputs) == 2:
            other = inputs[1 - slot][0]
            for still in (other, inputs[slot][0]):
                if still in streams:
                    variants.append(tuple(int(u != still) for u in streams))
        elif len(inputs) == 3:
            first = inputs[0][0]
            variants.append(tuple(int(u in ("g", "out", first)) for u in streams))
        span, target = f"{name}_span{slot}", (f"adjoint{slot}", inputs[slot][1])
        operands = [(u, dtypes[u]) for u in used]
        spans.append(_span(span, target, operands, list(dict.fromkeys(variants)), scalar, True))
        steps = [f"step[{position[u]}]" for u in streams]
        for calls, count, own, offset in (
            (calls_flat, "stop - start", "start", "start * step[{}]"),
            (calls_strided, "s.inner", "outer_offset(S, 0, j)", "outer_offset(S, {}, j)"),
        ):
            arguments = [f"a{slot} + {own} * {DTYPES[inputs[slot][1]][1]}"]
            for u, d in operands:
                arguments.append(u if d is None else f"{u} + {offset.format(position[u])} * {DTYPES[d][1]}")
            calls += [
                f"if store[{slot}] >= 0:",
                f"    {span}({', '.join([*arguments, count, f'store[{slot}]', *steps])})",
            ]
    fields = {n: f"in{k}" for k, (n, _) in enumerate(inputs)} | {"out": "out"}
    lines = [f"{n} = buffer_at(s.buffers + r.{fields[n]} * BUFFER_SIZE).data" for n in read]
    lines += [f"a{slot} = i64(S + ADJOINT_OFFSET)[{slot}]" for slot, _, _ in partials]
    lines += [f"{parameter} = f64(r.attr)[{5 + k}]" for k, parameter in enumerate(parameters)]
    # a block of both loops stays in the L1 cache
    return f"""{"".join(spans)}
def {name}(S, row, first, last):
    s = state_at(S)
    r = row_at(row)
    step = i64(S + STEP_OFFSET)
    store = i64(S + STORE_OFFSET)
    g = buffer_at(s.buffers + r.out * BUFFER_SIZE).adj
{_indented(lines, 1)}    if s.flat:
        for start in range(first, last, 1024):
            stop = min(start + 1024, last)
{_indented(calls_flat, 3)}        return
    for j in range(first, last):
{_indented(calls_strided, 2)}"""
