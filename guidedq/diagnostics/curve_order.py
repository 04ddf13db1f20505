"""Do more bits lose less, as they must?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.quant.formats import AffineFormat, FloatFormat, Format

TOLERANCE = 0.05
"""Relative: codes are chosen by rules that do not see the whole: equal errors may come out some percent apart."""


def curve_order(curves: Mapping[str, SiteCurve]) -> Diagnostic:
    """How many sites lose more in a format of more bits than in one of fewer that is alike in everything else."""
    names = [name for name, curve in curves.items() if _disordered(curve)]
    return at_most(
        "curve-order",
        float(len(names)),
        0.0,
        meaning="sites where more bits measured worse" + (f" (the first is {names[0]})" if names else ""),
        advice="Check the weights of these sites, or leave them alone (--keep); more samples may mend it.",
    )


def _disordered(curve: SiteCurve) -> bool:
    lost = curve.distortion.double().sum(0).tolist()
    families: dict[Hashable, list[tuple[float, float]]] = {}
    for format, loss in zip(curve.formats, lost, strict=True):
        families.setdefault(_family(format), []).append((format.bits, loss))
    return any(
        wider > (1.0 + TOLERANCE) * narrower
        for family in families.values()
        for index, (_, wider) in enumerate(sorted(family))
        for _, narrower in sorted(family)[:index]
    )


def _family(format: Format) -> Hashable:
    if isinstance(format, AffineFormat):
        return format.group_size, format.symmetric, format.outliers
    return "float" if isinstance(format, FloatFormat) else "entropy"
