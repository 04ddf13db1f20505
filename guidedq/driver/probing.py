"""Probes: whole quantized models, measured before the compile decides, which calibrate the forecast."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.footprint import Footprint, SiteFootprint
from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.artifacts.quantized_weight import EntropySegment, QuantizedWeight
from guidedq.artifacts.samples import SampleSet
from guidedq.driver.decision import Decision, allocated, counted_base, size_range, with_probes
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job
from guidedq.driver.rounding import DequantizedOnUse, rounded
from guidedq.driver.uncertainty import as_evaluated, evaluation_uncertainty
from guidedq.errors import BudgetError
from guidedq.evaluation import measure
from guidedq.ir.graph import Graph
from guidedq.quant.entropy import stream_bytes
from guidedq.registry import stage_text
from guidedq.workspace import finish, is_finished, load_probe, save_probe, storing

PROBE_BITS = (3, 5)
"""Widths of the uniform formats whose sizes the probes are allocated at: budgets up to 6 bits lie near one."""
LOWEST_PROBE_BITS = 3.0
"""All bytes counted; one more probe, where the divergence grows faster than any line from above foretells."""
PROBES_APART = 0.02
"""Share of the bytes by which two probes differ at least."""


def probed(job: Job, evidence: Evidence) -> tuple[Probe, ...]:
    """Whole models of a few sizes, measured on the probe samples now or in an earlier run; by size.

    They are given as they would be on the evaluation samples.

    Raises:
        OutputError: the workspace cannot be written.
    """
    limits = probe_limits(job, evidence.footprint)
    entries = {limit: _probe_entry(job, evidence, limit) for limit in limits}
    missing = [limit for limit in limits if not is_finished(entries[limit])]
    for limits_at_once in (missing, *([limit] for limit in missing)):
        unfinished = [limit for limit in limits_at_once if not is_finished(entries[limit])]
        with suppress(BudgetError):  # an allocator of few formats may not meet all of them
            allocations, raws = allocated(job, evidence, unfinished) if unfinished else ((), ())
            with storing(job.workspace.root), job.stopwatch.time("probes"):
                for limit, allocation, raw in zip(unfinished, allocations, raws, strict=True):
                    _probe_into(entries[limit], job, evidence, allocation, raw)
    uncertainty = evaluation_uncertainty(job, evidence)
    found = (load_probe(entries[limit]) for limit in limits if is_finished(entries[limit]))
    return tuple(as_evaluated(probe, uncertainty) for probe in found)


def probed_itself(
    job: Job, evidence: Evidence, decision: Decision, *, correction: float = 1.0, known: tuple[Probe, ...] = ()
) -> Decision:
    """The decision with its own model as one more probe, measured now or in an earlier run.

    Its forecast then rests on what it lost on the probe samples itself: MiniLM's, read from probes at other sizes, was
    a third too low from 3.5 bits on.

    Args:
        job: What is compiled.
        evidence: Holds the probe samples.
        decision: What to probe.
        correction: Measured over predicted divergence of a model that was written.
        known: Further models, measured as they were written.

    Raises:
        OutputError: the workspace cannot be written.
    """
    entry = _probe_entry(job, evidence, decision.allocation.digest)
    if not is_finished(entry):
        with storing(job.workspace.root), job.stopwatch.time("probes"):
            _probe_into(entry, job, evidence, decision.allocation, decision.raw)
    itself = as_evaluated(load_probe(entry), evaluation_uncertainty(job, evidence))
    probes = (scaled(probe, correction) for probe in (*decision.probes, itself))  # a draw is easy or hard for all
    return with_probes(job, evidence, decision, (*probes, *known))


def scaled(probe: Probe, gain: float) -> Probe:
    """The probe as it would be, had it lost so many times as much."""
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


def _probe_into(entry: Path, job: Job, evidence: Evidence, allocation: Allocation, raw: tuple[float, ...]) -> None:
    """Round a whole model, measure it on the probe samples, and keep what was found."""
    weights = rounded(job, evidence, allocation, "probe")
    save_probe(entry, probe_of(job, evidence, allocation, raw, weights))
    finish(entry)


def _probe_entry(job: Job, evidence: Evidence, what: int | str) -> Path:
    """Where a probe of so many bytes, or of this allocation, is kept: all that it depends on is part of the name."""
    rules = tuple(stage_text(getattr(job.recipe, kind), kind) for kind in ("allocate", "forecast"))
    footprint = f"{evidence.footprint.base_bytes} {what}"
    fused = repr(job.model.graph.fused)
    digest = evidence.calibration.probe.digest
    return job.workspace.entry("probe", evidence.key, *rules, digest, *evidence.choice_key, footprint, fused)


def probe_of(
    job: Job, evidence: Evidence, allocation: Allocation, raw: tuple[float, ...], weights: Iterable[QuantizedWeight]
) -> Probe:
    """A whole quantized model, measured on the probe samples.

    Args:
        job: What is compiled.
        evidence: Holds the probe samples.
        allocation: The format of every row.
        raw: The allocation's uncalibrated forecast.
        weights: Rounded to it.
    """
    held = tuple(weights)
    return Probe(
        raw_kl_by_sequence=raw,
        raw_kl=sum(raw) / len(raw),
        measured=measured_on(job, evidence, evidence.calibration.probe, held),
        bytes=stored_bytes(evidence, allocation, held),
        counted_bytes=allocation.bytes,
    )


def stored_bytes(evidence: Evidence, allocation: Allocation, weights: Iterable[QuantizedWeight]) -> int:
    """Bytes of the file with these weights, rounded to this allocation: what is counted, and what streams take beyond.

    The footprint knows the streams' mean sizes alone.
    """
    return allocation.bytes + sum(_surplus(evidence.footprint.sites[weight.name], weight) for weight in weights)


def measured_on(job: Job, evidence: Evidence, samples: SampleSet, weights: Iterable[QuantizedWeight]) -> Measurement:
    """The whole quantized model against the original on these samples, as the backend's runtime would run it."""
    program, activations = job.model.program, evidence.rounding
    stored = DequantizedOnUse({weight.name: (job.model.graph.site(weight.name), weight) for weight in weights})
    return measure(
        samples,
        job.model.objective,
        predict_original=job.original.predict,
        predict_quantized=lambda batch: program.predict(batch, weights=stored, activations=activations),
        progress=job.progress,
    )


