"""What can be computed: one declaration an op, one file a family."""

from tapegrad.ops import (
    activation,
    arithmetic,
    contraction,
    convert,
    einsum,
    extremes,
    indexing,
    joining,
    linalg,
    loss,
    masking,
    movement,
    norms,
    padding,
    parts,
    pointwise,
    rearranging,
    reduction,
    scan,
    selecting,
    softmax,
    sorting,
)
from tapegrad.ops.warmup import warmup_jobs
