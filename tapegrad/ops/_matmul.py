"""The kernels behind every matrix product: operands of any rank, and the reverse straight into adjoints.

A product is described from the layouts of its operands: the last two dims are matrices (the last one a
vector), those before are broadcast batch dims. Batch dims of the first operand become rows where they can, so
``x[batch, time, k] @ W[k, n]`` is one call of BLAS; transposed operands are read in place.
"""

import numpy as np

from tapegrad.engine.blas import ahead, one_of, product, zero_of
from tapegrad.engine.structs import (
    ADJOINT_OFFSET,
    MAX_DIMS,
    STORE_OFFSET,
    buffer_of,
    f64,
    float_of,
    i64,
    internal,
    internal_contract,
    layout_of,
    row_at,
    shape_of,
    stack_block,
    strides_of,
)

P = T = None  # placeholders: pointer to elements, and their type

# words of a description; batch dims stand innermost first
_DIMS, _COUNT, _M, _N, _K, _A0, _A1, _B0, _B1, _A_SHARED, _B_SHARED, _A_SIZE, _B_SIZE = range(13)
_EXTENT, _A_STEP, _B_STEP, _A_PLACE, _B_PLACE = (16 + MAX_DIMS * k for k in range(5))


@internal
def _describe(S, la, lb, transposed, fold, W):
    """Fill `W` with the sizes and strides of a product.

    Args:
        S: the state.
        la: layout of the first operand.
        lb: layout of the second.
        transposed: whether the second operand's last two dims are read in reverse order.
        fold: whether batch dims may become rows.
        W: the description; steps are strides in an operand, places strides in its contiguous adjoint.
    """
    na, nb = np.int64(layout_of(S, la).ndim), np.int64(layout_of(S, lb).ndim)
    ea, ta, eb, tb = shape_of(S, la), strides_of(S, la), shape_of(S, lb), strides_of(S, lb)
    W[_M], W[_A0] = 1, 0
    if na > 1:
        W[_M], W[_A0] = ea[na - 2], ta[na - 2]
    W[_K], W[_A1] = ea[na - 1], ta[na - 1]
    if nb == 1:
        W[_N], W[_B0], W[_B1] = 1, tb[0], 0
    elif transposed:
        W[_N], W[_B0], W[_B1] = eb[nb - 2], tb[nb - 1], tb[nb - 2]
    else:
        W[_N], W[_B0], W[_B1] = eb[nb - 1], tb[nb - 2], tb[nb - 1]
    a_place, b_place = W[_M] * W[_K], W[_K] * W[_N]
    dims, count = 0, 1
    W[_A_SHARED] = W[_B_SHARED] = 0
    for d in range(max(na, nb) - 2):
        xa, xb = na - 3 - d, nb - 3 - d
        extent_a = ea[xa] if xa >= 0 else 1
        extent_b = eb[xb] if xb >= 0 else 1
        extent = extent_a if extent_b == 1 else extent_b
        if extent == 1:
            continue
        count *= extent
        sa = ca = sb = cb = 0
        if extent_a != 1:
            sa, ca = ta[xa], a_place
            a_place *= extent
        else:
            W[_A_SHARED] = 1
        if extent_b != 1:
            sb, cb = tb[xb], b_place
            b_place *= extent
        else:
            W[_B_SHARED] = 1
        merges = False
        if dims > 0:
            q = dims - 1
            e = W[_EXTENT + q]
            merges = sa == W[_A_STEP + q] * e and sb == W[_B_STEP + q] * e
            merges = merges and ca == W[_A_PLACE + q] * e and cb == W[_B_PLACE + q] * e
        if merges:
            W[_EXTENT + dims - 1] *= extent
        else:
            W[_EXTENT + dims] = extent
            W[_A_STEP + dims], W[_B_STEP + dims] = sa, sb
            W[_A_PLACE + dims], W[_B_PLACE + dims] = ca, cb
            dims += 1
    W[_A_SIZE], W[_B_SIZE] = a_place, b_place
    if fold and dims == 1 and W[_B_PLACE] == 0 and (W[_M] == 1 or W[_A_STEP] == W[_M] * W[_A0]):
        if W[_M] == 1:
            W[_A0] = W[_A_STEP]
        W[_M] *= W[_EXTENT]
        dims, count = 0, 1
        W[_B_SHARED] = 0
    W[_DIMS], W[_COUNT] = dims, count


@internal
def _offset(W, item, steps):
    # where batch entry `item` of an operand starts
    at = 0
    for d in range(W[_DIMS]):
        extent = W[_EXTENT + d]
        at += item % extent * W[steps + d]
        item //= extent
    return at


