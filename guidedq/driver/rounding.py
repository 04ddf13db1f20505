"""Round a whole model to an allocation, one weight after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.quantized_weight import QuantizedWeight, Segment, float_segment
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job
from guidedq.ir.graph import Site
from guidedq.memory import LARGE_PARAMETERS, TIDY_SITES, give_back
from guidedq.quant.formats import FloatFormat, Format, RoundedFormat
from guidedq.quant.nested import NestedFormat


@final
class DequantizedOnUse(Mapping[str, Tensor]):
    """Quantized weights as the tensors that stand for them, made each time one is asked for: one byte a weight held."""

    def __init__(self, weights: Mapping[str, tuple[Site, QuantizedWeight]]) -> None:
        """Hold the weights of these sites, by name."""
        self._weights = weights
        self._made = 0

    def __getitem__(self, name: str) -> Tensor:
        site, weight = self._weights[name]
        if site.parameters >= LARGE_PARAMETERS or self._made % TIDY_SITES == 0:
            give_back()
        self._made += 1
        return site.stored(weight.dequantize())

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def rounded(
    job: Job, evidence: Evidence, allocation: Allocation, stage: str, *, corrected: bool = False
) -> Iterator[QuantizedWeight]:
    """The quantized weights of an allocation, in graph order; the progress of `stage` is told.

    Args:
        job: Knows the stages.
        evidence: Keeps codes from when the curves were measured.
        allocation: The format of every row.
        stage: For people.
        corrected: Round to what the recipe's corrector says, which takes a pass over data, in place of the weights.
    """
    sites = job.model.graph.quantizable
    numbers = {site.name: number for number, site in enumerate(sites)}
    job.progress.start(stage, len(sites))

    def round_site(site: Site, matrix: Tensor) -> QuantizedWeight:
        weight = _round_site(job, evidence, allocation, site, matrix, job.seed + numbers[site.name])
        if numbers[site.name] % TIDY_SITES == 0:
            give_back()
        job.progress.advance()
        return weight

    if corrected:
        yield from job.recipe.correct.rounded(job.model, evidence.calibration.tuning, round_site)
    else:
        yield from (round_site(site, job.model.matrix(site)) for site in sites)


def _round_site(
    job: Job, evidence: Evidence, allocation: Allocation, site: Site, matrix: Tensor, seed: int
) -> QuantizedWeight:
    """Round every row of a matrix in the format that it was given; the original's as they were for its curve."""
    own = torch.equal(matrix, job.model.matrix(site))
    chosen = allocation.sites[site.name]
    rows = {
        format: (chosen.choice == index).nonzero()[:, 0]
        for index, format in enumerate(chosen.formats)
        if format in chosen.used
    }
    found: dict[Format, Segment] = {}
    missing: dict[RoundedFormat, Tensor] = {}
    for format, mine in rows.items():
        if isinstance(format, FloatFormat):
            found[format] = float_segment(job.model.matrix(site), format, mine)
            continue
        assert not isinstance(format, NestedFormat), "nested weights are rounded whole, by guidedq/nested_compiler.py"
        kept = evidence.curves.codes(site.name, format, mine) if own else None
        if kept is None:
            missing[format] = mine
        else:
            found[format] = kept
    if missing:
        guidance, formats, places = evidence.guidance.site(site.name), list(missing), list(missing.values())
        found |= zip(formats, job.recipe.round.round(matrix, guidance, formats, places, seed=seed), strict=True)
    segments = tuple(found[format] for format in rows)
    return QuantizedWeight(name=site.name, shape=(site.rows, site.columns), segments=segments)
