"""Views: which operations share storage, what they look like, and how gradients pass through them."""

import numpy as np
import pytest

import tapegrad as tg
from tests.helpers import leaf, same, vals


def cube(**options):
    return tg.arange(24.0, dtype=tg.float64, **options).reshape(2, 3, 4)


# name: (tapegrad, NumPy) on an array of shape (2, 3, 4)
VIEWS = {
    "view": (lambda t: t.view(6, 4), lambda a: a.reshape(6, 4)),
    "view -1": (lambda t: t.view(2, -1), lambda a: a.reshape(2, 12)),
    "view_as": (lambda t: t.view_as(tg.ones(4, 6)), lambda a: a.reshape(4, 6)),
    "reshape": (lambda t: t.reshape(3, 8), lambda a: a.reshape(3, 8)),
    "flatten": (lambda t: t.flatten(1), lambda a: a.reshape(2, 12)),
    "unflatten": (lambda t: t.unflatten(2, (2, 2)), lambda a: a.reshape(2, 3, 2, 2)),
    "t": (lambda t: t[0].t(), lambda a: a[0].T),
    "T": (lambda t: t[1].T, lambda a: a[1].T),
    "mT": (lambda t: t.mT, lambda a: a.swapaxes(1, 2)),
    "permute": (lambda t: t.permute(2, 0, 1), lambda a: a.transpose(2, 0, 1)),
    "transpose": (lambda t: t.transpose(0, -1), lambda a: a.swapaxes(0, 2)),
    "movedim": (lambda t: t.movedim(0, 2), lambda a: np.moveaxis(a, 0, 2)),
    "slice": (lambda t: t[:, 1:, ::2], lambda a: a[:, 1:, ::2]),
    "ellipsis": (lambda t: t[..., 1:3], lambda a: a[..., 1:3]),
    "none": (lambda t: t[None, 1, :, None], lambda a: a[None, 1, :, None]),
    "int": (lambda t: t[1, 2], lambda a: a[1, 2]),
    "select": (lambda t: t.select(1, 2), lambda a: a[:, 2]),
    "narrow": (lambda t: t.narrow(2, 1, 2), lambda a: a[:, :, 1:3]),
    "squeeze": (lambda t: t[:1].squeeze(0), lambda a: a[0]),
    "squeeze all": (lambda t: t[:1, :, :1].squeeze(), lambda a: a[0, :, 0]),
    "unsqueeze": (lambda t: t.unsqueeze(-1), lambda a: a[..., None]),
    "expand": (lambda t: t[:, :1].expand(2, 5, 4), lambda a: np.broadcast_to(a[:, :1], (2, 5, 4))),
    "expand -1": (lambda t: t.expand(3, -1, -1, -1), lambda a: np.broadcast_to(a, (3, 2, 3, 4))),
    "expand_as": (lambda t: t[0, 0].expand_as(tg.ones(2, 4)), lambda a: np.broadcast_to(a[0, 0], (2, 4))),
    "unbind": (lambda t: t.unbind(1)[2], lambda a: a[:, 2]),
    "chunk": (lambda t: t.chunk(2, 1)[1], lambda a: a[:, 2:]),
    "split": (lambda t: t.split(2, dim=2)[1], lambda a: a[:, :, 2:]),
    "split sizes": (lambda t: t.split([1, 3], dim=-1)[1], lambda a: a[:, :, 1:]),
    "iteration": (lambda t: list(t)[1], lambda a: a[1]),
    "diagonal": (lambda t: t.diagonal(0, 1, 2), lambda a: a.diagonal(0, 1, 2)),
    "diagonal offset": (lambda t: t.diagonal(1, 0, 2), lambda a: a.diagonal(1, 0, 2)),
}

each_view = pytest.mark.parametrize("name", VIEWS)


@each_view
def test_view_has_the_values_and_strides_of_numpy(name):
    view, reference = VIEWS[name]
    x = cube()
    v, r = view(x), reference(vals(x).copy())
    assert tuple(v.shape) == r.shape
    same(v, r)
    assert v.is_contiguous() == r.flags.c_contiguous
    same(v.contiguous(), r)
    assert v.contiguous().is_contiguous()


