"""Shorter codes under a pull, against the cost of every code, and the least pull that is enough."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies

from guidedq.calibration.cheaper_codes import ATTEMPTS, LARGEST_PULL, cheaper, smallest_change

LEAST, MOST = 120, 136


@given(strategies.integers(0, 2**31), strategies.floats(0.0, LARGEST_PULL))
def test_each_number_gets_the_cheaper_of_the_codes_beside_it(seed, pull):
    generator = torch.Generator().manual_seed(seed)
    numbers = (128 + 4 * torch.randn(5, 40, generator=generator)).clamp(LEAST, MOST)
    counts = numbers.round().long().flatten().bincount(minlength=256).float()
    bits = -(counts.clamp(min=0.5) / counts.sum()).log2()
    beside = torch.stack((numbers.floor(), numbers.floor() + 1)).clamp(LEAST, MOST)
    costs = (numbers - beside).square() + pull * bits[beside.long()]
    codes = cheaper(numbers, counts, pull, LEAST, MOST)
    own = (numbers - codes).square() + pull * bits[codes.long()]
    torch.testing.assert_close(own, costs.amin(0))


def test_without_a_pull_codes_are_the_nearest():
    numbers = 128 + 4 * torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    counts = torch.rand(256)
    assert torch.equal(cheaper(numbers, counts, 0.0, 0, 255), numbers.round().to(torch.uint8))


@pytest.mark.parametrize("needed", [0.0, 0.001, 0.2, 0.4999, LARGEST_PULL, 0.7])
def test_the_least_pull_that_is_enough_is_found(needed):
    found = smallest_change(lambda pull: pull, lambda pull: pull >= needed)
    if needed > LARGEST_PULL:
        assert found == LARGEST_PULL
    else:
        assert needed <= found <= needed + LARGEST_PULL / 2**ATTEMPTS
