"""Tuned codes go to the rows that keep the format they were tuned in."""

from __future__ import annotations

from pathlib import Path

import torch

from guidedq.artifacts.allocation import Allocation, SiteAllocation
from guidedq.artifacts.guidance import identity_guidance
from guidedq.artifacts.quantized_weight import FloatSegment, QuantizedWeight
from guidedq.files import write_tensors
from guidedq.passes.round.nearest import NearestRounder
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat
from guidedq.tuning import CODES, Tuning

FORMATS = (EntropyFormat(bits=2.0), AffineFormat(bits=4, group_size=0), FloatFormat(dtype="fp16"))
ROWS, COLUMNS = 6, 10


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


def test_rows_of_another_format_are_as_they_were_rounded(tmp_path: Path) -> None:
    tuned_for, now = [0, 0, 1, 1, 2, 0], [0, 1, 1, 0, 2, 2]
    codes = torch.arange(ROWS * COLUMNS, dtype=torch.uint8).view(ROWS, COLUMNS) % 16
    write_tensors(tmp_path / "00001.safetensors", {CODES: codes})
    sites = {
        name: SiteAllocation(formats=FORMATS, choice=torch.tensor(tuned_for), bytes=1, distortion=0.0)
        for name in ("first", "second")
    }
    allocation = Allocation(sites=sites, base_bytes=0)
    weight = weight_of(now)
    applied = Tuning(folder=tmp_path, allocation=allocation, gain=0.5).applied(weight)
    assert (applied.name, applied.shape) == (weight.name, weight.shape)
    for before, after in zip(weight.segments, applied.segments, strict=True):
        assert torch.equal(before.rows, after.rows)
        if isinstance(before, FloatSegment) or isinstance(after, FloatSegment):
            assert torch.equal(before.dequantize(), after.dequantize())
            continue
        for place, row in enumerate(before.rows.tolist()):
            same = tuned_for[row] == now[row]
            assert torch.equal(after.codes[place], codes[row] if same else before.codes[place])
