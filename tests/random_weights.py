"""Random quantized weights in any mix of formats, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies
from torch import Tensor

from guidedq.artifacts.quantized_weight import (
    FLOAT_DTYPES,
    AffineSegment,
    FloatSegment,
    QuantizedWeight,
    Segment,
    affine_segment,
)
from guidedq.quant.formats import AffineFormat, FloatFormat, Format
from guidedq.quant.grid import Grid

affine_formats = strategies.builds(
    AffineFormat,
    bits=strategies.integers(1, 8),
    group_size=strategies.sampled_from((0, 1, 3, 16, 64)),
    symmetric=strategies.booleans(),
    outliers=strategies.integers(0, 3),
)
formats = affine_formats | strategies.sampled_from([FloatFormat(dtype=dtype) for dtype in ("fp16", "bf16", "fp32")])


def random_weight(
    name: str, shape: tuple[int, int], formats: Sequence[Format], seed: int, scale: float = 0.01
) -> QuantizedWeight:
    """A weight whose rows are dealt to `formats` at random (each format gets at least one, as far as rows go)."""
    generator = torch.Generator().manual_seed(seed)
    choice = torch.arange(shape[0]) % len(formats)
    choice = choice[torch.randperm(shape[0], generator=generator)]
    parts = [(format, (choice == number).nonzero()[:, 0]) for number, format in enumerate(formats)]
    segments = [_segment(format, rows, shape[1], generator, scale) for format, rows in parts if len(rows)]
    return QuantizedWeight(name=name, shape=shape, segments=tuple(segments))


def same_weight(first: QuantizedWeight, second: QuantizedWeight) -> bool:
    """Whether two weights are equal in every stored number."""
    pairs = zip(first.segments, second.segments, strict=True)
    alike = all(a.format == b.format and all(map(torch.equal, _tensors(a), _tensors(b))) for a, b in pairs)
    return (first.name, first.shape) == (second.name, second.shape) and alike


def _tensors(segment: Segment) -> list[Tensor]:
    if isinstance(segment, FloatSegment):
        return [segment.rows, segment.values]
    grid = segment.grid
    return [segment.rows, segment.codes, grid.scales, grid.zero_points, segment.outlier_columns, segment.outlier_values]


def _segment(format: Format, rows: Tensor, columns: int, generator: torch.Generator, scale: float) -> Segment:
    count = len(rows)
    if isinstance(format, FloatFormat):
        values = scale * torch.randn(count, columns, generator=generator)
        return FloatSegment(format=format, rows=rows, values=values.to(FLOAT_DTYPES[format.dtype]))
    return _affine(format, rows, (count, columns), generator, scale)


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
