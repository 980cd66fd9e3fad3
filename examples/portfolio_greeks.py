"""Risks of a portfolio of options: all Greeks under Black-Scholes, and the sensitivities of a Monte-Carlo price under Heston's model.

The first part differentiates the price of one option and runs it over the whole portfolio at once: `compile` records it, and `vmap`
replays it over blocks of options, on all cores. The closed forms check it. The second differentiates a simulation of correlated spot and variance along every path (S. L. Heston, "A closed-form solution for options
with stochastic volatility", 1993; Euler's scheme on the logarithm of the spot); finite differences with the same random numbers check it.

Run it with ``python examples/portfolio_greeks.py [picture.png]``.
"""

import importlib.util
import sys

import numpy as np
from scipy.stats import norm

import tapegrad as tg

OPTIONS, PATHS, STEPS = 2000, 4000, 50
GREEKS = ("delta", "vega", "theta", "rho", "gamma")
HESTON = {"v0": 0.04, "kappa": 3.0, "mean variance": 0.05, "volatility of variance": 0.25, "correlation": -0.6}


@tg.compile
def black_scholes(market: tg.Tensor, strike: tg.Tensor, sign: tg.Tensor) -> tg.Tensor:
    """The value of a call (sign 1) or put (sign -1); `market` holds spot, volatility, time to maturity and rate."""
    spot, volatility, maturity, rate = market
    spread = volatility * maturity.sqrt()
    d1 = ((spot / strike).log() + (rate + volatility**2 / 2) * maturity) / spread
    d2 = d1 - spread
    return sign * (spot * normal_cdf(sign * d1) - strike * tg.exp(-rate * maturity) * normal_cdf(sign * d2))


def normal_cdf(x: tg.Tensor) -> tg.Tensor:
    """The distribution function of the standard normal distribution."""
    return tg.erfc(-x / 2**0.5) / 2


def closed_forms(market: np.ndarray, strike: np.ndarray, sign: np.ndarray) -> dict[str, np.ndarray]:
    """The Greeks from the textbook."""
    spot, volatility, maturity, rate = market.T
    spread = volatility * np.sqrt(maturity)
    d1 = (np.log(spot / strike) + (rate + volatility**2 / 2) * maturity) / spread
    discounted = strike * np.exp(-rate * maturity) * norm.cdf(sign * (d1 - spread))
    return {
        "delta": sign * norm.cdf(sign * d1),
        "vega": spot * norm.pdf(d1) * np.sqrt(maturity),
        "theta": -spot * norm.pdf(d1) * volatility / (2 * np.sqrt(maturity)) - sign * rate * discounted,
        "rho": sign * maturity * discounted,
        "gamma": norm.pdf(d1) / (spot * spread),
    }


def greeks(market: np.ndarray, strike: np.ndarray, sign: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Values and Greeks of all options, by differentiation."""
    given = (tg.from_numpy(market), tg.from_numpy(strike), tg.from_numpy(sign))
    values, slopes = tg.vmap(tg.value_and_grad(black_scholes))(*given)
    curvatures = tg.vmap(tg.func.hessian(black_scholes))(*given)
    delta, vega, decay, rho = slopes.numpy().T
    # theta: maturity comes nearer as time passes
    found = {"delta": delta, "vega": vega, "theta": -decay, "rho": rho, "gamma": curvatures[:, 0, 0].numpy()}
    return values.numpy(), found


@tg.compile
def heston(parameters: tg.Tensor, noise: tg.Tensor) -> tg.Tensor:
    """The price of a call at the money, one year to run, without interest; `noise` has shape (2, steps, paths)."""
    v0, kappa, mean, wobble, correlation = parameters
    dt = 1 / STEPS
    log_spot, variance = tg.zeros(PATHS, dtype=tg.float64), v0
    ours, other = noise
    for k in range(STEPS):
        spread = (variance.clamp(min=1e-8) * dt).sqrt()
        mixed = correlation * ours[k] + (1 - correlation**2).sqrt() * other[k]
        log_spot = log_spot - spread**2 / 2 + spread * ours[k]
        variance = variance + kappa * (mean - variance) * dt + wobble * spread * mixed
    return tg.relu(100 * log_spot.exp() - 100).mean()


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error relative to the largest number."""
    return float(abs(found - expected).max() / abs(expected).max())


def save_picture(path: str, spot: np.ndarray, gamma: np.ndarray) -> None:
    """Gamma against the ratio of spot and strike."""
    from matplotlib import pyplot as plt

    plt.scatter(spot, gamma, s=3)
    plt.xlabel("spot / strike")
    plt.ylabel("gamma")
    plt.savefig(path)


def main(arguments: list[str]) -> None:
    """Differentiate both prices, and check them."""
    rng = np.random.default_rng(0)
    market = rng.uniform([60, 0.1, 0.1, 0], [140, 0.5, 2, 0.06], (OPTIONS, 4))
    strike, sign = rng.uniform(70, 130, OPTIONS), rng.choice([-1.0, 1.0], OPTIONS)
    values, found = greeks(market, strike, sign)
    expected = closed_forms(market, strike, sign)
    print(f"{OPTIONS} options worth {values.sum():,.2f}")
    for name in GREEKS:
        print(f"  {name:5} of the portfolio {found[name].sum():14,.4f}, error {worst(found[name], expected[name]):.1e}")
    if max(worst(found[name], expected[name]) for name in GREEKS) > 1e-10:
        raise SystemExit("the Greeks are not those of the closed forms")

    noise = tg.from_numpy(rng.standard_normal((2, STEPS, PATHS)))
    parameters = np.array(list(HESTON.values()))
    price, slopes = heston.value_and_grad(tg.from_numpy(parameters), noise)
    steps = 1e-6 * np.eye(len(parameters))
    with tg.no_grad():
        moved = [[heston(tg.from_numpy(parameters + s * h), noise).item() for s in (1, -1)] for h in steps]
    differences = np.array([up - down for up, down in moved]) / 2e-6
    print(f"Heston: {price.item():.4f} from {PATHS} paths")
    for name, slope, difference in zip(HESTON, slopes.tolist(), differences, strict=True):
        print(f"  by {name:22} {slope:10.5f}, by finite differences {difference:10.5f}")
    if worst(slopes.numpy(), differences) > 1e-4:
        raise SystemExit("the sensitivities are not those of finite differences")
    if arguments and importlib.util.find_spec("matplotlib"):
        save_picture(arguments[0], market[:, 0] / strike, found["gamma"])


if __name__ == "__main__":
    main(sys.argv[1:])
