"""The kernels around a user's functions on whole arrays: they make NumPy arrays over the tape's memory and call them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from tapegrad import dtypes
from tapegrad.engine import structs
from tapegrad.engine.kernels import typed
from tapegrad.engine.loops import environment
from tapegrad.engine.structs import free, layout_of, malloc, memset
from tapegrad.engine.usercode import copy_of

if TYPE_CHECKING:
    from tapegrad.ops._native_op import NativeOp

P: Any = None  # pointer to elements
SIZE: Any = None  # bytes of an element


def array_at(dtype: int, ndim: int, readonly: bool) -> Any:
    """An intrinsic for a contiguous NumPy array at an address, with its extents at another."""
    element = getattr(types, dtypes.ALL[dtype].name if dtype != dtypes.bool.code else "boolean")
    array = types.Array(element, ndim, "C", readonly=readonly)
    size = dtypes.ALL[dtype].itemsize

    @intrinsic
    def view(typing_context, address, extents):
        def codegen(context, builder, signature, args):
            shape = [builder.load(cgutils.gep_inbounds(builder, args[1], d)) for d in range(ndim)]
            strides, step = [], context.get_constant(types.intp, size)
            for extent in reversed(shape):
                strides.insert(0, step)
                step = builder.mul(step, extent)
            data = builder.inttoptr(args[0], context.get_data_type(element).as_pointer())
            made = arrayobj.make_array(array)(context, builder)
            itemsize = context.get_constant(types.intp, size)
            arrayobj.populate_array(made, data, shape, strides, itemsize, None)
            return made._getvalue()

        return array(types.intp, types.CPointer(types.int64)), codegen

    return view


def _gradient_block(S, store, target, layout):
    # zeros for a gradient: the adjoint itself if that is fresh, else a block to be added to it, or to be thrown away
    size = layout_of(S, layout).elements * SIZE
    block = target if store == 1 else malloc(size + 1)
    if block != 0:
        memset(block, 0, size)
    return block


def _settle_block(S, failure, store, target, block, layout):
    if failure == 0 and store == 0:
        for i in range(layout_of(S, layout).elements):
            P(target)[i] += P(block)[i]
    if store != 1:
        free(block)


class Look(NamedTuple):
    """What compiled code depends on in a call's arrays: dtype code and number of dimensions of each."""

    inputs: tuple[tuple[int, int], ...]
    result: tuple[int, int]


