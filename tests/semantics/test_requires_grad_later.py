"""Leaves whose `requires_grad` changes after they were used, leaves among the roots, and inputs that get zeros, as in PyTorch."""

import pytest

import tapegrad as tg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")


def two(lib):
    return [lib.tensor([v], dtype=lib.float64, requires_grad=True) for v in (1.0, 2.0)]


def function(lib):
    class Product(lib.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, g):
            a, b = ctx.saved_tensors
            return g * b, g * a

    return Product.apply


USES = {
    "product": lambda lib, a, b: a * b,
    "matmul": lambda lib, a, b: a[None] @ b[:, None],
    "sum of products": lambda lib, a, b: lib.einsum("i,i->", a, b),
    "cat of two": lambda lib, a, b: lib.cat([a, b]),
    "cat of four": lambda lib, a, b: lib.cat([a, b, a, b]),
    "stack": lambda lib, a, b: lib.stack([a, b, b]),
    "function": lambda lib, a, b: function(lib)(a, b),
    "view": lambda lib, a, b: a + b.reshape(1, 1),
    "indexed write": lambda lib, a, b: (a * 1).index_put((lib.tensor([0]),), b),
}


def numbers(*tensors):
    return [None if t is None else t.tolist() for t in tensors]


def nothing(lib, x, seen):
    pass


def has_a_gradient(lib, x, seen):
    x.grad = lib.tensor([7.0], dtype=lib.float64)


def has_hooks(lib, x, seen):
    x.register_hook(lambda g: seen.append(g.tolist()))
    x.register_post_accumulate_grad_hook(lambda t: seen.append(numbers(t.grad)))


# what happens to a leaf before it is used, and after
CASES = {
    "switched on": (lambda lib, x, seen: x.requires_grad_(False), lambda x, y: x.requires_grad_()),
    "switched off": (nothing, lambda x, y: x.requires_grad_(False)),
    "switched off with a gradient": (has_a_gradient, lambda x, y: x.requires_grad_(False)),
    "switched off with hooks": (has_hooks, lambda x, y: x.requires_grad_(False)),
    "switched off and on": (nothing, lambda x, y: x.requires_grad_(False).requires_grad_()),
    "detached in place": (nothing, lambda x, y: x.detach_()),
    "switched off by a hook": (nothing, lambda x, y: y.register_hook(lambda g: x.requires_grad_(False) and None)),
}


@pytest.mark.parametrize("create", [False, True], ids=["", "create_graph"])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("case", CASES)
def test_requires_grad_counts_as_pytorch_has_it(case, use, create):
    before, after = CASES[case]

    def outcome(lib):
        w, x = two(lib)
        seen = []
        before(lib, x, seen)
        y = USES[use](lib, w, x)
        after(x, y)
        y.sum().backward(create_graph=create)
        return seen, numbers(w.grad, x.grad)

    assert outcome(tg) == outcome(torch)


@pytest.mark.parametrize("create", [False, True], ids=["", "create_graph"])
@pytest.mark.parametrize("use", USES)
def test_the_other_leaf_may_be_asked_for(use, create):
    def outcome(lib):
        w, x = two(lib)
        y = USES[use](lib, w, x)
        x.requires_grad_(False)
        return numbers(*lib.autograd.grad(y.sum(), w, create_graph=create))

    assert outcome(tg) == outcome(torch)


@pytest.mark.parametrize("create", [False, True])
def test_a_switched_off_leaf_cannot_be_asked_for(create):
    w, x = two(tg)
    y = (w * x).sum()
    x.requires_grad_(False)
    with pytest.raises(RuntimeError, match="One of the differentiated Tensors does not require grad"):
        tg.autograd.grad(y, [w, x], create_graph=create)
    with pytest.raises(RuntimeError, match="does not require grad"):
        tg.autograd.backward(y, inputs=[x], create_graph=create)
    y.backward(create_graph=create)
    assert numbers(w.grad, x.grad) == [[2.0], None]


