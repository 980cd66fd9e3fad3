"""Recorded programs beside JAX, torch.func and loops written by hand: the same function in each library's own words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.work import Job, _rng


@dataclass(frozen=True)
class Race:
    """One row.

    Attributes:
        name: what the row is called.
        jobs: by library, makes what is timed; tapegrad's is among them.
        least: by library, how much of its time tapegrad must be faster than.
    """

    name: str
    jobs: dict[str, Callable[[], Job]]
    least: dict[str, float]


RACES: list[Race] = []


def _race(name: str, **least: float) -> Callable:
    def add(function: Callable[[], dict[str, Callable[[], Job]]]) -> Callable:
        RACES.append(Race(name, function(), {k.replace("_", "."): v for k, v in least.items()}))
        return function

    return add


def _jax() -> Any:
    import jax

    jax.config.update("jax_enable_x64", True)
    return jax


def _ready(jax: Any, function: Callable, *args: Any) -> Job:
    return lambda: jax.block_until_ready(function(*args))


def _options(n: int) -> list[np.ndarray]:
    rng = _rng()
    spans = ((80, 120), (80, 120), (0.2, 2), (0.0, 0.05), (0.1, 0.5))
    return [rng.uniform(*span, n) for span in spans]


def _black_scholes(T: Any, erf: Callable) -> Callable:
    def price(spot: Any, strike: Any, time: Any, rate: Any, volatility: Any) -> Any:
        deviation = volatility * T.sqrt(time)
        d1 = (T.log(spot / strike) + (rate + 0.5 * volatility * volatility) * time) / deviation
        d2 = d1 - deviation

        def below(x: Any) -> Any:
            return 0.5 * (1 + erf(x * math.sqrt(0.5)))

        return spot * below(d1) - strike * T.exp(-rate * time) * below(d2)

    return price


@_race("Black–Scholes value and 5 derivatives, 10⁶ samples, float64", JAX=3, torch_func=3, Numba=0.25)
def black_scholes() -> dict[str, Callable[[], Job]]:
    """A closed form, one value and one gradient a sample."""
    data = _options(1_000_000)
    every = tuple(range(5))

    def tapegrad() -> Job:
        import tapegrad as tg

        run = tg.vmap(tg.value_and_grad(tg.compile(_black_scholes(tg, tg.erf)), every))
        return lambda: run(*data)

    def jax() -> Job:
        j = _jax()
        run = j.jit(j.vmap(j.value_and_grad(_black_scholes(j.numpy, j.scipy.special.erf), every)))
        return _ready(j, run, *map(j.numpy.asarray, data))

    def torch_func() -> Job:
        import torch

        run = torch.func.vmap(torch.func.grad_and_value(_black_scholes(torch, torch.erf), every))
        given = [torch.from_numpy(d) for d in data]
        return lambda: run(*given)[::-1]

    def hand_written() -> Job:
        import numba

        @numba.njit(parallel=True, fastmath=True, error_model="numpy")
        def loop(spot: Any, strike: Any, time: Any, rate: Any, volatility: Any, out: Any) -> None:
            for k in numba.prange(spot.size):
                s, x, t, r, v = spot[k], strike[k], time[k], rate[k], volatility[k]
                root = math.sqrt(t)
                d1 = (math.log(s / x) + (r + 0.5 * v * v) * t) / (v * root)
                d2 = d1 - v * root
                n1, n2 = 0.5 * math.erfc(-d1 * math.sqrt(0.5)), 0.5 * math.erfc(-d2 * math.sqrt(0.5))
                density = math.exp(-0.5 * d1 * d1) / math.sqrt(2 * math.pi)
                paid = x * math.exp(-r * t)
                out[0, k] = s * n1 - paid * n2
                out[1, k] = n1
                out[2, k] = -paid * n2 / x
                out[3, k] = s * density * v / (2 * root) + r * paid * n2
                out[4, k] = t * paid * n2
                out[5, k] = s * density * root

        out = np.empty((6, data[0].size))
        return lambda: loop(*data, out)

    return {"tapegrad": tapegrad, "JAX": jax, "torch.func": torch_func, "Numba": hand_written}


@_race("gradient of a 32-64-1 network for each of 10⁴ samples, float32", JAX=1, torch_func=1.5)
def gradients_of_samples() -> dict[str, Callable[[], Job]]:
    """What influence functions and private training need."""
    rng = _rng()
    first, second = (rng.normal(size=s).astype(np.float32) / 8 for s in ((32, 64), (64,)))
    x, y = rng.normal(size=(10_000, 32)).astype(np.float32), rng.normal(size=10_000).astype(np.float32)

    def loss(T: Any) -> Callable:
        return lambda weights, x, y: (T.tanh(x @ weights[0]) @ weights[1] - y) ** 2

    def tapegrad() -> Job:
        import tapegrad as tg

        run = tg.vmap(tg.func.grad(tg.compile(loss(tg))), in_dims=(None, 0, 0))
        return lambda: run((first, second), x, y)

    def jax() -> Job:
        j = _jax()
        run = j.jit(j.vmap(j.grad(loss(j.numpy)), in_axes=(None, 0, 0)))
        a = j.numpy.asarray
        return _ready(j, run, (a(first), a(second)), a(x), a(y))

    def torch_func() -> Job:
        import torch

        run = torch.func.vmap(torch.func.grad(loss(torch)), in_dims=(None, 0, 0))
        t = torch.from_numpy
        given = ((t(first), t(second)), t(x), t(y))
        return lambda: run(*given)

    return {"tapegrad": tapegrad, "JAX": jax, "torch.func": torch_func}


_STEPS, _PATHS = 50, 20_000


@_race("Heston price and 5 derivatives, 20,000 paths of 50 steps, float64", JAX=2)
def heston() -> dict[str, Callable[[], Job]]:
    """A simulation with stochastic volatility, differentiated by its parameters."""
    noise = _rng().normal(size=(_STEPS, 2, _PATHS))
    start = np.array([0.04, 1.5, 0.04, 0.3, -0.7])  # variance, reversion, long variance, its volatility, correlation
    dt = 1.0 / _STEPS

    def step(T: Any, positive: Callable, state: Any, p: Any, z: Any) -> Any:
        log_price, variance = state
        v = positive(variance)
        root = T.sqrt(v * dt + 1e-12)
        w = p[4] * z[0] + T.sqrt(1 - p[4] * p[4]) * z[1]
        return log_price - 0.5 * v * dt + root * z[0], variance + p[1] * (p[2] - v) * dt + p[3] * root * w

    def payoff(T: Any, positive: Callable, log_price: Any) -> Any:
        return positive(100 * T.exp(log_price) - 100).mean()

    def tapegrad() -> Job:
        import tapegrad as tg

        draws = tg.tensor(noise)

        def price(p: Any) -> Any:
            state = (tg.zeros(_PATHS, dtype=tg.float64), p[0] + tg.zeros(_PATHS, dtype=tg.float64))
            for k in range(_STEPS):
                state = step(tg, tg.relu, state, p, draws[k])
            return payoff(tg, tg.relu, state[0])

        compiled = tg.compile(price)
        return lambda: compiled.value_and_grad(start)

    def jax() -> Job:
        j = _jax()
        draws = j.numpy.asarray(noise)

        def price(p: Any) -> Any:
            state = (j.numpy.zeros(_PATHS), p[0] + j.numpy.zeros(_PATHS))
            state, _ = j.lax.scan(lambda s, z: (step(j.numpy, j.nn.relu, s, p, z), None), state, draws)
            return payoff(j.numpy, j.nn.relu, state[0])

        return _ready(j, j.jit(j.value_and_grad(price)), j.numpy.asarray(start))

    return {"tapegrad": tapegrad, "JAX": jax}


@_race("value and gradient of a function of 10 elements, arrays in and out, float64", JAX=2.5)
def small_function() -> dict[str, Callable[[], Job]]:
    """What an optimiser calls a million times."""
    x = np.linspace(-1, 1, 10)

    def energy(T: Any) -> Callable:
        return lambda x: (T.sin(x) * x).sum() + T.exp(-(x * x).sum())

    def tapegrad() -> Job:
        import tapegrad as tg

        compiled = tg.compile(energy(tg))
        return lambda: compiled.value_and_grad(x)

    def jax() -> Job:
        j = _jax()
        run = j.jit(j.value_and_grad(energy(j.numpy)))

        def call() -> Any:
            value, gradient = run(x)
            return np.asarray(value), np.asarray(gradient)

        return call

    return {"tapegrad": tapegrad, "JAX": jax}


@_race("10,000 instructions on scalars, value and gradient, float64", PyTorch=100)
def scalar_program() -> dict[str, Callable[[], Job]]:
    """A long chain, where only the interpreter counts."""

    def chain(x: Any) -> Any:
        y = x
        for _ in range(2500):
            y = y * 0.999 + 0.1 * x
            y = y - 0.05 * y
        return y

    def tapegrad() -> Job:
        import tapegrad as tg

        compiled, x = tg.compile(chain), np.array(0.7)
        return lambda: compiled.value_and_grad(x)

    def torch() -> Job:
        import torch as T

        x = T.tensor(0.7, dtype=T.float64, requires_grad=True)

        def run() -> Any:
            x.grad = None
            y = chain(x)
            y.backward()
            return y, x.grad

        return run

    return {"tapegrad": tapegrad, "PyTorch": torch}


@_race("value and gradient over the value alone, Black–Scholes, 10⁶ samples (at most 3)", **{"value alone": 1 / 3})
def gradient_over_value() -> dict[str, Callable[[], Job]]:
    """What a gradient costs where a value does already."""
    data = _options(1_000_000)

    def both() -> Job:
        import tapegrad as tg

        run = tg.vmap(tg.value_and_grad(tg.compile(_black_scholes(tg, tg.erf)), tuple(range(5))))
        return lambda: run(*data)

    def value() -> Job:
        import tapegrad as tg

        run = tg.vmap(tg.compile(_black_scholes(tg, tg.erf)))
        return lambda: run(*data)

    return {"tapegrad": both, "value alone": value}
