"""Round to nearest: the reference that every other rounding is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from guidedq.artifacts.guidance import SiteGuidance
from guidedq.artifacts.quantized_weight import Segment, affine_segment
from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid, grid_from_range, quantize_nearest
from guidedq.stages import AbstractRounder

from .grid_search import search_grid
from .metric import row_metrics
from .outliers import choose_outliers


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NearestRounder(AbstractRounder):
    """Each weight to its nearest code, ties to even.

    Attributes:
        search: Search the range of each group in the guided metric's diagonal; without it, the full range.
    """

    search: bool = True

    def round(
        self, matrix: Float[Tensor, "out in"], guidance: SiteGuidance, formats: Sequence[AffineFormat], *, seed: int
    ) -> Iterator[Segment]:
        """Quantize all rows in each format; the seed is not used."""
        for format in formats:
            grid, outliers = grid_of_rows(matrix, guidance, format, search=self.search)
            yield assemble(matrix, quantize_nearest(matrix, grid, format), grid, outliers, format)


def grid_of_rows(
    matrix: Float[Tensor, "out in"], guidance: SiteGuidance, format: AffineFormat, *, search: bool
) -> tuple[Grid, Bool[Tensor, "out in"]]:
    """The grid of every row and where its outliers are, each row in the diagonal of its own metric."""
    rows, columns = matrix.shape
    scales = torch.empty(rows, format.groups(columns), dtype=torch.float16)
    zero_points = torch.empty(rows, format.groups(columns), dtype=torch.uint8)
    outliers = torch.zeros_like(matrix, dtype=torch.bool)
    for metric in row_metrics(guidance):
        part = matrix[metric.rows]
        importance = metric.hessian.diagonal()
        outliers[metric.rows] = choose_outliers(part, importance, format)
        grid = (
            search_grid(part, importance, format, ignored=outliers[metric.rows])
            if search
            else _full_range(part.masked_fill(outliers[metric.rows], 0.0), format)
        )
        scales[metric.rows], zero_points[metric.rows] = grid.scales, grid.zero_points
    return Grid(scales=scales, zero_points=zero_points), outliers


def assemble(matrix: Tensor, codes: Tensor, grid: Grid, outliers: Tensor, format: AffineFormat) -> Segment:
    """A segment of all rows from codes, grid and the mask of outliers, whose values are taken from `matrix`."""
    rows = torch.arange(matrix.shape[0])
    if format.outliers == 0:
        return affine_segment(format, rows, codes, grid, None, None)
    columns = outliers.nonzero()[:, 1].reshape(len(rows), format.outliers)
    return affine_segment(format, rows, codes, grid, columns, matrix.gather(1, columns))


def _full_range(weight: Tensor, format: AffineFormat) -> Grid:
    columns = weight.shape[1]
    padded = torch.nn.functional.pad(weight, (0, -columns % format.columns_per_group(columns)))
    grouped = padded.unflatten(1, (-1, format.columns_per_group(columns)))
    return grid_from_range(grouped.amin(-1), grouped.amax(-1), format)
