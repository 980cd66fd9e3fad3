"""Sums in a fixed tree."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegrad.batch._reduction import Node, PairwiseSum


def total(nodes):
    return PairwiseSum(nodes).total()[0]


class Term(str):
    """Addition written out."""

    def __add__(self, other):
        return Term(f"({self}{other})")


def term(k):
    return Node(0, k, [Term(str(k))])


@pytest.mark.parametrize(
    ("count", "tree"), [(1, "0"), (2, "(01)"), (3, "((01)2)"), (5, "(((01)(23))4)"), (7, "(((01)(23))((45)6))")]
)
def test_the_tree(count, tree):
    assert total(term(k) for k in range(count)) == tree


@pytest.mark.parametrize("count", [3, 5])
def test_any_order_gives_the_same_tree(count):
    expected = total(term(k) for k in range(count))
    for order in itertools.permutations(range(count)):
        assert total(term(k) for k in order) == expected


@given(st.integers(1, 60), st.data())
def test_any_cut_gives_the_same_tree(count, data):
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count)))})
    whole = PairwiseSum()
    for start, stop in itertools.pairwise(cuts):
        for node in PairwiseSum(term(k) for k in range(start, stop)).nodes():
            whole.add(node)
    assert whole.total()[0] == total(term(k) for k in range(count))
