"""The compiler on one page: from a model and a budget to an artifact, with a forecast before and a measurement after.

    gather (sample, collect, measure curves) -> decide (allocate, probe, forecast) -> round, refine -> emit -> measure

It knows the interfaces of `stages.py` and nothing of the stages behind them. Everything up to the decision is kept in
the workspace: another budget starts at `decide`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from guidedq.artifacts.emission import Emission
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.artifacts.report import PlanPoint, Report
from guidedq.budget import Budget, parse_budget
from guidedq.diagnostics.diagnosis import diagnosed
from guidedq.driver.decision import Decision, check_reach, counted_size, decide, limit_of
from guidedq.driver.evidence import Evidence, gather
from guidedq.driver.fitting import MARGIN, REFINED_SLACK, SLACK, fitted
from guidedq.driver.gates import NO_GATES, Gates
from guidedq.driver.job import Job
from guidedq.driver.joint_choice import with_choice
from guidedq.driver.loss_budget import check_labels, check_objective, is_kept, miss_text, smallest_within
from guidedq.driver.probing import probed
from guidedq.driver.profiling import latency_facts
from guidedq.driver.refining import Refinement
from guidedq.driver.rounding import rounded
from guidedq.driver.solving import as_probe, settled, solved_again
from guidedq.driver.written import check_written
from guidedq.errors import BudgetError, GateError
from guidedq.evaluation import measure
from guidedq.ir.model import check_weights
from guidedq.memory import give_back
from guidedq.output import check_output, new_folder
from guidedq.report.build import build_report, plan_point, run_facts
from guidedq.report.write import write_report

CURVE_BITS = (2.25, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
"""Sizes at which the report draws its rate-distortion curve, as far as they are feasible."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A compiled model: the folder, and the report that lies in it."""

    folder: Path
    report: Report


def compile_model(
    job: Job,
    budget: Budget,
    out: Path,
    *,
    overwrite: bool = False,
    gates: Gates = NO_GATES,
    training_tokens: float | None = None,
    curve_bits: Sequence[float] = CURVE_BITS,
) -> Artifact:
    """Compile within a budget; the forecast is told before anything is written.

    A budget for loss is solved on the forecast, verified by the measurement and, if that misses it, solved once more
    with what was measured as a further probe.

    Raises:
        GateError: a gate or a budget for loss is missed; nothing is left in `out`.
        GuidedQError: the budget, the data, the model or the output folder will not do.
    """
    check_output(out, overwrite=overwrite)
    with job.stopwatch.time("check"):
        check_weights(job.model, job.model.graph.quantizable)
        footprint = job.footprint()
        limit = _limit(budget, job, footprint)
    evidence = with_choice(job, gather(job, footprint), limit)
    check_labels(budget, job.model, evidence.calibration)
    for notice in evidence.notices:
        job.progress.notice(notice)
    sizes = _feasible(job, footprint, curve_bits)
    probes = probed(job, evidence)
    first, curve = _decided(job, evidence, probes, budget, limit, sizes)
    decision, refinement = settled(job, evidence, budget, limit, first)
    unit = job.model.objective.unit
    gates.check_increase("forecast", decision.forecast.loss_increase, unit)
    with new_folder(out, overwrite=overwrite) as folder:
        written = _written(job, evidence, decision, refinement, limit, folder)
        if not is_kept(budget, written.measured):
            written = _written_again(job, evidence, budget, probes, written, folder)
        measured = written.measured
        gates.check_increase("measured", measured.loss_increase, unit)
        diagnostics = diagnosed(job, evidence, written.decision, probes, measured, training_tokens)
        gates.check_diagnostics(diagnostics)
        decision, emission = replace(written.decision, probes=probes), written.emission
        run = run_facts(job, gates, training_tokens)
        report = build_report(job, budget, limit, evidence, decision, emission, measured, curve, diagnostics, run)
        latency = latency_facts(job, evidence, decision.allocation, folder)
        report = replace(report, notices=(*report.notices, *written.notices), latency=latency)
        write_report(report, folder)
    return Artifact(folder=out, report=report)


def plan_model(job: Job, budgets: Sequence[Budget]) -> tuple[PlanPoint, ...]:
    """The forecast at each budget, before anything is refined; nothing is written but the workspace.

    Without budgets, at the sizes of a report's curve.

    Raises:
        BudgetError: a budget is not feasible.
    """
    with job.stopwatch.time("check"):
        check_weights(job.model, job.model.graph.quantizable)
        footprint = job.footprint()
        budgets = budgets or [parse_budget(text) for text in _feasible(job, footprint, CURVE_BITS)]
        limits = {budget: _limit(budget, job, footprint) for budget in budgets}
    sized = [limit for limit in limits.values() if limit is not None]
    # the strictest: one choice for all sizes
    evidence = with_choice(job, gather(job, footprint), max(sized) if len(sized) == len(limits) else None)
    for notice in evidence.notices:
        job.progress.notice(notice)
    for budget in budgets:
        check_labels(budget, job.model, evidence.calibration)
    probes = probed(job, evidence)
    sizes = {budget: limit for budget, limit in limits.items() if limit is not None}
    for limit in sizes.values():
        check_reach(job, evidence, limit)
    aims = [_aim(evidence, probes, limit) for limit in sizes.values()]
    decided = dict(zip(sizes, decide(job, evidence, probes, aims), strict=True))
    decided |= {b: smallest_within(job, evidence, probes, b) for b, limit in limits.items() if limit is None}
    return tuple(plan_point(job, budget.text, decided[budget]) for budget in budgets)


