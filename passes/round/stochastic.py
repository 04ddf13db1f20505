"""Stochastic rounding: up or down at random, right on average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.artifacts.guidance import SiteGuidance
from guidedq.artifacts.quantized_weight import Segment
from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import expand_groups
from guidedq.stages import AbstractRounder

from .nearest import assemble, grid_of_rows


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StochasticRounder(AbstractRounder):
    """Each weight to one of its two neighbours, the nearer the likelier, so that the mean error is zero.

    A reference: unbiased errors cost twice the squared error of nearest rounding.
    """

    def round(
        self, matrix: Float[Tensor, "out in"], guidance: SiteGuidance, formats: Sequence[AffineFormat], *, seed: int
    ) -> Iterator[Segment]:
        """Quantize all rows in each format, with noise from `seed`; the same noise for every format."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(matrix.shape, generator=generator)
        for format in formats:
            grid, outliers = grid_of_rows(matrix, guidance, format, search=False)
            scales = expand_groups(grid.scales.float(), matrix.shape[1], format)
            zero_points = expand_groups(grid.zero_points.float(), matrix.shape[1], format)
            codes = torch.floor(matrix / scales + zero_points + noise).clamp_(0, 2**format.bits - 1)
            yield assemble(matrix, codes.to(torch.uint8), grid, outliers, format)