class Texts:
    """The texts of the kernels around a user's functions."""

    def __init__(self, op: NativeOp, look: Look, symbol: str) -> None:
        self.op, self.symbol = op, symbol
        dtype = look.result[0]
        self.names: dict[str, Any] = environment(
            shape_of=structs.shape_of,
            layout_of=structs.layout_of,
            memset=structs.memset,
            itemsize=structs.itemsize,
            forward=copy_of(op.forward),
            gradient_block=typed(_gradient_block, dtype),
            settle_block=typed(_settle_block, dtype),
        )
        if op.backward is not None:
            self.names["backward"] = copy_of(op.backward)
        for name, (code, ndim) in zip([*op.inputs, op.result], [*look.inputs, look.result], strict=True):
            self.names[f"see_{name}"] = array_at(code, ndim, True)
            self.names[f"fill_{name}"] = array_at(code, ndim, False)
        self.names["see_g"] = self.names[f"see_{op.result}"]
        # where the layout of each array stands among an attribute block's own words
        self.place = {n: k for k, n in enumerate([*op.inputs, op.result])} | {"g": len(op.inputs)}

    def _see(self, name: str) -> str:
        return f"see_{name}(at_{name}, shape_of(S, layouts[{self.place[name]}]))"

    def forward(self) -> str:
        """The forward kernel."""
        op = self.op
        last = self.place[op.result]
        given = "".join(
            f"    at_{n} = buffer_at(s.buffers + r.in{k} * BUFFER_SIZE).data\n" for k, n in enumerate(op.inputs)
        )
        arrays = ", ".join([*map(self._see, op.inputs), f"fill_{op.result}(out.data, shape_of(S, layouts[{last}]))"])
        return f"""def {self.symbol}_forward(S, row, start, stop):
    s = state_at(S)
    r = row_at(row)
    layouts = i64(r.attr + 32)
    out = buffer_at(s.buffers + r.out * BUFFER_SIZE)
{given}    memset(out.data, 0, layout_of(S, layouts[{last}]).elements * itemsize(out.dtype))
    try:
        forward({arrays})
    except Exception:
        s.failure = {structs.KERNEL_RAISED}
"""

    def reverse(self) -> str:
        """The kernel that adds to the adjoints of the inputs."""
        slots = {n: f"r.in{k}" for k, n in enumerate(self.op.inputs)} | {self.op.result: "r.out"}
        lines = [f"at_{n} = buffer_at(s.buffers + {slots[n]} * BUFFER_SIZE).data" for n in self.op.values]
        lines += ["at_g = buffer_at(s.buffers + r.out * BUFFER_SIZE).adj", "layouts = i64(r.attr + 32)"]
        for k in self.op.differentiable:
            lines += [f"store{k} = i64(S + STORE_OFFSET)[{k}]", f"target{k} = i64(S + ADJOINT_OFFSET)[{k}]"]
        return self._backward("reverse", lines, structs.SWEEP_MEMORY, structs.SWEEP_RAISED)

    def gradient(self) -> str:
        """The kernel whose result is the gradient of one input; which one is an attribute."""
        values = self.op.values
        first = 4 + len(values)
        lines = [
            f"at_{n} = buffer_at(s.buffers + i64(r.attr)[{2 + k}] * BUFFER_SIZE).data" for k, n in enumerate(values)
        ]
        lines += ["at_g = buffer_at(s.buffers + r.in0 * BUFFER_SIZE).data", f"layouts = i64(r.attr + {8 * first + 8})"]
        for k in self.op.differentiable:
            lines += [f"store{k} = 1 if i64(r.attr)[{first}] == {k} else -1"]
            lines += [f"target{k} = buffer_at(s.buffers + r.out * BUFFER_SIZE).data"]
        return self._backward("gradient", lines, structs.NO_MEMORY, structs.KERNEL_RAISED)

    def _backward(self, kind: str, lines: list[str], no_memory: int, raised: int) -> str:
        # a kernel that calls the user's backward; `lines` say where its operands are and what becomes of each gradient
        op = self.op
        slots = op.differentiable
        arrays = []
        for name in op.backward_parameters:
            if name in op.gradients:
                k = op.gradients[name]
                arrays.append(f"fill_{op.inputs[k]}(block{k}, shape_of(S, layouts[{k}]))")
            else:
                arrays.append("need" if name == "need" else self._see(name))
        blocks = [f"block{k} = gradient_block(S, store{k}, target{k}, layouts[{k}])" for k in slots]
        settled = [f"settle_block(S, failure, store{k}, target{k}, block{k}, layouts[{k}])" for k in slots]
        wanted = " + ".join(f"({1 << k} if store{k} >= 0 else 0)" for k in slots)
        text = [
            f"def {self.symbol}_{kind}(S, row, start, stop):",
            "    s = state_at(S)",
            "    r = row_at(row)",
            *("    " + line for line in [*lines, f"need = {wanted}", *blocks, f"failure = {no_memory}"]),
            f"    if {' and '.join(f'block{k} != 0' for k in slots)}:",
            "        failure = 0",
            "        try:",
            f"            backward({', '.join(arrays)})",
            "        except Exception:",
            f"            failure = {raised}",
            *("    " + line for line in [*settled, "s.failure = failure", ""]),
        ]
        return "\n".join(text)


def spelled(look: Look) -> str:
    """The dtypes and dimensions as part of a name: float64_2 is a matrix."""
    kinds = [f"{dtypes.ALL[code].name}_{ndim}" for code, ndim in (*look.inputs, look.result)]
    return "_".join(kinds)


def array_name(code: int, ndim: int) -> str:
    """The type of an array as Numba writes it."""
    return f"{dtypes.ALL[code].name}[{', '.join(':' * ndim)}]"
