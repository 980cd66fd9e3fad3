"""Elements of arrays that are known not to overlap, so that a loop over many of them is vectorised without comparing addresses.

LLVM checks at run time that what a loop writes overlaps nothing it reads, pair by pair, and gives up on vectorising where there are many
pairs. Here each access says which of the loop's results it belongs to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic


def _scopes(module: Any, count: int) -> list[Any]:
    domain = module.add_metadata(["tapegrad loop"])
    return [module.add_metadata([f"result {k}", domain]) for k in range(count)]


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    index = context.cast(builder, args[1], signature.args[1], types.intp)
    return builder.gep(args[0], [index])


@functools.cache
def reader(count: int) -> Callable:
    """``read(pointer, index)``: an element that none of `count` results of the loop overlaps."""

    @intrinsic
    def read(typing_context, pointer, index):
        def codegen(context, builder, signature, args):
            element = builder.load(_address(context, builder, signature, args))
            element.set_metadata("noalias", builder.module.add_metadata(_scopes(builder.module, count)))
            return element

        return pointer.dtype(pointer, index), codegen

    return read


@functools.cache
def writer(count: int, number: int) -> Callable:
    """``write(pointer, index, value)``: set an element of result `number` of `count`."""

    @intrinsic
    def write(typing_context, pointer, index, value):
        def codegen(context, builder, signature, args):
            scopes = _scopes(builder.module, count)
            element = context.cast(builder, args[2], value, pointer.dtype)
            store = builder.store(element, _address(context, builder, signature, args))
            store.set_metadata("alias.scope", builder.module.add_metadata([scopes.pop(number)]))
            if scopes:
                store.set_metadata("noalias", builder.module.add_metadata(scopes))
            return context.get_dummy_value()

        return types.void(pointer, index, value), codegen

    return write
