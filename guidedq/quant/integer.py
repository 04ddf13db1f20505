"""Eight-bit integers for computing: unsigned ones for activations, signed ones for the rows of a weight.

What runtimes have kernels for: activations uint8 with one scale and zero point for the whole tensor, weights int8 with
a scale for every row and no zero point. The sums come out exactly on every processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from guidedq.errors import CalibrationError

LEVELS = 255
"""Steps between the ends of a uint8 grid."""
MIDDLE = 128
"""Zero point of a symmetric grid: codes 1 to 255 are as many below zero as above."""
REDUCED_CODE = 64
"""Codes of weights are -64 to 64 in a reduced range: x86 processors without VNNI add two products of a uint8 and an
int8 in 16 bits, where they saturate, and 2 * 255 * 64 is the most that is safe."""
WHOLE_CODE = 127
"""Codes of weights are -127 to 127 in the whole range: with VNNI, and on ARM, products are added in 32 bits."""
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Stands in for the scale of what is zero throughout."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerGrid:
    """The uint8 grid of an activation: `value = scale * (code - zero_point)`, codes 0 to 255. Zero is on it.

    Attributes:
        scale: A float32 number above zero.
        zero_point: 0 to 255.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (self.scale > 0 and np.isfinite(self.scale) and 0 <= self.zero_point <= LEVELS):
            raise CalibrationError(f"scale {self.scale}, zero point {self.zero_point}: no grid of an activation.")

    @property
    def low(self) -> float:
        """The lowest value."""
        return -self.scale * self.zero_point

    @property
    def high(self) -> float:
        """The highest value."""
        return self.scale * (LEVELS - self.zero_point)


def integer_grid(low: float, high: float, *, symmetric: bool = False) -> IntegerGrid:
    """The grid that reaches from `low` to `high`, zero always among them.

    Args:
        low: Lowest value to be held.
        high: Highest value to be held.
        symmetric: The zero point lies in the middle; at the bottom where nothing is negative.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric and low < 0:
        return IntegerGrid(scale=_scale(max(-low, high) / (LEVELS - MIDDLE)), zero_point=MIDDLE)
    scale = _scale((high - low) / LEVELS)
    return IntegerGrid(scale=scale, zero_point=min(LEVELS, round(-low / scale)))


def round_to_grid(values: Tensor, grid: IntegerGrid) -> Tensor:
    """The nearest values of the grid, ties to even codes, as QuantizeLinear and DequantizeLinear give them."""
    codes = torch.round(values / grid.scale).add_(grid.zero_point).clamp_(0, LEVELS)
    return codes.sub_(grid.zero_point).mul_(grid.scale)


def round_dynamically(values: Tensor) -> Tensor:
    """As DynamicQuantizeLinear rounds: to the grid that the values of this very tensor reach to."""
    low, high = (float(extreme) for extreme in values.aminmax())
    return round_to_grid(values, integer_grid(low, high))


def round_rows(weight: Tensor, axis: int, largest_code: int) -> Tensor:
    """The weight with every row, a slice across `axis`, rounded to int8 with a scale of its own.

    Args:
        weight: Any number of axes.
        axis: Of the rows.
        largest_code: Codes are from its negative to this.
    """
    others = [other for other in range(weight.ndim) if other != axis]
    scales = (weight.abs().amax(others, keepdim=True) / largest_code).clamp_min(SMALLEST_SCALE)
    return torch.round(weight / scales).clamp_(-largest_code, largest_code).mul_(scales)


def _scale(value: float) -> float:
    return max(float(np.float32(value)), SMALLEST_SCALE)
