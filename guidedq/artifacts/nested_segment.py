"""A nested weight: the rows, the codes of the widest width, and what refits the narrower ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Float16, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from guidedq.quant.grid import Grid
from guidedq.quant.nested import NestedFormat
from guidedq.quant.refit import offset, shift_values


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NestedSegment:
    """All rows of a weight, at several widths.

    Attributes:
        format: With the width at which the weight is read.
        rows: Their row indices, all, ascending.
        codes: Of the widest width.
        grid: Scales and zero points of the widest width.
        ratios: Of the narrower widths, positive.
        shifts: Of the narrower widths' rows, as codes (see `quant/nested.py`).
    """

    format: NestedFormat
    rows: Int64[Tensor, "n"]
    codes: UInt8[Tensor, "n in"]
    grid: Grid
    ratios: Float16[Tensor, "narrower"]
    shifts: UInt8[Tensor, "narrower n"]

    def at(self, precision: int) -> NestedSegment:
        """The same weight, read at another width; nothing is copied.

        Raises:
            FormatError: there is no such width.
        """
        return replace(self, format=self.format.at(precision))

    def part(self, index: Tensor | slice) -> NestedSegment:
        """Some of these rows, by their place."""
        return replace(
            self,
            rows=self.rows[index],
            codes=self.codes[index],
            grid=self.grid.rows(index),
            shifts=self.shifts[:, index],
        )

    def dequantize(self) -> Float[Tensor, "n in"]:
        """The float32 values of these rows at the width at which they are read.

        `(scale * ratio) * level`: levels are exact, and each of the two products is rounded once.
        """
        (rows, columns), format = self.codes.shape, self.format
        groups, width = format.groups(columns), format.columns_per_group(columns)
        dropped = format.widest - format.precision
        values = pad(self.codes >> dropped, (0, groups * width - columns)).view(rows, groups, width).float()
        scales, added = self.refitted()
        values.mul_(float(1 << dropped)).add_(added[:, :, None]).mul_(scales[:, :, None])
        return values.flatten(1)[:, :columns].contiguous()

    def refitted(self) -> tuple[Float[Tensor, "n groups"], Float[Tensor, "n groups"]]:
        """Scales, and what is added to `2 ** (K - k) * code_k` before they multiply it, in float32."""
        format, scales = self.format, self.grid.scales.float()
        shift = torch.zeros(len(self.rows), device=scales.device)
        level = format.widths.index(format.precision)
        if level < len(self.ratios):
            scales = scales * self.ratios[level].float()
            shift = shift_values(self.shifts[level])
        return scales, offset(format.precision, format.widest, shift)[:, None] - self.grid.zero_points.float()
