"""Building compiled code lazily, and keeping it on disk under a name that cannot go stale.

Numba's own cache looks at the time stamp of one file; a kernel here inlines functions from several, and a stale kernel is a
wrong gradient. So each unit of compiled code gets a directory named by a hash of everything it is made of: its source, the
functions it calls (recursively), the versions of Numba and llvmlite, and the processor. A directory is filled aside and moved into
place in one step, with checksums that are verified before it is used, so two processes may build at once and a damaged entry is
rebuilt.
"""

import contextlib
import enum
import functools
import gc
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
import types as python_types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import binding as llvm
from numba import types
from numba.core.errors import NumbaWarning
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.extending import is_jitted

from tapegrad.engine import structs
from tapegrad.engine._parts import Callback, UnitCache, UnitCompiler
from tapegrad.engine.structs import call_kernel

_FORMAT = "1"
KERNEL_SIGNATURE = types.void(types.intp, types.intp, types.intp, types.intp)

counts = {"compiled": 0, "loaded": 0, "seconds": 0.0}
_keep: list[Any] = []
_warned = False


def cache_directory() -> Path:
    """Where compiled code is kept: ``TAPEGRAD_CACHE_DIR``, else the user's cache folder."""
    chosen = os.environ.get("TAPEGRAD_CACHE_DIR")
    if chosen:
        return Path(chosen)
    home = Path.home()
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        root = home / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return root / "tapegrad"


def cache_info() -> dict[str, Any]:
    """The kernel cache: its path, kernels and bytes, and how many this process has compiled and loaded."""
    root = cache_directory()
    units = size = 0
    for folder, _, files in os.walk(root):
        units += "checksums" in files
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # another process may be filling the cache
                size += os.stat(os.path.join(folder, file)).st_size
    return {"path": str(root), "files": units, "bytes": size} | counts


def _platform_key() -> str:
    features = llvm.get_host_cpu_features().flatten()
    parts = (
        _FORMAT,
        numba.__version__,
        llvmlite.__version__,
        np.__version__,
        sys.version,
        platform.machine(),
    )
    return "|".join((*parts, llvm.get_host_cpu_name(), features))


class Undescribable(Exception):
    """A value that compiled code may refer to but whose content cannot be told: what uses it is not kept on disk."""


# their versions are part of every key, so a name says what is meant
_LIBRARIES = ("numba", "llvmlite", "numpy", "math", "cmath", "operator", "_operator", "builtins", "warnings")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), np.generic, np.dtype)


def is_library(value: Any) -> bool:
    """Whether a module, or the home of a function or class, is a library whose version is part of every key."""
    module = value.__name__ if isinstance(value, python_types.ModuleType) else getattr(value, "__module__", "")
    if isinstance(value, python_types.FunctionType) and module == "builtins":
        return False  # it has no home: exec made it
    return str(module).split(".")[0] in _LIBRARIES


def describe(value: Any, seen: dict[Any, bytes]) -> bytes:
    """A stable description of anything compiled code may refer to, following functions into what they call.

    Args:
        value: the thing.
        seen: what was described on the way, by id.

    Raises:
        Undescribable: if there is none.
    """
    if id(value) in seen:
        return seen[id(value)]
    described = value
    if is_jitted(value):
        described = value.py_func
    elif hasattr(value, "_defn"):  # an intrinsic
        described = value._defn
    module = described if isinstance(described, python_types.ModuleType) else getattr(described, "__module__", "")
    if "tapegrad.engine.vecmath" in str(getattr(module, "__name__", module)):
        return _vecmath_digest()  # overloads hide what is called: take all of it
    if not isinstance(described, python_types.FunctionType) or is_library(described):
        return _describe_value(described, seen)
    seen[id(value)] = described.__qualname__.encode()
    digest = hashlib.sha256(str(module).encode())  # which cached code imports when it is loaded
    _describe_code(described.__code__, described, is_jitted(value), digest, seen)
    for default in (*(described.__defaults__ or ()), *(described.__kwdefaults__ or {}).items()):
        digest.update(describe(default, seen))
    if is_jitted(value):
        digest.update(describe(value.targetoptions, seen))
        if value.locals:
            digest.update(describe(value.locals, seen))
    seen[id(value)] = digest.digest()
    return seen[id(value)]


