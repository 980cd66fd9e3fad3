"""Every example runs as a program of its own and says what it should."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ACCURACY = re.compile(r"^accuracy (\d+\.\d)%", re.MULTILINE)
LEAST = {"digits_network": 95, "logistic_regression": 85}


def test_there_are_examples():
    assert {file.stem for file in EXAMPLES} >= LEAST.keys()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example(file):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if file.stem in LEAST:
        assert float(ACCURACY.search(done.stdout).group(1)) >= LEAST[file.stem], done.stdout
