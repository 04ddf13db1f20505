"""Random quantized weights in any mix of formats, for tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies
from torch import Tensor

from guidedq.artifacts.quantized_weight import (
    FLOAT_DTYPES,
    AffineSegment,
    EntropySegment,
    FloatSegment,
    QuantizedWeight,
    Segment,
    affine_segment,
)
from guidedq.quant.exponents import ONE, PARTS
from guidedq.quant.formats import ENTROPY_ZERO, AffineFormat, EntropyFormat, FloatFormat, Format
from guidedq.quant.grid import Grid
from guidedq.quant.packing import COLUMN_BITS, COLUMN_STEP, COLUMN_ZERO

affine_formats = strategies.builds(
    AffineFormat,
    bits=strategies.integers(1, 8),
    group_size=strategies.sampled_from((0, 1, 3, 16, 64)),
    symmetric=strategies.booleans(),
    outliers=strategies.integers(0, 3),
)
entropy_formats = strategies.builds(EntropyFormat, bits=strategies.integers(2, 24).map(lambda quarters: quarters / 4))
float_formats = strategies.sampled_from([FloatFormat(dtype=dtype) for dtype in ("fp16", "bf16", "fp32")])
fixed_formats = affine_formats | float_formats
formats = affine_formats | entropy_formats | float_formats


def random_weight(
    name: str, shape: tuple[int, int], formats: Sequence[Format], seed: int, scale: float = 0.01
) -> QuantizedWeight:
    """A weight whose rows are dealt to `formats` at random (each format gets at least one, as far as rows go)."""
    generator = torch.Generator().manual_seed(seed)
    choice = torch.arange(shape[0]) % len(formats)
    choice = choice[torch.randperm(shape[0], generator=generator)]
    parts = [(format, (choice == number).nonzero()[:, 0]) for number, format in enumerate(formats)]
    exponents = _column_exponents(shape[1], generator)
    segments = [_segment(format, rows, exponents, generator, scale) for format, rows in parts if len(rows)]
    return QuantizedWeight(name=name, shape=shape, segments=tuple(segments))


def same_weight(first: QuantizedWeight, second: QuantizedWeight) -> bool:
    """Whether two weights are equal in every stored number."""
    alike = all(same_segment(a, b) for a, b in zip(first.segments, second.segments, strict=True))
    return (first.name, first.shape) == (second.name, second.shape) and alike


def same_segment(first: Segment, second: Segment) -> bool:
    """Whether two segments are equal in every stored number."""
    return first.format == second.format and all(map(torch.equal, _tensors(first), _tensors(second)))


def _tensors(segment: Segment) -> list[Tensor]:
    if isinstance(segment, FloatSegment):
        return [segment.rows, segment.values]
    if isinstance(segment, EntropySegment):
        return [segment.rows, segment.codes, segment.row_exponents, segment.column_exponents]
    grid = segment.grid
    return [segment.rows, segment.codes, grid.scales, grid.zero_points, segment.outlier_columns, segment.outlier_values]


def _segment(format: Format, rows: Tensor, exponents: Tensor, generator: torch.Generator, scale: float) -> Segment:
    shape = (len(rows), len(exponents))
    if isinstance(format, FloatFormat):
        values = scale * torch.randn(shape, generator=generator)
        return FloatSegment(format=format, rows=rows, values=values.to(FLOAT_DTYPES[format.dtype]))
    if isinstance(format, EntropyFormat):
        return _entropy(format, rows, exponents, generator, scale)
    return _affine(format, rows, shape, generator, scale)


def _column_exponents(columns: int, generator: torch.Generator) -> Tensor:
    """In half of the cases all columns have the scale 1."""
    steps = torch.randint(0, 2**COLUMN_BITS, (columns,), generator=generator) - COLUMN_ZERO
    some = torch.randint(0, 2, (1,), generator=generator)
    return (ONE + COLUMN_STEP * some * steps).to(torch.uint8)


def _entropy(
    format: EntropyFormat, rows: Tensor, exponents: Tensor, generator: torch.Generator, scale: float
) -> EntropySegment:
    codes = torch.randn(len(rows), len(exponents), generator=generator).div_(format.step).round_().add_(ENTROPY_ZERO)
    middle = ONE + round(PARTS * math.log2(scale * format.step))
    return EntropySegment(
        format=format,
        rows=rows,
        codes=codes.clamp_(0, 255).to(torch.uint8),
        row_exponents=torch.randint(
            middle - PARTS, middle + PARTS, (len(rows),), generator=generator, dtype=torch.uint8
        ),
        column_exponents=exponents,
    )


def _affine(
    format: AffineFormat, rows: Tensor, shape: tuple[int, int], generator: torch.Generator, scale: float
) -> AffineSegment:
    count, columns = shape
    groups, levels = format.groups(columns), 2**format.bits
    zero_points = torch.randint(0, levels, (count, groups), generator=generator, dtype=torch.uint8)
    if format.symmetric:
        zero_points.fill_(levels // 2)
    order = torch.rand(count, columns, generator=generator).argsort(1)
    return affine_segment(
        format,
        rows,
        torch.randint(0, levels, shape, generator=generator, dtype=torch.uint8),
        Grid(
            scales=(scale * (0.5 + torch.rand(count, groups, generator=generator))).half(),
            zero_points=zero_points,
        ),
        order[:, : format.outliers].sort(1).values,
        scale * torch.randn(count, format.outliers, generator=generator),
    )
