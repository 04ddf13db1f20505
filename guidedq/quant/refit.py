"""What refits the zero points of a nested weight at its narrower widths: shifts, and the offsets that they make."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from guidedq.quant.nested import SHIFT_BITS

SHIFT_ZERO = 1 << (SHIFT_BITS - 1)
SHIFT_STEP = 1.0 / 16.0
"""Of the narrow step. Fitted shifts of GPTQ's codes rarely exceed a quarter."""


def offset(width: int, widest: int, shift: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """What is added to `2 ** (K - k) * code_k` in each row, but for the zero point. Exact in float32."""
    return 2.0 ** (widest - width) * (shift - (2.0**width - 1) / 2) + (2.0**widest - 1) / 2


def shift_values(codes: UInt8[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The shifts that codes stand for, in steps of their width."""
    return (codes.float() - SHIFT_ZERO) * SHIFT_STEP


def shift_codes(shifts: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    """The nearest codes."""
    codes = torch.round(shifts / SHIFT_STEP) + SHIFT_ZERO
    return codes.clamp(0, 2**SHIFT_BITS - 1).to(torch.uint8)
