"""How far is what the samples say of single rows drawn to what they say of the whole site?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.diagnostics.sensitivities import Sensitivities, sensitivities

MOST_SHRINKAGE = 0.25
"""Of a row's sensitivity: a sixth of a bit. The demo model's guidance has 0.01, ResNet-20's 0.06, SmolLM2-135M's of 64
sequences 0.10."""


def shrinkage(curves: Mapping[str, SiteCurve]) -> Diagnostic | None:
    """By how much a row's sensitivity is changed before bits are allocated, on average by distortion.

    The estimate is the allocator's: each row is drawn to its site's mean by the share of noise in the variance of the
    logarithms (James and Stein 1961). Rows that are alike may be drawn together by any share and are hardly changed.

    Returns:
        `None` if the guide knows no noise.
    """
    found = [site for site in map(sensitivities, curves.values()) if len(site.distortion) > 1]
    if not any(site.noise_variance.any() for site in found):
        return None
    moved = np.average([*map(_moved, found)], weights=[site.distortion.sum() for site in found])
    return at_most(
        "shrinkage",
        float(moved),
        MOST_SHRINKAGE,
        meaning="relative change of the rows' sensitivities where noise is taken out of them",
        advice="Give more calibration samples (--samples): rows are treated more alike than they may be.",
    )


def _moved(site: Sensitivities) -> float:
    """Mean change of the logarithm, each row by its distortion."""
    logarithm = np.log(site.distortion)
    signal = max(0.0, float(logarithm.var(ddof=1) - site.noise_variance.mean()))
    total = signal + site.noise_variance
    share = np.divide(site.noise_variance, total, out=np.zeros_like(total), where=total > 0.0)
    return float(np.average(share * np.abs(logarithm - logarithm.mean()), weights=site.distortion))
