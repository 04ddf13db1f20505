"""`guidedq compile`."""

from __future__ import annotations

from typing import Annotated

import typer

from guidedq.artifacts.report import PrecisionFacts, Report
from guidedq.cli.console import print_facts, print_json, working
from guidedq.cli.options import (
    JobOptions,
    JsonOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    with_job_options,
)
from guidedq.report.wording import (
    agreement_name,
    bytes_text,
    increase_text,
    interval_text,
    latency_text,
    loss_text,
    memory_text,
    perplexity,
    runtime_text,
    seconds_text,
    share_text,
    signed_text,
    time_text,
    verdict,
    warning_text,
)

GateOption = Annotated[
    float | None,
    typer.Option(
        "--max-loss-increase",
        metavar="X",
        help="A gate for pipelines: exit 3, and leave nothing, if forecast or measured loss increase exceed X, "
        "with --nested at any precision.",
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Exit 3, and leave nothing, if a diagnostic warns (the report has all of them)."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "-b",
        metavar="BUDGET",
        help="3.5bits (all bytes over all parameters), 120MB, or the smallest file that loses at most +0.02nats, 1.02x "
        "(perplexity), -0.5% (accuracy, with labels) or +0.01error (of encoders). "
        "With --nested, a size that the whole file may not exceed.",
    ),
]
NestedOption = Annotated[
    str | None,
    typer.Option(
        "--nested",
        metavar="WIDTHS",
        help="In place of a budget: one folder that can be read at each of these widths, 3,4,5.",
    ),
]
TokensOption = Annotated[
    float | None,
    typer.Option("--training-tokens", metavar="N", min=1, help="What MODEL was trained on, 2e12: warns of many."),
]


@with_job_options
def compile_command(
    model: ModelArgument,
    budget: BudgetOption = None,
    nested: NestedOption = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    max_loss_increase: GateOption = None,
    strict: StrictOption = False,
    training_tokens: TokensOption = None,
    json: JsonOption = False,
    *,
    options: JobOptions,
) -> None:
    r"""Compile a model within a budget: the forecast first, then the file, then the measurement.

    \b
    guidedq compile demo --budget 3.5bits
    guidedq compile demo --budget +0.02nats
    guidedq compile ./smollm2 --budget 60MB --data wiki.txt --out small
    guidedq compile net.onnx --budget 4bits --data images.npz
    guidedq compile demo --nested 3,4,5
    """
    if budget is None and nested is None:
        raise typer.BadParameter("say how large: --budget 3.5bits, or --nested 3,4,5.", param_hint="--budget")
    with working(threads=options.threads) as progress:
        from guidedq.api import compile

        artifact = compile(
            model,
            budget=budget,
            nested=nested,
            out=out,
            overwrite=overwrite,
            max_loss_increase=max_loss_increase,
            strict=strict,
            training_tokens=training_tokens,
            progress=progress,
            **options.arguments(),
        )
    if json:
        print_json(artifact.report.to_dict() | {"folder": str(artifact.folder)})
        return
    notices = [("notice", notice) for notice in artifact.report.notices if notice not in progress.told]
    folder = str(artifact.folder)
    places = [("files", f"{folder} (report.html tells all)"), ("load", f'guidedq.load_quantized("{folder}")')]
    warnings = [("warning", f"{c.name}: {warning_text(c)}") for c in artifact.report.diagnostics if c.warns]
    print_facts([*summary(artifact.report), *warnings, *notices, *places])


def summary(report: Report) -> list[tuple[str, str]]:
    """The report in a few lines."""
    model, size, measured = report.model, report.size, report.measured
    counted = "" if report.budget.scope == "file" else " for linear and convolution weights alone"
    return [
        ("model", f"{model.name}, {model.parameters:,} parameters, {model.sites} sites"),
        (
            "size",
            f"{bytes_text(size.file_bytes)} = {size.bits_per_weight:.3f} bits per weight, "
            f"{size.linear_bits_per_weight:.3f} in the linear layers",
        ),
        ("budget", f"{report.budget.asked}{counted} = {bytes_text(report.budget.bytes)}"),
        ("KL", f"{interval_text(report.forecast)} {model.unit} forecast; {loss_text(measured.kl)} measured"),
        (
            "loss",
            f"{increase_text(report.forecast)} forecast; {signed_text(measured.loss_increase)} measured, "
            f"{loss_text(measured.loss_before)} to {loss_text(measured.loss_after)} {model.unit}",
        ),
        *quality(report),
        *map(precision_fact, report.precisions),
        ("", verdict(report)),
        *([("runs as", runtime_text(report.runtime))] if report.runtime is not None else []),
        *([("latency", latency_text(report.latency))] if report.latency is not None else []),
        ("seconds", ", ".join(f"{name} {seconds_text(value)}" for name, value in report.seconds.items())),
        ("time", time_text(report)),
        ("memory", memory_text(report)),
    ]


def precision_fact(facts: PrecisionFacts) -> tuple[str, str]:
    """One precision of a nested artifact: what it reads, what was forecast and what was measured."""
    return (
        f"at {facts.bits} bits",
        f"{facts.read_bits_per_weight:.3f} bits per weight read; KL {interval_text(facts.forecast)} forecast, "
        f"{loss_text(facts.measured.kl)} measured; loss {increase_text(facts.forecast)} forecast, "
        f"{signed_text(facts.measured.loss_increase)} measured",
    )


def quality(report: Report) -> list[tuple[str, str]]:
    """Perplexity, accuracy and agreement, where they mean something."""
    measured = report.measured
    facts: list[tuple[str, str]] = []
    if report.model.objective == "language_model":
        before, after = perplexity(measured.loss_before), perplexity(measured.loss_after)
        facts.append(("perplexity", f"{loss_text(before)} to {loss_text(after)} ({measured.tokens:,} tokens)"))
    if measured.accuracy_before is not None and measured.accuracy_after is not None:
        facts.append(("accuracy", f"{share_text(measured.accuracy_before)} to {share_text(measured.accuracy_after)}"))
    facts.append(("agreement", f"{share_text(measured.agreement)} ({agreement_name(report.model.objective)})"))
    return facts
