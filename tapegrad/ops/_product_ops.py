"""Op classes of the matrix products: shared kernels, and launches remembered by the operands' layouts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tapegrad.engine.blas import bind_product, leading
from tapegrad.engine.kernels import build_typed
from tapegrad.engine.planned import TABLE
from tapegrad.engine.runtime import rt
from tapegrad.engine.tape import LOOK_META
from tapegrad.metadata import layout_facts
from tapegrad.ops import _matmul
from tapegrad.ops._arguments import check_tensor
from tapegrad.ops._kernel import KernelOp, template
from tapegrad.ops._operands import float_of_bits, struct_bits
from tapegrad.ops._product_checks import need_kernel
from tapegrad.tensor import Tensor, wrap

_S = rt.S
# who asks for a plan, where it is no op (see engine/planned.py)
MATMUL, LINEAR = -1, -2


def is_readable(t: Tensor) -> bool:
    """Whether BLAS can read a tensor's matrices in place, and its leading dims are no scattered rows."""
    shape, strides, contiguous = layout_facts(rt.look(_S, t._id, LOOK_META) >> 16)
    if contiguous or t.numel() < 2:
        return True
    if len(shape) == 1:
        return strides[0] > 0
    return leading.py_func(*shape[-2:], *strides[-2:]) != 0


def folds(t: Tensor) -> bool:
    """Whether all dims but the last of a tensor are evenly spaced rows."""
    shape, strides, contiguous = layout_facts(rt.look(_S, t._id, LOOK_META) >> 16)
    if contiguous:
        return True
    rows = [(n, s) for n, s in zip(shape[:-1], strides[:-1], strict=True) if n != 1]
    return all(s == rows[d + 1][0] * rows[d + 1][1] for d, (_, s) in enumerate(rows[:-1]))


