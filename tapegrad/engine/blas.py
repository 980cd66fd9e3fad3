"""Matrix products for compiled code: SciPy's BLAS by address, plain loops where they are faster.

Everything here speaks row-major: a matrix is a pointer and two strides in elements. BLAS takes any matrix
with one stride of 1, transposed views included; other strides go through a loop, so a caller who wants speed
copies first.
"""

import contextlib
import ctypes
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

from tapegrad.engine import kernels
from tapegrad.engine.structs import internal, internal_contract, internal_sum

_ROUTINES = ("gemm", "gemv", "dot")
_INT_MAX = 2**31 - 1

# products with fewer multiplications are faster in a loop: BLAS takes about 75 ns to get going
SMALL = 350


@functools.cache
def bind_symbols() -> None:
    """Tell LLVM where SciPy's BLAS lives in this process.

    Compiled code names the routines by symbol, so code cached on disk stays valid in another process,
    provided this was called before it was compiled or loaded.
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


@contextlib.contextmanager
def one_thread():
    """Keep each product to one core meanwhile: its last bits depend on among how many it is shared.

    Where SciPy's BLAS is no OpenBLAS that can be asked (on Windows, or with MKL), nothing happens.
    """
    controls = _thread_controls()
    if controls is None:
        yield
        return
    get, put = controls
    before = get()
    put(1)
    try:
        yield
    finally:
        put(before)


@functools.cache
def _thread_controls():
    # OpenBLAS's own functions, among the libraries that the extension module is linked with
    library = ctypes.CDLL(_cython_blas().__file__)
    for prefix in ("scipy_", ""):
        try:
            return library[f"{prefix}openblas_get_num_threads"], library[f"{prefix}openblas_set_num_threads"]
        except AttributeError:
            pass
    return None


def _capsule_address(capsule) -> int:
    api = ctypes.pythonapi
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))
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

    t: whether to transpose; i: integer; r: real number; p: pointer to elements. The last pointer's type
    selects the routine.
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
    """A matrix's leading dimension for BLAS if it is row-major, minus that if column-major, 0 if neither."""
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


@intrinsic
def zero_of(typing_context, pointer):
    """Zero, of the type a pointer points to."""

    def codegen(context, builder, signature, args):
        return context.get_constant(signature.return_type, 0)

    return pointer.dtype(pointer), codegen


@intrinsic
def one_of(typing_context, pointer):
    """One, of the type a pointer points to."""

    def codegen(context, builder, signature, args):
        return context.get_constant(signature.return_type, 1)

    return pointer.dtype(pointer), codegen


