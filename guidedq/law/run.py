"""The whole of `guidedq law`: sweep every model, fit, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from guidedq.driver.job import Job
from guidedq.errors import LawError
from guidedq.files import write_text
from guidedq.ir.model import Objective
from guidedq.law.assembly import assemble_law
from guidedq.law.figures import law_figures
from guidedq.law.finetuning import STEPS, check_tunable, fine_tuned
from guidedq.law.forms import TRAIN_BITS
from guidedq.law.record import Law, SweptModel, law_toml
from guidedq.law.sweep import check_widths, sweep
from guidedq.output import new_folder
from guidedq.report.drawing import save_figure
from guidedq.request import make_job
from guidedq.strict_json import json_text

PICTURES = (".png", ".svg")


def run_law(
    models: Sequence[str],
    tokens: Sequence[float | None],
    widths: Sequence[int],
    *,
    train_bits: float | None = None,
    finetune: Path | None = None,
    finetune_steps: int | None = None,
    scratch: Path,
    arguments: Mapping[str, Any],
) -> Law:
    """Sweep the models one after another and fit the law to all of them.

    Args:
        models: As for `guidedq.compile`.
        tokens: Training tokens of each, or `None` for a single model.
        widths: Bits of the uniform models.
        train_bits: b_train.
        finetune: Text to fine-tune each model on before it is swept; where no data are named, these are drawn from it
            too, and what is held back for the evaluation is not trained on.
        finetune_steps: Optimizer steps of that.
        scratch: An empty folder for fine-tuned models.
        arguments: Of `make_job`.

    Raises:
        GuidedQError: whatever is wrong with the input.
    """
    check_widths(widths)
    if arguments.get("objective") == "latency" or arguments.get("max_latency") is not None:
        raise LawError("a law tells what sizes cost, not what time costs: leave --objective latency out.")
    if finetune is not None and not finetune.is_file():
        raise LawError(f"--finetune {finetune}: no such file. Expected a text.")
    if finetune is not None and not arguments.get("data"):
        arguments = {**arguments, "data": finetune}
    kinds = {_checked(model, finetune, arguments) for model in models}
    if len(kinds) > 1:
        raise LawError(f"these models have losses of different kinds: {', '.join(kind.unit for kind in kinds)}.")
    swept: list[SweptModel] = []
    for number, (model, count) in enumerate(zip(models, tokens, strict=True)):
        job = make_job(model, **arguments)
        job.progress.notice(f"model {model}")
        if finetune is not None:
            job = _fine_tuned(job, finetune, finetune_steps or STEPS, scratch / str(number), arguments)
        swept.append(sweep(job, widths, count))
    (kind,) = kinds
    language = kind is Objective.LANGUAGE_MODEL
    return assemble_law(swept, kind.unit, train_bits or TRAIN_BITS, language_models=language)


def write_law(law: Law, out: Path, *, overwrite: bool) -> None:
    """Write law.toml, law.json and the figures.

    Raises:
        OutputError: the folder cannot be written, or exists.
    """
    with new_folder(out, overwrite=overwrite) as folder:
        write_text(folder / "law.toml", law_toml(law))
        write_text(folder / "law.json", json_text(asdict(law)))
        for name, figure in law_figures(law).items():
            for suffix in PICTURES:
                save_figure(figure, folder / f"{name}{suffix}")


def _checked(model: str, finetune: Path | None, arguments: Mapping[str, Any]) -> Objective:
    """See that a model can be swept, before any is: each is loaded, and dropped again."""
    loaded = make_job(model, **arguments).model
    if finetune is not None:
        check_tunable(loaded)
    return loaded.objective


def _fine_tuned(job: Job, text: Path, steps: int, scratch: Path, arguments: Mapping[str, Any]) -> Job:
    """The same job for the model after some steps on a text."""
    folder = scratch / job.model.name
    length, seed = arguments.get("sequence_length"), arguments.get("seed", 0)
    fine_tuned(job.model, text, folder, steps=steps, sequence_length=length, seed=seed, progress=job.progress)
    return make_job(str(folder), **arguments)
