"""Text form of tensors, character for character the one PyTorch prints.

An array is printed in three steps: the part that will be visible is cut out (:func:`_visible_part`),
every visible number becomes a text cell of one common width (:func:`_float_cells`, :func:`_exact_cells`),
and the cells are set out in nested brackets (:func:`_layout`). :func:`format_tensor` then appends the
facts that the numbers do not show: size, dtype, gradient.

Only NumPy and the standard library are used, so this module can be imported from anywhere in the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["PrintOptions", "format_tensor", "get_printoptions", "set_printoptions"]


class PrintOptions(NamedTuple):
    """The settings that decide how tensors are printed.

    Attributes:
        precision: digits after the decimal point.
        threshold: a tensor with more elements than this is summarised (may be ``math.inf``).
        edgeitems: entries kept at both ends of every dimension of a summarised tensor.
        linewidth: columns available before a row or a suffix is wrapped.
        sci_mode: scientific notation always (True), never (False), or chosen from the values (None).

    Example:
        >>> PrintOptions().precision
        4
    """

    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_PROFILES = {
    "default": PrintOptions(),
    "short": PrintOptions(precision=2, edgeitems=2),
    "full": PrintOptions(threshold=math.inf),
}

_options = PrintOptions()


def get_printoptions() -> PrintOptions:
    """Return the print settings now in force in this process.

    Returns:
        An immutable :class:`PrintOptions`; ``set_printoptions(**options._asdict())`` restores it later.

    Example:
        >>> get_printoptions().linewidth
        80
    """
    return _options


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Change how tensors are printed, for the whole process.

    Arguments left at None keep their present value, with one exception taken over from PyTorch:
    ``sci_mode`` is set by every call, so leaving it out returns it to the automatic choice.

    Args:
        precision: digits after the decimal point.
        threshold: number of elements above which a tensor is summarised.
        edgeitems: entries kept at both ends of every dimension of a summary.
        linewidth: columns available on a line.
        profile: "default", "short" or "full", applied before the other arguments; as in PyTorch, any
            other name is ignored.
        sci_mode: True or False to force or forbid scientific notation, None to choose from the values.

    Example:
        >>> set_printoptions(precision=2)
        >>> format_tensor(np.array([3.14159], dtype=np.float32))
        'tensor([3.14])'
        >>> set_printoptions(profile="default")
        >>> format_tensor(np.array([3.14159], dtype=np.float32))
        'tensor([3.1416])'
    """
    global _options
    base = _options if profile is None else _PROFILES.get(profile, _options)
    # One assignment of a complete tuple: a concurrent print never sees a half-changed set.
    _options = PrintOptions(
        precision=base.precision if precision is None else precision,
        threshold=base.threshold if threshold is None else threshold,
        edgeitems=base.edgeitems if edgeitems is None else edgeitems,
        linewidth=base.linewidth if linewidth is None else linewidth,
        sci_mode=sci_mode,
    )


