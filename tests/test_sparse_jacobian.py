"""Sparse Jacobians: colourings are valid and few, and what they compress comes back as the dense Jacobian."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import tapegrad as tg
from tapegrad.func._sparse import as_pattern, colour, sparse_jacobian, sparsity_of
from tests.processes import run


def band(n, width=1):
    offsets = range(-width, width + 1)
    return sparse.diags_array([np.ones(n - abs(k)) for k in offsets], offsets=list(offsets)).tocsr()


def random_pattern(m, n, density, seed=0):
    return np.random.default_rng(seed).random((m, n)) < density


def products(matrix):
    matrix = tg.from_numpy(np.array(matrix, float))
    return {"pullback": lambda v: v @ matrix, "pushforward": lambda u: matrix @ u}


def jacobian(f, x, sparsity):
    return tg.func.jacrev(f, sparsity=sparsity)(x)


def check_valid(colouring):
    pattern = colouring.pattern.toarray()
    lines = pattern if colouring.by == "rows" else pattern.T
    assert colouring.colours.shape == (len(lines),)
    assert (colouring.colours == -1).tolist() == (~lines.any(1)).tolist()
    for c in range(colouring.count):
        group = lines[colouring.colours == c]
        assert len(group) > 0
        assert group.sum(0).max() <= 1


# colouring


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12), st.integers(0, 12), st.floats(0, 1), st.integers(0, 1000), st.sampled_from(["rows", "columns"])
)
def test_colours_never_meet(m, n, density, seed, by):
    colouring = colour(random_pattern(m, n, density, seed), by)
    assert colouring.by == by
    check_valid(colouring)


@pytest.mark.parametrize(("width", "by"), [(1, "rows"), (1, "columns"), (3, "rows"), (3, None)])
def test_a_band_needs_as_many_colours_as_it_is_wide(width, by):
    colouring = colour(band(200, width), by)
    assert colouring.count == 2 * width + 1
    check_valid(colouring)


def test_the_cheaper_side_is_chosen():
    row_heavy = np.vstack([np.ones((1, 20)), np.eye(20)])
    assert (colour(row_heavy).by, colour(row_heavy).count) == ("rows", 2)
    assert (colour(row_heavy.T).by, colour(row_heavy.T).count) == ("columns", 2)
    assert colour(row_heavy, "columns").count == 20
    assert colour(np.ones((3, 3))).by == "rows"


def test_an_arrow_needs_every_colour():
    arrow = np.eye(30, dtype=bool)
    arrow[0] = arrow[:, 0] = True
    assert colour(arrow).count == 30


def test_an_empty_pattern_needs_no_products():
    colouring = colour(np.zeros((3, 4)))
    assert colouring.count == 0
    assert colouring.decompress(np.empty((0, 4))).toarray().tolist() == np.zeros((3, 4)).tolist()


def test_the_order_is_largest_degree_first():
    # a star after a long matching: its centre is coloured first and its leaves share a colour
    pattern = np.zeros((6, 7), bool)
    for leaf in range(1, 6):
        pattern[leaf, leaf] = pattern[0, leaf] = True
    colouring = colour(pattern, "rows")
    assert colouring.colours.tolist() == [0, 1, 1, 1, 1, 1]


# patterns


@pytest.mark.parametrize(
    "given",
    [
        np.array([[1, 0], [2, 3]]),
        np.array([[True, False], [True, True]]),
        [[1, 0], [2, 3]],
        sparse.csr_matrix([[1, 0], [2, 3]]),
        sparse.coo_array(([1, 1, 1, 1], ([0, 1, 1, 1], [0, 1, 0, 1])), shape=(2, 2)),
        sparse.csc_array([[1, 0], [2, 3]]),
        sparse.lil_matrix([[1, 0], [2, 3]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_form_of_a_pattern(given):
    pattern = as_pattern(given)
    assert pattern.dtype == bool
    assert pattern.has_sorted_indices
    assert pattern.toarray().tolist() == [[True, False], [True, True]]


def test_a_tensor_as_a_pattern():
    assert as_pattern(tg.tensor([[1.0, 0.0]])).toarray().tolist() == [[True, False]]


def test_stored_zeros_belong_to_the_pattern():
    stored = sparse.csr_array(([0.0, 1.0], [0, 1], [0, 2]), shape=(1, 2))
    assert as_pattern(stored).toarray().tolist() == [[True, True]]


def test_a_pattern_is_a_copy():
    stored = sparse.csr_array(np.eye(2))
    pattern = as_pattern(stored)
    pattern.indices[0] = 1
    assert stored.toarray().tolist() == np.eye(2).tolist()


@pytest.mark.parametrize("given", [np.ones(3), 1.0, np.ones((2, 2, 2))])
def test_a_pattern_that_is_no_matrix(given):
    with pytest.raises(ValueError, match="sparsity must be a matrix of shape"):
        as_pattern(given)


def test_a_pattern_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"sparsity has shape \(2, 3\), but the Jacobian of 3 outputs by 3 inputs"):
        jacobian(lambda x: x * x, tg.ones(3), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"sparsity has shape \(2, 2\)"):
        jacobian(lambda x: x * x, tg.ones(3), colour(np.eye(2), "rows"))


def test_an_unknown_side():
    with pytest.raises(ValueError, match="by must be 'rows', 'columns' or None, but got 'cols'"):
        colour(np.eye(2), "cols")


# products


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(0, 9),
    st.floats(0, 1),
    st.integers(0, 1000),
    st.sampled_from([("pullback",), ("pushforward",), ("pullback", "pushforward")]),
    st.booleans(),
)
def test_the_matrix_comes_back(m, n, density, seed, names, check):
    pattern = random_pattern(m, n, density, seed)
    matrix = pattern * np.random.default_rng(seed).normal(size=(m, n))
    made = sparse_jacobian(pattern, **{k: products(matrix)[k] for k in names}, check=check)
    assert isinstance(made, sparse.csr_array)
    assert made.dtype == np.float64
    np.testing.assert_allclose(made.toarray(), matrix, rtol=1e-14)


def test_products_of_many_vectors_at_once():
    matrix = tg.from_numpy(band(20).toarray())
    calls = []

    def pullback(v):
        calls.append(v.shape)
        return v @ matrix

    made = sparse_jacobian(band(20), pullback, batched=True)
    assert calls == [(4, 20)]
    assert made.toarray().tolist() == band(20).toarray().tolist()


@pytest.mark.parametrize(("check", "count"), [(True, 4), (False, 3)])
def test_the_check_costs_one_product(check, count):
    matrix, calls = tg.from_numpy(band(20).toarray()), []

    def pushforward(u):
        calls.append(u)
        return matrix @ u

    sparse_jacobian(band(20), pushforward=pushforward, check=check)
    assert len(calls) == count


def test_a_matrix_gives_a_matrix():
    made = sparse_jacobian(sparse.csr_matrix(np.eye(2)), **products(np.eye(2)))
    assert isinstance(made, sparse.csr_matrix)
    assert isinstance(jacobian(lambda x: x * x, tg.ones(2), sparse.csr_matrix(np.eye(2))), sparse.csr_matrix)


def test_results_may_have_any_shape():
    made = sparse_jacobian(np.eye(4), pullback=lambda v: (2 * v).reshape(2, 2))
    assert made.toarray().tolist() == (2 * np.eye(4)).tolist()


def test_dtype_of_the_seeds():
    seen = []

    def pullback(v):
        seen.append(v.dtype)
        return v

    made = sparse_jacobian(np.eye(2), pullback, dtype=tg.float32)
    assert set(seen) == {tg.float32}
    assert made.dtype == np.float32


@pytest.mark.parametrize("name", ["pullback", "pushforward"])
@pytest.mark.parametrize("place", [(3, 7), (11, 0), (0, 11), (6, 2)])
@pytest.mark.parametrize("value", [2.5, -1e-3])
def test_an_element_outside_the_pattern_is_named(name, place, value):
    matrix = band(12).toarray()
    matrix[place] = value
    message = f"the Jacobian is {value:g} in row {place[0]}, column {place[1]}, which is outside the given sparsity"
    with pytest.raises(ValueError, match=message):
        sparse_jacobian(band(12), **{name: products(matrix)[name]})


@pytest.mark.parametrize("name", ["pullback", "pushforward"])
def test_an_infinity_outside_the_pattern_shows_in_it(name):
    matrix = band(12).toarray()
    matrix[6, 2] = np.inf
    made = sparse_jacobian(band(12), **{name: products(matrix)[name]})
    assert not np.isfinite(made.toarray()).all()


def test_several_elements_outside_the_pattern():
    matrix = np.arange(1.0, 26).reshape(5, 5)
    with pytest.raises(ValueError, match="outside the given sparsity") as caught:
        sparse_jacobian(np.eye(5), **products(matrix))
    value, row, column = (int(word) for word in re.findall(r"\d+", str(caught.value)))
    assert value == 1 + 5 * row + column
    assert row != column


def test_an_element_outside_an_empty_pattern():
    with pytest.raises(ValueError, match=r"the Jacobian is 5 in row 1, column 0, which is outside"):
        sparse_jacobian(np.zeros((2, 2)), pullback=products([[0, 0], [5, 0]])["pullback"])


def test_without_the_check_nothing_is_said():
    made = sparse_jacobian(np.eye(3), pullback=products(np.ones((3, 3)))["pullback"], check=False)
    assert made.nnz == 3


def test_noise_of_rounding_passes():
    rng = np.random.default_rng(0)
    matrix = band(30).toarray() * 10.0 ** rng.integers(-6, 6, (30, 30))

    def noisy(v):
        exact = v.numpy() @ matrix
        return tg.from_numpy(exact * (1 + 1e-9 * rng.normal(size=30)))

    sparse_jacobian(band(30), noisy)


def test_products_that_change_from_call_to_call():
    factors = iter(range(1, 100))
    with pytest.raises(ValueError, match="gives different results for one point"):
        sparse_jacobian(np.ones((2, 2)), pullback=lambda v: v * next(factors))


def test_elements_that_are_not_finite():
    made = sparse_jacobian(np.eye(2), pullback=lambda v: v * tg.tensor([np.nan, 1.0], dtype=tg.float64))
    np.testing.assert_array_equal(made.diagonal(), [np.nan, 1.0])


def test_a_product_is_missing():
    with pytest.raises(ValueError, match="needs a pullback, a pushforward, or both"):
        sparse_jacobian(np.eye(2))
    with pytest.raises(ValueError, match="a colouring by columns needs a pushforward"):
        sparse_jacobian(colour(np.eye(2), "columns"), pullback=lambda v: v)
    with pytest.raises(ValueError, match="a colouring by rows needs a pullback"):
        sparse_jacobian(colour(np.eye(2), "rows"), pushforward=lambda v: v)


def test_a_product_of_the_wrong_kind():
    with pytest.raises(TypeError, match="a product with a Jacobian must be a Tensor, but got ndarray"):
        sparse_jacobian(np.eye(2), pullback=lambda v: v.numpy())
    with pytest.raises(ValueError, match="has 3 elements where sparsity says 2"):
        sparse_jacobian(np.eye(2), pullback=lambda v: tg.ones(3, dtype=tg.float64))


# of functions


def chain(x):
    """Differences of neighbours of neighbours, not linear."""
    return x[1:-1] ** 3 - x[2:] * x[:-2].sin()


def chain_jacobian(x):
    n = len(x)
    rows = np.zeros((n - 2, n))
    k = np.arange(n - 2)
    rows[k, k] = -x[2:] * np.cos(x[:-2])
    rows[k, k + 1] = 3 * x[1:-1] ** 2
    rows[k, k + 2] = -np.sin(x[:-2])
    return rows


X = np.random.default_rng(5).normal(size=40)


def test_jacobian_of_a_function():
    pattern = chain_jacobian(X) != 0
    made = jacobian(chain, tg.from_numpy(X), pattern)
    np.testing.assert_allclose(made.toarray(), chain_jacobian(X), rtol=1e-12)
    np.testing.assert_allclose(jacobian(chain, X, colour(pattern, "rows")).toarray(), chain_jacobian(X), rtol=1e-12)


def test_jacobian_in_float32():
    x = tg.from_numpy(X).float()
    made = jacobian(chain, x, chain_jacobian(X) != 0)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made.toarray(), chain_jacobian(X), rtol=1e-4, atol=1e-6)


def test_jacobian_between_matrices():
    x = tg.from_numpy(np.arange(6.0).reshape(2, 3))
    made = jacobian(lambda x: x.T**2, x, np.eye(6).reshape(2, 3, 6).transpose(1, 0, 2).reshape(6, 6))
    transposed = np.arange(6).reshape(2, 3).T.ravel()
    np.testing.assert_array_equal(made.toarray(), np.eye(6)[transposed] * 2 * transposed[:, None])


def test_jacobian_of_a_number():
    made = jacobian(lambda x: x**2, tg.tensor(3.0), [[1]])
    assert made.toarray().tolist() == [[6.0]]


def test_jacobian_leaves_the_argument_alone():
    x = tg.ones(3, requires_grad=True)
    jacobian(lambda x: x * x, x, np.eye(3))
    assert x.grad is None


def test_jacobian_under_no_grad():
    with tg.no_grad():
        assert jacobian(lambda x: x * x, tg.ones(2), np.eye(2)).toarray().tolist() == [[2, 0], [0, 2]]


def test_an_element_of_a_function_outside_the_pattern():
    with pytest.raises(ValueError, match=r"the Jacobian is 2 in row 2, column 0, which is outside the given sparsity"):
        jacobian(lambda x: x + 2 * (tg.arange(3) == 2) * x[0], tg.ones(3), np.eye(3))


def test_a_function_that_does_not_depend_on_its_argument():
    assert jacobian(lambda x: tg.ones(2), tg.ones(2), np.eye(2)).toarray().tolist() == [[0, 0], [0, 0]]


def test_exceptions_pass():
    def f(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jacobian(f, tg.ones(2), np.eye(2))


# patterns of functions


def test_sparsity_of_a_function():
    assert sparsity_of(chain, X).toarray().tolist() == (chain_jacobian(X) != 0).tolist()


def test_zeros_at_the_point_itself_are_found():
    assert sparsity_of(lambda x: x.prod().reshape(1), tg.zeros(4)).toarray().tolist() == [[True] * 4]


def test_exact_zeros_are_left_out():
    matrix = tg.from_numpy(band(20).toarray())
    assert sparsity_of(lambda x: (matrix @ x) ** 2, X[:20]).toarray().tolist() == (band(20).toarray() != 0).tolist()


def test_more_outputs_than_a_block():
    n = 600
    assert sparsity_of(lambda x: x * x, np.ones(n), samples=0).toarray().tolist() == np.eye(n, dtype=bool).tolist()


def test_sparsity_of_anything_else():
    with pytest.raises(RuntimeError, match="sparsity_of: f must return one Tensor, but returned tuple"):
        sparsity_of(lambda x: (x, x), tg.ones(2))
    with pytest.raises(RuntimeError, match="cannot differentiate a tensor of dtype"):
        sparsity_of(lambda x: x, tg.arange(2))


def test_sparsity_of_a_number():
    assert sparsity_of(lambda x: x * x, tg.tensor(0.0)).toarray().tolist() == [[True]]


def test_another_branch_is_found_by_the_check():
    f = lambda x: tg.where(x > 0, x, x.flip(0))
    pattern = sparsity_of(f, np.array([1.0, 2.0, 3.0]))
    assert pattern.toarray().tolist() == np.eye(3, dtype=bool).tolist()
    with pytest.raises(ValueError, match=r"the Jacobian is 1 in row 2, column 0, which is outside"):
        jacobian(f, np.array([1.0, 2.0, -3.0]), pattern)


# as transformations


@pytest.mark.parametrize("jac", [tg.func.jacrev, tg.func.jacfwd])
def test_jacobians_of_transformations(jac):
    pattern = chain_jacobian(X) != 0
    made = jac(chain, sparsity=pattern)(tg.from_numpy(X))
    assert isinstance(made, sparse.csr_array)
    np.testing.assert_allclose(made.toarray(), chain_jacobian(X), rtol=1e-12)
    np.testing.assert_allclose(made.toarray(), jac(chain)(tg.from_numpy(X)).numpy(), rtol=1e-12)
    by = "rows" if jac is tg.func.jacrev else "columns"
    again = jac(chain, sparsity=tg.func.colour(pattern, by))(X)  # an array, and a colouring made before
    assert (again != made).nnz == 0
    with pytest.raises(ValueError, match="outside the given sparsity; add the element to it"):
        jac(chain, sparsity=np.eye(38, 40))(X)
    with pytest.raises(ValueError, match=r"sparsity has shape \(40, 38\)"):
        jac(chain, sparsity=pattern.T)(X)


@pytest.mark.parametrize("jac", [tg.func.jacrev, tg.func.jacfwd])
def test_other_arguments_and_matrices(jac):
    f = lambda a, x: (a * x.T**2, "more")
    made, aux = jac(f, argnums=1, has_aux=True, sparsity=np.eye(6).reshape(2, 3, 6).transpose(1, 0, 2).reshape(6, 6))(
        tg.tensor(2.0, requires_grad=True), tg.from_numpy(np.arange(6.0).reshape(2, 3))
    )
    transposed = np.arange(6).reshape(2, 3).T.ravel()
    np.testing.assert_array_equal(made.toarray(), np.eye(6)[transposed] * 4 * transposed[:, None])
    assert aux == "more"


@pytest.mark.parametrize("jac", [tg.func.jacrev, tg.func.jacfwd])
def test_transformations_of_several_tensors_have_no_sparsity(jac):
    with pytest.raises(RuntimeError, match="one tensor that returns one tensor, but there are 1 and 2"):
        jac(lambda x: (x, x), sparsity=np.eye(3))(tg.ones(3))
    with pytest.raises(RuntimeError, match="one tensor that returns one tensor, but there are 2 and 1"):
        jac(lambda x, y: x * y, argnums=(0, 1), sparsity=np.eye(3))(tg.ones(3), tg.ones(3))


def test_importing_the_package_does_not_import_scipys_sparse_arrays():
    program = "import json, sys, tapegrad; print(json.dumps('scipy.sparse' in sys.modules)); tapegrad.func.sparsity_of"
    assert run(program)[0] is False
