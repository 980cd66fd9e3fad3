"""tapegrad: automatic differentiation on a flat tape, executed by Numba-compiled code, behind a Tensor like PyTorch's."""

import builtins as _builtins
import importlib as _importlib
from importlib import metadata as _metadata
from typing import Any as _Any

from tapegrad import autograd, func, interchange, nn, ops, optim, program, utils
from tapegrad.creation import (
    arange,
    as_tensor,
    asarray,
    empty,
    empty_like,
    eye,
    from_numpy,
    full,
    full_like,
    linspace,
    logspace,
    ones,
    ones_like,
    tensor,
    zeros,
    zeros_like,
)
from tapegrad.dtypes import (
    bool,
    double,
    dtype,
    finfo,
    float,
    float16,
    float32,
    float64,
    get_default_dtype,
    half,
    iinfo,
    int,
    int8,
    int16,
    int32,
    int64,
    long,
    promote_types,
    set_default_dtype,
    short,
    uint8,
)
from tapegrad.func import grad_and_value, value_and_grad, vmap
from tapegrad.grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from tapegrad.metadata import Size, device
from tapegrad.ops._operands import result_type
from tapegrad.ops._rule import PUBLIC as _PUBLIC
from tapegrad.printing import set_printoptions
from tapegrad.profiling import profile
from tapegrad.program import compile
from tapegrad.random import (
    Generator,
    bernoulli,
    get_rng_state,
    initial_seed,
    manual_seed,
    multinomial,
    normal,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
    seed,
    set_rng_state,
)
from tapegrad.serialization import load, save
from tapegrad.tensor import Tensor

from math import e, inf, nan, pi  # isort: skip

globals().update(_PUBLIC)
newaxis = None
strided = "tapegrad.strided"
__version__ = _metadata.version("tapegrad")


def is_tensor(obj: object) -> "_builtins.bool":
    """Whether an object is a tensor."""
    return isinstance(obj, Tensor)


def __getattr__(name: str) -> _Any:
    """What is slow to import, at first use; to type checkers, also the operations added from the registry."""
    if name in ("batch", "optimize"):
        return _importlib.import_module(f"tapegrad.{name}")
    raise AttributeError(f"module 'tapegrad' has no attribute '{name}'")
