"""Rounding for entropy coding: scales from the pivots, what it must gain, and weights out of the ordinary."""

from __future__ import annotations

import pytest
import torch

from guidedq.artifacts.guidance import QuadraticTerm, SiteGuidance
from guidedq.artifacts.quantized_weight import EntropySegment
from guidedq.passes.round.entropy import MOST_OCTAVES, column_exponents
from guidedq.passes.round.gptq import GptqRounder
from guidedq.passes.round.metric import feedback, row_metrics
from guidedq.passes.round.nearest import NearestRounder
from guidedq.quant.entropy import column_order, encode_codes
from guidedq.quant.exponents import ONE, PARTS, scales_of
from guidedq.quant.formats import ENTROPY_ZERO, AffineFormat, EntropyFormat, RoundedFormat
from guidedq.quant.packing import columns_bytes

QUARTERS = [EntropyFormat(bits=quarters / 4) for quarters in range(2, 25)]


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven(columns: int, decay: float = 4.0, seed: int = 0) -> torch.Tensor:
    """Second moments whose eigenvalues fall as `rank ** -decay`, in directions of their own."""
    directions = torch.linalg.qr(normal(columns, columns, seed=seed)).Q
    return (directions * torch.arange(1, columns + 1) ** -decay) @ directions.t()


def turbulent(columns: int) -> torch.Tensor:
    """Second moments whose columns differ by octaves, one beside the other."""
    sizes = torch.exp2(torch.tensor([1.5, -1.5, 0.5, -1.0]).repeat(columns)[:columns])
    return sizes[:, None] * uneven(columns, decay=0.5) * sizes


def guidance_of(hessian: torch.Tensor, rows: int, groups: int = 1) -> SiteGuidance:
    term = QuadraticTerm(
        hessian=hessian.expand(groups, -1, -1),
        row_group=torch.arange(rows) % groups,
        row_weight=torch.ones(rows),
        row_weight_error=torch.zeros(rows),
    )
    return SiteGuidance(terms=(term,))


def rounded(matrix: torch.Tensor, given: SiteGuidance, *formats: EntropyFormat) -> list[EntropySegment]:
    found = list(GptqRounder().round(matrix, given, formats, seed=0))
    return [segment for segment in found if isinstance(segment, EntropySegment)]


def lost(matrix: torch.Tensor, given: SiteGuidance, format: RoundedFormat, rounder=None) -> float:
    (segment,) = (rounder or GptqRounder()).round(matrix, given, [format], seed=0)
    return float(given.distortion(segment.dequantize() - matrix).sum())


def stored_bytes(segment: EntropySegment) -> int:
    """Codes and scales of the rows and the columns."""
    stream = encode_codes(segment.codes, column_order(segment.column_exponents))
    return len(stream) + len(segment.row_exponents) + columns_bytes(len(segment.column_exponents))


def test_every_quarter_of_a_bit_loses_less_and_takes_more() -> None:
    matrix, given = normal(64, 128), guidance_of(uneven(128), 64)
    segments = rounded(matrix, given, *QUARTERS[2:])
    losses = [float(given.distortion(segment.dequantize() - matrix).sum()) for segment in segments]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.01 * losses[0]
    assert [*map(stored_bytes, segments)] == sorted(map(stored_bytes, segments))


def test_it_loses_less_than_nearest_codes_of_as_many_bits() -> None:
    matrix, given = normal(32, 128), guidance_of(uneven(128, decay=1.5), 32)
    for bits in (2.0, 3.5, 5.0):
        format = EntropyFormat(bits=bits)
        assert lost(matrix, given, format) < 0.8 * lost(matrix, given, format, NearestRounder())


@pytest.mark.parametrize("decay", [1.0, 2.0, 4.0])
def test_at_no_more_bytes_it_loses_less_than_three_bits_in_groups_of_64(decay: float) -> None:
    matrix, given = normal(256, 128), guidance_of(uneven(128, decay), 256)
    fixed = AffineFormat(bits=3, group_size=64)
    room = len(matrix) * fixed.row_bytes(128)
    fitting = [segment for segment in rounded(matrix, given, *QUARTERS) if stored_bytes(segment) <= room]
    best = min(float(given.distortion(segment.dequantize() - matrix).sum()) for segment in fitting)
    assert best < 0.75 * lost(matrix, given, fixed)


def test_the_columns_scales_follow_the_inverse_square_roots_of_the_pivots() -> None:
    given = guidance_of(turbulent(96), 32)
    metrics = row_metrics(given)
    spreads = [feedback(metric, 0.01) for metric in metrics]
    wanted = -0.5 * spreads[0].pivots.log2()
    matrix = normal(32, 96) * torch.exp2(wanted)  # no column is large beside its scale
    (segment,) = rounded(matrix, given, EntropyFormat(bits=3.0))
    octaves = scales_of(segment.column_exponents).log2()
    assert float((wanted - wanted.mean()).abs().max()) < MOST_OCTAVES, "nothing is clamped here"
    torch.testing.assert_close(octaves, wanted - wanted.mean(), rtol=0, atol=0.251)  # half octaves
    assert torch.equal(segment.column_exponents, column_exponents(matrix, metrics, spreads))


def test_columns_have_no_scales_where_these_gain_less_than_they_take() -> None:
    matrix = normal(64, 48)
    unscaled = torch.full((48,), ONE, dtype=torch.uint8)
    hessian = turbulent(48)
    alike, few, many = (
        rounded(matrix[:rows], guidance_of(moments, rows), EntropyFormat(bits=3.0))[0].column_exponents
        for rows, moments in ((64, torch.eye(48)), (1, hessian), (64, hessian))
    )
    assert torch.equal(alike, unscaled)
    assert torch.equal(few, unscaled)
    assert len(many.unique()) > 2


