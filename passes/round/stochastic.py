"""Stochastic rounding: up or down at random, right on average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from guidedq.artifacts.guidance import SiteGuidance
from guidedq.artifacts.quantized_weight import RoundedSegment
from guidedq.quant.formats import EntropyFormat, RoundedFormat
from guidedq.quant.grid import expand_groups
from guidedq.stages import AbstractRounder

from .asked import rows_of
from .entropy import nearest_entropy
from .nearest import assemble, grid_of_rows


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StochasticRounder(AbstractRounder):
    """Each weight to one of its two neighbours, the nearer the likelier, so that the mean error is zero.

    A reference: unbiased errors cost twice the squared error of nearest rounding.
    """

    def round(
        self,
        matrix: Float[Tensor, "out in"],
        guidance: SiteGuidance,
        formats: Sequence[RoundedFormat],
        rows: Sequence[Int64[Tensor, "_"]] | None = None,
        *,
        seed: int,
    ) -> Iterator[RoundedSegment]:
        """Quantize rows in each format, with noise from `seed`; a row's noise is the same for every format."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(matrix.shape, generator=generator)
        for format, mine in rows_of(matrix, formats, rows):
            part = matrix[mine]
            if isinstance(format, EntropyFormat):
                yield nearest_entropy(part, mine, format, noise[mine])
                continue
            grid, outliers = grid_of_rows(part, mine, guidance, format, search=False)
            scales = expand_groups(grid.scales.float(), matrix.shape[1], format)
            zero_points = expand_groups(grid.zero_points.float(), matrix.shape[1], format)
            codes = torch.floor(part / scales + zero_points + noise[mine]).clamp_(0, 2**format.bits - 1)
            yield assemble(part, mine, codes.to(torch.uint8), grid, outliers, format)
