"""Rice codes: folding, lengths, and what an array search finds in the unary string."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies

from guidedq.quant.rice import PARAMETERS, folded, rice_bits, rice_parameter, unary, unfolding

codes_lists = strategies.lists(strategies.integers(0, 255), min_size=1, max_size=60)


def codes_of(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_small_codes_fold_to_small_numbers() -> None:
    assert folded(codes_of([128, 129, 127, 130, 126])).tolist() == [0, 1, 2, 3, 4]


@given(codes_lists)
def test_unfolding_undoes_folding(values: list[int]) -> None:
    assert torch.equal(unfolding()[folded(codes_of(values))], codes_of(values))


@given(codes_lists, strategies.sampled_from(PARAMETERS))
def test_the_ones_say_the_high_parts_and_the_length_is_as_counted(values: list[int], low: int) -> None:
    codes = codes_of(values)
    high = folded(codes) >> low
    bits = unary(high)
    ones = bits.nonzero()[:, 0]
    assert torch.equal(ones.diff(prepend=torch.tensor([-1])) - 1, high)
    assert len(bits) + low * len(codes) == rice_bits(codes, low)


def test_the_parameter_is_the_best_of_those_tried() -> None:
    for spread, expected in ((0.4, 0), (2.5, 1), (5.0, 2), (30.0, 4)):
        values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * spread
        codes = (values.round() + 128).clamp(1, 255).to(torch.uint8)
        assert rice_parameter(codes) == expected
        assert rice_bits(codes, expected) == min(rice_bits(codes, low) for low in PARAMETERS)


@pytest.mark.parametrize("bits", [1.5, 2.0, 3.0, 4.0, 5.0])
def test_it_is_near_the_entropy_of_gaussian_codes(bits: float) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)) * 2**bits / 4.1327
    codes = (values.round() + 128).clamp(1, 255).to(torch.uint8)
    shares = codes.bincount().double() / len(codes)
    entropy = -float((shares * shares.clamp(min=1e-30).log2()).sum())
    assert entropy <= rice_bits(codes, rice_parameter(codes)) / len(codes) < entropy + 0.22
