"""Build the report from what the compiler knows."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

from guidedq.artifacts.allocation import SiteAllocation
from guidedq.artifacts.forecast import Measurement
from guidedq.artifacts.report import (
    BudgetFacts,
    MeasuredFacts,
    ModelFacts,
    PlanPoint,
    ProbePoint,
    Report,
    SiteFacts,
    SizeFacts,
)
from guidedq.budget import Budget
from guidedq.decision import Decision
from guidedq.evidence import Evidence
from guidedq.ir.graph import Graph, Site
from guidedq.job import Job
from guidedq.memory import peak_memory_bytes
from guidedq.registry import stage_text
from guidedq.stages import Emission

VERSIONS_OF = ("guidedq", "torch", "onnx", "onnxruntime", "transformers", "numpy")


def build_report(
    job: Job,
    budget: Budget,
    limit_bytes: int,
    evidence: Evidence,
    decision: Decision,
    emission: Emission,
    measured: Measurement,
    curve: Sequence[PlanPoint],
) -> Report:
    """Everything that was promised, done and measured."""
    model, graph = job.model, job.model.graph
    base = evidence.footprint.base_bytes if job.recipe.scope == "linear" else 0
    return Report(
        model=ModelFacts(
            name=model.name,
            digest=model.digest,
            source=model.source,
            objective=model.objective.value,
            unit=model.objective.unit,
            parameters=model.parameters,
            sites=len(graph.quantizable),
        ),
        budget=BudgetFacts(asked=budget.text, bytes=limit_bytes - base, scope=job.recipe.scope),
        size=SizeFacts(
            file_bytes=emission.bytes,
            bits_per_weight=8 * emission.bytes / model.parameters,
            linear_bits_per_weight=linear_bits(graph, emission.site_bytes),
        ),
        forecast=decision.forecast,
        measured=_measured(measured),
        curve=tuple(curve),
        probes=tuple(
            ProbePoint(
                bytes=probe.bytes,
                bits_per_weight=8 * probe.bytes / model.parameters,
                raw_kl=probe.raw_kl,
                measured_kl=probe.measured.kl,
            )
            for probe in decision.probes
        ),
        seconds=dict(job.stopwatch.seconds),
        peak_memory_bytes=peak_memory_bytes(),
        sites=tuple(
            _site(site, decision.allocation.sites[site.name], emission.site_bytes[site.name], graph)
            for site in graph.quantizable
        ),
        backend=stage_text(job.backend, "backend"),
        recipe=job.recipe.text(),
        data=evidence.calibration.source,
        digests={
            "model": model.digest,
            "data": evidence.calibration.digest,
            "allocation": decision.allocation.digest,
        },
        guidance=dict(evidence.guidance.facts),
        versions={name: importlib.metadata.version(name) for name in VERSIONS_OF}
        | {"python": platform.python_version()},
        seed=job.seed,
        notices=(*model.notices, *evidence.notices, *emission.notices),
    )


def plan_point(job: Job, asked: str, decision: Decision) -> PlanPoint:
    """One size and its forecast."""
    share = decision.bytes / decision.allocation.bytes
    sizes = {name: site.bytes * share for name, site in decision.allocation.sites.items()}
    return PlanPoint(
        asked=asked,
        bytes=decision.bytes,
        bits_per_weight=8 * decision.bytes / job.model.parameters,
        linear_bits_per_weight=linear_bits(job.model.graph, sizes),
        forecast=decision.forecast,
    )


def linear_bits(graph: Graph, site_bytes: Mapping[str, int] | Mapping[str, float]) -> float:
    """Bits per weight of the linear and convolution sites, their side information counted; 0 if there are none."""
    sites = [site for site in graph.quantizable if site.is_linear]
    parameters = sum(site.parameters for site in sites)
    return 8 * sum(site_bytes[site.name] for site in sites) / parameters if parameters else 0.0


def _measured(measured: Measurement) -> MeasuredFacts:
    return MeasuredFacts(
        kl=measured.kl,
        loss_before=measured.loss_before,
        loss_after=measured.loss_after,
        agreement=measured.agreement,
        accuracy_before=measured.accuracy_before,
        accuracy_after=measured.accuracy_after,
        tokens=measured.units,
    )


def _site(site: Site, allocated: SiteAllocation, size: int, graph: Graph) -> SiteFacts:
    used = allocated.used
    return SiteFacts(
        name=site.name,
        operator=str(graph.operators.nodes[site.uses[0].operator]["operator"]),
        shape=site.shape,
        format=" + ".join(map(str, used)),
        bits=8 * size / site.parameters,
        bytes=size,
        distortion=allocated.distortion,
        rows={str(format): rows for format, rows in used.items()},
    )
