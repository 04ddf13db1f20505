"""Curves against what they are defined to be."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from guidedq.artifacts.footprint import Footprint, SiteFootprint
from guidedq.artifacts.guidance import AbstractSequenceGradients, QuadraticTerm, SiteGuidance
from guidedq.ir.graph import Site, Use, UseKind
from guidedq.passes.measure.rounded import RoundedCurves, row_noise
from guidedq.passes.round.gptq import GptqRounder
from guidedq.quant.formats import AffineFormat, FloatFormat

FORMATS = (AffineFormat(bits=2), AffineFormat(bits=4), FloatFormat(), AffineFormat(bits=8))


def ignored(segment) -> None:
    """What is kept does not matter here."""


@dataclass(frozen=True)
class InMemory(AbstractSequenceGradients):
    values: Tensor

    @property
    def sequences(self) -> int:
        return self.values.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:
        return self.values[:, start:stop]


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 32, generator=generator)
    term = QuadraticTerm(
        hessian=(inputs.t() @ inputs / 200)[None],
        row_group=torch.zeros(6, dtype=torch.int64),
        row_weight=torch.rand(6, generator=generator) + 0.5,
        row_weight_error=torch.full((6,), 0.1),
    )
    site = Site(name="w", shape=(6, 32), uses=(Use(operator="w", kind=UseKind.LINEAR),))
    held = SiteFootprint(formats=FORMATS, row_bytes=(1, 2, 3, 4), segment_bytes=(0, 0, 0, 0), site_bytes=0)
    gradients = InMemory(torch.randn(3, 6, 32, generator=generator))
    matrix = torch.randn(6, 32, generator=generator)
    return site, matrix, SiteGuidance(terms=(term,)), gradients, Footprint(base_bytes=0, sites={"w": held})


def test_each_row_and_format_is_measured_after_real_rounding(problem) -> None:
    site, matrix, guidance, gradients, footprint = problem
    rounder, kept = GptqRounder(), []
    curve = RoundedCurves().measure(site, matrix, guidance, gradients, footprint, rounder, seed=1, keep=kept.append)
    assert curve.formats == FORMATS
    assert [segment.format for segment in kept] == [format for format in FORMATS if isinstance(format, AffineFormat)]
    for index, format in enumerate(FORMATS):
        if isinstance(format, FloatFormat):
            values = matrix.half().float()
        else:
            values = next(iter(rounder.round(matrix, guidance, [format], seed=1))).dequantize()
        error = values - matrix
        torch.testing.assert_close(curve.distortion[:, index], guidance.distortion(error))
        expected = torch.einsum("soi,oi->os", gradients.values, error)
        torch.testing.assert_close(curve.projections[:, index], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limits", [{"WEIGHTS_AT_ONCE": 2 * 32 * 7}, {"CODES_AT_ONCE": 2 * 32 * 6}])
def test_in_blocks_of_rows_or_formats_equals_all_at_once(problem, monkeypatch, limits) -> None:
    site, matrix, guidance, gradients, footprint = problem
    whole = RoundedCurves().measure(site, matrix, guidance, gradients, footprint, GptqRounder(), seed=1, keep=ignored)
    for name, value in limits.items():
        monkeypatch.setattr(f"guidedq.passes.measure.rounded.{name}", value)
    parts = RoundedCurves().measure(site, matrix, guidance, gradients, footprint, GptqRounder(), seed=1, keep=ignored)
    torch.testing.assert_close(parts.distortion, whole.distortion)
    torch.testing.assert_close(parts.projections, whole.projections)


def test_without_gradients_there_are_no_projections(problem) -> None:
    site, matrix, guidance, _, footprint = problem
    curve = RoundedCurves().measure(site, matrix, guidance, None, footprint, GptqRounder(), seed=1, keep=ignored)
    assert curve.projections is None


def test_row_noise_is_the_relative_error_of_the_row_weight(problem) -> None:
    guidance = problem[2]
    term = guidance.terms[0]
    torch.testing.assert_close(row_noise(guidance), term.row_weight_error / term.row_weight)
