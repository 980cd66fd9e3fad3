"""What neural networks are built of."""

from tapegrad.nn import functional

__all__ = ["functional"]
