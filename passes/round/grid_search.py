"""Search scales and zero points: the range of each group that costs least in a diagonal metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid, grid_from_range, grid_of_levels

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
WEIGHTS_AT_ONCE = 1 << 18
"""Weights tried at once, all trials counted: a megabyte, so that the passes over them stay in a core's cache."""


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
    return search_grids(weight, importance, [format], [len(weight)], ignored=ignored)[0]


def search_grids(
    weight: Float[Tensor, "out in"],
    importance: Float[Tensor, "in"],
    formats: Sequence[AffineFormat],
    counts: Sequence[int],
    *,
    ignored: Tensor | None = None,
) -> list[Grid]:
    """`search_grid` for rows of several formats at once, which differ in their bits alone.

    Args:
        weight: The rows of the first format, then those of the second, and so on.
        importance: Cost of a squared error in each column.
        formats: Of these rows.
        counts: Rows of each format.
        ignored: As in `search_grid`.
    """
    first = formats[0]
    cost = _grouped(importance[None], first)[0]
    shrinks = [SHRINKS.get(format.bits, FULL_RANGE) for format in formats]
    ends = [() if format.symmetric else END_SHRINKS.get(format.bits, ()) for format in formats]
    levels = torch.tensor([2.0**format.bits - 1 for format in formats])
    rows = [values.repeat_interleave(torch.tensor(counts), -1) for values in (levels, _trials(shrinks), _trials(ends))]
    step = max(1, WEIGHTS_AT_ONCE // (weight.shape[1] * len(rows[1])))
    low, high = weight.new_empty(len(weight), len(cost)), weight.new_empty(len(weight), len(cost))
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        mask = None if ignored is None else ignored[part]
        problem = _problem(weight[part], cost, rows[0][part, None], first, mask)
        low[part], high[part] = problem.best(rows[1][:, part, None], rows[2][:, part, None])
    parts = zip(formats, low.split(list(counts)), high.split(list(counts)), strict=True)
    return [grid_from_range(lower, upper, format) for format, lower, upper in parts]


def _trials(values: Sequence[Sequence[float]]) -> Float[Tensor, "trial format"]:
    """Each format's trials; those that have fewer repeat their last, or 1, which changes nothing."""
    most = max(map(len, values))
    return torch.tensor([[*trials, *[trials[-1] if trials else 1.0] * (most - len(trials))] for trials in values]).t()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """Some rows whose ranges are searched.

    Attributes:
        grouped: Weights.
        cost: Of a squared error.
        seen: 0 where a weight does not count, else 1.
        low: The lower end of the full range, at most 0.
        high: The upper end, at least 0.
        levels: The largest code of each row.
        symmetric: Of all rows.
    """

    grouped: Float[Tensor, "n group in"]
    cost: Float[Tensor, "group in"]
    seen: Float[Tensor, "n group in"] | None
    low: Float[Tensor, "n group"]
    high: Float[Tensor, "n group"]
    levels: Float[Tensor, "n 1"]
    symmetric: bool

    def best(
        self, shrinks: Float[Tensor, "trial n 1"], ends: Float[Tensor, "end n 1"]
    ) -> tuple[Float[Tensor, "n group"], Float[Tensor, "n group"]]:
        """The ends of the best ranges: both ends shrunk alike, then each end alone; of equals the first tried."""
        both = self._first_best(self.low * shrinks, self.high * shrinks)
        if not len(ends):
            return both
        low, high = both
        lows = torch.cat([low[None], low * ends, low.expand(len(ends), -1, -1)])
        highs = torch.cat([high[None], high.expand(len(ends), -1, -1), high * ends])
        return self._first_best(lows, highs)

    def _first_best(
        self, lows: Float[Tensor, "trial n group"], highs: Float[Tensor, "trial n group"]
    ) -> tuple[Float[Tensor, "n group"], Float[Tensor, "n group"]]:
        if len(lows) == 1:
            return lows[0], highs[0]
        index = self._distortion(lows, highs).argmin(0, keepdim=True)
        return lows.gather(0, index)[0], highs.gather(0, index)[0]

    def _distortion(
        self, lows: Float[Tensor, "trial n group"], highs: Float[Tensor, "trial n group"]
    ) -> Float[Tensor, "trial n group"]:
        """Weighted squared error of the nearest codes: few passes over the weights, in units of the scale."""
        stored, zero_points = grid_of_levels(lows, highs, self.levels, symmetric=self.symmetric)
        scales = stored.float()
        scaled = self.grouped / scales[..., None]
        error = torch.round(scaled)
        torch.minimum(
            error, (self.levels - zero_points)[..., None], out=error
        )  # in two passes: a third of clamp's time
        torch.maximum(error, -zero_points[..., None], out=error)
        error.sub_(scaled).square_()
        if self.seen is not None:
            error.mul_(self.seen)
        weighed = error.flatten(0, 1).transpose(0, 1) @ self.cost[:, :, None]
        return weighed[..., 0].t().unflatten(0, scales.shape[:2]) * scales.square()


def _problem(weight: Tensor, cost: Tensor, levels: Tensor, format: AffineFormat, ignored: Tensor | None) -> _Problem:
    grouped = _grouped(weight if ignored is None else weight.masked_fill(ignored, 0.0), format)
    return _Problem(
        grouped=grouped,
        cost=cost,
        seen=None if ignored is None else _grouped((~ignored).to(weight.dtype), format),
        low=grouped.amin(-1).clamp(max=0.0),
        high=grouped.amax(-1).clamp(min=0.0),
        levels=levels,
        symmetric=format.symmetric,
    )


def _grouped(values: Tensor, format: AffineFormat) -> Tensor:
    """`[out, in]` to `[out, groups, columns]`, the short last group padded with zeros."""
    columns = values.shape[1]
    size = format.columns_per_group(columns)
    return torch.nn.functional.pad(values, (0, -columns % size)).unflatten(1, (-1, size))
