"""The sweep over the columns: each column rounded in all blocks of rows, its error spread over the columns to come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import final

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid

from .grid_search import search_grids
from .metric import Feedback

BLOCK_COLUMNS = 64
"""Columns whose feedback stays local before it goes to the rest in one matrix product; fits a core's cache."""
STRIP_COLUMNS = 8
"""Within a block, columns whose feedback stays among themselves before it goes to the block's rest: one pass over the
rest instead of eight."""
NARROW_BITS = 4
FULL_RANGE_BITS = 6
"""Grids of up to 4 bits are searched together, and those from 6 bits on, of which only the full range is tried."""

STACK_WEIGHTS = 12_000_000
"""Weights, all formats counted, that are worked on at once: about 50 MB of float32, and some copies."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows that are rounded in one format."""

    format: AffineFormat
    weight: Float[Tensor, "n in"]


def stacks(counts: Sequence[int], columns: int) -> Iterator[list[tuple[int, slice]]]:
    """Cut lists of so many rows into parts, and gather these, in order, into stacks that fit in memory."""
    limit = max(1, STACK_WEIGHTS // columns)
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
class Sweep:
    """One sweep over the columns, for all blocks side by side: the working copy is `[in, rows of all blocks]`."""

    def __init__(self, blocks: Sequence[Block], spread: Feedback, outliers: Sequence[Tensor]) -> None:
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

        def prepare(column: int, strip: int, start: int, errors: Tensor) -> None:
            if grids is None:
                self._search(column, strip, start, errors, found)
            else:
                self._select(int(order[column]), grids)

        self._run(prepare)
        return list(grids) if grids is not None else [_joined(parts) for parts in found]

    def run_fixed(self, scales: Float[Tensor, "rows"], zero_point: int) -> None:
        """Round all columns, with one scale for each row of all blocks."""
        self._scales[:] = scales
        self._zero_points[:] = zero_point
        self._run(lambda *_: None)

    def _run(self, prepare: Callable[[int, int, int, Tensor], None]) -> None:
        """Column by column; `prepare` sets the grids of the next, given strip, block and the errors in it."""
        for start in range(0, self._columns, BLOCK_COLUMNS):
            stop = min(start + BLOCK_COLUMNS, self._columns)
            errors = torch.empty(stop - start, self._work.shape[1])
            for strip in range(start, stop, STRIP_COLUMNS):
                strip_stop = min(strip + STRIP_COLUMNS, stop)
                for column in range(strip, strip_stop):
                    prepare(column, strip, start, errors)
                    self._round_column(column, start, strip_stop, errors)
                if strip_stop < stop:
                    spread = self._spread.spread[strip:strip_stop, strip_stop:stop].t()
                    self._work[strip_stop:stop].addmm_(spread, errors[strip - start : strip_stop - start], alpha=-1.0)
            if stop < self._columns:
                self._work[stop:].addmm_(self._spread.spread[start:stop, stop:].t(), errors, alpha=-1.0)

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
