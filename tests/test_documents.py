"""What README.md and CONTRIBUTING.md show runs, and what they link to is there."""

import io
import re
from contextlib import redirect_stdout

import numpy as np
import pytest

from tests.processes import ROOT, run

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] + [
    f"tapegrad/{folder}/README.md" for folder in ("autograd", "data", "engine", "ops", "program")
]


def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(document), re.MULTILINE | re.DOTALL)


def test_the_readmes_programs_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they write files
    names, printed = {}, []
    for k, program in enumerate(blocks("README.md", "python")):
        file = tmp_path / f"program_{k}.py"  # where the source of functions is looked for
        file.write_text(program, encoding="utf-8")
        output = io.StringIO()
        with redirect_stdout(output):
            exec(compile(program, file, "exec"), names)
        printed.append(output.getvalue())
    assert printed[0] == blocks("README.md", "text")[0]
    assert names["slope"].item() == 32
    assert names["curvature"].item() == 48
    gradients = np.load("grads.npy")
    assert gradients.shape == (10_000, 27)
    np.testing.assert_allclose(names["mean"]["w"].ravel(), gradients.mean(0)[:24], rtol=1e-9)


def test_the_example_of_an_op_works(tmp_path):
    example, imports = blocks("CONTRIBUTING.md", "python")
    (tmp_path / "family.py").write_text(f"import numpy as np\n{imports}\n{example}", encoding="utf-8")
    program = f"""
import json, sys
import tapegrad as tg

sys.path.append({str(tmp_path)!r})
import family

x = tg.tensor([0.5, -1.5], dtype=tg.float64, requires_grad=True)
y = x.sech()
(slope,) = tg.autograd.grad(y.sum(), x, create_graph=True)
(curvature,) = tg.autograd.grad(slope.sum(), x)
print(json.dumps([y.tolist(), slope.tolist(), curvature.tolist(), x.detach().clone().sech_().tolist()]))
"""
    value, slope, curvature, in_place = run(program)[0]
    x = np.array([0.5, -1.5])
    s, t = 1 / np.cosh(x), np.tanh(x)
    np.testing.assert_allclose(value, s, rtol=1e-14)
    np.testing.assert_allclose(slope, -s * t, rtol=1e-14)
    np.testing.assert_allclose(curvature, s * t * t - s**3, rtol=1e-13)
    assert in_place == value


@pytest.mark.parametrize("folder", ["engine", "ops", "autograd", "program"])
def test_readmes_of_folders_name_every_file(folder):
    home = ROOT / "tapegrad" / folder
    named = re.findall(r"`([\w*/.]+\.py)`", text_of(home / "README.md"))
    listed = {path.name for pattern in named for path in home.glob(pattern.removeprefix(f"{folder}/"))}
    assert {path.name for path in home.glob("*.py")} - listed == {"__init__.py"}
    missing = [name for name in named if not any(top.glob(name) for top in (home, home.parent, home / "pointwise"))]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(document))
    home = (ROOT / document).parent
    missing = [link for link in links if "://" not in link and not (home / link).exists()]
    assert missing == []
