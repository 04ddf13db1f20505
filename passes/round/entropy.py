"""Rounding to grids whose codes are stored by their entropy: one step per row, one scale per column.

At equal entropy the error is least where every column's error costs the same. With feedback an error in column `j`
costs its pivot, so columns are scaled by the inverse square root of their pivots; then one step serves all columns of a
row, and the coder finds out that some columns have larger codes than others. It is reverse water-filling over the
columns, as others have done for plain layer errors (WaterSIC); between rows and sites the allocator does the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from guidedq.artifacts.guidance import SiteGuidance
from guidedq.artifacts.quantized_weight import EntropySegment
from guidedq.quant.exponents import ONE, PARTS, nearest_exponents, scales_of
from guidedq.quant.formats import ENTROPY_ZERO, LEAST_ENTROPY_BITS, MOST_ENTROPY_BITS, AffineFormat, EntropyFormat
from guidedq.quant.packing import COLUMN_STEP

from .metric import Feedback, RowMetric, row_scales
from .sweep import Block, Sweep, stacks

STAND_IN = AffineFormat(bits=8, group_size=0, symmetric=True)
"""Its codes are those of an entropy format."""
MOST_OCTAVES = 3.0
"""Columns differ in scale by at most so many octaves from their mean, either way."""
LARGEST_CODE = 120.0
"""No step is so fine that a weight's code would leave a byte, some room for feedback left."""
LARGEST_OCTAVES = 3.5
"""The largest that is stored."""
COLUMN_BITS = 4.0
"""What a column's scale takes: with few rows more than it gains."""
LARGEST_COLUMN = 2.5
"""Root mean square of a scaled column, of its rows': beyond, codes would leave a byte at the finest steps."""
ROWS_AT_ONCE = 1024


def round_entropy(
    matrix: Float[Tensor, "out in"],
    guidance: SiteGuidance,
    metrics: Sequence[RowMetric],
    spreads: Sequence[Feedback],
    asked: Sequence[tuple[EntropyFormat, Tensor]],
) -> list[EntropySegment]:
    """GPTQ on scaled columns: a segment for each format and its rows."""
    if not asked:
        return []
    if all(format.code == "rice" for format, _ in asked):
        exponents = torch.full((matrix.shape[1],), ONE, dtype=torch.uint8)
    else:
        exponents = column_exponents(matrix, metrics, spreads)
    scales = scales_of(exponents)
    codes = [torch.empty(len(rows), matrix.shape[1], dtype=torch.uint8) for _, rows in asked]
    sizes, largest = _row_sizes(matrix, scales)
    matter = row_scales(guidance)
    wanted = [torch.maximum(row_steps(sizes, matter, format), largest / LARGEST_CODE) for format, _ in asked]
    steps = [nearest_exponents(step[rows]) for step, (_, rows) in zip(wanted, asked, strict=True)]
    for metric, spread in zip(metrics, spreads, strict=True):
        scaled = Feedback(spread=spread.spread * scales[:, None] / scales, pivots=spread.pivots * scales.square())
        chosen = [torch.isin(rows, metric.rows).nonzero()[:, 0] for _, rows in asked]
        for stack in stacks([len(places) for places in chosen], matrix.shape[1]):
            places = [(number, chosen[number][part]) for number, part in stack]
            sweep = Sweep(
                [Block(format=STAND_IN, weight=matrix[asked[n][1][mine]] / scales) for n, mine in places], scaled, []
            )
            sweep.run_fixed(scales_of(torch.cat([steps[n][mine] for n, mine in places])), ENTROPY_ZERO)
            for index, (number, mine) in enumerate(places):
                codes[number][mine] = sweep.codes(index)
    return [
        EntropySegment(format=format, rows=rows, codes=own, row_exponents=step, column_exponents=exponents)
        for (format, rows), own, step in zip(asked, codes, steps, strict=True)
    ]


