"""The kernel cache: what compiled code is named after, and a folder that is shared, damaged, or of no use."""

import json
import os
import shutil
import types
from pathlib import Path

import numba
import numpy as np
import pytest

from tapegrad.engine import kernels
from tests.processes import finish, run, start

# ---- names of compiled code ----


def named(text, **environment):
    """The last function of a source text, jitted, in a namespace of its own."""
    namespace = {"numba": numba, "np": np, **environment}
    exec(text, namespace)
    return namespace["f"]


CALLER = "def f(x): return g(x) + 1"
JITTED = "@numba.njit\n" + CALLER


def digest(function, source="def kernel(x): return f(x)"):
    return kernels._digest(source, {"f": function})


def variants():
    """Pairs of functions that compute different things and look alike from outside."""
    one, two = (named(f"@numba.njit\ndef f(x): return {k} * x") for k in (1, 2))
    plain_one, plain_two = (named(f"def f(x): return {k} * x") for k in (1, 2))
    yield "a constant", named("def f(x): return x + 1"), named("def f(x): return x + 2")
    yield "an operator", named("def f(x): return x + 1"), named("def f(x): return x - 1")
    yield "a called function", named(CALLER, g=plain_one), named(CALLER, g=plain_two)
    yield "a jitted called function", named(JITTED, g=one), named(JITTED, g=two)
    yield (
        "a function two calls away",
        named(JITTED, g=named(JITTED, g=one)),
        named(JITTED, g=named(JITTED, g=two)),
    )
    yield (
        "a global number",
        named("def f(x): return x * factor", factor=2.0),
        named("def f(x): return x * factor", factor=2.5),
    )
    yield "a closure", named(CLOSURE.format(2)), named(CLOSURE.format(3))
    yield "a function within", named(NESTED.format(2)), named(NESTED.format(3))
    yield (
        "a jit option",
        named("@numba.njit(fastmath=True)\ndef f(x): return x"),
        named("@numba.njit\ndef f(x): return x"),
    )
    module = "def f(x): return m.g(x)"
    yield (
        "a function of a module",
        named(module, m=with_attributes(g=plain_one)),
        named(module, m=with_attributes(g=plain_two)),
    )
    table = np.zeros(5000)
    other = table.copy()
    other[2500] = 1
    yield (
        "an element of a long table",
        named("def f(k): return t[k]", t=table),
        named("def f(k): return t[k]", t=other),
    )
    yield (
        "the home of a jitted function",
        named("@numba.njit\ndef f(x): return x", __name__="tapegrad_one"),
        named("@numba.njit\ndef f(x): return x", __name__="tapegrad_two"),
    )
    yield "a default", named("def f(x, k=1): return x + k"), named("def f(x, k=2): return x + k")


CLOSURE = "def outer(k):\n    def f(x): return x * k\n    return f\nf = outer({})"
NESTED = "def f(x):\n    def g(y): return {} * y\n    return g(x)"


def with_attributes(**attributes):
    module = types.ModuleType("tapegrad_made_up")
    vars(module).update(attributes)
    return module


@pytest.mark.parametrize("pair", list(variants()), ids=lambda pair: pair[0])
def test_another_function_has_another_name(pair):
    _, one, two = pair
    assert digest(one) != digest(two)


def test_the_same_function_has_the_same_name():
    # made twice, so nothing that changes from object to object may count
    for (what, one, two), (_, one_again, two_again) in zip(variants(), variants(), strict=True):
        assert digest(one) == digest(one_again), what
        assert digest(two) == digest(two_again), what


def test_another_source_has_another_name():
    f = named("def f(x): return x")
    assert digest(f) != digest(f, "def kernel(x): return f(f(x))")


# ---- the cache folder ----

