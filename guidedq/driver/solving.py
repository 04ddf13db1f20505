"""From a first decision to the one that is written: refined, and under a budget for loss solved for what that gains."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.budget import Budget
from guidedq.driver.decision import Decision
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job
from guidedq.driver.loss_budget import is_within, miss_text, smallest_within
from guidedq.driver.probing import probed_itself, scaled
from guidedq.driver.refining import Refinement, after_refining, refined, refines
from guidedq.errors import BudgetError, GateError
from guidedq.report.wording import forecast_text, refined_text

WORTH = 0.02
"""Share of the bytes that must be saved for a model to be refined a second time."""


def settled(
    job: Job,
    evidence: Evidence,
    budget: Budget,
    limit: int | None,
    first: Decision,
    *,
    correction: float = 1.0,
    known: tuple[Probe, ...] = (),
) -> tuple[Decision, Refinement | None]:
    """What is written for a first decision: the same, refined; under a budget for loss the smaller one this allows.

    The forecast of the first decision knows nothing of refining. Once that is done for one size, its gain is known: the
    budget is solved again with it, the smaller model refined, and taken if its forecast stays within the budget.

    Args:
        job: What is compiled.
        evidence: What decisions are based on.
        budget: What is asked.
        limit: Of the file, in bytes, if there is one.
        first: Its probes are of models that are not refined.
        correction: Measured over predicted divergence of a model that was written.
        known: That model, measured.
    """
    unit, refinement = job.model.objective.unit, None
    if refines(job):
        job.progress.notice(forecast_text(first.forecast, first.bytes, job.model.parameters, unit))
        refinement = refined(job, evidence, first, limit)
    if refinement is None:
        return _unrefined(job, evidence, budget, limit, first, correction, known), None
    decision = after_refining(job, evidence, refinement, correction=correction, known=known)
    job.progress.notice(refined_text(decision.forecast, unit))
    if limit is not None:
        return decision, refinement
    smaller = smallest_within(job, evidence, decision.probes, budget, above=_largest(known))
    if smaller.bytes > (1 - WORTH) * decision.bytes:
        return decision, refinement
    job.progress.notice(forecast_text(smaller.forecast, smaller.bytes, job.model.parameters, unit))
    again = refined(job, evidence, replace(smaller, probes=first.probes), limit)
    if again is None:
        return decision, refinement
    other = after_refining(job, evidence, again, correction=correction, known=known)
    job.progress.notice(refined_text(other.forecast, unit))
    return (other, again) if is_within(other.forecast, budget) else (decision, refinement)


def _unrefined(
    job: Job,
    evidence: Evidence,
    budget: Budget,
    limit: int | None,
    first: Decision,
    correction: float,
    known: tuple[Probe, ...],
) -> Decision:
    """The first decision, probed itself; under a budget for loss once more by what that probe says."""
    decision = probed_itself(job, evidence, first, correction=correction, known=known)
    if limit is None:
        with suppress(BudgetError):  # nothing could keep it, by one probe's word: what was found is measured and judged
            again = smallest_within(job, evidence, decision.probes, budget, above=_largest(known))
            if again.allocation.digest != decision.allocation.digest:
                other = probed_itself(job, evidence, again, correction=correction)
                decision = other if is_within(other.forecast, budget) else decision
    job.progress.notice(
        forecast_text(decision.forecast, decision.bytes, job.model.parameters, job.model.objective.unit)
    )
    return decision


def solved_again(
    job: Job, evidence: Evidence, budget: Budget, probes: tuple[Probe, ...], written: Decision, known: Probe
) -> tuple[Decision, Refinement | None]:
    """Solve a budget for loss that was missed once more: the probes corrected by what was measured, itself one more.

    Args:
        job: What is compiled.
        evidence: What decisions are based on.
        budget: What is asked.
        probes: Of models that are not refined.
        written: What was written.
        known: How it was measured.

    Raises:
        GateError: no file can keep the budget, by what is known now.
    """
    missed = miss_text(budget, known.measured)
    job.progress.notice(f"{missed}: solving again with what was measured")
    correction = known.measured.kl / written.forecast.kl
    try:
        probes_now = (*_corrected(written.probes, correction), known)
        larger = smallest_within(job, evidence, probes_now, budget, above=known.counted_bytes)
    except BudgetError as error:
        raise GateError(f"{missed}, and {error} Nothing was written.") from error
    unrefined = replace(larger, probes=_corrected(probes, correction))
    return settled(job, evidence, budget, None, unrefined, correction=correction, known=(known,))


def _largest(known: tuple[Probe, ...]) -> int:
    """Counted bytes of the largest of the files that missed a budget; 0 if none did."""
    return max((probe.counted_bytes for probe in known), default=0)


def _corrected(probes: tuple[Probe, ...], correction: float) -> tuple[Probe, ...]:
    return tuple(scaled(probe, correction) for probe in probes)


def as_probe(decision: Decision, measured: Measurement, size: int) -> Probe:
    """What was written, of so many bytes, as a probe."""
    return Probe(
        raw_kl_by_sequence=decision.raw,
        raw_kl=sum(decision.raw) / len(decision.raw),
        measured=measured,
        bytes=size,
        counted_bytes=decision.allocation.bytes,
    )
