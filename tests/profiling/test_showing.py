"""Times, sums, tables and traces."""

import json
import threading
import time

import pytest

import tapegrad as tg
from tapegrad.profiling import Event
from tests.helpers import raises
from tests.profiling.helpers import leaf, profiled

HEADINGS = ("operation", "kind", "calls", "time", "share", "mean", "bytes", "GB/s", "allocated", "line")


def made_up(took, operation="exp", line=""):
    """An event that did not happen."""
    return Event(operation, "forward", 0, took, took, 8, 0, (), (), "float64", line)


class TestTimes:
    def test_sums_are_within_the_time_of_the_block(self):
        x = leaf(50, 50)
        f = tg.compile(lambda x: (x.exp() @ x).sum())
        f(x.detach())

        def work():
            (x @ x.sin()).sum().backward()
            tg.autograd.grad((x**2).sum(), x, create_graph=True)
            f(x.detach())

        work()
        start = time.perf_counter_ns()
        p, _ = profiled(work)
        wall = time.perf_counter_ns() - start
        assert all(e.time_ns >= 1 for e in p.events)
        assert all(e.span_ns >= e.time_ns for e in p.events)
        assert 0 < sum(e.time_ns for e in p.events) <= p.wall_ns <= wall
        assert p.overhead_ns > 0
        for e in p.events:
            assert p.start_ns <= e.start_ns <= e.start_ns + e.span_ns <= p.start_ns + p.wall_ns + p.overhead_ns

    def test_more_work_takes_more_time(self):
        small, large = tg.rand(10), tg.rand(1000, 1000)
        f = tg.compile(lambda a, b: (a.sin(), b.exp()))
        for call in (f, lambda a, b: (a.sin(), b.exp())):
            call(small, large)
            p, _ = profiled(lambda call=call: [call(small, large) for _ in range(5)])
            least = {name: min(e.time_ns for e in p.events if e.operation == name) for name in ("sin", "exp")}
            assert least["exp"] > 5 * least["sin"]

    def test_rows_are_sums_of_events(self):
        x = leaf(5)
        p, _ = profiled(lambda: [(x * x).sum().backward() for _ in range(3)])
        rows = p.rows
        assert [r.time_ns for r in rows] == sorted((r.time_ns for r in rows), reverse=True)
        assert sum(r.calls for r in rows) == len(p.events) == 12
        assert sum(r.share for r in rows) == pytest.approx(1)
        for row in rows:
            events = [e for e in p.events if (e.operation, e.kind) == (row.operation, row.kind)]
            assert row.calls == 3
            assert row.time_ns == sum(e.time_ns for e in events)
            assert row.mean_ns == row.time_ns / 3
            assert row.bytes == sum(e.bytes for e in events)
            assert row.allocated == sum(e.allocated for e in events)

    def test_the_line_of_most_time(self):
        p = tg.profile()
        for line, took in (("a.py:1", 30), ("b.py:2", 50), ("a.py:1", 30), ("", 40)):
            p.events.append(made_up(took, line=line))
        (row,) = p.rows
        assert (row.line, row.time_ns, row.mean_ns, row.calls) == ("a.py:1", 150, 37.5, 4)


