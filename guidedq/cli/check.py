"""`guidedq check`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from guidedq.cli.console import print_facts, print_json
from guidedq.cli.options import JsonOption
from guidedq.errors import GateError, GuidedQError

EXIT_BAD_INPUT = 2
"""So that a pipeline can tell a policy that is not met (3) from one that cannot be read."""
ReportArgument = Annotated[
    Path, typer.Argument(metavar="REPORT", help="A report.json, or a folder that guidedq compile wrote.")
]
PolicyOption = Annotated[
    Path,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="TOML: tables \\[at-most] and \\[at-least] of loss-increase, kl, perplexity-ratio, accuracy-drop, "
        "accuracy, agreement, bits-per-weight, linear-bits-per-weight, file-bytes, forecast-error, latency-ratio, "
        "and of the forecast kl-upper-bound, loss-increase-upper-bound, accuracy-drop-upper-bound; and "
        "the warnings that are allowed in \\[diagnostics].",
    ),
]
JunitOption = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the result as JUnit XML.")]


def check(
    report: ReportArgument,
    policy: PolicyOption,
    junit: JunitOption = None,
    json: JsonOption = False,
) -> None:
    r"""Hold a report against a policy: exit 0 if it is met, 3 if it is not, 2 if one of them cannot be read.

    \b
    guidedq check small --policy release.toml --junit check.xml

    \b
    release.toml:
    \[at-most]
    loss-increase = 0.05
    file-bytes = "60MB"
    \[at-least]
    agreement = 0.9
    \[diagnostics]
    allowed = ["over-training"]

    The diagnostics that warn must be allowed; without their table none is looked at. A nested artifact must meet the
    policy at each precision.
    """
    from guidedq.artifacts.report import read_report
    from guidedq.report.junit import check_junit, write_junit
    from guidedq.report.policy import check_policy, read_policy

    try:
        if junit is not None:
            check_junit(junit)
        asked = read_policy(policy)
        result = check_policy(read_report(report), asked)
        if junit is not None:
            write_junit(result, junit)
    except GuidedQError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(EXIT_BAD_INPUT) from error
    if json:
        model = result.report.model.name
        print_json({"model": model, "met": result.met, "checks": [asdict(found) for found in result.checks]})
    else:
        print_facts([("met" if one.met else "NOT MET", f"{one.name}: {one.found}") for one in result.checks])
    if not result.met:
        failed = [one.name for one in result.checks if not one.met]
        raise GateError(f"{report} does not meet {policy}: {', '.join(failed)}.")