def _surplus(counted: SiteFootprint, weight: QuantizedWeight) -> int:
    """Bytes that the streams of a weight take beyond what the footprint counts for them."""
    total = 0
    for segment in weight.segments:
        if isinstance(segment, EntropySegment):
            size = stream_bytes(segment.codes, segment.format, segment.column_exponents, thorough=True)
            total += size - len(segment.rows) * counted.code_bytes[counted.formats.index(segment.format)]
    return total


def probe_limits(job: Job, footprint: Footprint) -> list[int]:
    """Sizes of the probes in bytes, rising; all feasible."""
    graph = job.model.graph
    base, parameters = counted_base(job, footprint)
    lowest = int(LOWEST_PROBE_BITS * parameters / 8) + base
    asked = [lowest, *(_uniform_bytes(graph, footprint, bits) for bits in PROBE_BITS)]
    low, high = size_range(graph, footprint)
    found: list[int] = []
    for limit in sorted((min(max(limit, low), high) for limit in asked), reverse=True):
        if not found or limit < (1 - PROBES_APART) * found[-1]:
            found.append(limit)
    return found[::-1]


def _uniform_bytes(graph: Graph, footprint: Footprint, bits: int) -> int:
    """Bytes of the file with every site at `bits`, or at the nearest width it can have, in its smallest such format."""
    total = footprint.base_bytes
    for site in graph.quantizable:
        held = footprint.sites[site.name]
        distance = [(abs(format.bits - bits), size) for format, size in zip(held.formats, held.row_bytes, strict=True)]
        nearest = min(range(len(distance)), key=distance.__getitem__)
        total += held.bytes({nearest: site.rows})
    return total
