"""Formats: their text, their rules and their bytes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies
from random_weights import formats

from guidedq.errors import FormatError
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat, parse_format


@given(formats)
def test_the_text_of_a_format_reads_back_as_the_format(format):
    assert parse_format(str(format)) == format


@given(strategies.integers(1, 8), strategies.integers(1, 300), strategies.booleans(), strategies.integers(0, 4))
def test_row_bytes_are_the_bits_of_each_part_rounded_up(bits, columns, symmetric, outliers):
    format = AffineFormat(bits=bits, group_size=64, symmetric=symmetric, outliers=outliers)
    groups = len(range(0, columns, 64))
    parts = [columns * bits, groups * 16, 0 if symmetric else groups * bits, outliers * 32]
    assert format.groups(columns) == groups
    assert format.row_bytes(columns) == sum((part + 7) // 8 for part in parts)


def test_a_short_last_group_counts_as_a_group():
    assert AffineFormat(bits=3, group_size=64).groups(172) == 3
    assert AffineFormat(bits=3, group_size=0).groups(172) == 1
    assert AffineFormat(bits=3, group_size=0).columns_per_group(172) == 172
    assert AffineFormat(bits=3, group_size=64).columns_per_group(20) == 20


def test_floats_take_their_width():
    assert [FloatFormat(dtype=dtype).row_bytes(7) for dtype in ("fp16", "bf16", "fp32")] == [14, 14, 28]


@pytest.mark.parametrize(
    "options", [{"bits": 0}, {"bits": 9}, {"bits": 4, "group_size": -1}, {"bits": 4, "outliers": -1}]
)
def test_impossible_formats_are_refused(options):
    with pytest.raises(FormatError, match="found"):
        AffineFormat(**options)


def test_the_text_of_an_entropy_format_is_short():
    assert str(EntropyFormat(bits=3.0)) == "entropy{bits=3}"
    assert str(EntropyFormat(bits=2.25)) == "entropy{bits=2.25}"


@pytest.mark.parametrize("bits", [-1.0, 0.0, 0.25, 6.25, 8.0, 2.1, 3.125, math.inf, math.nan])
def test_entropy_formats_have_half_a_bit_to_six_bits_in_quarters(bits):
    with pytest.raises(FormatError, match="quarters"):
        EntropyFormat(bits=bits)


def test_the_step_halves_with_every_bit_and_gives_gaussian_codes_their_bits():
    steps = [EntropyFormat(bits=quarters / 4).step for quarters in range(2, 25)]
    assert all(math.isclose(coarse, 2 * fine) for coarse, fine in zip(steps, steps[4:], strict=False))
    for bits in (3.0, 4.5, 6.0):
        step = EntropyFormat(bits=bits).step
        shares = torch.special.ndtr((torch.arange(-5000, 5001).double() + 0.5) * step).diff()
        entropy = -(shares[shares > 0] * shares[shares > 0].log2()).sum()
        assert math.isclose(float(entropy), bits, rel_tol=1e-2)


def test_the_estimate_of_an_entropy_row_rises_with_bits_and_columns():
    bits = [EntropyFormat(bits=quarters / 4).row_bytes(1000) for quarters in range(2, 25)]
    columns = [EntropyFormat(bits=2.5).row_bytes(columns) for columns in range(1, 100)]
    assert bits == sorted(set(bits))
    assert columns == sorted(columns)


@pytest.mark.parametrize(
    "text",
    [
        "entropy{}",
        "entropy{bits=x}",
        "entropy{bits=2.1}",
        "entropy{bits=7}",
        "entropy{bits=-1}",
        "entropy{bits=3 group-size=4}",
        "entropy{bits=3",
        "entropy{bits=3.}",
        "entropy{bits=\u0663}",
    ],
)
def test_a_text_that_is_no_entropy_format_is_refused(text):
    with pytest.raises(FormatError):
        parse_format(text)


@pytest.mark.parametrize("text", ["", "int4", "affine{}", "affine{bits=x}", "affine{bits=4 size=3}", "affine{bits=4"])
def test_a_text_that_is_no_format_is_refused(text):
    with pytest.raises(FormatError):
        parse_format(text)