# a few kernels of each sort, and the answer that tells that they are right
PROGRAM = """
import json
import numpy as np
import tapegrad as tg
from tapegrad.engine import kernels

x = tg.tensor([0.5, 1.5], dtype=tg.float64, requires_grad=True)
y = (x * 3.0).sin() + x
y.sum().backward()
print(json.dumps([x.grad.tolist(), kernels.counts["compiled"], kernels.counts["loaded"]]))
"""
# reports as well which entries of the cache it uses
TRACED = """
from tapegrad.engine import kernels
load, used = kernels._load, []

def traced(*arguments):
    used.append(str(arguments[3]))
    return load(*arguments)

kernels._load = traced
{}
print(json.dumps(used))
"""
ANSWER = (3 * np.cos(3 * np.array([0.5, 1.5])) + 1).tolist()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache with what the program uses and no more, taken from the cache the tests use."""
    folder = tmp_path_factory.mktemp("filled")
    done = start(TRACED.format(PROGRAM))
    output, errors = done.communicate(timeout=600)
    assert done.returncode == 0, errors
    for entry in json.loads(output.splitlines()[-1]):
        shutil.copytree(entry, folder / Path(entry).name)
    return folder


@pytest.fixture
def cache(filled, tmp_path):
    """A copy of that cache to spoil."""
    return Path(shutil.copytree(filled, tmp_path / "cache"))


def entries(cache, word=""):
    """The kernels in a cache whose names begin with a word."""
    return sorted(folder for folder in cache.iterdir() if folder.name.startswith(word))


def check(cache, compiled, warnings=0, **environment):
    (gradient, compiled_here, loaded), warned = run(PROGRAM, TAPEGRAD_CACHE_DIR=cache, **environment)
    np.testing.assert_allclose(gradient, ANSWER, rtol=1e-14)
    assert compiled_here == compiled
    assert loaded == len(entries(cache)) - compiled
    assert warned == warnings


@pytest.mark.parametrize("seed", [1, 2])
def test_a_filled_cache_is_used_in_any_process(cache, seed):
    check(cache, compiled=0, PYTHONHASHSEED=seed)


def small(cache):
    """One entry that compiles quickly."""
    return entries(cache, "mul")[0]


def shorten(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
    "compiled code cut short": lambda entry: shorten(next(entry.rglob("*.nbc"))),
    "compiled code emptied": lambda entry: next(entry.rglob("*.nbc")).write_bytes(b""),
    "compiled code replaced": lambda entry: next(entry.rglob("*.nbc")).write_bytes(os.urandom(4096)),
    "compiled code missing": lambda entry: next(entry.rglob("*.nbc")).unlink(),
    "index cut short": lambda entry: shorten(next(entry.rglob("*.nbi"))),
    "index missing": lambda entry: next(entry.rglob("*.nbi")).unlink(),
    "source changed": lambda entry: (entry / "kernel.py").write_text("def kernel(S):\n    return 0\n"),
    "source not text": lambda entry: (entry / "kernel.py").write_bytes(b"\xff\xfe\x00"),
    "source missing": lambda entry: (entry / "kernel.py").unlink(),
    "checksums wrong": lambda entry: (entry / "checksums").write_text("0" * 64),
    "checksums not text": lambda entry: (entry / "checksums").write_bytes(b"\xff\xfe\x00"),
    "checksums empty": lambda entry: (entry / "checksums").write_text(""),
    "checksums missing": lambda entry: (entry / "checksums").unlink(),
    "folder emptied": lambda entry: (shutil.rmtree(entry), entry.mkdir()),
    "a file in the folder's place": lambda entry: (shutil.rmtree(entry), entry.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_rebuilt_with_one_warning(cache, damage):
    entry = small(cache)
    DAMAGE[damage](entry)
    check(cache, compiled=1, warnings=1)
    assert (entry / "checksums").read_text() == kernels._checksums(entry) != ""


def test_many_damaged_entries_are_rebuilt_with_one_warning(cache):
    spoilt = [e for e in entries(cache) if e.name.startswith(("mul", "sin", "add"))]
    assert len(spoilt) > 1
    for entry in spoilt:
        (entry / "checksums").unlink()
    check(cache, compiled=len(spoilt), warnings=1)


# compiles two small units the way kernels are compiled, in no time
SMALL = """
import json
import numba
from numba import types
from tapegrad.engine import kernels

def make(function, cache):
    return numba.njit(types.int64(types.int64), cache=cache)(function)

one = numba.njit(lambda x: x + 1)
values = [
    kernels.build(name, f"def {name}(x):\\n    return one(x) * {k}\\n", {"one": one}, make)(20)
    for k, name in enumerate(("first", "second", "third"))
]
print(json.dumps([values, kernels.counts["compiled"], kernels.counts["loaded"]]))
"""


def unusable(tmp_path, kind):
    # permissions would not stop an administrator, a file in the way stops everyone
    file = tmp_path / "file"
    file.write_text("in the way")
    return {"below a file": file / "cache", "a file": file, "no such name": tmp_path / ("x" * 300)}[kind]


@pytest.mark.parametrize("kind", ["below a file", "a file", "no such name"])
def test_without_a_usable_cache_code_is_compiled_in_memory_with_one_warning(tmp_path, kind):
    answer, warned = run(SMALL, TAPEGRAD_CACHE_DIR=unusable(tmp_path, kind))
    assert answer == [[0, 21, 42], 3, 0]
    assert warned == 1


@pytest.mark.nightly
def test_without_a_usable_cache_gradients_are_right(tmp_path):
    (gradient, _, loaded), warned = run(PROGRAM, TAPEGRAD_CACHE_DIR=unusable(tmp_path, "below a file"))
    np.testing.assert_allclose(gradient, ANSWER, rtol=1e-14)
    assert loaded == 0
    assert warned == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="an administrator may write anywhere")
def test_a_cache_without_permission_is_bypassed(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o500)
    answer, warned = run(SMALL, TAPEGRAD_CACHE_DIR=folder)
    assert answer == [[0, 21, 42], 3, 0]
    assert warned == 1


def test_processes_may_fill_one_cache_at_once(cache):
    left = {e.name for e in entries(cache) if not e.name.startswith(("control", "recording", "reverse"))}
    for name in left:
        shutil.rmtree(cache / name)
    together = [start(PROGRAM, TAPEGRAD_CACHE_DIR=cache) for _ in range(3)]
    for (gradient, _, _), warned in map(finish, together):
        np.testing.assert_allclose(gradient, ANSWER, rtol=1e-14)
        assert warned == 0
    assert left <= {e.name for e in entries(cache)}
    assert not entries(cache, ".building")
    check(cache, compiled=0)


def test_importing_compiles_nothing_and_creates_nothing(tmp_path):
    text = (
        "import json, tapegrad, tapegrad.nn.functional, tapegrad.optim, tapegrad.cli, tapegrad.demo\n"
        "from tapegrad.engine import kernels\nprint(json.dumps(kernels.counts))"
    )
    counts, warned = run(text, TAPEGRAD_CACHE_DIR=tmp_path / "cache")
    assert counts == {"compiled": 0, "loaded": 0, "seconds": 0.0}
    assert warned == 0
    assert not (tmp_path / "cache").exists()
