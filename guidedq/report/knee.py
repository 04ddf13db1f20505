"""The knee of a curve of loss over size: where further bytes begin to gain less than in proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence

from guidedq.artifacts.report import PlanPoint

FEWEST_POINTS = 3


def knee(points: Sequence[PlanPoint]) -> PlanPoint | None:
    """The point farthest below the chord from the smallest size to the largest, both axes scaled to 1.

    Kneedle (Satopaa, Albrecht, Irwin and Raghavan 2011) for a few exact points. It depends on the range: points far out
    where nothing is lost any more pull it towards larger sizes.

    Returns:
        One of the points; `None` if there are too few, or none lies below the chord.
    """
    drawn = sorted((p for p in points if math.isfinite(p.forecast.kl)), key=lambda point: point.bytes)
    if len({point.bytes for point in drawn}) < FEWEST_POINTS:
        return None
    first, last = drawn[0], drawn[-1]
    fall = first.forecast.kl - last.forecast.kl
    if fall <= 0:
        return None

    def below(point: PlanPoint) -> float:
        share = (point.bytes - first.bytes) / (last.bytes - first.bytes)
        return (first.forecast.kl - point.forecast.kl) / fall - share

    best = max(drawn, key=below)
    return best if below(best) > 0 else None
