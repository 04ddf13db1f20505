"""From a budget to an allocation and its forecast, on the evidence alone: no data pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.footprint import Footprint, largest_bytes, smallest_bytes
from guidedq.artifacts.forecast import Forecast, Probe
from guidedq.budget import Budget
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job
from guidedq.driver.timing import unpriced
from guidedq.errors import BudgetError
from guidedq.ir.graph import Graph
from guidedq.report.wording import format_text

REACH_ERROR = 0.03
"""By so much the counted size of the smallest file may be above its true one, in tiny models."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What will be done for a budget, what it is predicted to cost, and what the prediction was calibrated by.

    Attributes:
        allocation: The format of every row.
        bytes: Expected size of the file; where no codes are stored by their entropy, exact.
        raw: The allocation's uncalibrated divergence, for each kept sequence.
        forecast: Of the loss.
        probes: Measured models.
    """

    allocation: Allocation
    bytes: int
    raw: tuple[float, ...]
    forecast: Forecast
    probes: tuple[Probe, ...]


def limit_of(budget: Budget, job: Job, footprint: Footprint) -> int:
    """The most bytes that the weights file may have.

    Under the scope `linear` the budget bounds the bytes of the linear sites alone, over their parameters.

    Raises:
        BudgetError: the budget lies outside what any allocation can have; the message names the range.
    """
    graph = job.model.graph
    base, parameters = counted_base(job, footprint)
    limit = budget.limit_bytes(parameters) + base
    low, high = size_range(graph, footprint)
    if low <= limit <= high:
        return limit

    def spoken(size: int) -> str:
        return f"{8 * (size - base) / parameters:.3f} bits ({(size - base) / 1e6:.3f} MB)"

    narrowest = next(iter(footprint.sites.values())).formats[0]
    reach = f"{len(graph.quantizable)} sites, narrowest format {format_text(str(narrowest))}"
    hint = (
        f"Raise the budget to {_ceiling(8 * (low - base) / parameters):.2f}bits"
        + (
            ", or count the linear layers alone with --scope linear"
            if job.recipe.scope == "file" and job.model.graph.tied == ()
            else ""
        )
        if limit < low
        else f"Lower the budget to {8 * (high - base) / parameters:.2f}bits or less: nothing larger can be stored"
    )
    side = f"below the smallest file, {spoken(low)}" if limit < low else f"above the largest file, {spoken(high)}"
    raise BudgetError(
        f"{budget.text} is {spoken(limit)}: {side} ({reach}). Feasible: {spoken(low)} to {spoken(high)}. {hint}."
    )


def check_reach(job: Job, evidence: Evidence, limit: int) -> None:
    """See that the smallest file fits, now that the mean sizes of its codes are known.

    Raises:
        BudgetError: it does not; the message says how large it is.
    """
    smallest, _ = size_range(job.model.graph, evidence.footprint)
    if not evidence.exact and smallest > (1 + REACH_ERROR) * limit:
        base, parameters = counted_base(job, evidence.footprint)
        raise BudgetError(
            f"the smallest file takes {8 * (smallest - base) / parameters:.3f} bits ({smallest / 1e6:.3f} MB), the "
            f"budget is {limit / 1e6:.3f} MB. Raise the budget to "
            f"{_ceiling(8 * (smallest - base) / parameters):.2f}bits, or allow fewer bits."
        )


def decide(job: Job, evidence: Evidence, probes: tuple[Probe, ...], limits: Sequence[int]) -> tuple[Decision, ...]:
    """Allocate and forecast for each limit, in bytes as the footprint counts them, or the nearest that is feasible."""
    if not limits:
        return ()
    low, high = size_range(job.model.graph, evidence.footprint)
    allocations, raws = allocated(job, evidence, [min(max(limit, low), high) for limit in limits])
    with job.stopwatch.time("forecast"):
        return tuple(
            Decision(
                allocation=allocation,
                bytes=stored_size(probes, allocation.bytes),
                raw=raw,
                forecast=forecast_of(job, evidence, raw, probes),
                probes=probes,
            )
            for allocation, raw in zip(allocations, raws, strict=True)
        )


def forecast_of(job: Job, evidence: Evidence, raw: Sequence[float], probes: Sequence[Probe]) -> Forecast:
    """The forecast of an uncalibrated divergence, as it will be measured on the evaluation samples."""
    units = job.model.objective.units(evidence.calibration.evaluation)
    return job.recipe.forecast.forecast(raw, probes, units, seed=job.seed)


def with_probes(job: Job, evidence: Evidence, decision: Decision, probes: Sequence[Probe]) -> Decision:
    """The decision with a forecast calibrated by these probes."""
    ordered = tuple(sorted(probes, key=lambda probe: probe.bytes))
    return replace(decision, forecast=forecast_of(job, evidence, decision.raw, ordered), probes=ordered)


def counted_size(probes: Sequence[Probe], stored_bytes: int) -> int:
    """The size by the footprint's count that a file of so many bytes has, as far as the probes tell.

    The two are equal but for entropy formats, whose bytes are known on average only.
    """
    sizes = [(probe.bytes, probe.counted_bytes / probe.bytes) for probe in probes] or [(1, 1.0)]
    return int(stored_bytes * _interpolated(sizes, stored_bytes))


def stored_size(probes: Sequence[Probe], counted_bytes: int) -> int:
    """The inverse of `counted_size`."""
    sizes = [(probe.counted_bytes, probe.bytes / probe.counted_bytes) for probe in probes] or [(1, 1.0)]
    return round(counted_bytes * _interpolated(sizes, counted_bytes))


def _interpolated(ratios: Sequence[tuple[int, float]], size: int) -> float:
    sizes, values = zip(*ratios, strict=True)
    return float(np.interp(size, sizes, values))


def allocated(
    job: Job, evidence: Evidence, limits: Sequence[int]
) -> tuple[tuple[Allocation, ...], tuple[tuple[float, ...], ...]]:
    """Allocations for limits in counted bytes, and their uncalibrated forecasts."""
    with job.stopwatch.time("allocate"):
        allocations = allocations_of(job, evidence, limits)
    with job.stopwatch.time("forecast"):
        units = evidence.guidance.units_per_sequence
        raws = job.recipe.forecast.raw(allocations, evidence.curves.stream(), units)
        return allocations, tuple(tuple(value + evidence.rounding_loss for value in raw) for raw in raws)


def allocations_of(job: Job, evidence: Evidence, limits: Sequence[int]) -> tuple[Allocation, ...]:
    """The allocations of least loss within each limit; where time has a price, of least loss and price together."""
    timing, curves = evidence.timing, evidence.distortions
    if timing is None:
        return job.recipe.allocate.allocate(job.model.graph, curves, evidence.footprint, limits)
    found = job.recipe.allocate.allocate(job.model.graph, timing.priced(curves), evidence.footprint, limits)
    return tuple(unpriced(allocation, curves) for allocation in found)


def size_range(graph: Graph, footprint: Footprint) -> tuple[int, int]:
    """The sizes of the smallest and of the largest file."""
    rows = {site.name: site.rows for site in graph.quantizable}
    return smallest_bytes(footprint, rows, graph.fused), largest_bytes(footprint, rows, graph.fused)


def counted_base(job: Job, footprint: Footprint) -> tuple[int, int]:
    """Bytes that the budget does not bound, and the parameters that it is spread over."""
    if job.recipe.scope == "linear":
        return footprint.base_bytes, sum(site.parameters for site in job.model.graph.quantizable)
    return 0, job.model.parameters


def _ceiling(bits: float) -> float:
    return int(bits * 100 + 1) / 100
