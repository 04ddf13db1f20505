"""Which sites are computed in integers: those whose rounding to integers costs little of the forecast."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import final

from guidedq.artifacts.activations import ActivationHistogram, ActivationPlace
from guidedq.driver.decision import allocations_of, size_range
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Site, Storage
from guidedq.quant.integer import IntegerGrid, integer_grid, round_rows
from guidedq.registry import stage_text
from guidedq.report.wording import loss_text
from guidedq.workspace import finish, is_finished, load_histograms, save_histograms, storing

MOST_SAMPLES = 128
"""Of a histogram: a place has some thousand values in each, so that a hundred samples fill every bin that matters."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerOptions:
    """The sites that could be computed in integers, and what each would lose by it, in the unit of the forecast.

    Attributes:
        sites: In graph order.
        places: Whose values are rounded for them.
        grids: Of each place.
        place_costs: What rounding at each place loses, for however many sites.
        weight_costs: What rounding the rows of each site's weight to int8 loses.
    """

    sites: tuple[Site, ...]
    places: tuple[ActivationPlace, ...]
    grids: Mapping[str, IntegerGrid]
    place_costs: Mapping[str, float]
    weight_costs: Mapping[str, float]

    @property
    def needs(self) -> Mapping[str, Sequence[str]]:
        """The places that each site needs rounded."""
        return {site.name: [p.name for p in self.places if site.name in p.sites] for site in self.sites}

    @property
    def alone(self) -> Mapping[str, float]:
        """What each site would lose if it were the only one."""
        return {
            name: self.weight_costs[name] + sum(self.place_costs[place] for place in places)
            for name, places in self.needs.items()
        }

    def kept(self, chosen: Collection[str]) -> list[ActivationPlace]:
        """The places that some of the chosen sites need."""
        return [place for place in self.places if any(name in chosen for name in place.sites)]

    def cost(self, chosen: Collection[str]) -> float:
        """What these sites lose together."""
        places = (self.place_costs[place.name] for place in self.kept(chosen))
        return fsum((*places, *(cost for name, cost in self.weight_costs.items() if name in chosen)))


def integer_options(job: Job, evidence: Evidence) -> IntegerOptions | None:
    """What could be computed in integers, measured; `None` where the backend is not asked to.

    A guide that takes no gradients sees no cost in activations.
    """
    places = tuple(job.backend.places(job.model))
    if not places:
        return None
    with job.stopwatch.time("activations"):
        histograms = dict(zip([place.name for place in places], _histograms(job, evidence, places), strict=True))
        grids = {place.name: _grid(job, place, histograms[place.name]) for place in places}
        sites = [site for site in job.model.graph.quantizable if any(site.name in place.sites for place in places)]
        return IntegerOptions(
            sites=tuple(sites),
            places=places,
            grids=grids,
            place_costs={name: seen.cost(grids[name]) for name, seen in histograms.items()},
            weight_costs={site.name: _weight_cost(job, evidence, site) for site in sites},
        )


def with_integers(job: Job, evidence: Evidence, limit: int | None) -> Evidence:
    """The evidence with the rounding of activations that is best for a file of `limit` bytes, and what it costs.

    Without a limit it is that for the largest file, which is the strictest. Sites that would lose more than the
    recipe's share of the whole, the weights' distortion at `limit` included, stay in float.
    """
    options = integer_options(job, evidence)
    if options is None:
        return evidence
    whole = _distortion(job, evidence, limit) + options.cost(options.alone)
    allowed = job.recipe.activation_budget * whole
    return in_integers(job, evidence, options, {name for name, cost in options.alone.items() if cost <= allowed})


def in_integers(job: Job, evidence: Evidence, options: IntegerOptions, chosen: Collection[str]) -> Evidence:
    """The evidence with the chosen sites computed in integers, the others in float."""
    rounded = [site for site in options.sites if site.name in chosen]
    return replace(
        evidence,
        rounding=_rounding(job, evidence.rounding, options.kept(chosen), rounded, options),
        rounding_loss=options.cost(chosen),
        notices=(*evidence.notices, _told(job, options, chosen)),
    )


def _histograms(job: Job, evidence: Evidence, places: Sequence[ActivationPlace]) -> Sequence[ActivationHistogram]:
    """What the guide hears at the places, or heard in an earlier run."""
    samples = evidence.calibration.tuning.part(0, MOST_SAMPLES)
    text = stage_text(job.recipe.guide, "guide")
    key = (job.model.digest, samples.digest, text, str(job.seed), repr(places))
    entry = job.workspace.entry("activations", *key)
    if not is_finished(entry):
        found = job.recipe.guide.histograms(job.model, samples, places, seed=job.seed, progress=job.progress)
        with storing(job.workspace.root):
            save_histograms(entry, found)
            finish(entry)
    return load_histograms(entry)


def _grid(job: Job, place: ActivationPlace, histogram: ActivationHistogram) -> IntegerGrid:
    """The grid of a place; of one whose grid follows every call, the widest that this can be."""
    return integer_grid(histogram.low, histogram.high) if place.dynamic else job.recipe.range.grid(histogram)


def _weight_cost(job: Job, evidence: Evidence, site: Site) -> float:
    """What rounding the rows of a weight to int8 costs, whatever it was rounded to before."""
    matrix = job.model.matrix(site)
    rounded = round_rows(matrix, 0, job.backend.largest_code())
    return float(evidence.guidance.site(site.name).distortion(rounded - matrix).sum())


def _distortion(job: Job, evidence: Evidence, limit: int | None) -> float:
    """What the weights lose in a file of this size."""
    low, high = size_range(job.model.graph, evidence.footprint)
    limits = [high if limit is None else min(max(limit, low), high)]
    (allocation,) = allocations_of(job, evidence, limits)
    return allocation.distortion


def _rounding(
    job: Job,
    own: ActivationRounding | None,
    places: Sequence[ActivationPlace],
    sites: Sequence[Site],
    options: IntegerOptions,
) -> ActivationRounding:
    """Round at `places` and compute `sites` in integers, the others of the `options` in float.

    What the runtime does with the rest on its `own` account stays.
    """
    mine = {use.operator for site in sites for use in site.uses}
    known = {use.operator for site in options.sites for use in site.uses}
    others, grids = own.operators if own else {}, options.grids
    return ActivationRounding(
        operators={name: size for name, size in others.items() if name not in known},
        dynamic=tuple(name for place in places if place.dynamic for name in place.operators if name in mine),
        inputs={
            name: grids[place.name] for place in places if not place.dynamic for name in place.operators if name in mine
        },
        values={place.name: grids[place.name] for place in places if not place.operators},
        rows={site.name: 1 if site.storage is Storage.IN_OUT else 0 for site in sites},
        largest_code=job.backend.largest_code(),
    )


def _told(job: Job, options: IntegerOptions, chosen: Collection[str]) -> str:
    costs, loss = options.alone, loss_text(options.cost(chosen))
    left = sorted(set(costs) - set(chosen), key=lambda name: (-costs[name], name))
    text = f"{len(costs) - len(left)} of {len(costs)} sites are computed in integers, at {loss}"
    text += f" {job.model.objective.unit}"
    if not left:
        return f"{text}."
    others = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    return f"{text}; {left[0]}, which would cost {loss_text(costs[left[0]])} alone, stays in float{others}."
