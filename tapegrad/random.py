"""Random tensors, drawn from NumPy's Philox generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapegrad import dtypes
from tapegrad.creation import check_device, filled, shape_argument, with_grad
from tapegrad.tensor import Tensor


def _nobody(generator: Generator) -> None:
    pass


# called before a generator's state is set, for who records a program (see autograd/sampling.py)
seeded: Callable[[Generator], None] = _nobody


class Generator:
    """A source of random numbers with a seed of its own.

    >>> import tapegrad as tg
    >>> a = tg.rand(2, generator=tg.Generator().manual_seed(1))
    >>> b = tg.rand(2, generator=tg.Generator().manual_seed(1))
    >>> bool((a == b).all())
    True
    """

    def __init__(self, device: Any = "cpu") -> None:
        check_device(device)
        self.seed()

    def manual_seed(self, seed: int) -> Generator:
        """Start again from a seed; returns the generator."""
        seeded(self)
        self._seed = int(seed)
        self._numpy = np.random.Generator(np.random.Philox(self._seed & 0xFFFFFFFFFFFFFFFF))
        return self

    def initial_seed(self) -> int:
        """The seed last set."""
        return self._seed

    def seed(self) -> int:
        """Start from a seed the system gives; returns it."""
        self.manual_seed(int.from_bytes(np.random.SeedSequence().generate_state(2).tobytes(), "little") & (2**63 - 1))
        return self._seed

    def get_state(self) -> dict:
        """The state, for `set_state`."""
        return self._numpy.bit_generator.state  # type: ignore[return-value]

    def set_state(self, state: dict) -> None:
        """Continue from a state that `get_state` gave."""
        seeded(self)
        self._numpy.bit_generator.state = state


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the default generator; returns it."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seed the default generator from the system; returns the seed."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the default generator."""
    return default_generator.initial_seed()


def get_rng_state() -> dict:
    """The state of the default generator."""
    return default_generator.get_state()


def set_rng_state(state: dict) -> None:
    """Continue the default generator from a state."""
    default_generator.set_state(state)


def _float(dtype: Any, name: str) -> Any:
    d = dtypes.get_default_dtype() if dtype is None else dtypes.as_dtype(dtype)
    if not d.is_floating_point:
        raise RuntimeError(f"\"{name}\" not implemented for '{d.tensor_type}'")
    return d


# numbers of a shape from NumPy's generator
Draw = Callable[[np.random.Generator, tuple[int, ...]], Any]


def _draw(method: str, d: Any) -> Draw:
    kind = np.float64 if d.itemsize == 8 else np.float32
    return lambda numbers, shape: getattr(numbers, method)(shape, dtype=kind)


def _alike(draw: Callable, shape: tuple[int, ...], generator: Generator) -> Tensor:
    return draw(shape)


# draws for all samples of a `vmap` at once, and has programs draw again (see autograd/sampling.py)
draw_samples: Callable[[Callable[[tuple[int, ...]], Tensor], tuple[int, ...], Generator], Tensor] = _alike


def _random(
    shape: Sequence[int], draw: Draw, dtype: Any, generator: Generator | None, requires_grad: bool = False
) -> Tensor:
    source = generator or default_generator

    def make(whole: tuple[int, ...]) -> Tensor:
        return filled(whole, draw(source._numpy, whole), dtype, False)

    return with_grad(draw_samples(make, tuple(shape), source), requires_grad)


def _drawn(
    name: str, method: str, generator: Generator | None, size: Any, dtype: Any, device: Any, requires_grad: bool
) -> Tensor:
    check_device(device)
    d, shape = _float(dtype, name), shape_argument(name, size)
    return _random(shape, _draw(method, d), d, generator, requires_grad)


def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers uniform on [0, 1)."""
    return _drawn("rand", "random", generator, size, dtype, device, requires_grad)


def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers from the standard normal distribution."""
    return _drawn("randn", "standard_normal", generator, size, dtype, device, requires_grad)


