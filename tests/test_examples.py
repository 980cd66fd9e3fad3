"""Every example runs as a program of its own and says what it should."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ACCURACY = re.compile(r"^accuracy (\d+\.\d)%", re.MULTILINE)
LEAST = {"digits_network": 95, "logistic_regression": 85}
PICTURED = (
    "bundle_adjustment",
    "hamiltonian_monte_carlo",
    "influential_images",
    "ode_sensitivity",
    "portfolio_greeks",
)


def test_there_are_examples():
    assert {file.stem for file in EXAMPLES} >= {*LEAST, *PICTURED}


def test_readme_lists_every_example():
    readme = (ROOT / "README.md").read_text()
    assert [file.name for file in EXAMPLES if f"[examples/{file.name}](examples/{file.name})" not in readme] == []


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example(file, tmp_path):
    drawn = file.stem in PICTURED and importlib.util.find_spec("matplotlib") is not None
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-W", "error", str(file), *([str(picture)] if drawn else [])]
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert picture.exists() == drawn
    if file.stem in LEAST:
        assert float(ACCURACY.search(done.stdout).group(1)) >= LEAST[file.stem], done.stdout
