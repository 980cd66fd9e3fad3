"""Every example in a docstring runs and prints what it says; everything public has a docstring."""

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import tapegrad as tg

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(tg.__path__, "tapegrad.") if not m.name.startswith("tapegrad.__main__")
)


def examples_of(module):
    """Docstring examples of a module's own functions, classes, and ops, which are objects that doctest does not look into."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = finder.find(module, module.__name__)
    seen = {t.name for t in tests}
    for name, value in vars(module).items():
        if hasattr(value, "__wrapped__") and getattr(value, "__module__", None) == module.__name__:
            found = finder.find(value.__wrapped__, f"{module.__name__}.{name}", module, vars(module))
            tests += [t for t in found if t.name not in seen]
    return [t for t in tests if t.examples]


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in SqrtBackward0")
@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in examples_of(module):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_formulas_keep_their_backslashes(name):
    source = Path(importlib.import_module(name).__file__).read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(n, clean=False) or "" for n in ast.walk(ast.parse(source)) if isinstance(n, documented)]
    assert [text for text in texts if re.search(r"[^\n\x20-\U0010ffff]", text)] == []


@pytest.mark.parametrize("name", sorted(n for n in vars(tg) if not n.startswith("_")))
def test_public_names_are_documented(name):
    value = getattr(tg, name)
    if callable(value):
        assert value.__doc__
        assert value.__doc__.strip()
