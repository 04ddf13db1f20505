"""Curves from real rounding: every candidate format is rounded, and its error weighed by the guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.guidance import AbstractSequenceGradients, SiteGuidance
from guidedq.artifacts.quantized_weight import (
    AffineSegment,
    EntropySegment,
    RoundedSegment,
    Segment,
    float_segment,
)
from guidedq.ir.graph import Site
from guidedq.quant.entropy import stream_bytes
from guidedq.quant.formats import AffineFormat, EntropyFormat, FloatFormat
from guidedq.stages import AbstractMeasurer, AbstractRounder

CODES_AT_ONCE = 64_000_000
"""Codes of all formats held at once, a byte each: small sites are rounded in all formats by one sweep."""
CODES_SAMPLED = 1 << 18
"""Enough for a mean within a few thousandths."""
WEIGHTS_AT_ONCE = 1 << 22
"""Errors and gradients unpacked at once: 16 MB of float32."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedCurves(AbstractMeasurer):
    """Round each row in every format with the rounder that will be used, and measure what is lost."""

    def measure(
        self,
        site: Site,
        matrix: Float[Tensor, "out in"],
        guidance: SiteGuidance,
        gradients: AbstractSequenceGradients | None,
        footprint: Footprint,
        rounder: AbstractRounder,
        *,
        seed: int,
        keep: Callable[[RoundedSegment], None],
    ) -> SiteCurve:
        """Distortion and projections of every row under every format."""
        formats = footprint.sites[site.name].formats
        distortion = torch.empty(site.rows, len(formats))
        projections = None if gradients is None else torch.empty(site.rows, len(formats), gradients.sequences)
        entropy_bytes = torch.zeros(len(formats))
        every = torch.arange(site.rows)
        at_once = max(1, CODES_AT_ONCE // site.parameters)
        for start in range(0, len(formats), at_once):
            part = formats[start : start + at_once]
            to_round = [format for format in part if isinstance(format, AffineFormat | EntropyFormat)]
            rounded = rounder.round(matrix, guidance, to_round, seed=seed)
            stored = [
                float_segment(matrix, format, every) if isinstance(format, FloatFormat) else next(rounded)
                for format in part
            ]
            for number, segment in enumerate(stored, start):
                if isinstance(segment, AffineSegment | EntropySegment):
                    keep(segment)
                if isinstance(segment, EntropySegment):
                    entropy_bytes[number] = mean_row_bytes(segment)
            _measure(matrix, stored, guidance, gradients, start, distortion, projections)
        return SiteCurve(
            name=site.name,
            formats=formats,
            distortion=distortion,
            row_noise=row_noise(guidance),
            entropy_bytes=entropy_bytes,
            projections=projections,
        )

    def weigh(
        self,
        name: str,
        matrix: Float[Tensor, "out in"],
        guidance: SiteGuidance,
        gradients: AbstractSequenceGradients | None,
        segments: Sequence[Segment],
    ) -> SiteCurve:
        """Distortion and projections of every row of segments that are rounded already."""
        distortion = torch.empty(len(matrix), len(segments))
        projections = None if gradients is None else torch.empty(*distortion.shape, gradients.sequences)
        _measure(matrix, segments, guidance, gradients, 0, distortion, projections)
        return SiteCurve(
            name=name,
            formats=tuple(segment.format for segment in segments),
            distortion=distortion,
            row_noise=row_noise(guidance),
            entropy_bytes=torch.zeros(len(segments)),
            projections=projections,
        )


def mean_row_bytes(segment: EntropySegment) -> float:
    """What the codes of a row take on average, were all rows stored so; from rows spread over the segment."""
    chosen = segment.codes[:: max(1, segment.codes.numel() // CODES_SAMPLED)]
    return stream_bytes(chosen, segment.format, segment.column_exponents, thorough=False) / len(chosen)


def _measure(
    matrix: Float[Tensor, "out in"],
    stored: Sequence[Segment],
    guidance: SiteGuidance,
    gradients: AbstractSequenceGradients | None,
    first: int,
    distortion: Float[Tensor, "out format"],
    projections: Float[Tensor, "out format sequence"] | None,
) -> None:
    """Fill in what some formats, from number `first` on, cost: block by block of rows, all formats at once."""
    rows, columns = matrix.shape
    kept = 0 if gradients is None else gradients.sequences
    step = max(1, WEIGHTS_AT_ONCE // (columns * (len(stored) + kept)))
    mine = slice(first, first + len(stored))
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        errors = torch.stack([segment.part(block).dequantize() - matrix[block] for segment in stored], dim=1)
        index = torch.arange(block.start, block.stop).repeat_interleave(len(stored))
        distortion[block, mine] = guidance.distortion(errors.flatten(0, 1), index).unflatten(0, (-1, len(stored)))
        if gradients is not None and projections is not None:
            projections[block, mine] = project(errors, gradients.rows(block.start, block.stop))


def project(
    errors: Float[Tensor, "out format in"], gradients: Float[Tensor, "sequence out in"]
) -> Float[Tensor, "out format sequence"]:
    """First-order change of each sequence's loss by each row's error: `sum over tokens of g . (error x)`."""
    return torch.bmm(errors, gradients.permute(1, 2, 0))


def row_noise(guidance: SiteGuidance) -> Float[Tensor, "out"]:
    """Relative standard error of each row's distortion, from that of the row weights of all terms."""
    variance = torch.zeros_like(guidance.terms[0].row_weight)
    total = torch.zeros_like(variance)
    for term in guidance.terms:
        scale = term.hessian.diagonal(dim1=1, dim2=2).mean(1)[term.row_group]
        variance += (scale * term.row_weight_error).square()
        total += scale * term.row_weight
    return variance.sqrt() / total.clamp(min=torch.finfo(torch.float32).tiny)
