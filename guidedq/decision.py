"""From a budget to an allocation and its forecast, on the evidence alone: no data pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.footprint import Footprint, largest_bytes, site_groups, smallest_bytes
from guidedq.artifacts.forecast import Forecast, Probe
from guidedq.artifacts.quantized_weight import AffineSegment, FloatSegment, QuantizedWeight, Segment, float_weight
from guidedq.budget import Budget
from guidedq.errors import BudgetError
from guidedq.evaluation import measure
from guidedq.evidence import Evidence
from guidedq.ir.graph import Graph, Site
from guidedq.job import Job
from guidedq.progress import tracked
from guidedq.quant.formats import AffineFormat, FloatFormat
from guidedq.quant.grid import Grid
from guidedq.registry import stage_text
from guidedq.workspace import is_finished, load_probe, save_probe, storing

PROBE_BITS = (3, 5)
"""Widths of the uniform formats whose sizes the probes are allocated at: budgets of 2.5 to 6 bits lie near one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What will be done for a budget, and what it is predicted to cost."""

    allocation: Allocation
    forecast: Forecast


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
    linear = job.recipe.scope == "linear"
    parameters = sum(site.parameters for site in graph.quantizable) if linear else job.model.parameters
    base = footprint.base_bytes if linear else 0
    limit = budget.limit_bytes(parameters) + base
    rows = {site.name: site.rows for site in graph.quantizable}
    low, high = smallest_bytes(footprint, rows, graph.fused), largest_bytes(footprint, rows, graph.fused)
    if low <= limit <= high:
        return limit

    def spoken(size: int) -> str:
        return f"{8 * (size - base) / parameters:.3f} bits ({(size - base) / 1e6:.3f} MB)"

    narrowest = job.recipe.formats[0]
    reach = f"{len(graph.quantizable)} sites, {narrowest.bits}-bit, group size {narrowest.group_size}"
    hint = (
        f"Raise the budget to {_ceiling(8 * (low - base) / parameters):.2f}bits"
        + (
            ", or count the linear layers alone with --scope linear"
            if not linear and job.model.graph.tied == ()
            else ""
        )
        if limit < low
        else f"Lower the budget to {8 * (high - base) / parameters:.2f}bits or less: nothing larger can be stored"
    )
    side = f"below the smallest file, {spoken(low)}" if limit < low else f"above the largest file, {spoken(high)}"
    raise BudgetError(
        f"{budget.text} is {spoken(limit)}: {side} ({reach}). Feasible: {spoken(low)} to {spoken(high)}. {hint}."
    )


def decide(job: Job, evidence: Evidence, limit_bytes: int) -> Decision:
    """Allocate and forecast."""
    with job.stopwatch.time("allocate"):
        allocation = _allocate(job, evidence, limit_bytes)
    found = probes(job, evidence)
    with job.stopwatch.time("forecast"):
        raw = job.recipe.forecast.raw(allocation, evidence.curves.stream(), evidence.guidance.units_per_sequence)
        units = _units(job, evidence)
        return Decision(allocation=allocation, forecast=job.recipe.forecast.forecast(raw, found, units, seed=job.seed))


def probes(job: Job, evidence: Evidence) -> tuple[Probe, ...]:
    """Whole quantized models at two sizes, measured on the probe samples; kept in the workspace.

    Raises:
        OutputError: the workspace cannot be written.
    """
    limits = sorted({_uniform_bytes(job.model.graph, evidence.footprint, bits) for bits in PROBE_BITS})
    with storing(job.workspace.root):
        return tuple(_probe(job, evidence, limit) for limit in limits)


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


def _allocate(job: Job, evidence: Evidence, limit_bytes: int) -> Allocation:
    return job.recipe.allocate.allocate(job.model.graph, evidence.curves.all(), evidence.footprint, limit_bytes)


def _probe(job: Job, evidence: Evidence, limit_bytes: int) -> Probe:
    rules = tuple(stage_text(getattr(job.recipe, kind), kind) for kind in ("allocate", "forecast", "correct"))
    activations = job.backend.activations(job.model)
    footprint = f"{evidence.footprint.base_bytes} {limit_bytes}"
    fused = repr(job.model.graph.fused)
    key = (evidence.key, *rules, evidence.calibration.probe.digest, repr(activations), footprint, fused)
    entry = job.workspace.entry("probe", *key)
    if not is_finished(entry):
        with job.stopwatch.time("probes"):
            allocation = _allocate(job, evidence, limit_bytes)
            raw = job.recipe.forecast.raw(allocation, evidence.curves.stream(), evidence.guidance.units_per_sequence)
            weights = tracked(job.progress, "probe", rounded(job, evidence, allocation), len(allocation.sites))
            stored = DequantizedOnUse({weight.name: (job.model.graph.site(weight.name), weight) for weight in weights})
            measured = measure(
                job.model.program,
                evidence.calibration.probe,
                job.model.objective,
                predict_quantized=lambda batch: job.model.program.predict(
                    batch, weights=stored, activations=activations
                ),
                progress=job.progress,
            )
            mean = sum(raw) / len(raw)
            save_probe(entry, Probe(raw_kl_by_sequence=raw, raw_kl=mean, measured=measured, bytes=allocation.bytes))
    return load_probe(entry)


def _round_site(
    job: Job, evidence: Evidence, allocation: Allocation, site: Site, matrix: Tensor, seed: int
) -> QuantizedWeight:
    """Round a matrix in all formats that its rows use, and keep of each the rows that chose it."""
    chosen = allocation.sites[site.name]
    used = [index for index, format in enumerate(chosen.formats) if format in chosen.used]
    if len(used) == 1 and isinstance(only := chosen.formats[used[0]], FloatFormat):
        return float_weight(site.name, matrix, only)
    affine = [format for index in used if isinstance(format := chosen.formats[index], AffineFormat)]
    guidance = evidence.guidance.site(site.name)
    whole = dict(zip(affine, job.recipe.round.round(matrix, guidance, affine, seed=seed), strict=True))
    segments: list[Segment] = []
    for index in used:
        format = chosen.formats[index]
        rows = (chosen.choice == index).nonzero()[:, 0]
        if isinstance(format, FloatFormat):
            part = float_weight(site.name, matrix[rows], format).segments[0]
            assert isinstance(part, FloatSegment)
            segments.append(FloatSegment(format=format, rows=rows, values=part.values))
        else:
            segments.append(_rows_of(whole[format], rows))
    return QuantizedWeight(name=site.name, shape=(site.rows, site.columns), segments=tuple(segments))


def _rows_of(segment: Segment, rows: Tensor) -> Segment:
    assert isinstance(segment, AffineSegment)
    return AffineSegment(
        format=segment.format,
        rows=rows,
        codes=segment.codes[rows],
        grid=Grid(scales=segment.grid.scales[rows], zero_points=segment.grid.zero_points[rows]),
        outlier_columns=segment.outlier_columns[rows],
        outlier_values=segment.outlier_values[rows],
    )


def _uniform_bytes(graph: Graph, footprint: Footprint, bits: int) -> int:
    """Bytes of the file with every site at `bits`, or at the nearest width it can have, in its smallest such format."""
    total = footprint.base_bytes
    for site in graph.quantizable:
        held = footprint.sites[site.name]
        distance = [(abs(format.bits - bits), size) for format, size in zip(held.formats, held.row_bytes, strict=True)]
        nearest = min(range(len(distance)), key=distance.__getitem__)
        total += held.bytes({nearest: site.rows})
    rows = {site.name: site.rows for site in graph.quantizable}
    return max(total, smallest_bytes(footprint, rows, graph.fused))


def _units(job: Job, evidence: Evidence) -> int:
    evaluation: Sequence[Tensor] = tuple(evidence.calibration.evaluation.inputs.values())
    first = evaluation[0]
    return first.shape[0] * (first.shape[1] if job.model.objective.value == "language_model" else 1)


def _ceiling(bits: float) -> float:
    return int(bits * 100 + 1) / 100
