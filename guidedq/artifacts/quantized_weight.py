"""One quantized weight: segments of rows, each with its own format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Float16, Int64, UInt8
from torch import Tensor

from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.errors import FormatError
from guidedq.quant.exponents import scales_of
from guidedq.quant.formats import ENTROPY_ZERO, AffineFormat, EntropyFormat, FloatFormat
from guidedq.quant.grid import Grid, dequantize, expand_groups

WEIGHTS_AT_ONCE = 1 << 20
"""Weights dequantized at once: 4 MB of float32, within a core's cache."""
FLOAT_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AffineSegment:
    """Rows of a weight that share an affine format.

    Attributes:
        format: The format of all these rows.
        rows: Their row indices in the weight, ascending, `[n]`.
        codes: `[n, in]`, each below `2 ** bits`.
        grid: Scales and zero points, `[n, groups]`.
        outlier_columns: Columns kept at 16 bits, ascending in each row, `[n, outliers]`.
        outlier_values: Their values, `[n, outliers]`; they replace what the codes say.
    """

    format: AffineFormat
    rows: Int64[Tensor, "n"]
    codes: UInt8[Tensor, "n in"]
    grid: Grid
    outlier_columns: Int64[Tensor, "n outliers"]
    outlier_values: Float16[Tensor, "n outliers"]

    @property
    def code_range(self) -> tuple[int, int]:
        """The least and the greatest code that there may be."""
        return 0, 2**self.format.bits - 1

    def dequantize(self) -> Float[Tensor, "n in"]:
        """The float32 values of these rows."""
        values = dequantize(self.codes, self.grid, self.format)
        return values.scatter_(1, self.outlier_columns, self.outlier_values.float())

    def steps(self) -> Float[Tensor, "n in"]:
        """By how much a weight grows with its code; 0 for outliers."""
        steps = expand_groups(self.grid.scales.float(), self.codes.shape[1], self.format)
        return steps.scatter(1, self.outlier_columns, torch.zeros(self.outlier_columns.shape))

    def with_codes(self, codes: UInt8[Tensor, "n in"]) -> AffineSegment:
        """The same rows with other codes."""
        return replace(self, codes=codes)

    def part(self, index: Tensor | slice) -> AffineSegment:
        """Some of these rows, by their place in the segment."""
        return AffineSegment(
            format=self.format,
            rows=self.rows[index],
            codes=self.codes[index],
            grid=self.grid.rows(index),
            outlier_columns=self.outlier_columns[index],
            outlier_values=self.outlier_values[index],
        )

    def with_rows(self, places: Int64[Tensor, "m"], other: AffineSegment) -> AffineSegment:
        """The same rows, those at some places with the codes and grids that `other` has for them, `[m, in]`."""
        return replace(
            self,
            codes=self.codes.index_copy(0, places, other.codes),
            grid=Grid(
                scales=self.grid.scales.index_copy(0, places, other.grid.scales),
                zero_points=self.grid.zero_points.index_copy(0, places, other.grid.zero_points),
            ),
            outlier_columns=self.outlier_columns.index_copy(0, places, other.outlier_columns),
            outlier_values=self.outlier_values.index_copy(0, places, other.outlier_values),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FloatSegment:
    """Rows of a weight that stay in floating point: `values` is `[n, in]` in the format's dtype."""

    format: FloatFormat
    rows: Int64[Tensor, "n"]
    values: Tensor

    def dequantize(self) -> Float[Tensor, "n in"]:
        """The float32 values of these rows."""
        return self.values.float()

    def part(self, index: Tensor | slice) -> FloatSegment:
        """Some of these rows, by their place in the segment."""
        return FloatSegment(format=self.format, rows=self.rows[index], values=self.values[index])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EntropySegment:
    """Rows of a weight whose codes are stored by their entropy.

    Attributes:
        format: The format of all these rows.
        rows: Their row indices in the weight, ascending, `[n]`.
        codes: `[n, in]`, 128 more than the integers they stand for.
        row_exponents: Scales of the rows (see `quant/exponents.py`), `[n]`.
        column_exponents: Scales of the columns, `[in]`; the same in all segments of a weight.
    """

    format: EntropyFormat
    rows: Int64[Tensor, "n"]
    codes: UInt8[Tensor, "n in"]
    row_exponents: UInt8[Tensor, "n"]
    column_exponents: UInt8[Tensor, "in"]

    @property
    def code_range(self) -> tuple[int, int]:
        """The least and the greatest code that there are: others would cost most."""
        return int(self.codes.min()), int(self.codes.max())

    def dequantize(self) -> Float[Tensor, "n in"]:
        """The float32 values of these rows."""
        return dequantize_codes(self.codes, self.column_exponents, self.row_exponents)

    def steps(self) -> Float[Tensor, "n in"]:
        """By how much a weight grows with its code."""
        return scales_of(self.column_exponents) * scales_of(self.row_exponents)[:, None]

    def with_codes(self, codes: UInt8[Tensor, "n in"]) -> EntropySegment:
        """The same rows with other codes."""
        return replace(self, codes=codes)

    def part(self, index: Tensor | slice) -> EntropySegment:
        """Some of these rows, by their place in the segment."""
        return EntropySegment(
            format=self.format,
            rows=self.rows[index],
            codes=self.codes[index],
            row_exponents=self.row_exponents[index],
            column_exponents=self.column_exponents,
        )

    def with_columns(self, exponents: UInt8[Tensor, "in"]) -> EntropySegment:
        """The same rows with their columns scaled otherwise: the codes nearest to what they were."""
        if torch.equal(self.column_exponents, exponents):
            return self
        ratio = scales_of(self.column_exponents) / scales_of(exponents)
        codes = (self.codes.float() - ENTROPY_ZERO).mul_(ratio).round_().add_(ENTROPY_ZERO)
        codes = codes.clamp_(0, 2 * ENTROPY_ZERO - 1).to(torch.uint8)
        return replace(self, codes=codes, column_exponents=exponents)

    def with_rows(self, places: Int64[Tensor, "m"], other: EntropySegment) -> EntropySegment:
        """The same rows, those at some places with the codes and scales that `other` has for them, `[m, in]`.

        Raises:
            FormatError: its columns are scaled otherwise.
        """
        if not torch.equal(self.column_exponents, other.column_exponents):
            raise FormatError("rows of one weight whose columns are scaled differently.")
        return replace(
            self,
            codes=self.codes.index_copy(0, places, other.codes),
            row_exponents=self.row_exponents.index_copy(0, places, other.row_exponents),
        )


RoundedSegment = AffineSegment | EntropySegment
"""What a rounder makes."""
Segment = AffineSegment | EntropySegment | FloatSegment | NestedSegment


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A weight matrix as stored: every row belongs to exactly one segment.

    Attributes:
        name: The site's name.
        shape: `(out, in)` of the matrix view.
        segments: Disjoint, together all rows; no two of one format.
    """

    name: str
    shape: tuple[int, int]
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        counted = sum(len(segment.rows) for segment in self.segments)
        if counted != self.shape[0]:
            raise FormatError(f"{self.name}: {counted} rows in segments, {self.shape[0]} in the weight.")

    @property
    def has_entropy(self) -> bool:
        """Whether some codes are stored by their entropy."""
        return any(isinstance(segment, EntropySegment) for segment in self.segments)

    def dequantize(self) -> Float[Tensor, "out in"]:
        """The reference float32 matrix; made part by part, so that little is held besides it."""
        values = torch.empty(self.shape)
        step = max(1, WEIGHTS_AT_ONCE // self.shape[1])
        for segment in self.segments:
            for start in range(0, len(segment.rows), step):
                part = segment.part(slice(start, start + step))
                values[part.rows] = part.dequantize()
        return values


def float_segment(matrix: Float[Tensor, "out in"], format: FloatFormat, rows: Int64[Tensor, "n"]) -> FloatSegment:
    """Hold some rows of a matrix in floating point."""
    return FloatSegment(format=format, rows=rows, values=matrix[rows].to(FLOAT_DTYPES[format.dtype]))


def float_weight(name: str, matrix: Float[Tensor, "out in"], format: FloatFormat) -> QuantizedWeight:
    """Hold a whole matrix in floating point."""
    segment = float_segment(matrix, format, torch.arange(matrix.shape[0]))
    return QuantizedWeight(name=name, shape=(matrix.shape[0], matrix.shape[1]), segments=(segment,))


def affine_segment(
    format: AffineFormat,
    rows: Tensor,
    codes: Tensor,
    grid: Grid,
    outlier_columns: Tensor | None,
    outlier_values: Tensor | None,
) -> AffineSegment:
    """Assemble an affine segment; `None` for the outliers means that there are none."""
    empty = torch.zeros(len(rows), 0, dtype=torch.int64)
    columns = empty if outlier_columns is None else outlier_columns
    values = empty.half() if outlier_values is None else outlier_values.half()
    return AffineSegment(
        format=format, rows=rows, codes=codes, grid=grid, outlier_columns=columns, outlier_values=values
    )


def dequantize_codes(
    codes: UInt8[Tensor, "n in"], column_exponents: UInt8[Tensor, "in"], row_exponents: UInt8[Tensor, "n"]
) -> Float[Tensor, "n in"]:
    """What codes of entropy formats stand for: `(code - 128) * column scale * row scale`, each product rounded once."""
    values = codes.float().sub_(ENTROPY_ZERO)
    return values.mul_(scales_of(column_exponents)).mul_(scales_of(row_exponents)[:, None])