def _limit(budget: Budget, job: Job, footprint: Footprint) -> int | None:
    """The most bytes that the file may have; `None` where the budget bounds the loss.

    Raises:
        BudgetError: the model cannot keep it, whatever the data say.
    """
    check_objective(budget, job.model)
    return None if budget.bounds_loss else limit_of(budget, job, footprint)


def _decided(
    job: Job,
    evidence: Evidence,
    probes: tuple[Probe, ...],
    budget: Budget,
    limit: int | None,
    sizes: Mapping[str, int],
) -> tuple[Decision, list[PlanPoint]]:
    """The decision for the budget, and the curve over these sizes, as far as the allocator meets them.

    Raises:
        BudgetError: the budget cannot be met.
    """
    if limit is not None:
        check_reach(job, evidence, limit)
    solved = [smallest_within(job, evidence, probes, budget)] if limit is None else []
    asked = [] if limit is None else [_aim(evidence, probes, limit)]
    aims = [counted_size(probes, size) for size in sizes.values()]
    try:
        first, *others = (*solved, *decide(job, evidence, probes, [*asked, *aims]))
    except BudgetError:  # an allocator of few formats does not meet all sizes of the curve
        sizes, (first, *others) = {}, (*solved, *decide(job, evidence, probes, asked))
    return first, [plan_point(job, text, other) for text, other in zip(sizes, others, strict=True)]


def _aim(evidence: Evidence, probes: Sequence[Probe], limit: int) -> int:
    """What to allocate for, in counted bytes, so that the file is sure to fit, and hardly smaller than it may be."""
    return limit if evidence.exact else int((1 - MARGIN) * counted_size(probes, limit))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A file, the decision that it follows, what it lost, and what to tell of how it came about."""

    decision: Decision
    emission: Emission
    measured: Measurement
    notices: tuple[str, ...] = ()


def _written(
    job: Job, evidence: Evidence, decision: Decision, refinement: Refinement | None, limit: int | None, folder: Path
) -> _Written:
    """Write a decision, and measure what was written."""
    decision, emission = _emit_within(job, evidence, decision, refinement, limit, folder)
    return _Written(decision=decision, emission=emission, measured=measured_file(job, evidence, folder))


def _written_again(
    job: Job, evidence: Evidence, budget: Budget, probes: tuple[Probe, ...], missed: _Written, folder: Path
) -> _Written:
    """Solve a budget for loss once more with what was measured, and write that.

    Raises:
        GateError: the budget is missed again.
    """
    notice = f"the first file's {miss_text(budget, missed.measured)}: solved again with what was measured."
    known = as_probe(missed.decision, missed.measured, missed.emission.bytes)
    decision, refinement = solved_again(job, evidence, budget, probes, missed.decision, known)
    written = _written(job, evidence, decision, refinement, None, folder)
    if not is_kept(budget, written.measured):
        raise GateError(f"{miss_text(budget, written.measured)}, also when solved again. Nothing was written.")
    return replace(written, notices=(notice,))


def _emit_within(
    job: Job, evidence: Evidence, decision: Decision, refinement: Refinement | None, limit: int | None, folder: Path
) -> tuple[Decision, Emission]:
    """Write the file; where there is a limit and the size is known only then, correct the allocation until it fills it.

    Raises:
        BudgetError: the file does not come to fit; without entropy formats the footprint is wrong then.
    """
    if limit is None:
        return decision, _emit(job, evidence, decision, refinement, folder)
    written: list[tuple[Decision, Emission]] = []

    def size_of(attempt: Decision) -> int:
        written.append((attempt, _emit(job, evidence, attempt, refinement, folder)))
        return written[-1][1].bytes

    best = fitted(job, evidence, decision, limit, size_of, slack=SLACK if refinement is None else REFINED_SLACK)
    if best is None:
        raise BudgetError(f"no file of at most {limit} bytes was found. Raise the budget a little.")
    return written[-1] if written[-1][0] is best else (best, _emit(job, evidence, best, refinement, folder))


def _emit(job: Job, evidence: Evidence, decision: Decision, refinement: Refinement | None, folder: Path) -> Emission:
    """Write an allocation into a folder, in place of what may be there."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with job.stopwatch.time("emit"):
        rows = rounded(job, evidence, decision.allocation, "round and pack")
        weights = tuple(map(refinement.applied, rows) if refinement else rows)
        emission = job.backend.emit(job.model, weights, folder, evidence.rounding)
    with job.stopwatch.time("verify"):
        check_written(job, evidence, weights, folder)
    give_back()
    return emission


def measured_file(job: Job, evidence: Evidence, folder: Path, *, precision: int | None = None) -> Measurement:
    """What was written, against the original, on the evaluation samples; a nested artifact at one of its precisions."""
    with job.stopwatch.time("evaluate"):
        return measure(
            evidence.calibration.evaluation,
            job.model.objective,
            predict_original=job.original.predict,
            predict_quantized=job.backend.open(job.model, folder, precision=precision),
            progress=job.progress,
        )


def _feasible(job: Job, footprint: Footprint, sizes: Sequence[float]) -> dict[str, int]:
    """Of these sizes, in bits per weight, the feasible ones and their limits in bytes."""
    found: dict[str, int] = {}
    for bits in sizes:
        budget = parse_budget(f"{bits}bits")
        with suppress(BudgetError):
            found[budget.text] = limit_of(budget, job, footprint)
    return found
