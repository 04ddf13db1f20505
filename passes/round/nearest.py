"""Round to nearest: the reference that every other rounding is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from guidedq.artifacts.guidance import SiteGuidance
from guidedq.artifacts.quantized_weight import AffineSegment, RoundedSegment, affine_segment
from guidedq.quant.formats import AffineFormat, EntropyFormat, RoundedFormat
from guidedq.quant.grid import Grid, grid_from_range, quantize_nearest
from guidedq.stages import AbstractRounder

from .asked import rows_of
from .entropy import nearest_entropy
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
        self,
        matrix: Float[Tensor, "out in"],
        guidance: SiteGuidance,
        formats: Sequence[RoundedFormat],
        rows: Sequence[Int64[Tensor, "_"]] | None = None,
        *,
        seed: int,
    ) -> Iterator[RoundedSegment]:
        """Quantize rows in each format; the seed is not used."""
        for format, mine in rows_of(matrix, formats, rows):
            part = matrix[mine]
            if isinstance(format, EntropyFormat):
                yield nearest_entropy(part, mine, format)
                continue
            grid, outliers = grid_of_rows(part, mine, guidance, format, search=self.search)
            yield assemble(part, mine, quantize_nearest(part, grid, format), grid, outliers, format)


def grid_of_rows(
    matrix: Float[Tensor, "n in"],
    rows: Int64[Tensor, "n"],
    guidance: SiteGuidance,
    format: AffineFormat,
    *,
    search: bool,
) -> tuple[Grid, Bool[Tensor, "n in"]]:
    """The grid of these rows and where their outliers are, each row in the diagonal of its own metric."""
    groups = format.groups(matrix.shape[1])
    scales = torch.empty(len(rows), groups, dtype=torch.float16)
    zero_points = torch.empty(len(rows), groups, dtype=torch.uint8)
    outliers = torch.zeros_like(matrix, dtype=torch.bool)
    for metric in row_metrics(guidance):
        mine = torch.isin(rows, metric.rows).nonzero()[:, 0]
        part = matrix[mine]
        importance = metric.hessian.diagonal()
        outliers[mine] = choose_outliers(part, importance, format)
        grid = (
            search_grid(part, importance, format, ignored=outliers[mine])
            if search
            else _full_range(part.masked_fill(outliers[mine], 0.0), format)
        )
        scales[mine], zero_points[mine] = grid.scales, grid.zero_points
    return Grid(scales=scales, zero_points=zero_points), outliers


def assemble(
    matrix: Tensor, rows: Tensor, codes: Tensor, grid: Grid, outliers: Tensor, format: AffineFormat
) -> AffineSegment:
    """A segment of some rows from codes, grid and the mask of outliers, whose values are taken from `matrix`."""
    if format.outliers == 0:
        return affine_segment(format, rows, codes, grid, None, None)
    columns = outliers.nonzero()[:, 1].reshape(len(rows), format.outliers)
    return affine_segment(format, rows, codes, grid, columns, matrix.gather(1, columns))


def _full_range(weight: Tensor, format: AffineFormat) -> Grid:
    columns = weight.shape[1]
    padded = torch.nn.functional.pad(weight, (0, -columns % format.columns_per_group(columns)))
    grouped = padded.unflatten(1, (-1, format.columns_per_group(columns)))
    return grid_from_range(grouped.amin(-1), grouped.amax(-1), format)
