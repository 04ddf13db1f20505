"""Scales in one byte: powers of two in eighths, `2 ** (exponent / 8 - 24)` for exponents 0 to 255.

A step of 9% is fine enough where codes are stored by their entropy: whether a row's codes are a few percent larger or
smaller costs as many bits as it saves. The numbers are products of a constant and a power of two, so every machine
makes the same ones.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

PARTS = 8
ZERO_OCTAVE = 24
LARGEST_EXPONENT = 255
ONE = PARTS * ZERO_OCTAVE
"""The exponent of the scale 1."""
OCTAVES = torch.arange((LARGEST_EXPONENT + 1) // PARTS, device="cpu") - ZERO_OCTAVE
FRACTIONS = torch.tensor(
    [1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081],
    dtype=torch.float32,
    device="cpu",
)
POWERS = torch.ldexp(torch.ones(len(OCTAVES), device="cpu"), OCTAVES)
"""A scale is `POWERS[exponent // PARTS] * FRACTIONS[exponent % PARTS]`. The device is named, for this file may be
imported while transformers builds a model on the meta device."""


SMALLEST_WEIGHT, LARGEST_WEIGHT = 2.0**-16, 2.0**12
"""Largest magnitudes of a weight for which all steps of its formats can be had."""


def reaches(largest: float) -> bool:
    """Whether weights up to this magnitude can be stored with such scales."""
    return largest == 0.0 or SMALLEST_WEIGHT <= largest <= LARGEST_WEIGHT


def scales_of(exponents: UInt8[Tensor, "n"]) -> Float32[Tensor, "n"]:
    """The scales that these bytes stand for."""
    numbers, device = exponents.long(), exponents.device
    return POWERS.to(device)[numbers // PARTS] * FRACTIONS.to(device)[numbers % PARTS]


def nearest_exponents(scales: Float[Tensor, "n"]) -> UInt8[Tensor, "n"]:
    """The bytes of the nearest scales, in proportion; what lies beyond the range gets its end."""
    smallest = torch.finfo(torch.float32).tiny
    exponents = torch.round(PARTS * scales.float().clamp(min=smallest).log2()) + ONE
    return exponents.clamp(0, LARGEST_EXPONENT).to(torch.uint8)
