"""Which training images a prediction rests on.

A softmax classifier of handwritten digits is trained to its optimum. How the loss of one test image would change with the weight of
a training image is then, by the implicit function theorem, minus the product of the test image's gradient, the inverse Hessian and the
training image's gradient (P. W. Koh, P. Liang, "Understanding black-box predictions via influence functions", 2017). The gradients of
all training images come from one `vmap`, the inverse from conjugate gradients with Hessian-vector products. Training again with the
most influential images reweighted checks it.

Run it with ``python examples/influential_images.py [picture.png]``.
"""

import importlib.util
import sys

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

import tapegrad as tg
from tapegrad import datasets

F = tg.nn.functional
TRAINING, DECAY, SHOWN, STEP = 400, 1e-2, 3, 1e-2


@tg.compile
def loss(w: tg.Tensor, image: tg.Tensor, label: tg.Tensor) -> tg.Tensor:
    """The loss of one image, or the losses of many; `w` holds 10 rows of 64 weights and a bias."""
    return F.cross_entropy(image @ w[:, :64].T + w[:, 64], label, reduction="none")


def objective(w: tg.Tensor, images: tg.Tensor, labels: tg.Tensor, weights: tg.Tensor) -> tg.Tensor:
    """What training minimises: weighted losses, and a penalty on large weights that makes the optimum unique."""
    return (weights * loss(w, images, labels)).sum() / len(images) + DECAY / 2 * (w * w).sum()


def trained(start: np.ndarray, images: tg.Tensor, labels: tg.Tensor, weights: tg.Tensor) -> np.ndarray:
    """The optimum, by Newton's method."""
    done = tg.optimize.minimize(
        objective, start, args=(images, labels, weights), method="trust-ncg", options={"gtol": 1e-8}
    )
    return np.asarray(done.x)


def influences(w: tg.Tensor, images: tg.Tensor, labels: tg.Tensor, test: tuple[tg.Tensor, tg.Tensor]) -> np.ndarray:
    """The derivative of the test image's loss by the weight of each training image."""
    gradients = tg.vmap(tg.func.grad(loss), in_dims=(None, 0, 0))(w, images, labels)
    slope = tg.func.grad(loss)(w, *test)
    ones = tg.ones(len(images), dtype=tg.float64)
    _, push = tg.func.linearize(tg.func.grad(lambda w: objective(w, images, labels, ones)), w)

    def product(v: np.ndarray) -> np.ndarray:
        return push(tg.from_numpy(v.reshape(tuple(w.shape)))).numpy().ravel()

    hessian = LinearOperator((w.numel(), w.numel()), product, dtype=np.float64)
    answer, failed = cg(hessian, slope.numpy().ravel(), rtol=1e-10)
    if failed:
        raise SystemExit("conjugate gradients did not converge")
    return -(gradients.numpy().reshape(len(images), -1) @ answer) / len(images)


def save_picture(path: str, images: np.ndarray, titles: list[str]) -> None:
    """The test image and the training images in a row."""
    from matplotlib import pyplot as plt

    _, axes = plt.subplots(1, len(images), figsize=(2 * len(images), 2.4))
    for axis, image, title in zip(axes, images, titles, strict=True):
        axis.imshow(image.reshape(8, 8), cmap="gray_r")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    plt.savefig(path)


def main(arguments: list[str]) -> None:
    """Train, find the influences on the worst test image, and train again to check the largest."""
    pixels, digits = datasets.digits()
    order = np.random.default_rng(3).permutation(len(pixels))
    pixels, digits = pixels[order].astype(np.float64), digits[order]
    images, labels = tg.from_numpy(pixels[:TRAINING]), tg.from_numpy(digits[:TRAINING])
    others, answers = tg.from_numpy(pixels[TRAINING:]), tg.from_numpy(digits[TRAINING:])

    ones = np.ones(TRAINING)
    optimum = trained(np.zeros((10, 65)), images, labels, tg.from_numpy(ones))
    w = tg.from_numpy(optimum)
    with tg.no_grad():
        losses = loss(w, others, answers).numpy()
    worst = int(losses.argmax())
    test = (others[worst], answers[worst])
    print(f"the test image with the largest loss, {losses[worst]:.4f}, is a {digits[TRAINING + worst]}")

    found = influences(w, images, labels, test)
    most = np.argsort(-abs(found))[:SHOWN]
    errors = []
    for k in most:
        moved = []
        for step in (STEP, -STEP):
            weights = ones.copy()
            weights[k] += step
            again = trained(optimum, images, labels, tg.from_numpy(weights))
            moved.append(loss(tg.from_numpy(again), *test).item())
        difference = (moved[0] - moved[1]) / (2 * STEP)
        errors.append(abs(found[k] / difference - 1))
        print(f"  training image {k:3}, a {digits[k]}: influence {found[k]:+.6f}, trained again {difference:+.6f}")
    if max(errors) > 1e-3:
        raise SystemExit(f"the influences are not what training again gives: {errors}")
    if arguments and importlib.util.find_spec("matplotlib"):
        titles = [f"test: {digits[TRAINING + worst]}", *(f"{digits[k]}: {found[k]:+.4f}" for k in most)]
        save_picture(arguments[0], np.concatenate([pixels[TRAINING + worst][None], pixels[most]]), titles)


if __name__ == "__main__":
    main(sys.argv[1:])
