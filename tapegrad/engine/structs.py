"""The records a tape is made of, and the few intrinsics that reach them through plain addresses.

Compiled code receives the address of one `STATE` record; every table hangs off it. A record type here is a NumPy
structured dtype, so Python can look at the same memory through an array while compiled code reads ``row.out``.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapegrad.engine._parts import PartCompiler

# engine functions call each other and are entered through kernels.build_entry only: wrappers would double compile time
_OPTIONS = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": PartCompiler,
}
internal = numba.njit(**_OPTIONS)

# engine functions whose arguments are all int64: fixing their signature keeps Numba from compiling one version for each mix of
# int32 fields and literals that callers pass, which took more than half of the time
WORD_FUNCTIONS: list = []


def internal_words(function):
    """A jitted engine function with int64 arguments."""
    made = internal(function)
    WORD_FUNCTIONS.append(made)
    return made


# small or used once: inlined before compilation, which is cheaper than a compiled function of its own
internal_inline = numba.njit(inline="always", **_OPTIONS)
# inlined into loops however large, which are not vectorised around a call: logsigmoid took 25 ns an element, not 2.4
internal_scalar = numba.njit(forceinline=True, **_OPTIONS)
internal_contract = numba.njit(fastmath={"contract"}, **_OPTIONS)
internal_sum = numba.njit(fastmath={"reassoc", "contract", "nsz"}, **_OPTIONS)

MAX_DIMS = 16
MAX_OPS = 1024
DTYPE_SLOTS = 16
SIZE_CLASSES = 256
MAX_MODES = 64

# one recorded instruction
ROW = np.dtype(
    [
        ("attr", "i8"),  # address of the attribute block, 0 if none
        ("op", "i2"),
        ("flags", "i1"),
        ("saved", "i1"),  # bit k: value of input k is needed in reverse, bit 3: the output's
        ("out", "i4"),
        ("in0", "i4"),
        ("in1", "i4"),
        ("in2", "i4"),
        ("version0", "i4"),  # storage versions when saved
        ("version1", "i4"),
        ("version2", "i4"),
        ("version3", "i4"),
        ("need", "i1"),  # bit k: input k wants an adjoint
        ("kept", "i1"),  # like `saved`, for a trace: what running the row again takes
        ("spare", "i1", 2),
    ],
    align=True,
)

# one value: where its elements are and what the tape knows of it
BUFFER = np.dtype(
    [
        ("data", "i8"),
        ("adj", "i8"),  # address of the adjoint during a sweep; link of a free row
        ("storage", "i4"),
        ("layout", "i4"),
        ("producer", "i4"),  # row that computes it, -1 for a leaf
        ("refs", "i4"),  # handles and rows that name it
        ("data_refs", "i4"),  # handles and rows that need its elements
        ("grad", "i4"),  # buffer of the accumulated gradient, 0 if none
        ("link", "i4"),  # next in the list of buffers a sweep has to settle
        ("stamp", "i4"),  # storage's graph version when a view was made
        ("flags", "i2"),
        ("dtype", "i1"),
        ("mark", "i1"),
        ("attached", "i4"),  # storage whose owner is what Python attached (hooks and the like), 0 if nothing
    ],
    align=True,
)

# memory shared by a base and its views
STORAGE = np.dtype(
    [
        ("base", "i8"),
        ("bytes", "i8"),
        ("owner", "i8"),  # PyObject* kept alive for foreign memory, 0 for our own
        ("refs", "i4"),
        ("version", "i4"),
        ("graph_version", "i4"),  # counts recorded in-place writes
        ("root", "i4"),  # storage whose memory this aliases, 0 if its own
        ("number", "i8"),  # how many were made before it
    ],
    align=True,
)

# an interned (shape, strides): equal layouts have equal ids
LAYOUT = np.dtype(
    [
        ("elements", "i8"),
        ("ndim", "i4"),
        ("contiguous", "i4"),  # id of the contiguous layout of this shape (its own id when it is that)
        ("hash", "i8"),
        ("shape", "i8", MAX_DIMS),
        ("strides", "i8", MAX_DIMS),  # in elements
    ],
    align=True,
)

# what the interpreter must know of an opcode
OP = np.dtype(
    [
        ("kind", "i1"),
        ("out_dtype", "i1"),  # SAME_DTYPE or a dtype code
        ("inputs", "i1"),
        ("differentiable", "i1"),  # bit k: input k has a derivative
        ("dtypes", "i4"),  # bit per dtype code the op accepts
        ("cost", "i4"),  # work of one element, in quarter nanoseconds
        ("saved", "i1", 8),  # saved mask by need mask
        ("direct", "i1"),  # bit k: the partial is g itself
    ],
    align=True,
)

OPERANDS = 5  # adjoint or output, three inputs, saved output

STATE = np.dtype(
    [
        ("buffers", "i8"),
        ("buffer_capacity", "i8"),
        ("buffer_count", "i8"),
        ("free_buffer", "i8"),
        ("live_buffers", "i8"),
        ("storages", "i8"),
        ("storage_capacity", "i8"),
        ("storage_count", "i8"),
        ("free_storage", "i8"),
        ("live_storages", "i8"),
        ("storages_made", "i8"),
        ("rows", "i8"),
        ("row_capacity", "i8"),
        ("row_count", "i8"),
        ("dead_rows", "i8"),
        ("sweeping", "i8"),  # sweeps under way: rows must not move
        ("layouts", "i8"),
        ("layout_capacity", "i8"),
        ("layout_count", "i8"),
        ("layout_index", "i8"),
        ("layout_index_size", "i8"),
        ("ops", "i8"),
        ("forward", "i8"),
        ("reverse", "i8"),
        ("parallel", "i8"),  # address of the parallel driver, 0 until loaded
        ("parallel_wanted", "i8"),  # set when a large kernel ran without it
        ("threads", "i8"),
        ("slab", "i8"),
        ("slab_left", "i8"),
        ("cached_bytes", "i8"),
        ("cache_limit", "i8"),
        ("used_bytes", "i8"),
        ("peak_bytes", "i8"),
        ("free_blocks", "i8", SIZE_CLASSES),
        ("trace_mask", "i8"),  # TRACED while a transformation is under way, else 0
        ("watched", "i8"),  # what Python wants to see: SEES_CALLS, SEES_WRITES
        ("attachments", "i8"),  # buffers that Python attached something to
        ("dying", "i8"),  # stack of buffers whose last reference went
        ("orphans", "i8"),  # owners to release, a linked list of blocks
        ("mode_count", "i8"),
        ("mode_thread", "i8", MAX_MODES),
        ("mode_value", "i8", MAX_MODES),
        ("const_key", "i8", 1024),
        ("const_buffer", "i8", 1024),
        # methods without a Python frame (see native.py)
        ("native", "i8"),  # 1 when installed
        ("eager_ops", "i8"),
        ("id_offset", "i8"),
        ("tensor_type", "i8"),
        ("float_type", "i8"),
        ("int_type", "i8"),
        ("none", "i8"),
        # one kernel call's operands
        ("flat", "i8"),
        ("inner", "i8"),
        ("outer_ndim", "i8"),
        ("outer_shape", "i8", MAX_DIMS),
        ("outer_strides", "i8", (OPERANDS, MAX_DIMS)),
        ("step", "i8", OPERANDS),
        ("operand", "i8", OPERANDS),  # layouts, 0 where absent
        ("adjoint", "i8", 3),
        ("store", "i8", 3),  # 1: write the adjoint, 0: add to it, -1: not wanted
        ("scratch", "i8"),
        # one move of an adjoint (see adjoints.py)
        ("move_source", "i8"),
        ("move_target", "i8"),
        ("move_write", "i8"),
        # one sweep
        ("pending", "i8"),
        ("touched", "i8"),
        ("selective", "i8"),
        ("retain", "i8"),
        ("fault", "i8"),
        ("fault_slot", "i8"),
        ("hooked", "i8"),  # the row whose hooks have run
        ("failure", "i8"),  # what a kernel that failed wants answered, 0 if none did
    ],
    align=True,
)

SAME_DTYPE = -1

# rows of the kernel table that belong to no op (see adjoints.py)
MOVE_ADD, MOVE_ADD_STRIDED, MOVE_SUM, MOVE_NARROW, MOVE_SCATTER = 1, 2, 3, 4, 5
FIRST_OPCODE = 6

# kinds of opcode: how it runs and how its adjoint is found. SELECT is pointwise with a bool first operand.
POINTWISE, SELECT, VIEW, KERNEL, PYTHON, REDUCTION = range(6)

# of `watched`: methods without a Python frame step aside; recorded writes in place are left to Python
SEES_CALLS, SEES_WRITES = 1, 2

# opcode of a traced tensor's detached twin
DETACHED = 0

# flags of a row
DEAD, FREED, TRACED_ROW, NO_GRAD_ROW = 1, 2, 4, 8

# flags of a buffer
REQUIRES_GRAD, IS_VIEW, RETAIN_GRAD, CAPTURE, ADJ_IS_GRAD, INFERENCE, LISTED, NO_GRAD_VIEW = (
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
)
TRACED = (
    256  # depends on the input of a transformation: while one is under way, everything computed from it is recorded
)
UNFOLLOWED = 512  # a view, without gradient and taken in no_grad mode, that its base does not learn about
OLDER = 1024  # was there before the capture that is under way: what the captured function did not make itself
USER_FLAGS = 255  # those that `look` shows

# answers of an entry point that are not an id
NEEDS_KERNEL, NOT_BROADCASTABLE, MIXED_DTYPES, STALE_VIEW, NO_MEMORY = -1, -2, -3, -4, -5
UNSUPPORTED_DTYPE, WRONG_SHAPE, WRONG_DTYPE, LEAF_WRITTEN, VIEW_WRITTEN = -6, -7, -8, -9, -10
NEEDS_OLD_VALUE, NEEDS_PARALLEL, SELF_OVERLAP, PARTIAL_OVERLAP = -11, -12, -13, -14
INFERENCE_SAVED, INFERENCE_WRITTEN, NEEDS_NATIVE = -15, -16, -17
NO_GRAD_VIEW_WRITTEN, KERNEL_RAISED = -18, -19

# operations before methods are replaced by compiled ones: a short program does not pay for loading them
NATIVE_AFTER = 1000

# bit beside the id in an answer of `record_view`
TRACKED_VIEW = 1 << 40

# bits beside the opcode in a call of `record`
IN_PLACE, VIEW_HANDLED, REVERSED = 1 << 16, 1 << 17, 1 << 18

# grad modes of a thread
NO_GRAD_MODE, INFERENCE_MODE = 1, 2

# answers of a sweep
DONE, SWEEP_KERNEL, SWEEP_PYTHON, SWEEP_FREED, SWEEP_MODIFIED = range(5)
SWEEP_MEMORY, SWEEP_PARALLEL, SWEEP_MOVE, SWEEP_BUSY, SETTLE_PYTHON, SWEEP_HOOK, SWEEP_RAISED = range(5, 12)
SWEEP_UNUSUAL = 12


def record_at(dtype: np.dtype):
    """An intrinsic that reads an address as a pointer to one record of `dtype`."""
    record = numba.from_dtype(dtype)

    @intrinsic
    def at(typing_context, address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.intp), codegen

    return at


state_at = record_at(STATE)
row_at = record_at(ROW)
buffer_at = record_at(BUFFER)
storage_at = record_at(STORAGE)
layout_at = record_at(LAYOUT)
op_at = record_at(OP)


def _record_of(dtype: np.dtype, table: str):
    """An intrinsic for record `k` of one of the state's tables.

    Intrinsics compile several times faster than the functions they replace, and the engine has hundreds of these.
    """
    record = numba.from_dtype(dtype)
    offset, size = STATE.fields[table][1], dtype.itemsize

    @intrinsic
    def of(typing_context, S, k):
        def codegen(context, builder, signature, args):
            index = context.cast(builder, args[1], signature.args[1], types.intp)
            address = _table_address(builder, args[0], offset, index, size)
            return builder.inttoptr(address, context.get_value_type(record))

        return record(types.intp, k), codegen

    return of


def _table_address(builder, state, offset, index, size):
    word = ir.IntType(64)
    place = builder.inttoptr(builder.add(state, ir.Constant(word, offset)), word.as_pointer())
    return builder.add(builder.load(place), builder.mul(index, ir.Constant(word, size)))


row_of = _record_of(ROW, "rows")
buffer_of = _record_of(BUFFER, "buffers")
storage_of = _record_of(STORAGE, "storages")
layout_of = _record_of(LAYOUT, "layouts")
op_of = _record_of(OP, "ops")


def _layout_words(field: str):
    """An intrinsic for the extents or strides of layout `k`, as a pointer."""
    within = LAYOUT.fields[field][1]
    offset = STATE.fields["layouts"][1]

    @intrinsic
    def words(typing_context, S, k):
        def codegen(context, builder, signature, args):
            word = ir.IntType(64)
            index = context.cast(builder, args[1], signature.args[1], types.intp)
            address = _table_address(builder, args[0], offset, index, LAYOUT.itemsize)
            return builder.inttoptr(builder.add(address, ir.Constant(word, within)), word.as_pointer())

        return types.CPointer(types.int64)(types.intp, k), codegen

    return words


shape_of = _layout_words("shape")
strides_of = _layout_words("strides")


@intrinsic
def word(typing_context, value):
    """An engine function's result as an int64, zero if it returns nothing."""

    def codegen(context, builder, signature, args):
        if value == types.none:
            return ir.Constant(ir.IntType(64), 0)
        return context.cast(builder, args[0], value, types.int64)

    return types.int64(value), codegen


