"""A network of two layers trained on handwritten digits, with a loop written out.

Run it with ``python examples/digits_network.py``.
"""

import numpy as np

import tapegrad as tg
from tapegrad import datasets

F = tg.nn.functional
HELD_OUT, HIDDEN, BATCH, EPOCHS = 300, 32, 50, 15


def layer(inputs: int, outputs: int) -> list[tg.Tensor]:
    """Weights whose products keep the scale of their inputs, and biases of zero."""
    weights = tg.randn(outputs, inputs) * (2 / inputs) ** 0.5
    return [weights.requires_grad_(), tg.zeros(outputs, requires_grad=True)]


def main() -> None:
    """Train, and count the digits recognised among those never trained on."""
    tg.manual_seed(1)
    rng = np.random.default_rng(1)
    images, labels = datasets.digits()
    order = rng.permutation(len(images))
    images, labels = tg.from_numpy(images[order]), tg.from_numpy(labels[order])
    test, train = slice(0, HELD_OUT), slice(HELD_OUT, None)

    parameters = [*layer(64, HIDDEN), *layer(HIDDEN, 10)]
    optimizer = tg.optim.Adam(parameters, lr=0.005)

    def network(x: tg.Tensor) -> tg.Tensor:
        w1, b1, w2, b2 = parameters
        return F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)

    def accuracy(part: slice) -> float:
        with tg.no_grad():
            return (network(images[part]).argmax(dim=1) == labels[part]).float().mean().item()

    count = len(images) - HELD_OUT
    for epoch in range(EPOCHS):
        total = 0.0
        shuffled = rng.permutation(count) + HELD_OUT
        for start in range(0, count, BATCH):
            batch = tg.from_numpy(shuffled[start : start + BATCH])
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1:2}: loss {total / count:.4f}, held-out accuracy {accuracy(test):.1%}")
    print(f"accuracy {accuracy(test):.1%} on {HELD_OUT} held-out digits, {accuracy(train):.1%} on the others")


if __name__ == "__main__":
    main()
