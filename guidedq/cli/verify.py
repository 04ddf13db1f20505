"""`guidedq verify`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from guidedq.cli.console import print_facts, print_json, working
from guidedq.cli.evaluate import ArtifactArgument, OriginalOption
from guidedq.cli.options import JsonOption, ThreadsOption, WorkspaceOption
from guidedq.errors import GateError
from guidedq.report.wording import loss_text

DataOption = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="FILE", help="What the compile was given, if it is not where the report says."),
]
EvaluationOption = Annotated[
    list[Path] | None, typer.Option("--eval-data", metavar="FILE", help="The same of its --eval-data.")
]
RecompileOption = Annotated[
    bool,
    typer.Option("--recompile", help="Compile again, from the report alone, and compare what comes out."),
]


def verify(
    artifact: ArtifactArgument,
    model: OriginalOption = None,
    data: DataOption = None,
    eval_data: EvaluationOption = None,
    workspace: WorkspaceOption = None,
    threads: ThreadsOption = None,
    recompile: RecompileOption = False,
    json: JsonOption = False,
) -> None:
    r"""Check that an artifact is what its report says: digests of files, samples and report, KL and loss measured anew.

    Exit 3 if a number differs by more than the tolerance: a hundredth of the KL, a ten-thousandth of the original's
    loss; with --recompile also if something else comes out. Files, or a report, that are missing, truncated or altered
    are errors, exit 1. Other versions of libraries than the compile had are told.

    \b
    guidedq verify demo-3.5bits
    guidedq verify small --model ./smollm2 --data wiki.txt
    guidedq verify small --recompile
    """
    with working(threads=threads) as progress:
        from guidedq.checking.verification import verify_artifact
        from guidedq.workspace import default_workspace

        found = verify_artifact(
            artifact, model, data or (), eval_data or (), workspace=workspace or default_workspace(), progress=progress
        )
        again: Mapping[str, tuple[str, str]] = {}
        if recompile:
            from guidedq.reproduction import compiled_again

            again = compiled_again(artifact, model, data or (), eval_data or (), progress=progress)
    others = [name for name, (stated, made) in again.items() if stated != made]
    if json:
        numbers = [asdict(number) | {"agrees": number.agrees} for number in found.numbers]
        print_json(
            {
                "artifact": str(artifact),
                "agrees": found.agrees,
                "files": list(found.files),
                "digests": found.report.to_dict()["digests"],
                "checked": found.digests,
                "numbers": numbers,
                "versions": {name: {"report": was, "here": now} for name, (was, now) in found.versions.items()},
                "recompiled": {name: {"report": was, "now": now} for name, (was, now) in again.items()},
            }
        )
    else:
        facts = [("files", f"{len(found.files)} as they were written: {', '.join(found.files)}")]
        facts += [
            (
                number.name.replace("_", " "),
                f"{loss_text(number.reported)} in the report, {loss_text(number.measured)} measured: "
                + (f"within {number.tolerance:.1g}" if number.agrees else f"NOT within {number.tolerance:.1g}"),
            )
            for number in found.numbers
        ]
        facts.insert(1, ("digests", f"as stated: {', '.join(found.digests)}; the report's is {found.report.digest}"))
        facts += [("version", f"{name} {was} in the report, {now} here") for name, (was, now) in found.versions.items()]
        facts += [
            ("compiled again", f"{name} {made[:12]}, " + ("as stated" if stated == made else f"NOT {stated[:12]}"))
            for name, (stated, made) in again.items()
        ]
        print_facts(facts)
    if not found.agrees:
        names = ", ".join(number.name for number in found.numbers if not number.agrees)
        raise GateError(f"{artifact} does not do what its report says: {names}.")
    if others:
        raise GateError(f"{artifact} does not come out again from its report: other digests of {', '.join(others)}.")
