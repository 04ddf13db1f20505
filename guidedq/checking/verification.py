"""Verify an artifact: its files against the digests in its report, and its loss measured anew on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from guidedq.artifacts.forecast import Measurement
from guidedq.artifacts.manifest import check_files
from guidedq.artifacts.report import (
    OWN_DIGEST,
    MeasuredFacts,
    Report,
    SamplingFacts,
    files_digest,
    is_sealed,
    read_report,
    recipe_digest,
)
from guidedq.artifacts.samples import CalibrationSet, SampleSet
from guidedq.checking.artifact_evaluation import original_of
from guidedq.driver.evidence import calibration_set
from guidedq.driver.job import Job
from guidedq.errors import ArtifactError, CalibrationError
from guidedq.evaluation import measure
from guidedq.ir.model import Model
from guidedq.progress import Progress
from guidedq.recipe import parse_recipe
from guidedq.registry import parse_stage
from guidedq.report.build import versions_here
from guidedq.stages import AbstractBackend
from guidedq.workspace import Workspace, storing

TOLERANCE = 0.01
"""Relative to the divergence: other processors and versions add up in another order, and round some activations to the
next int8. On one machine the numbers are equal to the last bit."""
CHECKED = ("artifact", "recipe", "model", "data", "calibration", "evaluation")
"""Digests that are made again."""
LOSS_TOLERANCE = 1e-4
"""Relative to a loss of the original, whose weights are not rounded."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One number of the report, and what it is now; `tolerance` is absolute."""

    name: str
    reported: float
    measured: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether they are equal, or within the tolerance."""
        return self.reported == self.measured or abs(self.reported - self.measured) <= self.tolerance


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found: files, samples and report are as they were written, or there would be an error; and the numbers.

    Attributes:
        report: Of the artifact.
        files: All of them, by their digests.
        digests: Names of the report's digests that were made again and are equal. That of the allocation cannot be made
            from the files: compiling again does (`reproduction.py`).
        numbers: Measured again, of a nested artifact at each precision.
        versions: Where they are others here: those of the report, and those here.
    """

    report: Report
    files: tuple[str, ...]
    digests: tuple[str, ...]
    numbers: tuple[Compared, ...]
    versions: Mapping[str, tuple[str, str]]

    @property
    def agrees(self) -> bool:
        """Whether every number is as the report says."""
        return all(number.agrees for number in self.numbers)


def verify_artifact(
    folder: Path,
    original: str | Path | None,
    data: Sequence[Path],
    evaluation_data: Sequence[Path],
    *,
    workspace: Path,
    progress: Progress,
) -> Verification:
    """Check the digests of every file, draw the evaluation samples again, and measure the artifact on them.

    Args:
        folder: What a compile wrote.
        original: The model that it was made from; `None` to go by the report.
        data: What the compile was given; empty to go by the report.
        evaluation_data: The same of its evaluation data.
        workspace: Where samples that were drawn are kept.
        progress: Told about the work.

    Raises:
        ArtifactError: `folder` is no artifact, or a file is missing, truncated, altered or of a newer version, or
            `original` is another model.
        CalibrationError: the samples are not those of the report.
    """
    report = read_report(folder)
    sampling = _checked_digests(report, folder)
    sources = _sources(sampling, data, evaluation_data)
    model = original_of(report, original)
    backend: AbstractBackend = parse_stage(report.backend, "backend")
    samples = _same_samples(report, sources, model, backend, workspace, progress)

    def compared(precision: int | None, reported: MeasuredFacts) -> tuple[Compared, ...]:
        measured = measure(
            samples,
            model.objective,
            predict_original=model.program.predict,
            predict_quantized=backend.open(model, folder, precision=precision),
            progress=progress,
        )
        return _compared(reported, measured, "" if precision is None else f" at {precision} bits")

    levels = [(facts.bits, facts.measured) for facts in report.precisions] or [(None, report.measured)]
    return Verification(
        report=report,
        files=tuple(report.files),
        digests=(*(name for name in CHECKED if name in report.digests), *([OWN_DIGEST] if is_sealed(folder) else [])),
        numbers=tuple(number for level in levels for number in compared(*level)),
        versions=other_versions(report),
    )


def other_versions(report: Report) -> Mapping[str, tuple[str, str]]:
    """What a result may depend on and is of another version here: the report's, and the one here."""
    here = versions_here()
    names = {**report.versions, **here}
    pairs = {name: (report.versions.get(name, "unknown"), here.get(name, "none")) for name in names}
    return {name: pair for name, pair in pairs.items() if name in report.versions and pair[0] != pair[1]}


