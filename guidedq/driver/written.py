"""Is what was written what was decided? The file's own output beside that of the weights that were rounded for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guidedq.artifacts.quantized_weight import QuantizedWeight
from guidedq.driver.evidence import Evidence
from guidedq.driver.job import Job
from guidedq.driver.rounding import DequantizedOnUse
from guidedq.errors import BackendError
from guidedq.ir.joint_output import inverse_sizes
from guidedq.ir.model import Objective

SAMPLES = 2
"""Compared: weights in a wrong place show in each."""
TOLERANCE = 0.25
"""Of the output's size. Runtimes round activations on their own account, which makes some hundredths in deep models; a
weight in a wrong place makes all of it."""


def check_written(job: Job, evidence: Evidence, weights: Sequence[QuantizedWeight], folder: Path) -> None:
    """Make sure that the file in `folder` computes what these weights compute.

    It may differ by a quarter of the output's size, or by as much as quantization itself changed the output.

    Raises:
        BackendError: it does not; the file is not to be used.
    """
    batch = evidence.calibration.probe.part(0, SAMPLES).inputs
    stored = DequantizedOnUse({weight.name: (job.model.graph.site(weight.name), weight) for weight in weights})
    expected = job.model.program.predict(batch, weights=stored, activations=evidence.rounding).double()
    found = job.backend.open(job.model, folder)(batch).double()
    original = job.model.program.predict(batch).double()
    if found.shape != expected.shape:
        raise BackendError(f"the file gives an output {list(found.shape)}, expected {list(expected.shape)}. {REPORT}")
    if job.model.objective is Objective.JOINT_VALUES:  # the largest output would hide the others
        sizes = inverse_sizes(expected)
        expected, found, original = expected * sizes, found * sizes, original * sizes
    allowed = max(TOLERANCE * float(expected.norm()), float((expected - original).norm()))
    if not (difference := float((found - expected).norm())) <= allowed:
        raise BackendError(
            f"the file that was written differs from the weights that were rounded for it: by {difference:.3g}, "
            f"at most {allowed:.3g} is to be expected. {REPORT}"
        )


REPORT = "Nothing was written. This is a fault of guidedq or of the runtime: please report it with the model."
