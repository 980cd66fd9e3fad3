"""What the vector functions are built of: LLVM instructions as Numba intrinsics, and their publication.

Everything here works on scalars, without branches, so that a loop around it can become SIMD code.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

# A caller's fastmath must not reach the error-free sums here, hence the explicit False.
JIT_OPTIONS = {"error_model": "numpy", "fastmath": False, "forceinline": True}
inline = njit(**JIT_OPTIONS)


class _Layout:
    """Where IEEE 754 keeps exponent and sign in one float width."""

    def __init__(self, numba_type):
        double = numba_type is types.float64
        self.width, self.mantissa, self.bias = (64, 52, 1023) if double else (32, 23, 127)
        self.int = ir.IntType(self.width)
        self.float = ir.DoubleType() if double else ir.FloatType()
        self.suffix = f"f{self.width}"
        # Adding this constant rounds to the nearest integer and leaves that integer in the low bits.
        self.magic = 1.5 * 2.0**self.mantissa
        self.magic_bits = ((self.bias + self.mantissa) << self.mantissa) | (1 << (self.mantissa - 1))

    def constant(self, value):
        return ir.Constant(self.float, value if self.width == 64 else float(np.float32(value)))


def _common_float(*args):
    """float32 if any argument is float32 (so literals adapt to it), else float64."""
    return types.float32 if types.float32 in args else types.float64


def _llvm_call(builder, name, layout, args):
    function_type = ir.FunctionType(layout.float, [layout.float] * len(args))
    name = f"llvm.{name}.{layout.suffix}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def _unary_instruction(name):
    @intrinsic
    def operation(typingctx, x):
        layout = _Layout(x)
        return x(x), lambda context, builder, sig, args: _llvm_call(builder, name, layout, args)

    return operation


floor_instruction = _unary_instruction("floor")
ceil_instruction = _unary_instruction("ceil")
trunc_instruction = _unary_instruction("trunc")
rint_instruction = _unary_instruction("roundeven")
fabs = _unary_instruction("fabs")
sqrt = _unary_instruction("sqrt")


@intrinsic
def copysign(typingctx, magnitude, sign):
    number = _common_float(magnitude, sign)
    layout = _Layout(number)
    return (
        number(number, number),
        lambda context, builder, sig, args: _llvm_call(builder, "copysign", layout, args),
    )


@intrinsic
def fma(typingctx, a, b, c):
    """a*b + c with one rounding."""
    number = _common_float(a, b, c)
    layout = _Layout(number)
    return (
        number(number, number, number),
        lambda context, builder, sig, args: _llvm_call(builder, "fma", layout, args),
    )


@intrinsic
def select(typingctx, condition, if_true, if_false):
    number = _common_float(if_true, if_false)
    return (number(types.boolean, number, number), lambda context, builder, sig, args: builder.select(*args))


@intrinsic
def literal(typingctx, value, like):
    """value in the float type of ``like``."""
    return like(types.float64, like), lambda context, builder, sig, args: context.cast(
        builder, args[0], types.float64, like
    )


_LONGEST_CHAIN = 8


def constant(double, single):
    """A number whose best value depends on the width: constant(x) gives the one for x's type."""

    @intrinsic
    def constant(typingctx, like):
        layout = _Layout(like)
        value = layout.constant(double if layout.width == 64 else single)
        return like(like), lambda context, builder, sig, args: value

    return constant


def polynomial(double, single=None):
    """Evaluation with fused multiply-adds, coefficients from the constant term up.

    Horner's rule costs least, but one long chain leaves the multipliers waiting; long polynomials run as
    several chains in a power of x.
    """

    def chain(builder, layout, coefficients, x):
        if len(coefficients) > _LONGEST_CHAIN:
            square = builder.fmul(x, x)
            return _llvm_call(
                builder,
                "fma",
                layout,
                [
                    x,
                    chain(builder, layout, coefficients[1::2], square),
                    chain(builder, layout, coefficients[::2], square),
                ],
            )
        total = coefficients[-1]
        for coefficient in coefficients[-2::-1]:
            total = _llvm_call(builder, "fma", layout, [total, x, coefficient])
        return total

    @intrinsic
    def polynomial(typingctx, x):
        layout = _Layout(x)
        coefficients = [layout.constant(c) for c in (double if layout.width == 64 else single)]

        return x(x), lambda context, builder, sig, args: chain(builder, layout, coefficients, args[0])

    return polynomial


