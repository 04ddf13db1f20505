"""The `projected` forecaster: per-sequence projections, in which errors of all sites and tokens meet (default)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.forecast import Forecast, Probe
from guidedq.stages import AbstractForecaster

from .calibration import calibrated


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedForecaster(AbstractForecaster):
    """Half the mean squared change of a sequence's projected output, to first order in all errors at once.

    With cotangents whose second moment is the Fisher matrix of the output, `E[(sum over sites and tokens of
    g . error x)^2] / 2` is the divergence to second order: cross terms between sites and coherence across tokens are in
    it.

    A few squared projections are a noisy mean, and large errors saturate where the first order does not. The sum of the
    sites' own distortions has little noise and is off by a nearly constant factor, which the probes absorb. So the
    prediction is the distortion times what the projections say of its factor, drawn to 1 by the share of noise in it
    (James and Stein 1961), in logarithms.

    Attributes:
        coherence_spread: How much the logarithm of that factor differs between allocations of one model, as a standard
            deviation: 0 believes the distortions alone, a large number the projections alone.
    """

    coherence_spread: float = 0.15

    def raw(
        self, allocations: Sequence[Allocation], curves: Iterable[SiteCurve], units_per_sequence: float
    ) -> tuple[tuple[float, ...], ...]:
        """Uncalibrated divergence for each kept sequence; the distortion alone if there are no projections."""
        totals: list[Tensor | None] = [None] * len(allocations)
        for curve in curves:
            if curve.projections is None:
                continue
            for number, allocation in enumerate(allocations):
                choice = allocation.sites[curve.name].choice
                mine = curve.projections[torch.arange(len(choice)), choice].double().sum(0)
                before = totals[number]
                totals[number] = mine if before is None else before + mine
        return tuple(
            self._drawn_together(total, allocation.distortion, units_per_sequence)
            for total, allocation in zip(totals, allocations, strict=True)
        )

    def _drawn_together(self, total: Tensor | None, distortion: float, units_per_sequence: float) -> tuple[float, ...]:
        if total is None or distortion <= 0.0 or len(total) < 2 or not bool(total.any()):
            return (distortion,)
        projected = 0.5 * total.square() / units_per_sequence
        mean = float(projected.mean())
        noise = float(projected.std()) / len(projected) ** 0.5 / mean
        believed = self.coherence_spread**2 / (self.coherence_spread**2 + noise**2)
        level = distortion ** (1.0 - believed) * mean**believed
        return tuple((level * (1.0 + believed * (projected / mean - 1.0))).tolist())

    def forecast(self, raw: Sequence[float], probes: Sequence[Probe], evaluation_units: int, *, seed: int) -> Forecast:
        """See `calibrated`."""
        return calibrated(raw, probes, evaluation_units, seed=seed)
