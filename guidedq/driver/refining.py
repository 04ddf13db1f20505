"""Refine a whole rounded model, by correction and tuning, and keep what came of it: another run starts from there."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int64
from safetensors.torch import load_file
from torch import Tensor

from guidedq.artifacts.forecast import Probe
from guidedq.artifacts.quantized_weight import (
    AffineSegment,
    EntropySegment,
    QuantizedWeight,
    RoundedSegment,
    Segment,
)
from guidedq.driver.decision import Decision, with_probes
from guidedq.driver.evidence import Evidence
from guidedq.driver.fitting import MARGIN, fitted
from guidedq.driver.job import Job
from guidedq.driver.probing import probe_of, scaled, stored_bytes
from guidedq.driver.rounding import rounded
from guidedq.driver.uncertainty import as_evaluated, evaluation_uncertainty
from guidedq.files import write_tensors, write_text
from guidedq.registry import stage_text
from guidedq.workspace import finish, is_finished, load_codes, load_probe, save_codes, save_probe, storing

FACTS = "refined.json"
CHOICES = "choices.safetensors"
_NOWHERE = torch.empty(0, dtype=torch.int64)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """Segments of a whole model, rounded to what their prefix puts in, or tuned, or both.

    Attributes:
        folder: Holds them, site by site and format by format.
        decision: What was refined.
        gain: Divergence afterwards over that before, on the probe samples.
        probe: The refined model on these samples.
    """

    folder: Path
    decision: Decision
    gain: float
    probe: Probe

    def applied(self, weight: QuantizedWeight) -> QuantizedWeight:
        """The weight with its rows as they were refined, but for those of another format than then."""
        sites = self.decision.allocation.sites
        number, before = list(sites).index(weight.name), sites[weight.name]

        def kept(segment: Segment) -> tuple[Tensor, RoundedSegment | None]:
            if not isinstance(segment, RoundedSegment) or segment.format not in before.used:
                return _NOWHERE, None
            rows = (before.choice == before.formats.index(segment.format)).nonzero()[:, 0]
            stored = torch.isin(rows, segment.rows).nonzero()[:, 0]
            places = torch.isin(segment.rows, rows).nonzero()[:, 0]
            return places, load_codes(self.folder, number, segment.format, stored) if len(places) else None

        found = [kept(segment) for segment in weight.segments]
        columns = next((other.column_exponents for _, other in found if isinstance(other, EntropySegment)), None)
        segments = [
            segment if columns is None or not isinstance(segment, EntropySegment) else segment.with_columns(columns)
            for segment in weight.segments
        ]
        for index, (places, other) in enumerate(found):
            segments[index] = _with_rows(segments[index], places, other)
        return replace(weight, segments=tuple(segments))


def refines(job: Job) -> bool:
    """Whether the recipe has anything for this model that is done once its size is settled."""
    return job.recipe.correct.corrects(job.model) or job.recipe.tune.tunes(job.model)


def refined(job: Job, evidence: Evidence, decision: Decision, limit: int | None) -> Refinement | None:
    """Refine the model of a decision, or read what an earlier run made of it; `None` if it is no better for it.

    Probes and first attempts at a size are rounded as they are: all that takes passes over data is done for one model.
    Where sizes are known only once codes are, the decision is corrected before: a row that gets another format later
    loses what it has learned, and so do those that learned to make up for it.

    Args:
        job: What is compiled.
        evidence: Holds the samples.
        decision: What to refine.
        limit: Of the file, in bytes, if there is one.

    Raises:
        OutputError: the workspace cannot be written.
    """
    rules = tuple(stage_text(getattr(job.recipe, kind), kind) for kind in ("correct", "tune"))
    calibration = evidence.calibration
    digests = (decision.allocation.digest, calibration.tuning.digest, calibration.probe.digest)
    entry = job.workspace.entry(
        "refined", evidence.key, *rules, *digests, *evidence.choice_key, str(limit), str(job.seed)
    )
    if not is_finished(entry):
        with storing(job.workspace.root):
            _refine(job, evidence, decision, limit, entry)
            finish(entry)
    if not (entry / FACTS).exists():
        return None
    chosen, gain = _load_decision(entry, decision)
    return Refinement(folder=entry, decision=chosen, gain=gain, probe=load_probe(entry))


def _refine(job: Job, evidence: Evidence, decision: Decision, limit: int | None, entry: Path) -> None:
    """Leave the refined weights in the entry; what the probe samples do not like better is not done."""
    with job.stopwatch.time("round"):
        attempts: dict[str, tuple[QuantizedWeight, ...]] = {}

        def size_of(attempt: Decision) -> int:
            attempts.clear()
            weights = attempts[attempt.allocation.digest] = tuple(rounded(job, evidence, attempt.allocation, "round"))
            return stored_bytes(evidence, attempt.allocation, weights)

        aim = None if limit is None else int((1 - MARGIN) * limit)
        chosen = fitted(job, evidence, decision, aim, size_of) or decision
        weights = attempts.get(chosen.allocation.digest) or tuple(rounded(job, evidence, chosen.allocation, "round"))
        attempts.clear()
    most = stored_bytes(evidence, chosen.allocation, weights) if aim is None else aim

    def room(now: tuple[QuantizedWeight, ...]) -> int:
        return most - stored_bytes(evidence, chosen.allocation, now)

    first = best = _probe(job, evidence, chosen, weights)
    if job.recipe.correct.corrects(job.model):
        with job.stopwatch.time("correct"):
            other = tuple(rounded(job, evidence, chosen.allocation, "correct", corrected=True))
        if (probe := _probe(job, evidence, chosen, other)).measured.kl < best.measured.kl:
            weights, best = other, probe
    if job.recipe.tune.tunes(job.model):
        samples, progress = evidence.calibration.tuning, job.progress
        with job.stopwatch.time("tune"):
            other = job.recipe.tune.tune(job.model, samples, weights, room=room, seed=job.seed, progress=progress)
        if other is not weights and (probe := _probe(job, evidence, chosen, other)).measured.kl < best.measured.kl:
            weights, best = other, probe
    if best is first:
        return
    for number, weight in enumerate(weights):
        for segment in weight.segments:
            if isinstance(segment, RoundedSegment):
                save_codes(entry, number, segment)
    save_probe(entry, best)
    _save_decision(entry, chosen, best.measured.kl / first.measured.kl)


def _save_decision(entry: Path, decision: Decision, gain: float) -> None:
    """What was refined, to the row: solved for its size once more it might come out otherwise."""
    sites = decision.allocation.sites
    write_tensors(entry / CHOICES, {str(number): site.choice for number, site in enumerate(sites.values())})
    facts = {
        "gain": gain,
        "bytes": decision.bytes,
        "raw": decision.raw,
        "sites": [(site.bytes, site.distortion) for site in sites.values()],
    }
    write_text(entry / FACTS, json.dumps(facts))


def _load_decision(entry: Path, asked: Decision) -> tuple[Decision, float]:
    """The decision, with the forecast of the one that was asked for, and what refining gained."""
    facts: dict[str, Any] = json.loads((entry / FACTS).read_text())
    choices = load_file(entry / CHOICES)
    sites = {
        name: replace(site, choice=choices[str(number)], bytes=size, distortion=distortion)
        for number, ((name, site), (size, distortion)) in enumerate(
            zip(asked.allocation.sites.items(), facts["sites"], strict=True)
        )
    }
    allocation = replace(asked.allocation, sites=sites)
    decision = replace(asked, allocation=allocation, bytes=facts["bytes"], raw=tuple(facts["raw"]))
    return decision, facts["gain"]


def _probe(job: Job, evidence: Evidence, decision: Decision, weights: tuple[QuantizedWeight, ...]) -> Probe:
    with job.stopwatch.time("probes"):
        return probe_of(job, evidence, decision.allocation, decision.raw, weights)


def after_refining(
    job: Job, evidence: Evidence, refinement: Refinement, *, correction: float = 1.0, known: tuple[Probe, ...] = ()
) -> Decision:
    """What was refined, with a forecast by the probes as they would be, were they refined likewise, and by itself.

    Args:
        job: What is compiled.
        evidence: What decisions are based on.
        refinement: What came of it.
        correction: Measured over predicted divergence of a model that was written.
        known: Further models, measured as they were written.
    """
    decision = refinement.decision
    itself = as_evaluated(refinement.probe, evaluation_uncertainty(job, evidence))
    probes = (*(scaled(probe, refinement.gain) for probe in decision.probes), scaled(itself, correction), *known)
    return with_probes(job, evidence, decision, probes)


def _with_rows(segment: Segment, places: Int64[Tensor, "m"], other: RoundedSegment | None) -> Segment:
    """As the segment's own method, where there are any such rows."""
    if isinstance(segment, AffineSegment) and isinstance(other, AffineSegment):
        return segment.with_rows(places, other)
    if isinstance(segment, EntropySegment) and isinstance(other, EntropySegment):
        return segment.with_rows(places, other)
    return segment
