"""The commands: what they print, and how they fail."""

import importlib.metadata
import re

import pytest
from click.testing import CliRunner

from tapegrad.cli import main


def invoke(*arguments):
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="module")
def demo_output():
    result = invoke("demo")
    assert result.exit_code == 0, result.output
    return result.output


def test_demo_shows_loss_gradients_and_grad_fn(demo_output):
    assert "loss.grad_fn  <BinaryCrossEntropyWithLogitsBackward0 object at " in demo_output
    assert "z.grad_fn     <AddBackward0 object at " in demo_output
    assert re.search(r"loss    tensor\(\d\.\d{4}, grad_fn=<BinaryCrossEntropyWithLogitsBackward0>\)", demo_output)
    row = r"\[\d\.\d{4}, \d\.\d{4}, \d\.\d{4}\]"
    assert re.search(rf"w\.grad  tensor\(\[({row},\s+){{4}}{row}\]\)", demo_output)
    assert re.search(rf"b\.grad  tensor\({row}\)", demo_output)


def test_demo_recognises_digits_it_never_saw(demo_output):
    accuracy = float(re.search(r"held-out accuracy  (\d+\.\d)%", demo_output).group(1))
    assert accuracy >= 97


def test_demo_tells_what_it_took(demo_output):
    assert re.search(r"training           \d+\.\d\d s for 901 steps, [\d,]+ steps/s", demo_output)
    assert re.search(r"kernels            \d+ compiled, \d+ loaded from ", demo_output)
    assert "peak memory" in demo_output


def test_demo_writes_plain_progress_lines_into_a_pipe(demo_output):
    assert re.search(
        r"^training: 20/20 epochs, [\d.]+ epochs/s, 0\.0 s left, loss 0\.\d{4}$", demo_output, re.MULTILINE
    )
    assert "\r" not in demo_output


def test_demo_fails_clearly_below_the_target(monkeypatch):
    from tapegrad import demo

    monkeypatch.setattr(demo, "run", lambda echo: demo.Trained(0.931, 0.5, 10, 1.0, 0.1))
    result = invoke("demo")
    assert result.exit_code == 1
    assert "Error: held-out accuracy 93.1% is below 95%" in result.output


def test_info():
    result = invoke("info")
    assert result.exit_code == 0, result.output
    shown = dict(line.split(maxsplit=1) for line in result.output.splitlines() if line[0] != " ")
    for name in ("tapegrad", "numpy", "numba", "llvmlite", "scipy"):
        assert shown[name] == importlib.metadata.version(name)
    assert {"python", "system", "cores", "threads", "blas", "cache"} <= set(shown)
    assert re.search(r"^ +[\d,]+ files, [\d,.]+ MiB$", result.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "dtypes"),
    [
        ([], ["float32", "float64"]),
        (["--dtype", "all"], ["float32", "float64"]),
        (["--dtype", "float64"], ["float64"]),
    ],
)
def test_warmup_compiles_every_kernel_of_the_dtypes(monkeypatch, options, dtypes):
    from tapegrad import ops

    compiled = []

    def warmup_jobs(dtypes):
        names = [f"{op}.{dtype}" for dtype in dtypes for op in ("add", "mul")]
        return [(name, lambda name=name: compiled.append(name)) for name in names]

    monkeypatch.setattr(ops, "warmup_jobs", warmup_jobs)
    result = invoke("warmup", *options)
    assert result.exit_code == 0, result.output
    assert compiled == [f"{op}.{dtype}" for dtype in dtypes for op in ("add", "mul")]
    assert f"{len(compiled)} kernels ready in " in result.output
    assert f"compiling: {len(compiled)}/{len(compiled)} kernels" in result.output


@pytest.mark.nightly
def test_warmup_compiles_the_real_kernels():
    result = invoke("warmup")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", [(), ("demo",), ("batch",), ("info",), ("warmup",)])
def test_help(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output


def test_warmup_help_names_the_dtypes():
    assert "[float32|float64|all]" in invoke("warmup", "--help").output


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.output == f"tapegrad, version {importlib.metadata.version('tapegrad')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "No such command 'train'"),
        (["demo", "--fast"], "No such option"),
        (["info", "extra"], "unexpected extra argument"),
        (["warmup", "--dtype", "float16"], "'float16' is not one of"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
