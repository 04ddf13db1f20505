"""Would other samples have said the same of which rows matter?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.diagnostic import Diagnostic, at_least
from guidedq.diagnostics.sensitivities import sensitivities

LEAST_AGREEMENT = 0.7
"""The demo model's guidance has 0.95, SmolLM2-135M's of 64 sequences 0.93; at 0.7 noise is a sixth of what the rows'
sensitivities differ by in all, and a quarter of what one half of the samples says."""


def guidance_agreement(curves: Mapping[str, SiteCurve]) -> Diagnostic | None:
    """The correlation, over all rows, of the sensitivities that two halves of the samples would give, in logarithms.

    With the signal's variance S and the noise's N in the whole, a half has the noise 2 N: halves correlate by
    S / (S + 2 N). N follows from every row's standard error over the samples, so nothing is collected twice.

    Returns:
        `None` if the guide knows no noise.
    """
    found = [sensitivities(curve) for curve in curves.values()]
    if not any(site.noise_variance.any() for site in found):
        return None
    total = float(np.log(np.concatenate([site.distortion for site in found])).var())
    noise = float(np.concatenate([site.noise_variance for site in found]).mean())
    signal = max(0.0, total - noise)
    return at_least(
        "guidance-agreement",
        signal / (signal + 2.0 * noise) if noise > 0.0 else 1.0,
        LEAST_AGREEMENT,
        meaning="correlation of the sensitivities that two halves of the calibration samples would give",
        advice="Give more calibration samples (--samples), or more varied data.",
    )
