"""Search scales and zero points: the range of each group that costs least in a diagonal metric."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid, grid_from_range

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55)
"""Parts of the full range that are tried, both ends at once; at 2 bits the best is often near 0.7."""
END_SHRINKS = (0.9, 0.8)
"""Then each end alone, for skewed groups: parts of the best range found."""


def search_grid(
    weight: Float[Tensor, "out in"],
    importance: Float[Tensor, "in"],
    format: AffineFormat,
    *,
    ignored: Tensor | None = None,
) -> Grid:
    """The grid, among shrunk ranges of each group, of least `sum importance * (nearest - weight)^2`.

    Args:
        weight: Rows to be quantized, float32.
        importance: Cost of a squared error in each column.
        format: Bits, group size and symmetry.
        ignored: True where a weight is stored elsewhere (an outlier) and counts neither for range nor error.
    """
    grouped = _grouped(weight, format)
    cost = _grouped(importance[None].expand_as(weight), format)
    if ignored is not None:
        hidden = _grouped(ignored.to(weight.dtype), format) > 0
        grouped, cost = grouped.masked_fill(hidden, 0.0), cost.masked_fill(hidden, 0.0)
    low, high = grouped.amin(-1).clamp(max=0.0), grouped.amax(-1).clamp(min=0.0)
    ends = (torch.ones_like(low), torch.ones_like(high))
    best = torch.full_like(low, torch.inf)
    for shrink in SHRINKS:
        tried = (torch.full_like(low, shrink), torch.full_like(high, shrink))
        best, ends = _keep_better(grouped, cost, format, (low, high), tried, best, ends)
    if not format.symmetric:
        centre = ends
        for end in END_SHRINKS:
            for tried in ((centre[0] * end, centre[1]), (centre[0], centre[1] * end)):
                best, ends = _keep_better(grouped, cost, format, (low, high), tried, best, ends)
    return grid_from_range(low * ends[0], high * ends[1], format)


def _keep_better(
    grouped: Tensor,
    cost: Tensor,
    format: AffineFormat,
    extent: tuple[Tensor, Tensor],
    tried: tuple[Tensor, Tensor],
    best: Tensor,
    ends: tuple[Tensor, Tensor],
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    grid = grid_from_range(extent[0] * tried[0], extent[1] * tried[1], format)
    scales, zero_points = grid.scales.float()[..., None], grid.zero_points.float()[..., None]
    error = (grouped / scales).add_(zero_points).round_().clamp_(0, 2**format.bits - 1)
    error.sub_(zero_points).mul_(scales).sub_(grouped).square_().mul_(cost)
    found = error.sum(-1)
    better = found < best
    kept = (torch.where(better, tried[0], ends[0]), torch.where(better, tried[1], ends[1]))
    return torch.where(better, found, best), kept


def _grouped(values: Tensor, format: AffineFormat) -> Tensor:
    """`[out, in]` to `[out, groups, columns]`, the short last group padded with zeros."""
    columns = values.shape[1]
    size = format.columns_per_group(columns)
    return torch.nn.functional.pad(values, (0, -columns % size)).unflatten(1, (-1, size))