def row_steps(sizes: Float[Tensor, "n"], matter: Float[Tensor, "n"], format: EntropyFormat) -> Float[Tensor, "n"]:
    """The step of each row: relative to its own size, or where rows share a stream such that all errors cost alike.

    Args:
        sizes: Root mean square of each row.
        matter: What an error costs in each row.
        format: Says the step of a row of size 1, or of the mean row.
    """
    known = (sizes > 0) & (matter > 0)
    if format.code == "huffman" or not bool(known.any()):
        return sizes * format.step
    size, cost = sizes.log2(), 0.5 * matter.log2()
    steps = torch.exp2(size[known].mean() + cost[known].mean() - cost) * format.step
    finest, coarsest = EntropyFormat(bits=MOST_ENTROPY_BITS).step, EntropyFormat(bits=LEAST_ENTROPY_BITS).step
    return torch.where(known, steps, coarsest * sizes).clamp(finest * sizes, coarsest * sizes)


def nearest_entropy(
    matrix: Float[Tensor, "n in"], rows: Tensor, format: EntropyFormat, noise: Tensor | None = None
) -> EntropySegment:
    """The nearest codes, ties to even, all columns alike; with `noise` from 0 to 1, down after it is added."""
    ones = nearest_exponents(torch.ones(matrix.shape[1]))
    sizes, largest = _row_sizes(matrix, scales_of(ones))
    steps = nearest_exponents(torch.maximum(sizes * format.step, largest / LARGEST_CODE))
    scaled = matrix / scales_of(steps)[:, None]
    codes = (torch.round(scaled) if noise is None else torch.floor(scaled + noise)).add_(ENTROPY_ZERO)
    return EntropySegment(
        format=format,
        rows=rows,
        codes=codes.clamp_(0, 2 * ENTROPY_ZERO - 1).to(torch.uint8),
        row_exponents=steps,
        column_exponents=ones,
    )


def column_exponents(
    matrix: Float[Tensor, "out in"], metrics: Sequence[RowMetric], spreads: Sequence[Feedback]
) -> UInt8[Tensor, "in"]:
    """The columns' scales: the inverse square roots of their pivots, in a mean over all rows' metrics, in half octaves.

    Where they would gain less bits than they take (half the logarithm of the ratio of the pivots' two means), all are 1
    but those of columns that are never seen, or much larger than others.
    """
    octaves = torch.zeros(matrix.shape[1])
    dead = torch.ones(matrix.shape[1], dtype=torch.bool)
    for metric, spread in zip(metrics, spreads, strict=True):
        octaves -= 0.5 * spread.pivots.log2() * (len(metric.rows) / len(matrix))
        dead &= metric.dead
    octaves = (octaves - octaves.mean()).clamp(-MOST_OCTAVES, MOST_OCTAVES)
    gained = 0.5 * torch.exp2(-2.0 * octaves).mean().log2()
    if float(gained) < COLUMN_BITS / len(matrix):
        octaves = torch.zeros_like(octaves)
    octaves = octaves.masked_fill(dead, MOST_OCTAVES)
    sizes = torch.linalg.vector_norm(matrix, dim=0) * torch.exp2(-octaves)
    usual = sizes.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    octaves += (sizes / (LARGEST_COLUMN * usual)).clamp(min=1.0).log2()
    steps = torch.round(PARTS / COLUMN_STEP * octaves.clamp(max=LARGEST_OCTAVES))
    return (ONE + COLUMN_STEP * steps).to(torch.uint8)


def _row_sizes(
    matrix: Float[Tensor, "n in"], scales: Float[Tensor, "in"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Root mean square, and largest magnitude, of each row whose columns are divided by their scales."""
    shares = scales.square().reciprocal()
    means, largest = matrix.new_empty(len(matrix)), matrix.new_empty(len(matrix))
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        squares = matrix[part].square().mul_(shares)
        means[part], largest[part] = squares.mean(1), squares.amax(1)
    return means.sqrt_(), largest.sqrt_()
