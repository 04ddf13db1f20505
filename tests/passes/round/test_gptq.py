"""GPTQ against its definition, and what it must gain."""

from __future__ import annotations

import itertools

import pytest
import torch

from guidedq.artifacts.guidance import QuadraticTerm, SiteGuidance
from guidedq.artifacts.quantized_weight import AffineSegment
from guidedq.errors import CalibrationError
from guidedq.passes.round.gptq import GptqRounder
from guidedq.passes.round.metric import RowMetric, feedback, row_metrics
from guidedq.passes.round.nearest import NearestRounder
from guidedq.passes.round.sweep import BLOCK_COLUMNS
from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid, quantize_nearest


def moments(columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return inputs.t() @ inputs / len(inputs)


def guidance_of(hessian: torch.Tensor, rows: int) -> SiteGuidance:
    term = QuadraticTerm(
        hessian=hessian[None],
        row_group=torch.zeros(rows, dtype=torch.int64),
        row_weight=torch.ones(rows),
        row_weight_error=torch.zeros(rows),
    )
    return SiteGuidance(terms=(term,))


def slow_gptq(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, format: AffineFormat) -> torch.Tensor:
    """Optimal brain surgeon, literally: after each column the inverse of the remaining Hessian is formed anew."""
    work, columns = weight.double().clone(), weight.shape[1]
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    for column in range(columns):
        inverse = torch.linalg.inv(hessian[column:, column:].double())
        codes[:, column] = quantize_nearest(work[:, column : column + 1].float(), grid, format)[:, 0]
        value = grid.scales.double()[:, 0] * (codes[:, column].double() - grid.zero_points.double()[:, 0])
        error = (work[:, column] - value) / inverse[0, 0]
        work[:, column:] -= torch.outer(error, inverse[0])
    return codes


def test_codes_equal_the_literal_update_with_explicit_inverses() -> None:
    columns = BLOCK_COLUMNS + 13
    format = AffineFormat(bits=3, group_size=0)
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(4))
    hessian = moments(columns)
    damping = 0.01
    (segment,) = GptqRounder(damping_fraction=damping).round(weight, guidance_of(hessian, 5), [format], seed=0)
    assert isinstance(segment, AffineSegment)
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    expected = slow_gptq(weight, damped, segment.grid, format)
    assert int((segment.codes != expected).sum()) <= 2  # ties broken by the last bit of float32


def test_feedback_is_the_ldl_factorization_of_the_damped_hessian() -> None:
    hessian = moments(20)
    metric = RowMetric(rows=torch.arange(2), hessian=hessian, dead=torch.zeros(20, dtype=torch.bool))
    found = feedback(metric, 0.05)
    damped = hessian + 0.05 * hessian.diagonal().mean() * torch.eye(20)
    unit = torch.linalg.inv(found.spread.double())
    rebuilt = unit @ torch.diag(found.pivots.double()) @ unit.t()
    torch.testing.assert_close(rebuilt.float(), damped, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.spread.tril(-1), torch.zeros(20, 20))


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    metric = RowMetric(
        rows=torch.arange(1), hessian=torch.full((3, 3), torch.nan), dead=torch.zeros(3, dtype=torch.bool)
    )
    with pytest.raises(CalibrationError, match="not positive definite"):
        feedback(metric, 0.01)


def test_it_loses_less_than_nearest_rounding_in_the_guided_metric() -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    given = guidance_of(moments(128), 16)
    for bits in (2, 3, 4):
        formats = [AffineFormat(bits=bits, group_size=32)]
        (mine,) = GptqRounder().round(weight, given, formats, seed=0)
        (other,) = NearestRounder().round(weight, given, formats, seed=0)
        mine_lost = float(given.distortion(mine.dequantize() - weight).sum())
        other_lost = float(given.distortion(other.dequantize() - weight).sum())
        assert mine_lost < 0.8 * other_lost


def test_it_comes_close_to_the_best_of_all_codes_on_a_tiny_problem() -> None:
    format = AffineFormat(bits=2, group_size=0)
    weight = torch.randn(1, 5, generator=torch.Generator().manual_seed(9))
    hessian = moments(5, seed=3)
    given = guidance_of(hessian, 1)
    (segment,) = GptqRounder(damping_fraction=1e-4).round(weight, given, [format], seed=0)
    every = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.float32)
    values = (every - segment.grid.zero_points.float()) * segment.grid.scales.float()
    error = values - weight
    best = float((0.5 * (error @ hessian) * error).sum(1).min())
    assert best <= float(given.distortion(segment.dequantize() - weight)) <= 1.6 * best


def test_outliers_keep_their_weights_and_shrink_the_error_of_a_row_with_one_huge_weight() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)) * 0.01
    weight[:, 17] = 3.0
    given = guidance_of(moments(64), 4)
    plain, kept = GptqRounder().round(weight, given, [AffineFormat(bits=3), AffineFormat(bits=3, outliers=1)], seed=0)
    assert isinstance(kept, AffineSegment)
    assert kept.outlier_columns[:, 0].tolist() == [17] * 4
    assert float(given.distortion(kept.dequantize() - weight).sum()) < 0.2 * float(
        given.distortion(plain.dequantize() - weight).sum()
    )


def test_a_tied_weight_is_rounded_in_clusters_of_like_balance() -> None:
    first = QuadraticTerm(
        hessian=torch.eye(6)[None],
        row_group=torch.zeros(8, dtype=torch.int64),
        row_weight=torch.tensor([9.0, 9, 9, 9, 0.1, 0.1, 0.1, 0.1]),
        row_weight_error=torch.zeros(8),
    )
    second = QuadraticTerm(
        hessian=moments(6)[None],
        row_group=torch.zeros(8, dtype=torch.int64),
        row_weight=torch.ones(8),
        row_weight_error=torch.zeros(8),
    )
    metrics = row_metrics(SiteGuidance(terms=(first, second)))
    assert sorted(row for metric in metrics for row in metric.rows.tolist()) == list(range(8))
    for metric in metrics:
        weights = first.row_weight[metric.rows]
        expected = weights.mean() * first.hessian[0] + second.hessian[0]
        torch.testing.assert_close(metric.hessian, expected)
