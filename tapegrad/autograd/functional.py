r"""Products with Jacobians and Hessians, and these themselves, of functions of tensors.

For :math:`f: \mathbb{R}^n \to \mathbb{R}^m` with the Jacobian :math:`J_{ij} = \partial f_i / \partial x_j`, `vjp` gives
:math:`v^T J`, `jvp` gives :math:`J v`, `jacobian` :math:`J`. For :math:`f: \mathbb{R}^n \to \mathbb{R}` with the Hessian
:math:`H_{ij} = \partial^2 f / \partial x_i \partial x_j`, `vhp` gives :math:`v^T H`, `hvp` :math:`H v`, `hessian` :math:`H`.

A function takes tensors and returns a tensor or a tuple of tensors. Where it is given, or returns, one tensor, there is one tensor in
that place of the result; where a tuple, a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tapegrad import errors
from tapegrad.autograd.backward import grad
from tapegrad.creation import eye, zeros, zeros_like
from tapegrad.grad_mode import enable_grad
from tapegrad.ops.joining import stack
from tapegrad.tensor import Tensor

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]

_STRATEGIES = ("forward-mode", "reverse-mode")

Tensors = tuple[Tensor, ...]


def vjp(
    func: Callable,
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    r"""The product :math:`v^T J` of a vector and the Jacobian of a function, by one reverse sweep.

    Args:
        func: the function.
        inputs: a floating tensor, or a tuple of them, to call it with.
        v: the vector, of the outputs' shapes; optional for one output of one element.
        create_graph: make the output and the product differentiable.
        strict: raise an error, instead of giving zeros, for an input that the outputs do not depend on.

    Returns:
        The output of `func`, and the product in the shapes and dtypes of the inputs.

    Raises:
        TypeError: if inputs, outputs or `v` are anything but tensors or tuples of tensors.
        RuntimeError: if `v` is missing or does not fit the outputs; in strict mode, if something is independent of the inputs.

    >>> import tapegrad as tg
    >>> tg.autograd.functional.vjp(lambda x, y: x * y, (tg.tensor([1.0, 2.0]), tg.tensor([3.0, 4.0])), tg.ones(2))
    (tensor([3., 8.]), (tensor([3., 4.]), tensor([1., 2.])))
    """
    with enable_grad():
        inputs, one_input = _tensors(inputs, "inputs", "vjp")
        points = _points(inputs, create_graph)
        outputs, one_output = _call(func, points, "vjp", strict)
        if v is not None:
            v = _vector(v, outputs, one_output, "vjp", create_graph)
        elif len(outputs) != 1 or outputs[0].numel() != 1:
            raise RuntimeError(errors.V_FOR_OUTPUT)
        found = _partials(outputs, points, v, create_graph)
        graph = errors.STRICT_JACOBIAN_GRAPH if create_graph else None
        product = _filled(found, points, strict, errors.STRICT_INPUT, graph)
    return _given(outputs, one_output, create_graph), _given(product, one_input, create_graph)


def jvp(
    func: Callable,
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    r"""The product :math:`J v` of the Jacobian of a function and a vector.

    It is found as the derivative of :math:`u^T J`, which is linear in :math:`u`, with respect to :math:`u`: two reverse sweeps.

    Args:
        func: the function; it has to be differentiable twice.
        inputs: a floating tensor, or a tuple of them, to call it with.
        v: the vector, of the inputs' shapes; optional for one input of one element.
        create_graph: make the output and the product differentiable.
        strict: raise an error, instead of giving zeros, for an output or input without a derivative.

    Returns:
        The output of `func`, and the product in the shapes and dtypes of the outputs.

    Raises:
        TypeError: if inputs, outputs or `v` are anything but tensors or tuples of tensors.
        RuntimeError: if `v` is missing or does not fit the inputs; in strict mode, if something is independent of the inputs.

    >>> import tapegrad as tg
    >>> tg.autograd.functional.jvp(lambda x: x**2, tg.tensor([1.0, 2.0]), tg.tensor([1.0, 10.0]))
    (tensor([1., 4.]), tensor([ 2., 40.]))
    """
    with enable_grad():
        inputs, one_input = _tensors(inputs, "inputs", "jvp")
        points = _points(inputs, create_graph)
        v = _direction(v, points, one_input, "jvp", create_graph)
        outputs, one_output = _call(func, points, "jvp", strict)
        cotangents = tuple(zeros_like(out, requires_grad=True) for out in outputs)
        pulled = _partials(outputs, points, cotangents, True)
        if strict:
            _refuse_independent(pulled, errors.STRICT_INPUT, errors.STRICT_GRADIENT)
        found = _partials(pulled, cotangents, v, create_graph)
        graph = errors.STRICT_JACOBIAN_GRAPH if create_graph else None
        product = _filled(found, outputs, strict, errors.STRICT_JVP, graph)
    return _given(outputs, one_output, create_graph), _given(product, one_output, create_graph)


def jacobian(
    func: Callable,
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    r"""The Jacobian :math:`J_{ij} = \partial f_i / \partial x_j` of a function.

    Args:
        func: the function.
        inputs: a floating tensor, or a tuple of them, to call it with.
        create_graph: make the Jacobian differentiable.
        strict: raise an error, instead of giving zeros, for an output that does not depend on an input.
        vectorize: ask for all rows (or columns) at once.
        strategy: ``"reverse-mode"`` finds it row by row, ``"forward-mode"`` column by column, which takes fewer steps where there are
            fewer inputs than outputs.

    Returns:
        For output i and input j a tensor of the shape of the output followed by that of the input, in the dtype of the input (in
        forward mode, of the output): alone, in a tuple over the outputs or over the inputs, or in a tuple over the outputs of tuples
        over the inputs, as `func` returns and `inputs` is one tensor or a tuple.

    Raises:
        TypeError: if inputs or outputs are anything but tensors or tuples of tensors.
        RuntimeError: in strict mode, if something is independent of the inputs; if `strict` is combined with `vectorize` or
            ``"forward-mode"``.
        AssertionError: if there is no such strategy.

    >>> import tapegrad as tg
    >>> tg.autograd.functional.jacobian(lambda x, y: x * y.sum(), (tg.tensor([1.0, 2.0]), tg.tensor([3.0, 4.0])))
    (tensor([[7., 0.],
            [0., 7.]]), tensor([[1., 1.],
            [2., 2.]]))
    """
    if strategy not in _STRATEGIES:
        raise AssertionError(errors.JACOBIAN_STRATEGY)
    if strict and strategy == "forward-mode":
        raise RuntimeError(errors.STRICT_FORWARD)
    with enable_grad():
        inputs, one_input = _tensors(inputs, "inputs", "jacobian")
        points = _points(inputs, create_graph)
        if strategy == "forward-mode":
            table, one_output = _by_columns(func, points, create_graph)
        else:
            outputs, one_output = _call(func, points, "jacobian", strict)
            if vectorize and strict:
                raise RuntimeError(errors.STRICT_VECTORIZED)
            table = [_by_rows(k, out, points, create_graph, strict, vectorize) for k, out in enumerate(outputs)]
    found = tuple(_given(blocks, one_input, create_graph) for blocks in table)
    return found[0] if one_output else found


def hessian(
    func: Callable,
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    r"""The Hessian :math:`H_{ij} = \partial^2 f / \partial x_i \partial x_j` of a function with one value.

    Args:
        func: the function; it returns one tensor of one element.
        inputs: a floating tensor, or a tuple of them, to call it with.
        create_graph: make the Hessian differentiable.
        strict: raise an error, instead of giving zeros, for an input that the value or its gradient does not depend on.
        vectorize: ask for all rows (or columns) at once.
        outer_jacobian_strategy: how the Jacobian of the gradient is found, see `jacobian`.

    Returns:
        For one tensor, a tensor of its shape twice; for a tuple, a tuple of tuples with the shapes of inputs i and j in place (i, j).

    Raises:
        TypeError: if inputs or outputs are anything but tensors.
        RuntimeError: if `func` returns more than one value; in strict mode, if something is independent of the inputs.
        AssertionError: if there is no such strategy.

    >>> import tapegrad as tg
    >>> tg.autograd.functional.hessian(lambda x: (x**3).sum(), tg.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    inputs, one_input = _tensors(inputs, "inputs", "hessian")
    if outer_jacobian_strategy not in _STRATEGIES:
        raise AssertionError(errors.HESSIAN_STRATEGY)

    def value(*points: Tensor) -> Tensor:
        return _call_for_one(func, points, "hessian", strict).reshape(())

    def gradient(*points: Tensor) -> Tensors:
        found = jacobian(value, points, create_graph=True)
        if strict:
            _refuse_independent(found, errors.STRICT_INPUT, errors.STRICT_LINEAR)
        return found

    found = jacobian(gradient, inputs, create_graph, strict, vectorize, outer_jacobian_strategy)
    return found[0][0] if one_input else found


def vhp(
    func: Callable,
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    r"""The product :math:`v^T H` of a vector and the Hessian of a function with one value.

    Args:
        func: the function; it returns one tensor of one element.
        inputs: a floating tensor, or a tuple of them, to call it with.
        v: the vector, of the inputs' shapes; optional for one input of one element.
        create_graph: make the value and the product differentiable.
        strict: raise an error, instead of giving zeros, for an input that the value or its gradient does not depend on.

    Returns:
        The value of `func`, and the product in the shapes of the inputs.

    Raises:
        TypeError: if inputs, outputs or `v` are anything but tensors or tuples of tensors.
        RuntimeError: if `func` returns more than one value, if `v` is missing or does not fit the inputs; in strict mode, if
            something is independent of the inputs.

    >>> import tapegrad as tg
    >>> tg.autograd.functional.vhp(lambda x: (x**3).sum(), tg.tensor([1.0, 2.0]), tg.ones(2))
    (tensor(9.), tensor([ 6., 12.]))
    """

    def product(gradient: Sequence[Tensor | None], points: Tensors, v: Tensors | None) -> Sequence[Tensor | None]:
        return _partials(gradient, points, v, create_graph)

    return _hessian_product("vhp", product, errors.STRICT_JACOBIAN, func, inputs, v, create_graph, strict)


def hvp(
    func: Callable,
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    r"""The product :math:`H v` of the Hessian of a function with one value and a vector.

    It is found as the derivative of :math:`u^T H` with respect to :math:`u`. Where second derivatives are continuous :math:`H` is
    symmetric, and `vhp` gives the same in fewer steps.

    Args:
        func: the function; it returns one tensor of one element and has to be differentiable three times.
        inputs: a floating tensor, or a tuple of them, to call it with.
        v: the vector, of the inputs' shapes; optional for one input of one element.
        create_graph: make the value and the product differentiable.
        strict: raise an error, instead of giving zeros, for an input that the value or its gradient does not depend on.

    Returns:
        The value of `func`, and the product in the shapes of the inputs.

    Raises:
        TypeError: if inputs, outputs or `v` are anything but tensors or tuples of tensors.
        RuntimeError: if `func` returns more than one value, if `v` is missing or does not fit the inputs; in strict mode, if
            something is independent of the inputs.

    >>> import tapegrad as tg
    >>> tg.autograd.functional.hvp(lambda x: (x**3).sum(), tg.tensor([1.0, 2.0]), tg.ones(2))
    (tensor(9.), tensor([ 6., 12.]))
    """

    def product(gradient: Sequence[Tensor | None], points: Tensors, v: Tensors | None) -> Sequence[Tensor | None]:
        cotangents = tuple(zeros_like(x, requires_grad=True) for x in points)
        pulled = _partials(gradient, points, cotangents, True)
        return _partials(pulled, cotangents, v, create_graph)

    return _hessian_product("hvp", product, errors.STRICT_HVP, func, inputs, v, create_graph, strict)


def _hessian_product(
    name: str,
    product: Callable,
    absent: str,
    func: Callable,
    inputs: Any,
    v: Any,
    create_graph: bool,
    strict: bool,
) -> tuple[Any, Any]:
    # `product` gives that of the Hessian, from the gradient, where it was taken, and the vector
    with enable_grad():
        inputs, one_input = _tensors(inputs, "inputs", name)
        points = _points(inputs, create_graph)
        v = _direction(v, points, one_input, name, create_graph)
        output, gradient = _gradient(func, points, name, strict)
        graph = errors.STRICT_HESSIAN_GRAPH if create_graph else None
        found = _filled(product(gradient, points, v), points, strict, absent, graph)
    return _given((output,), True, create_graph), _given(found, one_input, create_graph)


def _tensors(value: Any, what: str, name: str) -> tuple[Tensors, bool]:
    # as a tuple, and whether it was one tensor
    one = not isinstance(value, tuple)
    found = (value,) if one else value
    for k, t in enumerate(found):
        if not isinstance(t, Tensor):
            which = f"given {what}" if one else f"value at index {k}"
            raise TypeError(errors.NOT_TENSORS.format(what=what, name=name, which=which, type=type(t)))
    return found, one


def _points(inputs: Tensors, create_graph: bool) -> Tensors:
    # places of their own in the graph: the function may also hold the inputs themselves, as constants
    return tuple(_point(t, create_graph).requires_grad_() for t in inputs)


def _point(t: Tensor, create_graph: bool) -> Tensor:
    return t.view_as(t) if create_graph and t.requires_grad else t.detach()


def _call(func: Callable, points: Tensors, name: str, strict: bool) -> tuple[Tensors, bool]:
    outputs, one = _tensors(func(*points), "outputs of the user-provided function", name)
    if strict:
        for i, out in enumerate(outputs):
            if not out.requires_grad:
                raise RuntimeError(errors.STRICT_OUTPUT.format(i=i))
    return outputs, one


def _call_for_one(func: Callable, points: Tensors, name: str, strict: bool) -> Tensor:
    outputs, one = _call(func, points, name, strict)
    if not one:
        raise RuntimeError(errors.NOT_ONE_TENSOR.format(name))
    if outputs[0].numel() != 1:
        raise RuntimeError(errors.NOT_ONE_ELEMENT.format(name))
    return outputs[0]


def _gradient(func: Callable, points: Tensors, name: str, strict: bool) -> tuple[Tensor, Sequence[Tensor | None]]:
    # of a function with one value, to be differentiated again
    output = _call_for_one(func, points, name, strict)
    found = _partials((output,), points, None, True)
    if strict:
        _refuse_independent(found, errors.STRICT_INPUT, errors.STRICT_LINEAR)
    return output, found


def _vector(v: Any, like: Tensors, one: bool, name: str, create_graph: bool) -> Tensors:
    found, _ = _tensors(v, "v", name)
    if len(found) != len(like):
        raise RuntimeError(errors.V_SINGLE if one else errors.V_LENGTH.format(expected=len(like), given=len(found)))
    for k, (a, b) in enumerate(zip(found, like)):
        if a.shape != b.shape:
            entry = "" if one else f"Entry {k} in "
            raise RuntimeError(errors.V_SIZE.format(entry=entry, expected=b.shape, given=a.shape))
    return tuple(_point(t, create_graph) for t in found)


def _direction(v: Any, points: Tensors, one: bool, name: str, create_graph: bool) -> Tensors | None:
    if v is not None:
        return _vector(v, points, one, name, create_graph)
    if len(points) != 1 or points[0].numel() != 1:
        raise RuntimeError(errors.V_FOR_INPUT)
    return None


def _partials(
    outputs: Sequence[Tensor | None],
    inputs: Tensors,
    starts: Tensors | None,
    create_graph: bool,
    retain: bool | None = None,
    batched: bool = False,
) -> Sequence[Tensor | None]:
    # `grad` of those outputs that have a gradient; None for an input that none of them depends on
    chosen = [k for k, out in enumerate(outputs) if out is not None and out.requires_grad]
    if not chosen:
        return [None] * len(inputs)
    return grad(
        [outputs[k] for k in chosen],
        inputs,
        None if starts is None else [starts[k] for k in chosen],
        retain_graph=retain,
        create_graph=create_graph,
        allow_unused=True,
        is_grads_batched=batched,
    )


def _refuse_independent(parts: Sequence[Tensor | None], absent: str, constant: str | None) -> None:
    for i, part in enumerate(parts):
        if part is None:
            raise RuntimeError(absent.format(i=i))
        if constant is not None and not part.requires_grad:
            raise RuntimeError(constant.format(i=i))


def _filled(
    parts: Sequence[Tensor | None], like: Tensors, strict: bool, absent: str, constant: str | None
) -> Sequence[Tensor]:
    # zeros for what does not depend on an input, refused in strict mode
    if strict:
        _refuse_independent(parts, absent, constant)
    return [zeros_like(t) if part is None else part for part, t in zip(parts, like)]


def _given(found: Sequence[Tensor], one: bool, create_graph: bool) -> Any:
    # as the user gets it
    if not create_graph:
        found = [t.detach() for t in found]
    return found[0] if one else tuple(found)


def unit_tensors(t: Tensor) -> Iterator[Tensor]:
    """For each element of a tensor, zeros of its shape and dtype with a one there."""
    for k in range(t.numel()):
        flat = zeros(t.numel(), dtype=t.dtype)
        flat[k] = 1  # type: ignore[index]
        yield flat.reshape(t.shape)


def _basis(t: Tensor) -> Tensor:
    # all of them, along a first dimension
    return eye(t.numel(), dtype=t.dtype).reshape(t.numel(), *t.shape)


def _by_rows(
    position: int, out: Tensor, points: Tensors, create_graph: bool, strict: bool, vectorize: bool
) -> list[Tensor]:
    """The blocks of the Jacobian in the rows of one output, one an input."""
    if vectorize:
        found = _partials((out,), points, (_basis(out),), create_graph, True, True)
    else:
        absent = errors.STRICT_OUTPUT_OF_INPUT.replace("{output}", str(position))
        graph = errors.STRICT_JACOBIAN_GRAPH if create_graph else None
        rows = [
            _filled(_partials((out,), points, (start,), create_graph, True), points, strict, absent, graph)
            for start in unit_tensors(out)
        ]
        found = [stack([row[k] for row in rows]) if rows else None for k in range(len(points))]
    return [
        zeros(*out.shape, *x.shape, dtype=x.dtype) if block is None else block.reshape(*out.shape, *x.shape)
        for x, block in zip(points, found)
    ]


def _by_columns(func: Callable, points: Tensors, create_graph: bool) -> tuple[list[list[Tensor]], bool]:
    """The blocks of the Jacobian, found column by column: a list over outputs of lists over inputs."""
    outputs, one = _call(func, points, "jacobian", False)
    try:
        from tapegrad.autograd import forward_ad  # type: ignore[attr-defined]
    except ImportError:
        columns = _columns_by_reverse(outputs, points, create_graph)
    else:
        columns = _columns_by_duals(forward_ad, func, outputs, points)
    return [
        [column[i].movedim(0, -1).reshape(*out.shape, *x.shape) for x, column in zip(points, columns)]
        for i, out in enumerate(outputs)
    ], one


def _columns_by_duals(forward_ad: Any, func: Callable, outputs: Tensors, points: Tensors) -> list[list[Tensor]]:
    # one call of the function an element of the inputs; for each input, the tangents of each output along its elements
    columns = []
    for k, x in enumerate(points):
        tangents: list[list[Tensor]] = [[] for _ in outputs]
        for direction in unit_tensors(x):
            with forward_ad.dual_level():
                duals = tuple(forward_ad.make_dual(t, direction) if i == k else t for i, t in enumerate(points))
                for found, out in zip(tangents, _call(func, duals, "jacobian", False)[0]):
                    value, tangent = forward_ad.unpack_dual(out)
                    found.append(zeros_like(value) if tangent is None else tangent)
        columns.append([stack(t) if t else zeros(0, *out.shape, dtype=out.dtype) for t, out in zip(tangents, outputs)])
    return columns


def _columns_by_reverse(outputs: Tensors, points: Tensors, create_graph: bool) -> list[list[Tensor]]:
    # u^T J is linear in u: its derivatives with respect to u are the columns of J
    cotangents = tuple(zeros_like(out, requires_grad=True) for out in outputs)
    pulled = _partials(outputs, points, cotangents, True)
    columns = []
    for x, part in zip(points, pulled):
        found = _partials((part,), cotangents, (_basis(x),), create_graph, True, True)
        columns.append(
            [
                zeros(x.numel(), *out.shape, dtype=out.dtype) if column is None else column
                for column, out in zip(found, outputs)
            ]
        )
    return columns
