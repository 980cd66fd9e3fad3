"""What a function refers to outside of itself: changes from outside are noticed, its own are refused."""

import random
import types

import numpy as np
import pytest

import tapegrad as tg
from tests.program.helpers import leaf, same

X = tg.ones(2)
config = {"rate": 2.0, "deep": [1.0, {"k": 1.0}]}
table = np.array([1.0, 2.0])


class Settings:
    rate = 2.0

    def __init__(self):
        self.scale, self.parts = 2.0, [1.0]

    @property
    def doubled(self):
        return 2 * self.scale

    def helper(self, x):
        return x * self.scale * self.rate

    @tg.compile
    def method(self, x):
        return self.helper(x) * self.parts[0]


class Slots:
    __slots__ = ("rate",)


settings, slots = Settings(), Slots()
slots.rate = 2.0
module = types.ModuleType("users_settings")
module.rate = 2.0


def helper_of_module(x):
    return x * module.rate


module.helper = helper_of_module


def default(x, cache={"k": 2.0}):  # noqa: B006
    return x * cache["k"]


class TestChangesFromOutside:
    @pytest.mark.parametrize(
        ("function", "change"),
        [
            (lambda x: x * config["rate"], lambda v: config.update(rate=v)),
            (lambda x: x * config["deep"][1]["k"], lambda v: config["deep"][1].update(k=v)),
            (lambda x: x * len(config["deep"]), lambda v: config["deep"].append(v)),
            (lambda x: x * settings.scale, lambda v: setattr(settings, "scale", v)),
            (lambda x: x * settings.doubled, lambda v: setattr(settings, "scale", v)),
            (lambda x: settings.helper(x), lambda v: setattr(Settings, "rate", v)),
            (lambda x: settings.helper(x), lambda v: setattr(settings, "rate", v)),
            (settings.helper, lambda v: setattr(settings, "scale", v)),
            (lambda x: x * Settings.rate, lambda v: setattr(Settings, "rate", v)),
            (lambda x: x * slots.rate, lambda v: setattr(slots, "rate", v)),
            (lambda x: x * module.rate, lambda v: setattr(module, "rate", v)),
            (lambda x: module.helper(x), lambda v: setattr(module, "rate", v)),
            (lambda x: x * tg.tensor(table), lambda v: table.__setitem__(0, v)),
            (lambda x: x * table.sum(), lambda v: table.__setitem__(1, v)),
            (lambda x: x * float(table[0]), lambda v: table.__setitem__(0, v)),
            (default, lambda v: default.__defaults__[0].update(k=v)),
        ],
    )
    def test_are_noticed(self, function, change):
        f = tg.compile(function)
        for value in (3.0, 3.0, 5.0):
            change(value)
            same(f(X), function(X))
        before = f.stats()["captures"]
        f(X)
        assert f.stats()["captures"] == before
        assert f.stats()["eager"] == 0

    def test_in_objects_that_are_arguments(self):
        one = Settings()
        for value in (1.0, 3.0, 4.0):
            one.scale, one.parts[0] = value, 1.0
            same(one.method(X), one.helper(X))
            one.parts[0] = value
            same(one.method(X), one.helper(X) * value)
            x = leaf(1.0, 2.0)
            one.method(x).sum().backward()
            same(x.grad, one.helper(X) * value)

    def test_between_a_call_and_its_backward_are_refused(self):
        f = tg.compile(lambda x: (x * config["rate"]).sum())
        x = leaf(1.0, 2.0)
        value = f(x)
        config["rate"] = 7.5
        with pytest.raises(
            RuntimeError, match="config, to which the function refers, has changed between the call and"
        ):
            value.backward()

    def test_of_what_is_not_used_are_not_noticed(self):
        f = tg.compile(lambda x: settings.helper(x))
        f(X)
        settings.unrelated = object()
        config["rate"] = 11.0
        f(X)
        assert f.stats()["captures"] == 1


log: list = []
seen: dict = {}
counter = 0


def counts(x):
    global counter
    counter += 1
    return x * counter


def remembers(x):
    settings.last = x * 2
    return settings.last


class TestItsOwnChanges:
    @pytest.mark.parametrize(
        ("function", "name"),
        [
            (lambda x: (log.append(1), x * len(log))[1], "log"),
            (lambda x: (table.__setitem__(0, x[0].item() + table[0]), x)[1], "table"),
            (lambda x: (seen.update({len(seen): 2}), x)[1], "seen"),
            (counts, "counter"),
        ],
    )
    def test_at_each_call_are_refused(self, function, name):
        f = tg.compile(function)
        f(X)
        with pytest.raises(
            RuntimeError, match=rf"changes {name} \(test_environment.py:\d+\), to which it refers, at each"
        ):
            f(X)

    def test_once_are_fine(self):
        tables = {}

        def g(x):
            if "k" not in tables:
                tables["k"] = tg.arange(2.0)
            return x * tables["k"]

        f = tg.compile(g)
        for k in range(3):
            same(f(X + k), g(X + k))
        assert f.stats()["captures"] == 2

    @pytest.mark.parametrize(
        "function", [remembers, lambda x: (log.append(x * 2), x)[1], lambda x: (seen.update(k=x), x)[1]]
    )
    def test_that_keep_a_traced_tensor_are_refused(self, function):
        with pytest.raises(RuntimeError, match="keeps a tensor that depends on its arguments in"):
            tg.compile(function)(X)

    @pytest.mark.parametrize(
        ("draw", "name"),
        [
            (lambda: np.random.rand(), "NumPy's random numbers"),  # noqa: NPY002
            (lambda: random.random(), "Python's random numbers"),
            (lambda: rng.normal(), "rng"),
            (lambda: legacy.rand(), "legacy"),
            (lambda: next(items), "items"),
            (lambda: next(made), "made"),
        ],
    )
    def test_random_numbers_of_others_are_refused(self, draw, name):
        with pytest.raises(RuntimeError, match=f"takes something from {name}.*which gives something else each time"):
            tg.compile(lambda x: x * draw())(X)


rng, legacy = np.random.default_rng(0), np.random.RandomState(0)
items, made = iter([1.0, 2.0]), (k for k in (1.0, 2.0))