@internal
def multiply(S, la, a, lb, b, transposed, alpha, beta, c, items, start, stop):
    """``c = alpha a b + beta c``, `c` contiguous, for some of the work items; one alone does everything."""
    W = i64(stack_block())
    _describe(S, la, lb, transposed, items <= 1, W)
    m, n, k = W[_M], W[_N], W[_K]
    if items <= 1:
        start, stop = 0, W[_COUNT]
    for item in range(start, stop):
        product(
            m,
            n,
            k,
            alpha,
            ahead(a, _offset(W, item, _A_STEP)),
            W[_A0],
            W[_A1],
            ahead(b, _offset(W, item, _B_STEP)),
            W[_B0],
            W[_B1],
            beta,
            ahead(c, item * m * n),
            n,
        )


@internal
def multiply_reverse(S, la, a, lb, b, transposed, alpha, g, a_adjoint, a_store, b_adjoint, b_store, items, start, stop):
    """Add the parts of a product's operands to their adjoints; the stores are as in engine/structs.py."""
    W = i64(stack_block())
    _describe(S, la, lb, transposed, items <= 1, W)
    m, n, k = W[_M], W[_N], W[_K]
    zero, one = zero_of(g), one_of(g)
    if items <= 1:
        start, stop = 0, W[_COUNT]
    # several entries add to a shared operand's adjoint, so none may write it
    if a_store == 1 and W[_A_SHARED]:
        _clear(a_adjoint, W[_A_SIZE])
        a_store = 0
    if b_store == 1 and W[_B_SHARED]:
        _clear(b_adjoint, W[_B_SIZE])
        b_store = 0
    for item in range(start, stop):
        g_item = ahead(g, item * m * n)
        if a_store >= 0:
            b_item = ahead(b, _offset(W, item, _B_STEP))
            place = ahead(a_adjoint, _offset(W, item, _A_PLACE))
            beta = zero if a_store == 1 else one
            product(m, k, n, alpha, g_item, n, 1, b_item, W[_B1], W[_B0], beta, place, k)
        if b_store >= 0:
            a_item = ahead(a, _offset(W, item, _A_STEP))
            place = ahead(b_adjoint, _offset(W, item, _B_PLACE))
            beta = zero if b_store == 1 else one
            if transposed:
                product(n, k, m, alpha, g_item, 1, n, a_item, W[_A0], W[_A1], beta, place, k)
            else:
                product(k, n, m, alpha, a_item, W[_A1], W[_A0], g_item, n, 1, beta, place, n)


@internal
def _clear(target, elements):
    for i in range(elements):
        target[i] = zero_of(target)


def product_forward(S, row, start, stop):
    """Kernel of an op with two operands; attribute word 4 tells whether the second is read transposed."""
    r = row_at(row)
    a, b = buffer_of(S, r.in0), buffer_of(S, r.in1)
    attr = i64(r.attr)
    c = P(buffer_of(S, r.out).data)
    one, zero = one_of(c), zero_of(c)
    multiply(S, a.layout, P(a.data), b.layout, P(b.data), attr[4], one, zero, c, attr[2], start, stop)


def product_reverse(S, row, start, stop):
    """Reverse kernel of an op with two operands."""
    r = row_at(row)
    a, b = buffer_of(S, r.in0), buffer_of(S, r.in1)
    attr = i64(r.attr)
    adjoint, store = i64(S + ADJOINT_OFFSET), i64(S + STORE_OFFSET)
    g = P(buffer_of(S, r.out).adj)
    multiply_reverse(
        S,
        a.layout,
        P(a.data),
        b.layout,
        P(b.data),
        attr[4],
        one_of(g),
        g,
        P(adjoint[0]),
        store[0],
        P(adjoint[1]),
        store[1],
        attr[2],
        start,
        stop,
    )


@internal
def _rows_of(S, lo, li, W, contiguous):
    """Fill `W` with the dims before the last of layout `lo` and the strides of `li` along them.

    Returns the rows' length and stride in `li`, and its number of elements.

    Args:
        S: the state.
        lo: layout of a result.
        li: layout that broadcasts to it.
        W: extents and strides, innermost first.
        contiguous: whether the strides are those of a contiguous block of the shape of `li`.
    """
    no, ni = np.int64(layout_of(S, lo).ndim), np.int64(layout_of(S, li).ndim)
    eo, ei, ti = shape_of(S, lo), shape_of(S, li), strides_of(S, li)
    place = 1
    length, stride = 1, 0
    for d in range(no):
        xi = ni - 1 - d
        step = 0
        if xi >= 0:
            if ei[xi] != 1:
                step = place if contiguous else ti[xi]
            place *= ei[xi]
        if d == 0:
            length, stride = eo[no - 1], step
        else:
            W[d - 1], W[MAX_DIMS + d - 1] = eo[no - 1 - d], step
    W[2 * MAX_DIMS] = max(no - 1, 0)
    return length, stride, place


