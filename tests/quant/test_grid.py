"""Grids against number-by-number twins."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, strategies
from random_weights import affine_formats, random_weight

from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    Grid,
    dequantize,
    expand_groups,
    grid_from_range,
    quantize_nearest,
    scale_of_range,
)


def single(value: float) -> float:
    """Rounded to float32."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


@given(affine_formats, strategies.integers(1, 5), strategies.integers(4, 70), strategies.integers(0, 2**31))
def test_dequantize_is_scale_times_code_minus_zero_point_rounded_once(format, rows, columns, seed):
    (segment,) = random_weight("w", (rows, columns), [format], seed).segments
    values = dequantize(segment.codes, segment.grid, format)
    width = format.columns_per_group(columns)
    for row in range(rows):
        for column in range(columns):
            scale = float(segment.grid.scales[row, column // width])
            steps = int(segment.codes[row, column]) - int(segment.grid.zero_points[row, column // width])
            assert float(values[row, column]) == single(scale * steps)


@given(affine_formats, strategies.integers(1, 5), strategies.integers(4, 70), strategies.integers(0, 2**31))
def test_the_nearest_code_of_a_grid_value_is_its_code(format, rows, columns, seed):
    (segment,) = random_weight("w", (rows, columns), [format], seed).segments
    values = dequantize(segment.codes, segment.grid, format)
    assert torch.equal(quantize_nearest(values, segment.grid, format), segment.codes)


@given(affine_formats, strategies.integers(0, 2**31))
def test_no_other_code_is_nearer(format, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 12, generator=generator)
    scales = torch.rand(2, format.groups(12), generator=generator).half() + 0.01
    zero_points = torch.full(scales.shape, 2 ** (format.bits - 1), dtype=torch.uint8)
    grid = Grid(scales=scales, zero_points=zero_points)
    chosen = (dequantize(quantize_nearest(weight, grid, format), grid, format) - weight).abs()
    for code in range(2**format.bits):
        other = (dequantize(torch.full((2, 12), code, dtype=torch.uint8), grid, format) - weight).abs()
        assert bool((chosen <= other + 1e-5).all())


@given(affine_formats.filter(lambda format: format.bits > 1), strategies.integers(0, 2**31))
def test_a_grid_from_a_range_clips_nothing_by_more_than_half_a_step(format, seed):
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.randn(4, 3, generator=generator).sort(0).values[[0, 3]]
    grid = grid_from_range(low[None], high[None], format)
    one_column_groups = AffineFormat(bits=format.bits, group_size=1, symmetric=format.symmetric)
    for bound in (low, high):
        held = dequantize(quantize_nearest(bound[None], grid, one_column_groups), grid, one_column_groups)
        steps = 1.0 if format.symmetric else 0.51
        slack = 2**format.bits * 2.0**-11  # the scale is rounded to fp16
        assert bool(((held - bound).abs() <= (steps + slack) * grid.scales.float()).all())


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_is_always_on_the_grid_and_an_empty_range_takes_the_smallest_scale(symmetric):
    format = AffineFormat(bits=3, group_size=0, symmetric=symmetric)
    grid = grid_from_range(torch.tensor([[0.0], [1.0], [-3.0]]), torch.tensor([[0.0], [2.0], [-1.0]]), format)
    assert float(grid.scales[0, 0]) == SMALLEST_SCALE
    zeros = torch.zeros(3, 5)
    assert torch.equal(dequantize(quantize_nearest(zeros, grid, format), grid, format), zeros)


def test_scales_stay_within_what_fp16_holds():
    format = AffineFormat(bits=2, group_size=0)
    grid = grid_from_range(torch.tensor([[0.0], [0.0]]), torch.tensor([[1e-9], [1e9]]), format)
    assert grid.scales.flatten().tolist() == [SMALLEST_SCALE, LARGEST_SCALE]
    assert float(scale_of_range(torch.tensor(-1.0), torch.tensor(2.0), format)) == 1.0


def test_a_short_last_group_has_a_scale_of_its_own():
    format = AffineFormat(bits=4, group_size=3)
    assert expand_groups(torch.tensor([[1.0, 2.0]]), 5, format).tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0]]


def test_ties_go_to_the_even_code():
    format = AffineFormat(bits=4, group_size=0)
    grid = Grid(scales=torch.ones(1, 1).half(), zero_points=torch.zeros(1, 1, dtype=torch.uint8))
    assert quantize_nearest(torch.tensor([[0.5, 1.5, 2.5, 3.5]]), grid, format).tolist() == [[0, 2, 2, 4]]
