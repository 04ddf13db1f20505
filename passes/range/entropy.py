"""The `entropy` range: the distribution of the rounded values says most about that of the values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch

from guidedq.artifacts.activations import ActivationHistogram
from guidedq.quant.integer import LEVELS, IntegerGrid
from guidedq.stages import AbstractRange

from .candidates import least


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyRange(AbstractRange):
    """Minimises the divergence of the histogram from what is left of it after clipping and rounding.

    The rule of TensorRT's calibrator (Migacz 2017): what is clipped is counted at the ends of the grid, and what falls
    on one code is spread evenly over the bins of that code which are not empty.

    Attributes:
        symmetric: The zero point lies in the middle; at the bottom where nothing is negative.
    """

    symmetric: bool = False

    def grid(self, histogram: ActivationHistogram) -> IntegerGrid:
        """See `AbstractRange`."""
        seen = without_zeros(histogram)
        return least(seen, lambda grid: divergence(seen, grid), symmetric=self.symmetric)


def without_zeros(histogram: ActivationHistogram) -> ActivationHistogram:
    """The histogram with no more values in the bin of zero than in the fuller of its neighbours.

    Half of what a Relu writes is zero, which every grid holds exactly: spread over a code's bins it would outweigh all
    else, and the narrowest grid would win.
    """
    counts = histogram.counts.clone()
    bins = len(counts)
    zero = min(bins - 1, int(-histogram.low * bins / (histogram.high - histogram.low)))
    beside = [float(counts[place]) for place in (zero - 1, zero + 1) if 0 <= place < bins]
    counts[zero] = min(float(counts[zero]), max(beside))
    return replace(histogram, counts=counts) if bool(counts.any()) else histogram


def divergence(histogram: ActivationHistogram, grid: IntegerGrid) -> float:
    """KL(p || q) in nats: p the histogram with clipped values at the ends, q spread over the bins of each code.

    Infinite where the grid holds no bin at all.
    """
    centers, counts = histogram.centers, histogram.counts.double()
    inside = (centers >= grid.low - grid.scale / 2) & (centers <= grid.high + grid.scale / 2)
    if not bool((counts[inside] > 0).any()):
        return math.inf
    kept = counts[inside]
    codes = torch.round(centers[inside] / grid.scale).add_(grid.zero_point).clamp_(0, LEVELS).long()
    filled = (kept > 0).double()
    totals = torch.bincount(codes, weights=kept, minlength=LEVELS + 1)
    spread = totals[codes] / torch.bincount(codes, weights=filled, minlength=LEVELS + 1).clamp_min(1)[codes]
    clipped = kept.clone()
    clipped[0] += counts[centers < centers[inside][0]].sum()
    clipped[-1] += counts[centers > centers[inside][-1]].sum()
    p, q = clipped / clipped.sum(), (spread * filled).clamp_min(torch.finfo(torch.float64).tiny) / kept.sum()
    return float(torch.where(p > 0, p * (p.clamp_min(torch.finfo(torch.float64).tiny) / q).log(), 0.0).sum())
