"""Cameras and points in space from what the cameras saw: bundle adjustment with a sparse Jacobian.

Each observation depends on one camera (a rotation vector and a translation) and one point only, so the Jacobian of the reprojection
errors has nine non-zeros a row. With their pattern given, it takes nine products instead of one for each unknown. The first two
cameras are surveyed, which fixes place, direction and scale.

Run it with ``python examples/bundle_adjustment.py [picture.png]``.
"""

import importlib.util
import sys

import numpy as np
from scipy import sparse

import tapegrad as tg

CAMERAS, SURVEYED, POINTS, SEEN = 10, 2, 80, 0.6
FREE = 6 * (CAMERAS - SURVEYED)  # unknowns of cameras


def rotated(vectors: tg.Tensor, points: tg.Tensor) -> tg.Tensor:
    """Points turned about the directions of rotation vectors by their lengths, by Rodrigues' formula; both of shape (n, 3)."""
    angle = (vectors * vectors).sum(1, keepdim=True).sqrt()
    axis = vectors / angle
    along = (axis * points).sum(1, keepdim=True) * axis
    return along + (points - along) * angle.cos() + tg.cross(axis, points) * angle.sin()


def projected(cameras: tg.Tensor, points: tg.Tensor) -> tg.Tensor:
    """Where cameras see points, one camera and one point a row; of shape (n, 2)."""
    seen = rotated(cameras[:, :3], points) + cameras[:, 3:]
    return seen[:, :2] / seen[:, 2:]


class Scene:
    """What is known: the surveyed cameras, and which camera saw which point where."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.points = rng.uniform(-1, 1, (POINTS, 3))
        turns, shifts = rng.normal(0, 0.3, (CAMERAS, 3)), rng.normal(0, 0.4, (CAMERAS, 3)) + [0, 0, 5]
        self.cameras = np.concatenate([turns, shifts], 1)
        camera, point = np.nonzero(rng.random((CAMERAS, POINTS)) < SEEN)
        self.camera, self.point = tg.from_numpy(camera), tg.from_numpy(point)
        self.surveyed = tg.from_numpy(self.cameras[:SURVEYED])
        given = tg.from_numpy(self.cameras)[self.camera], tg.from_numpy(self.points)[self.point]
        self.observed = projected(*given)

    def residuals(self, unknowns: tg.Tensor) -> tg.Tensor:
        """Reprojection errors; the unknowns are cameras, then points."""
        cameras = tg.cat([self.surveyed, unknowns[:FREE].reshape(-1, 6)])
        points = unknowns[FREE:].reshape(-1, 3)
        return (projected(cameras[self.camera], points[self.point]) - self.observed).reshape(-1)

    def unknowns(self) -> np.ndarray:
        """The true ones."""
        return np.concatenate([self.cameras[SURVEYED:].ravel(), self.points.ravel()])

    def sparsity(self) -> sparse.csr_array:
        """Which residuals depend on which unknowns."""
        camera, point = self.camera.numpy() - SURVEYED, self.point.numpy()
        columns = np.concatenate([6 * camera[:, None] + np.arange(6), FREE + 3 * point[:, None] + np.arange(3)], 1)
        columns = np.repeat(columns, 2, axis=0)  # both coordinates
        rows = np.repeat(np.arange(len(columns)), 9).reshape(-1, 9)
        free = columns >= 0
        shape = (len(columns), FREE + 3 * POINTS)
        return sparse.csr_array((np.ones(int(free.sum())), (rows[free], columns[free])), shape=shape)


def save_picture(path: str, true: np.ndarray, start: np.ndarray, found: np.ndarray) -> None:
    """The points from above: as they are, as they were first guessed, as they were found."""
    from matplotlib import pyplot as plt

    for points, mark, name in ((true, "o", "true"), (start, ".", "start"), (found, "x", "found")):
        plt.plot(points[0::3], points[1::3], mark, label=name)
    plt.legend()
    plt.savefig(path)


def main(arguments: list[str]) -> None:
    """Recover the scene from a disturbed one, and check it and the Jacobian."""
    rng = np.random.default_rng(0)
    scene = Scene(rng)
    true, pattern = scene.unknowns(), scene.sparsity()
    start = true + rng.normal(0, 0.05, true.shape)
    colours = tg.func.colour(pattern).count
    print(f"{pattern.shape[0]} residuals, {pattern.shape[1]} unknowns, {pattern.nnz} non-zeros, {colours} products")

    jacobian = tg.func.jacrev(scene.residuals, sparsity=pattern)(tg.from_numpy(start)).toarray()
    differences = np.empty_like(jacobian)
    for k, step in enumerate(1e-6 * np.eye(len(start))):
        up, down = (scene.residuals(tg.from_numpy(start + s * step)).numpy() for s in (1, -1))
        differences[:, k] = (up - down) / 2e-6
    wrong = abs(jacobian - differences).max() / abs(differences).max()
    print(f"the Jacobian differs from finite differences by {wrong:.1e}")

    fit = tg.optimize.least_squares(scene.residuals, start, jac_sparsity=pattern, xtol=1e-15, ftol=1e-15, gtol=1e-12)
    off = abs(fit.x - true).max()
    print(
        f"{fit.nfev} evaluations: cost {fit.cost:.1e}, unknowns off by {abs(start - true).max():.2f} at first, {off:.1e} now"
    )
    if wrong > 1e-7:
        raise SystemExit("the Jacobian is not that of finite differences")
    if off > 1e-6:
        raise SystemExit("the scene was not recovered")
    if arguments and importlib.util.find_spec("matplotlib"):
        save_picture(arguments[0], true[FREE:], start[FREE:], np.asarray(fit.x)[FREE:])


if __name__ == "__main__":
    main(sys.argv[1:])
