"""The contract that every rounder keeps: a new rounder is one line in the table."""

from __future__ import annotations

import pytest
import torch
from random_weights import same_segment

from guidedq.artifacts.guidance import QuadraticTerm, SiteGuidance, identity_guidance
from guidedq.artifacts.quantized_weight import AffineSegment, EntropySegment, RoundedSegment
from guidedq.passes.round.gptq import GptqRounder
from guidedq.passes.round.nearest import NearestRounder
from guidedq.passes.round.stochastic import StochasticRounder
from guidedq.quant.exponents import scales_of
from guidedq.quant.formats import AffineFormat, EntropyFormat, RoundedFormat

ROUNDERS = [
    NearestRounder(),
    NearestRounder(search=False),
    StochasticRounder(),
    GptqRounder(),
    GptqRounder(activation_order=True),
    GptqRounder(damping_fraction=0.1),
]
FORMATS: list[RoundedFormat] = [
    AffineFormat(bits=2, group_size=16),
    AffineFormat(bits=3, group_size=64),
    AffineFormat(bits=4, group_size=0, symmetric=True),
    AffineFormat(bits=5, group_size=24, outliers=2),
    EntropyFormat(bits=2.5),
    AffineFormat(bits=8, group_size=128),
    EntropyFormat(bits=4.0),
]


def guidance(rows: int, columns: int, samples: int = 0, groups: int = 1, seed: int = 0) -> SiteGuidance:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(groups, samples or 4 * columns, columns, generator=generator)
    inputs = inputs @ torch.randn(columns, columns, generator=generator)
    hessian = inputs.transpose(1, 2) @ inputs / inputs.shape[1]
    weight = torch.rand(rows, generator=generator) + 0.5
    group = torch.arange(rows) * groups // rows
    return SiteGuidance(
        terms=(QuadraticTerm(hessian=hessian, row_group=group, row_weight=weight, row_weight_error=0.1 * weight),)
    )


def weight_of(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return 0.1 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def segments(rounder, matrix, given, formats=FORMATS) -> list[RoundedSegment]:
    return list(rounder.round(matrix, given, formats, seed=7))


def largest_step(segment: RoundedSegment) -> float:
    if isinstance(segment, AffineSegment):
        return float(segment.grid.scales.max())
    return float(scales_of(segment.row_exponents).max() * scales_of(segment.column_exponents).max())


@pytest.fixture(params=ROUNDERS, ids=str)
def rounder(request):
    return request.param


def test_each_format_gets_a_segment_of_all_rows_with_codes_in_range(rounder) -> None:
    matrix = weight_of(6, 100)
    for format, segment in zip(FORMATS, segments(rounder, matrix, guidance(6, 100)), strict=True):
        assert segment.format == format
        assert segment.rows.tolist() == list(range(6))
        assert segment.codes.shape == (6, 100)
        if isinstance(segment, EntropySegment):
            assert segment.row_exponents.shape == (6,)
            assert segment.column_exponents.shape == (100,)
            assert 0 < int(segment.codes.min()) < int(segment.codes.max()) < 255, "no code is clipped"
            continue
        assert isinstance(format, AffineFormat)
        assert int(segment.codes.max()) < 2**format.bits
        assert segment.outlier_columns.shape == (6, format.outliers)
        assert bool((segment.outlier_columns.diff(dim=1) > 0).all())


def test_all_entropy_segments_of_a_weight_share_their_columns_scales(rounder) -> None:
    matrix, given = weight_of(6, 40), guidance(6, 40)
    formats = [EntropyFormat(bits=bits) for bits in (1.0, 3.25, 6.0)]
    first, *others = segments(rounder, matrix, given, formats)
    assert isinstance(first, EntropySegment)
    for rows in (torch.tensor([1, 4]), torch.tensor([3])):
        others += rounder.round(matrix, given, formats[:1], [rows], seed=7)
    for segment in others:
        assert isinstance(segment, EntropySegment)
        assert torch.equal(segment.column_exponents, first.column_exponents)


@pytest.mark.parametrize(
    "formats",
    [
        [AffineFormat(bits=bits, group_size=32) for bits in range(2, 9)],
        [EntropyFormat(bits=quarters / 4) for quarters in range(4, 25, 2)],
    ],
    ids=["affine", "entropy"],
)
def test_more_bits_lose_less(rounder, formats) -> None:
    matrix, given = weight_of(8, 96), guidance(8, 96)
    losses = [float(given.distortion(s.dequantize() - matrix).sum()) for s in segments(rounder, matrix, given, formats)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-3 * losses[0]


def test_same_inputs_give_the_same_codes(rounder) -> None:
    matrix, given = weight_of(5, 40), guidance(5, 40)
    for one, other in zip(segments(rounder, matrix, given), segments(rounder, matrix, given), strict=True):
        assert same_segment(one, other)


def test_the_weight_that_is_given_is_not_written_into(rounder) -> None:
    matrix = weight_of(4, 48)
    before = matrix.clone()
    segments(rounder, matrix, guidance(4, 48))
    assert torch.equal(matrix, before)


def test_formats_do_not_depend_on_which_others_are_rounded_beside_them(rounder) -> None:
    matrix, given = weight_of(5, 70), guidance(5, 70)
    together = segments(rounder, matrix, given)
    for format, expected in zip(FORMATS, together, strict=True):
        (alone,) = segments(rounder, matrix, given, [format])
        assert same_segment(alone, expected)


def test_some_rows_are_rounded_as_among_all(rounder, monkeypatch) -> None:
    monkeypatch.setattr("guidedq.passes.round.sweep.STACK_WEIGHTS", 3 * 70)  # stacks of three rows, across formats
    matrix, given = weight_of(7, 70), guidance(7, 70, groups=2)
    rows = [torch.tensor([0, 3, 5, 6]), torch.tensor([2]), torch.tensor([], dtype=torch.int64), torch.arange(7)]
    rows += [torch.tensor([1, 2, 4, 6]), torch.tensor([], dtype=torch.int64), torch.tensor([5])]
    some = list(rounder.round(matrix, given, FORMATS, rows, seed=7))
    for chosen, part, whole in zip(rows, some, segments(rounder, matrix, given), strict=True):
        assert torch.equal(part.rows, chosen)
        assert same_segment(part, whole.part(chosen))


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (3, 172), (7, 1), (2, 65), (1, 1)], ids=str)
def test_odd_shapes_round_and_come_back_close(rounder, rows: int, columns: int) -> None:
    formats = [AffineFormat(bits=8, group_size=64), AffineFormat(bits=4, group_size=16), EntropyFormat(bits=5.0)]
    matrix = weight_of(rows, columns)
    for segment in segments(rounder, matrix, guidance(rows, columns), formats):
        error = (segment.dequantize() - matrix).abs().max()
        assert float(error) <= 4 * largest_step(segment)


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_constant_rows_are_stored_almost_exactly(rounder, value: float) -> None:
    matrix = torch.full((3, 80), value)
    for segment in segments(rounder, matrix, guidance(3, 80), [AffineFormat(bits=2, group_size=32)]):
        assert float((segment.dequantize() - matrix).abs().max()) <= 2e-3 * abs(
            value
        )  # fp16 scales: 2^-11, fed forward


