"""GPTQ: round column by column, each error spread over the columns still to come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from guidedq.artifacts.guidance import SiteGuidance
from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.artifacts.quantized_weight import AffineSegment, RoundedSegment, affine_segment
from guidedq.quant.formats import AffineFormat, EntropyFormat, RoundedFormat
from guidedq.quant.grid import Grid
from guidedq.quant.nested import NestedFormat
from guidedq.stages import AbstractRounder

from .asked import rows_of
from .entropy import round_entropy
from .grid_search import search_grid
from .metric import Feedback, RowMetric, feedback, row_metrics
from .nested import round_nested
from .outliers import choose_outliers
from .sweep import Block, Sweep, stacks


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
        self,
        matrix: Float[Tensor, "out in"],
        guidance: SiteGuidance,
        formats: Sequence[RoundedFormat],
        rows: Sequence[Int64[Tensor, "_"]] | None = None,
        *,
        seed: int,
    ) -> Iterator[RoundedSegment]:
        """Quantize rows in each format; formats share a sweep over the columns. The seed is not used."""
        asked = rows_of(matrix, formats, rows)
        metrics = row_metrics(guidance)
        spreads = [feedback(metric, self.damping_fraction) for metric in metrics]
        entropy = [(format, mine) for format, mine in asked if isinstance(format, EntropyFormat)]
        by_entropy = iter(round_entropy(matrix, guidance, metrics, spreads, entropy))
        by_width = self._round_affine(
            matrix, metrics, spreads, [(format, mine) for format, mine in asked if isinstance(format, AffineFormat)]
        )
        for format in formats:
            yield next(by_entropy if isinstance(format, EntropyFormat) else by_width)

    def nested(self, matrix: Float[Tensor, "out in"], guidance: SiteGuidance, format: NestedFormat) -> NestedSegment:
        """All rows at several widths at once, by one sweep and coordinate descent; columns in their own order."""
        metrics = row_metrics(guidance)
        spreads = [feedback(metric, self.damping_fraction) for metric in metrics]
        return round_nested(matrix, guidance, metrics, spreads, format, self.damping_fraction)

    def _round_affine(
        self,
        matrix: Float[Tensor, "out in"],
        metrics: Sequence[RowMetric],
        spreads: Sequence[Feedback],
        asked: Sequence[tuple[AffineFormat, Tensor]],
    ) -> Iterator[AffineSegment]:
        columns = matrix.shape[1]
        results = [_Rounded(mine, columns, format) for format, mine in asked]
        for metric, spread in zip(metrics, spreads, strict=True):
            chosen = [torch.isin(mine, metric.rows).nonzero()[:, 0] for _, mine in asked]
            for stack in stacks([len(places) for places in chosen], columns):
                places = [(number, chosen[number][part]) for number, part in stack]
                self._round_stack(
                    [Block(format=asked[n][0], weight=matrix[asked[n][1][mine]]) for n, mine in places],
                    metric,
                    spread,
                    [(results[n], mine) for n, mine in places],
                )
        for result in results:
            yield result.segment()

    def _round_stack(
        self,
        blocks: Sequence[Block],
        metric: RowMetric,
        spread: Feedback,
        results: Sequence[tuple[_Rounded, Tensor]],
    ) -> None:
        outliers = [choose_outliers(block.weight, spread.pivots, block.format) for block in blocks]
        if self.activation_order:
            order = metric.hessian.diagonal().argsort(descending=True, stable=True)
            ordered = RowMetric(rows=metric.rows, hessian=metric.hessian[order][:, order], dead=metric.dead[order])
            grids = [
                search_grid(block.weight, spread.pivots, block.format, ignored=mask)
                for block, mask in zip(blocks, outliers, strict=True)
            ]
            turned = [Block(format=block.format, weight=block.weight[:, order]) for block in blocks]
            sweep = Sweep(turned, feedback(ordered, self.damping_fraction), [mask[:, order] for mask in outliers])
            sweep.run(order, grids)
            columns: Tensor | slice = order.argsort()
        else:
            sweep = Sweep(blocks, spread, outliers)
            columns = slice(None)
            grids = sweep.run(torch.arange(len(spread.pivots)), None)
        for index, (result, places) in enumerate(results):
            result.fill(places, sweep.codes(index)[:, columns], grids[index])
            if blocks[index].format.outliers:
                result.fill_outliers(places, outliers[index], sweep.values(index)[:, columns])


@final
class _Rounded:
    """Where the rows of one format are gathered, stack by stack."""

    def __init__(self, rows: Int64[Tensor, "n"], columns: int, format: AffineFormat) -> None:
        groups = format.groups(columns)
        self._format = format
        self._rows = rows
        self._codes = torch.empty(len(rows), columns, dtype=torch.uint8)
        self._scales = torch.empty(len(rows), groups, dtype=torch.float16)
        self._zero_points = torch.empty(len(rows), groups, dtype=torch.uint8)
        self._outlier_columns = torch.empty(len(rows), format.outliers, dtype=torch.int64)
        self._outlier_values = torch.empty(len(rows), format.outliers, dtype=torch.float16)

    def fill(self, places: Tensor, codes: Tensor, grid: Grid) -> None:
        self._codes[places] = codes
        self._scales[places], self._zero_points[places] = grid.scales, grid.zero_points

    def fill_outliers(self, places: Tensor, mask: Bool[Tensor, "n in"], values: Float[Tensor, "n in"]) -> None:
        columns = mask.nonzero()[:, 1].reshape(len(places), -1)
        self._outlier_columns[places] = columns
        self._outlier_values[places] = values.gather(1, columns).half()

    def segment(self) -> AffineSegment:
        grid = Grid(scales=self._scales, zero_points=self._zero_points)
        return affine_segment(self._format, self._rows, self._codes, grid, self._outlier_columns, self._outlier_values)
