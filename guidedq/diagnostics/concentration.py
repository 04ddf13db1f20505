"""Does the forecast hang on one site?"""

from __future__ import annotations

from collections.abc import Mapping

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.diagnostic import Diagnostic, at_most

EXCESS = 0.5
"""Of the way from a site's share of the weights to everything: a site with a tenth of the weights may carry 55%."""


def concentration(allocation: Allocation, parameters: Mapping[str, int]) -> Diagnostic:
    """The largest share of the predicted distortion that one site carries, against its share of the weights.

    Bits are given where they gain most, so at the optimum a site's distortion goes with its weights. One that carries
    far more could not be helped by its formats, and the whole forecast is as good as that one site's.

    Args:
        allocation: What was chosen.
        parameters: Weights of each of its sites.
    """
    total, weights = allocation.distortion, sum(parameters.values())
    shares = {name: site.distortion / total if total > 0.0 else 0.0 for name, site in allocation.sites.items()}
    name = max(shares, key=lambda name: shares[name] - _largest(parameters[name] / weights))
    return at_most(
        "concentration",
        shares[name],
        _largest(parameters[name] / weights),
        meaning=f"share of the predicted distortion that {name} carries, with {parameters[name] / weights:.1%} of the "
        "weights",
        advice=f"Leave it alone (--keep '{name}'), or let it have wider formats (--max-bits).",
    )


def _largest(weight: float) -> float:
    return weight + EXCESS * (1.0 - weight)
