"""The `additive` forecaster: the sum of the sites' distortions, as if no two errors met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.forecast import Forecast, Probe
from guidedq.stages import AbstractForecaster

from .calibration import calibrated


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AdditiveForecaster(AbstractForecaster):
    """What other tools rank allocations by; usually too small by half, which one probe mends for the most part."""

    def raw(
        self, allocations: Sequence[Allocation], curves: Iterable[SiteCurve], units_per_sequence: float
    ) -> tuple[tuple[float, ...], ...]:
        """Each allocation's distortion, one number."""
        return tuple((allocation.distortion,) for allocation in allocations)

    def forecast(self, raw: Sequence[float], probes: Sequence[Probe], evaluation_units: int, *, seed: int) -> Forecast:
        """See `calibrated`."""
        return calibrated(raw, probes, evaluation_units, seed=seed)
