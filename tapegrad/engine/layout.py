"""Interned layouts, broadcasting, and the iteration plan a kernel follows.

A layout is a shape with strides in elements. Layouts are interned, so "same shape, same strides" is one integer comparison
and most operations never look at a shape at all.
"""

from tapegrad.engine.structs import (
    LAYOUT_SIZE,
    MAX_DIMS,
    OPERAND_OFFSET,
    OPERANDS,
    OUTER_SHAPE_OFFSET,
    OUTER_STRIDES_OFFSET,
    STEP_OFFSET,
    i64,
    internal,
    internal_inline,
    internal_words,
    layout_of,
    malloc,
    memset,
    realloc,
    shape_of,
    state_at,
    strides_of,
)

# beyond this, bytes and offsets could leave int64
MOST_ELEMENTS = float(1 << 58)


@internal_words
def _reindex(S):
    s = state_at(S)
    size = s.layout_index_size * 2
    index = malloc(size * 8)
    memset(index, 0, size * 8)
    for k in range(1, s.layout_count):
        slot = layout_of(S, k).hash & (size - 1)
        while i64(index)[slot]:
            slot = (slot + 1) & (size - 1)
        i64(index)[slot] = k
    s.layout_index = index
    s.layout_index_size = size


@internal_words
def intern(S, ndim, extents, steps):
    """Id of the layout with the extents and strides at two addresses (outside the layout table); 0 if it has too many elements."""
    shape = i64(extents)
    strides = i64(steps)
    size = 1.0
    for d in range(ndim):
        size *= max(shape[d], 1)
    if size > MOST_ELEMENTS:
        return 0
    s = state_at(S)
    h = ndim
    for d in range(ndim):
        h = (h * 1000003) ^ shape[d]
        h = (h * 1000003) ^ strides[d]
    h ^= h >> 29
    slot = h & (s.layout_index_size - 1)
    while i64(s.layout_index)[slot]:
        k = i64(s.layout_index)[slot]
        layout = layout_of(S, k)
        if layout.hash == h and layout.ndim == ndim:
            same = True
            for d in range(ndim):
                same = same and shape_of(S, k)[d] == shape[d] and strides_of(S, k)[d] == strides[d]
            if same:
                return k
        slot = (slot + 1) & (s.layout_index_size - 1)
    k = s.layout_count
    if k == s.layout_capacity:
        s.layout_capacity *= 2
        s.layouts = realloc(s.layouts, s.layout_capacity * LAYOUT_SIZE)
    s.layout_count = k + 1
    layout = layout_of(S, k)
    elements = 1
    contiguous = True
    for d in range(ndim - 1, -1, -1):
        contiguous = contiguous and (shape[d] == 1 or strides[d] == elements)
        elements *= shape[d]
    layout.elements = elements
    layout.ndim = ndim
    layout.hash = h
    # extents of one may carry any stride; such a layout is read as contiguous but is not the canonical one
    layout.contiguous = k if contiguous or elements == 0 else 0
    for d in range(ndim):
        shape_of(S, k)[d] = shape[d]
        strides_of(S, k)[d] = strides[d]
    i64(s.layout_index)[slot] = k
    if 2 * k > s.layout_index_size:
        _reindex(S)
    return k


@internal_words
def contiguous_of(S, k):
    """Id of the contiguous layout with the shape of layout `k`."""
    known = layout_of(S, k).contiguous
    if known:
        return known
    ndim = layout_of(S, k).ndim
    shape = i64(S + OUTER_SHAPE_OFFSET)
    strides = i64(S + OUTER_STRIDES_OFFSET)
    step = 1
    for d in range(ndim - 1, -1, -1):
        shape[d] = shape_of(S, k)[d]
        strides[d] = step
        step *= shape[d]
    found = intern(S, ndim, S + OUTER_SHAPE_OFFSET, S + OUTER_STRIDES_OFFSET)
    layout_of(S, k).contiguous = found
    return found


@internal_words
def same_shape(S, a, b):
    """Whether two layouts have the same extents."""
    if a == b:
        return True
    ndim = layout_of(S, a).ndim
    if ndim != layout_of(S, b).ndim:
        return False
    for d in range(ndim):
        if shape_of(S, a)[d] != shape_of(S, b)[d]:
            return False
    return True


@internal_words
def broadcast(S, a, b):
    """Id of the contiguous layout both broadcast to, 0 if they do not."""
    if a == b:
        return contiguous_of(S, a)
    A = layout_of(S, a)
    B = layout_of(S, b)
    if B.elements == 1 and B.ndim <= A.ndim:
        return contiguous_of(S, a)
    if A.elements == 1 and A.ndim <= B.ndim:
        return contiguous_of(S, b)
    ndim = max(A.ndim, B.ndim)
    shape = i64(S + OUTER_SHAPE_OFFSET)
    strides = i64(S + OUTER_STRIDES_OFFSET)
    step = 1
    for d in range(ndim - 1, -1, -1):
        da = d - ndim + A.ndim
        db = d - ndim + B.ndim
        na = shape_of(S, a)[da] if da >= 0 else 1
        nb = shape_of(S, b)[db] if db >= 0 else 1
        if na != nb and na != 1 and nb != 1:
            return 0
        shape[d] = nb if na == 1 else na
        strides[d] = step
        step *= shape[d]
    return intern(S, ndim, S + OUTER_SHAPE_OFFSET, S + OUTER_STRIDES_OFFSET)


