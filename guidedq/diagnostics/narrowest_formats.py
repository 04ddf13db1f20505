"""Are there sites that could not go lower, where nothing was measured that low?"""

from __future__ import annotations

from collections.abc import Sequence

from guidedq.artifacts.allocation import Allocation, SiteAllocation
from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.artifacts.forecast import Probe
from guidedq.diagnostics.extrapolation import reach

MOST_WEIGHTS = 0.1
"""Share of the weights: at their narrowest they can carry a good part of the loss."""


def narrowest_formats(allocation: Allocation, raw_kl: float, probes: Sequence[Probe]) -> Diagnostic | None:
    """The share of the rows at the narrowest format of their site, in a forecast beyond every measured model.

    Within the measured ones such rows were measured too: there are no fewer of them in a smaller file.

    Returns:
        `None` if nothing was measured.
    """
    if not probes:
        return None
    held = {name: _at_narrowest(site) for name, site in allocation.sites.items()}
    rows = sum(len(site.choice) for site in allocation.sites.values())
    beyond = reach(raw_kl, probes) > 1.0
    sites = sum(count > 0 for count in held.values())
    return at_most(
        "narrowest-formats",
        sum(held.values()) / rows if beyond else 0.0,
        MOST_WEIGHTS,
        meaning="share of the rows at their narrowest format which the forecast extrapolates"
        + (f" (in {sites} of {len(held)} sites)" if beyond and sites else ""),
        advice="Raise the budget, or allow narrower formats (--min-bits, larger group sizes).",
    )


def _at_narrowest(site: SiteAllocation) -> int:
    bits = [format.bits for format in site.formats]
    narrowest = [index for index, width in enumerate(bits) if width == min(bits)]
    return sum(int((site.choice == index).sum()) for index in narrowest) if len(set(bits)) > 1 else 0
