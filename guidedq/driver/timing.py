"""How long a model will take: its sites by their kernels, the rest as measured; and what a second is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import final

from guidedq.artifacts.allocation import Allocation, SiteAllocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.profile import Kernel, Profile, SiteKernels


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSeconds:
    """What the operators of a site take in one call.

    Attributes:
        original: In the model as it is.
        formats: With all rows in each format.
        integer: With activations in integers, whatever the format; `None` if that is not offered.
        mixed: Further seconds where rows have several formats.
    """

    original: float
    formats: tuple[float, ...]
    integer: float | None = None
    mixed: float = 0.0

    @staticmethod
    def of(kernels: SiteKernels, profile: Profile) -> SiteSeconds:
        """The seconds of kernels by a profile.

        Raises:
            ProfileError: it lacks one.
        """

        def total(parts: Sequence[Kernel]) -> float:
            return fsum(profile.estimate(kernel) for kernel in parts)

        return SiteSeconds(
            original=total(kernels.original),
            formats=tuple(map(total, kernels.formats)),
            integer=total(kernels.integer) if kernels.integer else None,
            mixed=max(0.0, total(kernels.mixed) - total(kernels.plain)),
        )

    def seconds(self, allocation: SiteAllocation, *, integer: bool) -> float:
        """Of an allocation; a format takes its rows' share of what it would take for all."""
        if integer:
            assert self.integer is not None
            return self.integer
        counts = allocation.choice.bincount(minlength=len(self.formats)).tolist()
        shares = (count / len(allocation.choice) * time for count, time in zip(counts, self.formats, strict=True))
        return fsum(shares) + (self.mixed if len(allocation.used) > 1 else 0.0)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What a call of a model takes, and at which price time was bought with loss.

    Attributes:
        sites: By name.
        places: Seconds that rounding activations at a place takes, for however many sites.
        whole: Seconds of a call of the original.
        threads: That the runtime is given.
        source: Where the profile comes from, for people.
        price: Loss, in the objective's unit, that a second is worth.
        integers: Sites that are computed in integers.
        rounded: Places at which activations are rounded for them.
    """

    sites: Mapping[str, SiteSeconds]
    places: Mapping[str, float]
    whole: float
    threads: int
    source: str
    price: float = 0.0
    integers: frozenset[str] = frozenset()
    rounded: tuple[str, ...] = ()

    @property
    def rest(self) -> float:
        """Seconds that no choice changes."""
        return max(0.0, self.whole - fsum(site.original for site in self.sites.values()))

    def seconds(self, allocation: Allocation) -> float:
        """Of a call of the model with this allocation."""
        sites = (
            self.sites[name].seconds(site, integer=name in self.integers) for name, site in allocation.sites.items()
        )
        return self.rest + fsum(sites) + fsum(self.places.get(name, 0.0) for name in self.rounded)

    @property
    def depends_on_formats(self) -> bool:
        """Whether the formats of some site tell how long it takes."""
        return any(site.mixed > 0 or len(set(site.formats)) > 1 for site in self.sites.values())

    def priced(self, curves: Mapping[str, SiteCurve]) -> Mapping[str, SiteCurve]:
        """The curves with the price of each row's time added to its distortion."""
        return {name: curve if name in self.integers else self._priced(curve) for name, curve in curves.items()}

    def _priced(self, curve: SiteCurve) -> SiteCurve:
        times = curve.distortion.new_tensor(self.sites[curve.name].formats)
        price_of_a_row = self.price / len(curve.distortion) * (times - times.min())
        return replace(curve, distortion=curve.distortion + price_of_a_row)


def unpriced(allocation: Allocation, curves: Mapping[str, SiteCurve]) -> Allocation:
    """The same allocation with what it loses, and not what it costs."""

    def lost(name: str, site: SiteAllocation) -> float:
        chosen = curves[name].distortion.gather(1, site.choice[:, None])
        return float(chosen.double().sum())

    sites = {name: replace(site, distortion=lost(name, site)) for name, site in allocation.sites.items()}
    return replace(allocation, sites=sites)


def unmixed(footprint: Footprint) -> Footprint:
    """The footprint with one format for all rows of a site."""
    return replace(footprint, sites={name: replace(site, segments=1) for name, site in footprint.sites.items()})
