"""Lanes: a function of one sample as recorded programs of blocks of samples, which run natively, on all cores.

What is captured is the function as `vmap` maps it over a block, so every rule is vmap's. A block is as large as lets a program's memory
stay in a core's cache. Where the function looks at values that differ between samples, a program stands for the path of the sample it
was captured along; beside its results it hands out what was looked at, and samples for which that is something else are gathered and
run along other paths.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapegrad import _tree, dtypes
from tapegrad.autograd import sampling
from tapegrad.autograd.sampling import is_sampling
from tapegrad.autograd.tracing import bare, depth
from tapegrad.creation import as_tensor, from_numpy
from tapegrad.engine.runtime import rt
from tapegrad.func import _vmap
from tapegrad.func._vmap import Mapping, checked_call, run_mapping, trace_sample
from tapegrad.grad_mode import is_grad_enabled, set_grad_enabled
from tapegrad.program.blocks import Path, Result
from tapegrad.program.capture import capturing
from tapegrad.program.draws import BlockCapture, Draws, drawing_for
from tapegrad.program.environment import Environment
from tapegrad.program.native import empty_array
from tapegrad.program.passes import optimised
from tapegrad.program.program import KernelRaised, Outdated
from tapegrad.program.regrouped import mapped_by_paths, refuse_kinds, results_of_sample
from tapegrad.program.transformed import compiled_within, described
from tapegrad.program.values import Value
from tapegrad.tensor import Tensor

_S = rt.S
# bytes of a program's memory: what a core's own cache holds beside operands and results
_CACHE = 64 << 10
_FEWEST, _MOST = 16, 4096  # samples of a block
_PATHS = 64  # paths that are kept of one kind of arguments, and that one call follows; samples beyond run one by one
_TRIED, _WORTH = 8, 4  # after so many paths, one is worth following if so many samples take each
_KINDS = 64  # kinds of arguments


class Unrecordable(RuntimeError):
    """What a function does cannot be recorded for blocks of samples."""


class _Kind:
    # what is known for arguments of one signature
    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.paths: dict[int, list[Path]] = {}  # by samples of a block
        self.block = 0  # how many samples a block should have, 0 if not known yet
        self.mapped_only = False  # the function cannot be recorded
        self.steered = False  # nor mapped eagerly


class Lanes:
    """A function mapped over samples, captured once for each kind of arguments and replayed over blocks of them on all cores.

    Its results are those of `vmap`. The function may look at values; samples that take different paths are told apart. What cannot be
    recorded runs as under `vmap`, or one by one.

    Args:
        function: of one sample; see `vmap`.
        in_dims: as there.
        out_dims: as there.
        randomness: as there.

    Attributes:
        captures: how many programs were recorded.
        singles: how many samples ran one by one.

    >>> import numpy as np, tapegrad as tg
    >>> slope = Lanes(tg.func.grad(lambda w, x: (w * x * x).sum() if x[0] > 0 else (w * x).sum()), (None, 0))
    >>> slope(np.array([1.0, 1.0]), np.array([[2.0, 3.0], [-2.0, 3.0]]))
    array([[ 4.,  9.],
           [-2.,  3.]])
    """

    def __init__(self, function: Callable, in_dims: Any = 0, out_dims: Any = 0, randomness: str = "error") -> None:
        self._function, self._in_dims, self._out_dims, self.randomness = function, in_dims, out_dims, randomness
        compiled = compiled_within(function)
        self._watched = function if compiled is None else compiled._watched
        self._kinds: dict[Any, _Kind] = {}
        self._lock = threading.RLock()
        self.captures = self.singles = 0

    def __call__(
        self,
        *args: Any,
        out: Sequence[np.ndarray] | None = None,
        failed: dict[int, Exception] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run on all samples.

        Samples run together in blocks whose size the first call of a kind decides; which ones do depends on the arguments alone, not on
        earlier calls, and so do the last bits of results.

        Args:
            args: arguments, mapped as `in_dims` says.
            out: contiguous arrays to write the leaves of the result to, in tree order, samples along their first axis.
            failed: given with `out`, it gets what the function raises on samples that run one by one, by their numbers; these have no
                results.
            kwargs: arguments by name, mapped over their first dimension.

        Returns:
            What `vmap` returns; arrays if all data are arrays; `out` if it is given.

        Raises:
            ValueError: see `vmap`; and if `out` has not the shapes and dtypes of the results.
            RuntimeError: if samples take paths with results of different kinds; see also `vmap`.
        """
        call = checked_call(self._function, args, kwargs, self._in_dims)
        key = self._key(call)
        if key is None or capturing() or is_sampling():
            return self.mapped(call, out, capturing() or _as_tensors(call))
        kind = self._kind(key)
        if kind.mapped_only:
            return self.mapped(call, out, _as_tensors(call))
        return _Run(self, call, kind, out, failed).result()

    def _kind(self, key: Any) -> _Kind:
        with self._lock:
            kind = self._kinds.get(key)
            if kind is None or not kind.environment.is_same():
                kind = self._kinds[key] = _Kind(Environment(self._watched))
                while len(self._kinds) > _KINDS:
                    del self._kinds[next(iter(self._kinds))]
        return kind

    def _key(self, call: Mapping) -> Any:
        key: list[Any] = [dtypes.get_default_dtype(), call.structures]
        for value, dim in zip(call.values, call.dims, strict=True):
            if isinstance(value, Tensor):
                shape = tuple(value.shape)
                key.append((dim, value.dtype, shape if dim is None else shape[:dim] + shape[dim + 1 :]))
            else:
                key.append((type(value), value.hex() if type(value) is float else value))
        try:
            hash(tuple(key))
        except TypeError:  # an argument that is neither data nor hashable
            return None
        return tuple(key) if call.size else None

    def mapped(self, call: Mapping, out: Sequence[np.ndarray] | None, as_tensors: bool) -> Any:
        """What `vmap` returns without programs, as tensors or as arrays; `out` if that is given."""
        found = run_mapping(call, self._out_dims, self.randomness)
        if out is None and as_tensors:
            return found
        found = _tree.map_leaves(lambda t: t.detach().numpy() if isinstance(t, Tensor) else t, found)
        if out is None:
            return found
        leaves = _tree.flatten(found)[0]
        _check_out(out, [(a.shape, a.dtype) for a in leaves])
        for array, leaf in zip(out, leaves, strict=True):
            array[...] = leaf
        return out

    def expect(self, samples: int) -> None:
        """Say how many samples are to come, so that what is worth compiling for them is compiled now."""
        for kind in list(self._kinds.values()):
            for path in kind.paths.get(max(kind.paths, default=0), ()):
                path.expect(samples)

    def programs(self) -> list[Path]:
        """The recorded paths."""
        return [p for kind in list(self._kinds.values()) for paths in list(kind.paths.values()) for p in paths]


