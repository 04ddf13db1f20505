"""Formats: their text, their rules and their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies
from random_weights import formats

from guidedq.errors import FormatError
from guidedq.quant.formats import AffineFormat, FloatFormat, parse_format


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


@pytest.mark.parametrize("text", ["", "int4", "affine{}", "affine{bits=x}", "affine{bits=4 size=3}", "affine{bits=4"])
def test_a_text_that_is_no_format_is_refused(text):
    with pytest.raises(FormatError):
        parse_format(text)
