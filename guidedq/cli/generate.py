"""`guidedq generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from guidedq.cli.console import working
from guidedq.cli.options import SeedOption, ThreadsOption

ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that guidedq compile wrote.")]
PromptOption = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What comes before.")]
NewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens to write at most.")]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token; above, tokens are drawn.")
]
ScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="TEXT|FILE",
        help="Bits of a nested artifact: 4, prefill=5,decode=4,3@32, linear=5..3@256, entropy=3<0.8<4, or a file. "
        "Default: its own schedule.toml, else the widest.",
    ),
]


def generate(
    artifact: ArtifactArgument,
    prompt: PromptOption,
    max_new_tokens: NewTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    schedule: ScheduleOption = None,
    threads: ThreadsOption = None,
) -> None:
    r"""Continue a prompt with a compiled language model; the text appears as it is written.

    \b
    guidedq generate demo-3.5bits --prompt "Once upon a time"
    guidedq generate small --prompt "def add(a, b):" --temperature 0.8 --seed 1
    guidedq generate nested --prompt "Once upon a time" --schedule prefill=5,decode=4,3@32
    """
    out = sys.stdout  # `working` keeps what other libraries print away from it

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    with working(threads=threads):
        from guidedq.generation import generate_text

        generate_text(
            artifact,
            prompt,
            new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            write=write,
            schedule=schedule,
        )
    write("\n")