def _checked_digests(report: Report, folder: Path) -> SamplingFacts:
    """See that the files and the report are as they were written, and can be measured again."""
    if report.sampling is None or not report.files:
        raise ArtifactError(f"{folder} was written before reports held digests of all files. Compile it anew.")
    check_files(report.files, folder)
    for name, found in (("artifact", files_digest(report.files)), ("recipe", recipe_digest(report.recipe))):
        if report.digests.get(name) != found:
            raise ArtifactError(f"{folder}: the report was altered: its {name} has not the digest that it states.")
    return report.sampling


def sources_of(report: Report, data: Sequence[Path], evaluation_data: Sequence[Path]) -> SamplingFacts:
    """Where a compile's samples were drawn from.

    Raises:
        ArtifactError: the report does not tell.
        CalibrationError: something is not there.
    """
    if report.sampling is None:
        raise ArtifactError("the report does not tell which data were used. Name some with --data.")
    return _sources(report.sampling, data, evaluation_data)


def _sources(sampling: SamplingFacts, data: Sequence[Path], evaluation_data: Sequence[Path]) -> SamplingFacts:
    """Where to draw from, all of which is there."""
    sources = replace(
        sampling,
        files=tuple(map(str, data)) or sampling.files,
        evaluation_files=tuple(map(str, evaluation_data)) or sampling.evaluation_files,
    )
    for option, files in (("--data", sources.files), ("--eval-data", sources.evaluation_files)):
        if missing := [file for file in files if not Path(file).exists()]:
            raise CalibrationError(f"no such data: {', '.join(missing)}. Name what the compile had with {option}.")
    return sources


def drawn_again(
    report: Report,
    data: Sequence[Path],
    evaluation_data: Sequence[Path],
    model: Model,
    backend: AbstractBackend,
    workspace: Path,
    progress: Progress,
) -> CalibrationSet:
    """The samples that a compile drew, drawn again or found in the workspace.

    Args:
        report: Of the compile.
        data: What it was given; empty to go by the report.
        evaluation_data: The same of its evaluation data.
        model: The original.
        backend: That wrote it.
        workspace: Where samples are kept.
        progress: Told about the work.

    Raises:
        ArtifactError: the report does not tell.
        CalibrationError: the data are not there, or do not fit.
    """
    return _drawn(report, sources_of(report, data, evaluation_data), model, backend, workspace, progress)


def _same_samples(
    report: Report, sources: SamplingFacts, model: Model, backend: AbstractBackend, workspace: Path, progress: Progress
) -> SampleSet:
    """The evaluation samples, drawn again; these and all others are the very ones of the report."""
    drawn = _drawn(report, sources, model, backend, workspace, progress)
    found = {"evaluation": drawn.evaluation.digest, "calibration": drawn.calibration.digest, "data": drawn.digest}
    for name, digest in found.items():
        if digest != report.digests.get(name, digest):
            samples = "samples" if name == "data" else f"{name} samples"
            raise CalibrationError(
                f"the {samples} are not those of the report: digest {digest[:12]}, expected "
                f"{report.digests[name][:12]}. Name the same --data and --eval-data as the compile had: "
                f"{', '.join((*sources.files, *sources.evaluation_files)) or 'none'} were drawn from."
            )
    return drawn.evaluation


def _drawn(
    report: Report, sources: SamplingFacts, model: Model, backend: AbstractBackend, workspace: Path, progress: Progress
) -> CalibrationSet:
    job = Job(
        model=model,
        backend=backend,
        recipe=parse_recipe(""),
        sampler=parse_stage(sources.sampler, "sample"),
        data=tuple(map(Path, sources.files)),
        evaluation_data=tuple(map(Path, sources.evaluation_files)),
        seed=report.seed,
        workspace=Workspace(root=workspace),
        progress=progress,
    )
    with storing(workspace):
        return calibration_set(job)


def _compared(was: MeasuredFacts, measured: Measurement, where: str) -> tuple[Compared, ...]:
    tolerance = TOLERANCE * abs(was.kl)
    own = LOSS_TOLERANCE * abs(was.loss_before)
    tolerances = {"kl": tolerance, "loss_before": own, "loss_after": own + tolerance}
    return tuple(
        Compared(name=name + where, reported=getattr(was, name), measured=getattr(measured, name), tolerance=allowed)
        for name, allowed in tolerances.items()
    )
