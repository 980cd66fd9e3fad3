"""Random programs: values, gradients and refusals are PyTorch's. `python -m tests.programs` runs as many as you like."""

import types

import pytest

import tapegrad as tg

pytest.importorskip("torch")

from tests.programs.compare import disagreement
from tests.programs.generate import generate
from tests.programs.program import Step, listing
from tests.programs.shrink import shrunk

PORTION = 50


def check(first, count):
    for seed in range(first, first + count):
        program = generate(seed)
        # the third time, transformations of its graphs are remembered
        parted = next(filter(None, (disagreement(program, tg) for _ in range(3))), None)
        if parted is not None:
            pytest.fail(f"seed {seed}: {parted.text}\n\n{listing(shrunk(program, parted.kind, tg))}", pytrace=False)


@pytest.mark.parametrize("first", range(0, 500, PORTION))
def test_programs_agree_with_pytorch(first):
    check(first, PORTION)


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(500, 10_500, 10 * PORTION))
def test_ten_thousand_programs_agree_with_pytorch(first):
    check(first, 10 * PORTION)


def test_a_seed_is_a_program():
    assert generate(3) == generate(3)
    assert generate(3) != generate(4)


def test_a_listing_runs():
    found = {}
    program = [Step("tg.ones(2)", results=("v0",)), Step("{0} * 3", ("v0",), ("v1",), no_grad=True)]
    exec(listing(program), found)
    assert found["v1"].tolist() == [3, 3]


# what the comparison finds


def twin(**changes):
    """The library with some functions exchanged."""
    library = types.ModuleType("twin")
    library.__dict__.update(vars(tg))
    library.__dict__.update(changes)
    return library


PROGRAM = [
    Step("tg.tensor([0.5, -1.5], dtype=tg.float64).requires_grad_()", results=("v0",)),
    Step("{0}.exp()", ("v0",), ("v1",)),
    Step("tg.tensor([0.2, 0.4], dtype=tg.float64)", results=("v2",)),
    Step("{0} * 2", ("v2",), ("v3",), no_grad=True),
    Step("tg.maximum({0}, {1})", ("v1", "v1"), ("v4",)),
    Step("{0}[0] += {1}[1]", ("v4", "v3"), writes=True),
    Step("{0}.cos()", ("v4",), ("v5",)),
    Step("{0}.sum().backward()", ("v5",)),
]


def parted(**changes):
    return disagreement(PROGRAM, twin(**changes))


def test_the_library_passes():
    assert disagreement(PROGRAM, tg) is None


@pytest.mark.parametrize(
    ("maximum", "kind"),
    [
        (lambda a, b: tg.maximum(a, b) + 1e-7, "value"),
        (lambda a, b: tg.maximum(a, b)[:1], "shape of value"),
        (lambda a, b: tg.maximum(a, b).float(), "dtype of value"),
        (
            lambda a, b: tg.maximum(a, b).detach(),
            "only tapegrad raised RuntimeError: element of tensors does not require",
        ),
        (lambda a, b: tg.maximum(a * 2, b) - a.detach(), "at the end: gradient"),
        (lambda a, b: tg.maximum(a, b)[:], "at the end: _is_view"),
        (lambda a, b: tg.maximum(a, c=b), "only tapegrad raised TypeError: maximum got an unexpected keyword argument"),
    ],
)
def test_what_is_wrong_is_found(maximum, kind):
    assert parted(maximum=maximum).kind == kind


def test_a_missing_refusal_is_found():
    program = [PROGRAM[0], Step("tg.ones(3)", results=("v1",)), Step("tg.maximum({0}, {1})", ("v0", "v1"), ("v2",))]
    assert disagreement(program, tg) is None
    found = disagreement(program, twin(maximum=lambda a, b: a))
    assert found.kind.startswith("only PyTorch raised RuntimeError: The size of tensor")


def test_rows_left_behind_are_found():
    kept = []
    library = twin(maximum=lambda a, b: kept.append(tg.maximum(a, b)) or tg.maximum(a, b))
    assert disagreement(PROGRAM, library).kind == "rows left on the tape"


def test_a_program_is_shrunk_to_what_is_wrong():
    library = twin(maximum=lambda a, b: tg.maximum(a, b.detach() * 1.1))
    found = disagreement(PROGRAM, library)
    assert [step.form for step in shrunk(PROGRAM, found.kind, library)] == [
        "tg.tensor([0.5, -1.5], dtype=tg.float64).requires_grad_()",
        "tg.maximum({0}, {1})",
    ]
