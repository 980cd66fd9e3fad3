"""Hamiltonian Monte Carlo in compiled code: a posterior's gradient, recorded once, is called from chains that run on all cores.

A robust regression, with Student's t errors, is sampled by a loop of one's own under Numba. Nothing in it touches Python: the recorded
potential is a function like any other there. A normal model, whose posterior is known in closed form, is the check.
"""

import math
import sys

import numba
import numpy as np

import tapegrad as tg

CHAINS, SAMPLES, STEPS = 4, 2_000, 16
rng = np.random.default_rng(0)
X = np.column_stack([np.ones(60), np.linspace(-1, 1, 60), rng.normal(size=60)])
TRUTH = np.array([0.5, 2.0, -1.0])
noise = 0.3 * rng.normal(size=60)
clean, spoiled = X @ TRUTH + noise, X @ TRUTH + noise
spoiled[::12] += 6.0  # outliers


def potential_of(errors):
    """Minus the logarithm of a posterior density with a wide normal prior."""
    x = tg.tensor(X)

    def potential(w, targets):
        return errors((targets - x @ w) / 0.3).sum() + 0.5 * (w * w).sum() / 100

    return tg.compile(potential)


def normal(z):
    """Minus the log-density of normal errors."""
    return 0.5 * z * z


def student(z):
    """Minus the log-density of errors of Student's t with three degrees of freedom."""
    return 2 * tg.log1p(z * z / 3)


def sampler(energy):
    """Chains of Hamiltonian Monte Carlo as one compiled function."""

    @numba.njit(parallel=True)
    def sample(targets, start, size, seed):
        dims = start.size
        draws = np.empty((CHAINS, SAMPLES, dims))
        for chain in numba.prange(CHAINS):
            np.random.seed(seed + chain)  # noqa: NPY002 - the generators that Numba compiles
            w, gradient = start.copy(), np.empty(dims)
            value = energy(w, targets, gradient)
            for k in range(SAMPLES):
                momentum = np.random.normal(0.0, 1.0, dims)  # noqa: NPY002
                before = value + 0.5 * (momentum * momentum).sum()
                trial, slope = w.copy(), gradient.copy()
                length = size * (0.8 + 0.4 * np.random.random())  # noqa: NPY002
                after = value
                for _ in range(STEPS):
                    momentum -= 0.5 * length * slope
                    trial += length * momentum
                    after = energy(trial, targets, slope)
                    momentum -= 0.5 * length * slope
                if math.log(np.random.random()) < before - after - 0.5 * (momentum * momentum).sum():  # noqa: NPY002
                    w, gradient, value = trial, slope, after
                draws[chain, k] = w
        return draws

    return sample


def report(name, draws):
    """Print what the draws say of the weights, once the chains have settled."""
    draws = draws[:, SAMPLES // 10 :]
    mean, deviation = draws.mean((0, 1)), draws.std((0, 1))
    shown = ", ".join(f"{m:6.3f} ± {d:.3f}" for m, d in zip(mean, deviation, strict=True))
    print(f"{name:24s} {shown}")
    return mean, deviation


def main():
    """Sample both models, and check."""
    start = np.zeros(3)
    samplers = []
    for errors in (normal, student):
        compiled = potential_of(errors)
        w, step = rng.normal(size=3), 1e-6
        _, gradient = compiled.value_and_grad(w, spoiled)
        differences = [
            (compiled(w + step * e, spoiled) - compiled(w - step * e, spoiled)) / (2 * step) for e in np.eye(3)
        ]
        assert np.allclose(gradient, differences, rtol=1e-5, atol=1e-4), "the gradient is not that of the potential"
        samplers.append(sampler(compiled.native(start, spoiled)))
    with_normal, with_student = samplers

    print(f"{'the truth':24s} {', '.join(f'{t:6.3f}        ' for t in TRUTH)}")
    known = np.linalg.inv(X.T @ X / 0.09 + np.eye(3) / 100)
    centre = known @ (X.T @ clean) / 0.09
    mean, deviation = report("normal errors, clean", with_normal(clean, start, 0.02, 1))
    error = np.abs(mean - centre) / np.sqrt(np.diag(known))
    assert error.max() < 0.1, f"means off by {error} standard deviations"
    assert np.allclose(deviation, np.sqrt(np.diag(known)), rtol=0.1), "deviations differ from the closed form"
    report("normal errors, spoiled", with_normal(spoiled, start, 0.02, 2))
    draws = with_student(spoiled, start, 0.02, 3)
    mean, _ = report("Student errors, spoiled", draws)
    assert np.abs(mean - TRUTH).max() < 0.3, "outliers steer the robust model"
    if len(sys.argv) > 1:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        for k, name in enumerate(("offset", "slope", "effect")):
            axes.hist(draws[:, SAMPLES // 10 :, k].ravel(), 80, histtype="step", label=name)
        axes.legend()
        canvas.savefig(sys.argv[1])


if __name__ == "__main__":
    main()
