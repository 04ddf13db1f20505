"""From an artifact and an average to its schedule: draw texts, search, write `schedule.toml`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from guidedq.api import load_quantized
from guidedq.artifacts.report import Report, ScheduleFacts, read_report
from guidedq.artifacts.samples import SampleSet
from guidedq.budget import parse_budget
from guidedq.checking.artifact_evaluation import original_of
from guidedq.checking.verification import drawn_again
from guidedq.errors import BudgetError, CalibrationError, OutputError, ScheduleError
from guidedq.evaluation import token_input
from guidedq.files import write_text
from guidedq.ir.model import Model, Objective
from guidedq.progress import Progress
from guidedq.registry import parse_stage
from guidedq.report.write import write_report
from guidedq.sampling import check_data, named_sampler
from guidedq.schedules.precision import precisions
from guidedq.schedules.schedule import (
    SCHEDULE_NAME,
    Schedule,
    parse_schedule,
    read_schedule,
    schedule_text,
    schedule_toml,
)
from guidedq.schedules.search import Candidate, candidates, costs_of, measured
from guidedq.stages import AbstractBackend

FEWEST_TEXTS = 2
"""To fit on, and to measure on."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All candidates, and the one that was written."""

    candidates: tuple[Candidate, ...]
    best: Candidate
    path: Path


def find_schedule(
    folder: Path,
    average: str,
    data: Sequence[Path] = (),
    *,
    original: str | Path | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    workspace: Path,
    overwrite: bool = False,
    progress: Progress,
) -> Found:
    """Fit schedules of every kind on the calibration texts, measure them on the probe texts, and write the best.

    All of them go into the artifact's report.

    Args:
        folder: A nested artifact.
        average: Bits of a decoded token, `"3.5bits"`.
        data: Texts; those of the compile if empty.
        original: The model that it was made from; `None` to go by the report.
        samples: How many texts to draw from `data`.
        sequence_length: Their tokens.
        seed: Of the draw, and of the intervals.
        workspace: Where samples that were drawn are kept.
        overwrite: Replace a schedule that is there.
        progress: Told about the work.

    Raises:
        ScheduleError: the artifact is not nested, or the average lies beyond its widths.
        OutputError: there is a schedule already.
        GuidedQError: the artifact is damaged, the original gone, or the data will not do.
    """
    report = read_report(folder)
    widths = nested_widths(report, folder)
    bits = _average(average, widths)
    path = folder / SCHEDULE_NAME
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists. Pass --overwrite to replace it.")
    if report.model.objective != Objective.LANGUAGE_MODEL.value:
        raise ScheduleError(f"{report.model.name} writes no text: a schedule is for language models.")
    model = original_of(report, original)
    fit, check = _texts(report, model, data, samples, sequence_length, seed, workspace, progress)
    nested = load_quantized(folder)

    def predict(tokens: Tensor) -> Tensor:
        return model.program.predict({name: tokens}).float()

    name = next(iter(spec.name for spec in model.inputs))
    vocabulary = int(nested.config.get_text_config(decoder=True).vocab_size)
    progress.start("schedule", 2)
    costs = costs_of(nested, predict, fit, widths, bits)
    progress.advance()
    found = measured(nested, predict, check, candidates(nested, costs, bits, vocabulary), seed=seed)
    progress.advance()
    best = min(found, key=lambda candidate: candidate.kl)
    facts = {"average_bits": best.average_bits, "kl": best.kl, "kl_low": best.kl_low, "kl_high": best.kl_high}
    write_text(path, schedule_toml(best.schedule, report.digests["artifact"], facts))
    tried = tuple(
        ScheduleFacts(
            name=one.name,
            text=schedule_text(one.schedule),
            average_bits=one.average_bits,
            kl=one.kl,
            kl_low=one.kl_low,
            kl_high=one.kl_high,
            chosen=one is best,
        )
        for one in found
    )
    write_report(replace(report, schedules=tried), folder)
    return Found(candidates=found, best=best, path=path)


def schedule_of(folder: Path, text: str | None, model: Any) -> Schedule | None:
    """The schedule that a text or a file says, or without either the artifact's own file; `None` if there is none.

    Args:
        folder: The artifact.
        text: As the user wrote it.
        model: Loaded.

    Raises:
        ScheduleError: it is no schedule, or asks for what the model lacks.
        ArtifactError: the model has one precision.
    """
    own = folder / SCHEDULE_NAME
    if text is None and not own.is_file():
        return None
    widths = precisions(model)
    path = own if text is None else Path(text)
    if text is not None and not path.is_file():
        return parse_schedule(text, widths)
    return read_schedule(path, widths, read_report(folder).digests["artifact"])


def nested_widths(report: Report, folder: Path) -> tuple[int, ...]:
    """The widths of a nested artifact.

    Raises:
        ScheduleError: it has one precision.
    """
    if not report.precisions:
        raise ScheduleError(f"{folder} has one precision. Compile with --nested 3,4,5 for several.")
    return tuple(facts.bits for facts in report.precisions)


def _average(text: str, widths: Sequence[int]) -> float:
    try:
        budget = parse_budget(text)
    except BudgetError as error:
        raise ScheduleError(f"--average {text!r}: expected bits, such as 3.5bits.") from error
    if budget.kind != "bits":
        raise ScheduleError(f"--average {text!r}: expected bits, such as 3.5bits.")
    if not widths[0] <= budget.amount <= widths[-1]:
        raise ScheduleError(f"--average {text}: the artifact has {widths[0]} to {widths[-1]} bits.")
    return budget.amount


def _texts(
    report: Report,
    model: Model,
    data: Sequence[Path],
    samples: int | None,
    sequence_length: int | None,
    seed: int,
    workspace: Path,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Tokens to fit on, and to measure on."""
    check_data(data)
    if data:
        sampler = named_sampler("files", samples, sequence_length)
        drawn = sampler.sample(model, data, (), seed=seed, progress=progress)
    else:
        backend: AbstractBackend = parse_stage(report.backend, "backend")
        drawn = drawn_again(report, (), (), model, backend, workspace, progress)
    return _tokens(drawn.calibration), _tokens(drawn.probe)


def _tokens(samples: SampleSet) -> Tensor:
    """The texts that are full: what stands in padding has no loss.

    Raises:
        CalibrationError: there are none, or too few.
    """
    tokens = token_input(samples.inputs)
    if tokens is None:
        raise CalibrationError("the samples hold no tokens: a schedule needs text.")
    full = tokens if samples.mask is None else tokens[samples.mask.bool().flatten(1).all(1)]
    if len(full) < FEWEST_TEXTS:
        raise CalibrationError(f"{len(full)} full texts to fit a schedule on: give more, or shorter, with --data.")
    return full
