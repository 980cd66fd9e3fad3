"""Messages that both libraries word alike, and refusals that only one of them makes."""

from __future__ import annotations

import re

from .program import Failure

TWICE = "Trying to backward through the graph a second time"
WRITTEN_TO = "one of the variables needed for gradient computation has been modified by an inplace operation"

LEAF_WRITTEN = (
    "a leaf Variable that requires grad is being used",
    "a view of a leaf Variable that requires grad is being used",
)

# the beginnings of the messages that users can rely on word for word
EXACT = (
    TWICE,
    WRITTEN_TO,
    "grad can be implicitly created only for scalar outputs",
    "element 0 of tensors does not require grad",
    *LEAF_WRITTEN,
    "Only Tensors of floating point and complex dtype can require",
    "you can only change requires_grad flags of leaf variables",
    "Can't call numpy",
    "Mismatch in shape: grad_output",
    "One of the differentiated Tensors appears to not have been used",
    "The differentiated Tensor at index",
    "gradients can be either Tensors or None",
)

# Refused by one library where the other does it rightly: a write to a view of one of several views; a write of elements that are
# read too; masked values written to elements that share memory, which PyTorch deprecates.
BY_ONE = (
    "is the output of a function that returns multiple views",
    "some elements of the input tensor and the written-to tensor refer to a single memory location",
    "more than one element of the written-to tensor refers to a single memory location",
    "Trying to use a saved tensor that has been detached in-place",
    "leaf variable has been moved into the graph interior",
)

# Refused because something has no gradient.
WITHOUT_GRADIENT = (
    "element 0 of tensors does not require grad",
    "One of the differentiated Tensors does not require grad",
    "One of the differentiated Tensors appears to not have been used",
    "The differentiated Tensor at index",
    "can't retain_grad on Tensor that has requires_grad=False",
)

# Products, of whose operands PyTorch sometimes saves copies.
PRODUCTS = ("@", "matmul", "tensordot", "einsum", "linear")

# Of an index out of range, which tapegrad always answers with an IndexError.
OUT_OF_RANGE = ("INDICES element is out of DATA bounds", "index_select(): self indexing axis dim should be positive")


def says(failure: Failure | None, *beginnings: str) -> bool:
    """Whether a failure's message has one of some beginnings."""
    return failure is not None and failure.message.startswith(beginnings)


def stops_half_way(failure: Failure) -> bool:
    """Whether a sweep failed after it had begun: what it has freed, and added to gradients, is nobody's business."""
    return says(failure, TWICE, WRITTEN_TO)


def as_tapegrad(message: str) -> str:
    """A message of PyTorch's as tapegrad must word it."""
    # PyTorch 2.13 numbers the input, its documentation does not
    text = re.sub(
        "^The differentiated Tensor at index [0-9]+ appears", "One of the differentiated Tensors appears", message
    )
    return text.replace("torch", "tapegrad")


def kind_of(failure: Failure) -> str:
    """A failure without its names and numbers."""
    return f"{failure.kind}: " + " ".join(re.findall(r"[A-Za-z']+", failure.message)[:6])
