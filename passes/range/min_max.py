"""The `min-max` range: nothing is clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from guidedq.artifacts.activations import ActivationHistogram
from guidedq.quant.integer import IntegerGrid, integer_grid
from guidedq.stages import AbstractRange


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MinMaxRange(AbstractRange):
    """From the lowest value that was seen to the highest.

    Attributes:
        symmetric: The zero point lies in the middle; at the bottom where nothing is negative.
    """

    symmetric: bool = False

    def grid(self, histogram: ActivationHistogram) -> IntegerGrid:
        """See `AbstractRange`."""
        return integer_grid(histogram.low, histogram.high, symmetric=self.symmetric)
