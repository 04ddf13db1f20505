"""Compile a nested artifact: one file whose top bit planes are a model at each of several widths.

The same steps as `compiler.py`, but nothing is allocated: every site has all widths. Each width is a whole model that
is measured on the probe samples before anything is written, so each has a forecast of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from guidedq.artifacts.allocation import Allocation, SiteAllocation
from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.diagnostic import Diagnostic
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.artifacts.quantized_weight import QuantizedWeight, float_segment
from guidedq.artifacts.report import PrecisionFacts
from guidedq.budget import Budget, parse_budget
from guidedq.compiler import Artifact, measured_file
from guidedq.diagnostics.diagnosis import diagnosed
from guidedq.driver.decision import Decision, counted_base, forecast_of
from guidedq.driver.evidence import CurveFiles, Evidence, calibration_set, guidance_of
from guidedq.driver.gates import NO_GATES, Gates
from guidedq.driver.job import Job
from guidedq.driver.probing import probe_of
from guidedq.driver.uncertainty import as_evaluated, evaluation_uncertainty
from guidedq.driver.written import check_written
from guidedq.errors import BudgetError
from guidedq.ir.graph import Site
from guidedq.ir.model import check_weights
from guidedq.memory import give_back
from guidedq.output import check_output, new_folder
from guidedq.progress import tracked
from guidedq.quant.formats import FloatFormat
from guidedq.quant.nested import NestedFormat, widths_text
from guidedq.registry import stage_text
from guidedq.report.build import build_report, measured_facts, run_facts
from guidedq.report.wording import forecast_text
from guidedq.report.write import write_report
from guidedq.workspace import save_curve, storing

PLAIN = ("correct=none", "tune=none", "coding=fixed")
"""Codes are not corrected or tuned afterwards: both look at one width, and would undo what the others share."""
GROUP_SIZE = 64


def compile_nested(
    job: Job,
    widths: Sequence[int],
    budget: Budget | None,
    out: Path,
    *,
    overwrite: bool = False,
    gates: Gates = NO_GATES,
    training_tokens: float | None = None,
) -> Artifact:
    """Compile all widths into one folder; each width's forecast is told before anything is written.

    Args:
        job: What is compiled, with what.
        widths: Bits of a weight, rising.
        budget: A size that the whole file may not exceed, if there is one.
        out: Folder to write.
        overwrite: Replace it if it exists.
        gates: For each precision.
        training_tokens: What the model was trained on, if known, for a diagnostic.

    Raises:
        GateError: a gate was missed; nothing is left in `out`.
        BudgetError: the file would be larger than the budget, or the budget is none for a size.
        GuidedQError: widths, data, model, backend or output folder will not do.
    """
    check_output(out, overwrite=overwrite)
    job = replace(job, recipe=job.recipe.with_settings(PLAIN))
    sizes = job.recipe.group_sizes
    format = NestedFormat(
        widths=tuple(widths), group_size=sizes[0] if len(sizes) == 1 else GROUP_SIZE, precision=widths[-1]
    )
    with job.stopwatch.time("check"):
        check_weights(job.model, job.model.graph.quantizable)
        footprint = job.backend.nested_footprint(job.model, format)
        size = _size(job, footprint, format, budget)
    found = _rounded(job, footprint, format)
    unit = job.model.objective.unit
    by_width = dict(zip(widths, found.decisions, strict=True))
    for width, decision in by_width.items():
        read = found.read_bytes(width)
        job.progress.notice(f"{width} bits: {forecast_text(decision.forecast, read, job.model.parameters, unit)}")
    evidence, decision = found.evidence, found.decisions[-1]
    for width, one in by_width.items():
        gates.check_increase(f"at {width} bits the forecast", one.forecast.loss_increase, unit)
    with new_folder(out, overwrite=overwrite) as folder:
        with job.stopwatch.time("emit"):
            emission = job.backend.emit(job.model, found.weights, folder)
        with job.stopwatch.time("verify"):
            check_written(job, evidence, found.weights, folder)
        measurements = {width: measured_file(job, evidence, folder, precision=width) for width in widths}
        measured = measurements[widths[-1]]
        for width, one in measurements.items():
            gates.check_increase(f"at {width} bits the measured", one.loss_increase, unit)
        diagnostics = at_any_width(
            {
                width: diagnosed(job, evidence, one, one.probes, measurements[width], training_tokens)
                for width, one in by_width.items()
            }
        )
        gates.check_diagnostics(diagnostics)
        asked = budget or parse_budget(f"{emission.bytes}B")
        run = replace(run_facts(job, gates, training_tokens), nested=tuple(widths))
        report = build_report(job, asked, size, evidence, decision, emission, measured, (), diagnostics, run)
        report = replace(report, precisions=_precisions(job, found, measurements))
        write_report(report, folder)
    return Artifact(folder=out, report=report)


def _precisions(job: Job, found: _Found, measurements: Mapping[int, Measurement]) -> tuple[PrecisionFacts, ...]:
    return tuple(
        PrecisionFacts(
            bits=width,
            read_bits_per_weight=8 * found.read_bytes(width) / job.model.parameters,
            forecast=decision.forecast,
            measured=measured_facts(measured),
        )
        for (width, measured), decision in zip(measurements.items(), found.decisions, strict=True)
    )


def at_any_width(found: Mapping[int, tuple[Diagnostic, ...]]) -> tuple[Diagnostic, ...]:
    """Each check once: as the narrowest width has it that warns, or the widest if none does.

    Args:
        found: The same checks for each width, narrowest first.
    """
    widest = max(found)

    def chosen(checks: Sequence[Diagnostic]) -> Diagnostic:
        by_width = dict(zip(found, checks, strict=True))
        width = next((width for width, check in by_width.items() if check.warns), widest)
        check = by_width[width]
        return check if width == widest else replace(check, meaning=f"{check.meaning} (at {width} bits)")

    return tuple(chosen(checks) for checks in zip(*found.values(), strict=True))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was rounded: all weights, and for each width what it is and is forecast to cost."""

    evidence: Evidence
    weights: tuple[QuantizedWeight, ...]
    decisions: tuple[Decision, ...]
    format: NestedFormat

    def read_bytes(self, width: int) -> int:
        """Bytes of the file that are read at a width: without the layers beyond it."""
        unread = sum(
            segment.codes.numel() * (self.format.widest - width) // 8
            for weight in self.weights
            for segment in weight.segments
            if isinstance(segment, NestedSegment)
        )
        return self.decisions[-1].bytes - unread


