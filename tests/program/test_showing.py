"""Tables, graphs and counts of programs."""

import tapegrad as tg


@tg.compile
def shown(x, w):
    y = (x * w + tg.rand(3))[1:]
    if y.sum() > 0:
        return y.sum() * 0.5, x.sort().values
    return y, y


def test_the_table(capsys):
    shown(tg.ones(3), tg.ones(3))
    shown.show()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["row", "operation", "operands", "result", "shape", "dtype", "bytes", "line"]
    assert [line.split()[1] for line in lines[1:-1]] == ["mul", "add", "sum", "gt", "guard", "mul", "order", "in_order"]
    assert lines[1].split()[2:7] == ["x0,", "x1", "%0", "[3]", "float32"]
    assert lines[2].split()[2:5] == ["%0,", "r0", "%1"]
    assert "%1[2 from 1]" in lines[3]
    assert all("test_showing.py:" in line for line in lines[1:-1])
    assert lines[-1].startswith("returns %")


def test_the_graph():
    shown(tg.ones(3), tg.ones(3))
    text = shown.dot()
    assert text.startswith("digraph program {")
    assert text.count("{") == text.count("}")
    assert "shape=diamond" in text
    for name in ("x0 [3]", "mul [3]", "result 1"):
        assert name in text


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
