"""Round a weight so that the top bits of its codes are good weights too.

GPTQ with one feedback for each width: at every column, each width has its own target (the weight less what its own
earlier errors ask for), and the code is chosen that costs least at all widths together. By the LDL factorization the
sum of these costs over the columns is exactly the guided error of each width, so one sweep minimises a weighted sum of
them greedily. Choosing the top bits first, and the further ones within their cells, costs the wider widths two to three
times their error, for feedback moves coarse codes far from the weight; choosing the finest first and cutting costs the
narrowest a third (docs/nested.md). Cyclic coordinate descent then mends what the greedy choice missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from guidedq.artifacts.guidance import SiteGuidance
from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.quant.grid import LARGEST_SCALE, SMALLEST_SCALE, Grid
from guidedq.quant.nested import NestedFormat
from guidedq.quant.refit import offset, shift_codes, shift_values

from .metric import Feedback, RowMetric, row_scales

BALANCE = 0.75
"""A width's error counts `4 ** (BALANCE * bits)`: 1 would count relative errors alike. The narrowest width has most to
lose; with a little more weight on it, it costs no more than a weight of its own, and the widest a fifth more."""
SWEEPS, ROUNDS = 2, 2
"""Of coordinate descent before each refit, and of both; a third of either gains less than a percent."""
SHRINKS = (1.0, 0.93, 0.86, 0.8, 0.74)
END_SHRINKS = (0.9, 0.8)
"""Parts of a group's range that are tried: both ends at once, then each end of the best alone."""
BLOCK_COLUMNS = 64
"""Columns whose changes stay local before they go to the rest in one matrix product; fits a core's cache."""


def round_nested(
    matrix: Float[Tensor, "out in"],
    guidance: SiteGuidance,
    metrics: Sequence[RowMetric],
    spreads: Sequence[Feedback],
    format: NestedFormat,
    damping_fraction: float,
) -> NestedSegment:
    """Grids, codes and refits of a whole weight.

    Args:
        matrix: The weight.
        guidance: Of the weight.
        metrics: Its rows by the Hessian that rounds them.
        spreads: Of each metric.
        format: Which widths.
        damping_fraction: Added to the diagonal of each Hessian, as a part of its mean, in descent and refit.
    """
    importance = row_scales(guidance)
    parts = [
        _Part(matrix[metric.rows], importance[metric.rows], metric, format, damping_fraction) for metric in metrics
    ]
    for part, spread in zip(parts, spreads, strict=True):
        part.sweep(spread)
    ratios = _refit(parts)
    for _ in range(ROUNDS):
        for part in parts:
            part.descend(ratios)
        ratios = _refit(parts)
    rows = torch.cat([metric.rows for metric in metrics])
    order = rows.argsort()

    def gathered(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=1)[:, order]

    return NestedSegment(
        format=format.at(format.widest),
        rows=rows[order],
        codes=gathered("codes").t().contiguous(),
        grid=Grid(
            scales=gathered("scales").t().half().contiguous(),
            zero_points=gathered("zero_points").t().to(torch.uint8).contiguous(),
        ),
        ratios=ratios[:-1].half(),
        shifts=shift_codes(gathered("shifts")[:-1]),
    )


def _refit(parts: Sequence[_Part]) -> Float[Tensor, "width"]:
    """Set the shifts of all rows, and give the ratios, by least squares in the guided metric; the widest keeps its own.

    A shift moves its row, a ratio all rows: each is fitted to what the other leaves.
    """
    ratios = torch.ones(len(parts[0].widths))
    for number in range(len(ratios) - 1):
        for _ in range(2):
            for part in parts:
                part.fit_shift(number, float(ratios[number]))
            sums = sum(part.products(number) for part in parts)
            assert isinstance(sums, Tensor)
            if float(sums[1]) > 0.0 and float(sums[0]) > 0.0:
                ratios[number] = (sums[0] / sums[1]).half().float()
    return ratios


