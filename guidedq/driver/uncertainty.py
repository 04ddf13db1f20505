"""Probes as they would be on the evaluation samples: a model loses more where it was less sure, and how sure is known.

Divergence has a long tail over samples: of ResNet-20's images one in twenty has half of it. So a few hundred probe
samples may be easier or harder than the evaluation's by a good part, whatever is compiled. The original's own outputs
tell by how much, before anything is quantized, as a control variate does (Hammersley and Handscomb 1964). They tell too
how far it is surer than it is right, by which the loss follows the divergence.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import final

import numpy as np

from guidedq.artifacts.forecast import Measurement, Probe
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job
from guidedq.evaluation import measure
from guidedq.files import write_text
from guidedq.workspace import finish, is_finished, storing

FEWEST_SAMPLES = 8
"""A regression over fewer is noise."""
FACTS = "uncertainty.json"
LARGEST_FACTOR = 2.0
"""No further than this is a regression over some ten to some hundred samples followed."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """How sure the original is on some samples, and how right.

    Attributes:
        impurity: Mean Gini impurity of its outputs.
        entropy: Their mean entropy.
        loss: On the data's labels; the entropy where there are none.
    """

    impurity: float
    entropy: float
    loss: float


def evaluation_uncertainty(job: Job, evidence: Evidence) -> Uncertainty | None:
    """Of the original on the evaluation samples; `None` if its outputs are no distributions.

    Raises:
        OutputError: the workspace cannot be written.
    """
    samples = evidence.calibration.evaluation
    entry = job.workspace.entry("uncertainty", job.model.digest, samples.digest)
    if not is_finished(entry):
        with storing(job.workspace.root), job.stopwatch.time("probes"):
            itself = measure(
                samples,
                job.model.objective,
                predict_original=job.original.predict,
                predict_quantized=job.original.predict,
                progress=job.progress,
            )
            write_text(entry / FACTS, json.dumps(_facts(itself)))
            finish(entry)
    found = json.loads((entry / FACTS).read_text())
    return None if found is None else Uncertainty(**found)


def _facts(itself: Measurement) -> dict[str, float] | None:
    values = itself.uncertainty_by_sample
    if not values or itself.entropy is None:
        return None
    mean = sum(values) / len(values)
    return asdict(Uncertainty(impurity=mean, entropy=itself.entropy, loss=itself.loss_before))


def as_evaluated(probe: Probe, uncertainty: Uncertainty | None) -> Probe:
    """The probe with what its samples lost regressed on their uncertainty, and moved to that of other samples.

    What is left of the spread over samples is the spread of the residuals. Loss and accuracy follow the divergence.

    Args:
        probe: Measured on its own samples.
        uncertainty: Of the original on the samples to move to; `None` leaves the probe as it is.
    """
    measured = probe.measured
    own, kl = np.asarray(measured.uncertainty_by_sample), np.asarray(measured.kl_by_sample)
    if uncertainty is None or len(own) != len(kl) or len(kl) < FEWEST_SAMPLES:
        return probe
    if not (own.std() > 0 and 0 < measured.kl < math.inf):
        return probe
    covariance = np.cov(kl, own)
    slope = float(covariance[0, 1] / covariance[1, 1])
    wanted = 1.0 + slope * float((uncertainty.impurity - own.mean()) / kl.mean())
    factor = min(max(wanted, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
    residuals = kl - kl.mean() - slope * (own - own.mean())
    moved = factor * measured.kl + residuals
    increases = np.asarray(measured.loss_increase_by_sample) - kl
    excess = measured.loss_increase - measured.kl
    return replace(
        probe,
        measured=replace(
            measured,
            kl=factor * measured.kl,
            loss_before=uncertainty.loss,
            loss_after=uncertainty.loss + factor * measured.kl + factor * excess,
            entropy=uncertainty.entropy,
            accuracy_after=None
            if measured.accuracy_before is None or measured.accuracy_drop is None
            else measured.accuracy_before - factor * measured.accuracy_drop,
            kl_by_sample=tuple(moved.tolist()),
            loss_increase_by_sample=tuple((moved + factor * increases).tolist()),
            regret_by_sample=tuple(factor * value for value in measured.regret_by_sample),
            accuracy_drop_by_sample=tuple(factor * value for value in measured.accuracy_drop_by_sample),
        ),
    )
