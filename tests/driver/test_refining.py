"""What was tuned goes to the rows that keep the format they were tuned in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from guidedq.artifacts.allocation import Allocation, SiteAllocation
from guidedq.artifacts.forecast import Forecast, Measurement, Probe
from guidedq.artifacts.guidance import identity_guidance
from guidedq.artifacts.quantized_weight import EntropySegment, FloatSegment, QuantizedWeight, Segment
from guidedq.driver.decision import Decision
from guidedq.driver.refining import Refinement
from guidedq.passes.round.nearest import NearestRounder
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat
from guidedq.quant.grid import Grid
from guidedq.workspace import save_codes

FORMATS = (EntropyFormat(bits=2.0), AffineFormat(bits=4, group_size=0), FloatFormat(dtype="fp16"))
ROWS, COLUMNS = 6, 10
MEASURED = Measurement(
    kl=0.1, loss_before=1.0, loss_after=1.1, agreement=0.9, accuracy_before=None, accuracy_after=None, units=4,
    kl_by_sample=(0.1,), loss_increase_by_sample=(0.1,),
)  # fmt: skip
PROBE = Probe(raw_kl_by_sequence=(0.1,), raw_kl=0.1, measured=MEASURED, bytes=2, counted_bytes=2)


def weight_of(choice: list[int]) -> QuantizedWeight:
    matrix = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    segments = []
    for index, format in enumerate(FORMATS):
        rows = (torch.tensor(choice) == index).nonzero()[:, 0]
        if not len(rows):
            continue
        if isinstance(format, FloatFormat):
            segments.append(FloatSegment(format=format, rows=rows, values=matrix[rows].half()))
        else:
            segments += NearestRounder().round(matrix, identity_guidance(ROWS, COLUMNS), [format], [rows], seed=0)
    return QuantizedWeight(name="second", shape=(ROWS, COLUMNS), segments=tuple(segments))


def decision_of(choice: list[int]) -> Decision:
    sites = {
        name: SiteAllocation(formats=FORMATS, choice=torch.tensor(choice), bytes=1, distortion=0.0)
        for name in ("first", "second")
    }
    forecast = Forecast(
        kl=0.1, kl_low=0.1, kl_high=0.1, loss_increase=0.1, loss_increase_low=0.1, loss_increase_high=0.1, raw_kl=0.1
    )
    allocation = Allocation(sites=sites, base_bytes=0)
    return Decision(allocation=allocation, bytes=2, raw=(0.1,), forecast=forecast, probes=(PROBE,))


def changed(segment: Segment) -> Segment:
    """The segment with other codes and other scales of its rows."""
    if isinstance(segment, FloatSegment):
        return segment
    generator = torch.Generator().manual_seed(7)
    other = segment.with_codes(torch.randint(16, segment.codes.shape, generator=generator).to(torch.uint8))
    if isinstance(other, EntropySegment):
        return replace(other, row_exponents=other.row_exponents + 3)
    return replace(other, grid=Grid(scales=other.grid.scales * 2, zero_points=other.grid.zero_points))


def test_rows_of_another_format_are_as_they_were_rounded(tmp_path: Path) -> None:
    refined_for, now = [0, 0, 1, 1, 2, 0], [0, 1, 1, 0, 2, 2]
    rounded = weight_of(refined_for)
    refined = replace(rounded, segments=tuple(map(changed, rounded.segments)))
    for segment in refined.segments:
        if not isinstance(segment, FloatSegment):
            save_codes(tmp_path, 1, segment)
    weight = weight_of(now)
    refinement = Refinement(folder=tmp_path, decision=decision_of(refined_for), gain=0.5, probe=PROBE)
    applied = refinement.applied(weight)
    assert (applied.name, applied.shape) == (weight.name, weight.shape)
    assert [segment.rows.tolist() for segment in applied.segments] == [s.rows.tolist() for s in weight.segments]
    values, as_refined, as_rounded = applied.dequantize(), refined.dequantize(), weight.dequantize()
    for row in range(ROWS):
        expected = as_refined if refined_for[row] == now[row] else as_rounded
        assert torch.equal(values[row], expected[row]), row


def test_columns_are_scaled_as_they_were_when_refined(tmp_path: Path) -> None:
    refined_for, now = [0, 0, 0, 0, 0, 2], [0, 0, 0, 0, 2, 0]
    segment = changed(weight_of(refined_for).segments[0])
    assert isinstance(segment, EntropySegment)
    columns = segment.column_exponents.clone()
    columns[1::2] -= 16  # steps of a quarter: what is brought onto them stays what it was
    kept = replace(segment, column_exponents=columns)
    save_codes(tmp_path, 1, kept)
    weight = weight_of(now)
    refinement = Refinement(folder=tmp_path, decision=decision_of(refined_for), gain=0.5, probe=PROBE)
    applied = refinement.applied(weight)
    (first, *_) = applied.segments
    assert isinstance(first, EntropySegment)
    assert torch.equal(first.column_exponents, columns)
    values, as_rounded = applied.dequantize(), weight.dequantize()
    assert torch.equal(values[:4], kept.dequantize()[:4])
    torch.testing.assert_close(values[4:], as_rounded[4:])
