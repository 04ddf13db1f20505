"""Nested formats: their text, their bytes, what they stand for, and blobs that are damaged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies
from nested_weights import nested_of, random_nested

from guidedq.artifacts.packed_weight import pack_weight, unpack_weight
from guidedq.errors import ArtifactError, FormatError
from guidedq.quant.formats import parse_format
from guidedq.quant.nested import NestedFormat, parse_widths
from guidedq.quant.packing import blob_bytes

widths = strategies.lists(strategies.integers(2, 8), min_size=2, max_size=5, unique=True).map(sorted)


@given(widths, strategies.sampled_from((0, 32, 64, 96)), strategies.data())
def test_the_text_of_a_format_gives_the_format_back(given_widths, group_size, data):
    precision = data.draw(strategies.sampled_from(given_widths))
    format = NestedFormat(widths=tuple(given_widths), group_size=group_size, precision=precision)
    assert parse_format(str(format)) == format


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "two or more"),
        ("3,3", "rising"),
        ("4,3", "rising"),
        ("1,3", "2 to 8"),
        ("3,9", "2 to 8"),
        ("3,,4", "whole numbers"),
        ("3.5,4", "whole numbers"),
    ],
)
def test_widths_that_cannot_be_nested_are_refused_with_a_reason(text, message):
    with pytest.raises(FormatError, match=message):
        parse_widths(text)


def test_group_sizes_that_cut_words_and_precisions_that_are_not_held_are_refused():
    with pytest.raises(FormatError, match="multiples of 32"):
        NestedFormat(widths=(3, 4), group_size=48, precision=4)
    with pytest.raises(FormatError, match="no precision 5"):
        NestedFormat(widths=(3, 4), precision=5)


@given(widths, strategies.integers(1, 20), strategies.integers(1, 150), strategies.sampled_from((0, 32, 64)))
def test_a_blob_gives_the_weight_back_at_every_width_and_has_the_counted_bytes(given_widths, rows, columns, group_size):
    weight = random_nested((rows, columns), given_widths, group_size)
    blob = pack_weight(weight)
    read, was = nested_of(unpack_weight(blob, "w", weight.shape)), nested_of(weight)
    assert len(blob) == blob_bytes(columns, [(was.format, rows)])
    for width in given_widths:
        assert torch.equal(read.at(width).dequantize(), was.at(width).dequantize())


def test_a_width_stands_for_what_the_formula_says():
    segment = nested_of(random_nested((3, 70), (2, 5), 64))
    for level, width in enumerate((2, 5)):
        values = segment.at(width).dequantize()
        for row in range(3):
            for column in range(70):
                code = int(segment.codes[row, column]) >> 5 - width
                scale, zero = (
                    float(part[row, column // 64]) for part in (segment.grid.scales, segment.grid.zero_points)
                )
                ratio = float(segment.ratios[0]) if level == 0 else 1.0
                shift = (int(segment.shifts[0, row]) - 4) / 16 if level == 0 else 0.0
                expected = scale * ratio * (2 ** (5 - width) * (code - (2**width - 1) / 2 + shift) + 31 / 2 - zero)
                assert float(values[row, column]) == pytest.approx(expected, rel=1e-6)


def test_some_rows_are_read_as_in_the_whole():
    weight = random_nested((9, 40), (3, 4, 5), 32)
    part = nested_of(weight).at(4)
    assert torch.equal(part.part(torch.tensor([7, 2])).dequantize(), part.dequantize()[[7, 2]])


def test_damaged_blobs_are_refused():
    weight = random_nested((8, 64))
    blob = pack_weight(weight)
    with pytest.raises(ArtifactError, match="bytes"):
        unpack_weight(blob[:-1], "w", weight.shape)
    with pytest.raises(ArtifactError, match="rows"):
        unpack_weight(blob, "w", (9, 64))
    for place, value in ((5, 0), (5, 1), (3, 7)):  # no widths, one width, a group size that cuts words
        other = blob.clone()
        other[place] = value
        with pytest.raises(ArtifactError, match="known format"):
            unpack_weight(other, "w", weight.shape)
    scales = blob.clone()
    scales[-12:-8] = 255  # the ratios: not numbers
    with pytest.raises(ArtifactError, match="damaged"):
        unpack_weight(scales, "w", weight.shape)


def test_three_widths_cost_less_than_a_tenth_of_a_bit_over_the_widest_alone():
    format, columns, rows = NestedFormat(widths=(3, 4, 5), precision=5), 64, 256
    nested = rows * format.row_bytes(columns) + format.refit_bytes(rows)
    alone = rows * parse_format("affine{bits=5 group-size=64}").row_bytes(columns)
    assert 0 < 8 * (nested - alone) / (rows * columns) < 0.1
