"""GPTQ: round column by column, each error spread over the columns still to come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import final

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from guidedq.artifacts.guidance import SiteGuidance
from guidedq.artifacts.quantized_weight import AffineSegment, affine_segment
from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid
from guidedq.stages import AbstractRounder

from .grid_search import search_grid, search_grids
from .metric import Feedback, RowMetric, feedback, row_metrics
from .outliers import choose_outliers

BLOCK_COLUMNS = 64
"""Columns whose feedback stays local before it goes to the rest in one matrix product; fits a core's cache."""
STRIP_COLUMNS = 8
"""Within a block, columns whose feedback stays among themselves before it goes to the block's rest: one pass over the
rest instead of eight."""
NARROW_BITS = 4
FULL_RANGE_BITS = 6
"""Grids of up to 4 bits are searched together, and those from 6 bits on, of which only the full range is tried."""
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
        self,
        matrix: Float[Tensor, "out in"],
        guidance: SiteGuidance,
        formats: Sequence[AffineFormat],
        rows: Sequence[Int64[Tensor, "_"]] | None = None,
        *,
        seed: int,
    ) -> Iterator[AffineSegment]:
        """Quantize rows in each format; formats share a sweep over the columns. The seed is not used."""
        columns = matrix.shape[1]
        asked = list(rows) if rows is not None else [torch.arange(len(matrix))] * len(formats)
        results = [_Rounded(mine, columns, format) for mine, format in zip(asked, formats, strict=True)]
        for metric in row_metrics(guidance):
            chosen = [torch.isin(mine, metric.rows).nonzero()[:, 0] for mine in asked]
            stacks = list(_stacks([len(places) for places in chosen], max(1, STACK_WEIGHTS // columns)))
            if not stacks:
                continue
            spread = feedback(metric, self.damping_fraction)
            for stack in stacks:
                places = [(number, chosen[number][part]) for number, part in stack]
                self._round_stack(
                    [_Block(format=formats[n], weight=matrix[asked[n][mine]]) for n, mine in places],
                    metric,
                    spread,
                    [(results[n], mine) for n, mine in places],
                )
        for result in results:
            yield result.segment()

    def _round_stack(
        self,
        blocks: Sequence[_Block],
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
            turned = [_Block(format=block.format, weight=block.weight[:, order]) for block in blocks]
            sweep = _Sweep(turned, feedback(ordered, self.damping_fraction), [mask[:, order] for mask in outliers])
            sweep.run(order, grids)
            columns: Tensor | slice = order.argsort()
        else:
            sweep = _Sweep(blocks, spread, outliers)
            columns = slice(None)
            grids = sweep.run(torch.arange(len(spread.pivots)), None)
        for index, (result, places) in enumerate(results):
            result.fill(places, sweep.codes(index)[:, columns], grids[index])
            if blocks[index].format.outliers:
                result.fill_outliers(places, outliers[index], sweep.values(index)[:, columns])


def _stacks(counts: Sequence[int], limit: int) -> Iterator[list[tuple[int, slice]]]:
    """Cut lists of so many rows into parts, and gather these, in order, into stacks of at most `limit` rows."""
    stack: list[tuple[int, slice]] = []
    room = limit
    for number, count in enumerate(counts):
        start = 0
        while start < count:
            stop = min(count, start + room)
            stack.append((number, slice(start, stop)))
            room -= stop - start
            start = stop
            if not room:
                yield stack
                stack, room = [], limit
    if stack:
        yield stack


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Rows that are rounded in one format."""

    format: AffineFormat
    weight: Float[Tensor, "n in"]


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


@final
class _Sweep:
    """One sweep over the columns, for all blocks side by side: the working copy is `[in, rows of all blocks]`."""

    def __init__(self, blocks: Sequence[_Block], spread: Feedback, outliers: Sequence[Tensor]) -> None:
        self._formats = [block.format for block in blocks]
        ends = list(accumulate((len(block.weight) for block in blocks), initial=0))
        self._places = [slice(start, stop) for start, stop in pairwise(ends)]
        self._columns = len(spread.pivots)
        self._spread = spread
        self._work = torch.cat([block.weight.t() for block in blocks], dim=1)
        self._codes = torch.empty_like(self._work, dtype=torch.uint8)
        held = any(format.outliers for format in self._formats)
        self._outliers = torch.cat([mask.t() for mask in outliers], dim=1) if held else None
        self._scales = torch.empty(ends[-1])
        self._zero_points = torch.empty(ends[-1])
        self._numbers = list(torch.arange(ends[-1]).split([len(block.weight) for block in blocks]))
        self._alike = _alike(self._formats, self._numbers, self._columns)
        levels = [torch.full((len(block.weight),), 2.0**block.format.bits - 1) for block in blocks]
        self._levels = torch.cat(levels)

    def run(self, order: Tensor, grids: Sequence[Grid] | None) -> list[Grid]:
        """Round all columns; `grids` fixes the grids beforehand, else each group's is searched when it is reached."""
        found: list[list[Grid]] = [[] for _ in self._formats]
        for start in range(0, self._columns, BLOCK_COLUMNS):
            stop = min(start + BLOCK_COLUMNS, self._columns)
            errors = torch.empty(stop - start, self._work.shape[1])
            for strip in range(start, stop, STRIP_COLUMNS):
                strip_stop = min(strip + STRIP_COLUMNS, stop)
                for column in range(strip, strip_stop):
                    if grids is None:
                        self._search(column, strip, start, errors, found)
                    else:
                        self._select(int(order[column]), grids)
                    self._round_column(column, start, strip_stop, errors)
                if strip_stop < stop:
                    spread = self._spread.spread[strip:strip_stop, strip_stop:stop].t()
                    self._work[strip_stop:stop].addmm_(spread, errors[strip - start : strip_stop - start], alpha=-1.0)
            if stop < self._columns:
                self._work[stop:].addmm_(self._spread.spread[start:stop, stop:].t(), errors, alpha=-1.0)
        return list(grids) if grids is not None else [_joined(parts) for parts in found]

    def codes(self, block: int) -> UInt8[Tensor, "n in"]:
        """The codes of one block."""
        return self._codes[:, self._places[block]].t()

    def values(self, block: int) -> Float[Tensor, "n in"]:
        """One block's weights as they were when their column was reached."""
        return self._work[:, self._places[block]].t()

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

    def _search(self, column: int, strip: int, start: int, errors: Tensor, found: list[list[Grid]]) -> None:
        """Where groups of some formats begin: bring their columns up to date and search their grids on them."""
        for size, together in self._alike.items():
            if column % size[0]:
                continue
            stop = min(column + size[0], self._columns)
            group = self._current(column, stop, strip, start, errors, together.places).t().contiguous()
            ignored = None
            if self._outliers is not None and together.formats[0].outliers:
                ignored = self._outliers[column:stop, together.places].t()
            counts = [len(self._numbers[index]) for index in together.blocks]
            grids = search_grids(group, self._spread.pivots[column:stop], together.formats, counts, ignored=ignored)
            for index, grid in zip(together.blocks, grids, strict=True):
                found[index].append(grid)
            self._scales[together.places] = torch.cat([grid.scales[:, 0] for grid in grids]).float()
            self._zero_points[together.places] = torch.cat([grid.zero_points[:, 0] for grid in grids]).float()

    def _current(self, column: int, stop: int, strip: int, start: int, errors: Tensor, places: Tensor) -> Tensor:
        """Columns `column` to `stop - 1` of some rows, with the feedback that the strip and the block still hold back.

        Up to the strip's end nothing is held back, up to the block's what came in this strip, beyond all since `start`.
        """
        strip_stop, block_stop = strip + STRIP_COLUMNS, start + BLOCK_COLUMNS
        spans = ((column, column, strip_stop), (strip, strip_stop, block_stop), (start, block_stop, stop))
        parts: list[Tensor] = []
        for applied, low, high in spans:
            span = slice(max(low, column), min(high, stop))
            part = self._work[span].index_select(1, places)
            if applied < column and span.start < span.stop:
                late = errors[applied - start : column - start].index_select(1, places)
                part.addmm_(self._spread.spread[applied:column, span].t(), late, alpha=-1.0)
            parts.append(part)
        return torch.cat(parts)

    def _select(self, column: int, grids: Sequence[Grid]) -> None:
        for index, (format, grid) in enumerate(zip(self._formats, grids, strict=True)):
            mine = self._places[index]
            group = column // format.columns_per_group(self._columns)
            self._scales[mine] = grid.scales[:, group].float()
            self._zero_points[mine] = grid.zero_points[:, group].float()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Alike:
    """Blocks whose formats differ in their bits alone: their grids are searched together.

    Attributes:
        blocks: Their numbers.
        formats: Of each, with one group for all columns that it is given.
        places: Where their rows lie in the stack.
    """

    blocks: Sequence[int]
    formats: Sequence[AffineFormat]
    places: Int64[Tensor, "n"]


def _alike(
    formats: Sequence[AffineFormat], numbers: Sequence[Tensor], columns: int
) -> dict[tuple[int, bool, bool, int], _Alike]:
    """Blocks by group size in columns, symmetry, whether they have outliers, and about how much there is to try."""
    found: dict[tuple[int, bool, bool, int], list[int]] = {}
    for index, format in enumerate(formats):
        tried = min(max(format.bits, NARROW_BITS), FULL_RANGE_BITS)
        key = (format.columns_per_group(columns), format.symmetric, format.outliers > 0, tried)
        found.setdefault(key, []).append(index)
    return {
        key: _Alike(
            blocks=blocks,
            formats=[replace(formats[index], group_size=0) for index in blocks],
            places=torch.cat([numbers[index] for index in blocks]),
        )
        for key, blocks in found.items()
    }


def _joined(parts: Sequence[Grid]) -> Grid:
    scales = torch.cat([part.scales for part in parts], dim=1)
    return Grid(scales=scales, zero_points=torch.cat([part.zero_points for part in parts], dim=1))