def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = dtypes.int64,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Integers from `low` (0 if only `high` is given) up to, but not including, `high`."""
    check_device(device)
    if size is None:
        low, high, size = 0, low, high
    if low >= high:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
    shape = shape_argument("randint", (size,))
    return _random(shape, lambda numbers, whole: numbers.integers(low, high, whole), dtype, generator, requires_grad)


def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    dtype: Any = dtypes.int64,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """The integers from 0 to `n` - 1 in random order."""
    check_device(device)
    if n < 0:
        raise RuntimeError(f"n must be non-negative, got {n}")

    def draw(numbers: np.random.Generator, whole: tuple[int, ...]) -> np.ndarray:
        return numbers.permuted(np.broadcast_to(np.arange(n), whole), axis=-1)

    return _random((n,), draw, dtype, generator, requires_grad)


def normal(
    mean: Any = 0.0,
    std: Any = 1.0,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
) -> Tensor:
    """Normal numbers with means and standard deviations given as numbers (with a `size`) or tensors."""
    shapes = [v.shape for v in (mean, std) if isinstance(v, Tensor)]
    if shapes:
        d = (mean if isinstance(mean, Tensor) else std).dtype
        shape: tuple[int, ...] = np.broadcast_shapes(*shapes)
    else:
        d, shape = _float(dtype, "normal"), shape_argument("normal", (() if size is None else size,))
    drawn = _random(shape, _draw("standard_normal", d), d, generator)
    if not isinstance(std, Tensor) and std < 0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std {std}")
    return _of_values(_scaled, d, drawn, mean, std)


def _scaled(numbers: np.ndarray, mean: Any, std: Any) -> Any:
    if np.any(np.asarray(std) < 0):
        raise RuntimeError(f"normal expects std >= 0.0, but found std {np.min(std)}")
    return mean + std * numbers


def bernoulli(input: Tensor, p: float | None = None, *, generator: Generator | None = None) -> Tensor:
    """Ones with the probabilities given by a tensor (or by `p`), zeros otherwise."""
    drawn = _random(input.shape, _draw("random", dtypes.float64), dtypes.float64, generator)
    return _of_values(_hits, input.dtype, drawn, input if p is None else p)


def _hits(numbers: np.ndarray, chances: Any) -> Any:
    if not np.all((np.asarray(chances) >= 0) & (np.asarray(chances) <= 1)):
        raise RuntimeError("Expected p_in >= 0 && p_in <= 1 to be true, but got false.")
    return numbers < chances


def _of_values(function: Callable, dtype: Any, drawn: Tensor, *given: Any) -> Tensor:
    # what a function makes of random numbers and of tensors or numbers that broadcast to them, element by element
    from tapegrad.ops._reading import computed

    tensors = [v.expand(drawn.shape) for v in given if isinstance(v, Tensor)]  # type: ignore[attr-defined]
    numbers = [None if isinstance(v, Tensor) else v for v in given]

    def made(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
        rest = iter(others)
        return np.asarray(function(first, *(next(rest) if n is None else n for n in numbers)), dtype.numpy)

    return computed(made, drawn, *tensors, stretches=range(1 + len(tensors)))


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Indices drawn with the probabilities in the last dimension (not necessarily normalised)."""
    weights = np.atleast_2d(input.detach().numpy().astype(np.float64))
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
    if np.any(weights.sum(1) <= 0):
        raise RuntimeError("invalid multinomial distribution (sum of probabilities <= 0)")
    if not replacement and np.any((weights > 0).sum(1) < num_samples):
        raise RuntimeError("cannot sample n_sample > prob_dist.size(-1) samples without replacement")

    def draw(numbers: np.random.Generator, whole: tuple[int, ...]) -> np.ndarray:
        size = (*whole[: len(whole) - input.ndim], num_samples)
        rows = [numbers.choice(w.size, size, replace=replacement, p=w / w.sum()) for w in weights]
        return np.stack(rows, -2) if input.ndim == 2 else rows[0]

    return _random((*input.shape[:-1], num_samples), draw, dtypes.int64, generator)


def _like(name: str, make: Any) -> Any:
    def like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        return make(input.shape, dtype=dtype or input.dtype, device=device, requires_grad=requires_grad)

    like.__name__ = like.__qualname__ = name
    like.__doc__ = f"`{make.__name__}` with the shape and dtype of another tensor."
    return like


rand_like = _like("rand_like", rand)
randn_like = _like("randn_like", randn)


def randint_like(input: Tensor, low: int, high: int | None = None, *, dtype: Any = None) -> Tensor:
    """`randint` with the shape and dtype of another tensor."""
    if high is None:
        low, high = 0, low
    return randint(low, high, tuple(input.shape), dtype=dtype or input.dtype)


def _fill_in_place(t: Tensor, draw: Draw, generator: Generator | None) -> Tensor:
    from tapegrad.ops._write import assign

    return assign(t, _random(t.shape, draw, t.dtype, generator))


def uniform_(self: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill with numbers uniform on [`low`, `high`)."""
    return _fill_in_place(self, lambda numbers, shape: low + (high - low) * numbers.random(shape), generator)


def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill with normal numbers."""
    return _fill_in_place(self, lambda numbers, shape: mean + std * numbers.standard_normal(shape), generator)


def bernoulli_(self: Tensor, p: float = 0.5, *, generator: Generator | None = None) -> Tensor:
    """Fill with ones with probability `p`, zeros otherwise."""
    return _fill_in_place(self, lambda numbers, shape: numbers.random(shape) < p, generator)


def random_(self: Tensor, low: int = 0, high: int | None = None, *, generator: Generator | None = None) -> Tensor:
    """Fill with integers from `low` up to, but not including, `high`."""
    top = (2**24 if self.dtype.is_floating_point else dtypes.iinfo(self.dtype).max) if high is None else high
    return _fill_in_place(self, lambda numbers, shape: numbers.integers(low, top, shape), generator)


for _method in (uniform_, normal_, bernoulli_, random_):
    setattr(Tensor, _method.__name__, _method)
