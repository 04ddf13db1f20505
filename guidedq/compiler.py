"""The compiler on one page: from a model and a budget to an artifact, with a forecast before and a measurement after.

    gather (sample, collect, measure curves) -> decide (allocate, probe, forecast) -> round -> tune -> emit -> measure

It knows the interfaces of `stages.py` and nothing of the stages behind them. Everything up to the decision is kept in
the workspace: another budget starts at `decide`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.forecast import Probe
from guidedq.artifacts.report import PlanPoint, Report
from guidedq.budget import Budget, parse_budget
from guidedq.decision import Decision, check_reach, counted_size, decide, limit_of
from guidedq.errors import BudgetError, GateError
from guidedq.evaluation import measure
from guidedq.evidence import Evidence, gather
from guidedq.fitting import MARGIN, SLACK, TUNED_SLACK, fitted
from guidedq.ir.model import check_weights
from guidedq.job import Job
from guidedq.memory import give_back
from guidedq.output import check_output, new_folder
from guidedq.probing import probed
from guidedq.report.build import build_report, plan_point
from guidedq.report.wording import forecast_text, tuned_text
from guidedq.report.write import write_report
from guidedq.rounding import rounded
from guidedq.stages import Emission
from guidedq.tuning import Tuning, after_tuning, tuned
from guidedq.written import check_written

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
    largest_loss_increase: float | None = None,
    curve_bits: Sequence[float] = CURVE_BITS,
) -> Artifact:
    """Compile within a budget; the forecast is told before anything is written.

    Raises:
        GateError: forecast or measured loss increase exceed `largest_loss_increase`; nothing is left in `out`.
        GuidedQError: the budget, the data, the model or the output folder will not do.
    """
    check_output(out, overwrite=overwrite)
    with job.stopwatch.time("check"):
        check_weights(job.model, job.model.graph.quantizable)
        footprint = job.footprint()
        limit = limit_of(budget, job, footprint)
    evidence = gather(job, footprint)
    sizes = _feasible(job, footprint, curve_bits)
    probes = probed(job, evidence)
    check_reach(job, evidence, limit)
    aims = [_aim(evidence, probes, limit), *(counted_size(probes, size) for size in sizes.values())]
    try:
        decision, *others = decide(job, evidence, probes, aims)
    except BudgetError:  # an allocator of few formats does not meet all sizes of the curve
        sizes, (decision, *others) = {}, decide(job, evidence, probes, aims[:1])
    unit = job.model.objective.unit
    job.progress.notice(forecast_text(decision.forecast, decision.bytes, job.model.parameters, unit))
    tuning = tuned(job, evidence, decision, limit) if job.recipe.tune.tunes(job.model) else None
    if tuning is not None:
        decision = after_tuning(job, evidence, tuning)
        job.progress.notice(tuned_text(decision.forecast, unit))
    _gate("forecast", decision.forecast.loss_increase, largest_loss_increase, unit)
    curve = [plan_point(job, text, other) for text, other in zip(sizes, others, strict=True)]
    with new_folder(out, overwrite=overwrite) as folder:
        decision, emission = _emit_within(job, evidence, decision, tuning, limit, folder)
        with job.stopwatch.time("evaluate"):
            measured = measure(
                evidence.calibration.evaluation,
                job.model.objective,
                predict_original=job.original.predict,
                predict_quantized=job.backend.open(job.model, folder),
                progress=job.progress,
            )
        _gate("measured", measured.loss_increase, largest_loss_increase, unit)
        report = build_report(job, budget, limit, evidence, replace(decision, probes=probes), emission, measured, curve)
        write_report(report, folder)
    return Artifact(folder=out, report=report)


def plan_model(job: Job, budgets: Sequence[Budget]) -> tuple[PlanPoint, ...]:
    """The forecast at each budget; nothing is written but the workspace.

    Raises:
        BudgetError: a budget is not feasible.
    """
    with job.stopwatch.time("check"):
        check_weights(job.model, job.model.graph.quantizable)
        footprint = job.footprint()
        limits = [limit_of(budget, job, footprint) for budget in budgets]
    evidence = gather(job, footprint)
    probes = probed(job, evidence)
    for limit in limits:
        check_reach(job, evidence, limit)
    decisions = decide(job, evidence, probes, [_aim(evidence, probes, limit) for limit in limits])
    return tuple(plan_point(job, b.text, decision) for b, decision in zip(budgets, decisions, strict=True))


def _aim(evidence: Evidence, probes: Sequence[Probe], limit: int) -> int:
    """What to allocate for, in counted bytes, so that the file is sure to fit, and hardly smaller than it may be."""
    return limit if evidence.exact else int((1 - MARGIN) * counted_size(probes, limit))


def _emit_within(
    job: Job, evidence: Evidence, decision: Decision, tuning: Tuning | None, limit: int, folder: Path
) -> tuple[Decision, Emission]:
    """Write the file; where its size is known only then, correct the allocation until it fills the limit.

    Raises:
        BudgetError: the file does not come to fit; without entropy formats the footprint is wrong then.
    """
    written: list[tuple[Decision, Emission]] = []

    def size_of(attempt: Decision) -> int:
        written.append((attempt, _emit(job, evidence, attempt, tuning, folder)))
        return written[-1][1].bytes

    best = fitted(job, evidence, decision, limit, size_of, slack=SLACK if tuning is None else TUNED_SLACK)
    if best is None:
        raise BudgetError(f"no file of at most {limit} bytes was found. Raise the budget a little.")
    return written[-1] if written[-1][0] is best else (best, _emit(job, evidence, best, tuning, folder))


def _emit(job: Job, evidence: Evidence, decision: Decision, tuning: Tuning | None, folder: Path) -> Emission:
    """Write an allocation into a folder, in place of what may be there."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with job.stopwatch.time("emit"):
        rows = rounded(job, evidence, decision.allocation, "round and pack")
        weights = tuple(map(tuning.applied, rows) if tuning else rows)
        emission = job.backend.emit(job.model, weights, folder)
    with job.stopwatch.time("verify"):
        check_written(job, weights, evidence.calibration.probe, folder)
    give_back()
    return emission


def _feasible(job: Job, footprint: Footprint, sizes: Sequence[float]) -> dict[str, int]:
    """Of these sizes, in bits per weight, the feasible ones and their limits in bytes."""
    found: dict[str, int] = {}
    for bits in sizes:
        budget = parse_budget(f"{bits}bits")
        with suppress(BudgetError):
            found[budget.text] = limit_of(budget, job, footprint)
    return found


def _gate(what: str, loss_increase: float, largest: float | None, unit: str) -> None:
    if largest is not None and loss_increase > largest:
        raise GateError(
            f"{what} loss increase {loss_increase:.4f} {unit} exceeds the gate of {largest:g}. Nothing was written."
        )
