"""gradcheck and gradgradcheck: what passes, what is caught, and with which words."""

import re
import warnings

import pytest

import tapegrad as tg
from tapegrad.autograd import checks, gradcheck, gradgradcheck
from tapegrad.autograd.gradcheck import GradcheckError
from tests.helpers import leaf, raises

both_modes = pytest.mark.parametrize("fast", [False, True])


X = [[0.3, -1.2, 2.0], [0.7, 1.1, -0.4]]


def with_backward(backward):
    """Twice its argument, with a backward of gradient and argument."""

    class Twice(tg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return backward(g, *ctx.saved_tensors)

    return Twice.apply


@pytest.fixture
def twisted(monkeypatch):
    """Replace `autograd.grad` as gradcheck sees it by a function of the right one and a call's arguments."""

    def install(fault):
        right = checks.grad
        monkeypatch.setattr(checks, "grad", lambda *args, **named: fault(right, *args, **named))

    return install


# ---- right derivatives pass ----

SMOOTH = {
    "sin": (lambda x: x.sin(), [X]),
    "product": (lambda x, y: x * y, [X, [1.5, -0.5, 2.5]]),
    "quotient": (lambda x, y: x / (y * y + 1), [X, [1.5, -0.5, 2.5]]),
    "matrix product": (lambda x, y: x @ y, [X, [[1.0], [2.0], [-1.0]]]),
    "two outputs": (lambda x: (x.exp(), (x * x).sum()), [X]),
    "list of outputs": (lambda x: [x * 2, x**3], [X]),
    "views": (lambda x: x.t()[1:].reshape(-1) * x.view(6)[:4], [X]),
    "0-d": (lambda x: x.tanh() * x, [0.5]),
    "one of the outputs is constant": (lambda x: (x.sin(), tg.ones(2)), [X]),
    "input unused": (lambda x, y: y.exp(), [X, [1.0]]),
    "identity": (lambda x: x, [X]),
    "integers beside": (lambda x: (x.argmax(), x * x), [X]),
}


@both_modes
@pytest.mark.parametrize("name", SMOOTH)
def test_right_gradients_pass(name, fast):
    f, values = SMOOTH[name]
    assert gradcheck(f, tuple(leaf(v) for v in values), fast_mode=fast) is True


@both_modes
@pytest.mark.parametrize("name", sorted(set(SMOOTH) - {"identity"}))
def test_right_second_derivatives_pass(name, fast):
    f, values = SMOOTH[name]
    assert gradgradcheck(f, tuple(leaf(v) for v in values), fast_mode=fast) is True


def test_one_tensor_needs_no_tuple():
    assert gradcheck(tg.sin, leaf([1.0, 2.0]))
    assert gradgradcheck(tg.sin, leaf([1.0, 2.0]))


def test_inputs_are_a_list_with_constants_and_other_values():
    assert gradcheck(lambda x, y, n: (x * y) ** n, [leaf([1.0, 2.0]), tg.tensor([3.0, 4.0], dtype=tg.float64), 2])


def test_inputs_that_are_not_contiguous():
    x = tg.arange(1.0, 7.0, dtype=tg.float64).reshape(2, 3).t().requires_grad_()
    assert not x.is_contiguous()
    assert gradcheck(lambda x: x.log() * x, (x,))
    assert gradgradcheck(lambda x: x.log() * x, (x,), gen_non_contig_grad_outputs=True)


def test_an_input_without_elements():
    assert gradcheck(lambda x, y: x.sum() * y, (leaf([]), leaf(2.0)))
    assert gradcheck(lambda x: x[:0], (leaf([1.0, 2.0]),))
    assert gradcheck(lambda x: x[:0], (leaf([1.0, 2.0]),), fast_mode=True)


def test_an_input_that_is_a_result():
    x = leaf([1.0, 2.0])
    assert gradcheck(lambda y: y * y, (x * 3,))


def test_the_same_tensor_twice():
    x = leaf([1.0, 2.0])
    assert gradcheck(lambda a, b: a * b, (x, x))


def test_inputs_and_generator_are_left_as_they_were():
    x = leaf(X)
    before, version = x.tolist(), x._version
    tg.manual_seed(3)
    expected = tg.rand(2).tolist()
    tg.manual_seed(3)
    assert gradcheck(lambda x: x.sin(), (x,), fast_mode=True)
    assert gradgradcheck(lambda x: x.sin(), (x,))
    assert tg.rand(2).tolist() == expected
    assert x.tolist() == before
    assert x._version == version
    assert x.grad is None


def test_inputs_are_put_back_after_an_error():
    x = leaf([1.0, 2.0])

    def f(x):
        if x[1].item() != 2.0:
            raise KeyError("moved")
        return x * 2

    with pytest.raises(KeyError):
        gradcheck(f, (x,))
    assert x.tolist() == [1.0, 2.0]


def test_a_captured_input_is_moved_too():
    x = leaf([1.0, 2.0])
    assert gradcheck(lambda _: x * x, (x,))


# ---- wrong ones do not ----


def half_of_the_derivative(x):
    return x * x.detach()


def mismatch(tg, f, values, **options):
    x = tg.tensor(values, dtype=tg.float64, requires_grad=True)
    with pytest.raises(RuntimeError) as caught:
        tg.autograd.gradcheck(f, (x,), **options)
    return str(caught.value).replace("torch.", "tapegrad.")


def test_a_detached_factor_is_caught_and_both_jacobians_shown():
    message = mismatch(tg, half_of_the_derivative, [1.0, 2.0])
    assert message == (
        "Jacobian mismatch for output 0 with respect to input 0,\n"
        "numerical:tensor([[2.0000, 0.0000],\n        [0.0000, 4.0000]], dtype=tapegrad.float64)\n"
        "analytical:tensor([[1., 0.],\n        [0., 2.]], dtype=tapegrad.float64)\n"
    )


def test_the_message_is_that_of_pytorch():
    torch = pytest.importorskip("torch")

    def f(x):
        return x.sum(), x * 0.5 * x.detach()

    ours = mismatch(tg, f, [0.5, 3.0])
    assert ours.startswith("Jacobian mismatch for output 1 with respect to input 0,\n")
    assert ours == mismatch(torch, f, [0.5, 3.0])


def test_fast_mode_shows_the_jacobians_too():
    message = mismatch(tg, half_of_the_derivative, [1.0, 2.0], fast_mode=True)
    assert message.startswith("Jacobian mismatch for output 0 with respect to input 0,\nnumerical:tensor(")
    assert "Analytical:\ntensor([[1., 0.],\n        [0., 2.]], dtype=tapegrad.float64)" in message
    assert "The max per-element difference (slow mode) is: 2.0000000" in message
    assert "might've passed" not in message


def test_fast_mode_says_when_the_elements_agree():
    # right for each row of the Jacobian, wrong for their combinations
    f = with_backward(lambda g, x: 2 * g if (g != 0).sum() < 2 else 3 * g)
    with pytest.raises(GradcheckError, match=r"might've passed in slow_mode"):
        gradcheck(f, (leaf([1.0, 2.0]),), fast_mode=True)


@both_modes
def test_a_detached_factor_in_the_second_of_two_inputs(fast):
    with pytest.raises(GradcheckError, match=r"for output 0 with respect to input 1"):
        gradcheck(lambda x, y: x * y * y.detach(), (leaf(X), leaf([1.0, 2.0, 3.0])), fast_mode=fast)


@both_modes
def test_without_exceptions_a_wrong_gradient_is_false(fast):
    x = leaf([1.0, 2.0])
    assert gradcheck(half_of_the_derivative, (x,), raise_exception=False, fast_mode=fast) is False
    assert gradgradcheck(half_of_the_derivative, (x,), raise_exception=False, fast_mode=fast) is False


@both_modes
def test_a_wrong_second_derivative_is_caught_where_the_first_is_right(fast):
    f = with_backward(lambda g, x: g * (1 + (x / x.detach())))
    x = leaf([0.5, 2.0])
    assert gradcheck(f, (x,), fast_mode=fast)
    with pytest.raises(GradcheckError, match=r"^Jacobian mismatch for output 0 with respect to input 0"):
        gradgradcheck(f, (x,), fast_mode=fast)


def test_tolerances():
    x = leaf([1.0, 2.0])

    def slightly_wrong(x):
        return x + 1e-3 * x.detach()

    assert not gradcheck(slightly_wrong, (x,), rtol=0, raise_exception=False)
    assert gradcheck(slightly_wrong, (x,), rtol=0, atol=2e-3)
    assert gradcheck(slightly_wrong, (x,), atol=0, rtol=2e-3)


@both_modes
def test_an_output_outside_the_graph_must_not_change(fast):
    x = leaf([1.0, 2.0])
    with pytest.raises(GradcheckError, match=r"^Numerical gradient for function expected to be zero$"):
        gradcheck(lambda x: x.detach() * 2, (x,), fast_mode=fast)
    assert gradcheck(lambda x: (tg.zeros(3), x.argmax()), (x,), fast_mode=fast)


def test_nan_is_not_right():
    assert not gradcheck(lambda x: x.sqrt(), (leaf([0.0]),), raise_exception=False)


# ---- what a faulty backward does ----


@both_modes
def test_a_backward_that_changes_from_run_to_run(fast):
    calls = []

    def backward(g, x):
        calls.append(1)
        return 2 * g * (1 + 1e-7 * len(calls))

    x = leaf([1.0, 2.0])
    with pytest.raises(GradcheckError, match=r"^Backward is not reentrant.*The tolerance for nondeterminism was 0.0"):
        gradcheck(with_backward(backward), (x,), fast_mode=fast)
    assert gradcheck(with_backward(backward), (x,), fast_mode=fast, nondet_tol=1e-3)


def test_a_backward_that_adds_something():
    f = with_backward(lambda g, x: 2 * g + 1e-9)
    x = leaf([1.0, 2.0])
    with pytest.raises(GradcheckError, match=r"^backward not multiplied by grad_output$"):
        gradcheck(f, (x,))
    assert gradcheck(f, (x,), masked=True)


def test_a_hook_that_adds_something():
    def f(x):
        y = x.clone()
        y.register_hook(lambda g: g + 1e-2)
        return y

    with pytest.raises(GradcheckError, match=r"^backward not multiplied by grad_output$"):
        gradcheck(f, (leaf([1.0]),), atol=1e-1)


def test_a_gradient_of_another_size(twisted):
    twisted(lambda right, *args, **named: tuple(g.reshape(1, -1) for g in right(*args, **named)))
    with pytest.raises(GradcheckError, match=r"^Analytical gradient has incorrect size"):
        gradcheck(tg.sin, (leaf([1.0, 2.0]),))


def test_a_gradient_of_another_dtype(twisted):
    twisted(lambda right, *args, **named: tuple(g.float() for g in right(*args, **named)))
    with pytest.raises(GradcheckError, match=r"^Gradient has dtype mismatch"):
        gradcheck(tg.sin, (leaf([1.0, 2.0]),), check_grad_dtypes=True)
    with pytest.raises(GradcheckError, match=r"^grad is incorrect type$"):
        gradcheck(tg.sin, (leaf([1.0, 2.0]),))


@both_modes
def test_batched_gradients(twisted, fast):
    x, y = leaf(X), leaf([1.0, 2.0, 3.0])
    assert gradcheck(lambda x, y: (x * y, x.sum()), (x, y), check_batched_grad=True, fast_mode=fast)
    assert gradgradcheck(lambda x, y: x * y, (x, y), check_batched_grad=True, fast_mode=fast)

    def fault(right, *args, is_grads_batched=False, **named):
        found = right(*args, is_grads_batched=is_grads_batched, **named)
        return tuple(g * 2 for g in found) if is_grads_batched else found

    twisted(fault)
    with pytest.raises(
        GradcheckError, match=r"(?s)^For output 0 and input 0:.*`check_batched_grad=False`.*Got:.*Expected:"
    ):
        gradcheck(tg.sin, (x,), check_batched_grad=True, fast_mode=fast)


def test_batched_gradients_that_fail(twisted):
    def fault(right, *args, is_grads_batched=False, **named):
        if is_grads_batched:
            raise RuntimeError("no batches here")
        return right(*args, **named)

    twisted(fault)
    with pytest.raises(GradcheckError, match=r"^While computing batched gradients, got: no batches here"):
        gradcheck(tg.sin, (leaf([1.0]),), check_batched_grad=True)


def three_results(undefined):
    """A value's sine, cosine and double; `undefined` is called when exactly one of their gradients is None."""

    class Three(tg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.set_materialize_grads(False)
            return x.sin(), x.cos(), 2 * x

        @staticmethod
        def backward(ctx, *grads):
            (x,) = ctx.saved_tensors
            slopes = x.cos(), -x.sin(), 2
            total = sum(g * slope for g, slope in zip(grads, slopes) if g is not None)
            return total + undefined() if sum(g is None for g in grads) == 1 else total

    return Three.apply


def refuse():
    raise TypeError("unsupported operand type(s) for *: 'NoneType' and 'Tensor'")


def test_undefined_gradients():
    x = leaf([1.0, 2.0])
    assert gradcheck(three_results(lambda: 0), (x,))
    assert gradgradcheck(three_results(lambda: 0), (x,))
    for fault in (lambda: 1, refuse):
        with pytest.raises(GradcheckError, match=r"^Expected backward function to handle undefined output grads"):
            gradcheck(three_results(fault), (x,))
        assert gradcheck(three_results(fault), (x,), check_undefined_grad=False)


# ---- inputs and outputs that are refused ----


def test_no_input_requires_grad():
    x = tg.ones(2, dtype=tg.float64)
    message = (
        "gradcheck expects at least one input tensor to require gradient, but none of them have requires_grad=True."
    )
    with raises(message, ValueError):
        gradcheck(tg.sin, (x,))
    with raises(message, ValueError):
        gradcheck(tg.sin, x, raise_exception=False)


def test_single_precision_is_warned_about():
    x = leaf([1.0, 2.0], tg.float32)
    message = (
        "Input #1 requires gradient and is not a double precision floating point or complex. This check will likely fail if all "
        "the inputs are not of double precision floating point or complex. "
    )
    with pytest.warns(UserWarning, match="^" + re.escape(message) + "$") as caught:
        gradcheck(lambda n, x: x * n, (2, x), eps=1e-2, atol=1e-2)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # one that does not require grad is not moved
        gradcheck(lambda c, x: x * c, (tg.ones(2), leaf([1.0, 2.0])))


def test_expanded_input():
    x = leaf([1.0]).expand(3)
    message = (
        "The 0th input has a dimension with stride 0. gradcheck only supports inputs that are non-overlapping to be able to compute "
        "the numerical gradients correctly. You should call .contiguous on the input before passing it to gradcheck."
    )
    with raises(message, RuntimeError):
        gradcheck(tg.sin, (x,))
    assert gradcheck(tg.sin, (x.contiguous(),))
    assert gradcheck(lambda c, y: c * y, (tg.ones(1).double().expand(3), leaf([1.0, 2.0, 3.0])))


def test_overlapping_input():
    x = leaf([1.0, 2.0, 3.0]).as_strided((2, 2), (1, 1))
    with pytest.raises(
        RuntimeError, match=r"The 0th input, of shape \[2, 2\] and strides \[1, 1\], has elements that share memory"
    ):
        gradcheck(tg.sin, (x,))


@pytest.mark.parametrize("fast", [False, True])
def test_outputs_whose_shape_or_dtype_follows_the_values(fast):
    x = leaf([1.0, 2.0])

    def shape(x):
        return x if x[0].item() == 1 else x[:1]

    def kind(x):
        return x if x[0].item() == 1 else x.float()

    with pytest.raises(AssertionError, match=r"return outputs with the same shape when inputs are perturbed"):
        gradcheck(lambda x: shape(x) if x[0].item() <= 1 else x, (x,), fast_mode=fast)
    with pytest.raises(AssertionError, match=r"return outputs with the same dtype when inputs are perturbed"):
        gradcheck(lambda x: kind(x) if x[0].item() <= 1 else x, (x,), fast_mode=fast)


def test_outputs_that_are_no_tensors():
    with pytest.raises(TypeError, match=r"output 1 has type NoneType"):
        gradcheck(lambda x: (x, None), (leaf([1.0]),))


@pytest.mark.parametrize(
    ("check", "options", "message"),
    [
        (
            gradcheck,
            {"check_backward_ad": False},
            "Expected at least one of check_forward_ad or check_backward_ad to be True",
        ),
        (
            gradcheck,
            {"check_backward_ad": False, "check_forward_ad": True, "check_batched_grad": True},
            "Setting check_batched_grad=True requires check_backward_ad to be True",
        ),
        (
            gradcheck,
            {"check_batched_forward_grad": True},
            "Setting check_batched_forward_grad=True requires check_forward_ad to be True",
        ),
        (
            gradgradcheck,
            {"check_rev_over_rev": False},
            "Expected at least one of check_fwd_over_rev or check_rev_over_rev to be True",
        ),
        (
            gradgradcheck,
            {"check_rev_over_rev": False, "check_fwd_over_rev": True},
            "Setting check_undefined_grad=True requires check_rev_over_rev to be True",
        ),
    ],
)
def test_options_that_contradict_each_other(check, options, message):
    with raises(message, AssertionError):
        check(tg.sin, (leaf([1.0]),), **options)


# ---- second derivatives ----


def test_grad_outputs_that_are_given():
    x = leaf([1.0, 2.0])
    assert gradgradcheck(tg.exp, (x,), leaf([0.5, -1.0]))
    assert gradgradcheck(tg.exp, (x,), tg.tensor([0.5, -1.0], dtype=tg.float64))
    assert gradgradcheck(lambda x: (x.exp(), (x * x).sum()), (x,), (leaf([0.5, -1.0]), None))


def test_second_derivatives_of_a_constant():
    with pytest.raises(ValueError, match=r"at least one output of func to require gradient"):
        gradgradcheck(lambda x: x.detach(), (leaf([1.0]),))


# ---- forward mode ----


@both_modes
@pytest.mark.parametrize("name", sorted(set(SMOOTH) - {"integers beside"}))
def test_forward_mode(name, fast):
    pytest.importorskip("tapegrad.autograd.forward_ad")
    f, values = SMOOTH[name]
    points = tuple(leaf(v) for v in values)
    assert gradcheck(f, points, check_forward_ad=True, check_backward_ad=False, fast_mode=fast)
    assert gradgradcheck(f, points, check_fwd_over_rev=True, fast_mode=fast)


@both_modes
def test_forward_mode_of_a_wrong_derivative(fast):
    pytest.importorskip("tapegrad.autograd.forward_ad")
    with pytest.raises(GradcheckError, match=r"^Jacobian computed with forward mode mismatch for output 0"):
        gradcheck(
            half_of_the_derivative,
            (leaf([1.0, 2.0]),),
            check_forward_ad=True,
            check_backward_ad=False,
            fast_mode=fast,
        )


def test_forward_mode_in_batches():
    pytest.importorskip("tapegrad.autograd.forward_ad")
    pytest.importorskip("tapegrad.func")
    assert gradcheck(lambda x: x.sin() * x, (leaf(X),), check_forward_ad=True, check_batched_forward_grad=True)


# ---- as PyTorch does ----


@both_modes
@pytest.mark.parametrize("right", [True, False])
def test_verdicts_agree_with_pytorch(right, fast):
    torch = pytest.importorskip("torch")

    def f(x, y):
        factor = x if right else x.detach()
        return (x * y).sin(), (factor * x).sum(0)

    for lib in (tg, torch):
        x = lib.tensor(X, dtype=lib.float64, requires_grad=True)
        y = lib.tensor([1.5, -0.5, 2.5], dtype=lib.float64, requires_grad=True)
        assert lib.autograd.gradcheck(f, (x, y), fast_mode=fast, raise_exception=False) is right
        assert lib.autograd.gradgradcheck(f, (x, y), fast_mode=fast, raise_exception=False) is right
