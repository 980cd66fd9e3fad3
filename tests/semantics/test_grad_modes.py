"""no_grad, enable_grad, set_grad_enabled, inference_mode, and who may require a gradient."""

import threading

import pytest

import tapegrad as tg
from tests.helpers import leaf, raises, same


@pytest.fixture(autouse=True)
def gradients_are_on_before_and_after():
    assert tg.is_grad_enabled()
    yield
    leaked = not tg.is_grad_enabled()
    tg.set_grad_enabled(True)
    assert not leaked


# ---- context managers ----


@pytest.mark.parametrize(
    ("mode", "inside"),
    [
        (tg.no_grad, False),
        (tg.enable_grad, True),
        (lambda: tg.set_grad_enabled(False), False),
        (lambda: tg.set_grad_enabled(True), True),
        (tg.inference_mode, False),
        (lambda: tg.inference_mode(True), False),
        (lambda: tg.inference_mode(False), True),
    ],
    ids=["no_grad", "enable_grad", "set False", "set True", "inference", "inference True", "inference False"],
)
def test_mode_inside_and_after(mode, inside):
    with mode():
        assert tg.is_grad_enabled() is inside
        assert (leaf([1.0]) * 2).requires_grad is inside
    assert tg.is_grad_enabled() is True
    assert (leaf([1.0]) * 2).requires_grad


def test_results_under_no_grad_are_plain_leaves():
    x = leaf([1.0, 2.0])
    with tg.no_grad():
        y = x * x
    assert y.grad_fn is None
    assert y.is_leaf
    assert not y.requires_grad
    same(y, [1.0, 4.0])


def test_a_leaf_made_under_no_grad_may_require_grad():
    with tg.no_grad():
        x = leaf([1.0])
        assert x.requires_grad
    (x * 3).sum().backward()
    same(x.grad, [3.0])


def test_a_view_taken_under_no_grad_does_not_pass_gradients():
    x = leaf([1.0, 2.0])
    with tg.no_grad():
        v = x[:1]
    assert v.grad_fn is None
    assert v.data_ptr() == x.data_ptr()


def test_backward_under_no_grad_walks_an_earlier_graph():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    with tg.no_grad():
        y.backward()
    same(x.grad, [2.0, 4.0])


def test_backward_of_a_no_grad_result_is_refused():
    x = leaf([1.0])
    with (
        tg.no_grad(),
        raises("element 0 of tensors does not require grad and does not have a grad_fn"),
    ):
        x.sum().backward()


def test_nesting_restores_each_level():
    with tg.no_grad():
        with tg.enable_grad():
            assert tg.is_grad_enabled()
            with tg.no_grad():
                assert not tg.is_grad_enabled()
            assert tg.is_grad_enabled()
        assert not tg.is_grad_enabled()
        with tg.no_grad():
            pass
        assert not tg.is_grad_enabled()


def test_enable_grad_inside_no_grad_records():
    x = leaf(3.0)
    with tg.no_grad(), tg.enable_grad():
        y = x * x
    y.backward()
    same(x.grad, 6.0)


def test_one_object_may_be_entered_again():
    mode = tg.no_grad()
    for _ in range(2):
        with mode:
            assert not tg.is_grad_enabled()
        assert tg.is_grad_enabled()


@pytest.mark.parametrize("mode", [tg.no_grad, lambda: tg.set_grad_enabled(False), tg.inference_mode])
def test_an_exception_restores_the_mode(mode):
    with pytest.raises(ZeroDivisionError), mode():
        1 / 0  # noqa: B018
    assert tg.is_grad_enabled()


def test_set_grad_enabled_acts_when_called():
    tg.set_grad_enabled(False)
    try:
        assert not tg.is_grad_enabled()
        assert not (leaf([1.0]) * 2).requires_grad
    finally:
        tg.set_grad_enabled(True)
    assert (leaf([1.0]) * 2).requires_grad


# ---- decorators ----


@pytest.mark.parametrize(
    ("decorate", "inside"),
    [
        (tg.no_grad(), False),
        (tg.no_grad, False),
        (tg.enable_grad(), True),
        (tg.enable_grad, True),
        (tg.inference_mode(), False),
        (tg.inference_mode, False),
        (tg.set_grad_enabled(True), True),
    ],
    ids=["no_grad()", "no_grad", "enable_grad()", "enable_grad", "inference()", "inference", "set True"],
)
def test_decorated_function(decorate, inside):
    @decorate
    def f(x, *, k):
        """doc"""
        return x * k, tg.is_grad_enabled()

    assert f.__name__ == "f"
    assert f.__doc__ == "doc"
    with tg.set_grad_enabled(not inside):
        y, enabled = f(leaf([2.0]), k=3)
        assert enabled is inside
        assert tg.is_grad_enabled() is not inside
    assert y.requires_grad is inside
    assert tg.is_grad_enabled()


def test_set_grad_enabled_as_decorator_does_not_leak():
    @tg.set_grad_enabled(False)
    def f():
        return tg.is_grad_enabled()

    assert tg.is_grad_enabled()
    assert f() is False
    assert tg.is_grad_enabled()


def test_decorated_function_that_raises():
    @tg.no_grad()
    def f():
        raise KeyError("x")

    with pytest.raises(KeyError):
        f()
    assert tg.is_grad_enabled()