def _describe_value(value: Any, seen: dict[Any, bytes]) -> bytes:
    # anything but a function with code of its own
    name = f"{type(value).__name__}:{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    if isinstance(value, tuple | list):
        return name.encode() + b"".join(describe(v, seen) + b"," for v in value)
    if isinstance(value, dict):
        return describe(sorted(value.items(), key=str), seen)
    if isinstance(value, set | frozenset):
        return repr(sorted(value)).encode()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.flags.f_contiguous}".encode() + value.tobytes()
    if isinstance(value, _PLAIN):
        return f"{name}:{value!r}".encode()
    if isinstance(value, enum.Enum):
        return name.encode() + describe((value.name, value.value), seen)
    if isinstance(value, type) and issubclass(value, enum.Enum):
        return name.encode() + describe(list(value), seen)
    if isinstance(value, type) and issubclass(value, tuple | BaseException):
        return name.encode() + describe(getattr(value, "_fields", ()), seen)
    if isinstance(value, python_types.ModuleType):
        return value.__name__.encode()
    if hasattr(value, "__qualname__") or isinstance(value, np.ufunc):
        if is_library(value) or isinstance(value, np.ufunc) or str(value.__module__).startswith("tapegrad."):
            return f"{name}:{value.__name__}".encode()
    elif type(value).__module__.startswith(("numba.core.types", "llvmlite.", "tapegrad.")):
        return f"{name}:{value!r}".encode()
    raise Undescribable(name)


