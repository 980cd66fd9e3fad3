"""Gradients of a model for each of 1,797 digits, from disk to disk: which of them would change it most?

Softmax regression is fitted with gradients of the whole set; then one gradient for each digit is written, and the digits with the
longest ones are those the model is most wrong about.

Run it with ``python examples/batch_job.py``.
"""

import tempfile
from pathlib import Path

import numpy as np

import tapegrad as tg
from tapegrad import datasets

STEPS, RATE = 60, 2.0


def loss(params: dict[str, tg.Tensor], digit: dict[str, tg.Tensor]) -> tg.Tensor:
    """Negative log-likelihood of one digit."""
    scores = params["weights"] @ digit["image"] + params["biases"]
    return tg.logsumexp(scores, 0) - (scores * digit["class"]).sum()


def main() -> None:
    """Fit, write the gradients, and check them against each other and against finite differences."""
    images, labels = datasets.digits()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", images.astype(np.float64))
        np.save(folder / "classes.npy", np.eye(10)[labels])
        data = {"image": folder / "images.npy", "class": folder / "classes.npy"}
        params = {"weights": np.zeros((10, 64)), "biases": np.zeros(10)}

        for step in range(STEPS):
            mean = tg.batch.run(loss, data, params, reduce="mean", progress=False)
            if step % 20 == 0:
                print(f"step {step:2}: loss {mean.value:.4f}")
            params = {key: params[key] - RATE * gradient for key, gradient in mean.gradient.items()}

        report = tg.batch.run(
            loss, data, params, out=folder / "gradients.npy", values=folder / "losses.npy", progress=False
        )
        gradients, losses = np.load(report.out), np.load(report.values)
        mean = tg.batch.run(loss, data, params, reduce="mean", progress=False)

    lengths = np.linalg.norm(gradients, axis=1)
    for k in np.argsort(lengths)[:-4:-1]:
        print(f"digit {k:4}, a {labels[k]}: loss {losses[k]:.2f}, gradient of length {lengths[k]:.2f}")

    whole = np.concatenate([mean.gradient["weights"].ravel(), mean.gradient["biases"]])
    assert np.allclose(gradients.mean(0), whole, rtol=1e-10, atol=1e-12)
    shift = 1e-5 * np.eye(10)[3]
    high, low = (
        tg.batch.run(
            loss,
            {"image": images.astype(np.float64), "class": np.eye(10)[labels]},
            params | {"biases": params["biases"] + s},
            reduce="mean",
            progress=False,
        ).value
        for s in (shift, -shift)
    )
    slope = (high - low) / 2e-5
    print(f"slope along a bias {slope:.9f} by finite differences, {mean.gradient['biases'][3]:.9f} by the job")
    assert abs(slope - mean.gradient["biases"][3]) < 1e-8


if __name__ == "__main__":
    main()
