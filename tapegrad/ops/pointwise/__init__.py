"""Pointwise operations: a declaration is the scalar expression and its partials."""

# ruff: noqa: F403 - whatever a family declares is to be had here too
from tapegrad.ops.pointwise.basic import *  # isort: skip
from tapegrad.ops.pointwise.exponential import *  # isort: skip
from tapegrad.ops.pointwise.circular import *  # isort: skip
from tapegrad.ops.pointwise.special import *  # isort: skip
from tapegrad.ops.pointwise.rounding import *  # isort: skip
from tapegrad.ops.pointwise.choosing import *  # isort: skip
from tapegrad.ops.pointwise.comparing import *  # isort: skip
