"""Codes that take fewer bytes: what lies near the edge of two cells goes to the one whose code is shorter.

Rate-distortion optimized quantization (Sullivan 1996): a number `u` between two codes gets the one that costs less in
`(u - code)^2 + pull * bits(code)`, which moves the edge between the cells by half the pull times the difference in
bits. Where bits are spent where they are worth most, a step of a code costs the same loss everywhere, so one pull is
right for a whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

CODES = 256
LARGEST_PULL = 0.1
"""Of a squared step for each bit: beyond, formats with fewer bits are better."""
ATTEMPTS = 7

Weights = TypeVar("Weights")


def code_lengths(counts: Float[Tensor, "codes"]) -> Float[Tensor, "codes"]:
    """Bits of each code, from how often each is there; what is not there counts as half of one."""
    return -(counts.clamp(min=0.5) / counts.sum()).log2()


def length_slopes(counts: Float[Tensor, "codes"]) -> Float[Tensor, "codes"]:
    """How many bits a code grows by when it grows by one: half the difference of those beside it; 0 at the ends."""
    bits = code_lengths(counts)
    slopes = torch.zeros(CODES)
    slopes[1:-1] = (bits[2:] - bits[:-2]) / 2
    return slopes


def cheaper(
    numbers: Float[Tensor, "n in"], counts: Float[Tensor, "codes"], pull: float, least: int, most: int
) -> UInt8[Tensor, "n in"]:
    """The codes of numbers under a pull.

    Args:
        numbers: In codes.
        counts: How often each code is there: a code's bits are the logarithm of its share.
        pull: Squared steps for a bit; at 0 the nearest code is taken.
        least: Code that there may be.
        most: The same.
    """
    bits = code_lengths(counts)
    edges = torch.zeros(CODES)
    edges[:-1] = (0.5 + 0.5 * pull * bits.diff()).clamp_(0.0, 1.0)
    low = numbers.clamp(least, most).floor()
    above = numbers - low > edges[low.long()]
    return (low + above).clamp_(least, most).to(torch.uint8)


def smallest_change(made: Callable[[float], Weights], fits: Callable[[Weights], bool]) -> Weights:
    """What the least pull makes that fits, within `LARGEST_PULL / 2 ** ATTEMPTS`; that of the largest if none does."""
    found = made(0.0)
    if fits(found):
        return found
    found = made(LARGEST_PULL)
    if not fits(found):
        return found
    too_small, enough = 0.0, LARGEST_PULL
    for _ in range(ATTEMPTS):
        pull = (too_small + enough) / 2
        attempt = made(pull)
        if fits(attempt):
            found, enough = attempt, pull
        else:
            too_small = pull
    return found