def _size(job: Job, footprint: Footprint, format: NestedFormat, budget: Budget | None) -> int:
    """Bytes that the budget bounds: of the whole file, or of the linear sites alone.

    Raises:
        BudgetError: they are more than the budget.
    """
    base, parameters = counted_base(job, footprint)
    size = footprint.base_bytes + sum(
        footprint.sites[site.name].bytes({0: site.rows}) for site in job.model.graph.quantizable
    )
    if budget is None:
        return size
    if budget.bounds_loss:
        raise BudgetError(f"--budget {budget.text} bounds a loss, but --nested fixes the widths. Give a size, or none.")
    limit = budget.limit_bytes(parameters) + base
    if size > limit:
        raise BudgetError(
            f"nested widths {widths_text(format.widths)} take {8 * (size - base) / parameters:.3f} bits a weight "
            f"({size / 1e6:.3f} MB), above the budget of {budget.text}. Raise it, or name narrower widths."
        )
    return limit


def _rounded(job: Job, footprint: Footprint, format: NestedFormat) -> _Found:
    """Sample, collect, round, weigh and probe."""
    with storing(job.workspace.root), ExitStack() as stack:
        with job.stopwatch.time("sample"):
            calibration = calibration_set(job)
        with job.stopwatch.time("guidance"):
            guidance, key = guidance_of(job, calibration)
        stages = (stage_text(job.recipe.round, "round"), stage_text(job.recipe.measure, "measure"))
        entry = job.workspace.entry("nested", key, *stages, str(format))
        stack.enter_context(job.stopwatch.time("curves"))
        weights: list[QuantizedWeight] = []
        curves: dict[str, SiteCurve] = {}
        sites = job.model.graph.quantizable
        for number, site in tracked(job.progress, "round", list(enumerate(sites)), len(sites)):
            matrix, mine = job.model.matrix(site), guidance.site(site.name)
            stored = footprint.sites[site.name].formats[0]
            if isinstance(stored, FloatFormat):
                segments = [float_segment(matrix, stored, torch.arange(site.rows))] * len(format.widths)
            else:
                nested = job.recipe.round.nested(matrix, mine, format)
                segments = [nested.at(width) for width in format.widths]
            curve = job.recipe.measure.weigh(site.name, matrix, mine, guidance.gradients(site.name), segments)
            save_curve(entry, number, curve)
            curves[site.name] = replace(curve, projections=None)
            weights.append(QuantizedWeight(name=site.name, shape=(site.rows, site.columns), segments=(segments[-1],)))
            give_back()
    files = CurveFiles(folder=entry, names=tuple(curves))
    evidence = Evidence(
        footprint=footprint,
        calibration=calibration,
        guidance=guidance,
        distortions=curves,
        curves=files,
        key=entry.name,
    )
    return _Found(
        evidence=evidence, weights=tuple(weights), decisions=_decided(job, evidence, weights, format), format=format
    )


def _decided(
    job: Job, evidence: Evidence, weights: Sequence[QuantizedWeight], format: NestedFormat
) -> tuple[Decision, ...]:
    """Each width as a decision, forecast by all of them as probes."""
    levels = range(len(format.widths))
    allocations = [_allocation(job, evidence, level) for level in levels]
    with job.stopwatch.time("forecast"):
        raws = job.recipe.forecast.raw(allocations, evidence.curves.stream(), evidence.guidance.units_per_sequence)
    with job.stopwatch.time("probes"):
        probes = [
            probe_of(job, evidence, allocations[level], raws[level], [read_at(weight, width) for weight in weights])
            for level, width in enumerate(format.widths)
        ]
    uncertainty = evaluation_uncertainty(job, evidence)
    moved: tuple[Probe, ...] = tuple(as_evaluated(probe, uncertainty) for probe in probes)
    return tuple(
        Decision(
            allocation=allocations[level],
            bytes=allocations[level].bytes,
            raw=raws[level],
            forecast=forecast_of(job, evidence, raws[level], moved),
            probes=moved,
        )
        for level in levels
    )


def read_at(weight: QuantizedWeight, width: int) -> QuantizedWeight:
    """A nested weight at one of its widths; any other as it is."""
    segments = tuple(part.at(width) if isinstance(part, NestedSegment) else part for part in weight.segments)
    return replace(weight, segments=segments)


def _allocation(job: Job, evidence: Evidence, level: int) -> Allocation:
    sites: Mapping[str, SiteAllocation] = {
        site.name: _site_allocation(site, evidence, level) for site in job.model.graph.quantizable
    }
    return Allocation(sites=sites, base_bytes=evidence.footprint.base_bytes)


def _site_allocation(site: Site, evidence: Evidence, level: int) -> SiteAllocation:
    curve = evidence.distortions[site.name]
    return SiteAllocation(
        formats=curve.formats,
        choice=torch.full((site.rows,), level),
        bytes=evidence.footprint.sites[site.name].bytes({0: site.rows}),
        distortion=float(curve.distortion[:, level].sum()),
    )
