"""Tune a rounded model end to end, and keep what came of it: a further budget, or another run, starts from there."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor

from guidedq.artifacts.forecast import Probe
from guidedq.artifacts.quantized_weight import (
    AffineSegment,
    EntropySegment,
    QuantizedWeight,
    RoundedSegment,
    Segment,
)
from guidedq.driver.decision import Decision, decide, with_probes
from guidedq.driver.evidence import Evidence
from guidedq.driver.fitting import MARGIN, fitted
from guidedq.driver.job import Job
from guidedq.driver.probing import measured_on_probes, probe_of, scaled, stored_bytes
from guidedq.driver.rounding import rounded
from guidedq.driver.uncertainty import as_evaluated, evaluation_uncertainty
from guidedq.errors import FormatError
from guidedq.files import write_text
from guidedq.registry import stage_text
from guidedq.workspace import finish, is_finished, load_codes, load_probe, save_codes, save_probe, storing

FACTS = "tuned.json"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Tuned segments of a whole model.

    Attributes:
        folder: Holds them, site by site and format by format.
        decision: What was tuned.
        gain: Divergence after tuning over that before, on the probe samples.
        probe: The tuned model on these samples.
    """

    folder: Path
    decision: Decision
    gain: float
    probe: Probe

    def applied(self, weight: QuantizedWeight) -> QuantizedWeight:
        """The weight with its rows as they were tuned, but for those of another format than then."""
        sites = self.decision.allocation.sites
        number, before = list(sites).index(weight.name), sites[weight.name]

        def retuned(segment: Segment) -> Segment:
            if not isinstance(segment, RoundedSegment) or segment.format not in before.used:
                return segment
            rows = (before.choice == before.formats.index(segment.format)).nonzero()[:, 0]
            stored = torch.isin(rows, segment.rows).nonzero()[:, 0]
            kept = load_codes(self.folder, number, segment.format, stored)
            places = torch.isin(segment.rows, rows).nonzero()[:, 0]
            return segment if kept is None else _with_rows(segment, places, kept)

        return replace(weight, segments=tuple(map(retuned, weight.segments)))


def tuned(job: Job, evidence: Evidence, decision: Decision, limit: int | None) -> Tuning | None:
    """Tune the model of a decision, or read what an earlier run tuned; `None` if it is no better for it.

    Where sizes are known only once codes are, the decision is corrected before: a row that gets another format later
    loses what it has learned, and so do those that learned to make up for it.

    Args:
        job: What is compiled.
        evidence: Holds the samples.
        decision: What to tune.
        limit: Of the file, in bytes, if there is one.

    Raises:
        OutputError: the workspace cannot be written.
    """
    rules = tuple(stage_text(getattr(job.recipe, kind), kind) for kind in ("correct", "tune"))
    calibration = evidence.calibration
    digests = (decision.allocation.digest, calibration.tuning.digest, calibration.probe.digest)
    entry = job.workspace.entry(
        "tuned", evidence.key, *rules, *digests, *evidence.choice_key, str(limit), str(job.seed)
    )
    if not is_finished(entry):
        with storing(job.workspace.root):
            _tune(job, evidence, decision, limit, entry)
            finish(entry)
    if not (entry / FACTS).exists():
        return None
    facts: dict[str, Any] = json.loads((entry / FACTS).read_text())
    chosen = decision if facts["digest"] == decision.allocation.digest else None
    if chosen is None:
        (chosen,) = decide(job, evidence, decision.probes, [facts["bytes"]])
    return Tuning(folder=entry, decision=chosen, gain=facts["gain"], probe=load_probe(entry))


def _tune(job: Job, evidence: Evidence, decision: Decision, limit: int | None, entry: Path) -> None:
    """Leave the tuned weights in the entry, unless the probe samples say that they are no better."""
    with job.stopwatch.time("tune"):
        attempts: dict[str, tuple[QuantizedWeight, ...]] = {}

        def size_of(attempt: Decision) -> int:
            attempts.clear()
            weights = attempts[attempt.allocation.digest] = tuple(rounded(job, evidence, attempt.allocation, "round"))
            return stored_bytes(evidence, attempt.allocation, weights)

        aim = None if limit is None else int((1 - MARGIN) * limit)
        chosen = fitted(job, evidence, decision, aim, size_of) or decision
        before = attempts.get(chosen.allocation.digest) or tuple(rounded(job, evidence, chosen.allocation, "round"))
        attempts.clear()

        most = stored_bytes(evidence, chosen.allocation, before) if aim is None else aim

        def room(weights: tuple[QuantizedWeight, ...]) -> int:
            return most - stored_bytes(evidence, chosen.allocation, weights)

        samples = evidence.calibration.tuning
        weights = job.recipe.tune.tune(job.model, samples, before, room=room, seed=job.seed, progress=job.progress)
    if weights is before:
        return
    with job.stopwatch.time("probes"):
        probe = probe_of(job, evidence, chosen.allocation, chosen.raw, weights)
        kl_before = measured_on_probes(job, evidence, before).kl
    if not probe.measured.kl < kl_before:
        return
    for number, weight in enumerate(weights):
        for segment in weight.segments:
            if isinstance(segment, RoundedSegment):
                save_codes(entry, number, segment)
    save_probe(entry, probe)
    allocation, gain = chosen.allocation, probe.measured.kl / kl_before
    write_text(entry / FACTS, json.dumps({"digest": allocation.digest, "bytes": allocation.bytes, "gain": gain}))


def after_tuning(
    job: Job, evidence: Evidence, tuning: Tuning, *, correction: float = 1.0, known: tuple[Probe, ...] = ()
) -> Decision:
    """What was tuned, with a forecast by the probes as they would be, were they tuned likewise, and by itself.

    Args:
        job: What is compiled.
        evidence: What decisions are based on.
        tuning: What came of it.
        correction: Measured over predicted divergence of a model that was written.
        known: Further models, measured as they were written.
    """
    decision = tuning.decision
    itself = as_evaluated(tuning.probe, evaluation_uncertainty(job, evidence))
    probes = (*(scaled(probe, tuning.gain) for probe in decision.probes), scaled(itself, correction), *known)
    return with_probes(job, evidence, decision, probes)


def _with_rows(segment: RoundedSegment, places: Int64[Tensor, "m"], other: RoundedSegment) -> RoundedSegment:
    """As the segment's own method; the segment as it is where correction has led to other scales of the columns."""
    if isinstance(segment, AffineSegment) and isinstance(other, AffineSegment):
        return segment.with_rows(places, other)
    if isinstance(segment, EntropySegment) and isinstance(other, EntropySegment):
        with suppress(FormatError):
            return segment.with_rows(places, other)
    return segment
