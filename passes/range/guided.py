"""The `guided` range: the one whose rounding costs the end loss least (default)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from guidedq.artifacts.activations import ActivationHistogram
from guidedq.quant.integer import IntegerGrid
from guidedq.stages import AbstractRange

from .candidates import least


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedRange(AbstractRange):
    """Minimises the squared error of the values, each weighted by the squared gradient of the end loss.

    A large value to which the loss does not answer is clipped, a small one to which it does is resolved. Without
    gradients every value has the same weight.

    Attributes:
        symmetric: The zero point lies in the middle; at the bottom where nothing is negative.
    """

    symmetric: bool = False

    def grid(self, histogram: ActivationHistogram) -> IntegerGrid:
        """See `AbstractRange`."""
        known = bool(histogram.sensitivity.any())
        return least(histogram, histogram.cost if known else histogram.plain_cost, symmetric=self.symmetric)