@functools.cache
def _vecmath_digest() -> bytes:
    files = sorted(Path(__file__).parent.glob("vecmath*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).digest()


def _describe_code(code: Any, function: Any, compiled: bool, digest: Any, seen: dict[Any, bytes]) -> None:
    digest.update(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, python_types.CodeType):
            _describe_code(constant, function, compiled, digest, seen)
        else:
            digest.update(describe(constant, seen))
    for name in code.co_names:
        digest.update(name.encode())
        if name in function.__globals__:
            digest.update(_describe_named(function.__globals__[name], code.co_names, compiled, seen))
    for cell, name in zip(function.__closure__ or (), code.co_freevars, strict=False):
        digest.update(name.encode() + _describe_named(cell.cell_contents, code.co_names, compiled, seen))


def _describe_named(value: Any, names: tuple[str, ...], compiled: bool, seen: dict[Any, bytes]) -> bytes:
    # a global of a function, with those of its attributes that may be meant by the function's other names
    own = is_library(value) or str(getattr(value, "__module__", "")).startswith("tapegrad.")
    if compiled and isinstance(value, python_types.FunctionType) and not own:
        raise Undescribable(value.__qualname__)  # what `numba.extending.overload` compiles for it
    described = describe(value, seen)
    if isinstance(value, python_types.ModuleType) and not is_library(value) and (id(value), names) not in seen:
        seen[id(value), names] = described
        for name in names:
            if hasattr(value, name):
                described += name.encode() + _describe_named(getattr(value, name), names, compiled, seen)
    return described


_PLATFORM = ""


def _digest(source: str, environment: dict[str, Any]) -> str:
    global _PLATFORM
    _PLATFORM = _PLATFORM or _platform_key()
    digest = hashlib.sha256(f"{_PLATFORM}\n{source}".encode())
    seen: dict[Any, bytes] = {}
    for name in sorted(environment):
        digest.update(name.encode() + describe(environment[name], seen))
    return digest.hexdigest()[:24]


def _fix_signatures(environment: dict[str, Any]) -> None:
    """Compile the engine functions that code refers to, callees first, for int64 arguments only."""
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if not is_jitted(value) or id(value) in seen:
            return
        seen.add(id(value))
        function = value.py_func
        for name in function.__code__.co_names:
            visit(function.__globals__.get(name))
        if any(value is known for known in structs.WORD_FUNCTIONS) and not value.overloads:
            value.compile((types.int64,) * function.__code__.co_argcount)
            value.disable_compile()

    _ready_compiler()
    with _without_collection():
        for value in environment.values():
            visit(value)


def _warn_once(problem: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"tapegrad's kernel cache {cache_directory()} {problem}; set TAPEGRAD_CACHE_DIR to a writable folder "
            "or run 'tapegrad warmup' to fill it again",
            RuntimeWarning,
            stacklevel=3,
        )


def _checksums(directory: Path) -> str:
    parts = []
    for file in sorted((directory / "__pycache__").glob("*.nb?")):
        parts.append(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}")
    return "\n".join(parts)


def _compile(name: str, source: str, environment: dict[str, Any], path: Path, make: Callable, cache: bool) -> Any:
    # a cached function is rebuilt in the module it names
    namespace = {"__name__": __name__, **environment}
    exec(compile(source, str(path), "exec"), namespace)
    with warnings.catch_warnings(), _without_collection():
        warnings.simplefilter("ignore", NumbaWarning)
        return make(namespace[name], cache)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the cyclic garbage collector from walking over the compiler's many objects, a tenth of the time to compile."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextlib.contextmanager
def _passive_openmp() -> Iterator[None]:
    """Have OpenMP's workers sleep between loops, if this is when Numba loads OpenMP and the user has not chosen otherwise.

    They would spin on the cores that OpenBLAS's workers wait for: a training step of a small network took 8.0 ms instead of 0.5.
    """
    name = "OMP_WAIT_POLICY"
    chosen = os.environ.get(name)
    os.environ[name] = chosen or "passive"
    try:
        yield
    finally:
        if chosen is None:
            del os.environ[name]


@contextlib.contextmanager
def _without_scipy_linalg() -> Iterator[None]:
    """Let Numba find SciPy's BLAS, an extension that loads in 3 ms, without the package around it, which takes 0.2 s."""
    package = "scipy.linalg"
    found = importlib.util.find_spec("scipy")
    if package in sys.modules or found is None or found.origin is None:
        yield
        return
    stand_in = python_types.ModuleType(package)
    stand_in.__path__ = [str(Path(found.origin).parent / "linalg")]
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n.startswith(package)]:
            del sys.modules[name]


@functools.cache
def _ready_compiler() -> None:
    """Start Numba's compiler."""
    with _passive_openmp(), _without_scipy_linalg():
        cpu_target.target_context.refresh()


@functools.cache
def _ready_loader() -> None:
    """Start what loads compiled code: its runtime without the compiler's tables, which take 0.2 s."""
    rtsys.initialize(cpu_target.target_context)


def build(
    name: str,
    source: str,
    environment: dict[str, Any],
    make: Callable[[Any, bool], Any],
    compiling: Callable[[], None] | None = None,
) -> Any:
    """Compile function `name` of a source text, or load it from the cache.

    Args:
        name: the function the text defines.
        source: Python source that Numba can compile.
        environment: the global names the text uses.
        make: turns the Python function into compiled code; its second argument says whether Numba may cache.
        compiling: called if the cache does not have it.
    """
    started = time.perf_counter()
    _ready_loader()
    root = cache_directory()
    try:
        final = root / f"{name}-{_digest(source, environment)}"
        made = _load(name, source, environment, final, make)
        if made is None:
            if compiling is not None:
                compiling()
            made = _build_aside(name, source, environment, root, final, make)
    except (OSError, Undescribable) as error:
        if isinstance(error, OSError):
            _warn_once(f"cannot be used ({error.strerror or error}), so kernels are compiled in memory")
        _fix_signatures(environment)
        made = _compile(name, source, environment, Path(f"<{name}>"), make, False)
        counts["compiled"] += 1
    counts["seconds"] += time.perf_counter() - started
    _keep.append(made)
    return made


def _load(name: str, source: str, environment: dict[str, Any], final: Path, make: Callable) -> Any:
    if not final.exists():  # asked first: another process may put it there at any moment, whole
        return None
    try:
        expected = (final / "checksums").read_text()
    except (OSError, UnicodeDecodeError):
        expected = None
    file = final / "kernel.py"
    if expected and expected == _checksums(final) and file.is_file() and file.read_bytes() == source.encode():
        try:
            made = _compile(name, source, environment, file, make, True)
            counts["loaded"] += 1
            return made
        except Exception:  # whatever unpickling a foreign file may raise
            expected = None
    _warn_once("held a damaged entry, which is rebuilt")
    if final.is_dir():
        shutil.rmtree(final, ignore_errors=True)
    else:
        final.unlink(missing_ok=True)
    return None


def _build_aside(name: str, source: str, environment: dict[str, Any], root: Path, final: Path, make: Callable) -> Any:
    root.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
    try:
        file = aside / "kernel.py"
        file.write_text(source)
        _fix_signatures(environment)
        made = _compile(name, source, environment, file, make, True)
        counts["compiled"] += 1
        (aside / "checksums").write_text(_checksums(aside))
        try:
            aside.rename(final)
        except OSError:
            if not final.is_dir():  # else another process was faster
                raise
        return made
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_kept(name: str, source: str, environment: dict[str, Any]) -> bool:
    """Whether the cache on disk has function `name` of a source text."""
    try:
        return (cache_directory() / f"{name}-{_digest(source, environment)}" / "checksums").is_file()
    except (OSError, Undescribable):
        return False


def build_callback(name: str, source: str, environment: dict[str, Any], signature: Any) -> int:
    """Address of compiled function `name` of a source text, with one signature."""
    return build(name, source, environment, lambda function, cache: Callback(function, signature, cache)).address


def build_kernel(name: str, source: str, environment: dict[str, Any]) -> int:
    """Address of a compiled kernel ``name(S, row, start, stop)``."""
    return build_callback(name, source, environment, KERNEL_SIGNATURE)


# name, bytes of an element and pointer constructor, by dtype code
DTYPES = (
    ("float32", 4, structs.f32),
    ("float64", 8, structs.f64),
    ("int8", 1, structs.i8),
    ("int16", 2, structs.i16),
    ("int32", 4, structs.i32),
    ("int64", 8, structs.i64),
    ("uint8", 1, structs.u8),
    ("bool", 1, structs.u8),
)


def typed(function: Any, dtype: int, label: str = "", **more: Any) -> Any:
    """A jitted copy of a function with the placeholders `P`, `T` and `SIZE` (and any others given) filled in."""
    name, size, pointer = DTYPES[dtype]
    real = getattr(types, name if name != "bool" else "uint8")
    namespace = dict(function.__globals__) | {"P": pointer, "T": real, "SIZE": size} | more
    copy = python_types.FunctionType(function.__code__, namespace, function.__name__)
    # see loops.py: symbols of different code must differ
    copy.__qualname__ = f"{function.__qualname__}_{label or name}"
    return structs.internal_contract(copy)


def build_typed(function: Any, dtype: int, label: str = "", **more: Any) -> int:
    """Address of a kernel ``function(S, row, start, stop)`` written with placeholders, for one dtype.

    Args:
        function: the kernel; `P` is a pointer to elements, `T` their scalar type, `SIZE` their bytes.
        dtype: dtype code.
        label: name of the kernel in the cache.
        more: further placeholders.
    """
    name = f"{label or function.__name__}_{DTYPES[dtype][0]}"
    source = f"def {name}(S, row, start, stop):\n    implementation(S, row, start, stop)\n"
    return build_kernel(name, source, {"implementation": typed(function, dtype, name, **more)})


def build_group(
    group: str, implementations: tuple[Any, ...], compiling: Callable[[], None] | None = None, unlocked: bool = False
) -> dict[str, Callable[..., Any]]:
    """The entry points of some jitted engine functions, compiled as one unit.

    Args:
        group: name of the unit.
        implementations: functions of the state's address and integers; one may end with a float, named ``value``.
        compiling: called if the cache does not have the unit.
        unlocked: whether calls release the interpreter lock.

    Returns:
        By name, a Python function for each.
    """
    codes = [f.py_func.__code__ for f in implementations]
    arguments = [code.co_varnames[: code.co_argcount] for code in codes]
    width = max(len([a for a in names if a != "value"]) for names in arguments)
    words = [f"a{k}" for k in range(width)]
    lines = [f"def {group}(which, {', '.join(words)}, value):"]
    environment, callers = {}, {}
    for k, (implementation, names) in enumerate(zip(implementations, arguments, strict=True)):
        name = implementation.py_func.__name__
        environment[name] = implementation
        integers = [a for a in names if a != "value"]
        passed = ", ".join([*words[: len(integers)], *(["value"] if "value" in names else [])])
        lines.append(f"    {'if' if k == 0 else 'elif'} which == {k}:")
        lines.append(f"        return word({name}({passed}))")
        padding = ", ".join([*integers, *("0" for _ in range(width - len(integers)))])
        real = "value" if "value" in names else "0.0"
        callers[name] = f"lambda {', '.join(names)}: call({k}, {padding}, {real})"
    lines.append("    return 0\n")
    signature = types.int64(types.int64, *[types.int64] * width, types.float64)

    def make(function: Any, cache: bool) -> Any:
        dispatcher = numba.njit(error_model="numpy", pipeline_class=UnitCompiler, nogil=unlocked)(function)
        if cache:
            dispatcher._cache = UnitCache(function)
        dispatcher.compile(signature)
        return dispatcher

    dispatcher = build(group, "\n".join(lines), environment | {"word": structs.word}, make, compiling)
    call = dispatcher.overloads[dispatcher.signatures[0]].entry_point
    return {name: eval(text, {"call": call}) for name, text in callers.items()}


def _drive(kernel, S, row, items, chunk):
    for k in numba.prange((items + chunk - 1) // chunk):
        call_kernel(kernel, S, row, k * chunk, min((k + 1) * chunk, items))


def build_parallel_driver() -> int:
    """Address of ``drive(kernel, S, row, items, chunk)``, which runs chunks of work items on all cores."""
    signature = types.void(*[types.intp] * 5)
    source = "def drive(kernel, S, row, items, chunk):\n    loop(kernel, S, row, items, chunk)\n"

    def make(function: Any, cache: bool) -> Any:
        return numba.cfunc(signature, cache=cache)(function)

    _ready_compiler()  # which is where Numba may load OpenMP
    return build("drive", source, {"loop": numba.njit(parallel=True)(_drive)}, make).address
