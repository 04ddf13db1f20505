"""Scales in one byte: what they stand for, and that the nearest is found."""

from __future__ import annotations

import torch
from hypothesis import given, strategies

from guidedq.quant.exponents import LARGEST_EXPONENT, ONE, PARTS, ZERO_OCTAVE, nearest_exponents, scales_of

EVERY = torch.arange(LARGEST_EXPONENT + 1, dtype=torch.uint8)


def test_scales_rise_by_an_eighth_of_an_octave() -> None:
    ratios = scales_of(EVERY)[1:].double() / scales_of(EVERY)[:-1].double()
    torch.testing.assert_close(ratios, torch.full_like(ratios, 2 ** (1 / PARTS)), rtol=1e-6, atol=0)


def test_every_eighth_scale_is_an_exact_power_of_two() -> None:
    powers = torch.arange(len(EVERY) // PARTS) - ZERO_OCTAVE
    assert torch.equal(scales_of(EVERY[::PARTS]), torch.exp2(powers.double()).float())
    assert scales_of(torch.tensor([ONE], dtype=torch.uint8)).tolist() == [1.0]


def test_the_same_fractions_serve_every_octave() -> None:
    octaves = scales_of(EVERY).view(-1, PARTS)
    assert torch.equal(octaves / octaves[:, :1], octaves[:1].expand_as(octaves) / octaves[0, 0])


def test_the_nearest_byte_of_a_scale_is_the_byte_itself() -> None:
    assert torch.equal(nearest_exponents(scales_of(EVERY)), EVERY)


@given(strategies.floats(2.0**-24, 220.0, width=32))
def test_no_other_byte_is_nearer_in_proportion(scale: float) -> None:
    given_scale = torch.tensor([scale])
    distances = (scales_of(EVERY).double() / given_scale.double()).log2().abs()
    found = int(nearest_exponents(given_scale))
    assert float(distances[found]) <= float(distances.min()) + 1e-5
    assert float(distances[found]) <= 0.5 / PARTS + 1e-5


def test_what_lies_beyond_the_range_gets_its_end() -> None:
    beyond = torch.tensor([0.0, 1e-45, 1e-30, 2.0**-25, 400.0, 1e30, torch.inf])
    assert nearest_exponents(beyond).tolist() == [0, 0, 0, 0, 255, 255, 255]
