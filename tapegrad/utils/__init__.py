"""What training loops use beside tensors and optimisers."""

from tapegrad.utils import checkpoint

__all__ = ["checkpoint"]