@each_view
def test_view_shares_storage_both_ways(name):
    view, reference = VIEWS[name]
    x = cube()
    v = view(x)
    x.fill_(7)
    same(v, np.full(v.shape, 7.0))
    x.copy_(cube())
    hit = np.zeros((2, 3, 4), bool)
    places = reference(np.arange(24).reshape(2, 3, 4))
    hit.ravel()[places.ravel()] = True
    v.zero_()
    same(x, np.where(hit, 0.0, vals(cube())))


@each_view
def test_view_knows_its_base(name):
    view, _ = VIEWS[name]
    x = tg.zeros(2, 3, 4)
    assert not x._is_view()
    assert x._base is None
    v = view(x)
    assert v._is_view()
    assert v._base is x
    assert view(v[..., :] if v.dim() == 0 else x[:])._base is x


@each_view
def test_gradient_of_a_view(name):
    view, reference = VIEWS[name]
    x = leaf(np.arange(24.0).reshape(2, 3, 4))
    y = view(x)
    g = np.random.default_rng(0).standard_normal(tuple(y.shape))
    y.backward(tg.tensor(g))
    places = reference(np.arange(24).reshape(2, 3, 4))
    expected = np.bincount(places.ravel(), g.ravel(), minlength=24).reshape(2, 3, 4)
    np.testing.assert_allclose(vals(x.grad), expected, rtol=1e-12, atol=1e-12)


@each_view
def test_gradient_through_a_view_of_a_result(name):
    view, reference = VIEWS[name]
    x = leaf(np.arange(24.0).reshape(2, 3, 4))
    y = view(x * x)
    (y * y).sum().backward()
    places = reference(np.arange(24).reshape(2, 3, 4)).ravel()
    expected = np.bincount(places, minlength=24).reshape(2, 3, 4) * 4 * vals(x) ** 3
    np.testing.assert_allclose(vals(x.grad), expected, rtol=1e-12)


# ---- what is a copy ----


@pytest.mark.parametrize(
    "copy",
    [
        lambda t: t.clone(),
        lambda t: t[[0, 1]],
        lambda t: t[t > -1],
        lambda t: t.permute(2, 1, 0).reshape(24),
        lambda t: t.mT.contiguous(),
        lambda t: t.repeat(1, 1, 1),
        lambda t: t + 0,
        lambda t: tg.cat([t]),
        lambda t: tg.tensor(t.tolist()),
    ],
    ids=["clone", "list", "mask", "reshape", "contiguous", "repeat", "add", "cat", "tensor"],
)
def test_a_copy_shares_nothing(copy):
    x = cube()
    y = copy(x)
    before = vals(y).copy()
    x.zero_()
    same(y, before)
    assert not y._is_view()
    assert y.data_ptr() != x.data_ptr()


def test_contiguous_of_a_contiguous_tensor_is_itself():
    x = tg.ones(2, 3)
    assert x.contiguous() is x
    assert x.view(2, 3) is not x
    assert x.reshape(6).data_ptr() == x.data_ptr()


def test_detach_shares_storage_but_not_the_graph():
    x = leaf([1.0, 2.0])
    y = x * 2
    d = y.detach()
    assert not d.requires_grad
    assert d.is_leaf
    assert d._base is None
    assert d.data_ptr() == y.data_ptr()
    d[0] = 50
    same(y, [50.0, 4.0])
    y.sum().backward()
    same(x.grad, [2.0, 2.0])


# ---- layout ----


def test_strides_count_elements():
    x = tg.zeros(2, 3, 4)
    assert x.stride() == (12, 4, 1)
    assert x.stride(1) == x.stride(-2) == 4
    assert x.mT.stride() == (12, 1, 4)
    assert x[:, ::2].stride() == (12, 8, 1)
    assert x.expand(5, 2, 3, 4).stride() == (0, 12, 4, 1)
    assert x[0].diagonal().stride() == (5,)


def test_storage_offset_and_data_ptr():
    x = tg.zeros(2, 3)
    v = x[1, 1:]
    assert v.storage_offset() == 4
    assert v.data_ptr() == x.data_ptr() + 4 * x.element_size()
    assert tg.zeros(2, 3).data_ptr() != x.data_ptr()


