"""Random nested weights, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.quant.grid import Grid
from guidedq.quant.nested import NestedFormat


def random_nested(
    shape: tuple[int, int], widths: Sequence[int] = (3, 4, 5), group_size: int = 64, *, seed: int = 0, name: str = "w"
) -> QuantizedWeight:
    """A weight of one nested segment, every stored number drawn."""
    format = NestedFormat(widths=tuple(widths), group_size=group_size, precision=widths[-1])
    generator = torch.Generator().manual_seed(seed)
    (rows, columns), groups, narrower = shape, format.groups(shape[1]), len(widths) - 1

    def draw(below: int, *size: int) -> torch.Tensor:
        return torch.randint(0, below, size, generator=generator, dtype=torch.uint8)

    segment = NestedSegment(
        format=format,
        rows=torch.arange(rows),
        codes=draw(2**format.widest, rows, columns),
        grid=Grid(
            scales=(0.01 + 0.02 * torch.rand(rows, groups, generator=generator)).half(),
            zero_points=draw(2**format.widest, rows, groups),
        ),
        ratios=(0.9 + 0.2 * torch.rand(narrower, generator=generator)).half(),
        shifts=draw(8, narrower, rows),
    )
    return QuantizedWeight(name=name, shape=shape, segments=(segment,))


def nested_of(weight: QuantizedWeight) -> NestedSegment:
    """Its only segment."""
    (segment,) = weight.segments
    assert isinstance(segment, NestedSegment)
    return segment