class TestShowing:
    def example(self):
        x = leaf(5)
        return profiled(lambda: [(x * x).sum().backward() for _ in range(3)])[0]

    def test_table(self):
        p = self.example()
        lines = p.table("operation").splitlines()
        assert lines[0].split() == list(HEADINGS)
        assert [line.split()[:3] for line in lines[1:5]] == [
            ["mul", "forward", "3"],
            ["mul", "reverse", "3"],
            ["sum", "forward", "3"],
            ["sum", "reverse", "3"],
        ]
        assert set(lines[5]) == {"-"}
        assert lines[6].split()[:2] == ["all", "12"]
        assert " of " in lines[7]
        assert str(p) == p.table() == p.table(sort="time")
        assert repr(p).startswith("<profile of 12 calls, ")

    @pytest.mark.parametrize("sort", ["time", "calls", "mean", "bytes", "allocated"])
    def test_sorting(self, sort):
        p = self.example()
        field = {"time": "time_ns", "mean": "mean_ns"}.get(sort, sort)
        names = [tuple(line.split()[:2]) for line in p.table(sort).splitlines()[1:5]]
        values = {(r.operation, r.kind): getattr(r, field) for r in p.rows}
        assert [values[n] for n in names] == sorted(values.values(), reverse=True)

    def test_long_names_are_cut(self):
        name = "+".join(["mul"] * 20)
        p = tg.profile()
        p.events.append(made_up(10, operation=name))
        assert p.rows[0].operation == name
        assert p.table().splitlines()[1].split()[0] == name[:29] + "..."

    def test_a_limit(self):
        lines = self.example().table(limit=1).splitlines()
        assert len(lines) == 6
        assert lines[-2] == "and 3 more operations"
        assert lines[-3].split()[:2] == ["all", "12"]

    def test_wrong_arguments(self):
        p = tg.profile()
        with raises(
            "table: sort must be one of 'time', 'calls', 'mean', 'bytes', 'allocated', 'operation', but got 'x'",
            ValueError,
        ):
            p.table("x")
        for limit in (0, -1, 1.5, True):
            with raises(f"table: limit must be a positive int or None, but got {limit!r}", ValueError):
                p.table(limit=limit)

    def test_an_empty_profile(self, tmp_path):
        p, _ = profiled(lambda: None)
        assert p.rows == p.events == []
        assert p.table().splitlines()[0].split()[0] == "operation"
        assert p.table().startswith("operation  kind  calls")
        assert repr(p) == "<profile of 0 calls, 0 ns in operations>"
        p.chrome_trace(tmp_path / "trace.json")
        assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []

    def test_trace(self, tmp_path):
        x = leaf(5)
        f = tg.compile(lambda x: x.cos().sum())
        f(x.detach())

        def work():
            (x * x).sum().backward()
            tg.autograd.grad(x.exp().sum(), x, create_graph=True)
            return f(x.detach())

        p, _ = profiled(work)
        path = tmp_path / "trace.json"
        p.chrome_trace(str(path))
        trace = json.loads(path.read_text())
        events = trace["traceEvents"]
        assert len(events) == len(p.events)
        assert {e["cat"] for e in events} == {"forward", "view", "reverse", "replayed"}
        for e in events:
            assert set(e) == {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}
            assert e["ph"] == "X"
            assert e["tid"] == threading.get_native_id()
            assert 0 <= e["ts"] <= e["ts"] + e["dur"] <= (p.wall_ns + p.overhead_ns) / 1000
            assert set(e["args"]) == {"time_ns", "bytes", "allocated", "shapes", "dtype", "line"}
        assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
        for row in p.rows:
            found = [e for e in events if (e["name"], e["cat"]) == (row.operation, row.kind)]
            assert len(found) == row.calls
            assert sum(e["args"]["time_ns"] for e in found) == row.time_ns
            assert sum(e["args"]["bytes"] for e in found) == row.bytes
            if all(event.span_ns == event.time_ns for event in p.events if event.operation == row.operation):
                assert sum(e["dur"] for e in found) * 1000 == pytest.approx(row.time_ns)
        # one thread's events are within each other or apart
        open_until = []
        for e in events:
            while open_until and open_until[-1] <= e["ts"] + 1e-3:
                open_until.pop()
            assert not open_until or e["ts"] + e["dur"] <= open_until[-1] + 1e-3
            open_until.append(e["ts"] + e["dur"])
        (mul,) = [e for e in events if (e["name"], e["cat"]) == ("mul", "forward") and e["args"]["bytes"] == 80]
        assert mul["args"]["shapes"] == {"read": [[5]], "written": [[5]]}

    def test_a_trace_that_cannot_be_written(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            tg.profile().chrome_trace(tmp_path / "missing" / "trace.json")
