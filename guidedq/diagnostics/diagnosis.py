"""All diagnostics of one compile."""

from __future__ import annotations

from collections.abc import Sequence

from guidedq.artifacts.diagnostic import Diagnostic
from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.diagnostics.activation_outliers import activation_outliers
from guidedq.diagnostics.calibration_gap import calibration_gap
from guidedq.diagnostics.calibration_samples import calibration_samples
from guidedq.diagnostics.concentration import concentration
from guidedq.diagnostics.curve_order import curve_order
from guidedq.diagnostics.effective_samples import effective_samples
from guidedq.diagnostics.evaluation_noise import evaluation_noise
from guidedq.diagnostics.extrapolation import extrapolation
from guidedq.diagnostics.guidance_agreement import guidance_agreement
from guidedq.diagnostics.narrowest_formats import narrowest_formats
from guidedq.diagnostics.over_training import over_training
from guidedq.diagnostics.overlap import overlap
from guidedq.diagnostics.shrinkage import shrinkage
from guidedq.diagnostics.text_fit import text_fit
from guidedq.driver.decision import Decision, forecast_of
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job


def diagnosed(
    job: Job,
    evidence: Evidence,
    decision: Decision,
    probes: Sequence[Probe],
    measured: Measurement,
    training_tokens: float | None,
) -> tuple[Diagnostic, ...]:
    """Every check that applies; nothing is collected for them.

    Args:
        job: What is compiled.
        evidence: What it rests on.
        decision: What was written.
        probes: Measured models, none of them refined.
        measured: The artifact on the evaluation samples.
        training_tokens: What the model was trained on, if known.
    """
    graph, curves = job.model.graph, evidence.distortions
    parameters = {site.name: site.parameters for site in graph.quantizable}
    raw_kl = sum(decision.raw) / len(decision.raw)
    checks = (
        guidance_agreement(curves),
        shrinkage(curves),
        curve_order(curves),
        calibration_samples(evidence.calibration.calibration),
        evaluation_noise(measured, effective_samples(evidence.calibration.evaluation)),
        overlap(evidence.calibration),
        text_fit(measured),
        concentration(decision.allocation, parameters),
        calibration_gap(forecast_of(job, evidence, decision.raw, probes)),
        extrapolation(raw_kl, probes),
        narrowest_formats(decision.allocation, raw_kl, probes),
        activation_outliers(evidence.guidance, graph.quantizable, evidence.rounding),
        over_training(training_tokens, job.model.parameters),
    )
    return tuple(check for check in checks if check is not None)
