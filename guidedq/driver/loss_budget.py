"""Budgets by loss: the smallest file whose forecast stays within, upper bound included, and whether it was kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from guidedq.artifacts.forecast import Forecast, Measurement, Probe
from guidedq.artifacts.samples import CalibrationSet
from guidedq.budget import Budget
from guidedq.driver.decision import Decision, decide, size_range
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job
from guidedq.errors import BudgetError
from guidedq.ir.model import Model, Objective
from guidedq.report.wording import bytes_text, loss_text

SIZES_AT_ONCE = 12
"""Sizes of which allocations and forecasts are made together: they share most of the work."""
SIZE_RESOLUTION = 0.001
"""Share of the size to which the smallest one is found; three rounds of twelve sizes."""


def check_objective(budget: Budget, model: Model) -> None:
    """Refuse a bound on what the model does not have, before any work.

    Raises:
        BudgetError: as said.
    """
    kind = model.objective.value.replace("_", " ")
    if budget.bounds_loss and not model.objective.predicts and budget.kind != "error":
        raise BudgetError(
            f"{budget.text!r}: the output of {model.name} is no distribution and has neither nats nor accuracy. "
            f"Its loss is half the squared error over the squared output: ask for +0.01error, or for a size."
        )
    if budget.kind == "error" and model.objective.predicts:
        raise BudgetError(f"{budget.text!r}: the loss of a {kind} is in {model.objective.unit}. Ask for +0.02nats.")
    if budget.kind == "perplexity" and model.objective is not Objective.LANGUAGE_MODEL:
        raise BudgetError(f"{budget.text!r} bounds the perplexity, which a {kind} does not have. Ask for +0.02nats.")


def check_labels(budget: Budget, model: Model, calibration: CalibrationSet) -> None:
    """Refuse a bound on the accuracy where there are no labels.

    Raises:
        BudgetError: as said.
    """
    if budget.kind != "accuracy" or model.objective is Objective.LANGUAGE_MODEL:
        return
    for name, part in (("calibration", calibration.probe), ("evaluation", calibration.evaluation)):
        if part.labels is None or not bool((part.labels >= 0).any()):
            raise BudgetError(
                f"{budget.text!r} bounds the accuracy, and the {name} data have no labels. Add them as `labels` to the "
                f"file, or ask for +0.02nats."
            )


def smallest_within(
    job: Job, evidence: Evidence, probes: Sequence[Probe], budget: Budget, *, above: int = 0
) -> Decision:
    """The decision of fewest bytes such that it and all larger ones are forecast to stay within the budget.

    Args:
        job: What is compiled.
        evidence: What decisions are based on.
        probes: Measured models.
        budget: For loss.
        above: Counted bytes of a file that missed the budget when it was measured: only larger ones are tried.

    Raises:
        BudgetError: even the largest file does not; the message names the least loss that can be promised.
    """
    known = tuple(sorted(probes, key=lambda probe: probe.bytes))
    found: dict[int, Decision] = {}

    def bounds(sizes: Sequence[int]) -> list[float]:
        found.update(zip(sizes, decide(job, evidence, known, sizes), strict=True))
        return [upper_bound(found[size].forecast, budget) for size in sizes]

    low, high = size_range(job.model.graph, evidence.footprint)
    best = smallest_size(
        bounds, min(max(low, math.ceil((1 + SIZE_RESOLUTION) * above)), high), high, budget.largest_change
    )
    if best is None:
        raise BudgetError(_least(job, list(found.values()), budget))
    return found[best]


def smallest_size(
    bounds: Callable[[Sequence[int]], Sequence[float]], low: int, high: int, largest: float
) -> int | None:
    """The smallest size whose bound, and that of all larger ones tried, is no more than the largest allowed.

    A dozen sizes at a time are tried, evenly in their logarithm, between the largest that will not do and the smallest
    that does.

    Args:
        bounds: Gives the bounds of several sizes; they fall with the size, but for noise.
        low: Smallest size.
        high: Largest size.
        largest: What is allowed.

    Returns:
        `None` if not even the largest size will do.
    """
    found: int | None = None
    while found is None or high > (1 + SIZE_RESOLUTION) * low:
        sizes = list(dict.fromkeys(round(size) for size in np.geomspace(low, high, SIZES_AT_ONCE)))
        outside = [n for n, bound in enumerate(bounds(sizes)) if not bound <= largest]
        first = outside[-1] + 1 if outside else 0
        if first == len(sizes):  # later, because of noise
            return found
        found = sizes[first]
        low, high = sizes[max(first - 1, 0)], sizes[first]
    return found


def is_within(forecast: Forecast, budget: Budget) -> bool:
    """Whether the upper bound of a forecast stays within a budget for loss."""
    return upper_bound(forecast, budget) <= budget.largest_change


def is_kept(budget: Budget, measured: Measurement) -> bool:
    """Whether what was measured stays within the budget; a budget for size says nothing of it."""
    return not budget.bounds_loss or _change(budget, measured) <= budget.largest_change


def miss_text(budget: Budget, measured: Measurement) -> str:
    """By what a budget was missed: `measured +0.0231 nats/token misses the budget of +0.02nats`."""
    return f"measured {change_text(budget, _change(budget, measured))} misses the budget of {budget.text}"


def change_text(budget: Budget, change: float) -> str:
    """A change in the spelling of the budget: `+0.0213nats`, `1.0215x`, `-0.52%`, `+0.0103error`."""
    if budget.kind == "accuracy":
        return f"{-100 * change:+.2f}%"
    if budget.kind == "perplexity":
        return f"{math.exp(change):.4f}x"
    return f"{'+' if change >= 0 else ''}{loss_text(change)}{'error' if budget.kind == 'error' else 'nats'}"


def upper_bound(forecast: Forecast, budget: Budget) -> float:
    """The upper end of the forecast's interval for what the budget bounds; infinite where it is not known."""
    if budget.kind != "accuracy":
        return forecast.loss_increase_high
    return math.inf if forecast.accuracy_drop_high is None else forecast.accuracy_drop_high


def _change(budget: Budget, measured: Measurement) -> float:
    if budget.kind != "accuracy":
        return measured.loss_increase
    return math.inf if measured.accuracy_drop is None else measured.accuracy_drop


def _least(job: Job, decisions: Sequence[Decision], budget: Budget) -> str:
    best = min(decisions, key=lambda decision: upper_bound(decision.forecast, budget))
    least = change_text(budget, upper_bound(best.forecast, budget))
    bits = 8 * best.bytes / job.model.parameters
    return (
        f"{budget.text} cannot be promised: the best file, {bits:.2f} bits ({bytes_text(best.bytes)}), is forecast at "
        f"up to {least}. Ask for {least} or more, or give more evaluation data: the upper bound counts their noise."
    )
