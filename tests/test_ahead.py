"""A first run with an empty cache: a second process compiles along, and whatever becomes of it the results are the same."""

import os

import pytest

from tapegrad.engine.ahead import Ahead
from tests.processes import run

PROGRAM = """
import json, os, sys, tapegrad as tg
from tapegrad.engine import kernels
from tapegrad.engine.runtime import rt
{before}
x = tg.tensor([1.0, 2.0], requires_grad=True)
(x * x).sum().backward()
process = rt._ahead._process
print(json.dumps([x.grad.tolist(), kernels.counts["compiled"], kernels.counts["loaded"], process and process.poll()]))
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="no core for a second process")
def test_a_first_run_loads_what_the_second_process_compiled_and_a_second_run_starts_none(tmp_path):
    (gradient, compiled, loaded, _), warnings = run(PROGRAM.format(before=""), TAPEGRAD_CACHE_DIR=tmp_path)
    assert (gradient, warnings) == ([2.0, 4.0], 0)
    assert compiled > 0
    assert loaded == 3
    names = {p.name.split("-")[0] for p in tmp_path.iterdir()}
    assert {"control", "recording", "reverse", "selecting"} <= names
    (gradient, compiled, _, process), warnings = run(PROGRAM.format(before=""), TAPEGRAD_CACHE_DIR=tmp_path)
    assert (gradient, compiled, process, warnings) == ([2.0, 4.0], 0, None, 0)


@pytest.mark.parametrize(
    "before",
    [
        "sys.executable = ''",
        "os.cpu_count = lambda: 1",
        "import subprocess; subprocess.Popen = lambda *a, **k: (_ for _ in ()).throw(PermissionError('no processes'))",
        "start = rt._ahead.start; rt._ahead.start = lambda: (start(), rt._ahead._process.kill())",
    ],
    ids=["no interpreter", "one core", "no permission", "killed"],
)
def test_without_the_second_process_this_one_compiles_everything(tmp_path, before):
    (gradient, compiled, loaded, _), warnings = run(PROGRAM.format(before=before), TAPEGRAD_CACHE_DIR=tmp_path)
    assert (gradient, loaded, warnings) == ([2.0, 4.0], 0, 0)
    assert compiled > 4


def test_the_second_process_ends_with_the_first_and_leaves_nothing_half_built(tmp_path):
    program = "import json, tapegrad as tg; tg.ones(3)\nfrom tapegrad.engine.runtime import rt\n"
    program += "print(json.dumps(rt._ahead._process and rt._ahead._process.pid))"
    pid, _ = run(program, TAPEGRAD_CACHE_DIR=tmp_path)
    if pid is not None:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list(tmp_path.glob(".building-*"))


def test_waiting_without_a_process_returns_at_once():
    Ahead("reverse").wait("reverse")
