"""GPTQ: round column by column, each error spread over the columns still to come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Float16, UInt8
from torch import Tensor

from guidedq.artifacts.guidance import SiteGuidance
from guidedq.artifacts.quantized_weight import Segment, affine_segment
from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid
from guidedq.stages import AbstractRounder

from .grid_search import search_grid
from .metric import Feedback, RowMetric, feedback, row_metrics
from .outliers import choose_outliers

BLOCK_COLUMNS = 64
"""Columns whose feedback stays local before it goes to the rest in one matrix product; fits a core's cache."""
STACK_WEIGHTS = 24_000_000
"""Weights, all formats counted, that are worked on at once: about 100 MB of float32."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GptqRounder(AbstractRounder):
    """GPTQ (Frantar et al. 2023, arXiv 2210.17323) under the guided Hessian (GuidedQuant, arXiv 2505.07004).

    Attributes:
        damping_fraction: Added to the diagonal, as a part of its mean.
        activation_order: Round the columns of largest Hessian diagonal first; the grids are then searched beforehand.
    """

    damping_fraction: float = 0.01
    activation_order: bool = False

    def round(
        self, matrix: Float[Tensor, "out in"], guidance: SiteGuidance, formats: Sequence[AffineFormat], *, seed: int
    ) -> Iterator[Segment]:
        """Quantize all rows in each format; all formats share one sweep over the columns. The seed is not used."""
        rows, columns = matrix.shape
        results = [_Rounded.empty(rows, columns, format) for format in formats]
        for metric in row_metrics(guidance):
            spread = feedback(metric, self.damping_fraction)
            chunk = max(1, STACK_WEIGHTS // (columns * max(len(formats), 1)))
            for part in metric.rows.split(chunk):
                self._round_rows(matrix[part], part, metric, spread, formats, results)
        for format, result in zip(formats, results, strict=True):
            yield result.segment(format)

    def _round_rows(
        self,
        part: Tensor,
        rows: Tensor,
        metric: RowMetric,
        spread: Feedback,
        formats: Sequence[AffineFormat],
        results: Sequence[_Rounded],
    ) -> None:
        outliers = [choose_outliers(part, spread.pivots, format) for format in formats]
        if self.activation_order:
            order = metric.hessian.diagonal().argsort(descending=True, stable=True)
            ordered = RowMetric(rows=metric.rows, hessian=metric.hessian[order][:, order], dead=metric.dead[order])
            grids = [search_grid(part, spread.pivots, f, ignored=o) for f, o in zip(formats, outliers, strict=True)]
            sweep = _Sweep(
                part[:, order], feedback(ordered, self.damping_fraction), formats, [o[:, order] for o in outliers]
            )
            sweep.run(order, grids)
            inverse = order.argsort()
            codes, values = sweep.codes()[:, :, inverse], sweep.values()[:, :, inverse]
        else:
            sweep = _Sweep(part, spread, formats, outliers)
            grids = sweep.run(torch.arange(part.shape[1]), None)
            codes, values = sweep.codes(), sweep.values()
        for index, result in enumerate(results):
            result.fill(rows, codes[index], grids[index], outliers[index], values[index])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Rounded:
    """Where the rows of one format are gathered, cluster by cluster."""

    codes: UInt8[Tensor, "out in"]
    scales: Float16[Tensor, "out groups"]
    zero_points: UInt8[Tensor, "out groups"]
    outlier_columns: Tensor
    outlier_values: Tensor

    @staticmethod
    def empty(rows: int, columns: int, format: AffineFormat) -> _Rounded:
        groups = format.groups(columns)
        return _Rounded(
            codes=torch.empty(rows, columns, dtype=torch.uint8),
            scales=torch.empty(rows, groups, dtype=torch.float16),
            zero_points=torch.empty(rows, groups, dtype=torch.uint8),
            outlier_columns=torch.empty(rows, format.outliers, dtype=torch.int64),
            outlier_values=torch.empty(rows, format.outliers, dtype=torch.float16),
        )

    def fill(self, rows: Tensor, codes: Tensor, grid: Grid, outliers: Bool[Tensor, "n in"], values: Tensor) -> None:
        self.codes[rows] = codes
        self.scales[rows], self.zero_points[rows] = grid.scales, grid.zero_points
        columns = outliers.nonzero()[:, 1].reshape(len(rows), -1)
        self.outlier_columns[rows] = columns
        self.outlier_values[rows] = values.gather(1, columns).half()

    def segment(self, format: AffineFormat) -> Segment:
        grid = Grid(scales=self.scales, zero_points=self.zero_points)
        rows = torch.arange(len(self.codes))
        return affine_segment(format, rows, self.codes, grid, self.outlier_columns, self.outlier_values)


@final
class _Sweep:
    """One sweep over the columns, for all formats stacked side by side: the working copy is `[in, format * out]`."""

    def __init__(
        self, weight: Tensor, spread: Feedback, formats: Sequence[AffineFormat], outliers: Sequence[Tensor]
    ) -> None:
        self._formats = formats
        self._rows, self._columns = weight.shape
        self._spread = spread
        self._work = weight.t().repeat(1, len(formats))
        self._codes = torch.empty_like(self._work, dtype=torch.uint8)
        self._outliers = torch.cat([mask.t() for mask in outliers], dim=1) if any(f.outliers for f in formats) else None
        self._masks = outliers
        self._scales = torch.empty(self._work.shape[1])
        self._zero_points = torch.empty(self._work.shape[1])
        levels = [torch.full((self._rows,), 2.0**format.bits - 1) for format in formats]
        self._levels = torch.cat(levels) if levels else torch.empty(0)

    def run(self, order: Tensor, grids: Sequence[Grid] | None) -> list[Grid]:
        """Round all columns; `grids` fixes the grids beforehand, else each group's is searched when it is reached."""
        found: list[list[Grid]] = [[] for _ in self._formats]
        for start in range(0, self._columns, BLOCK_COLUMNS):
            stop = min(start + BLOCK_COLUMNS, self._columns)
            errors = torch.empty(stop - start, self._work.shape[1])
            for column in range(start, stop):
                if grids is None:
                    self._search(column, start, errors, found)
                else:
                    self._select(int(order[column]), grids)
                self._round_column(column, start, stop, errors)
            if stop < self._columns:
                self._work[stop:].addmm_(self._spread.spread[start:stop, stop:].t(), errors, alpha=-1.0)
        return list(grids) if grids is not None else [_joined(parts) for parts in found]

    def codes(self) -> UInt8[Tensor, "format out in"]:
        return self._codes.t().unflatten(0, (len(self._formats), self._rows))

    def values(self) -> Float[Tensor, "format out in"]:
        """The weights as they were when their column was reached."""
        return self._work.t().unflatten(0, (len(self._formats), self._rows))

    def _round_column(self, column: int, start: int, stop: int, errors: Tensor) -> None:
        weight = self._work[column]
        codes = (weight / self._scales).add_(self._zero_points).round_().clamp_(min=0.0)
        torch.minimum(codes, self._levels, out=codes)
        self._codes[column] = codes
        error = torch.sub(weight, codes.sub_(self._zero_points).mul_(self._scales), out=errors[column - start])
        if self._outliers is not None:
            error.masked_fill_(self._outliers[column], 0.0)
        if column + 1 < stop:
            self._work[column + 1 : stop].addr_(self._spread.spread[column, column + 1 : stop], error, alpha=-1.0)

    def _search(self, column: int, start: int, errors: Tensor, found: list[list[Grid]]) -> None:
        """Where a group of some format begins: bring its columns up to date and search its grid on them."""
        for index, format in enumerate(self._formats):
            size = format.columns_per_group(self._columns)
            if column % size:
                continue
            stop = min(column + size, self._columns)
            mine = slice(index * self._rows, (index + 1) * self._rows)
            group = self._work[column:stop, mine]
            block_stop = min(start + BLOCK_COLUMNS, self._columns)
            if column > start and stop > block_stop:
                late = self._spread.spread[start:column, block_stop:stop].t() @ errors[: column - start, mine]
                group = torch.cat([group[: block_stop - column], group[block_stop - column :] - late])
            whole = AffineFormat(bits=format.bits, group_size=0, symmetric=format.symmetric)
            ignored = self._masks[index][:, column:stop] if format.outliers else None
            grid = search_grid(group.t().contiguous(), self._spread.pivots[column:stop], whole, ignored=ignored)
            found[index].append(grid)
            self._scales[mine] = grid.scales[:, 0].float()
            self._zero_points[mine] = grid.zero_points[:, 0].float()

    def _select(self, column: int, grids: Sequence[Grid]) -> None:
        for index, (format, grid) in enumerate(zip(self._formats, grids, strict=True)):
            mine = slice(index * self._rows, (index + 1) * self._rows)
            group = column // format.columns_per_group(self._columns)
            self._scales[mine] = grid.scales[:, group].float()
            self._zero_points[mine] = grid.zero_points[:, group].float()


def _joined(parts: Sequence[Grid]) -> Grid:
    scales = torch.cat([part.scales for part in parts], dim=1)
    return Grid(scales=scales, zero_points=torch.cat([part.zero_points for part in parts], dim=1))
