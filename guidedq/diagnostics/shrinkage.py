"""How much of what the rows of a site differ by was taken for noise?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.diagnostics.sensitivities import Sensitivities, sensitivities

MOST_SHRINKAGE = 0.3
"""The demo model's guidance has 0.03, SmolLM2-135M's 0.04. At 0.3 a third of the spread is gone, and with it a good
part of what bits by row gain."""


def shrinkage(curves: Mapping[str, SiteCurve]) -> Diagnostic | None:
    """The share by which rows are drawn to their site's mean before bits are allocated, by distortion.

    The estimate is the allocator's: of a site's variance of log sensitivities, the rows' noise explains this share
    (James and Stein 1961).

    Returns:
        `None` if the guide knows no noise.
    """
    found = [site for site in map(sensitivities, curves.values()) if len(site.distortion) > 1]
    if not any(site.noise_variance.any() for site in found):
        return None
    return at_most(
        "shrinkage",
        float(np.average([*map(_shrunk, found)], weights=[site.distortion.sum() for site in found])),
        MOST_SHRINKAGE,
        meaning="share of the rows' differences in sensitivity that is taken for noise",
        advice="Give more calibration samples (--samples): rows are treated more alike than they are.",
    )


def _shrunk(site: Sensitivities) -> float:
    """Mean over the rows, each by its distortion, of the noise's share in the variance."""
    signal = max(0.0, float(np.log(site.distortion).var(ddof=1) - site.noise_variance.mean()))
    total = signal + site.noise_variance
    share = np.divide(site.noise_variance, total, out=np.zeros_like(total), where=total > 0.0)
    return float(np.average(share, weights=site.distortion))