def _power_of_two(builder, layout, exponent):
    """2**exponent for an integer inside the normal exponent range."""
    biased = builder.add(exponent, ir.Constant(layout.int, layout.bias))
    return builder.bitcast(builder.shl(biased, ir.Constant(layout.int, layout.mantissa)), layout.float)


def _rounded_integer(builder, layout, shifted):
    return builder.sub(builder.bitcast(shifted, layout.int), ir.Constant(layout.int, layout.magic_bits))


@intrinsic
def exp2_shifted(typingctx, shifted):
    """2**k from the float k + magic, k inside the normal exponent range."""
    layout = _Layout(shifted)

    def emit(context, builder, sig, args):
        return _power_of_two(builder, layout, _rounded_integer(builder, layout, args[0]))

    return shifted(shifted), emit


@intrinsic
def scale(typingctx, x, shifted):
    """x * 2**k from the float k + magic, in two factors so that overflow and subnormals come out right."""
    layout = _Layout(x)

    def emit(context, builder, sig, args):
        k = _rounded_integer(builder, layout, args[1])
        half = builder.ashr(k, ir.Constant(layout.int, 1))
        product = builder.fmul(args[0], _power_of_two(builder, layout, half))
        return builder.fmul(product, _power_of_two(builder, layout, builder.sub(k, half)))

    return x(x, x), emit


@intrinsic
def flip_if_odd(typingctx, x, shifted):
    """(-1)**k * x from the float k + magic."""
    layout = _Layout(x)

    def emit(context, builder, sig, args):
        parity = builder.shl(builder.bitcast(args[1], layout.int), ir.Constant(layout.int, layout.width - 1))
        return builder.bitcast(builder.xor(builder.bitcast(args[0], layout.int), parity), layout.float)

    return x(x, x), emit


@intrinsic
def is_odd(typingctx, shifted):
    layout = _Layout(shifted)

    def emit(context, builder, sig, args):
        return builder.trunc(builder.bitcast(args[0], layout.int), ir.IntType(1))

    return types.boolean(shifted), emit


@intrinsic
def split(typingctx, x):
    """(k, f) with x = 2**k * (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for positive x, subnormals included."""
    layout = _Layout(x)
    smallest_normal = layout.constant(2.0 ** (1 - layout.bias))
    lift = layout.mantissa + 2
    root_half_bits = 0x3FE6A09E667F3BCD if layout.width == 64 else 0x3F3504F3

    def emit(context, builder, sig, args):
        subnormal = builder.fcmp_ordered("<", args[0], smallest_normal)
        lifted = builder.select(subnormal, builder.fmul(args[0], layout.constant(2.0**lift)), args[0])
        bits = builder.bitcast(lifted, layout.int)
        mantissa_size = ir.Constant(layout.int, layout.mantissa)
        exponent = builder.ashr(builder.sub(bits, ir.Constant(layout.int, root_half_bits)), mantissa_size)
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, mantissa_size)), layout.float)
        offset = builder.select(subnormal, layout.constant(-float(lift)), layout.constant(0.0))
        k = builder.fadd(builder.sitofp(exponent, layout.float), offset)
        return cgutils.pack_array(builder, [k, builder.fsub(mantissa, layout.constant(1.0))])

    return types.UniTuple(x, 2)(x), emit


@inline
def keep_tiny(x, bound, result):
    """x itself where |x| < bound: the result equals it there, and signed zeros and subnormals survive."""
    return select(fabs(x) < literal(bound, x), x, result)


