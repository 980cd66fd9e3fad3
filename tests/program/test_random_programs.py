"""Random programs, compiled: values, gradients and what requires them are those of an eager run, or the program is refused."""

import pytest

pytest.importorskip("torch")

import numpy as np

import tapegrad as tg
from tests.programs.generate import generate

# statements that leave something behind, or ask about places on the tape
LEFT_OUT = ("backward", "grad", "detach_(", "is_leaf", "_version", ".data")


def function_of(seed):
    """A function made of a random program's statements, and arguments for the leaves it made."""
    names, lines, arguments = {"tg": tg}, [], {}
    for step in generate(seed):
        if not step.operands and step.form.startswith("tg.tensor("):
            value = eval(step.form, {"tg": tg})
            if value.dtype.is_floating_point:
                name = step.results[0]
                arguments[f"a{name}"] = value.detach().numpy().copy()
                names[f"a{name}"] = value.detach().requires_grad_()
                step = step._replace(form=f"a{name} * 1", no_grad=False)
        elif any(word in step.form for word in LEFT_OUT) or any(o not in names for o in step.operands):
            continue
        text = f"with tg.no_grad():\n        {step.line()}" if step.no_grad else step.line()
        try:
            exec(text, names)
        except (RuntimeError, IndexError, TypeError, ValueError):
            continue
        lines.append(text)
    results = [n for n, v in names.items() if n.startswith("v") and isinstance(v, tg.Tensor)]
    source = "\n    ".join([f"def f({', '.join(arguments)}):", *lines, f"return ({', '.join(results)},)"])
    space = {"tg": tg}
    exec(source, space)
    return space["f"], list(arguments.values()), source


def outcome(function, arrays, shift):
    """The results of a function, and gradients of their sum; None for these if eager refuses them too."""
    given = [tg.tensor(a + np.asarray(shift, a.dtype), requires_grad=True) for a in arrays]
    results = function(*given)
    tracked = [t for t in results if t.requires_grad]
    try:
        total = sum(t.sum() for t in tracked)
        found = tg.autograd.grad(total, given, allow_unused=True, materialize_grads=True) if tracked else None
    except RuntimeError:
        found = None
    return results, found


@pytest.mark.parametrize("first", range(0, 90, 30))
def test_compiled_programs_are_as_eager(first):
    compared = 0
    for seed in range(first, first + 30):
        function, arrays, source = function_of(seed)
        if not arrays:
            continue
        compiled = tg.compile(function)
        for shift in (0.0, 0.013):
            expected, slopes = outcome(function, arrays, shift)
            try:
                found, compiled_slopes = outcome(compiled, arrays, shift)
            except RuntimeError as error:
                if not str(error).startswith(("compile: ", "Output 0 of")):
                    raise
                break
            pairs = list(zip(found, expected, strict=True))
            if slopes is not None:
                pairs += list(zip(compiled_slopes, slopes, strict=True))
            for a, b in pairs:
                tolerance = 1e-6 if b.dtype is tg.float64 else 1e-3
                assert a.shape == b.shape, source
                assert np.allclose(a.detach().numpy(), b.detach().numpy(), tolerance, 1e-6, equal_nan=True), source
            assert [t.requires_grad for t in found] == [t.requires_grad for t in expected], source
            compared += 1
    assert compared > 20