@intrinsic
def ahead(typing_context, pointer, elements):
    """A pointer some elements further on."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.int64), codegen


@internal_contract
def _by_rows(m, n, k, alpha, a, as0, as1, b, bs0, beta, c, ldc):
    # rows of `b` are contiguous: each row of the result is a sum of them, four at a time
    zero = zero_of(c)
    for i in range(m):
        out = ahead(c, i * ldc)
        if beta == zero:
            for j in range(n):
                out[j] = zero
        else:
            for j in range(n):
                out[j] *= beta
        row = ahead(a, i * as0)
        p = 0
        while p + 4 <= k:
            w0, w1 = alpha * row[p * as1], alpha * row[(p + 1) * as1]
            w2, w3 = alpha * row[(p + 2) * as1], alpha * row[(p + 3) * as1]
            b0, b1, b2, b3 = (
                ahead(b, p * bs0),
                ahead(b, (p + 1) * bs0),
                ahead(b, (p + 2) * bs0),
                ahead(b, (p + 3) * bs0),
            )
            for j in range(n):
                out[j] += w0 * b0[j] + w1 * b1[j] + w2 * b2[j] + w3 * b3[j]
            p += 4
        while p < k:
            w0 = alpha * row[p * as1]
            b0 = ahead(b, p * bs0)
            for j in range(n):
                out[j] += w0 * b0[j]
            p += 1


@internal_sum
def _by_elements(m, n, k, alpha, a, as0, as1, b, bs0, bs1, beta, c, ldc):
    # each element of the result is a dot product; LLVM makes a vector loop for strides of 1
    zero = zero_of(c)
    for i in range(m):
        for j in range(n):
            total = zero + zero
            for p in range(k):
                total += a[i * as0 + p * as1] * b[p * bs0 + j * bs1]
            if beta == zero:
                c[i * ldc + j] = alpha * total
            else:
                c[i * ldc + j] = alpha * total + beta * c[i * ldc + j]


@internal
def _plain_product(m, n, k, alpha, a, as0, as1, b, bs0, bs1, beta, c, ldc):
    # any type and any strides
    if bs1 == 1 and n > 1:
        _by_rows(m, n, k, alpha, a, as0, as1, b, bs0, beta, c, ldc)
    else:
        _by_elements(m, n, k, alpha, a, as0, as1, b, bs0, bs1, beta, c, ldc)


@internal
def _blas_product(m, n, k, alpha, a, as0, as1, b, bs0, bs1, beta, c, ldc):
    # products of a column and a row are bound by memory, not by arithmetic
    if k > 1 and m * n * k >= SMALL and max(m, n, k, ldc) <= _INT_MAX:
        la, lb = leading(m, k, as0, as1), leading(k, n, bs0, bs1)
        if max(abs(la), abs(lb), as1, bs0) <= _INT_MAX:
            if m == 1 and n == 1:
                if as1 > 0 and bs0 > 0:
                    total = alpha * _dot(k, a, as1, b, bs0)
                    c[0] = total if beta == zero_of(c) else total + beta * c[0]
                    return
            elif m == 1 or n == 1:
                # a product of one row is the transpose of one with one column
                row = m == 1
                leads, step = (-lb, as1) if row else (la, bs0)
                if leads != 0 and step > 0:
                    matrix, vector = (b, a) if row else (a, b)
                    _matrix_vector(m * n, k, alpha, matrix, leads, vector, step, beta, c, 1 if row else ldc)
                    return
            elif la != 0 and lb != 0:
                # the transpose of a row-major product, in column-major order, is the same memory
                _gemm(lb < 0, la < 0, n, m, k, alpha, b, abs(lb), a, abs(la), beta, c, ldc)
                return
    _plain_product(m, n, k, alpha, a, as0, as1, b, bs0, bs1, beta, c, ldc)


@internal
def _matrix_vector(m, k, alpha, a, la, x, step, beta, y, stride):
    zero = zero_of(y)
    if beta == zero:
        # some versions of OpenBLAS multiply NaN by zero here
        for i in range(m):
            y[i * stride] = zero
        beta = one_of(y)
    if la > 0:
        _gemv(1, k, m, alpha, a, la, x, step, beta, y, stride)
    else:
        _gemv(0, m, k, alpha, a, -la, x, step, beta, y, stride)


# a product is long code that kernels need several times over: it is compiled once a dtype and called by
# symbol

_PRODUCT = "def {name}(m, n, k, alpha, a, as0, as1, b, bs0, bs1, beta, c, ldc):\n"
_PRODUCT += "    compute(m, n, k, alpha, P(a), as0, as1, P(b), bs0, bs1, beta, P(c), ldc)\n"


def _product_types(real):
    word = types.int64
    return [word] * 3 + [real] + [word] * 6 + [real] + [word] * 2


@functools.cache
def bind_product(dtype: int) -> None:
    """Make `product` callable for a dtype code: call it before compiling or loading code that uses it."""
    name, _, pointer = kernels.DTYPES[dtype]
    real = getattr(types, name)
    if real in types.real_domain:
        bind_symbols()
    symbol = f"tapegrad_product_{name}"
    compute = _blas_product if real in types.real_domain else _plain_product
    environment = {"compute": compute, "P": pointer}
    signature = types.void(*_product_types(real))
    address = kernels.build_callback(symbol, _PRODUCT.format(name=symbol), environment, signature)
    llvmlite.binding.add_symbol(symbol, address)


@intrinsic
def product(typing_context, m, n, k, alpha, a, as0, as1, b, bs0, bs1, beta, c, ldc):
    """``c = alpha a b + beta c`` for matrices of one type, through BLAS where that is faster.

    Args:
        m: rows of `a` and `c`.
        n: columns of `b` and `c`.
        k: columns of `a`, rows of `b`.
        alpha: factor of the product.
        a: first element.
        as0: elements from one row to the next.
        as1: elements from one column to the next.
        b: first element.
        bs0: as for `a`.
        bs1: as for `a`.
        beta: factor of what `c` held; zero never reads `c`.
        c: first element; its rows are contiguous.
        ldc: elements from one row to the next.
    """
    real = c.dtype
    wanted = _product_types(real)
    wanted[4] = wanted[7] = wanted[11] = c

    def codegen(context, builder, signature, values):
        word = ir.IntType(64)
        values = [builder.ptrtoint(v, word) if isinstance(v.type, ir.PointerType) else v for v in values]
        function_type = ir.FunctionType(ir.VoidType(), [v.type for v in values])
        symbol = f"tapegrad_product_{real}"
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, symbol), values)
        return context.get_dummy_value()

    return types.void(*wanted), codegen
