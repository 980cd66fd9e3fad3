"""How the course of a differential equation depends on its parameters: hares and lynxes, forward and backward.

The equations of Lotka and Volterra are solved by the classical method of Runge and Kutta. The derivatives of the last state by the four
rates come forward, pushed along with the solution, and those of a misfit over a long time backward: `checkpoint` keeps the
states at the ends of segments only and computes each segment again when the sweep arrives there, and `compile` replays each segment as
one program. They are checked against each other and against finite differences.

Run it with ``python examples/ode_sensitivity.py [picture.png]``.
"""

import importlib.util
import sys

import numpy as np

import tapegrad as tg
from tapegrad.utils.checkpoint import checkpoint

RATES = np.array([1.1, 0.4, 0.1, 0.4])  # birth and being eaten, growth and death
START = tg.tensor([10.0, 5.0], dtype=tg.float64)
DT, SHORT, SEGMENT, SEGMENTS = 0.02, 200, 50, 20


def change(state: tg.Tensor, rates: tg.Tensor) -> tg.Tensor:
    """The right-hand side."""
    hares, lynxes = state
    birth, eaten, growth, death = rates
    return tg.stack([hares * (birth - eaten * lynxes), lynxes * (growth * hares - death)])


def step(state: tg.Tensor, rates: tg.Tensor) -> tg.Tensor:
    """One step of the classical method of fourth order."""
    k1 = change(state, rates)
    k2 = change(state + DT / 2 * k1, rates)
    k3 = change(state + DT / 2 * k2, rates)
    k4 = change(state + DT * k3, rates)
    return state + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def last_state(rates: tg.Tensor) -> tg.Tensor:
    """The state after a short time."""
    state = START
    for _ in range(SHORT):
        state = step(state, rates)
    return state


@tg.compile
def segment(state: tg.Tensor, rates: tg.Tensor) -> tg.Tensor:
    """The states at the next so many steps, of shape (steps, 2)."""
    states = []
    for _ in range(SEGMENT):
        state = step(state, rates)
        states.append(state)
    return tg.stack(states)


def misfit(rates: tg.Tensor, observed: tg.Tensor) -> tg.Tensor:
    """Half the mean squared error over a long time; `observed` has shape (segments, steps, 2)."""
    state, total = START, tg.tensor(0.0, dtype=tg.float64)
    for seen in observed:
        states = checkpoint(segment, state, rates, use_reentrant=False)
        total = total + ((states - seen) ** 2).mean() / 2
        state = states[-1]
    return total / len(observed)


def differences(function, at: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Central differences, one column an argument."""
    with tg.no_grad():
        moved = [[function(tg.from_numpy(at + s * e)).numpy() for s in (1, -1)] for e in h * np.eye(len(at))]
    return np.stack([(up - down) / (2 * h) for up, down in moved], -1)


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error relative to the largest number."""
    return float(abs(found - expected).max() / abs(expected).max())


def save_picture(path: str, states: np.ndarray) -> None:
    """Hares and lynxes against time."""
    from matplotlib import pyplot as plt

    plt.plot(DT * np.arange(1, len(states) + 1), states, label=["hares", "lynxes"])
    plt.xlabel("time")
    plt.legend()
    plt.savefig(path)


def main(arguments: list[str]) -> None:
    """Differentiate in both directions, and compare."""
    rates = tg.tensor(RATES, requires_grad=True)
    forward = tg.func.jacfwd(last_state)(rates.detach()).numpy()
    state = last_state(rates)
    backward = np.stack([tg.autograd.grad(x, rates, retain_graph=True)[0].numpy() for x in state])
    errors = {
        "forward against backward": worst(forward, backward),
        "forward against differences": worst(forward, differences(last_state, RATES)),
    }
    print(f"the state after {SHORT} steps by the rates:\n{forward}")

    true = tg.from_numpy(RATES * [1.02, 0.99, 1.01, 0.98])
    with tg.no_grad():
        course, now = [], START
        for _ in range(SEGMENTS):
            course.append(segment(now, true))
            now = course[-1][-1]
    observed = tg.stack(course)
    loss = misfit(rates, observed)
    loss.backward()
    assert rates.grad is not None
    errors["adjoint against differences"] = worst(rates.grad.numpy(), differences(lambda r: misfit(r, observed), RATES))
    print(f"misfit over {SEGMENTS * SEGMENT} steps {loss.item():.6f}, by the rates {rates.grad.numpy()}")
    print(", ".join(f"{what}: {error:.1e}" for what, error in errors.items()))
    if errors["forward against backward"] > 1e-11 or max(errors.values()) > 1e-6:
        raise SystemExit("the derivatives do not agree")
    if arguments and importlib.util.find_spec("matplotlib"):
        save_picture(arguments[0], observed.reshape(-1, 2).numpy())


if __name__ == "__main__":
    main(sys.argv[1:])
