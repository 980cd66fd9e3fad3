"""Second derivatives: the same workloads for tapegrad and PyTorch, and for HIPS autograd in its own words."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.work import Job, _leaf, _rng, _row


def _rosenbrock(x: Any) -> Any:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def _network() -> dict[str, np.ndarray]:
    rng = _rng()
    return {
        "first": rng.normal(size=(4, 16)),
        "second": rng.normal(size=(16, 1)),
        "inputs": rng.normal(size=(8, 4)),
        "targets": rng.normal(size=(8, 1)),
    }


def _system() -> np.ndarray:
    return _rng().normal(size=(100, 100)) / 10


def _peer_of_hessian() -> Job:
    import autograd
    import autograd.numpy as anp

    hessian = autograd.hessian(lambda x: anp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))
    x = np.linspace(-1, 1, 100)
    return lambda: (hessian(x),)


@_row("Hessian of Rosenbrock, 100 elements, `func.hessian`", 3, 4, hips=_peer_of_hessian)
def hessian_of_rosenbrock(T: Any) -> Job:
    hessian, x = T.func.hessian(_rosenbrock), T.tensor(np.linspace(-1, 1, 100))
    return lambda: (hessian(x),)


def _peer_of_product() -> Job:
    import autograd
    import autograd.numpy as anp

    d = _network()

    def loss(weights: Any) -> Any:
        first, second = weights
        return anp.mean((anp.tanh(d["inputs"] @ first) @ second - d["targets"]) ** 2)

    make = autograd.make_hvp(loss)
    weights = (d["first"], d["second"])
    ones = tuple(np.ones_like(w) for w in weights)
    return lambda: make(weights)[0](ones)


@_row("Hessian-vector product of a 4-16-1 network, twice `autograd.grad`", 3, 4, hips=_peer_of_product)
def hessian_vector_product(T: Any) -> Job:
    d = _network()
    first, second = _leaf(T, d["first"]), _leaf(T, d["second"])
    inputs, targets = T.tensor(d["inputs"]), T.tensor(d["targets"])
    ones = (T.ones_like(first), T.ones_like(second))

    def run() -> Any:
        loss = ((T.tanh(inputs @ first) @ second - targets) ** 2).mean()
        grads = T.autograd.grad(loss, (first, second), create_graph=True)
        return T.autograd.grad(grads, (first, second), ones)

    return run


@_row("gradient penalty step of a 4-16-1 network, 8 samples, float32", 3, 4)
def gradient_penalty(T: Any) -> Job:
    d = {name: array.astype(np.float32) for name, array in _network().items()}
    first, second, inputs = _leaf(T, d["first"]), _leaf(T, d["second"]), T.tensor(d["inputs"])

    def run() -> Any:
        x = inputs.detach().requires_grad_()
        out = T.tanh(x @ first) @ second
        (slopes,) = T.autograd.grad(out.sum(), x, create_graph=True)
        penalty = ((slopes.norm(dim=1) - 1) ** 2).mean()
        first.grad = second.grad = None
        (out.mean() + 10 * penalty).backward()
        return first.grad, second.grad

    return run


def _peer_of_jacobian() -> Job:
    import autograd
    import autograd.numpy as anp

    A, x = _system(), np.linspace(-1, 1, 100)
    jacobian = autograd.jacobian(lambda x: anp.tanh(A @ x) * x)
    return lambda: (jacobian(x),)


@_row("Jacobian of a 100×100 system, `func.jacrev`", 1, 3, hips=_peer_of_jacobian)
def jacobian_by_reverse_mode(T: Any) -> Job:
    A, x = T.tensor(_system()), T.tensor(np.linspace(-1, 1, 100))
    jacobian = T.func.jacrev(lambda x: T.tanh(A @ x) * x)
    return lambda: (jacobian(x),)


@_row("the same, `func.jacfwd`", 1, 3)
def jacobian_by_forward_mode(T: Any) -> Job:
    A, x = T.tensor(_system()), T.tensor(np.linspace(-1, 1, 100))
    jacobian = T.func.jacfwd(lambda x: T.tanh(A @ x) * x)
    return lambda: (jacobian(x),)
