"""`guidedq law`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from guidedq.cli.console import print_json, working
from guidedq.cli.options import JobOptions, JsonOption, OutOption, OverwriteOption, with_job_options
from guidedq.errors import LawError

SWEEP = "Sweep"
ASK = "Ask a fitted law"
MULTIPLES: Mapping[str, float] = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
"""How people spell counts of tokens and parameters."""

ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL...", help="Models, or checkpoints of one model. Not with --predict."),
]
TokensOption = Annotated[
    str | None,
    typer.Option(
        "--tokens", metavar="D,D,...", help="Training tokens of each model, in order: 1M,2M,4M. Asked for: one number."
    ),
]
WIDTHS = "8,6,5,4,3,2"
WidthsOption = Annotated[
    str | None,
    typer.Option(
        "--widths", rich_help_panel=SWEEP, metavar="B,B,...", help=f"Bits of the uniform models. Default: {WIDTHS}."
    ),
]
TrainBitsOption = Annotated[
    float | None,
    typer.Option("--train-bits", rich_help_panel=SWEEP, help="Bits that the weights were released in. Default: 16."),
]
FinetuneOption = Annotated[
    Path | None,
    typer.Option("--finetune", metavar="TEXT", rich_help_panel=SWEEP, help="Fine-tune on this text first, with Adam."),
]
StepsOption = Annotated[
    int | None, typer.Option("--finetune-steps", min=1, rich_help_panel=SWEEP, help="Of four sequences. Default: 200.")
]
PredictOption = Annotated[
    Path | None,
    typer.Option("--predict", metavar="FILE", rich_help_panel=ASK, help="A law.toml: answer from it, without a model."),
]
ParametersOption = Annotated[
    str | None, typer.Option("--parameters", metavar="N", rich_help_panel=ASK, help="Parameters of the model: 135M.")
]
BitsOption = Annotated[
    float | None, typer.Option("--bits", metavar="b", rich_help_panel=ASK, help="Stored bits per weight.")
]
AllocationOption = Annotated[
    str | None,
    typer.Option("--allocation", rich_help_panel=ASK, help="uniform or guided. Default: guided, if it was swept."),
]


@with_job_options
def law_command(
    models: ModelsArgument = None,
    tokens: TokensOption = None,
    widths: WidthsOption = None,
    train_bits: TrainBitsOption = None,
    finetune: FinetuneOption = None,
    finetune_steps: StepsOption = None,
    predict: PredictOption = None,
    parameters: ParametersOption = None,
    bits: BitsOption = None,
    allocation: AllocationOption = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    *,
    options: JobOptions,
) -> None:
    r"""Measure what each width costs, fit the laws of quantization to it, and ask them about other models.

    Each model is rounded at every width, uniformly and as the recipe would mix formats in the same bytes (at quick
    effort, if --effort does not say otherwise). Several checkpoints with their --tokens tell what training does.

    \b
    guidedq law demo --out law
    guidedq law step_1000 step_2000 step_4000 --tokens 1M,2M,4M --data text.txt --out law
    guidedq law --predict law/law.toml --bits 3.5 --parameters 1M --tokens 20M
    """
    if predict is not None:
        if models or bits is None:
            raise LawError(
                "--predict FILE asks a law that was fitted: pass --bits (and --parameters, --tokens), no model."
            )
        sweeping = {
            "widths": widths,
            "train-bits": train_bits,
            "finetune": finetune,
            "finetune-steps": finetune_steps,
            "out": out,
            "overwrite": overwrite or None,
        }
        _nothing_else([name for name, value in sweeping.items() if value is not None] + options.changed())
        _answer(predict, parameters, tokens, bits, allocation, json=json)
        return
    if not models:
        raise LawError("name a model or several, or a fitted law with --predict FILE.")
    if parameters is not None or bits is not None or allocation is not None:
        raise LawError("--parameters, --bits and --allocation ask a fitted law: name it with --predict FILE.")
    if finetune_steps is not None and finetune is None:
        raise LawError("--finetune-steps goes with --finetune TEXT.")
    chosen = _widths(widths or WIDTHS)
    counts = _token_counts(tokens, models)
    with working(threads=options.threads) as progress:
        from guidedq.law.run import run_law, write_law
        from guidedq.output import check_output

        if out is not None:
            check_output(out, overwrite=overwrite)
        arguments = {"effort": "quick", "progress": progress, **_said(options.arguments())}
        with tempfile.TemporaryDirectory(prefix="guidedq-law-") as scratch:
            law = run_law(
                models,
                counts,
                chosen,
                train_bits=train_bits,
                finetune=finetune,
                finetune_steps=finetune_steps,
                scratch=Path(scratch),
                arguments=arguments,
            )
        if out is not None:
            write_law(law, out, overwrite=overwrite)
    if json:
        print_json(asdict(law) | {"folder": None if out is None else str(out)})
    else:
        from guidedq.cli.law_text import print_law

        print_law(law, out)
    if not any(one.forms for one in law.allocations.values()):  # said after everything that was measured is shown
        raise LawError(" ".join(dict.fromkeys(text for one in law.allocations.values() for text in one.problems)))


def count_of(text: str, option: str) -> float:
    """Read `135M` or `2e9`.

    Raises:
        LawError: it is no number above zero.
    """
    cleaned = text.strip().lower().replace("_", "")
    multiple = MULTIPLES.get(cleaned[-1:], 1.0)
    try:
        value = float(cleaned[:-1] if multiple != 1.0 else cleaned) * multiple
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise LawError(f"{option} {text!r}: expected a number above zero, such as 135M or 2e9.")
    return value


def _widths(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if bad := [word for word in words if not word.isdecimal()]:
        raise LawError(f"--widths {bad[0]!r}: expected whole bits, such as 8,6,5,4,3,2.")
    return tuple(sorted({int(word) for word in words}, reverse=True))


def _token_counts(text: str | None, models: Sequence[str]) -> tuple[float | None, ...]:
    if text is None:
        if len(models) > 1:
            raise LawError(
                f"{len(models)} models and no --tokens: how the loss depends on training cannot be told without. Pass "
                "the training tokens of each, in order: --tokens 1M,2M,4M."
            )
        return (None,)
    counts = tuple(count_of(word, "--tokens") for word in text.split(",") if word.strip())
    if len(counts) != len(models):
        raise LawError(f"--tokens has {len(counts)} numbers for {len(models)} models: expected one for each, in order.")
    return counts


def _nothing_else(given: Sequence[str]) -> None:
    if given:
        named = ", ".join(f"--{name}" for name in given)
        raise LawError(
            f"--predict FILE answers from the file and sweeps nothing: leave {named} out. It takes --bits, "
            "--parameters, --tokens, --allocation and --json."
        )


def _said(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _answer(
    file: Path, parameters: str | None, tokens: str | None, bits: float, allocation: str | None, *, json: bool
) -> None:
    from guidedq.cli.law_text import print_answer
    from guidedq.law.prediction import caveats, foretell
    from guidedq.law.record import GUIDED, read_law
    from guidedq.law.trades import same_bytes, same_size

    law = read_law(file)
    name = allocation or (GUIDED if GUIDED in law.allocations else next(iter(law.allocations), GUIDED))
    size = None if parameters is None else count_of(parameters, "--parameters")
    count = None if tokens is None else count_of(tokens, "--tokens")
    asked = foretell(law, name, size, count, bits)
    near, problems = same_size(law, name, asked), list(caveats(law, asked))
    try:
        others = same_bytes(law, name, asked)
    except LawError as error:
        others = ()
        problems += [] if str(error) in problems else [f"the trade of bits for parameters is not told: {error}"]
    if json:
        tables = {"same_size": [asdict(one) for one in near], "same_bytes": [asdict(one) for one in others]}
        print_json({"unit": law.unit, "allocation": name, **asdict(asked), **tables, "notices": problems})
    else:
        print_answer(law, name, asked, near, others, problems)