@internal_inline
def begin_plan(S):
    """Start a plan with no operands: the caller writes layout ids to ``operand``."""
    for p in range(OPERANDS):
        i64(S + OPERAND_OFFSET)[p] = 0


@internal_words
def plan(S, target):
    """Find how the operands run along the elements of contiguous layout `target`; the number of work items.

    ``flat`` is 1 if each is contiguous or a scalar (its ``step`` is 1 or 0, and an item is an element), else 0 (an item is an inner
    loop of a strided plan).
    """
    s = state_at(S)
    step = i64(S + STEP_OFFSET)
    elements = layout_of(S, target).elements
    flat = 1
    for p in range(OPERANDS):
        k = i64(S + OPERAND_OFFSET)[p]
        if k == target:
            step[p] = 1
        elif k:
            layout = layout_of(S, k)
            if layout.elements == 1:
                step[p] = 0
            elif layout.contiguous == k and layout.elements == elements:
                step[p] = 1
            else:
                flat = 0
    s.flat = flat
    if flat or elements == 0:
        s.flat = 1
        return elements
    return plan_strided(S, target)


@internal_words
def plan_strided(S, target):
    """Turn the operands' strides over `target` into the fewest loops that serve them all.

    Fills ``inner``, ``step`` and the outer loops; returns the number of inner loops to run.
    """
    s = state_at(S)
    ndim = layout_of(S, target).ndim
    shape = i64(S + OUTER_SHAPE_OFFSET)
    strides = i64(S + OUTER_STRIDES_OFFSET)
    step = i64(S + STEP_OFFSET)
    layouts = i64(S + OPERAND_OFFSET)
    used = 0
    for d in range(ndim):
        extent = shape_of(S, target)[d]
        if extent == 1:
            continue
        joins = used > 0
        for p in range(OPERANDS):
            k = layouts[p]
            if k == 0:
                continue
            own = d - ndim + layout_of(S, k).ndim
            stride = 0
            if own >= 0 and shape_of(S, k)[own] != 1:
                stride = strides_of(S, k)[own]
            if used > 0 and strides[p * MAX_DIMS + used - 1] != stride * extent:
                joins = False
            step[p] = stride
        if joins:
            shape[used - 1] *= extent
            used -= 1
        else:
            shape[used] = extent
        for p in range(OPERANDS):
            if layouts[p]:
                strides[p * MAX_DIMS + used] = step[p]
        used += 1
    if used == 0:
        for p in range(OPERANDS):
            step[p] = 0
        s.inner = 1
        s.outer_ndim = 0
        return 1
    used -= 1
    s.outer_ndim = used
    s.inner = shape[used]
    outer = 1
    for d in range(used):
        outer *= shape[d]
    for p in range(OPERANDS):
        step[p] = strides[p * MAX_DIMS + used] if layouts[p] else 0
    return outer


@internal_words
def plan_pair(S, first, second):
    """A strided plan of two operands over the first one's elements; the number of inner loops, 0 if there are none."""
    if layout_of(S, first).elements == 0:
        return 0
    begin_plan(S)
    i64(S + OPERAND_OFFSET)[0] = first
    i64(S + OPERAND_OFFSET)[1] = second
    return plan_strided(S, first)


@internal_words
def outer_offset(S, position, index):
    """Offset in elements of operand `position` at inner loop `index` of a strided plan."""
    s = state_at(S)
    shape = i64(S + OUTER_SHAPE_OFFSET)
    strides = i64(S + OUTER_STRIDES_OFFSET + position * MAX_DIMS * 8)
    offset = 0
    for d in range(s.outer_ndim - 1, -1, -1):
        q = index // shape[d]
        offset += (index - q * shape[d]) * strides[d]
        index = q
    return offset


@internal
def line_offset(S, strided, extents, j, without):
    """Offset in elements of line `j` (a run along the last dim) of an array with the extents of one layout, the strides of another.

    Dimension `without` is left out; -1 for none.
    """
    offset = 0
    for d in range(layout_of(S, extents).ndim - 2, -1, -1):
        extent = shape_of(S, extents)[d]
        q = j // extent
        if d != without:
            offset += (j - q * extent) * strides_of(S, strided)[d]
        j = q
    return offset


@internal_words
def intern_from(S, ndim, address):
    """`intern` for extents, then strides MAX_DIMS words on, at an address."""
    return intern(S, ndim, address, address + 8 * MAX_DIMS)