class ProductOp(KernelOp):
    """A matrix product of two operands.

    The declared function takes the op and the operands, checks them, and returns the result's shape.

    Args:
        routine: PyTorch's name of it in dtype errors.
        transposed: whether the second operand is read with its last two dims exchanged.
    """

    kernels = (_matmul.product_forward, _matmul.product_reverse)

    def __init__(self, function: Callable, *, routine: str, transposed: bool = False, **options: Any) -> None:
        super().__init__(function, **options)
        self.routine = routine
        self.transposed = transposed
        self.argument_names = list(inspect.signature(function).parameters)[1:]
        self.forward(self.kernels[0])
        self.reverse_kernel(self.kernels[1])
        self.declare_derivative()

    def declare_derivative(self) -> None:
        """What is saved, and the derivative over tensors."""
        transposed = self.transposed

        def derivative(g, a, b, need):
            return product_parts(g, a, b, need, transposed)

        self.backward(derivative)
        self.saves(lambda need: ["b"] * (need & 1) + ["a"] * (need >> 1 & 1))

    def load_forward(self, dtype: int) -> None:
        """Build or load the forward kernel for a dtype code; all products share it."""
        bind_product(dtype)
        rt.forward[self.code, dtype] = build_typed(self.kernels[0], dtype)

    def load_reverse(self, dtype: int) -> None:
        """Build or load the reverse kernel for a dtype code."""
        bind_product(dtype)
        rt.reverse[self.code, dtype] = build_typed(self.kernels[1], dtype)

    def __call__(self, *args: Any, out: Tensor | None = None, **named: Any) -> Any:
        if named:
            args = self._bound(args, named)
        if len(args) != 2:
            raise TypeError(f"{self.name}() takes 2 positional arguments but {len(args)} were given")
        result = self.multiply(*args)
        return result if out is None else out.copy_(result)  # type: ignore[attr-defined]

    def _bound(self, args: Sequence[Any], named: dict[str, Any]) -> tuple:
        values = dict(zip(self.argument_names, args, strict=False))
        for name, value in named.items():
            if name not in self.argument_names or name in values:
                raise TypeError(f"{self.name}() got an unexpected keyword argument '{name}'")
            values[name] = value
        return tuple(values[n] for n in self.argument_names if n in values)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Record and run the product."""
        try:
            k = rt.record_planned(_S, TABLE, self.code, a._id, b._id, 0)
        except AttributeError:
            self.refuse_types(a, b)
            raise
        return wrap(k) if k > 0 else self.first_run(self.code, a, b)

    def refuse_types(self, *operands: Any) -> None:
        """Refuse operands that are no tensors.

        Raises:
            TypeError: naming the first of them.
        """
        for position, (name, value) in enumerate(zip(self.argument_names, operands, strict=True), 1):
            check_tensor(self.name, value, name, position)

    def first_run(self, asked: int, a: Tensor, b: Tensor) -> Tensor:
        """Check the operands, copy those BLAS cannot read, run, and remember how.

        Args:
            asked: whose plan it becomes.
            a: the first operand.
            b: the second operand.

        Raises:
            RuntimeError: for shapes and dtypes that do not fit.
        """
        shape = self.function(self, a, b)
        need_kernel(self.routine, a.dtype)
        x, y = self.readable(a, b)
        items, work = split(x, y, self.transposed)
        block = template(0, items, work, int(self.transposed))
        result = self.start(shape, block, (x, y))
        if x is a and y is b:
            rt.keep_plan(_S, TABLE, asked, a._id, b._id, 0, self.code, rt.layout(tuple(shape)), a.dtype.code, block)
        return result

    def readable(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The operands, or copies where BLAS cannot read them in place."""
        scattered = b.ndim < 3 <= a.ndim and not folds(a)
        x = a.contiguous() if scattered or not is_readable(a) else a  # type: ignore[attr-defined]
        return x, b if is_readable(b) else b.contiguous()  # type: ignore[attr-defined]

    def start(self, shape: Sequence[int], block: int, operands: Sequence[Tensor]) -> Tensor:
        """Record and run the op with a copy of an attribute block."""
        layout = rt.layout(tuple(shape))
        while True:
            ids = [t._id for t in operands] + [0]
            attributes = rt.copy_attributes(_S, block)
            k = rt.record_kernel(_S, self.code, *ids[:3], layout, operands[0].dtype.code, attributes)
            if k > 0:
                return wrap(k)
            rt.free_block(_S, attributes)
            self.refuse(k, operands)


# Multiplications in a batch entry up to which OpenBLAS works on one core. Beyond, entries follow one another:
# two levels of threads make it wait for itself (and complain), which took 10 to 20 times as long.
_ONE_CORE = 1 << 18
_ONE_CORE_VECTOR = 9000


def split(a: Tensor, b: Tensor, transposed: bool) -> tuple[int, int]:
    """Work items of a product, and the work of one: an item a batch entry where those share no operand."""
    batch = a.shape[:-2]
    if not batch or batch != b.shape[:-2]:
        return 1, 4
    count = batch.numel()
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-2] if transposed else b.shape[-1]
    multiplications = m * k * n
    limit = _ONE_CORE_VECTOR if 1 in (m, k, n) else _ONE_CORE
    if count < 2 or multiplications > limit:
        return 1, 4
    return count, multiplications // 2 + 100


