"""Tune a rounded model end to end, and keep what came of it: a further budget, or another run, starts from there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from jaxtyping import UInt8
from safetensors.torch import load_file
from torch import Tensor

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.forecast import Probe
from guidedq.artifacts.quantized_weight import FloatSegment, QuantizedWeight, Segment
from guidedq.decision import Decision, forecast_of
from guidedq.evidence import Evidence
from guidedq.files import write_tensors, write_text
from guidedq.job import Job
from guidedq.probing import measured_on_probes
from guidedq.registry import stage_text
from guidedq.rounding import rounded
from guidedq.workspace import finish, is_finished, storing

CODES = "codes"
GAIN = "gain"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Tuned codes of a whole model.

    Attributes:
        folder: Holds them, site by site.
        allocation: Which they were tuned for.
        gain: Divergence after tuning over that before, on the probe samples.
    """

    folder: Path
    allocation: Allocation
    gain: float

    def applied(self, weight: QuantizedWeight) -> QuantizedWeight:
        """The weight with tuned codes, but for rows of another format than they were tuned in."""
        number = list(self.allocation.sites).index(weight.name)
        codes = load_file(_file(self.folder, number))[CODES]
        before = self.allocation.sites[weight.name]

        def retuned(segment: Segment) -> Segment:
            if isinstance(segment, FloatSegment) or segment.format not in before.formats:
                return segment
            same = before.choice[segment.rows] == before.formats.index(segment.format)
            return segment.with_codes(torch.where(same[:, None], codes[segment.rows], segment.codes))

        return replace(weight, segments=tuple(map(retuned, weight.segments)))


def tuned(job: Job, evidence: Evidence, decision: Decision) -> Tuning | None:
    """Tune the model of a decision, or read what an earlier run tuned; `None` if it is no better for it.

    Raises:
        OutputError: the workspace cannot be written.
    """
    rules = tuple(stage_text(getattr(job.recipe, kind), kind) for kind in ("correct", "tune"))
    calibration = evidence.calibration
    key = (evidence.key, *rules, decision.allocation.digest, calibration.calibration.digest, calibration.probe.digest)
    entry = job.workspace.entry("tuned", *key, repr(job.activations()), str(job.seed))
    if not is_finished(entry):
        with job.stopwatch.time("tune"):
            before = tuple(rounded(job, evidence, decision.allocation, "round"))
            weights = job.recipe.tune.tune(
                job.model, calibration.calibration, before, seed=job.seed, progress=job.progress
            )
        with storing(job.workspace.root), job.stopwatch.time("probes"):
            if weights is not before:
                _keep_better(job, evidence, before, weights, entry)
            finish(entry)
    if not (entry / GAIN).exists():
        return None
    return Tuning(folder=entry, allocation=decision.allocation, gain=float((entry / GAIN).read_text()))


def _keep_better(
    job: Job,
    evidence: Evidence,
    before: tuple[QuantizedWeight, ...],
    weights: tuple[QuantizedWeight, ...],
    entry: Path,
) -> None:
    """Keep the tuned weights, unless the probe samples say that they are no better."""
    kl_before, kl = (measured_on_probes(job, evidence, model).kl for model in (before, weights))
    if not kl < kl_before:
        return
    for number, weight in enumerate(weights):
        write_tensors(_file(entry, number), {CODES: _codes(weight)})
    write_text(entry / GAIN, repr(kl / kl_before))


def after_tuning(job: Job, evidence: Evidence, decision: Decision, tuning: Tuning) -> Decision:
    """The decision with what tuning gained: the probes as they would be, were they tuned likewise.

    Those of several sizes say more of the level than the one tuned model, and what its samples have in common with the
    same samples before tuning cancels.
    """
    probes = tuple(_scaled(probe, tuning.gain) for probe in decision.probes)
    return replace(decision, forecast=forecast_of(job, evidence, decision.raw, probes), probes=probes)


def _scaled(probe: Probe, gain: float) -> Probe:
    measured = probe.measured
    return replace(
        probe,
        measured=replace(
            measured,
            kl=gain * measured.kl,
            loss_after=measured.loss_before + gain * measured.loss_increase,
            kl_by_sample=tuple(gain * value for value in measured.kl_by_sample),
            loss_increase_by_sample=tuple(gain * value for value in measured.loss_increase_by_sample),
        ),
    )


def _codes(weight: QuantizedWeight) -> UInt8[Tensor, "out in"]:
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    for segment in weight.segments:
        if not isinstance(segment, FloatSegment):
            codes[segment.rows] = segment.codes
    return codes


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"