def test_scales_of_rows_follow_the_rows_and_halve_with_every_bit() -> None:
    matrix = normal(16, 64) * torch.exp2(torch.arange(16.0) - 8)[:, None]
    coarse, fine = rounded(matrix, guidance_of(uneven(64), 16), EntropyFormat(bits=3.0), EntropyFormat(bits=4.0))
    assert torch.equal(coarse.row_exponents.int() - fine.row_exponents.int(), torch.full((16,), PARTS))
    own = scales_of(coarse.row_exponents) / torch.linalg.vector_norm(matrix / scales_of(coarse.column_exponents), dim=1)
    assert float(own.max() / own.min()) < 2 ** (1.01 / PARTS)


def test_a_column_far_larger_than_the_others_does_not_leave_the_byte() -> None:
    matrix = normal(32, 64)
    matrix[:, 5] *= 20.0
    (segment,) = rounded(matrix, guidance_of(uneven(64), 32), QUARTERS[-1])
    assert 0 < int(segment.codes[:, 5].min()) < int(segment.codes[:, 5].max()) < 255


@pytest.mark.parametrize("columns", [63, 64, 65, 200])
def test_some_rows_are_rounded_as_among_all(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidedq.passes.round.sweep.STACK_WEIGHTS", 5 * columns)
    matrix, given = normal(12, columns), guidance_of(uneven(columns), 12, groups=3)
    formats = [EntropyFormat(bits=2.0), EntropyFormat(bits=4.5)]
    rows = [torch.tensor([0, 4, 5, 11]), torch.tensor([1, 2, 3, 6, 7, 8, 9, 10])]
    parts = GptqRounder().round(matrix, given, formats, rows, seed=0)
    for chosen, part, whole in zip(rows, parts, rounded(matrix, given, *formats), strict=True):
        assert isinstance(part, EntropySegment)
        assert torch.equal(part.codes, whole.codes[chosen])
        assert torch.equal(part.row_exponents, whole.row_exponents[chosen])
        assert torch.equal(part.column_exponents, whole.column_exponents)


def zeroed(matrix: torch.Tensor, *index: slice | int) -> torch.Tensor:
    changed = matrix.clone()
    changed[index] = 0.0
    return changed


def dead(hessian: torch.Tensor) -> torch.Tensor:
    return zeroed(zeroed(hessian, slice(10, 20)), slice(None), slice(10, 20))


DIRECTION = normal(64, seed=2)
ODD = {
    "dead columns": (normal(8, 64), dead(uneven(64))),
    "all columns dead": (normal(8, 64), torch.zeros(64, 64)),
    "a rank-one Hessian": (normal(8, 64), torch.outer(DIRECTION, DIRECTION)),
    "a zero row": (zeroed(normal(8, 64), 3), uneven(64)),
    "a zero column": (zeroed(normal(8, 64), slice(None), 3), uneven(64)),
    "constant rows": (torch.full((8, 64), -0.25), uneven(64)),
    "one column": (normal(8, 1), torch.ones(1, 1)),
    "one row": (normal(1, 64), uneven(64)),
    "one weight": (normal(1, 1), torch.ones(1, 1)),
    "tiny weights": (1e-6 * normal(8, 64), uneven(64)),
    "large weights": (1e3 * normal(8, 64), uneven(64)),
}


@pytest.mark.parametrize("bits", [1.0, 3.0, 6.0])
@pytest.mark.parametrize(("matrix", "hessian"), ODD.values(), ids=ODD.keys())
def test_odd_weights_come_back_finite_and_within_their_size(
    matrix: torch.Tensor, hessian: torch.Tensor, bits: float
) -> None:
    given = guidance_of(hessian, len(matrix))
    (segment,) = rounded(matrix, given, EntropyFormat(bits=bits))
    values = segment.dequantize()
    assert bool(torch.isfinite(values).all())
    before, after = given.distortion(-matrix).sum(), given.distortion(values - matrix).sum()
    assert float(after) <= 1.001 * float(before) + 1e-30, "rounding is no worse than leaving the weight out"


def test_rows_and_columns_of_zeros_stay_zero() -> None:
    matrix = zeroed(zeroed(normal(8, 64), 3), slice(None), 7)
    (segment,) = rounded(matrix, guidance_of(torch.eye(64), 8), EntropyFormat(bits=4.0))
    assert set(segment.codes[3].tolist()) == set(segment.codes[:, 7].tolist()) == {ENTROPY_ZERO}
    assert torch.equal(
        rounded(torch.zeros(2, 9), guidance_of(torch.eye(9), 2), QUARTERS[4])[0].dequantize(), torch.zeros(2, 9)
    )


def test_dead_columns_have_the_coarsest_scale_and_cost_no_others_precision() -> None:
    matrix, hessian = normal(64, 64), dead(turbulent(64))
    (segment,) = rounded(matrix, guidance_of(hessian, 64), EntropyFormat(bits=4.0))
    octaves = scales_of(segment.column_exponents).log2()
    assert bool((octaves[10:20] == MOST_OCTAVES).all())
    assert float(octaves[torch.arange(64) // 10 != 1].max()) < MOST_OCTAVES
    kept = torch.cat((torch.arange(10), torch.arange(20, 64)))
    (alone,) = rounded(matrix[:, kept], guidance_of(hessian[kept][:, kept], 64), EntropyFormat(bits=4.0))
    given = guidance_of(hessian[kept][:, kept], 64)
    whole = given.distortion(segment.dequantize()[:, kept] - matrix[:, kept]).sum()
    assert float(whole) < 1.3 * float(given.distortion(alone.dequantize() - matrix[:, kept]).sum())