class AffineOp(ProductOp):
    """A matrix product added to a third tensor, ``beta input + alpha a b``.

    The declared function takes the op, the three operands, and returns the result's shape.
    """

    kernels = (_matmul.affine_forward, _matmul.affine_reverse)

    def declare_derivative(self) -> None:
        """What is saved, and the derivative over tensors."""
        transposed = self.transposed

        def derivative(g, a, b, need, words):
            return affine_parts(g, a, b, need, words, transposed)

        self.backward(derivative)
        self.saves(lambda need: ["b"] * (need >> 1 & 1) + ["a"] * (need >> 2 & 1))

    def __call__(self, *args: Any, beta: Any = 1, alpha: Any = 1, out: Tensor | None = None, **named: Any) -> Any:
        if named:
            args = self._bound(args, named)
        if len(args) != 3:
            raise TypeError(f"{self.name}() takes 3 positional arguments but {len(args)} were given")
        result = self.add_product(*args, beta, alpha)
        return result if out is None else out.copy_(result)  # type: ignore[attr-defined]

    def add_product(self, x: Tensor, a: Tensor, b: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
        """Record and run ``beta x + alpha a b``."""
        try:
            plain = beta == 1 and alpha == 1
            k = rt.record_planned(_S, TABLE, self.code, x._id, a._id, b._id) if plain else 0
        except AttributeError:
            self.refuse_types(x, a, b)
            raise
        return wrap(k) if k > 0 else self.first_sum(self.code if plain else 0, x, a, b, beta, alpha)

    def first_sum(self, asked: int, x: Tensor, a: Tensor, b: Tensor, beta: Any, alpha: Any) -> Tensor:
        """As `first_run`; `asked` is 0 if the plan is not to be kept."""
        self.refuse_types(x, a, b)
        shape = self.function(self, x, a, b)
        need_kernel(self.routine, a.dtype)
        p, q = self.readable(a, b)
        items, work = split(p, q, self.transposed)
        if x.shape != tuple(shape):
            items, work = 1, 4
        block = template(0, items, work, int(self.transposed), struct_bits(float(alpha)), struct_bits(float(beta)))
        result = self.start(shape, block, (x, p, q))
        if asked and p is a and q is b:
            rt.keep_plan(_S, TABLE, asked, x._id, a._id, b._id, self.code, rt.layout(tuple(shape)), x.dtype.code, block)
        return result


def product_op(**options: Any) -> Callable[[Callable], ProductOp]:
    """Declare a product by a function that checks two operands and gives the result's shape."""
    return lambda function: ProductOp(function, inputs=["a", "b"], **options)


def affine_op(**options: Any) -> Callable[[Callable], AffineOp]:
    """Declare a product added to a third operand (see `AffineOp`)."""
    return lambda function: AffineOp(function, inputs=["x", "a", "b"], **options)


def product_parts(g: Any, a: Any, b: Any, need: int, transposed: bool) -> tuple:
    """The derivative of a product over tensors, still to be summed to operands that were broadcast.

    Args:
        g: adjoint of the result.
        a: first operand, if the second one's part is needed.
        b: second operand, if the first one's part is needed.
        need: which parts.
        transposed: whether `b` was read transposed.
    """
    return (
        _left_part(g, b, transposed) if need & 1 else None,
        _right_part(g, a, transposed) if need & 2 else None,
    )


def _left_part(g: Any, b: Any, transposed: bool) -> Any:
    if transposed:
        return g @ b
    if b.ndim == 1:
        return g.unsqueeze(-1) * b
    if g.ndim == b.ndim - 1:  # the first operand was a vector
        return (g.unsqueeze(-2) @ b.mT).squeeze(-2)
    return g @ b.mT


def _right_part(g: Any, a: Any, transposed: bool) -> Any:
    if transposed:
        rows = a.shape[:-1].numel()
        return g.reshape(rows, g.shape[-1]).mT @ a.reshape(rows, a.shape[-1])
    if a.ndim == 1:
        return a.unsqueeze(-1) * g.unsqueeze(-2) if g.ndim else a * g
    if g.ndim == a.ndim - 1:  # the second operand was a vector
        return (a.mT @ g.unsqueeze(-1)).squeeze(-1)
    return a.mT @ g


def affine_parts(g: Any, a: Any, b: Any, need: int, words: Sequence[int], transposed: bool) -> tuple:
    """The derivative of an affine product over tensors; see `product_parts`."""
    alpha, beta = (float_of_bits(w) for w in words[1:3])
    first = (g if beta == 1 else g * beta) if need & 1 else None
    scaled = g if alpha == 1 else g * alpha
    return (first, *product_parts(scaled, a, b, need >> 1, transposed))
