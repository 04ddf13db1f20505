"""Activations that could be rounded to integers: where they are, which values they have, what rounding them costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.quant.integer import IntegerGrid, round_to_grid

BINS = 8192
"""Of a histogram: 32 to each step of the grid that holds the whole range, so that a grid 8 times finer is told."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPlace:
    """A value between operators that a backend could round to uint8.

    Attributes:
        name: The value's name.
        operators: The operators of sites for which alone it would be rounded; empty if for all that read it.
        sites: The sites that are computed in integers only if this is rounded, in order.
        dynamic: Its grid would follow the values of every call.
    """

    name: str
    operators: tuple[str, ...] = ()
    sites: tuple[str, ...]
    dynamic: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationHistogram:
    """The values of a place on calibration data, and how the end loss answers to them.

    Attributes:
        low: Lowest value, at most 0.
        high: Highest value, at least 0.
        counts: How many values lie in each of equal bins from `low` to `high`.
        sensitivity: Sum over the values of a bin of the squared gradient of the end loss, per token (or sample); zero
            where there were no gradients.
    """

    low: float
    high: float
    counts: Float[Tensor, "bin"]
    sensitivity: Float[Tensor, "bin"]

    @property
    def centers(self) -> Float[Tensor, "bin"]:
        """The middle of each bin."""
        bins = len(self.counts)
        return self.low + (torch.arange(bins, dtype=torch.float64) + 0.5) * ((self.high - self.low) / bins)

    def cost(self, grid: IntegerGrid) -> float:
        """The divergence that rounding to this grid adds, to second order, as if values erred independently.

        Half the squared error weighted by the squared gradient: in nats per token, or the objective's own unit.
        """
        return self._half_squares(self.sensitivity, grid)

    def plain_cost(self, grid: IntegerGrid) -> float:
        """Half the sum of squared errors, every value alike: what is minimised without guidance."""
        return self._half_squares(self.counts, grid)

    def _half_squares(self, weights: Tensor, grid: IntegerGrid) -> float:
        centers = self.centers
        return 0.5 * float((weights.double() * (round_to_grid(centers, grid) - centers).square()).sum())
