"""Words of memory that several threads change without a lock."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD = ir.IntType(64)


@intrinsic
def take_word(typing_context, address):
    """Make a word that is 0 one; whether it was 0."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _WORD.as_pointer())
        changed = builder.cmpxchg(pointer, ir.Constant(_WORD, 0), ir.Constant(_WORD, 1), "acquire", "monotonic")
        return builder.extract_value(changed, 1)

    return types.boolean(types.intp), codegen


@intrinsic
def give_word(typing_context, address):
    """Make a word 0, after all that was written before."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _WORD.as_pointer())
        builder.atomic_rmw("xchg", pointer, ir.Constant(_WORD, 0), "release")
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def count_up(typing_context, address):
    """Add one to a word."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _WORD.as_pointer())
        builder.atomic_rmw("add", pointer, ir.Constant(_WORD, 1), "monotonic")
        return context.get_dummy_value()

    return types.void(types.intp), codegen
