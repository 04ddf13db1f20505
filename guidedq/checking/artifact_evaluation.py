"""Measure an artifact anew, on any data, against the model that it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from guidedq.artifacts.forecast import Measurement
from guidedq.artifacts.report import Report, read_report
from guidedq.artifacts.samples import SampleSet
from guidedq.errors import ArtifactError, CalibrationError
from guidedq.evaluation import measure
from guidedq.frontend import DEMO, load
from guidedq.ir.model import Model
from guidedq.progress import Progress
from guidedq.registry import parse_stage
from guidedq.sampling import check_data, named_sampler
from guidedq.stages import AbstractBackend


def evaluate_artifact(
    folder: Path,
    original: str | Path | None,
    data: Sequence[Path],
    *,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    progress: Progress,
) -> tuple[Model, Measurement]:
    """The original, and the artifact measured against it on everything that is drawn from `data`.

    Args:
        folder: What a compile wrote.
        original: The model that it was made from; `None` to go by the name in the report.
        data: Files or folders; may be empty for the demo, which has text of its own.
        samples: How many samples to draw for the larger part; the sampler's default if `None`.
        sequence_length: Tokens of a sequence.
        seed: Seeds the draw.
        progress: Told about the work.

    Raises:
        ArtifactError: `folder` is no artifact, or `original` is not the model that it was made from.
        CalibrationError: the data do not fit the model.
        ModelError: the original cannot be loaded.
    """
    check_data(data)
    report = read_report(folder)
    if not data and original_name(report, original) != DEMO:
        raise CalibrationError("nothing to measure on: pass --data with text or with a file of the model's inputs.")
    model = original_of(report, original)
    backend: AbstractBackend = parse_stage(report.backend, "backend")
    predict = backend.open(model, folder)
    sampler = named_sampler("files" if data else "demo", samples, sequence_length)
    drawn = sampler.sample(model, data, (), seed=seed, progress=progress)
    parts = (drawn.calibration, drawn.probe, drawn.evaluation) if data else (drawn.evaluation,)

    def measured(part: SampleSet) -> Measurement:
        return measure(
            part,
            model.objective,
            predict_original=model.program.predict,
            predict_quantized=predict,
            progress=progress,
        )

    return model, joined([measured(part) for part in parts])


def joined(parts: Sequence[Measurement]) -> Measurement:
    """One measurement of several disjoint sample sets: means weighted by their units."""
    units = sum(part.units for part in parts)

    def mean(values: Sequence[float]) -> float:
        return math.fsum(value * part.units for value, part in zip(values, parts, strict=True)) / units

    def mean_of_known(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if len(known) == len(parts) else None

    return Measurement(
        kl=mean([part.kl for part in parts]),
        loss_before=mean([part.loss_before for part in parts]),
        loss_after=mean([part.loss_after for part in parts]),
        agreement=mean([part.agreement for part in parts]),
        accuracy_before=mean_of_known([part.accuracy_before for part in parts]),
        accuracy_after=mean_of_known([part.accuracy_after for part in parts]),
        units=units,
        kl_by_sample=tuple(loss for part in parts for loss in part.kl_by_sample),
        loss_increase_by_sample=tuple(loss for part in parts for loss in part.loss_increase_by_sample),
        entropy=mean_of_known([part.entropy for part in parts]),
        regret_by_sample=tuple(regret for part in parts for regret in part.regret_by_sample),
        uncertainty_by_sample=tuple(value for part in parts for value in part.uncertainty_by_sample),
        accuracy_drop_by_sample=tuple(drop for part in parts for drop in part.accuracy_drop_by_sample),
    )


def original_of(report: Report, named: str | Path | None) -> Model:
    """Load the model that an artifact was made from.

    Args:
        report: The artifact's.
        named: Where the model is; `None` to go by the report.

    Raises:
        ArtifactError: it is not where the report says, or is another model.
        ModelError: it cannot be loaded.
    """
    name = original_name(report, named)
    model = load(name)
    if model.digest != report.model.digest:
        raise ArtifactError(
            f"the artifact was made from another model than {name}: digest {report.model.digest[:12]} in its report, "
            f"{model.digest[:12]} found. Name the original with --model."
        )
    return model


def original_name(report: Report, named: str | Path | None) -> str | Path:
    """What `load` takes for the model that an artifact was made from.

    Raises:
        ArtifactError: it is not named, and not where the report says.
    """
    if named is not None:
        return named
    name = report.model.name
    if name == DEMO:
        return name
    for place in (name, report.model.path):
        if place and Path(place).exists():
            return place
    raise ArtifactError(f"where is {name}, the original? It is not where it was: name it with --model.")
