"""Search scales and zero points: the range of each group that costs least in a diagonal metric."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid, grid_from_range

SHRINKS: Mapping[int, tuple[float, ...]] = {
    2: (1.0, 0.92, 0.85, 0.79, 0.73, 0.67, 0.61, 0.55),
    3: (1.0, 0.94, 0.88, 0.82, 0.76, 0.7),
    4: (1.0, 0.95, 0.9, 0.85, 0.8),
    5: (1.0, 0.95, 0.9),
}
"""Parts of the full range that are tried, both ends at once, by width. The fewer the codes, the more clipping pays;
from 6 bits on it does not."""
FULL_RANGE = (1.0,)
END_SHRINKS: Mapping[int, tuple[float, ...]] = {2: (0.9, 0.8), 3: (0.9, 0.8), 4: (0.9,)}
"""Then each end alone, for skewed groups: parts of the best range found."""
WEIGHTS_AT_ONCE = 1 << 17
"""Weights tried at once: half a megabyte, so that the passes over them stay in a core's cache."""


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
    cost = _grouped(importance[None], format)[0]
    rows = max(1, WEIGHTS_AT_ONCE // weight.shape[1])
    masks = [None] * -(-len(weight) // rows) if ignored is None else ignored.split(rows)
    parts = [_search_rows(part, cost, format, mask) for part, mask in zip(weight.split(rows), masks, strict=True)]
    return Grid(
        scales=torch.cat([part.scales for part in parts]), zero_points=torch.cat([part.zero_points for part in parts])
    )


def _search_rows(weight: Tensor, cost: Tensor, format: AffineFormat, ignored: Tensor | None) -> Grid:
    grouped = _grouped(weight if ignored is None else weight.masked_fill(ignored, 0.0), format)
    low, high = grouped.amin(-1).clamp(max=0.0), grouped.amax(-1).clamp(min=0.0)
    seen = None if ignored is None else _grouped((~ignored).to(weight.dtype), format)
    best = torch.full_like(low, torch.inf)
    ends = (torch.ones_like(low), torch.ones_like(high))

    def keep_better(lower: Tensor, upper: Tensor) -> None:
        nonlocal best, ends
        found = _distortion(grouped, cost, seen, grid_from_range(low * lower, high * upper, format), format)
        better = found < best
        best = torch.where(better, found, best)
        ends = (torch.where(better, lower, ends[0]), torch.where(better, upper, ends[1]))

    for shrink in SHRINKS.get(format.bits, FULL_RANGE):
        keep_better(torch.full_like(low, shrink), torch.full_like(high, shrink))
    if not format.symmetric:
        centre = ends
        for end in END_SHRINKS.get(format.bits, ()):
            keep_better(centre[0] * end, centre[1])
            keep_better(centre[0], centre[1] * end)
    return grid_from_range(low * ends[0], high * ends[1], format)


def _distortion(
    grouped: Tensor, cost: Tensor, seen: Tensor | None, grid: Grid, format: AffineFormat
) -> Float[Tensor, "out groups"]:
    """Weighted squared error of the nearest codes, in units of the scale: few passes over the weights."""
    scales, zero_points = grid.scales.float(), grid.zero_points.float()[..., None]
    scaled = grouped / scales[..., None]
    error = torch.round(scaled)
    torch.minimum(error, 2**format.bits - 1 - zero_points, out=error)  # two passes, still a third of clamp's time
    torch.maximum(error, -zero_points, out=error)
    error.sub_(scaled).square_()
    if seen is not None:
        error.mul_(seen)
    return (error.transpose(0, 1) @ cost[:, :, None])[..., 0].t() * scales.square()


def _grouped(values: Tensor, format: AffineFormat) -> Tensor:
    """`[out, in]` to `[out, groups, columns]`, the short last group padded with zeros."""
    columns = values.shape[1]
    size = format.columns_per_group(columns)
    return torch.nn.functional.pad(values, (0, -columns % size)).unflatten(1, (-1, size))