@final
class _Part:
    """Rows under one Hessian while they are rounded; arrays are `[in, rows]`, so that a column lies in one place."""

    codes: UInt8[Tensor, "in n"]

    def __init__(
        self, weight: Tensor, importance: Tensor, metric: RowMetric, format: NestedFormat, damping_fraction: float
    ) -> None:
        self.widths = format.widths
        self._weight = weight.t().contiguous()
        columns, rows = self._weight.shape
        self._hessian = metric.hessian.clone()
        mean = self._hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        self._hessian.diagonal().add_(damping_fraction * mean).clamp_(min=float(mean) * damping_fraction)
        self._importance = importance / mean  # of rows, beside the Hessian's own size
        self._width = format.columns_per_group(columns)
        widest, groups = format.widest, format.groups(columns)
        self._steps = torch.tensor([2.0 ** (widest - width) for width in self.widths])
        wide_codes = torch.arange(2**widest)
        self._levels = torch.stack([(wide_codes >> widest - k << widest - k).float() for k in self.widths])
        self._counts = torch.tensor([4.0 ** (BALANCE * (width - widest)) for width in self.widths])
        self.codes = torch.zeros(columns, rows, dtype=torch.uint8)
        self.scales, self.zero_points = torch.ones(groups, rows), torch.zeros(groups, rows)
        self.shifts = torch.zeros(len(self.widths), rows)

    def sweep(self, spread: Feedback) -> None:
        """Choose grids and codes column by column, each width with the feedback of its own errors."""
        columns, rows = self._weight.shape
        work = self._weight.repeat(len(self.widths), 1, 1)
        middle = len(self.widths) // 2
        for start in range(0, columns, BLOCK_COLUMNS):
            stop = min(start + BLOCK_COLUMNS, columns)
            errors = torch.empty(len(self.widths), stop - start, rows)
            for column in range(start, stop):
                if column % self._width == 0:  # columns beyond the block lack a little feedback, ranges hardly change
                    group = slice(column, column + self._width)
                    self._search(column // self._width, work[middle, group], spread.pivots[group])
                scale, added = self.scales[column // self._width], self._added(column // self._width)
                codes = self._nearest(work[:, column] / scale - added, self._counts)
                self.codes[column] = codes
                error = work[:, column] - scale * (self._levels[:, codes] + added)
                errors[:, column - start] = error
                later = spread.spread[column, column + 1 : stop]
                work[:, column + 1 : stop] -= later[None, :, None] * error[:, None]
            if stop < columns:
                work[:, stop:] -= spread.spread[start:stop, stop:].t() @ errors

    def descend(self, ratios: Float[Tensor, "width"]) -> None:
        """Choose each code anew, the others as they are, where that lowers the weighted sum of guided errors."""
        columns = len(self._weight)
        scaled = ratios[:, None]
        errors = torch.stack([self._values(number) * ratios[number] for number in range(len(ratios))]) - self._weight
        for _ in range(SWEEPS):
            slopes = self._hessian @ errors
            for start in range(0, columns, BLOCK_COLUMNS):
                stop = min(start + BLOCK_COLUMNS, columns)
                changes = torch.empty(len(self.widths), stop - start, errors.shape[2])
                for column in range(start, stop):
                    group, curve = column // self._width, self._hessian[column, column]
                    scale, added = self.scales[group] * scaled, self._added(group)
                    value = errors[:, column] + self._weight[column]
                    codes = self._nearest((value - slopes[:, column] / curve) / scale - added, self._counts)
                    self.codes[column] = codes
                    change = scale * (self._levels[:, codes] + added) - value
                    changes[:, column - start] = change
                    errors[:, column] += change
                    later = self._hessian[column, column:stop]
                    slopes[:, column:stop] += later[None, :, None] * change[:, None]
                if stop < columns:
                    slopes[:, stop:] += self._hessian[stop:, start:stop] @ changes

    def fit_shift(self, number: int, ratio: float) -> None:
        """The shifts of one width at which the rows' guided errors are least, as they can be stored."""
        self.shifts[number] = 0.0
        step = self._spread(self.scales) * self._steps[number]
        pulled = self._hessian @ step
        wanted = (pulled * (self._weight / ratio - self._values(number))).sum(0) / (pulled * step).sum(0)
        self.shifts[number] = shift_values(shift_codes(wanted))

    def products(self, number: int) -> Float[Tensor, "2"]:
        """Inner products of one width's values with the weight and with themselves, in the guided metric."""
        values = self._values(number)
        pulled = (self._hessian @ values) * self._importance
        return torch.stack(((pulled * self._weight).sum(), (pulled * values).sum()))

    def _search(self, group: int, weight: Float[Tensor, "in n"], pivots: Tensor) -> None:
        """The range of a group that costs least at all widths together, by nearest codes."""
        low, high = weight.amin(0).clamp(max=0.0), weight.amax(0).clamp(min=0.0)
        low, high = self._best(weight, pivots, [(low * shrink, high * shrink) for shrink in SHRINKS])
        ends = [(low * shrink, high) for shrink in END_SHRINKS] + [(low, high * shrink) for shrink in END_SHRINKS]
        low, high = self._best(weight, pivots, [(low, high), *ends])
        self.scales[group], self.zero_points[group] = self._grid(low, high)

    def _best(self, weight: Tensor, pivots: Tensor, ranges: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        costs = torch.stack([self._range_cost(weight, pivots, *ends) for ends in ranges]).argmin(0, keepdim=True)
        lows, highs = (torch.stack([ends[side] for ends in ranges]).gather(0, costs)[0] for side in (0, 1))
        return lows, highs

    def _range_cost(self, weight: Tensor, pivots: Tensor, low: Tensor, high: Tensor) -> Float[Tensor, "n"]:
        scale, zero_point = self._grid(low, high)
        places = weight / scale + zero_point
        cost = torch.zeros_like(scale)
        for width, step, counts in zip(self.widths, self._steps.tolist(), self._counts.tolist(), strict=True):
            middle = (step - 1.0) / 2
            error = ((places - middle) / step).round_().clamp_(0, 2**width - 1).mul_(step).add_(middle).sub_(places)
            cost += counts * (pivots @ error.square_())
        return cost * scale.square()

    def _grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        most = 2 ** self.widths[-1] - 1
        scale = ((high - low) / most).clamp(SMALLEST_SCALE, LARGEST_SCALE).half().float()
        return scale, torch.round(-low / scale).clamp(0, most)

    def _nearest(self, targets: Float[Tensor, "width n"], counts: Float[Tensor, "width"]) -> Tensor:
        """The codes of least `sum counts * (level - target)^2`."""
        weighted = counts[:, None] * self._levels
        return ((weighted * self._levels).sum(0)[:, None] - 2.0 * (weighted.t() @ targets)).argmin(0)

    def _added(self, group: int) -> Float[Tensor, "width n"]:
        widest = self.widths[-1]
        each = [offset(width, widest, self.shifts[number]) for number, width in enumerate(self.widths)]
        return torch.stack(each) - self.zero_points[group]

    def _spread(self, groups: Float[Tensor, "group n"]) -> Float[Tensor, "in n"]:
        return groups.repeat_interleave(self._width, 0)[: len(self._weight)]

    def _values(self, number: int) -> Float[Tensor, "in n"]:
        """What the codes stand for at one width, before its ratio."""
        added = torch.stack([self._added(group)[number] for group in range(len(self.scales))])
        return self._spread(self.scales) * (self._levels[number][self.codes.long()] + self._spread(added))
