"""Methods of Tensor without a Python frame: operators and `__del__` as C functions compiled by Numba.

A Python method that calls `record` costs about 250 ns of interpreter work around 60 ns of tape work. Here CPython calls compiled code
directly: it reads the buffer ids out of the tensor objects, records, and builds the result object. Anything but the plain case
(a tensor with a tensor or a number, everything loaded) goes to the Python method it replaces, so there is one implementation of
every rule. Installed after the first `NATIVE_AFTER` operations, on CPython with its lock; elsewhere the Python methods stay.
"""

from __future__ import annotations

import ctypes
import platform
import sysconfig
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapegrad.engine import kernels
from tapegrad.engine.memory import drop_orphans
from tapegrad.engine.record import record, scalar_operand
from tapegrad.engine.runtime import rt
from tapegrad.engine.structs import REVERSED, f64, i64, internal, state_at
from tapegrad.engine.tape import release

_object = types.intp
py_alloc = types.ExternalFunction("PyType_GenericAlloc", _object(_object, types.intp))
py_long = types.ExternalFunction("PyLong_FromLongLong", _object(types.int64))
py_long_value = types.ExternalFunction("PyLong_AsLongLong", types.int64(_object))
py_long_as_double = types.ExternalFunction("PyLong_AsDouble", types.float64(_object))
py_error = types.ExternalFunction("PyErr_Occurred", _object())
py_clear = types.ExternalFunction("PyErr_Clear", types.void())
py_incref = types.ExternalFunction("Py_IncRef", types.void(_object))

# where CPython keeps an object's type and a float's value
_TYPE, _FLOAT_VALUE = 8, 16

_keep: list[Any] = []


@intrinsic
def the_state(typing_context):
    """The address of the state block, a symbol resolved when code is loaded."""

    def codegen(context, builder, signature, args):
        module = builder.module
        name = "tapegrad_state"
        symbol = module.globals.get(name) or ir.GlobalVariable(module, ir.IntType(8), name)
        return builder.ptrtoint(symbol, ir.IntType(64))

    return types.intp(), codegen


@internal
def _id_of(S, tensor):
    held = i64(tensor + state_at(S).id_offset)[0]
    return py_long_value(held) if held else 0


@internal
def _new_tensor(S, k):
    s = state_at(S)
    tensor = py_alloc(s.tensor_type, 0)
    if tensor:
        i64(tensor + s.id_offset)[0] = py_long(k)
    return tensor


def fast_call(code, this, other):
    """The result object of an operation on a tensor and perhaps (else 0) another operand; 0 to ask Python."""
    S = the_state()
    s = state_at(S)
    if s.watched:
        return 0
    a = _id_of(S, this)
    b = 0
    if other:
        kind = i64(other + _TYPE)[0]
        if kind == s.tensor_type:
            b = _id_of(S, other)
        elif a and kind == s.float_type:
            b = scalar_operand(S, a, f64(other + _FLOAT_VALUE)[0])
        elif a and kind == s.int_type:
            value = py_long_as_double(other)
            if value == -1.0 and py_error():
                py_clear()
            else:
                b = scalar_operand(S, a, value)
        if b <= 0:
            return 0
        if code & REVERSED:
            code &= ~REVERSED
            a, b = b, a
    k = record(S, code, a, b, 0) if a else 0
    return _new_tensor(S, k) if k > 0 else 0


def fast_release(code, this, other):
    """Let go of a dying tensor's buffer; None."""
    S = the_state()
    k = _id_of(S, this)
    if k and release(S, k):
        drop_orphans(S)
    none = state_at(S).none
    py_incref(none)
    return none


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_METH_FASTCALL = 0x80

