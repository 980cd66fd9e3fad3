"""lgamma and digamma by SciPy's scalar routines, called by address."""

import functools

import llvmlite.binding
from numba import types
from numba.extending import get_cython_function_address

from tapegrad.engine.vecmath_ir import publish, through_float64

_SCIPY_FUNCTIONS = {"tapegrad_lgamma": "gammaln", "tapegrad_digamma": "__pyx_fuse_1psi"}
_scipy_lgamma = types.ExternalFunction("tapegrad_lgamma", types.float64(types.float64, types.int32))
_scipy_digamma = types.ExternalFunction("tapegrad_digamma", types.float64(types.float64, types.int32))


@functools.cache
def bind_symbols():
    """Tell LLVM where SciPy's lgamma and digamma live in this process.

    Compiled code names them by symbol, so code cached on disk stays valid in another process, provided this
    was called before it loads: an unbound symbol crashes.  Compiling lgamma or digamma calls it already.
    """
    for symbol, name in _SCIPY_FUNCTIONS.items():
        address = get_cython_function_address("scipy.special.cython_special", name)
        llvmlite.binding.add_symbol(symbol, address)


def _from_scipy(kernel):
    def implementation_for(public, arguments):
        bind_symbols()
        return kernel if set(arguments) == {types.float64} else through_float64(public, arguments)

    return publish(kernel, implementation_for)


@_from_scipy
def lgamma(x):
    """ln|gamma(x)|, by SciPy's scalar routine; not vectorised."""
    return _scipy_lgamma(x, 0)


@_from_scipy
def digamma(x):
    """gamma'(x)/gamma(x), by SciPy's scalar routine; not vectorised."""
    return _scipy_digamma(x, 0)
