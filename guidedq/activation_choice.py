"""Which sites are computed in integers: those whose rounding to integers costs little of the forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum

from guidedq.artifacts.activations import ActivationHistogram, ActivationPlace
from guidedq.decision import size_range
from guidedq.evidence import Evidence
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.ir.graph import Site, Storage
from guidedq.job import Job
from guidedq.quant.integer import IntegerGrid, integer_grid, round_rows
from guidedq.registry import stage_text
from guidedq.report.wording import loss_text
from guidedq.workspace import finish, is_finished, load_histograms, save_histograms, storing

MOST_SAMPLES = 128
"""Of a histogram: a place has some thousand values in each, so that a hundred samples fill every bin that matters."""


def with_integers(job: Job, evidence: Evidence, limit: int | None) -> Evidence:
    """The evidence with the rounding of activations that is best for a file of `limit` bytes, and what it costs.

    Without a limit it is that for the largest file, which is the strictest.

    A site's cost is that of its places and of its weight's int8 rows, in the unit of the forecast. Sites above the
    recipe's share of the whole, the weights' distortion at `limit` included, stay in float. A guide that takes no
    gradients sees no cost in activations.
    """
    places = job.backend.places(job.model)
    if not places:
        return evidence
    with job.stopwatch.time("activations"):
        histograms = _histograms(job, evidence, places)
        grids = {place.name: _grid(job, place, seen) for place, seen in zip(places, histograms, strict=True)}
        costs = {place.name: seen.cost(grids[place.name]) for place, seen in zip(places, histograms, strict=True)}
        sites = [site for site in job.model.graph.quantizable if any(site.name in place.sites for place in places)]
        by_weight = {site.name: _weight_cost(job, evidence, site) for site in sites}
        by_site = {
            site.name: by_weight[site.name] + sum(costs[place.name] for place in places if site.name in place.sites)
            for site in sites
        }
        whole = _distortion(job, evidence, limit) + sum(costs.values()) + sum(by_weight.values())
    chosen = {name for name, cost in by_site.items() if cost <= job.recipe.activation_budget * whole}
    kept = [place for place in places if chosen.intersection(place.sites)]
    loss = fsum((*(costs[place.name] for place in kept), *(by_weight[name] for name in by_weight if name in chosen)))
    rounded = [site for site in sites if site.name in chosen]
    return replace(
        evidence,
        rounding=_rounding(evidence.rounding, kept, rounded, sites, grids),
        rounding_loss=loss,
        notices=(_told(job, by_site, chosen, loss),),
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
    return float(evidence.guidance.site(site.name).distortion(round_rows(matrix, 0) - matrix).sum())


def _distortion(job: Job, evidence: Evidence, limit: int | None) -> float:
    """What the weights lose in a file of this size."""
    low, high = size_range(job.model.graph, evidence.footprint)
    limits = [high if limit is None else min(max(limit, low), high)]
    (allocation,) = job.recipe.allocate.allocate(job.model.graph, evidence.distortions, evidence.footprint, limits)
    return allocation.distortion


def _rounding(
    own: ActivationRounding | None,
    places: Sequence[ActivationPlace],
    sites: Sequence[Site],
    asked: Sequence[Site],
    grids: Mapping[str, IntegerGrid],
) -> ActivationRounding:
    """Round at `places` and compute `sites` in integers, the others that were `asked` about in float.

    What the runtime does with the rest on its `own` account stays.
    """
    mine = {use.operator for site in sites for use in site.uses}
    known = {use.operator for site in asked for use in site.uses}
    others = own.operators if own else {}
    return ActivationRounding(
        operators={name: size for name, size in others.items() if name not in known},
        dynamic=tuple(name for place in places if place.dynamic for name in place.operators if name in mine),
        inputs={
            name: grids[place.name] for place in places if not place.dynamic for name in place.operators if name in mine
        },
        values={place.name: grids[place.name] for place in places if not place.operators},
        rows={site.name: 1 if site.storage is Storage.IN_OUT else 0 for site in sites},
    )


def _told(job: Job, costs: Mapping[str, float], chosen: set[str], loss: float) -> str:
    left = sorted(set(costs) - chosen, key=costs.__getitem__, reverse=True)
    text = (
        f"{len(chosen)} of {len(costs)} sites are computed in integers, at {loss_text(loss)} {job.model.objective.unit}"
    )
    if not left:
        return f"{text}."
    return f"{text}; {left[0]} stays in float, for it would cost {loss_text(costs[left[0]])}" + (
        f" (and {len(left) - 1} more)." if len(left) > 1 else "."
    )
