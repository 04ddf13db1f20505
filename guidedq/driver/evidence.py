"""Everything measured before a budget is looked at: calibration set, guidance, curves. Kept in the workspace."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

from torch import Tensor

from guidedq.artifacts.curves import SiteCurve
from guidedq.artifacts.footprint import Footprint, SiteFootprint
from guidedq.artifacts.guidance import AbstractGuidance
from guidedq.artifacts.quantized_weight import RoundedSegment
from guidedq.artifacts.samples import CalibrationSet
from guidedq.driver.job import Job
from guidedq.driver.timing import Timing
from guidedq.errors import CalibrationError
from guidedq.ir.activation_rounding import ActivationRounding
from guidedq.memory import LARGE_PARAMETERS, TIDY_SITES, give_back
from guidedq.progress import tracked
from guidedq.quant.formats import RoundedFormat
from guidedq.registry import stage_text
from guidedq.workspace import (
    finish,
    is_finished,
    load_calibration_set,
    load_codes,
    load_curve,
    save_calibration_set,
    save_codes,
    save_curve,
    storing,
)

READ_BYTES = 1 << 20
KEPT_CODES_BYTES = 2 << 30
"""Disk that the codes of all formats may take: models up to some 150 million weights are not rounded a second time."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CurveFiles:
    """The curves of all sites, read from the workspace as they are needed.

    Attributes:
        folder: Their entry.
        names: Sites in graph order.
    """

    folder: Path
    names: tuple[str, ...]

    def all(self) -> Mapping[str, SiteCurve]:
        """All curves, without their projections."""
        return {curve.name: curve for curve in self._read(projections=False)}

    def stream(self) -> Iterator[SiteCurve]:
        """One curve after another, with its projections."""
        return self._read(projections=True)

    def codes(self, name: str, format: RoundedFormat, rows: Tensor) -> RoundedSegment | None:
        """Some rows of a site as they were rounded for its curve, if that was kept."""
        return load_codes(self.folder, self.names.index(name), format, rows)

    def _read(self, *, projections: bool) -> Iterator[SiteCurve]:
        for number in range(len(self.names)):
            curve = load_curve(self.folder, number, projections=projections)
            if curve is None:
                raise CalibrationError(
                    f"{self.folder} lost the curve of {self.names[number]}. Delete it and run again."
                )
            yield curve


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What decisions are based on.

    Attributes:
        footprint: Bytes of every site in every format.
        calibration: The three sample sets.
        guidance: Which errors matter.
        distortions: What each format costs and does; without the projections.
        curves: The same with the projections and the codes, as they are needed.
        key: Identifies all of this, for what is derived from it.
        rounding: Of activations, when the artifact is run.
        rounding_loss: The divergence that is predicted of `rounding` apart from what the runtime does on its own
            account, and of the weights' rounding to integers: for that the probes alone speak.
        timing: How long a call takes, and what a second is worth, where that is asked.
        notices: What the user should know about it.
    """

    footprint: Footprint
    calibration: CalibrationSet
    guidance: AbstractGuidance
    distortions: Mapping[str, SiteCurve]
    curves: CurveFiles
    key: str
    rounding: ActivationRounding | None = None
    rounding_loss: float = 0.0
    timing: Timing | None = None
    notices: tuple[str, ...] = ()

    @property
    def choice_key(self) -> tuple[str, ...]:
        """Identifies what was chosen before any allocation: the rounding of activations, and for the sake of time."""
        if self.timing is None:
            return (repr(self.rounding),)
        mixed = any(site.segments > 1 for site in self.footprint.sites.values())
        return repr(self.rounding), repr(self.timing), str(mixed)

    @property
    def exact(self) -> bool:
        """Whether the footprint knows every file's size: no site has an entropy format."""
        return not any(any(site.code_bytes) for site in self.footprint.sites.values())


def gather(job: Job, footprint: Footprint) -> Evidence:
    """Sample, collect and measure, or find in the workspace what an earlier run left.

    Raises:
        OutputError: the workspace cannot be written.
    """
    with storing(job.workspace.root):
        with job.stopwatch.time("sample"):
            calibration = calibration_set(job)
        with job.stopwatch.time("guidance"):
            guidance, guidance_key = guidance_of(job, calibration)
        with job.stopwatch.time("curves"):
            curves, key = _curves(job, footprint, guidance, guidance_key)
    distortions = curves.all()
    return Evidence(
        footprint=measured_footprint(footprint, distortions),
        distortions=distortions,
        calibration=calibration,
        guidance=guidance,
        curves=curves,
        key=key,
        rounding=job.own_rounding(),
    )


