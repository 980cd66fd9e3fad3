"""How Numba compiles functions that are only ever parts of a larger unit.

Numba optimises every function it compiles and turns it into machine code, also one that is called from compiled code alone and
linked into its callers as LLVM code anyway. Parts stop before that.
"""

from typing import Any

from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, PassManager
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    FixupArgs,
    GenericRewrites,
    InlineInlinables,
    IRProcessing,
    ReconstructSSA,
    TranslateByteCode,
)

# of Numba's passes those that scalar code with records and intrinsics needs
_PASSES = (
    TranslateByteCode,
    FixupArgs,
    IRProcessing,
    GenericRewrites,
    InlineInlinables,
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
)


class _UnitLibrary(JITCodeLibrary):
    """LLVM code of a unit, optimised as Numba does but for passes over declarations, which took 0.6 of 9 s."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout
        passes, builder = self._codegen._function_pass_manager()
        for function in ll_module.functions:
            if not function.is_declaration:
                passes.run(function, builder)


class _NoEnvironment:
    """Stands for the code generator where a function without machine code would be told its environment."""

    def set_env(self, env_name: str, env: Any) -> None:
        """Parts make no Python objects, so they need none."""


class _PartLibrary(_UnitLibrary):
    """LLVM code to be linked into others."""

    codegen = _NoEnvironment()

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Zero: there is no machine code."""
        return 0


class UnitCompiler(CompilerBase):
    """Numba's compiler with the passes that scalar code needs."""

    library = _UnitLibrary

    def compile_extra(self, func: Any) -> Any:
        """Compile a function of a unit."""
        self.state.library = self.library(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)

    def define_pipelines(self) -> list[PassManager]:
        """The one pipeline."""
        manager = PassManager("unit")
        for step in _PASSES:
            manager.add_pass(step, step._name)
        manager._ENFORCING = False  # no repeated analysis between passes: 0.6 of 9.4 s for the seeds' network
        manager.finalize()
        return [manager]


class UnitCache(FunctionCache):
    """A cache that does not start the compiler to load from, and keeps what it loaded: code that prints refers to Python objects
    that nothing else holds."""

    loaded: Any = None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What is cached for a signature, None if nothing is."""
        self.loaded = self._load_overload(sig, target_context)
        return self.loaded


class Callback(CFunc):
    """A unit to be called by its address."""

    def __init__(self, function: Any, signature: Any, cache: bool) -> None:
        options = {"error_model": "numpy"}
        super().__init__(function, (signature.args, signature.return_type), {}, options, UnitCompiler)
        if cache:
            self._cache = UnitCache(function)
        self.compile()


class PartCompiler(UnitCompiler):
    """The same, stopping at LLVM code."""

    library = _PartLibrary
