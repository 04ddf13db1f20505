"""Curves from real rounding: every candidate format is rounded, and its error weighed by the guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.guidance import AbstractSequenceGradients, SiteGuidance
from guidedq.artifacts.quantized_weight import FLOAT_DTYPES
from guidedq.ir.graph import Site
from guidedq.quant.formats import AffineFormat, FloatFormat
from guidedq.stages import AbstractMeasurer, AbstractRounder

GRADIENT_WEIGHTS_AT_ONCE = 16_000_000
"""Gradient values unpacked at once: 64 MB of float32."""
CODES_AT_ONCE = 64_000_000
"""Codes of all formats held at once, a byte each: small sites are rounded in all formats by one sweep."""


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
    ) -> SiteCurve:
        """Distortion and projections of every row under every format."""
        formats = footprint.sites[site.name].formats
        affine = [format for format in formats if isinstance(format, AffineFormat)]
        at_once = max(1, CODES_AT_ONCE // site.parameters)
        parts = (affine[start : start + at_once] for start in range(0, len(affine), at_once))
        rounded = (segment for part in parts for segment in rounder.round(matrix, guidance, part, seed=seed))
        distortion = torch.empty(site.rows, len(formats))
        sequences = gradients.sequences if gradients is not None else 0
        projections = torch.empty(site.rows, len(formats), sequences)
        for index, format in sorted(enumerate(formats), key=lambda item: isinstance(item[1], FloatFormat)):
            error = (
                _in_float(matrix, format) if isinstance(format, FloatFormat) else next(rounded).dequantize()
            ) - matrix
            distortion[:, index] = guidance.distortion(error)
            if gradients is not None:
                projections[:, index] = project(error, gradients)
        return SiteCurve(
            name=site.name,
            formats=formats,
            distortion=distortion,
            row_noise=row_noise(guidance),
            projections=projections if gradients is not None else None,
        )


def project(error: Float[Tensor, "out in"], gradients: AbstractSequenceGradients) -> Float[Tensor, "out sequence"]:
    """First-order change of each sequence's loss by each row's error: `sum over tokens of g . (error x)`."""
    rows, columns = error.shape
    at_once = max(1, GRADIENT_WEIGHTS_AT_ONCE // (columns * gradients.sequences))
    parts = [
        torch.einsum("soi,oi->os", gradients.rows(start, min(start + at_once, rows)), error[start : start + at_once])
        for start in range(0, rows, at_once)
    ]
    return torch.cat(parts)


def row_noise(guidance: SiteGuidance) -> Float[Tensor, "out"]:
    """Relative standard error of each row's distortion, from that of the row weights of all terms."""
    variance = torch.zeros_like(guidance.terms[0].row_weight)
    total = torch.zeros_like(variance)
    for term in guidance.terms:
        scale = term.hessian.diagonal(dim1=1, dim2=2).mean(1)[term.row_group]
        variance += (scale * term.row_weight_error).square()
        total += scale * term.row_weight
    return variance.sqrt() / total.clamp(min=torch.finfo(torch.float32).tiny)


def _in_float(matrix: Tensor, format: FloatFormat) -> Tensor:
    return matrix.to(FLOAT_DTYPES[format.dtype]).float()