def format_tensor(
    array: np.ndarray,
    *,
    prefix: str = "tensor(",
    requires_grad: bool = False,
    grad_fn_name: str | None = None,
    default_dtype: np.dtype | type | str = np.float32,
    dtype_name: str | None = None,
    library: str = "tapegrad",
) -> str:
    """Return the text PyTorch prints for a tensor with these values.

    Args:
        array: the values; a boolean, integer or floating-point array of any shape.
        prefix: text up to and including the opening parenthesis; later lines are indented by its length.
        requires_grad: whether the tensor is a leaf that collects a gradient.
        grad_fn_name: name of the operation the tensor came from; takes the place of ``requires_grad``.
        default_dtype: the floating-point dtype that goes without saying.
        dtype_name: dtype to report in place of the array's own, for formats NumPy lacks
            (bfloat16 values held in a float32 array).
        library: name in front of the dtype, as in ``tapegrad.float64``.

    Returns:
        The representation, which may span several lines.

    Raises:
        TypeError: if the array holds anything but booleans, integers or floating-point numbers.

    Example:
        >>> print(format_tensor(np.full((2, 2), 27.0, dtype=np.float32), grad_fn_name="MulBackward0"))
        tensor([[27., 27.],
                [27., 27.]], grad_fn=<MulBackward0>)
        >>> format_tensor(np.zeros((0, 3)))
        'tensor([], size=(0, 3), dtype=tapegrad.float64)'
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"cannot print an array of dtype {array.dtype}; expected bool, integer or float")
    options = _options
    dtype_name = dtype_name or array.dtype.name
    default_name = np.dtype(default_dtype).name

    # A literal of integers or booleans shows its dtype by itself; an empty one shows nothing.
    implied_dtypes = (default_name, "int64", "bool") if array.size else (default_name,)
    shows_size = array.ndim != 1 if array.size == 0 else options.edgeitems == 0

    # Every suffix goes with the width it counts for when lines are wrapped.
    suffixes = []
    if shows_size:
        suffixes.append(_sized(f"size={array.shape}"))
    if dtype_name not in implied_dtypes:
        # Counted as PyTorch's own, so that a longer library name leaves every line break where it was.
        suffixes.append((f"dtype={library}.{dtype_name}", len(f"dtype=torch.{dtype_name}")))
    if grad_fn_name is not None:
        suffixes.append(_sized(f"grad_fn=<{grad_fn_name}>"))
    elif requires_grad:
        suffixes.append(_sized("requires_grad=True"))

    indent = len(prefix) - (prefix.rfind("\n") + 1)
    return _with_suffixes(prefix + _contents(array, indent, options), suffixes, indent, options.linewidth)


def _contents(array: np.ndarray, indent: int, options: PrintOptions) -> str:
    """Return the bracketed numbers of an array whose first bracket stands in column ``indent``."""
    if array.size == 0:
        return "[]"
    shortened = [False] * array.ndim
    if array.size > options.threshold and array.ndim > 0:
        if options.edgeitems == 0:
            return "[...]"
        array, shortened = _visible_part(array, options.edgeitems)

    values = array.ravel().tolist()
    if array.dtype.kind == "f":
        texts, width = _float_cells(values, options)
    else:
        texts, width = _exact_cells(values)
    cells = np.array([text.rjust(width) for text in texts], dtype=object).reshape(array.shape)
    return _layout(cells, shortened, indent, width, options.linewidth)


def _visible_part(array: np.ndarray, edgeitems: int) -> tuple[np.ndarray, list[bool]]:
    """Keep ``edgeitems`` entries at both ends of every long dimension, and tell which ones were long."""
    shortened = [size > 2 * edgeitems for size in array.shape]
    kept = [
        np.r_[:edgeitems, size - edgeitems : size] if is_long else np.arange(size)
        for size, is_long in zip(array.shape, shortened, strict=True)
    ]
    return array[np.ix_(*kept)], shortened


def _exact_cells(values: list[int] | list[bool]) -> tuple[list[str], int]:
    """Return the text of integers or booleans, and the width of the longest."""
    texts = [str(value) for value in values]
    return texts, max(map(len, texts))


def _float_cells(values: list[float], options: PrintOptions) -> tuple[list[str], int]:
    """Return the text of floating-point numbers in one common notation, and the width of their column.

    Zeros, infinities and NaNs take no part in choosing the notation or the width: they are fitted into the
    column that the other numbers need, and stick out of it where they are wider.
    """
    ordinary = [value for value in values if value != 0 and math.isfinite(value)]
    if not ordinary:
        # With nothing to measure PyTorch assumes a column of one character when it wraps lines.
        return [_whole_number_text(value) for value in values], 1

    notation: Callable[[float], str]
    if _is_scientific(ordinary, options.sci_mode):
        notation = f"{{:.{options.precision}e}}".format
    elif all(value.is_integer() for value in ordinary):
        notation = _whole_number_text
    else:
        notation = f"{{:.{options.precision}f}}".format
    return [notation(value) for value in values], max(len(notation(value)) for value in ordinary)


def _is_scientific(ordinary: list[float], sci_mode: bool | None) -> bool:
    """Tell whether finite nonzero numbers are too large, too small or too far apart for plain decimals."""
    if sci_mode is not None:
        return sci_mode
    magnitudes = [abs(value) for value in ordinary]
    smallest, largest = min(magnitudes), max(magnitudes)
    return largest / smallest > 1000.0 or largest > 1.0e8 or smallest < 1.0e-4


def _whole_number_text(value: float) -> str:
    """Return an integral float with a bare trailing point; infinities and NaN go without the point."""
    return f"{value:.0f}." if math.isfinite(value) else f"{value:.0f}"


def _layout(cells: np.ndarray, shortened: list[bool], indent: int, width: int, linewidth: int) -> str:
    """Set out an array of cells in nested brackets, with an ellipsis in each shortened dimension."""
    if cells.ndim == 0:
        return cells.item()
    innermost = cells.ndim == 1
    if innermost:
        parts = cells.tolist()
    else:
        parts = [_layout(block, shortened[1:], indent + 1, width, linewidth) for block in cells]
    if shortened[0]:
        # Inside a row the ellipsis carries one more space, so that it stands clear of padded numbers.
        parts.insert(len(parts) // 2, " ..." if innermost else "...")

    if innermost:
        per_line = max(1, math.floor((linewidth - indent) / (width + len(", "))))
        parts = [", ".join(parts[start : start + per_line]) for start in range(0, len(parts), per_line)]
    # Rows follow on the next line; every further dimension adds one blank line between its blocks.
    line_breaks = "\n" * max(1, cells.ndim - 1)
    return "[" + f",{line_breaks}{' ' * (indent + 1)}".join(parts) + "]"


def _sized(text: str) -> tuple[str, int]:
    """Pair a text with its length."""
    return text, len(text)


def _with_suffixes(text: str, suffixes: list[tuple[str, int]], indent: int, linewidth: int) -> str:
    """Append the suffixes and the closing parenthesis, starting a new line where one would not fit."""
    # PyTorch counts the last line two columns longer than it is, and stays so until it wraps.
    column = len(text) - (text.rfind("\n") + 1) + 2
    for suffix, width in suffixes:
        column += len(", ") + width
        if column > linewidth:
            text += f",\n{' ' * indent}{suffix}"
            column = indent + width
        else:
            text += f", {suffix}"
    return text + ")"
