"""The `percentile` range: the few largest values are clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from guidedq.artifacts.activations import ActivationHistogram
from guidedq.errors import RecipeError
from guidedq.quant.integer import IntegerGrid, integer_grid
from guidedq.stages import AbstractRange


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PercentileRange(AbstractRange):
    """Clips so many of the values that all but `percentile` percent are held, the same share at either end.

    Attributes:
        percentile: Share of the values that are held, in percent: 99.999 as in ONNX Runtime's and TensorRT's tools.
        symmetric: The zero point lies in the middle; at the bottom where nothing is negative.
    """

    percentile: float = 99.999
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"percentile {self.percentile:g}: expected more than 50, at most 100.")

    def grid(self, histogram: ActivationHistogram) -> IntegerGrid:
        """See `AbstractRange`; the ends are those of bins."""
        shares = histogram.counts.double().cumsum(0) / histogram.counts.double().sum()
        beyond = (1 - self.percentile / 100) / 2
        bins, width = len(shares), (histogram.high - histogram.low) / len(shares)
        first = int(torch.searchsorted(shares, beyond, right=True))
        last = int(torch.searchsorted(shares, 1 - beyond))
        low = histogram.low + width * min(first, bins - 1)
        high = histogram.low + width * min(last + 1, bins)
        return integer_grid(low, high, symmetric=self.symmetric)