def measured_footprint(footprint: Footprint, curves: Mapping[str, SiteCurve]) -> Footprint:
    """The footprint with the bytes that codes of entropy formats really took in place of estimates, rounded up."""

    def measured(site: SiteFootprint, curve: SiteCurve) -> SiteFootprint:
        code_bytes = tuple(math.ceil(size) for size in curve.entropy_bytes.tolist())
        sizes = zip(site.row_bytes, site.code_bytes, code_bytes, strict=True)
        return replace(site, row_bytes=tuple(row - old + new for row, old, new in sizes), code_bytes=code_bytes)

    sites = {name: measured(site, curves[name]) if site.code_bytes else site for name, site in footprint.sites.items()}
    return replace(footprint, sites=sites)


def calibration_set(job: Job) -> CalibrationSet:
    """The samples of a job, drawn now or in an earlier run.

    Raises:
        CalibrationError: the data do not fit the model, or are too few.
    """
    files = (*_content(job.data), "|", *_content(job.evaluation_data))
    entry = job.workspace.entry("samples", job.model.digest, stage_text(job.sampler, "sample"), str(job.seed), *files)
    if not is_finished(entry):
        drawn = job.sampler.sample(job.model, job.data, job.evaluation_data, seed=job.seed, progress=job.progress)
        save_calibration_set(entry, drawn)
    return load_calibration_set(entry)


def guidance_of(job: Job, calibration: CalibrationSet) -> tuple[AbstractGuidance, str]:
    """The guidance of a job and what identifies it, collected now or in an earlier run."""
    sites = " ".join(site.name for site in job.model.graph.quantizable)
    text = stage_text(job.recipe.guide, "guide")
    key = (job.model.digest, calibration.calibration.digest, text, str(job.seed), sites)
    entry = job.workspace.entry("guidance", *key)
    if not is_finished(entry):
        job.recipe.guide.collect(
            job.model,
            calibration.calibration,
            entry,
            seed=job.seed,
            memory_bytes=job.memory_bytes,
            progress=job.progress,
        )
        finish(entry)
        gc.collect()
        give_back()
    return job.recipe.guide.restore(entry), entry.name


def _curves(job: Job, footprint: Footprint, guidance: AbstractGuidance, guidance_key: str) -> tuple[CurveFiles, str]:
    sites = job.model.graph.quantizable
    formats = [f"{site.name} {' '.join(map(str, footprint.sites[site.name].formats))}" for site in sites]
    stages = (stage_text(job.recipe.round, "round"), stage_text(job.recipe.measure, "measure"))
    entry = job.workspace.entry("curves", guidance_key, *stages, str(job.seed), *formats)
    missing = [(n, site) for n, site in enumerate(sites) if load_curve(entry, n, projections=False) is None]
    codes_bytes = sum(site.parameters * (len(footprint.sites[site.name].formats) - 1) for site in sites)
    kept = codes_bytes <= KEPT_CODES_BYTES

    def keep(number: int, segment: RoundedSegment) -> None:
        if kept:
            save_codes(entry, number, segment)

    for number, site in tracked(job.progress, "curves", missing, len(missing)):
        curve = job.recipe.measure.measure(
            site,
            job.model.matrix(site),
            guidance.site(site.name),
            guidance.gradients(site.name),
            footprint,
            job.recipe.round,
            seed=job.seed + number,
            keep=partial(keep, number),
        )
        save_curve(entry, number, curve)
        if site.parameters >= LARGE_PARAMETERS or number % TIDY_SITES == 0:
            give_back()
    return CurveFiles(folder=entry, names=tuple(site.name for site in sites)), entry.name


def _content(paths: Sequence[Path]) -> Iterator[str]:
    """Digests of what lies under the paths: renaming a file changes nothing, changing it does."""
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            state = hashlib.sha256(file.suffix.encode())
            try:
                with file.open("rb") as stream:
                    while block := stream.read(READ_BYTES):
                        state.update(block)
            except OSError as error:
                raise CalibrationError(f"cannot read {file}: {error.strerror}.") from error
            yield state.hexdigest()