def with_libm_beyond(limit, name):
    """guard(x, y): y where |x| <= limit, else libm's ``name``(x), without spoiling a vectorised loop.

    A branch to a library call would stop the loop vectoriser, so the call is hidden in a function that
    declares its own vector variants; those test all lanes at once and call libm lane by lane only if needed.
    """
    lane_counts = (2, 4, 8, 16)

    def define_function(module, symbol, result):
        function = ir.Function(module, ir.FunctionType(result, [result, result]), symbol)
        function.linkage = "weak_odr"  # the vector variants are referenced only after vectorisation
        for attribute in ("noinline", "nounwind", "readnone"):
            function.attributes.add(attribute)
        return function, ir.IRBuilder(function.append_basic_block())

    def define_scalar(module, symbol, layout):
        function, builder = define_function(module, symbol, layout.float)
        x, y = function.args
        magnitude = _llvm_call(builder, "fabs", layout, [x])
        beyond = builder.fcmp_ordered(">", magnitude, layout.constant(limit[layout.width]))
        with builder.if_then(beyond, likely=False):
            wide = x if layout.width == 64 else builder.fpext(x, ir.DoubleType())
            library_function = cgutils.get_or_insert_function(
                module, ir.FunctionType(ir.DoubleType(), [ir.DoubleType()]), name
            )
            exact = builder.call(library_function, [wide])
            builder.ret(exact if layout.width == 64 else builder.fptrunc(exact, ir.FloatType()))
        builder.ret(y)
        return function

    def define_vector(module, symbol, layout, lanes, scalar):
        vector = ir.VectorType(layout.float, lanes)
        function, builder = define_function(module, symbol, vector)
        x, y = function.args
        fabs = cgutils.get_or_insert_function(
            module, ir.FunctionType(vector, [vector]), f"llvm.fabs.v{lanes}{layout.suffix}"
        )
        bounds = ir.Constant(vector, [layout.constant(limit[layout.width])] * lanes)
        beyond = builder.fcmp_ordered(">", builder.call(fabs, [x]), bounds)
        mask_type = ir.IntType(lanes)
        with builder.if_then(
            builder.icmp_unsigned("!=", builder.bitcast(beyond, mask_type), mask_type(0)), likely=False
        ):
            result = y
            for lane in map(ir.IntType(32), range(lanes)):
                lane_args = [builder.extract_element(x, lane), builder.extract_element(y, lane)]
                result = builder.insert_element(result, builder.call(scalar, lane_args), lane)
            builder.ret(result)
        builder.ret(y)

    @intrinsic
    def guard(typingctx, x, y):
        layout = _Layout(x)

        def emit(context, builder, sig, args):
            symbol = f"tapegrad_{name}_guard_{layout.suffix}"
            scalar = builder.module.globals.get(symbol)
            if scalar is None:
                scalar = define_scalar(builder.module, symbol, layout)
                for lanes in lane_counts:
                    define_vector(builder.module, f"{symbol}_{lanes}", layout, lanes, scalar)
            call = builder.call(scalar, args)
            variants = ",".join(f"_ZGV_LLVM_N{lanes}vv_{symbol}({symbol}_{lanes})" for lanes in lane_counts)
            # llvmlite's attribute set refuses string attributes; the plain set method lets one through.
            set.add(call.attributes, f'"vector-function-abi-variant"="{variants}"')
            return call

        return x(x, x), emit

    return guard


# ---------------------------------------------------------------- publication


def publish(kernel, implementation_for):
    """A Python callable that compiled code replaces by implementation_for(itself, argument types)."""

    @functools.wraps(kernel)
    def public(*args):
        return call_compiled(*args)

    if kernel.__code__.co_argcount == 1:
        call_compiled = njit(**JIT_OPTIONS)(lambda a: public(a))

        def choose(a):
            return implementation_for(public, (a,))
    else:
        call_compiled = njit(**JIT_OPTIONS)(lambda a, b: public(a, b))

        def choose(a, b):
            return implementation_for(public, (a, b))

    overload(public, jit_options=JIT_OPTIONS, strict=False)(choose)
    return public


def through_float64(public, arguments):
    """Convert all arguments to float64, and the result back if they were all float32."""
    if not all(isinstance(argument, (types.Float, types.Integer, types.Boolean)) for argument in arguments):
        return None
    result = types.float32 if set(arguments) == {types.float32} else types.float64
    if len(arguments) == 1:
        return lambda a: result(public(types.float64(a)))
    return lambda a, b: result(public(types.float64(a), types.float64(b)))


def with_kernels(kernel_for_type):
    """Publish under the decorated function's name; types without a kernel go through float64."""

    def decorate(description):
        def implementation_for(public, arguments):
            kernel = kernel_for_type.get(arguments[0]) if len(set(arguments)) == 1 else None
            return kernel or through_float64(public, arguments)

        return publish(description, implementation_for)

    return decorate


def both_widths(kernel):
    """Publish a kernel whose constants adapt to float32 and float64."""
    return with_kernels({types.float64: kernel, types.float32: kernel})(kernel)


def double_only(kernel):
    """Publish a float64 kernel; float32 arguments take it too and the result is rounded once more."""
    return with_kernels({types.float64: kernel})(kernel)