# a method: check the number of arguments, try the compiled function, else call the Python method it stands for
_STUB = """
define i64 @{name}(i64 %this, i64 %args, i64 %count) {{
entry:
  %array = alloca [3 x i64]
  %slot0 = getelementptr [3 x i64], [3 x i64]* %array, i64 0, i64 0
  %slot1 = getelementptr [3 x i64], [3 x i64]* %array, i64 0, i64 1
  %slot2 = getelementptr [3 x i64], [3 x i64]* %array, i64 0, i64 2
  %given = inttoptr i64 %args to i64*
  store i64 %this, i64* %slot0
  switch i64 %count, label %more [ i64 0, label %none
                                   i64 1, label %one ]
none:
  br label %{on_none}
one:
  %first = load i64, i64* %given
  store i64 %first, i64* %slot1
  br label %{on_one}
more:
  %first_of_more = load i64, i64* %given
  store i64 %first_of_more, i64* %slot1
  %place = getelementptr i64, i64* %given, i64 1
  %second = load i64, i64* %place
  store i64 %second, i64* %slot2
  br label %slow
fast:
  %other = phi i64 [ {other}, %{fast_from} ]
  %function = inttoptr i64 {function} to i64 (i64, i64, i64)*
  %made = call i64 %function(i64 {code}, i64 %this, i64 %other)
  %done = icmp ne i64 %made, 0
  br i1 %done, label %leave, label %slow
leave:
  ret i64 %made
slow:
  %capped = icmp ult i64 %count, 2
  %number = select i1 %capped, i64 %count, i64 2
  %arguments = add i64 %number, 1
  %vectorcall = inttoptr i64 {vectorcall} to i64 (i64, i64*, i64, i64)*
  %result = call i64 %vectorcall(i64 {fallback}, i64* %slot0, i64 %arguments, i64 0)
  ret i64 %result
}}
"""


def _stub(name: str, function: int, code: int, fallback: Any, operands: int) -> str:
    return _STUB.format(
        name=name,
        function=function,
        code=code,
        fallback=id(fallback),
        vectorcall=ctypes.cast(ctypes.pythonapi.PyObject_Vectorcall, ctypes.c_void_p).value,
        on_none="slow" if operands else "fast",
        on_one="fast" if operands else "slow",
        other="%first" if operands else "0",
        fast_from="one" if operands else "none",
    )


def _compiled(function: Callable) -> int:
    name = function.__name__
    source = f"def {name}(code, this, other):\n    return implementation(code, this, other)\n"
    return kernels.build_callback(name, source, {"implementation": internal(function)}, types.intp(*[types.intp] * 3))


def _slot_offset(tensor_type: type, name: str) -> int:
    """Bytes from the start of an instance to a slot, found by looking for a value put there; 0 if it is not found."""
    probe = object.__new__(tensor_type)
    value = 1 << 80
    setattr(probe, name, value)
    words = (ctypes.c_int64 * (tensor_type.__basicsize__ // 8)).from_address(id(probe))
    found = [k * 8 for k, word in enumerate(words) if word == id(value)]
    delattr(probe, name)
    return found[0] if len(found) == 1 else 0


def supported() -> bool:
    """Whether this interpreter lays objects out as this module assumes."""
    return platform.python_implementation() == "CPython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


def install(tensor_type: type, binary: dict[str, int], unary: dict[str, int]) -> None:
    """Replace methods of the tensor class by compiled ones.

    Args:
        tensor_type: the class; its instances keep the buffer id in the slot ``_id``.
        binary: opcode (and flags) by name of the method it replaces.
        unary: the same for methods without arguments.
    """
    state = rt.state
    state["native"] = 1
    offset = _slot_offset(tensor_type, "_id") if supported() else 0
    if not offset:
        return
    state["id_offset"] = offset
    state["tensor_type"], state["float_type"], state["int_type"] = id(tensor_type), id(float), id(int)
    state["none"] = id(None)
    llvm.add_symbol("tapegrad_state", rt.S)
    fast = {f: _compiled(f) for f in (fast_call, fast_release)}
    plans = [(name, fast_call, code, 1) for name, code in binary.items()]
    plans += [(name, fast_call, code, 0) for name, code in unary.items()]
    plans.append(("__del__", fast_release, 0, 0))
    text = []
    for k, (name, function, code, operands) in enumerate(plans):
        fallback = tensor_type.__dict__[name]
        _keep.append(fallback)
        text.append(_stub(f"tapegrad_method_{k}", fast[function], code, fallback, operands))
    engine = _jit("\n".join(text))
    describe = ctypes.pythonapi.PyDescr_NewMethod
    describe.restype, describe.argtypes = ctypes.py_object, (ctypes.py_object, ctypes.POINTER(_MethodDef))
    for k, (name, *_) in enumerate(plans):
        fallback = tensor_type.__dict__[name]
        address = engine.get_function_address(f"tapegrad_method_{k}")
        definition = _MethodDef(name.encode(), address, _METH_FASTCALL, (fallback.__doc__ or "").encode())
        _keep.append(definition)
        setattr(tensor_type, name, describe(tensor_type, ctypes.byref(definition)))


def _jit(text: str) -> Any:
    module = llvm.parse_assembly(text)
    machine = llvm.Target.from_default_triple().create_target_machine(opt=1, jit=True)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _keep.append(engine)
    return engine