@pytest.mark.parametrize("lib", [tg, torch], ids=["tapegrad", "torch"])
@pytest.mark.parametrize("create", [False, True])
def test_a_leaf_that_became_a_result_cannot_collect_a_gradient(lib, create):
    w, x = two(lib)
    y = x * 3
    x.requires_grad_(False)
    x.mul_(w)
    with pytest.raises(RuntimeError, match="leaf variable has been moved into the graph interior"):
        y.sum().backward(retain_graph=True, create_graph=create)
    assert numbers(*lib.autograd.grad(x.sum(), w)) == [[2.0]]


def test_a_further_operand_without_gradient_dies():
    w, x = two(tg)
    x.requires_grad_(False)
    y = tg.cat([w, x, x, x])
    assert [node is None for node, _ in y.grad_fn.next_functions] == [False, True, True, True]
    x.requires_grad_()
    del x
    y.sum().backward()
    assert w.grad.tolist() == [1.0]


# leaves among the roots


def leaf_roots(lib, create):
    w, x = two(lib)
    one, five = (lib.tensor([v], dtype=lib.float64) for v in (1.0, 5.0))
    y, seen = w * x, []
    w.register_hook(lambda g: seen.append(("w", g.item())))
    x.register_hook(lambda g: seen.append(("x", g.item())))
    found = numbers(*lib.autograd.grad([w, y, x], [x], [one, one, five], retain_graph=True, create_graph=create))
    lib.autograd.backward([w, y, x], [one, one, five], inputs=[w], retain_graph=True, create_graph=create)
    return found, numbers(w.grad, x.grad), seen


@pytest.mark.parametrize("create", [False, True], ids=["", "create_graph"])
def test_hooks_of_leaf_roots_that_nobody_asks_for_do_not_run(create):
    assert leaf_roots(tg, create) == leaf_roots(torch, create)


@pytest.mark.parametrize("create", [False, True], ids=["", "create_graph"])
def test_several_leaf_roots_get_what_they_start_from(create):
    def run(lib):
        w, x = two(lib)
        one, five = (lib.tensor([v], dtype=lib.float64) for v in (1.0, 5.0))
        lib.autograd.backward([w, x, w * x, w], [one, five, one, five], create_graph=create)
        return numbers(w.grad, x.grad)

    assert run(tg) == run(torch)


# inputs that do not matter


@pytest.mark.parametrize("create", [False, True], ids=["", "create_graph"])
def test_zeros_for_unused_inputs_are_leaves_to_go_on_from(create):
    def run(lib):
        w, x = two(lib)
        g, h = lib.autograd.grad(w * 2, [x, w], create_graph=create, materialize_grads=True)
        if create:
            (g * g + 3 * g).sum().backward()
        return numbers(g, h, g.grad), g.requires_grad, g.is_leaf

    assert run(tg) == run(torch)


@pytest.mark.parametrize("create", [False, True], ids=["", "create_graph"])
@pytest.mark.parametrize("use", ["cat of four", "stack", "function"])
def test_operands_that_nobody_asks_for_get_nothing(use, create):
    def run(lib):
        w, x = two(lib)
        seen, v = [], x * 3
        for t in (w, x, v):
            t.register_hook(lambda g: seen.append(g.tolist()))
        v.retain_grad()
        y = USES[use](lib, w, v)
        (g,) = lib.autograd.grad(y.sum(), w, create_graph=create)
        return numbers(g, w.grad, x.grad, v.grad), seen

    assert run(tg) == run(torch)


@pytest.mark.parametrize("create", [False, True], ids=["", "create_graph"])
@pytest.mark.parametrize("roots", [1, 2])
def test_roots_that_lead_to_nothing_wanted(roots, create):
    def run(lib):
        w, x = two(lib)
        seen, v = [], x * 3
        v.retain_grad()
        v.register_hook(lambda g: seen.append(g.tolist()))
        one = lib.tensor([1.0], dtype=lib.float64)
        found = lib.autograd.grad([v, w][:roots], w, [one, one][:roots], create_graph=create, allow_unused=True)
        return numbers(*found, v.grad, x.grad, w.grad), seen

    assert run(tg) == run(torch)