@internal
def _row_offset(W, item):
    at = 0
    for d in range(W[2 * MAX_DIMS]):
        at += item % W[d] * W[MAX_DIMS + d]
        item //= W[d]
    return at


@internal_contract
def _fill(S, lo, c, li, x, beta, first, last):
    # rows `first` to `last` of the result become beta times the broadcast operand
    W = i64(stack_block())
    n, step, _ = _rows_of(S, lo, li, W, False)
    for i in range(first, last):
        out, source = ahead(c, i * n), ahead(x, _row_offset(W, i))
        if step == 1:
            for j in range(n):
                out[j] = beta * source[j]
        else:
            for j in range(n):
                out[j] = beta * source[j * step]


@internal_contract
def _reduce(S, lo, g, rows, li, target, store, beta, first, last):
    # add beta times the result's adjoint to that of an operand it was broadcast from, with sums in float64;
    # rows `first` to `last` of one that was not
    W = i64(stack_block())
    n, step, elements = _rows_of(S, lo, li, W, True)
    if elements == rows * n:
        for i in range(first * n, last * n):
            if store == 1:
                target[i] = beta * g[i]
            else:
                target[i] += beta * g[i]
        return
    if store == 1:
        _clear(target, elements)
    standing = True
    for d in range(W[2 * MAX_DIMS]):
        standing = standing and (W[MAX_DIMS + d] == 0 or W[d] == 1)
    if standing and step == 1:
        sums = f64(stack_block())
        for block in range(0, n, 256):
            width = min(256, n - block)
            for j in range(width):
                sums[j] = 0.0
            for i in range(rows):
                source = ahead(g, i * n + block)
                for j in range(width):
                    sums[j] += source[j]
            for j in range(width):
                target[block + j] += beta * sums[j]
        return
    if step == 0:
        if standing:
            total = 0.0
            for i in range(rows * n):
                total += g[i]
            target[0] += beta * total
            return
        for i in range(rows):
            total = 0.0
            for j in range(n):
                total += g[i * n + j]
            target[_row_offset(W, i)] += beta * total
        return
    for i in range(rows):
        out, source = ahead(target, _row_offset(W, i)), ahead(g, i * n)
        for j in range(n):
            out[j * step] += beta * source[j]


def affine_forward(S, row, start, stop):
    """Kernel of ``beta input + alpha a b``; words 4 to 6: transposed, bits of alpha, bits of beta."""
    r = row_at(row)
    x, a, b = buffer_of(S, r.in0), buffer_of(S, r.in1), buffer_of(S, r.in2)
    attr = i64(r.attr)
    out = buffer_of(S, r.out)
    c = P(out.data)
    elements = layout_of(S, out.layout).elements
    ndim = layout_of(S, out.layout).ndim
    alpha, beta = T(float_of(attr[5])), T(float_of(attr[6]))
    keep = zero_of(c)
    if beta != keep and elements > 0:
        n = shape_of(S, out.layout)[ndim - 1]
        rows = elements // n
        each = rows // attr[2]
        _fill(S, out.layout, c, x.layout, P(x.data), beta, start * each, stop * each)
        keep = one_of(c)
    multiply(S, a.layout, P(a.data), b.layout, P(b.data), attr[4], alpha, keep, c, attr[2], start, stop)


def affine_reverse(S, row, start, stop):
    """Reverse kernel of ``beta input + alpha a b``."""
    r = row_at(row)
    x, a, b = buffer_of(S, r.in0), buffer_of(S, r.in1), buffer_of(S, r.in2)
    attr = i64(r.attr)
    out = buffer_of(S, r.out)
    adjoint, store = i64(S + ADJOINT_OFFSET), i64(S + STORE_OFFSET)
    g = P(out.adj)
    alpha, beta = T(float_of(attr[5])), T(float_of(attr[6]))
    if store[0] >= 0:
        n = shape_of(S, out.layout)[layout_of(S, out.layout).ndim - 1]
        rows = layout_of(S, out.layout).elements // n if n > 0 else 0
        each = rows // attr[2]
        _reduce(S, out.layout, g, rows, x.layout, P(adjoint[0]), store[0], beta, start * each, stop * each)
    # an operand that is neither wanted nor saved may be gone, its layout too
    if store[1] < 0 and store[2] < 0:
        return
    multiply_reverse(
        S,
        a.layout,
        P(a.data),
        b.layout,
        P(b.data),
        attr[4],
        alpha,
        g,
        P(adjoint[1]),
        store[1],
        P(adjoint[2]),
        store[2],
        attr[2],
        start,
        stop,
    )