def test_view_of_incompatible_strides_is_refused():
    x = leaf(np.arange(6.0).reshape(2, 3))
    with pytest.raises(RuntimeError, match=r"^view size is not compatible with input tensor's size and"):
        x.t().view(6)
    (x.t().reshape(6) * tg.arange(6.0)).sum().backward()
    same(x.grad, [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]])


def test_view_that_merges_no_dimension_works_on_any_strides():
    x = cube().transpose(0, 1)
    same(x.view(3, 2, 2, 2), vals(x).reshape(3, 2, 2, 2))
    assert x.view(3, 2, 2, 2).data_ptr() == x.data_ptr()


def test_writing_to_an_expanded_tensor_is_refused():
    x = tg.ones(1)
    e = x.expand(3)
    for write in (
        lambda: e.add_(1),
        lambda: e.copy_(tg.arange(3.0)),
        lambda: e.__setitem__(slice(None), x + e),
    ):
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor refers to a single"):
            write()
    same(x, [1.0])
    e[0] = 5
    same(e, [5.0, 5.0, 5.0])


def test_overlapping_shifted_write_is_refused():
    x = tg.arange(4.0)
    with pytest.raises(RuntimeError, match="some elements of the input tensor and the written-to tensor"):
        x[1:].add_(x[:-1])
    same(x, [0.0, 1.0, 2.0, 3.0])


# ---- writing to views of non-leaves ----


@pytest.mark.parametrize(
    ("write", "read", "gradient"),
    [
        (lambda y, a, b: a.mul_(3), lambda y, a, b: y, [3, 3, 1]),
        (lambda y, a, b: a.mul_(3), lambda y, a, b: b, [0, 3, 1]),
        (lambda y, a, b: a.mul_(3), lambda y, a, b: a, [3, 3, 0]),
        (lambda y, a, b: y.mul_(3), lambda y, a, b: b, [0, 3, 3]),
        (lambda y, a, b: (a.mul_(3), b.mul_(5)), lambda y, a, b: y, [3, 15, 5]),
        (lambda y, a, b: (a.mul_(3), y.add_(1), b.zero_()), lambda y, a, b: y, [3, 0, 0]),
        (lambda y, a, b: a[1:].mul_(7), lambda y, a, b: b, [0, 7, 1]),
        (lambda y, a, b: a.copy_(y[1:] * 2), lambda y, a, b: y, [0, 2, 3]),
    ],
    ids=["base", "sibling", "itself", "down", "both", "three", "view-of-view", "shifted"],
)
def test_base_and_views_see_the_new_graph(write, read, gradient):
    x = leaf([1.0, 2.0, 3.0])
    y = x * 1
    a, b = y[:2], y[1:]
    write(y, a, b)
    read(y, a, b).sum().backward()
    same(x.grad, gradient)


def test_a_view_written_to_several_times_is_the_part_of_its_base_it_shows():
    x, v = leaf([[0.5, -1.0, 2.0], [0.25, 3.0, -0.75]]), leaf([1.0, -2.0, 0.5])
    base = x * 1
    row = base[1]
    row *= v
    same(row, [0.25, -6.0, -0.375])
    row.mul_(v).add_(v)
    last = np.array([0.25, 3.0, -0.75]) * vals(v) ** 2 + vals(v)
    same(row, last)
    same(base[1], last)
    assert row.data_ptr() == base[1].data_ptr()
    to_x, to_v = tg.autograd.grad((base * 2).sum() + row.sum(), [x, v])
    same(to_x, np.stack([np.full(3, 2.0), 3 * vals(v) ** 2]))
    same(to_v, 3 * (2 * vals(v) * np.array([0.25, 3.0, -0.75]) + 1))


def test_a_constant_base_joins_the_graph_through_its_view():
    x, c = leaf([5.0]), tg.zeros(3, dtype=tg.float64)
    c[1:2].copy_(x)
    assert c.requires_grad
    (c * c).sum().backward()
    same(x.grad, [10.0])


@pytest.mark.parametrize("split", [lambda y: y.unbind(0), lambda y: y.split(1), lambda y: y.chunk(2)])
def test_writing_to_one_of_several_views_is_refused(split):
    x = leaf([1.0, 2.0])
    part = split(x * 1)[0]
    with pytest.raises(RuntimeError, match=r"is a view and is being modified inplace.*multiple views"):
        part.mul_(2)
