"""The representable values of a weight, and quantize / dequantize: from weight to codes and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor
from torch.nn.functional import pad

from guidedq.quant.exponents import reaches
from guidedq.quant.formats import AffineFormat, EntropyFormat, RoundedFormat

SMALLEST_SCALE = 2.0**-14
"""The smallest normal fp16 number: a smaller scale would lose precision, and zero would lose the row."""
LARGEST_SCALE = 65504.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Scales and zero points of some rows, one pair per group.

    Attributes:
        scales: fp16, positive, `[out, groups]`.
        zero_points: The code whose value is 0, `[out, groups]`; for a symmetric format all `2 ** (bits - 1)`.
    """

    scales: Float16[Tensor, "out groups"]
    zero_points: UInt8[Tensor, "out groups"]

    def rows(self, index: Tensor | slice) -> Grid:
        """The grid of the rows in `index`."""
        return Grid(scales=self.scales[index], zero_points=self.zero_points[index])


def grid_from_range(low: Float[Tensor, "out groups"], high: Float[Tensor, "out groups"], format: AffineFormat) -> Grid:
    """The grid whose codes span `low` to `high` (widened to hold 0), scales rounded to fp16.

    A symmetric grid spans the larger of `-low` and `high` on its negative side, so that no value is clipped there.
    An empty range (`low == high == 0`) takes the smallest scale.
    """
    scales, zero_points = grid_of_levels(low, high, 2**format.bits - 1, symmetric=format.symmetric)
    return Grid(scales=scales, zero_points=zero_points.to(torch.uint8))


def grid_of_levels(
    low: Tensor, high: Tensor, levels: int | Tensor, *, symmetric: bool
) -> tuple[Float16[Tensor, "..."], Float[Tensor, "..."]]:
    """Scales and zero points of a grid of `levels` + 1 codes (a number, or a tensor that differs by row)."""
    scales = _storable(scale_of_levels(low, high, levels, symmetric=symmetric))
    if symmetric:
        return scales, torch.zeros_like(low) + (levels + 1) / 2
    zero_points = torch.round(-low.clamp(max=0.0) / scales.float())
    return scales, torch.minimum(zero_points, torch.zeros_like(low) + levels)


def scale_of_range(low: Tensor, high: Tensor, format: AffineFormat) -> Tensor:
    """The scale at which the codes span `low` to `high` (widened to hold 0), not yet rounded to what can be stored."""
    return scale_of_levels(low, high, 2**format.bits - 1, symmetric=format.symmetric)


def scale_of_levels(low: Tensor, high: Tensor, levels: int | Tensor, *, symmetric: bool) -> Tensor:
    """`scale_of_range` for a grid of `levels` + 1 codes."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if symmetric:
        middle = (levels + 1) / 2
        return torch.maximum(-low / middle, high / (levels - middle + (levels == 1)))
    return (high - low) / levels


def can_represent(format: RoundedFormat, low: Tensor, high: Tensor) -> bool:
    """Whether the scales of a weight that spans `low` to `high` can be stored: others would clip it, or waste bits."""
    if isinstance(format, EntropyFormat):
        return reaches(float(max(-low, high)))
    scale = float(scale_of_range(low, high, format))
    return scale == 0.0 or SMALLEST_SCALE <= scale <= LARGEST_SCALE


def expand_groups(values: Tensor, columns: int, format: AffineFormat) -> Tensor:
    """Repeat each group's value over the group's columns: `[out, groups]` to `[out, in]`."""
    return values.repeat_interleave(format.columns_per_group(columns), dim=1)[:, :columns]


def quantize_nearest(weight: Float[Tensor, "out in"], grid: Grid, format: AffineFormat) -> UInt8[Tensor, "out in"]:
    """The nearest code of each weight, ties to even. Arithmetic in float32."""
    columns = weight.shape[1]
    scales = expand_groups(grid.scales.float(), columns, format)
    zero_points = expand_groups(grid.zero_points.float(), columns, format)
    return torch.round(weight.float() / scales + zero_points).clamp_(0, 2**format.bits - 1).to(torch.uint8)


def dequantize(codes: UInt8[Tensor, "out in"], grid: Grid, format: AffineFormat) -> Float[Tensor, "out in"]:
    """The reference dequantization, `float32(scale) * (code - zero_point)`: what every runtime must reproduce.

    The difference is exact and the product is rounded once, so the result does not depend on the machine.
    """
    rows, columns = codes.shape
    groups, width = grid.scales.shape[1], format.columns_per_group(columns)
    values = pad(codes, (0, groups * width - columns)).view(rows, groups, width).float()
    values.sub_(grid.zero_points.float()[:, :, None]).mul_(grid.scales.float()[:, :, None])
    return values.flatten(1)[:, :columns].contiguous()


def _storable(scales: Tensor) -> Tensor:
    return scales.clamp(SMALLEST_SCALE, LARGEST_SCALE).half()