class _Unfit(Exception):
    # the function is to be mapped without programs
    pass


class _Run:
    """One call: its samples, and which of them have results."""

    def __init__(
        self,
        lanes: Lanes,
        call: Mapping,
        kind: _Kind,
        out: Sequence[np.ndarray] | None,
        failed: dict[int, Exception] | None,
    ) -> None:
        self.lanes, self.call, self.kind, self.out, self.failed = lanes, call, kind, out, failed
        self.places = [p for p, v in enumerate(call.values) if isinstance(v, Tensor)]
        self.mapped = [call.dims[p] is not None for p in self.places]
        self.sources = [self._source(p) for p in self.places]
        self.as_tensors = out is None and _as_tensors(call)
        self.draws = Draws(call.size, lanes.randomness)
        self.outs: list[np.ndarray] | None = None
        self.of_sample: list[Result] = []
        self.structure: _tree.Structure | None = None
        self.unrecordable = False
        self.seeking = False  # paths only: a sample without one is to run later
        self.took = np.zeros(call.size, np.int64)  # by sample the number of its path, 0 for one that ran alone

    def _source(self, p: int) -> np.ndarray:
        array = bare(self.call.values[p]).numpy()
        dim = self.call.dims[p]
        return np.require(np.moveaxis(array, dim, 0) if dim else array, requirements=["C", "A"])

    def result(self) -> Any:
        """The results of all samples."""
        if not self._needs_tape():
            try:
                self._compute()
                return self._handed_out(self.outs)
            except _Unfit:
                pass
        if not self.kind.steered:
            try:
                with drawing_for(self.draws, np.arange(self.call.size)):
                    found = self.lanes.mapped(self.call, self.out, self.as_tensors)
                self.kind.mapped_only = self.unrecordable
                return found
            except sampling.SteeredByValues:
                self.kind.steered = True
        if not self.as_tensors:
            self.outs = None
            self._one_by_one(np.arange(self.call.size))
            return self._handed_out(self.outs)
        self._find_paths()
        self.structure, found = mapped_by_paths(self.call, self.took, self.draws)
        return self._handed_out(found)

    def _needs_tape(self) -> bool:
        # whether an argument carries a gradient or a trace on to the results
        if not self.as_tensors:
            return False
        data = (v for v in self.call.values if isinstance(v, Tensor))
        return bool(depth()) or (is_grad_enabled() and any(t.requires_grad for t in data))

    def _find_paths(self) -> None:
        # which sample takes which path
        self.outs, self.took[:] = None, 0
        self.seeking = True
        if not self.unrecordable:
            with contextlib.suppress(_Unfit), set_grad_enabled(False):
                self._compute()

    def _handed_out(self, wholes: Sequence[Any] | None) -> Any:
        # the results, arrays or tensors with the samples in front, as `vmap` returns them
        if self.out is not None:
            return self.out
        assert self.structure is not None
        assert wholes is not None
        places = _tree.spread(self.lanes._out_dims, self.structure)
        if places is None:
            return self.lanes.mapped(self.call, None, True)  # which says what is wrong
        made = []
        for whole, place in zip(wholes, places, strict=True):
            if isinstance(whole, Tensor):
                moved = whole.movedim(0, place) if place else whole  # type: ignore[attr-defined]
                made.append(self._the_same(whole) if place is None else moved)
                continue
            array = self._the_same(whole).copy() if place is None else np.moveaxis(whole, 0, place) if place else whole
            made.append(from_numpy(array) if self.as_tensors else array)
        return _tree.unflatten(made, self.structure)

    def _the_same(self, whole: Any) -> Any:
        # a result that is not mapped
        array = bare(whole).numpy() if isinstance(whole, Tensor) else whole
        if any(row.tobytes() != array[0].tobytes() for row in array):
            name = getattr(self.call.func, "__name__", repr(self.call.func))
            raise ValueError(f"vmap({name}, ...): `{name}` can not return a BatchedTensor when out_dim is None")
        return whole[0]

    def _compute(self) -> None:
        # one path after the other, each time that of the first sample without results: so earlier calls do not matter
        todo = np.arange(self.call.size)
        block = self._block()
        paths = self.kind.paths.setdefault(block, [])
        followed = 0
        while len(todo):
            if followed == _PATHS or (followed >= _TRIED and self.call.size - len(todo) < _WORTH * followed):
                return self._one_by_one(todo)
            followed += 1
            try:
                path = self._known(paths, todo) or self._capture(paths, todo, block)
                if path is None:
                    self._one_by_one(todo[:1])
                    todo = todo[1:]
                    continue
                done = self._along(path, todo)
            except Outdated:
                assert path is not None
                self._forget(paths, path)
                continue
            except KernelRaised:
                return self._one_by_one(todo)
            if not done[0]:  # a value that is not the same each time
                return self._one_by_one(todo)
            self.took[todo[done]] = followed
            todo = todo[~done]
        return None

    def _known(self, paths: list[Path], todo: np.ndarray) -> Path | None:
        # the path that the first of some samples takes, if it was captured
        for path in list(paths):
            try:
                if not path.steered or self._takes(path, todo[0]):
                    return path
            except Outdated:
                self._forget(paths, path)
        return None

    def _forget(self, paths: list[Path], path: Path) -> None:
        with self.lanes._lock, contextlib.suppress(ValueError):
            paths.remove(path)

    def _takes(self, path: Path, n: int) -> bool:
        # whether a sample takes a path
        outs = [empty_array((path.block, *r.shape), r.dtype) for r in (*path.results, *path.guards)]
        raised = np.zeros(path.block, bool)
        copies = np.full(path.block, n)
        ran = path.run(self._gathered(copies), self.mapped, path.block, outs, self._drawn(path, copies), raised)
        return ran and bool(path.same(outs[len(path.results) :], path.block)[0]) and not raised[0]

    def _block(self) -> int:
        # how many samples run at once; no more than leave something to do for several cores
        size = self.call.size
        fits = _power_below(size)
        if not self.kind.block and fits > _FEWEST:
            trial = self.kind.paths.setdefault(_FEWEST, [])
            first = trial[0] if trial else self._capture(trial, np.arange(size), _FEWEST)
            if first is not None:
                self.kind.block = _power_below(min(max(_CACHE // first.kept_of_sample(), _FEWEST), _MOST))
        return min(fits, self.kind.block or _FEWEST, max(_FEWEST, _power_below(max(size // 4, 1))))

    def _along(self, path: Path, todo: np.ndarray) -> np.ndarray:
        # run some samples; which of them took the path
        if path.tracked and is_grad_enabled() and self.as_tensors:
            raise _Unfit
        whole = len(todo) == self.call.size
        self._agree(path)
        assert self.outs is not None
        count, sources, chosen = len(todo), self.sources, None
        if not whole:
            count = max(count, path.block)
            chosen = np.concatenate([todo, np.full(count - len(todo), todo[0])])
            sources = self._gathered(chosen)
        # what is written for samples of other paths is written again
        outs = self.outs if whole else [empty_array((count, *r.shape), r.dtype) for r in path.results]
        looked_at = [empty_array((count, *r.shape), r.dtype) for r in path.guards]
        raised = np.zeros(count, bool) if path.guards or self.failed is not None else None
        if not path.run(sources, self.mapped, count, [*outs, *looked_at], self._drawn(path, chosen), raised):
            return np.zeros(len(todo), bool)
        done = path.same(looked_at, count)[: len(todo)]
        if raised is not None:
            done &= ~raised[: len(todo)]
        if not whole:
            for array, found in zip(self.outs, outs, strict=True):
                array[todo[done]] = found[: len(todo)][done]
        return done

    def _gathered(self, chosen: np.ndarray) -> list[np.ndarray]:
        return [a[chosen] if m else a for a, m in zip(self.sources, self.mapped, strict=True)]

    def _drawn(self, path: Path, chosen: np.ndarray | None) -> list[np.ndarray]:
        # the random numbers of a path, of all samples or some
        wholes = [(s, self.draws.numbers(place, s)) for place, (_, s) in enumerate(path.drawn)]
        return [a if chosen is None or not s.mapped else a[chosen] for s, a in wholes]

    def _agree(self, made: Path | _Single) -> None:
        # all samples have results of one kind
        if self.outs is None:
            self.structure, self.of_sample = made.structure, list(made.results)
            facts = [((self.call.size, *r.shape), r.dtype) for r in made.results]
            if self.out is not None:
                _check_out(self.out, facts)
            self.outs = list(self.out) if self.out is not None else [empty_array(*f) for f in facts]
        elif made.structure != self.structure or list(made.results) != self.of_sample:
            refuse_kinds(*([(r.dtype, r.shape) for r in results] for results in (self.of_sample, made.results)))

    def _one_by_one(self, todo: np.ndarray) -> None:
        self.lanes.singles += 0 if self.seeking else len(todo)
        for n in () if self.seeking else todo:
            try:
                structure, flat = results_of_sample(self.call, int(n), self.draws)
            except MemoryError:
                raise
            except Exception as error:
                if self.failed is None:
                    raise
                self.failed[int(n)] = error
                continue
            arrays = [bare(t).numpy() for t in flat]
            if is_grad_enabled() and self.as_tensors and any(t.requires_grad for t in flat):
                raise _Unfit
            self._agree(_Single(structure, [Result(a.shape, a.dtype) for a in arrays]))
            assert self.outs is not None
            for array, found in zip(self.outs, arrays, strict=True):
                array[n] = found

    # capture

    def _capture(self, paths: list[Path], todo: np.ndarray, block: int) -> Path | None:
        # a path along the first of some samples; None if it cannot be recorded though samples differ in their paths
        guards: list[tuple[Tensor, bytes]] = []
        with self.lanes._lock:
            try:
                self.lanes.captures += 1
                path = self._captured(np.full(block, todo[0]), block, guards)
            except (MemoryError, _Unfit, sampling.RandomRefused):
                raise
            except Exception:
                if guards or paths:
                    return None
                self.unrecordable = True
                raise _Unfit from None
            paths.append(path)
            del paths[:-_PATHS]
        return path

    def _captured(self, chosen: np.ndarray, block: int, guards: list[tuple[Tensor, bytes]]) -> Path:
        capture = BlockCapture(self.draws, chosen)
        values = list(self.call.values)
        dims: list[int | None] = [None] * len(values)
        structures: list[_tree.Structure] = []
        for p, array, mapped in zip(self.places, self._gathered(chosen), self.mapped, strict=True):
            values[p] = capture.argument(as_tensor(array))
            dims[p] = 0 if mapped else None

        def flat(*samples: Any) -> list[Any]:
            leaves, structure = _tree.flatten(self.call.on_leaves(*samples))
            structures.append(structure)
            return [*leaves, *(t for t, _ in guards)]

        before = rt.set_mode(_S, 0)
        try:
            with capture.running():
                batch, made = trace_sample(flat, values, dims, block, self.lanes.randomness, guards)
                self._check_results(made, structures[0], batch)
                wholes = [batch.whole(t) for t in made]
                tracked = any(t.requires_grad for t in wholes[: len(made) - len(guards)])
                found: list[Value] = [capture.result(t) for t in wholes]
        finally:
            rt.set_mode(_S, before)
        path = Path(optimised(capture.code(found)), block, structures[0], [e for _, e in guards], tracked)
        return path

    def _check_results(self, made: Sequence[Any], structure: _tree.Structure, batch: Any) -> None:
        # what vmap would refuse, it refuses
        places = _tree.spread(self.lanes._out_dims, structure)
        if places is None or not all(isinstance(t, Tensor) for t in made):
            raise Unrecordable
        if any(place is None and t._id in batch.values for t, place in zip(made, places, strict=False)):
            raise Unrecordable


class _Single(NamedTuple):
    # the results of one sample
    structure: _tree.Structure
    results: Sequence[Result]


def _power_below(n: int) -> int:
    return 1 << n.bit_length() - 1


def _as_tensors(call: Mapping) -> bool:
    return bool(depth()) or not call.as_arrays


def _check_out(out: Sequence[np.ndarray], facts: Sequence[tuple[tuple[int, ...], np.dtype]]) -> None:
    fits = len(out) == len(facts) and all(
        isinstance(a, np.ndarray) and (a.shape, a.dtype) == (shape, dtype) and a.flags.carray
        for a, (shape, dtype) in zip(out, facts, strict=True)
    )
    if not fits:
        wanted = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in facts)
        given = ", ".join(f"{a.dtype}{list(a.shape)}" if isinstance(a, np.ndarray) else type(a).__name__ for a in out)
        raise ValueError(f"out must be contiguous arrays for the results, {wanted}, but got {given}")


# what vmap runs in lanes


def _in_lanes(function: Callable, in_dims: Any, out_dims: Any, randomness: str) -> Callable | None:
    compiled = compiled_within(function)
    if compiled is None:
        return None
    try:
        key = (described(function), _hashable(in_dims), _hashable(out_dims), randomness)
        known = compiled.lanes.get(key)
    except TypeError:  # arguments of a transformation that are not hashable
        return Lanes(function, in_dims, out_dims, randomness)
    if known is None:
        known = compiled.lanes.setdefault(key, Lanes(function, in_dims, out_dims, randomness))
        while len(compiled.lanes) > _KINDS:
            del compiled.lanes[next(iter(compiled.lanes))]
    return known


def _hashable(dims: Any) -> Any:
    leaves, structure = _tree.flatten(dims)
    return tuple((type(v), v) for v in leaves), structure


_vmap.in_lanes = _in_lanes
