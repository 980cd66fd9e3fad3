"""What `backward` and `grad` refuse, and graphs freed half-way or used from elsewhere."""

import re
import threading

import pytest

import tapegrad as tg
from tapegrad.autograd import backward, grad
from tests.helpers import vector

TWICE = "Trying to backward through the graph a second time"


def ones(*shape):
    return tg.ones(shape, dtype=tg.float64)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x, y, c: y.backward(), RuntimeError, "grad can be implicitly created only for scalar outputs"),
        (
            lambda x, y, c: y.backward(ones(1)),
            RuntimeError,
            "Mismatch in shape: grad_output[0] has a shape of tapegrad.Size([1])",
        ),
        (lambda x, y, c: y.backward(3.0), TypeError, "gradients can be either Tensors or None, but got float"),
        (lambda x, y, c: y.backward([1.0, 1.0]), TypeError, "gradients can be either Tensors or None, but got float"),
        (lambda x, y, c: c.sum().backward(), RuntimeError, "element 0 of tensors does not require grad"),
        (lambda x, y, c: grad(y.sum(), c), RuntimeError, "One of the differentiated Tensors does not require grad"),
        (lambda x, y, c: grad(y.sum(), vector(1.0)), RuntimeError, "appears to not have been used in the graph"),
        (lambda x, y, c: grad(y.sum(), []), RuntimeError, "`inputs` argument to `grad()` cannot be empty."),
        (lambda x, y, c: grad([], x), RuntimeError, "appears to not have been used in the graph"),
        (lambda x, y, c: grad([y, y], x, [ones(2)]), RuntimeError, "got 2 tensors and 1 gradients"),
        (
            lambda x, y, c: grad(y.sum(), [x, 3]),
            RuntimeError,
            "all inputs have to be Tensors or GradientEdges, but got int",
        ),
        (
            lambda x, y, c: backward(y.sum(), inputs=[None]),
            RuntimeError,
            "have to be Tensors or GradientEdges, but got NoneType",
        ),
        (
            lambda x, y, c: backward(y.sum(), inputs=[]),
            RuntimeError,
            "`inputs` argument to `backward()` cannot be empty.",
        ),
        (
            lambda x, y, c: grad(y.sum(), x, materialize_grads=True, allow_unused=False),
            ValueError,
            "when materialize_grads=True, but got: allow_unused=False.",
        ),
        (
            lambda x, y, c: grad(y, x, ones(2), is_grads_batched=True),
            RuntimeError,
            "grad_output[0] has a shape of tapegrad.Size([])",
        ),
        (lambda x, y, c: setattr(x, "grad", 3), TypeError, "expected to be a Tensor or None but got grad of type int"),
        (
            lambda x, y, c: c.register_hook(print),
            RuntimeError,
            "cannot register a hook on a tensor that doesn't require gradient",
        ),
        (lambda x, y, c: c.retain_grad(), RuntimeError, "can't retain_grad on Tensor that has requires_grad=False"),
    ],
)
def test_wrong_arguments_are_refused_and_the_graph_stays_whole(call, kind, message):
    x, c = vector(1.0, 2.0), ones(2)
    y = x * x
    with pytest.raises(kind, match=re.escape(message)):
        call(x, y, c)
    assert x.grad is None
    y.sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_nothing_to_start_from():
    x = vector(1.0)
    backward([])
    assert grad([], x, allow_unused=True) == (None,)
    assert grad([], x, materialize_grads=True)[0].item() == 0.0


@pytest.mark.parametrize("create", [False, True])
def test_a_graph_freed_half_way(create):
    x = vector(1.0, 2.0)
    y = x.exp()
    z = y.sin()
    grad(z.sum(), y, retain_graph=False, create_graph=create)
    with pytest.raises(RuntimeError, match=TWICE):
        z.sum().backward()
    assert x.grad is None
    y.sum().backward(retain_graph=False)
    assert x.grad.tolist() == y.tolist()
    with pytest.raises(RuntimeError, match=TWICE):
        y.sin().sum().backward()


def test_a_graph_that_an_exception_left_half_freed():
    x = vector(1.0, 2.0)
    y = x.exp()
    q = y * 1
    handle = q.register_hook(lambda g: 1 / 0)
    z = q.sin()
    with pytest.raises(ZeroDivisionError):
        z.sum().backward()
    handle.remove()
    with pytest.raises(RuntimeError, match=TWICE):
        z.sum().backward()
    assert x.grad is None
    y.sum().backward()
    assert x.grad.tolist() == y.tolist()


def test_a_graph_freed_by_another_thread():
    x, seen = vector(1.0, 2.0), []
    y = x.exp()

    def run():
        try:
            y.sum().backward()
        except RuntimeError as error:
            seen.append(str(error)[: len(TWICE)])

    for _ in range(2):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert seen == [TWICE]
    assert x.grad.tolist() == y.tolist()


def test_a_hook_may_wait_for_another_threads_backward():
    x, w = vector(1.0), vector(5.0)
    y = x * 2

    def hook(g):
        thread = threading.Thread(target=lambda: (w * w).sum().backward())
        thread.start()
        thread.join()

    y.register_hook(hook)
    y.sum().backward()
    assert (w.grad.item(), x.grad.item()) == (10.0, 2.0)
