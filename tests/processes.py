"""Programs run in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def start(text, **environment):
    """Start a program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "always::RuntimeWarning", "-c", text],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, seconds=300):
    """What a program printed, as JSON, and how often it warned."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("the program hangs")
    assert process.returncode == 0, errors
    return json.loads(output), errors.count("RuntimeWarning")


def run(text, **environment):
    """Run a program to its end; see `finish`."""
    return finish(start(text, **environment))
