"""Logistic regression on made-up points, its gradient checked against finite differences.

Run it with ``python examples/logistic_regression.py``.
"""

import numpy as np

import tapegrad as tg

F = tg.nn.functional


def points(count: int) -> tuple[tg.Tensor, tg.Tensor]:
    """Points of the plane, and 1 for those above a line; a tenth of the labels is wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 2))
    above = x @ [2.0, -1.0] + 0.5 > 0
    wrong = rng.random(count) < 0.1
    return tg.from_numpy(x), tg.from_numpy((above ^ wrong).astype(float))


def loss(x: tg.Tensor, y: tg.Tensor, w: tg.Tensor, b: tg.Tensor) -> tg.Tensor:
    """Mean negative log-likelihood, and a little weight decay."""
    return F.binary_cross_entropy_with_logits(x @ w + b, y) + 1e-3 * (w**2).sum()


def finite_differences(function, parameters: list[tg.Tensor], step: float = 1e-6) -> list[np.ndarray]:
    """Central differences of a scalar function, one element after the other."""
    results = []
    with tg.no_grad():
        for p in parameters:
            values = p.detach().numpy().reshape(-1)  # shares the parameter's memory
            slopes = np.zeros(values.size)
            for k in range(values.size):
                kept = values[k]
                values[k] = kept + step
                high = function().item()
                values[k] = kept - step
                low = function().item()
                values[k] = kept
                slopes[k] = (high - low) / (2 * step)
            results.append(slopes.reshape(tuple(p.shape)))
    return results


def main() -> None:
    """Fit by gradient descent and compare gradients on the way."""
    x, y = points(500)
    w = tg.zeros(2, dtype=tg.float64, requires_grad=True)
    b = tg.zeros((), dtype=tg.float64, requires_grad=True)
    parameters = [w, b]
    worst = 0.0
    for step in range(201):
        value = loss(x, y, w, b)
        gradients = tg.autograd.grad(value, parameters)
        if step % 50 == 0:
            numeric = finite_differences(lambda: loss(x, y, w, b), parameters)
            difference = max(np.abs(g.numpy() - n).max() for g, n in zip(gradients, numeric, strict=True))
            worst = max(worst, difference)
            print(f"step {step:3}: loss {value.item():.4f}, gradient off by {difference:.1e}")
        with tg.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= 1.0 * g
    with tg.no_grad():
        right = ((x @ w + b > 0) == (y > 0.5)).double().mean().item()
    print(f"weights {w.tolist()}, bias {b.item():.4f}")
    print(f"accuracy {right:.1%} where one label in ten is wrong")
    if worst > 1e-7:
        raise SystemExit(f"gradients are off by {worst}")


if __name__ == "__main__":
    main()