@pytest.mark.parametrize("decorate", [tg.no_grad(), tg.no_grad], ids=["parentheses", "bare"])
def test_decorated_generator_switches_only_while_it_runs(decorate):
    @decorate
    def f(x):
        for k in range(3):
            yield (x * k).requires_grad, tg.is_grad_enabled()

    seen = []
    for item in f(leaf([1.0])):
        assert tg.is_grad_enabled()
        seen.append(item)
    assert seen == [(False, False)] * 3


def test_decorated_generator_send_throw_and_return():
    @tg.no_grad()
    def f():
        got = yield "ready"
        try:
            yield got, tg.is_grad_enabled()
        except KeyError:
            yield "caught", tg.is_grad_enabled()
        return "done"

    g = f()
    assert next(g) == "ready"
    assert g.send(5) == (5, False)
    assert g.throw(KeyError()) == ("caught", False)
    assert tg.is_grad_enabled()
    with pytest.raises(StopIteration) as end:
        next(g)
    assert end.value.value == "done"


def test_decorated_generator_closed_early():
    closed = []

    @tg.no_grad()
    def f():
        try:
            yield 1
        finally:
            closed.append(tg.is_grad_enabled())

    g = f()
    next(g)
    g.close()
    assert closed == [False]
    assert tg.is_grad_enabled()


# ---- threads ----


def in_thread(f):
    out = []
    t = threading.Thread(target=lambda: out.append(f()))
    t.start()
    t.join()
    return out[0]


def test_a_new_thread_starts_with_gradients_on():
    with tg.no_grad():
        assert in_thread(tg.is_grad_enabled) is True


def test_a_thread_does_not_change_its_parent():
    def switch():
        tg.set_grad_enabled(False)
        return tg.is_grad_enabled()

    assert in_thread(switch) is False
    assert tg.is_grad_enabled()


# ---- inference tensors ----


def inferred(values=(1.0, 2.0)):
    with tg.inference_mode():
        return leaf(values) * 1


def test_inference_tensors_say_so():
    x = leaf([1.0])
    with tg.inference_mode():
        y = x * 2
        assert tg.is_inference_mode_enabled()
    assert not tg.is_inference_mode_enabled()
    assert y.is_inference()
    assert not y.requires_grad
    assert not x.is_inference()
    assert not (x * 2).is_inference()


def test_inference_tensor_may_be_used_in_unrecorded_arithmetic():
    y = inferred() + 1
    assert not y.is_inference()
    same(y, [2.0, 3.0])


def test_inference_tensor_cannot_be_saved_for_backward():
    y, x = inferred(), leaf([1.0, 1.0])
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        y * x
    (x * x).sum().backward()
    same(x.grad, [2.0, 2.0])


def test_inference_tensor_in_an_addition_passes_gradients():
    y, x = inferred(), leaf([1.0, 1.0])
    (x + y).sum().backward()
    same(x.grad, [1.0, 1.0])


def test_inference_tensor_cannot_be_written_to_outside():
    y = inferred()
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        y.add_(1)
    with tg.inference_mode():
        assert y.fill_(5) is y
    same(y, [5.0, 5.0])


def test_inference_tensor_cannot_require_grad_but_its_clone_can():
    y = inferred()
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        y.requires_grad_()
    c = y.clone().requires_grad_()
    assert not c.is_inference()
    (c * 2).sum().backward()
    same(c.grad, [2.0, 2.0])


def test_inference_tensor_has_no_version_counter():
    with pytest.raises(RuntimeError, match="Inference tensors do not track version counter"):
        inferred()._version  # noqa: B018


def test_inference_mode_false_inside_inference_mode():
    x = leaf([1.0])
    with tg.inference_mode(), tg.inference_mode(False):
        y = x * 2
    assert y.requires_grad


# ---- requires_grad ----


def test_requires_grad_is_inherited():
    x, c = leaf([1.0]), tg.ones(1, dtype=tg.float64)
    assert (x + c).requires_grad
    assert not (c + c).requires_grad
    assert (c + c).is_leaf
    assert not (x + c).is_leaf
    assert x.is_leaf


def test_requires_grad_returns_self_and_can_be_undone():
    c = tg.ones(2)
    assert c.requires_grad_() is c
    assert c.requires_grad
    c.requires_grad = False
    assert not (c * 2).requires_grad


def test_requires_grad_true_on_a_non_leaf_is_allowed():
    assert (leaf([1.0]) * 2).requires_grad_(True).requires_grad


@pytest.mark.parametrize("change", [lambda y: y.requires_grad_(False), lambda y: setattr(y, "requires_grad", False)])
def test_requires_grad_false_on_a_non_leaf_is_refused(change):
    y = leaf([1.0]) * 2
    with raises(
        "you can only change requires_grad flags of leaf variables. If you want to use a computed variable "
        "in a subgraph that doesn't require differentiation use var_no_grad = var.detach()."
    ):
        change(y)
    assert y.requires_grad


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "bool"])
def test_integers_cannot_require_grad(dtype):
    dtype = getattr(tg, dtype)
    for make in (lambda **k: tg.tensor([1, 0], **k), lambda **k: tg.ones(2, **k)):
        with raises("Only Tensors of floating point and complex dtype can require gradients"):
            make(dtype=dtype, requires_grad=True)
    c = tg.ones(2, dtype=dtype)
    with pytest.raises(RuntimeError, match=r"(?i)only Tensors of floating point (and complex )?dtype"):
        c.requires_grad_()
    with pytest.raises(RuntimeError, match=r"(?i)only Tensors of floating point (and complex )?dtype"):
        c.requires_grad = True
    assert c.requires_grad_(False).requires_grad is False
