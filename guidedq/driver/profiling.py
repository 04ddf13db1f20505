"""The profile that a compile goes by: from a file, or of the model's own kernels, measured once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from guidedq.artifacts.activations import ActivationPlace
from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.footprint import Footprint
from guidedq.artifacts.profile import Kernel, Profile, SiteKernels, read_profile
from guidedq.artifacts.report import LatencyFacts
from guidedq.artifacts.samples import CalibrationSet
from guidedq.driver.evidence import Evidence, calibration_set
from guidedq.driver.job import Job, LatencyGoal
from guidedq.driver.timing import SiteSeconds, Timing
from guidedq.errors import ProfileError
from guidedq.ir.program import Batch
from guidedq.workspace import finish, is_finished, storing

PROFILE_FILE = "profile.toml"


def timing_of(job: Job, evidence: Evidence, goal: LatencyGoal, places: Sequence[ActivationPlace]) -> Timing:
    """How long a call of the model on one sample takes, site by site.

    Raises:
        ProfileError: the goal's profile lacks kernels, or is of another machine and lacks this model.
    """
    with job.stopwatch.time("profile"):
        kernels, rounding = kernels_of(job, evidence.calibration, evidence.footprint, places)
        wanted = tuple(
            dict.fromkeys((*(kernel for site in kernels.values() for kernel in site.all), *rounding.values()))
        )
        profile = (
            _kept(job, evidence.calibration, wanted, goal) if goal.profile is None else _given(job, goal, evidence)
        )
        return Timing(
            sites={name: SiteSeconds.of(site, profile) for name, site in kernels.items()},
            places={name: profile.estimate(kernel) for name, kernel in rounding.items()},
            whole=profile.models[job.model.digest],
            threads=goal.threads,
            source=f"{profile.runtime} on {profile.processor}" + (f", {goal.file}" if goal.file else ""),
        )


def kernels_of(
    job: Job, calibration: CalibrationSet, footprint: Footprint, places: Sequence[ActivationPlace] = ()
) -> tuple[Mapping[str, SiteKernels], Mapping[str, Kernel]]:
    """On one sample: the kernels that could run each site, and those that round activations at each place."""
    operators = {use.operator: None for site in job.model.graph.quantizable for use in site.uses}
    seen = job.model.program.observe(_sample(job, calibration), operators)
    shapes = {name: tuple(values.shape) for name, values in seen.items()}
    timer = job.backend.timer(job.model)
    return timer.kernels(job.model, footprint, shapes), timer.rounding(places, shapes)


def profile_model(job: Job, calibration: CalibrationSet, kernels: Sequence[Kernel], threads: int) -> Profile:
    """Measure these kernels, and the model as it is on one sample.

    Raises:
        ProfileError: the runtime refuses one.
    """
    timer, sample = job.backend.timer(job.model), _sample(job, calibration)
    (before,) = timer.latencies(job.model, sample, (), threads=threads)
    profile = timer.profile(kernels, threads=threads, progress=job.progress)
    (after,) = timer.latencies(job.model, sample, (), threads=threads)
    return replace(profile, models={job.model.digest: min(before, after)})


def own_profile(job: Job) -> Profile:
    """All kernels that could run what the model does, on the shapes of its first sample, and the model itself."""
    assert job.latency is not None
    with storing(job.workspace.root):
        calibration = calibration_set(job)
    timer = job.backend.timer(job.model)
    sites, _ = kernels_of(job, calibration, job.footprint())
    originals = dict.fromkeys(kernel for site in sites.values() for kernel in site.original)
    kernels = dict.fromkeys(other for kernel in originals for other in timer.alternatives(kernel))
    return profile_model(job, calibration, tuple(kernels), job.latency.threads)


def latency_facts(job: Job, evidence: Evidence, allocation: Allocation, folder: Path) -> LatencyFacts | None:
    """What was predicted of a call, and what it takes; `None` where time was not asked about."""
    goal, timing = job.latency, evidence.timing
    if goal is None or timing is None:
        return None
    sample = _sample(job, evidence.calibration)
    with job.stopwatch.time("latency"):
        timer = job.backend.timer(job.model)
        original, seconds = timer.latencies(job.model, sample, (folder,), threads=goal.threads)
    return LatencyFacts(
        asked="fastest" if goal.ratio is None else f"{goal.ratio:g}x",
        profile=timing.source,
        threads=goal.threads,
        integer_sites=len(timing.integers),
        predicted_ratio=timing.seconds(allocation) / timing.whole,
        measured_ratio=seconds / original,
        original_seconds=original,
        seconds=seconds,
    )


def _sample(job: Job, calibration: CalibrationSet) -> Batch:
    """The first calibration sample, or as many as the model's file takes at once."""
    count = next((spec.batch for spec in job.model.inputs if spec.batch is not None), 1)
    return calibration.calibration.part(0, count).inputs


def _kept(job: Job, calibration: CalibrationSet, kernels: Sequence[Kernel], goal: LatencyGoal) -> Profile:
    """What an earlier run measured on this machine, or this one does."""
    machine = job.backend.timer(job.model).profile((), threads=goal.threads, progress=job.progress)
    key = (job.model.digest, str(goal.threads), machine.runtime, machine.processor, repr(kernels))
    entry = job.workspace.entry("profile", *key)
    if not is_finished(entry):
        with storing(job.workspace.root):
            profile_model(job, calibration, kernels, goal.threads).write(entry / PROFILE_FILE)
            finish(entry)
    return read_profile(entry / PROFILE_FILE)


def _given(job: Job, goal: LatencyGoal, evidence: Evidence) -> Profile:
    """The user's profile, with the whole model measured here if it is of this machine and lacks that.

    Raises:
        ProfileError: see `timing_of`.
    """
    assert goal.profile is not None
    profile = goal.profile
    if job.model.digest in profile.models:
        return profile
    here = profile_model(job, evidence.calibration, (), goal.threads)
    if here.processor != profile.processor:
        raise ProfileError(
            f"{goal.file} was measured on {profile.processor} and knows nothing of {job.model.name}; this is "
            f"{here.processor}. Run `guidedq profile {job.model.path.name}` there."
        )
    return replace(profile, models=here.models)
