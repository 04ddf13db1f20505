"""`guidedq schedule`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from guidedq.cli.console import print_facts, print_json, print_table, working
from guidedq.cli.options import (
    DataOption,
    JsonOption,
    LengthOption,
    SamplesOption,
    SeedOption,
    ThreadsOption,
    WorkspaceOption,
)
from guidedq.report.wording import loss_text

ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="What compile --nested wrote.")]
AverageOption = Annotated[
    str, typer.Option("--average", metavar="BITS", help="Bits at which a decoded token is read on average: 3.5bits.")
]
OriginalOption = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="The original, if it is not where the report says.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a schedule that is there.")]


def schedule(
    artifact: ArtifactArgument,
    average: AverageOption,
    data: DataOption = None,
    model: OriginalOption = None,
    samples: SamplesOption = None,
    sequence_length: LengthOption = None,
    seed: SeedOption = 0,
    workspace: WorkspaceOption = None,
    overwrite: OverwriteOption = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    r"""Find at how many bits each token is best read, for an average; written to schedule.toml in ARTIFACT.

    \b
    guidedq schedule demo-nested3-4-5 --average 3.5bits
    guidedq schedule nested --average 4.2bits --data text.txt
    """
    with working(threads=threads) as progress:
        from guidedq.schedules.run import find_schedule
        from guidedq.schedules.schedule import schedule_text
        from guidedq.workspace import default_workspace

        found = find_schedule(
            artifact,
            average,
            data or (),
            original=model,
            samples=samples,
            sequence_length=sequence_length,
            seed=seed,
            workspace=workspace or default_workspace(),
            overwrite=overwrite,
            progress=progress,
        )
    rows = [
        (
            one.name,
            f"{one.average_bits:.3f}",
            loss_text(one.kl),
            f"{loss_text(one.kl_low)} to {loss_text(one.kl_high)}",
            schedule_text(one.schedule),
        )
        for one in found.candidates
    ]
    if json:
        listed = [asdict(one) | {"schedule": schedule_text(one.schedule)} for one in found.candidates]
        print_json({"candidates": listed, "best": found.best.name, "file": str(found.path)})
        return
    print_table(("schedule", "bits", "KL", "90% interval", "as text"), rows)
    places = [("file", f"{found.path} (report.html has all of them)"), ("use", f"guidedq generate {artifact}")]
    print_facts([("best", found.best.name), *places])