def test_dead_inputs_and_rank_one_inputs_give_finite_weights(rounder) -> None:
    matrix = weight_of(4, 64)
    dead = guidance(4, 64)
    hessian = dead.terms[0].hessian.clone()
    hessian[:, 10:20], hessian[:, :, 10:20] = 0.0, 0.0
    direction = torch.randn(64, generator=torch.Generator().manual_seed(2))
    for moments in (hessian, torch.outer(direction, direction)[None], torch.zeros(1, 64, 64)):
        term = QuadraticTerm(
            hessian=moments,
            row_group=torch.zeros(4, dtype=torch.int64),
            row_weight=torch.ones(4),
            row_weight_error=torch.zeros(4),
        )
        for segment in segments(rounder, matrix, SiteGuidance(terms=(term,))):
            assert bool(torch.isfinite(segment.dequantize()).all())
            assert float((segment.dequantize() - matrix).abs().max()) < 1.0


def test_rows_of_several_metrics_are_each_rounded_in_their_own(rounder) -> None:
    matrix, given = weight_of(6, 48), guidance(6, 48, groups=3)
    term = given.terms[0]
    whole = segments(rounder, matrix, given, [FORMATS[0]])[0]
    if isinstance(rounder, StochasticRounder):
        return  # its noise is drawn for the whole matrix
    for group in range(3):
        rows = (term.row_group == group).nonzero()[:, 0]
        alone = QuadraticTerm(
            hessian=term.hessian[group : group + 1],
            row_group=torch.zeros(len(rows), dtype=torch.int64),
            row_weight=term.row_weight[rows],
            row_weight_error=term.row_weight_error[rows],
        )
        part = segments(rounder, matrix[rows], SiteGuidance(terms=(alone,)), [FORMATS[0]])[0]
        assert torch.equal(part.codes, whole.codes[rows])


def test_an_empty_list_of_formats_gives_no_segment(rounder) -> None:
    assert segments(rounder, weight_of(2, 16), identity_guidance(2, 16), []) == []
