"""What can be computed: one declaration an op, one file a family."""

from tapegrad.ops import (
    arithmetic,
    contraction,
    convert,
    einsum,
    indexing,
    joining,
    linalg,
    masking,
    movement,
    parts,
    pointwise,
    rearranging,
    reduction,
    selecting,
    sorting,
)
