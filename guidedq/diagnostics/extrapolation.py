"""Does the forecast reach beyond what was measured?"""

from __future__ import annotations

from collections.abc import Sequence

from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.artifacts.forecast import Probe

FARTHEST = 1.5
"""The line through the probes is known to a tenth near them; half as much again is about half a bit less."""


def reach(raw_kl: float, probes: Sequence[Probe]) -> float:
    """The uncalibrated divergence in units of the largest one of a measured model; 0 without probes."""
    largest = max((probe.raw_kl for probe in probes), default=0.0)
    return raw_kl / largest if largest > 0.0 else 0.0


def extrapolation(raw_kl: float, probes: Sequence[Probe]) -> Diagnostic | None:
    """How far beyond the largest measured divergence the forecast reaches.

    Larger divergences grow faster than any line from below foretells.

    Returns:
        `None` if nothing was measured.
    """
    if not probes:
        return None
    return at_most(
        "extrapolation",
        reach(raw_kl, probes),
        FARTHEST,
        meaning="predicted KL before calibration, over the largest of a model that the forecast was calibrated by",
        advice="Raise the budget, or trust the measured KL alone.",
    )
