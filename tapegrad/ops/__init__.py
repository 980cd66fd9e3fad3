"""What can be computed: one declaration an op, one file a family."""

from tapegrad.ops import arithmetic, convert, pointwise
