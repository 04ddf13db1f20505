"""Each range against a slow obvious twin on the values themselves."""

from __future__ import annotations

import math

import pytest
import torch
from histograms import heavy_tailed, histogram_of

from guidedq.artifacts.activations import ActivationHistogram
from guidedq.errors import RecipeError
from guidedq.passes.range.candidates import SHARES
from guidedq.passes.range.entropy import EntropyRange, divergence
from guidedq.passes.range.guided import GuidedRange
from guidedq.passes.range.min_max import MinMaxRange
from guidedq.passes.range.percentile import PercentileRange
from guidedq.quant.integer import integer_grid, round_to_grid

BIN_ERROR = 0.02
"""Relative: costs by bins of a 32nd of a step differ from those of the values by this much at most."""


def test_min_max_is_the_range_of_the_values():
    values = heavy_tailed(0)
    assert MinMaxRange().grid(histogram_of(values)) == integer_grid(float(values.min()), float(values.max()))


def test_percentile_is_the_quantile_of_the_values_to_a_bin():
    values = heavy_tailed(1)
    grid = PercentileRange(percentile=99.0).grid(histogram_of(values))
    bin_width = float(values.max() - values.min()) / len(histogram_of(values).counts)
    expected = integer_grid(float(values.quantile(0.005)), float(values.quantile(0.995)))
    assert abs(grid.scale * 255 - expected.scale * 255) < 4 * bin_width
    assert PercentileRange(percentile=100.0).grid(histogram_of(values)) == MinMaxRange().grid(histogram_of(values))


@pytest.mark.parametrize("percentile", [50.0, 101.0, -3.0])
def test_an_impossible_percentile_is_refused(percentile):
    with pytest.raises(RecipeError, match="more than 50"):
        PercentileRange(percentile=percentile)


def test_guided_is_the_best_of_all_pairs_of_ends_by_the_values_themselves():
    values = heavy_tailed(2).double()
    squares = torch.rand(len(values), generator=torch.Generator().manual_seed(3)).double()
    histogram = histogram_of(values, squares)

    def cost(low: float, high: float) -> float:
        return 0.5 * float((squares * (round_to_grid(values, integer_grid(low, high)) - values).square()).sum())

    best = min(cost(a * histogram.low, b * histogram.high) for a in SHARES[::2] for b in SHARES[::2])
    grid = GuidedRange().grid(histogram)
    found = 0.5 * float((squares * (round_to_grid(values, grid) - values).square()).sum())
    assert found <= best * (1 + BIN_ERROR)
    assert histogram.cost(grid) == pytest.approx(found, rel=BIN_ERROR)
    assert found < 0.9 * cost(histogram.low, histogram.high)


def test_guided_clips_large_values_to_which_the_loss_does_not_answer_and_keeps_those_to_which_it_does():
    values = heavy_tailed(4).abs()
    deaf, hearing = (values < 5).float(), 1 + 1e6 * (values > 5).float()
    narrow, wide = (GuidedRange().grid(histogram_of(values, squares)) for squares in (deaf, hearing))
    assert narrow.high < 6 < 0.9 * float(values.max()) < wide.high


def test_guided_without_gradients_minimises_the_plain_error():
    histogram = histogram_of(heavy_tailed(5))
    zeros = ActivationHistogram(
        low=histogram.low, high=histogram.high, counts=histogram.counts, sensitivity=torch.zeros_like(histogram.counts)
    )
    assert GuidedRange().grid(zeros) == GuidedRange().grid(histogram)


def test_entropy_is_the_divergence_of_a_bin_by_bin_count():
    histogram = histogram_of(heavy_tailed(6).abs()[:500])
    for share in (1.0, 0.3, 0.1):
        grid = integer_grid(0.0, share * histogram.high)
        assert divergence(histogram, grid) == pytest.approx(_slow_divergence(histogram, grid), rel=1e-6)
    assert EntropyRange().grid(histogram).high < histogram.high


def test_entropy_does_not_clip_what_a_relu_leaves_for_the_zeros_in_it():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(8)).relu()
    assert EntropyRange().grid(histogram_of(values)).high > 0.6 * float(values.max())


def _slow_divergence(histogram, grid):
    bins = list(zip(histogram.centers.tolist(), histogram.counts.tolist(), strict=True))
    inside = [n for n, (x, _) in enumerate(bins) if grid.low - grid.scale / 2 <= x <= grid.high + grid.scale / 2]
    p = {n: bins[n][1] for n in inside}
    p[inside[0]] += sum(count for n, (_, count) in enumerate(bins) if n < inside[0])
    p[inside[-1]] += sum(count for n, (_, count) in enumerate(bins) if n > inside[-1])
    by_code = {}
    for n in inside:
        by_code.setdefault(min(255, max(0, round(bins[n][0] / grid.scale) + grid.zero_point)), []).append(n)
    q = {}
    for members in by_code.values():
        filled = [n for n in members if bins[n][1] > 0]
        for n in filled:
            q[n] = sum(bins[m][1] for m in members) / len(filled)
    total_p, total_q = sum(p.values()), sum(bins[n][1] for n in inside)
    tiny = torch.finfo(torch.float64).tiny
    return sum(
        (count / total_p) * math.log((count / total_p) / (max(q.get(n, 0.0), tiny) / total_q))
        for n, count in p.items()
        if count > 0
    )
