"""`guidedq eval`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from guidedq.cli.console import print_facts, print_json, working
from guidedq.cli.options import DataOption, JsonOption, LengthOption, SamplesOption, SeedOption, ThreadsOption
from guidedq.report.wording import agreement_name, loss_text, perplexity, share_text, signed_text

ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that guidedq compile wrote.")]
OriginalOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="The original; not needed if it was demo or is where it was."),
]


def evaluate(
    artifact: ArtifactArgument,
    data: DataOption = None,
    model: OriginalOption = None,
    samples: SamplesOption = None,
    sequence_length: LengthOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    r"""Measure an artifact against its original: loss, perplexity, KL and agreement.

    \b
    guidedq eval demo-3.5bits
    guidedq eval small --model ./smollm2 --data wiki.txt
    """
    with working(threads=threads) as progress:
        from guidedq.checking.artifact_evaluation import evaluate_artifact

        original, measured = evaluate_artifact(
            artifact,
            model,
            data or (),
            samples=samples,
            sequence_length=sequence_length,
            seed=seed,
            progress=progress,
        )
    content = {name: value for name, value in asdict(measured).items() if not name.endswith("by_sample")}
    content["tokens"] = content.pop("units")
    content["loss_increase"] = measured.loss_increase
    language = original.objective.value == "language_model"
    if language:
        content["perplexity_before"] = perplexity(measured.loss_before)
        content["perplexity_after"] = perplexity(measured.loss_after)
    if json:
        print_json({"artifact": str(artifact), "model": original.name, "unit": original.objective.unit, **content})
        return
    print_facts(_facts(content, original.objective.unit, agreement_name(original.objective.value), language=language))


def _facts(content: dict[str, Any], unit: str, agreement: str, *, language: bool) -> list[tuple[str, str]]:
    before, after = loss_text(content["loss_before"]), loss_text(content["loss_after"])
    facts = [
        ("KL", f"{loss_text(content['kl'])} {unit}"),
        ("loss", f"{before} to {after} {unit} ({signed_text(content['loss_increase'])})"),
    ]
    if language:
        was, now = loss_text(content["perplexity_before"]), loss_text(content["perplexity_after"])
        facts.append(("perplexity", f"{was} to {now}"))
    if content["accuracy_before"] is not None and content["accuracy_after"] is not None:
        was, now = share_text(content["accuracy_before"]), share_text(content["accuracy_after"])
        facts.append(("accuracy", f"{was} to {now}"))
    measured = f"{content['tokens']:,} {'tokens' if language else 'samples'}"
    return [*facts, ("agreement", f"{share_text(content['agreement'])} ({agreement})"), ("measured", measured)]
