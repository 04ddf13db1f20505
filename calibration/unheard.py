"""Sites that the backward pass told nothing of: where no gradient reaches, and where no sample does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import torch
from torch import Tensor

from guidedq.artifacts.guidance import QuadraticTerm
from guidedq.artifacts.samples import SampleSet
from guidedq.ir.graph import Site
from guidedq.ir.model import Model
from guidedq.progress import Progress

from .backward_pass import batch_size
from .events import Event
from .forward_pass import forward_pass
from .input_statistics import InputStatistics
from .shards import shards_of
from .statistics import accumulate, terms_of
from .store import read_importance, read_site, site_file, write_site

TINY = torch.finfo(torch.float32).tiny
"""The least that a weight can matter: a quadratic form of zeros has no factors."""
UNSEEN_SHARE = 0.1
"""Of what the median site's weights matter for their size: what no calibration sample needed is needed seldom. Taken
for average, the idle half of a voice detector (its 8 kHz branch) got 8 to 16 bits of 8, and the half in use 3 to 5."""
LEAST_SHARE = 1e-3
"""Of the mean: what matters less counts as this much where orders of magnitude are averaged."""
LEAST_SQUARE = 1e-12
"""Of a weight whose size is asked for: less is nothing."""
FORWARD_ONLY = "guidance is forward-only there: what they read counts, not how the end loss answers."
UNSEEN = (
    "nothing tells what matters there, and all of it is taken to matter alike, and little. Give data that reach them, "
    "or leave them alone (--keep)."
)


def complete(
    model: Model, samples: SampleSet, folder: Path, *, gradients: bool, memory_bytes: int | None, progress: Progress
) -> None:
    """Write guidance for the sites that have none yet, or only zeros: experts that no token was sent to.

    Where no gradient comes by, second moments of what a site reads count, as in forward-only guidance, on a scale on
    which a weight matters on average as much as those that gradients reach. Of a site that no sample reaches nothing is
    known: each of its weights is taken to matter alike, such that the same error, relative to the site's weights, costs
    a tenth of what it costs in the median site.

    Args:
        model: Whose sites.
        samples: The calibration samples.
        folder: Of the guidance.
        gradients: Whether a backward pass was run; else whatever samples reach is there.
        memory_bytes: Bound on the second moments held at once.
        progress: Told which sites these are.
    """
    sites = model.graph.quantizable
    numbers = {site.name: index for index, site in enumerate(sites)}
    heard = {name: read_importance(folder, it) for name, it in numbers.items() if site_file(folder, it).exists()}
    known = {site: heard[site.name] for site in sites if any(heard.get(site.name, []))}
    missing = [site for site in sites if site not in known]
    if not missing:
        return
    level = fmean([weight for weights in known.values() for weight in weights] or [0.0])
    found: dict[str, list[QuadraticTerm]] = {}
    for shard in shards_of([site for site in missing if site.name not in heard], memory_bytes) if gradients else []:
        found |= _observed(model, samples, shard)
    mean = fmean([term.importance for terms in found.values() for term in terms] or [0.0])
    factor = level / mean if level > 0 and mean > 0 else 1.0
    stakes = median([_stake(folder, numbers[site.name]) * _mean_square(model, site) for site in known] or [mean])
    for site in missing:
        terms = [replace(term, hessian=term.hessian * factor) for term in found.get(site.name, [])]
        weight = UNSEEN_SHARE * stakes / max(_mean_square(model, site), LEAST_SQUARE)
        write_site(folder, numbers[site.name], terms or [_unseen(site, weight)])
    _tell(progress, [site.name for site in missing if site.name in found], "no gradient reaches", FORWARD_ONLY)
    _tell(progress, [site.name for site in missing if site.name not in found], "no sample reached", UNSEEN)


def _tell(progress: Progress, names: Sequence[str], what: str, why: str) -> None:
    if names:
        progress.notice(f"{what} {names[0]} ({len(names)} such weights): {why}")


def _observed(model: Model, samples: SampleSet, sites: Sequence[Site]) -> dict[str, list[QuadraticTerm]]:
    """What forward passes tell of these sites, as far as samples reach them."""
    statistics, sums = InputStatistics(), dict[str, Tensor]()

    def record(event: Event) -> None:
        accumulate(sums, statistics.sums(event), prefix=f"{event.use.operator}|")

    size = batch_size(model, samples)
    for first in range(0, len(samples), size):
        forward_pass(model, samples.part(first, first + size), sites, record)
    units = model.objective.units(samples)
    terms = {site.name: terms_of(statistics, site, sums, units) for site in sites}
    return {name: mine for name, mine in terms.items() if mine}


def _stake(folder: Path, number: int) -> float:
    """What an error in a site's weights costs: a mean of magnitudes, as rounding has it fall where it matters least."""
    terms = read_site(folder, number)
    return sum(_magnitude(term.hessian.diagonal(dim1=1, dim2=2)) * _magnitude(term.row_weight) for term in terms)


def _magnitude(values: Tensor) -> float:
    mean = float(values.mean())
    return float(values.clamp(min=max(LEAST_SHARE * mean, TINY)).log().mean().exp())


def _mean_square(model: Model, site: Site) -> float:
    return float(model.matrix(site).square().mean())


def _unseen(site: Site, weight: float) -> QuadraticTerm:
    return QuadraticTerm(
        hessian=torch.eye(site.columns)[None] * max(weight, TINY),
        row_group=torch.zeros(site.rows, dtype=torch.int64),
        row_weight=torch.ones(site.rows),
        row_weight_error=torch.zeros(site.rows),
    )
