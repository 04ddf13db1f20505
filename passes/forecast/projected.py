"""The `projected` forecaster: per-sequence projections, in which errors of all sites and tokens meet (default)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.forecast import Forecast, Probe
from guidedq.stages import AbstractForecaster

from .calibration import calibrated


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedForecaster(AbstractForecaster):
    """Half the mean squared change of a sequence's sampled loss, to first order in all errors at once.

    With labels drawn from the model, `E[(sum over sites and tokens of g . error x)^2] / 2` is the divergence to second
    order, cross terms between sites and coherence across tokens included.

    Attributes:
        additive_share: Part of the prediction taken from the sum of the sites' own distortions, whose noise is far
            smaller. The two differ by a nearly constant factor, which the probes absorb.
    """

    additive_share: float = 0.5

    def raw(self, allocation: Allocation, curves: Iterable[SiteCurve], units_per_sequence: float) -> tuple[float, ...]:
        """Uncalibrated divergence for each kept sequence; the distortion alone if there are no projections."""
        total: torch.Tensor | None = None
        distortion = 0.0
        for curve in curves:
            choice = allocation.sites[curve.name].choice
            rows = torch.arange(len(choice))
            distortion += float(curve.distortion[rows, choice].double().sum())
            if curve.projections is not None:
                mine = curve.projections[rows, choice].double().sum(0)
                total = mine if total is None else total + mine
        if total is None:
            return (distortion,)
        projected = 0.5 * total.square() / units_per_sequence
        share = self.additive_share
        return tuple((share * distortion + (1.0 - share) * projected).tolist())

    def forecast(self, raw: Sequence[float], probes: Sequence[Probe], evaluation_units: int, *, seed: int) -> Forecast:
        """See `calibrated`."""
        return calibrated(raw, probes, evaluation_units, seed=seed)
