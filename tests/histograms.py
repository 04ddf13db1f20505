"""Histograms of made-up activations, for tests."""

from __future__ import annotations

import torch

from guidedq.artifacts.activations import BINS, ActivationHistogram


def histogram_of(values: torch.Tensor, squares: torch.Tensor | None = None) -> ActivationHistogram:
    """The histogram of values, with squared gradients."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    high = low + 1.0 if high == low else high
    bins = ((values.double() - low) * (BINS / (high - low))).long().clamp(0, BINS - 1)
    weights = torch.ones(len(values)) if squares is None else squares
    return ActivationHistogram(
        low=low,
        high=high,
        counts=torch.bincount(bins, minlength=BINS).float(),
        sensitivity=torch.bincount(bins, weights=weights, minlength=BINS).float(),
    )


def heavy_tailed(seed: int) -> torch.Tensor:
    """Values most of which are small: a few lie thirty standard deviations away."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(20_000, generator=generator)
    values[:20] *= 30
    return values
