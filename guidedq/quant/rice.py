"""Rice codes: the high part of a number in unary, its low bits as they are (Rice and Plaunt 1971).

Codes around 128 are first folded to numbers from 0 on: 0, 1, -1, 2, -2 and so on, the likelier the smaller. The high
parts of all numbers make one string of bits, a one after as many zeros as the number says, so that the places of the
ones tell them all at once: a search that array operations do without a loop.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

ZERO = 128
PARAMETERS = (0, 1, 2, 3, 4)
"""Low bits that are tried."""


def folded(codes: UInt8[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """The numbers from 0 on that stand for codes around 128."""
    values = codes.long() - ZERO
    return torch.where(values > 0, 2 * values - 1, -2 * values)


def unfolding() -> UInt8[Tensor, "257"]:
    """For every folded number the code."""
    numbers = torch.arange(2 * ZERO + 1)
    return (ZERO + torch.where(numbers % 2 == 1, (numbers + 1) // 2, -(numbers // 2))).to(torch.uint8)


def rice_parameter(codes: UInt8[Tensor, "..."]) -> int:
    """The number of low bits that makes the code shortest."""
    return min(PARAMETERS, key=lambda low: rice_bits(codes, low))


def rice_bits(codes: UInt8[Tensor, "..."], low: int) -> int:
    """Bits of the whole code with so many low bits."""
    counts = codes.flatten().bincount(minlength=2 * ZERO)
    lengths = (folded(torch.arange(2 * ZERO, dtype=torch.uint8)) >> low) + 1 + low
    return int((counts * lengths).sum())


def unary(numbers: Int64[Tensor, "n"]) -> UInt8[Tensor, "bits"]:
    """A one after as many zeros as each number says, a bit a byte."""
    ends = (numbers + 1).cumsum(0)
    bits = torch.zeros(int(ends[-1]) if len(ends) else 0, dtype=torch.uint8)
    bits[ends - 1] = 1
    return bits
