"""Patched codes: nothing is lost, few formats hold all rows, and they are near the smallest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies
from torch import Tensor

from guidedq.errors import FormatError
from guidedq.quant.byte_counts import packed_width
from guidedq.quant.patched import (
    PATCH_PRICE,
    PatchedFormat,
    choose_formats,
    count_misfits,
    narrow,
    widen,
)


def random_codes(rows: int, columns: int, seed: int) -> Tensor:
    """Codes of rows that differ in their spread, some with heavy tails."""
    generator = torch.Generator().manual_seed(seed)
    spread = 40 ** torch.rand(rows, 1, generator=generator)
    tails = 1 + 5 * (torch.rand(rows, columns, generator=generator) < 0.01)
    codes = (spread * tails * torch.randn(rows, columns, generator=generator)).round()
    return codes.clamp(-128, 127).add(128).to(torch.uint8)


sizes = {"rows": strategies.integers(1, 40), "columns": strategies.integers(1, 400)}


@given(*sizes.values(), strategies.integers(0, 2**31), strategies.integers(1, 8))
def test_every_row_fits_its_format_and_comes_back(rows, columns, seed, most):
    codes = random_codes(rows, columns, seed)
    formats, own = choose_formats(count_misfits(codes), columns, most)
    assert 1 <= len(formats) <= most
    assert set(own.tolist()) == set(range(len(formats)))
    for number, format in enumerate(formats):
        mine = codes[own == number]
        narrowed, at, patches = narrow(mine, format)
        assert int(narrowed.max()) < 2**format.bits
        assert at.shape == patches.shape == (len(mine), format.patches)
        assert torch.equal(widen(narrowed, at, patches, format.bits), mine)


@pytest.mark.parametrize(("at", "patches"), [([0, 1], [121, 0]), ([1, 0], [-121, 0]), ([1, 1], [3, 4])])
def test_patches_that_lead_nowhere_are_refused(at, patches):
    codes = torch.tensor([[15, 0, 7]], dtype=torch.uint8)
    places, missing = torch.tensor([at]), torch.tensor([patches], dtype=torch.int8)
    with pytest.raises(FormatError, match="patches that lead out of a byte, or meet"):
        widen(codes, places, missing, 4)


@given(*sizes.values(), strategies.integers(0, 2**31))
def test_misfits_are_what_a_width_cannot_hold(rows, columns, seed):
    codes = random_codes(rows, columns, seed)
    signed = codes.int() - 128
    for bits, found in enumerate(count_misfits(codes).t(), start=1):
        outside = (signed < -(2 ** (bits - 1))) | (signed >= 2 ** (bits - 1))
        assert torch.equal(found, outside.sum(1).int())


def test_eight_formats_are_within_a_tenth_of_a_format_for_each_row():
    codes = random_codes(2000, 576, 0)
    formats, own = choose_formats(count_misfits(codes), 576, 8)
    prices = torch.tensor([packed_width(576, format.bits) + PATCH_PRICE * format.patches for format in formats])
    widths = torch.tensor([packed_width(576, bits) for bits in range(1, 9)])
    least = (widths + PATCH_PRICE * count_misfits(codes)).amin(1)
    assert float(prices[own].sum()) < 1.1 * float(least.sum())


@pytest.mark.parametrize("most", [1, 2, 8])
def test_one_odd_row_among_very_many_has_its_format(most):
    misfits = torch.zeros(200_000, 8, dtype=torch.int32)
    misfits[:, :2] = 5000
    misfits[77, :7] = 5000
    formats, own = choose_formats(misfits, 5376, most)
    held = misfits[torch.arange(len(own)), torch.tensor([format.bits - 1 for format in formats])[own]]
    assert bool((held <= torch.tensor([format.patches for format in formats])[own]).all())


def test_a_row_with_too_many_misfits_is_refused():
    codes = torch.full((2, 50), 128, dtype=torch.uint8)
    codes[1, :3] = 200
    narrow(codes, PatchedFormat(bits=4, patches=3))
    with pytest.raises(FormatError, match="needs 3 patches"):
        narrow(codes, PatchedFormat(bits=4, patches=2))
    for bits, patches in ((0, 0), (9, 0), (4, -1), (4, 1000)):
        with pytest.raises(FormatError, match="no patched format"):
            PatchedFormat(bits=bits, patches=patches)
