"""Build the report from what the compiler knows."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

import torch

from guidedq.artifacts.allocation import SiteAllocation
from guidedq.artifacts.diagnostic import Diagnostic
from guidedq.artifacts.emission import Emission
from guidedq.artifacts.forecast import Measurement
from guidedq.artifacts.manifest import file_entry
from guidedq.artifacts.report import (
    BudgetFacts,
    MeasuredFacts,
    ModelFacts,
    PlanPart,
    PlanPoint,
    ProbePoint,
    Report,
    RunFacts,
    SamplingFacts,
    SiteFacts,
    SizeFacts,
    files_digest,
    recipe_digest,
)
from guidedq.budget import Budget
from guidedq.driver.decision import Decision
from guidedq.driver.evidence import Evidence
from guidedq.driver.gates import Gates
from guidedq.driver.job import Job
from guidedq.ir.graph import Graph, Site, UseKind
from guidedq.machine import processor_name
from guidedq.memory import peak_memory_bytes
from guidedq.registry import stage_text

THIRDS = ("first third", "middle third", "last third")
VERSIONS_OF = ("guidedq", "torch", "onnx", "onnxruntime", "transformers", "numpy", "scipy", "safetensors")


def build_report(
    job: Job,
    budget: Budget,
    limit_bytes: int | None,
    evidence: Evidence,
    decision: Decision,
    emission: Emission,
    measured: Measurement,
    curve: Sequence[PlanPoint],
    diagnostics: tuple[Diagnostic, ...],
    run: RunFacts,
) -> Report:
    """Everything that was promised, done and measured; without a limit, the budget came to what was written."""
    model, graph = job.model, job.model.graph
    folder = emission.weights_file.parent
    files = {path.name: file_entry(path) for path in sorted(folder.iterdir()) if path.is_file()}
    return Report(
        model=ModelFacts(
            name=model.name,
            digest=model.digest,
            source=model.source,
            objective=model.objective.value,
            unit=model.objective.unit,
            parameters=model.parameters,
            sites=len(graph.quantizable),
            path=str(model.path),
        ),
        budget=BudgetFacts(
            asked=budget.text, bytes=_budget_bytes(job, evidence, emission, limit_bytes), scope=job.recipe.scope
        ),
        size=SizeFacts(
            file_bytes=emission.bytes,
            bits_per_weight=8 * emission.bytes / model.parameters,
            linear_bits_per_weight=linear_bits(graph, emission.site_bytes),
        ),
        forecast=decision.forecast,
        measured=measured_facts(measured),
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
            "calibration": evidence.calibration.calibration.digest,
            "evaluation": evidence.calibration.evaluation.digest,
            "recipe": recipe_digest(job.recipe.text()),
            "allocation": decision.allocation.digest,
            "artifact": files_digest(files),
        },
        guidance=dict(evidence.guidance.facts),
        versions=versions_here(),
        seed=job.seed,
        notices=(*model.notices, *evidence.notices, *emission.notices),
        diagnostics=diagnostics,
        sampling=SamplingFacts(
            sampler=stage_text(job.sampler, "sample"),
            files=tuple(map(str, job.data)),
            evaluation_files=tuple(map(str, job.evaluation_data)),
        ),
        files=files,
        runtime=emission.runtime,
        run=run,
    )


def _budget_bytes(job: Job, evidence: Evidence, emission: Emission, limit_bytes: int | None) -> int:
    """What the budget came to, of the file or of the linear sites alone."""
    linear = job.recipe.scope == "linear"
    if limit_bytes is None:
        return sum(emission.site_bytes.values()) if linear else emission.bytes
    return limit_bytes - (evidence.footprint.base_bytes if linear else 0)


def versions_here() -> dict[str, str]:
    """Versions of what a result may depend on, as they are installed."""
    return {name: importlib.metadata.version(name) for name in VERSIONS_OF} | {"python": platform.python_version()}


def run_facts(job: Job, gates: Gates, training_tokens: float | None) -> RunFacts:
    """How a job is run, and its gates."""
    return RunFacts(
        threads=torch.get_num_threads(),
        processor=processor_name(),
        system=platform.platform(),
        memory_bytes=job.memory_bytes,
        training_tokens=training_tokens,
        max_loss_increase=gates.largest_loss_increase,
        strict=gates.strict,
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
        parts=parts_of(job.model.graph, sizes, decision.bytes),
    )


def parts_of(graph: Graph, site_bytes: Mapping[str, float], file_bytes: int) -> tuple[PlanPart, ...]:
    """Where the bytes of a file go: embeddings, the thirds of the other weights from input to output, and the rest."""
    embeddings = [site for site in graph.quantizable if any(use.kind is UseKind.EMBEDDING for use in site.uses)]
    others = [site for site in graph.quantizable if site not in embeddings]
    total, before = sum(site.parameters for site in others), 0
    members: dict[str, list[Site]] = {"embedding": embeddings, **{name: [] for name in THIRDS}}
    for site in others:
        middle = before + site.parameters / 2
        members[THIRDS[min(int(len(THIRDS) * middle / total), len(THIRDS) - 1)]].append(site)
        before += site.parameters
    parts = [
        PlanPart(
            name=name,
            bytes=round(sum(site_bytes[site.name] for site in sites)),
            bits_per_weight=8 * sum(site_bytes[site.name] for site in sites) / sum(site.parameters for site in sites),
        )
        for name, sites in members.items()
        if sites
    ]
    rest = file_bytes - sum(part.bytes for part in parts)
    return (*parts, PlanPart(name="rest", bytes=rest, bits_per_weight=0.0))


def linear_bits(graph: Graph, site_bytes: Mapping[str, int] | Mapping[str, float]) -> float:
    """Bits per weight of the linear and convolution sites, their side information counted; 0 if there are none."""
    sites = [site for site in graph.quantizable if site.is_linear]
    parameters = sum(site.parameters for site in sites)
    return 8 * sum(site_bytes[site.name] for site in sites) / parameters if parameters else 0.0


def measured_facts(measured: Measurement) -> MeasuredFacts:
    """What the report tells of a measurement."""
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