@intrinsic
def itemsize(typing_context, dtype):
    """Bytes of one element of a dtype code."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        code = context.cast(builder, args[0], signature.args[0], types.int64)
        # log2 of the sizes, a nibble each
        nibble = builder.lshr(ir.Constant(word, 0x100321032), builder.shl(code, ir.Constant(word, 2)))
        return builder.shl(ir.Constant(word, 1), builder.and_(nibble, ir.Constant(word, 15)))

    return types.int64(dtype), codegen


ROW_SIZE, BUFFER_SIZE, STORAGE_SIZE = ROW.itemsize, BUFFER.itemsize, STORAGE.itemsize
LAYOUT_SIZE, OP_SIZE = LAYOUT.itemsize, OP.itemsize
SHAPE_OFFSET, STRIDES_OFFSET = LAYOUT.fields["shape"][1], LAYOUT.fields["strides"][1]
FREE_BLOCKS_OFFSET = STATE.fields["free_blocks"][1]
MODE_THREAD_OFFSET, MODE_VALUE_OFFSET = STATE.fields["mode_thread"][1], STATE.fields["mode_value"][1]
CONST_KEY_OFFSET, CONST_BUFFER_OFFSET = STATE.fields["const_key"][1], STATE.fields["const_buffer"][1]
OUTER_SHAPE_OFFSET, OUTER_STRIDES_OFFSET = STATE.fields["outer_shape"][1], STATE.fields["outer_strides"][1]
STEP_OFFSET, OPERAND_OFFSET = STATE.fields["step"][1], STATE.fields["operand"][1]
ADJOINT_OFFSET, STORE_OFFSET = STATE.fields["adjoint"][1], STATE.fields["store"][1]
OP_SAVED_OFFSET = OP.fields["saved"][1]
ROW_INPUTS_OFFSET, ROW_VERSIONS_OFFSET = ROW.fields["in0"][1], ROW.fields["version0"][1]


def _pointer_to(element, llvm_type):
    """An intrinsic that reads an address as a pointer to elements of one type."""

    @intrinsic
    def pointer(typing_context, address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], llvm_type.as_pointer())

        return types.CPointer(element)(types.intp), codegen

    return pointer


i64 = _pointer_to(types.int64, ir.IntType(64))
i32 = _pointer_to(types.int32, ir.IntType(32))
i16 = _pointer_to(types.int16, ir.IntType(16))
i8 = _pointer_to(types.int8, ir.IntType(8))
u8 = _pointer_to(types.uint8, ir.IntType(8))
f32 = _pointer_to(types.float32, ir.FloatType())
f64 = _pointer_to(types.float64, ir.DoubleType())


@intrinsic
def call_kernel(typing_context, address, state, row, start, stop):
    """Call the kernel at `address` for work items ``start`` to ``stop`` of one row."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [word] * 4).as_pointer()
        builder.call(builder.inttoptr(args[0], function), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen


@intrinsic
def call_parallel(typing_context, address, kernel, state, row, items, chunk):
    """Call the parallel driver at `address` (see kernels.py)."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [word] * 5).as_pointer()
        builder.call(builder.inttoptr(args[0], function), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), codegen


@intrinsic
def bits_of(typing_context, value):
    """The 64 bits of a float64 as an integer."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def float_of(typing_context, bits):
    """The float64 with these 64 bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


STACK_WORDS = 256


@intrinsic
def stack_block(typing_context):
    """Address of STACK_WORDS words on the stack of the calling function."""

    def codegen(context, builder, signature, args):
        block = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(64), STACK_WORDS))
        return builder.ptrtoint(block, ir.IntType(64))

    return types.intp(), codegen


malloc = types.ExternalFunction("malloc", types.intp(types.intp))
realloc = types.ExternalFunction("realloc", types.intp(types.intp, types.intp))
free = types.ExternalFunction("free", types.void(types.intp))
memcpy = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.intp))
memset = types.ExternalFunction("memset", types.intp(types.intp, types.int32, types.intp))
thread_id = types.ExternalFunction("PyThread_get_thread_ident", types.intp())
py_decref = types.ExternalFunction("Py_DecRef", types.void(types.intp))
