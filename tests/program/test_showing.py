"""Tables, graphs and counts of programs."""

import re

import numpy as np

import tapegrad as tg
from tests.program.helpers import leaf


@tg.compile
def shown(x, w):
    y = (x * w + tg.rand(3))[1:]
    if y.sum() > 0:
        return y.sum() * 0.5, x.sort().values
    return y, y


def test_the_table(capsys):
    shown(tg.ones(3), tg.ones(3))
    shown.show()
    title, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"shown\(x0: float32\[3\], x1: float32\[3\], r0: float32\[3\]\), \d+ replays?", title)
    assert lines[0].split() == ["row", "operation", "operands", "result", "shape", "dtype", "bytes", "line"]
    assert [line.split()[1] for line in lines[1:-1]] == ["mul", "add", "sum", "gt", "guard", "mul", "order", "in_order"]
    assert lines[1].split()[2:7] == ["x0,", "x1", "%0", "[3]", "float32"]
    assert lines[2].split()[2:5] == ["%0,", "r0", "%1"]
    assert "%1[2 from 1]" in lines[3]
    assert "= True" in lines[5]
    assert all("test_showing.py:" in line for line in lines[1:-1])
    assert lines[-1].startswith("returns %")


def test_derivatives_are_shown_too(capsys):
    @tg.compile
    def energy(x):
        return (x * x).sum()

    energy.show()
    assert "nothing is recorded yet" in capsys.readouterr().out
    energy.value_and_grad(np.ones(2))
    energy(leaf(1.0, 2.0)).backward()
    energy.show()
    titles = [line for line in capsys.readouterr().out.splitlines() if "(" in line and "replay" in line]
    assert [t.split("(")[0] for t in titles] == ["energy", "value and gradient of energy", "derivative of energy"]
    assert energy.dot().count("subgraph") == 3


LABEL = r'"(?:[^"\\]|\\.)*"'
DOT = re.compile(
    rf"digraph program {{|  node \[.*\];|  subgraph cluster\d+ {{|    label={LABEL};|  }}|}}"
    rf"|    p\d+_[vso]\d+ \[label={LABEL}(, (shape|style)=\w+)*\];|    p\d+_[vs]\d+ -> p\d+_[so]\d+;"
)


def test_the_graph():
    shown(tg.ones(3), tg.ones(3))
    tg.compile(shown.function)
    text = shown.dot()
    assert text.count("{") == text.count("}")
    assert all(DOT.fullmatch(line) for line in text.splitlines())
    declared = set(re.findall(r"(p\d+_\w\d+) \[", text))
    assert set(re.findall(r"p\d+_\w\d+", text)) == declared
    for name in ("x0 [3]", "mul [3]", "result 1", "guard: True", "shape=diamond"):
        assert name in text


def test_names_with_quotes_are_escaped():
    space = {}
    exec(compile("def f(x):\n    return x * 2", 'a"b\\c.py', "exec"), space)
    f = tg.compile(space["f"])
    f(tg.ones(2))
    assert all(DOT.fullmatch(line) for line in f.dot().splitlines())


def test_counts():
    f = tg.compile(lambda x: x.sin() if x > 0 else x.cos())
    assert set(f.stats()) == {
        "programs", "fused", "instructions", "guards", "captures", "recaptures", "replays", "dropped", "eager", "bytes",
    }  # fmt: skip
    assert not any(f.stats().values())
    for k in (1.0, 2.0, -1.0, 3.0):
        f(tg.tensor(k))
    counts = f.stats()
    assert counts["programs"] == counts["captures"] == counts["guards"] == 2
    assert counts["recaptures"] == 1
    assert counts["replays"] == 4
    assert counts["instructions"] == 4
    assert counts["bytes"] > 0


def test_counts_of_what_happened_never_go_down():
    """Also if what a function refers to changes, or programs are dropped: with them go the derivatives they have."""
    rate = 1.0
    f = tg.compile(lambda x: x * rate if x > 0 else x, max_programs=2)
    before = f.stats()
    for k in range(12):
        rate = float(k // 2)
        x = tg.tensor([1.0, -1.0][k % 2], requires_grad=True)
        f(x).backward()
        if k % 5 == 0:
            f(tg.tensor(1.0, dtype=tg.float64))
        counts = f.stats()
        for name in ("captures", "recaptures", "replays", "dropped", "eager"):
            assert counts[name] >= before[name], name
        before = counts
    assert counts["replays"] >= 26
    assert counts["programs"] <= 6
