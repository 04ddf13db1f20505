"""Formats and integer activations chosen together, where the time that a model takes counts, too.

A second has a price, in loss. At a given price the allocator sees each row's time in each format as further distortion,
and sites are computed in integers where the time that this saves is worth more than it loses; so both are one
Lagrangian solution within the bytes. The price is searched: the lowest that keeps the bound on the time, or the highest
that keeps the bound on the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

from guidedq.artifacts.allocation import Allocation
from guidedq.driver.activation_choice import IntegerOptions, in_integers, integer_options, with_integers
from guidedq.driver.decision import allocations_of, size_range
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job, LatencyGoal
from guidedq.driver.profiling import timing_of
from guidedq.driver.selection import best_selection
from guidedq.driver.timing import Timing, unmixed
from guidedq.errors import BudgetError

PRICE_DECADES = 8
"""Prices are searched so many powers of ten around what the model loses in the time that it takes: beyond, loss or time
count for nothing."""
NEAR_PRICES = 1.01
"""The search ends between prices that differ by less than this factor."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is best at one price.

    Attributes:
        evidence: With this price, and with its choice of integer sites and of whether rows are mixed.
        allocation: Within the limit.
        loss: Of weights and activations, uncalibrated.
        seconds: Of a call.
    """

    evidence: Evidence
    allocation: Allocation
    loss: float
    seconds: float

    @property
    def all_float(self) -> bool:
        """Whether no site is computed in integers."""
        return self.evidence.timing is None or not self.evidence.timing.integers


def with_choice(job: Job, evidence: Evidence, limit: int | None) -> Evidence:
    """The evidence with what is chosen before any allocation: which sites are computed in integers, and at what price.

    Chosen for a file of `limit` bytes; without a limit for the largest file, which is the strictest in what integers
    may lose.

    Raises:
        BudgetError: the bound on the latency cannot be kept at this size.
        ProfileError: the profile does not fit the model.
    """
    if job.latency is None:
        return with_integers(job, evidence, limit)
    options = integer_options(job, evidence)
    timing = timing_of(job, evidence, job.latency, options.places if options else ())
    with job.stopwatch.time("latency"):
        low, high = size_range(job.model.graph, evidence.footprint)
        size = high if limit is None else min(max(limit, low), high)
        best = _Planner(job, evidence, options, timing, size).plan
        plan = _within(best, job.latency.ratio, timing) if job.latency.ratio else _fastest(best, job, timing)
    return replace(plan.evidence, notices=(*plan.evidence.notices, _told(job.latency, plan)))


@final
class _Planner:
    """Makes plans for one size, and remembers allocations that no price changes."""

    def __init__(
        self, job: Job, evidence: Evidence, options: IntegerOptions | None, timing: Timing, limit: int
    ) -> None:
        self._job, self._evidence, self._options = job, evidence, options
        self._timing, self._limit = timing, limit
        self._known: dict[tuple[bool, float], Allocation] = {}

    def plan(self, price: float) -> Plan:
        """The best of plans with mixed rows and without."""
        mixable = any(site.segments > 1 for site in self._evidence.footprint.sites.values())
        plans = [self._plan(price, mixed=mixed) for mixed in ((True, False) if mixable else (True,))]
        return min(plans, key=lambda plan: plan.loss + price * plan.seconds)

    def _plan(self, price: float, *, mixed: bool) -> Plan:
        integers = self._integers(price)
        kept = self._options.kept(integers) if self._options else ()
        rounded = tuple(place.name for place in kept)
        timing = replace(self._timing, price=price, integers=integers, rounded=rounded)
        evidence = replace(self._evidence, timing=timing)
        evidence = evidence if mixed else replace(evidence, footprint=unmixed(evidence.footprint))
        if self._options is not None:
            evidence = in_integers(self._job, evidence, self._options, integers)
        key = mixed, price if timing.depends_on_formats else 0.0
        if key not in self._known:
            (self._known[key],) = allocations_of(self._job, evidence, [self._limit])
        allocation = self._known[key]
        loss = allocation.distortion + evidence.rounding_loss
        return Plan(evidence=evidence, allocation=allocation, loss=loss, seconds=timing.seconds(allocation))

    def _integers(self, price: float) -> frozenset[str]:
        if self._options is None:
            return frozenset()
        options, times = self._options, self._timing.places
        gains = {name: price * self._saved(name) - cost for name, cost in options.weight_costs.items()}
        costs = {name: cost + price * times.get(name, 0.0) for name, cost in options.place_costs.items()}
        return best_selection(gains, costs, options.needs)

    def _saved(self, name: str) -> float:
        """Seconds that integers save: where a site may be computed in them, all formats are floats else."""
        site = self._timing.sites[name]
        return 0.0 if site.integer is None else min(site.formats) - site.integer


def _within(best: Callable[[float], Plan], ratio: float, timing: Timing) -> Plan:
    """The plan of least loss that takes no longer than this share of the original's time."""
    bound, (low, high) = ratio * timing.whole, _prices(best, timing)
    if (plan := best(0.0)).seconds <= bound:
        return plan
    if (fastest := best(high)).seconds > bound:
        raise BudgetError(
            f"--max-latency {ratio:g}x cannot be kept: the fastest model of this size is predicted to take "
            f"{fastest.seconds / timing.whole:.3f} times the original's {1e3 * timing.whole:.3g} ms. Raise it"
            + (", or let sites be computed in integers: --activations." if fastest.all_float else ".")
        )
    return _searched(best, low, high, lambda plan: plan.seconds > bound)[1]


def _fastest(best: Callable[[float], Plan], job: Job, timing: Timing) -> Plan:
    """The fastest plan that loses no more than the recipe's share beyond what is lost where time counts for nothing."""
    bound, (low, high) = (1 + job.recipe.speed_budget) * best(0.0).loss, _prices(best, timing)
    if (plan := best(high)).loss <= bound:
        return plan
    return _searched(best, low, high, lambda plan: plan.loss <= bound)[0]


def _prices(best: Callable[[float], Plan], timing: Timing) -> tuple[float, float]:
    """The prices between which the search goes."""
    middle = max(best(0.0).loss, math.ulp(1.0)) / timing.whole
    return middle * 10.0**-PRICE_DECADES, middle * 10.0**PRICE_DECADES


def _searched(
    best: Callable[[float], Plan], low: float, high: float, goes_on: Callable[[Plan], bool]
) -> tuple[Plan, Plan]:
    """The last plan, prices rising, that the search goes on from, and the first that it does not."""
    below, above = best(0.0), best(high)
    while high > NEAR_PRICES * low:
        middle = math.sqrt(low * high)
        plan = best(middle)
        if goes_on(plan):
            low, below = middle, plan
        else:
            high, above = middle, plan
    return below, above


def _told(goal: LatencyGoal, plan: Plan) -> str:
    timing = plan.evidence.timing
    assert timing is not None
    asked = "as fast as its loss allows" if goal.ratio is None else f"at most {goal.ratio:g} times the original's"
    return (
        f"latency, {asked}: {plan.seconds / timing.whole:.3f} times the original's {1e3 * timing.whole:.3g} ms are "
        f"predicted, of one sample on {timing.threads} thread{'s' * (timing.threads > 1)}, by {timing.source}."
    )
