"""From a budget to an allocation and its forecast, on the evidence alone: no data pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.footprint import Footprint, SiteFootprint, largest_bytes, site_groups, smallest_bytes
from guidedq.artifacts.forecast import Forecast, Probe
from guidedq.artifacts.quantized_weight import EntropySegment, QuantizedWeight, Segment, float_segment
from guidedq.budget import Budget
from guidedq.errors import BudgetError
from guidedq.evaluation import measure
from guidedq.evidence import Evidence
from guidedq.ir.graph import Graph, Site
from guidedq.job import Job
from guidedq.progress import tracked
from guidedq.quant.entropy import stream_bytes
from guidedq.quant.formats import FloatFormat, Format, RoundedFormat
from guidedq.registry import stage_text
from guidedq.report.wording import format_text
from guidedq.workspace import is_finished, load_probe, save_probe, storing

PROBE_BITS = (3, 5)
"""Widths of the uniform formats whose sizes the probes are allocated at: budgets up to 6 bits lie near one."""
LOWEST_PROBE_BITS = 3.0
"""All bytes counted; one more probe, where the divergence grows faster than any line from above foretells."""
REACH_ERROR = 0.03
"""By so much the counted size of the smallest file may be above its true one, in tiny models."""
PROBES_APART = 0.02
"""Share of the bytes by which two probes differ at least."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What will be done for a budget, what it is predicted to cost, and what the prediction was calibrated by.

    Attributes:
        allocation: The format of every row.
        bytes: Expected size of the file; where no codes are stored by their entropy, exact.
        forecast: Of the loss.
        probes: Measured models.
    """

    allocation: Allocation
    bytes: int
    forecast: Forecast
    probes: tuple[Probe, ...]


@final
class DequantizedOnUse(Mapping[str, Tensor]):
    """Quantized weights as the tensors that stand for them, made each time one is asked for: one byte a weight held."""

    def __init__(self, weights: Mapping[str, tuple[Site, QuantizedWeight]]) -> None:
        """Hold the weights of these sites, by name."""
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        site, weight = self._weights[name]
        return site.stored(weight.dequantize())

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def limit_of(budget: Budget, job: Job, footprint: Footprint) -> int:
    """The most bytes that the weights file may have.

    Under the scope `linear` the budget bounds the bytes of the linear sites alone, over their parameters.

    Raises:
        BudgetError: the budget lies outside what any allocation can have; the message names the range.
    """
    graph = job.model.graph
    base, parameters = _counted(job, footprint)
    limit = budget.limit_bytes(parameters) + base
    low, high = _reach(graph, footprint)
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


def probed(job: Job, evidence: Evidence) -> tuple[Probe, ...]:
    """Whole models of a few sizes, measured on the probe samples now or in an earlier run; by size.

    Raises:
        OutputError: the workspace cannot be written.
    """
    limits = probe_limits(job, evidence.footprint)
    entries = {limit: _probe_entry(job, evidence, limit) for limit in limits}
    missing = [limit for limit in limits if not is_finished(entries[limit])]
    for limits_at_once in (missing, *([limit] for limit in missing)):
        unfinished = [limit for limit in limits_at_once if not is_finished(entries[limit])]
        with suppress(BudgetError):  # an allocator of few formats may not meet all of them
            allocations, raws = _allocated(job, evidence, unfinished) if unfinished else ((), ())
            with storing(job.workspace.root), job.stopwatch.time("probes"):
                for limit, allocation, raw in zip(unfinished, allocations, raws, strict=True):
                    save_probe(entries[limit], _probe(job, evidence, allocation, raw))
    return tuple(load_probe(entries[limit]) for limit in limits if is_finished(entries[limit]))


def check_reach(job: Job, evidence: Evidence, limit: int) -> None:
    """See that the smallest file fits, now that the mean sizes of its codes are known.

    Raises:
        BudgetError: it does not; the message says how large it is.
    """
    smallest, _ = _reach(job.model.graph, evidence.footprint)
    if not evidence.exact and smallest > (1 + REACH_ERROR) * limit:
        base, parameters = _counted(job, evidence.footprint)
        raise BudgetError(
            f"the smallest file takes {8 * (smallest - base) / parameters:.3f} bits ({smallest / 1e6:.3f} MB), the "
            f"budget is {limit / 1e6:.3f} MB. Raise the budget to "
            f"{_ceiling(8 * (smallest - base) / parameters):.2f}bits, or allow fewer bits."
        )


def decide(job: Job, evidence: Evidence, probes: tuple[Probe, ...], limits: Sequence[int]) -> tuple[Decision, ...]:
    """Allocate and forecast for each limit, in bytes as the footprint counts them, or the nearest that is feasible."""
    low, high = _reach(job.model.graph, evidence.footprint)
    allocations, raws = _allocated(job, evidence, [min(max(limit, low), high) for limit in limits])
    with job.stopwatch.time("forecast"):
        units = job.model.objective.units(evidence.calibration.evaluation)
        return tuple(
            Decision(
                allocation=allocation,
                bytes=stored_size(probes, allocation.bytes),
                forecast=job.recipe.forecast.forecast(raw, probes, units, seed=job.seed),
                probes=probes,
            )
            for allocation, raw in zip(allocations, raws, strict=True)
        )


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


def _allocated(
    job: Job, evidence: Evidence, limits: Sequence[int]
) -> tuple[tuple[Allocation, ...], tuple[tuple[float, ...], ...]]:
    """Allocations for limits in counted bytes, and their uncalibrated forecasts."""
    with job.stopwatch.time("allocate"):
        allocations = job.recipe.allocate.allocate(job.model.graph, evidence.distortions, evidence.footprint, limits)
    with job.stopwatch.time("forecast"):
        units = evidence.guidance.units_per_sequence
        return allocations, job.recipe.forecast.raw(allocations, evidence.curves.stream(), units)


def rounded(job: Job, evidence: Evidence, allocation: Allocation) -> Iterator[QuantizedWeight]:
    """The quantized weights of an allocation, one by one in graph order."""
    graph, corrector = job.model.graph, job.recipe.correct
    numbers = {site.name: number for number, site in enumerate(graph.quantizable)}
    prefix: dict[str, Tensor] = {}
    for group in site_groups(numbers, graph.shared_inputs if corrector.needs_prefix else ()):
        sites = [graph.site(name) for name in group]
        targets = corrector.targets(job.model, evidence.calibration.calibration, sites, prefix)
        for site in sites:
            seed = job.seed + numbers[site.name]
            weight = _round_site(job, evidence, allocation, site, targets[site.name], seed)
            if corrector.needs_prefix:
                prefix[site.name] = site.stored(weight.dequantize())
            yield weight


def _probe_entry(job: Job, evidence: Evidence, limit_bytes: int) -> Path:
    """Where a probe is kept: everything that its measurement depends on is part of the name."""
    rules = tuple(stage_text(getattr(job.recipe, kind), kind) for kind in ("allocate", "forecast", "correct"))
    activations = repr(job.activations())
    footprint = f"{evidence.footprint.base_bytes} {limit_bytes}"
    fused = repr(job.model.graph.fused)
    digest = evidence.calibration.probe.digest
    return job.workspace.entry("probe", evidence.key, *rules, digest, activations, footprint, fused)


def _probe(job: Job, evidence: Evidence, allocation: Allocation, raw: tuple[float, ...]) -> Probe:
    """A whole quantized model, measured on the probe samples."""
    program, activations = job.model.program, job.activations()
    weights = tracked(job.progress, "probe", rounded(job, evidence, allocation), len(allocation.sites))
    held = {weight.name: (job.model.graph.site(weight.name), weight) for weight in weights}
    stored = DequantizedOnUse(held)
    more = sum(_surplus(evidence.footprint.sites[name], weight) for name, (_, weight) in held.items())
    measured = measure(
        evidence.calibration.probe,
        job.model.objective,
        predict_original=job.original.predict,
        predict_quantized=lambda batch: program.predict(batch, weights=stored, activations=activations),
        progress=job.progress,
    )
    return Probe(
        raw_kl_by_sequence=raw,
        raw_kl=sum(raw) / len(raw),
        measured=measured,
        bytes=allocation.bytes + more,
        counted_bytes=allocation.bytes,
    )


def _surplus(counted: SiteFootprint, weight: QuantizedWeight) -> int:
    """Bytes that the streams of a weight take beyond what the footprint counts for them."""
    total = 0
    for segment in weight.segments:
        if isinstance(segment, EntropySegment):
            size = stream_bytes(segment.codes, segment.format, segment.column_exponents, thorough=True)
            total += size - len(segment.rows) * counted.code_bytes[counted.formats.index(segment.format)]
    return total


def _round_site(
    job: Job, evidence: Evidence, allocation: Allocation, site: Site, matrix: Tensor, seed: int
) -> QuantizedWeight:
    """Round every row of a matrix in the format that it was given, or take it as it was rounded for its curve."""
    chosen = allocation.sites[site.name]
    rows = {
        format: (chosen.choice == index).nonzero()[:, 0]
        for index, format in enumerate(chosen.formats)
        if format in chosen.used
    }
    found: dict[Format, Segment] = {}
    missing: dict[RoundedFormat, Tensor] = {}
    for format, mine in rows.items():
        if isinstance(format, FloatFormat):
            found[format] = float_segment(matrix, format, mine)
            continue
        kept = None if job.recipe.correct.needs_prefix else evidence.curves.codes(site.name, format, mine)
        if kept is None:
            missing[format] = mine
        else:
            found[format] = kept
    if missing:
        guidance, formats, places = evidence.guidance.site(site.name), list(missing), list(missing.values())
        found |= zip(formats, job.recipe.round.round(matrix, guidance, formats, places, seed=seed), strict=True)
    segments = tuple(found[format] for format in rows)
    return QuantizedWeight(name=site.name, shape=(site.rows, site.columns), segments=segments)


def probe_limits(job: Job, footprint: Footprint) -> list[int]:
    """Sizes of the probes in bytes, rising; all feasible."""
    graph = job.model.graph
    base, parameters = _counted(job, footprint)
    lowest = int(LOWEST_PROBE_BITS * parameters / 8) + base
    asked = [lowest, *(_uniform_bytes(graph, footprint, bits) for bits in PROBE_BITS)]
    low, high = _reach(graph, footprint)
    found: list[int] = []
    for limit in sorted((min(max(limit, low), high) for limit in asked), reverse=True):
        if not found or limit < (1 - PROBES_APART) * found[-1]:
            found.append(limit)
    return found[::-1]


def _reach(graph: Graph, footprint: Footprint) -> tuple[int, int]:
    """The sizes of the smallest and of the largest file."""
    rows = {site.name: site.rows for site in graph.quantizable}
    return smallest_bytes(footprint, rows, graph.fused), largest_bytes(footprint, rows, graph.fused)


def _counted(job: Job, footprint: Footprint) -> tuple[int, int]:
    """Bytes that the budget does not bound, and the parameters that it is spread over."""
    if job.recipe.scope == "linear":
        return footprint.base_bytes, sum(site.parameters for site in job.model.graph.quantizable)
    return 0, job.model.parameters


def _uniform_bytes(graph: Graph, footprint: Footprint, bits: int) -> int:
    """Bytes of the file with every site at `bits`, or at the nearest width it can have, in its smallest such format."""
    total = footprint.base_bytes
    for site in graph.quantizable:
        held = footprint.sites[site.name]
        distance = [(abs(format.bits - bits), size) for format, size in zip(held.formats, held.row_bytes, strict=True)]
        nearest = min(range(len(distance)), key=distance.__getitem__)
        total += held.bytes({nearest: site.rows})
    return total


def _ceiling(bits: float) -> float:
    return int(bits * 100 + 1) / 100
