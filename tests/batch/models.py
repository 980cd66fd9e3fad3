"""Functions and data that batch jobs are tested with."""

import numpy as np

import tapegrad as tg

PARAMS = {"w": np.linspace(-1, 1, 4), "b": np.array(0.25)}


def loss(params, x):
    """A smooth function of four numbers."""
    return (tg.tanh(x * params["w"] + params["b"]) ** 2).sum()


def energy(x):
    """A smooth function of a sample alone."""
    return (tg.exp(-x) + x * x).sum()


def branching(params, x):
    """Values steer it, so that it is called once a sample."""
    if x.sum() > 0:
        return (x * params["w"]).sum()
    return (x * x * params["w"]).sum() + params["b"]


def samples(count, seed=0, dtype=np.float64):
    """Samples of four numbers."""
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(dtype)


def by_hand(f, data, params=None, wrt=("params",)):
    """Values and gradients, by `backward`, one sample after the other: the reference that no part of the job's code is in."""
    values, lines = [], []
    for x in data:
        x = tg.tensor(x, requires_grad="data" in wrt)
        p = None
        if params is not None:
            p = {k: tg.tensor(v, requires_grad="params" in wrt) for k, v in params.items()}
        y = f(x) if p is None else f(p, x)
        y.backward()
        leaves = []
        for w in wrt:
            leaves += list(p.values()) if w == "params" else [x]
        values.append(y.item())
        lines.append(
            np.concatenate([np.zeros(t.numel()) if t.grad is None else t.grad.numpy().reshape(-1) for t in leaves])
        )
    return np.array(values), np.array(lines)
