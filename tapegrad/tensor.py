"""The Tensor facade: identity, metadata, memory and printing; tapegrad.ops attaches the maths, tapegrad.interchange the rest.

A tensor is a handle: it holds the id of one buffer on the tape and little else.
"""

from __future__ import annotations

import ctypes
import math
import warnings
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tapegrad import dtypes, errors
from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import INFERENCE, INFERENCE_MODE, IS_VIEW, REQUIRES_GRAD, RETAIN_GRAD
from tapegrad.engine.tape import (
    LOOK_DATA,
    LOOK_GRAD,
    LOOK_META,
    LOOK_NODE,
    LOOK_STALE,
    LOOK_STORAGE,
    LOOK_TRACED,
    LOOK_VERSION,
)
from tapegrad.metadata import Size, check_dim, device, layout_facts
from tapegrad.printing import format_tensor

_S = rt.S


_CPU = device()
_TRACKED = IS_VIEW << 8

# by buffer id, the tensor that was last made a leaf with that id; it may have died, or moved on
leaves: dict[int, weakref.ref[Tensor]] = {}


# how many functions are being recorded into programs: what they read is noted, also where nothing is traced
recorders = 0


class Tensor:
    """A multi-dimensional array whose operations are recorded on the tape when it requires a gradient.

    Made by `tensor`, `zeros`, `randn` and the like, or as results of operations.

    >>> import tapegrad as tg
    >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    tensor([2., 4.])
    """

    if TYPE_CHECKING:  # what other modules attach

        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __neg__(self) -> Tensor: ...
        def __binary(self, other: Any) -> Tensor: ...

        __pos__ = __abs__ = __invert__ = __neg__
        __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = __matmul__ = __binary
        __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = __rpow__ = __rmatmul__ = __binary
        __and__ = __or__ = __xor__ = __rand__ = __ror__ = __rxor__ = __binary
        __lshift__ = __rshift__ = __rlshift__ = __rrshift__ = __binary
        __lt__ = __le__ = __gt__ = __ge__ = __binary
        __eq__ = __ne__ = __binary  # type: ignore[assignment]

    __slots__ = ("__weakref__", "_attached", "_grad", "_id", "_root", "_where")

    _attached: Any  # what hooks were registered in last
    _id: int  # its buffer on the tape
    _grad: Any  # what `grad` gave last, a tensor or None
    _root: Tensor | None  # of a view, its base
    _where: Any  # of a view, its geometry in the base's contiguous elements; None if it has none

    def __new__(cls, data: Any = None, *args: Any, dtype: Any = None, device: Any = None) -> Tensor:
        from tapegrad import creation

        if args or isinstance(data, int):
            return creation.empty(data, *args, dtype=dtype, device=device)
        return creation.tensor([] if data is None else data, dtype=dtype or dtypes.get_default_dtype(), device=device)

    def __del__(self, release: Any = rt, S: int = _S) -> None:
        try:
            if release.release(S, self._id):
                release.drop_orphans(S)
        except AttributeError:  # never got an id
            pass

    # metadata

    @property
    def shape(self) -> Size:
        """The extents, as a `Size`."""
        return layout_facts(rt.look(_S, self._id, LOOK_META) >> 16)[0]

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one extent of it."""
        return self.shape if dim is None else self.shape[check_dim(dim, self.ndim)]

    def stride(self, dim: int | None = None) -> Any:
        """The strides in elements, or one of them."""
        strides = layout_facts(rt.look(_S, self._id, LOOK_META) >> 16)[1]
        return strides if dim is None else strides[check_dim(dim, len(strides))]

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(layout_facts(rt.look(_S, self._id, LOOK_META) >> 16)[0])

    def dim(self) -> int:
        """The number of dimensions."""
        return self.ndim

    ndimension = dim

    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    nelement = numel

    @property
    def dtype(self) -> dtypes.dtype:
        """The type of the elements."""
        return dtypes.ALL[rt.look(_S, self._id, LOOK_META) & 0xFF]

    @property
    def device(self) -> device:
        """Always the CPU."""
        return _CPU

    def cpu(self) -> Tensor:
        """The tensor itself: every tensor is on the CPU."""
        return self

    is_cuda = False
    is_sparse = False
    layout = "tapegrad.strided"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    def element_size(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel() * self.dtype.itemsize

    def is_contiguous(self) -> bool:
        """Whether the elements lie in memory in row-major order without gaps."""
        return layout_facts(rt.look(_S, self._id, LOOK_META) >> 16)[2]

    def is_floating_point(self) -> bool:
        """Whether the dtype is a floating one."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """Always False: there are no complex tensors."""
        return False

    def is_signed(self) -> bool:
        """Whether the dtype holds negative values."""
        return self.dtype.is_signed

    def data_ptr(self) -> int:
        """Address of the first element."""
        return rt.look(_S, self._id, LOOK_DATA)

    def storage_offset(self) -> int:
        """Elements between the start of the memory and the first element."""
        storage = rt.storage(rt.look(_S, self._id, LOOK_STORAGE))
        return (self.data_ptr() - int(storage["base"])) // self.itemsize

    # autograd metadata

    def _flags(self) -> int:
        flags = rt.look(_S, self._id, LOOK_META) >> 8 & 0xFF
        if flags & IS_VIEW:
            self._refresh()
            flags = rt.look(_S, self._id, LOOK_META) >> 8 & 0xFF
        return flags

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor; set it on leaves."""
        return bool(self._flags() & REQUIRES_GRAD)

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set whether gradients are wanted, in place; returns the tensor.

        Raises:
            RuntimeError: for dtypes that are not floating, and to switch it off on a result.
        """
        flags = self._flags()
        k = self._id
        if rt.look(_S, k, LOOK_NODE) >= 0:
            if not requires_grad:
                raise RuntimeError(errors.NOT_A_LEAF)
            return self
        if requires_grad and not dtypes.ALL[rt.look(_S, k, LOOK_META) & 0xFF].is_floating_point:
            raise RuntimeError(errors.NOT_FLOATING_SET)
        if requires_grad and flags & INFERENCE and not rt.mode_of_thread(_S) & INFERENCE_MODE:
            raise RuntimeError("Setting requires_grad=True on inference tensor outside InferenceMode is not allowed.")
        rt.set_flag(_S, self._id, REQUIRES_GRAD, bool(requires_grad))
        leaves[self._id] = weakref.ref(self)
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether the tensor was made by the user rather than by a recorded operation."""
        self._flags()
        return rt.look(_S, self._id, LOOK_NODE) < 0

    @property
    def _version(self) -> int:
        if self.is_inference():
            raise RuntimeError("Inference tensors do not track version counter.")
        return rt.look(_S, self._id, LOOK_VERSION)

    def is_inference(self) -> bool:
        """Whether the tensor was made in inference mode."""
        return bool(self._flags() & INFERENCE)

    @property
    def grad(self) -> Tensor | None:
        """The accumulated gradient of a leaf (or of a tensor that retains its own), None before the first `backward`."""
        k = rt.look(_S, self._id, LOOK_GRAD)
        if not k:
            if rt.look(_S, self._id, LOOK_NODE) >= 0 and not self._flags() & RETAIN_GRAD:
                warnings.warn(errors.GRAD_OF_NON_LEAF, UserWarning, stacklevel=2)
            return None
        known = getattr(self, "_grad", None)
        if known is not None and known._id == k:
            return known
        rt.retain(_S, k)
        self._grad = g = wrap(k)
        g._root = g._where = None
        return g

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is None:
            if rt.look(_S, self._id, LOOK_GRAD):
                rt.set_grad(_S, self._id, 0)
            self._grad = None
            return
        if not isinstance(value, Tensor):
            raise TypeError(
                f"assigned grad expected to be a Tensor or None but got grad of type {type(value).__name__}"
            )
        if value is self:
            raise RuntimeError("can't assign Variable as its own grad")
        if value.dtype is not self.dtype:
            raise RuntimeError(
                "attempting to assign a gradient with dtype "
                f"'{value.dtype}' to a tensor with dtype '{self.dtype}'. The gradient must match the tensor's dtype."
            )
        if value.shape != self.shape:
            raise RuntimeError(
                f"attempting to assign a gradient of size '{list(value.shape)}' to a tensor of size '{list(self.shape)}'. "
                "Please ensure that the gradient and the tensor are the same size"
            )
        rt.retain(_S, value._id)
        rt.set_grad(_S, self._id, value._id)
        self._grad = value

    @grad.deleter
    def grad(self) -> None:
        self.grad = None

    def retain_grad(self) -> None:
        """Keep the gradient of this intermediate result in `grad` at the next backward."""
        flags = self._flags()
        if not flags & REQUIRES_GRAD:
            raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
        if not self.is_leaf:
            rt.set_flag(_S, self._id, RETAIN_GRAD, 1)

    @property
    def retains_grad(self) -> bool:
        """Whether `retain_grad` was called on this intermediate result."""
        return bool(self._flags() & RETAIN_GRAD)

    def detach(self) -> Tensor:
        """The same memory, outside the graph."""
        if recorders:
            self._refresh()
        return wrap(check_id(rt.share_leaf(_S, self._id, 0)))

    def detach_(self) -> Tensor:
        """Take this tensor out of the graph that computed it, in place."""
        if self._is_view():
            raise RuntimeError("Can't detach views in-place. Use detach() instead.")
        if self.is_leaf:
            rt.set_flag(_S, self._id, REQUIRES_GRAD, 0)
            return self
        # what was computed from this tensor keeps its way back through the old place
        self._move_to(check_id(rt.share_leaf(_S, self._id, 0)))
        return self

    def _move_to(self, k: int) -> None:
        """Stand for buffer `k` from now on, whose handle is taken over; its gradient and the wish for one go along."""
        rt.move_grad(_S, self._id, k)
        rt.release(_S, self._id)
        self._id = k

    @property
    def data(self) -> Tensor:
        """The same memory, outside the graph, with a version counter of its own."""
        if rt.look(_S, self._id, LOOK_TRACED):
            from tapegrad.autograd.sampling import refuse_data

            refuse_data(self, errors.DATA_IN_VMAP)
        if recorders:
            self._refresh()
        return wrap(check_id(rt.share_leaf(_S, self._id, 1)))

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"Variable data has to be a tensor, but got {type(value).__name__}")
        if value.dtype is not self.dtype:
            raise RuntimeError(
                f"Attempted to set the data of a {self.dtype} tensor to a {value.dtype} one: incompatible tensor type"
            )
        if rt.look(_S, self._id, LOOK_TRACED) or rt.look(_S, value._id, LOOK_TRACED):
            from tapegrad.autograd.sampling import before_rebinding

            before_rebinding(self, value)
        twin = check_id(rt.share_leaf(_S, value._id, 1))
        rt.take_memory(_S, self._id, twin)
        rt.release(_S, twin)

    # views

    @property
    def _base(self) -> Tensor | None:
        return self._base_tensor()

    def _is_view(self) -> bool:
        return self._base_tensor() is not None

    def _base_tensor(self) -> Tensor | None:
        return self._root if rt.look(_S, self._id, LOOK_META) & _TRACKED else None

    def _refresh(self) -> None:
        """If this view's base was rewritten by a recorded operation, become a view of its new value."""
        base = self._base_tensor()
        if base is not None and rt.look(_S, self._id, LOOK_STALE):
            from tapegrad.ops._view import rebuild

            rebuild(self, base)

    # memory

    def _address_array(self) -> np.ndarray:
        """A NumPy array over this tensor's memory that does not keep it alive; refused where values may not be read."""
        if recorders or rt.look(_S, self._id, LOOK_TRACED):
            from tapegrad.autograd.sampling import before_reading

            if before_reading(self):
                array = self._memory_array()
                array.flags.writeable = False
                return array
        return self._memory_array()

    def _memory_array(self) -> np.ndarray:
        """As `_address_array`, whoever asks."""
        k = self._id
        meta = rt.look(_S, k, LOOK_META)
        shape, strides, _ = layout_facts(meta >> 16)
        d = dtypes.ALL[meta & 0xFF]
        if 0 in shape:
            return np.empty(shape, d.numpy)
        reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        memory = (ctypes.c_char * (reach * d.itemsize)).from_address(rt.look(_S, k, LOOK_DATA))
        return np.ndarray(shape, d.numpy, memory, 0, tuple(s * d.itemsize for s in strides))

    def item(self) -> Any:
        """The only element, as a Python number.

        Raises:
            RuntimeError: if there is more or less than one.
        """
        array = self._address_array()
        if array.size != 1:
            raise RuntimeError(f"a Tensor with {array.size} elements cannot be converted to Scalar")
        return array.item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        return self._address_array().tolist()

    def __bool__(self) -> bool:
        n = self.numel()
        if n != 1:
            how = "no values" if n == 0 else "more than one value"
            raise RuntimeError(f"Boolean value of Tensor with {how} is ambiguous")
        return bool(self.item())

    def _number(self) -> Any:
        if self.numel() != 1:
            raise ValueError("only one element tensors can be converted to Python scalars")
        return self.item()

    def __float__(self) -> float:
        return float(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __index__(self) -> int:
        if self.numel() != 1 or self.dtype.is_floating_point:
            raise TypeError("only integer tensors of a single element can be converted to an index")
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self._number())

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d tensor")
        return iter(self.unbind(0))

    def __contains__(self, element: Any) -> bool:
        return bool((self == element).any())

    def __hash__(self) -> int:
        return id(self)

    # printing

    def __repr__(self) -> str:
        if recorders:
            from tapegrad.autograd.sampling import before_printing

            before_printing(self)
        node = self.grad_fn
        return format_tensor(
            self._memory_array(),
            requires_grad=self.requires_grad,
            grad_fn_name=type(node).__name__ if node is not None else None,
            default_dtype=dtypes.get_default_dtype().numpy,
        )

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else object.__format__(self, spec)

    def type(self, dtype: Any = None) -> Any:
        """The type's name, as ``'tapegrad.FloatTensor'``; with `dtype`, the tensor converted to it."""
        if dtype is None:
            return f"tapegrad.{self.dtype.tensor_type}Tensor"
        if isinstance(dtype, str):
            found = [d for d in dtypes.ALL if dtype == f"tapegrad.{d.tensor_type}Tensor"]
            if not found:
                raise ValueError(f"invalid type: '{dtype}'")
            dtype = found[0]
        return self.to(dtype)


_new = object.__new__


def wrap(k: int) -> Tensor:
    """The tensor that takes over the caller's handle on buffer `k`."""
    t = _new(Tensor)
    t._id = k
    return t


def check_id(k: int) -> int:
    """A buffer id that an allocating entry point returned, or MemoryError."""
    if k <= 0:
        raise MemoryError("tapegrad: no memory for the tensor; free some tensors or use smaller batches")
    return k
