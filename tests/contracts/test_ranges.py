"""What every range promises. A new one is one line in `RANGES`."""

from __future__ import annotations

import pytest
import torch
from histograms import heavy_tailed, histogram_of

from guidedq.passes.range.entropy import EntropyRange
from guidedq.passes.range.guided import GuidedRange
from guidedq.passes.range.min_max import MinMaxRange
from guidedq.passes.range.percentile import PercentileRange
from guidedq.quant.integer import MIDDLE
from guidedq.stages import AbstractRange

RANGES: dict[str, type[AbstractRange]] = {
    "min-max": MinMaxRange,
    "percentile": PercentileRange,
    "entropy": EntropyRange,
    "guided": GuidedRange,
}
every_range = pytest.mark.parametrize("rule", RANGES.values(), ids=RANGES.keys())


@every_range
def test_a_grid_lies_within_what_was_seen(rule):
    for values in (heavy_tailed(0), heavy_tailed(1).abs(), -heavy_tailed(2).abs()):
        histogram, grid = histogram_of(values), rule().grid(histogram_of(values))
        assert grid.low >= histogram.low - grid.scale
        assert grid.high <= histogram.high + grid.scale


@every_range
def test_what_is_never_negative_wastes_no_code_on_negative_numbers(rule):
    assert rule().grid(histogram_of(heavy_tailed(3).relu())).zero_point == 0


@every_range
def test_a_symmetric_grid_is_symmetric(rule):
    assert rule(symmetric=True).grid(histogram_of(heavy_tailed(4) + 0.5)).zero_point == MIDDLE


@every_range
def test_nothing_but_zeros_has_a_grid(rule):
    grid = rule().grid(histogram_of(torch.zeros(100)))
    assert grid.scale > 0


@every_range
def test_all_values_at_two_places_are_both_held(rule):
    grid = rule().grid(histogram_of(torch.tensor([-1.0, 1.0]).repeat(500)))
    assert grid.low <= -0.98
    assert grid.high >= 0.98
