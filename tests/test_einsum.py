"""Einsum: values and gradients against NumPy's."""

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import RNG, arrays, differences

EQUATIONS = [
    ("ij,jk", (2, 3), (3, 4)),
    ("ij,kj->ik", (2, 3), (4, 3)),
    ("ij,jk->ki", (2, 3), (3, 4)),
    ("ij,jk->", (2, 3), (3, 2)),
    ("ii", (3, 3)),
    ("ii->i", (3, 3)),
    ("iij->ji", (3, 3, 2)),
    ("ijij->ij", (2, 3, 2, 3)),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("bqhd,bkhd->bhqk", (2, 4, 3, 5), (2, 6, 3, 5)),
    ("i,i->i", (3,), (3,)),
    ("i,j,k->kij", (2,), (3,), (4,)),
    ("...ij,...jk->...ik", (5, 2, 3), (3, 4)),
    ("...i->...", (2, 3)),
    ("b...i,ij->b...j", (2, 4, 3), (3, 5)),
    ("ij,ij->i", (2, 3), (2, 3)),
    ("ab,bc,cd,de->ae", (2, 3), (3, 4), (4, 5), (5, 2)),
    ("ab,cb,db->acd", (2, 3), (4, 3), (5, 3)),
    ("bij,bj->bi", (4, 2, 3), (4, 3)),
    ("ijk,jil->kl", (2, 3, 4), (3, 2, 5)),
    ("ij,j", (2, 3), (1,)),
    ("a...,...a", (2, 3), (3, 2)),
    ("ij->", (2, 3)),
    ("ij->ji", (0, 3)),
    ("ij,jk->ik", (2, 0), (0, 4)),
]


@pytest.mark.parametrize("case", EQUATIONS, ids=lambda c: c[0])
def test_einsum_is_numpys(case):
    equation, *shapes = case
    operands = arrays(shapes)
    tensors = [tg.tensor(x, requires_grad=True) for x in operands]
    result = tg.einsum(equation, *tensors)
    expected = np.einsum(equation, *operands)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result.detach().numpy(), expected, atol=1e-12)
    weights = RNG.standard_normal(result.shape)
    result.backward(tg.tensor(weights))
    for t, e in zip(tensors, differences(lambda *x: np.einsum(equation, *x), operands, weights)):
        np.testing.assert_allclose(t.grad.numpy(), e, atol=1e-7)


def test_einsum_with_lists_of_indices():
    a, b = arrays([(2, 3), (3, 4)])
    for arguments in ([[0, 1], [1, 2]], [[0, 1], [1, 2], [2, 0]]):
        found = tg.einsum(tg.tensor(a), arguments[0], tg.tensor(b), *arguments[1:])
        expected = np.einsum(a, arguments[0], b, *arguments[1:])
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
