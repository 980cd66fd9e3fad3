"""Matrix products for compiled code: SciPy's BLAS by address, plain loops where they are faster or BLAS has no routine.

Everything here speaks row-major: a matrix is a pointer and two strides in elements. BLAS takes any matrix with one
stride of 1, transposed views included; other strides go through a loop, so a caller who wants speed copies first.
"""

import functools
import importlib.machinery
import importlib.util
import os
import sys

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapegrad.engine.structs import internal, internal_sum

_ROUTINES = ("gemm", "gemv", "dot")
_INT_MAX = 2**31 - 1

# products with fewer multiplications are faster in a loop than through BLAS
SMALL = 1500


@functools.cache
def bind_symbols() -> None:
    """Tell LLVM where SciPy's BLAS lives in this process; call it before compiling or loading code that uses it.

    Compiled code names the routines by symbol, so code cached on disk stays valid in another process.
    """
    table = _cython_blas().__pyx_capi__
    for routine in _ROUTINES:
        for letter in "sd":
            address = _capsule_address(table[letter + routine])
            llvmlite.binding.add_symbol(f"tapegrad_{letter}{routine}", address)


def _cython_blas():
    # the extension module alone loads in 3 ms; `import scipy.linalg.cython_blas` takes 150 ms for its package
    name = "scipy.linalg.cython_blas"
    if name in sys.modules:
        return sys.modules[name]
    import scipy

    folder = os.path.join(os.path.dirname(scipy.__file__), "linalg")
    spec = importlib.machinery.PathFinder.find_spec(name, [folder])
    try:
        if spec is None or spec.loader is None:
            raise ImportError(name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError:
        return importlib.import_module(name)
    # a later import of scipy.linalg must find it missing, or it would not set its attribute `cython_blas`
    sys.modules.pop(name, None)
    return module


def _capsule_address(capsule) -> int:
    import ctypes

    api = ctypes.pythonapi
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", api)
    )
    return pointer_of(capsule, name_of(capsule))


# Fortran passes everything by address: the intrinsics below spill their arguments to the stack

_INT, _CHAR = ir.IntType(32), ir.IntType(8)


def _spill(builder, value):
    place = cgutils.alloca_once(builder, value.type)
    builder.store(value, place)
    return place


def _letter(real):
    return "d" if real == types.float64 else "s"


def _fortran(routine: str, kinds: str):
    """An intrinsic that calls a BLAS routine; `kinds` has a letter an argument.

    t: whether to transpose; i: integer; r: real number; p: pointer to elements. The last pointer's type selects the routine.
    """

    def declare(typing_context, *arguments):
        pointers = [a for a, kind in zip(arguments, kinds, strict=True) if kind == "p"]
        if not all(isinstance(p, types.CPointer) for p in pointers):
            return None
        real = pointers[-1].dtype
        if real not in (types.float32, types.float64):
            return None
        wanted = {"t": types.int64, "i": types.int64, "r": real, "p": pointers[-1]}
        signature = (real if routine == "dot" else types.void)(*(wanted[kind] for kind in kinds))

        def codegen(context, builder, signature, values):
            places = []
            for value, kind in zip(values, kinds, strict=True):
                if kind == "p":
                    places.append(value)
                elif kind == "r":
                    places.append(_spill(builder, value))
                elif kind == "i":
                    places.append(_spill(builder, builder.trunc(value, _INT)))
                else:
                    flag = builder.icmp_signed("!=", value, ir.Constant(value.type, 0))
                    letter = builder.select(flag, ir.Constant(_CHAR, ord("T")), ir.Constant(_CHAR, ord("N")))
                    places.append(_spill(builder, letter))
            result = context.get_value_type(signature.return_type) if routine == "dot" else ir.VoidType()
            function_type = ir.FunctionType(result, [p.type for p in places])
            name = f"tapegrad_{_letter(real)}{routine}"
            function = cgutils.get_or_insert_function(builder.module, function_type, name)
            found = builder.call(function, places)
            return found if routine == "dot" else context.get_dummy_value()

        return signature, codegen

    return declare


# intrinsics are told apart by what their definition refers to, so each has one of its own
_gemm_rule, _gemv_rule, _dot_rule = (
    _fortran("gemm", "ttiiirpipirpi"),
    _fortran("gemv", "tiirpipirpi"),
    _fortran("dot", "ipipi"),
)


@intrinsic
def _gemm(typing_context, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    return _gemm_rule(typing_context, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)


@intrinsic
def _gemv(typing_context, t, m, n, alpha, a, lda, x, incx, beta, y, incy):
    return _gemv_rule(typing_context, t, m, n, alpha, a, lda, x, incx, beta, y, incy)


@intrinsic
def _dot(typing_context, n, x, incx, y, incy):
    return _dot_rule(typing_context, n, x, incx, y, incy)


@internal
def leading(rows, columns, s0, s1):
    """How BLAS sees a matrix: its leading dimension if row-major, minus that if column-major, 0 if neither."""
    if s1 == 1 or columns <= 1:
        if rows <= 1:
            return max(columns, 1)
        if s0 >= columns and s0 >= 1:
            return s0
    if s0 == 1 or rows <= 1:
        if columns <= 1:
            return -max(rows, 1)
        if s1 >= rows and s1 >= 1:
            return -s1
    return 0


@internal_sum
def _dot_rows(m, n, k, alpha, a, as0, b, bs1, beta, c, ldc):
    # rows of `a` with columns of `b`, both contiguous
    zero = c[0] * 0
    for i in range(m):
        for j in range(n):
            total = zero
            total = 0
            for p in range(k):
                total += a[i * as0 + p] * b[j * bs1 + p]
            c[i * ldc + j] = alpha * total + (beta * c[i * ldc + j] if beta != 0 else 0)
