"""Do the probes tell another story than the guidance?"""

from __future__ import annotations

from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.artifacts.forecast import Forecast

LARGEST_GAP = 4.0
"""Distortions that add up as if errors did not meet are off by two to three on real models, by a nearly constant factor
that the probes absorb; beyond, something else is going on."""
SMALLEST = 1e-6
"""Divergences below are rounding errors of the runtime, not of the weights."""


def calibration_gap(forecast: Forecast) -> Diagnostic:
    """The factor between the forecast before and after its calibration by probes, whichever is larger.

    Args:
        forecast: Of the model as it is rounded, before it is refined.
    """
    raw, calibrated = max(forecast.raw_kl, SMALLEST), max(forecast.kl, SMALLEST)
    return at_most(
        "calibration-gap",
        max(raw / calibrated, calibrated / raw),
        LARGEST_GAP,
        meaning="factor between the predicted KL before and after its calibration by measured models",
        advice="Trust the measured KL and not the forecast at other sizes; check the calibration data.",
    )
