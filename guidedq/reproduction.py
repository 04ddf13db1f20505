"""Compile again what a report tells of, from the report alone, and see whether the same comes out."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from guidedq.artifacts.report import Report, read_report
from guidedq.budget import parse_budget
from guidedq.checking.artifact_evaluation import original_of
from guidedq.checking.verification import sources_of
from guidedq.compiler import Artifact, compile_model
from guidedq.driver.job import Job
from guidedq.errors import ArtifactError
from guidedq.nested_compiler import compile_nested
from guidedq.progress import Progress
from guidedq.recipe import recipe_of
from guidedq.registry import parse_stage
from guidedq.request import make_job


def compiled_again(
    folder: Path,
    original: str | Path | None,
    data: Sequence[Path],
    evaluation_data: Sequence[Path],
    *,
    progress: Progress,
) -> Mapping[str, tuple[str, str]]:
    """Compile anew, in a fresh workspace and with as many threads, and compare digests.

    Args:
        folder: What a compile wrote, or its `report.json`.
        original: The model that it was made from; `None` to go by the report.
        data: What the compile was given; empty to go by the report.
        evaluation_data: The same of its evaluation data.
        progress: Told about the work.

    Returns:
        The digests that the report states and those that came out, by name: equal where the result is the same.

    Raises:
        ArtifactError: the report does not tell enough, or kernel times had a say, which never come out the same.
        GuidedQError: the model or the data are not there.
    """
    report = read_report(folder)
    if report.latency is not None:
        raise ArtifactError(f"{folder} was compiled for latency: times differ from run to run, and so does the result.")
    sources = sources_of(report, data, evaluation_data)
    model = original_of(report, original)
    with tempfile.TemporaryDirectory(prefix="guidedq-again-") as scratch, _threads(report):
        job = make_job(
            model,
            data=[*sources.files],
            eval_data=[*sources.evaluation_files],
            backend=parse_stage(report.backend, "backend"),
            recipe=recipe_of(report.recipe),
            sampler=parse_stage(sources.sampler, "sample"),
            seed=report.seed,
            workspace=Path(scratch) / "workspace",
            max_memory=None if report.run is None else report.run.memory_bytes,
            progress=progress,
        )
        made = _compiled(job, report, Path(scratch) / "out").report.digests
    return {name: (stated, made[name]) for name, stated in report.digests.items() if name in made}


def _compiled(job: Job, report: Report, out: Path) -> Artifact:
    tokens = None if report.run is None else report.run.training_tokens
    if report.precisions:
        return compile_nested(job, [facts.bits for facts in report.precisions], None, out, training_tokens=tokens)
    return compile_model(job, parse_budget(report.budget.asked), out, training_tokens=tokens)


@contextmanager
def _threads(report: Report) -> Generator[None]:
    """Compute with as many threads as the report tells."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if report.run is None else report.run.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
