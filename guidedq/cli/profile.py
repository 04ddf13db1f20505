"""`guidedq profile`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guidedq.cli.console import print_facts, print_json, print_table, working
from guidedq.cli.options import DataOption, JsonOption, LengthOption, WorkspaceOption

if TYPE_CHECKING:
    from guidedq.artifacts.profile import Profile

ShapesArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL.onnx]", help="Measure the shapes of this model's sites; without it, a grid."),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE", help="The file to write. Default: in the user's cache folder, by model."
    ),
]
ReplaceOption = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="That ONNX Runtime is given.")]


def profile(
    model: ShapesArgument = None,
    data: DataOption = None,
    sequence_length: LengthOption = None,
    out: FileOption = None,
    overwrite: ReplaceOption = False,
    threads: ThreadsOption = 1,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    r"""Measure how long ONNX Runtime's kernels take on this machine, for compile --objective latency --profile.

    On another machine than the one that compiles, say. Where both are one, compile measures what it needs itself.

    \b
    guidedq profile
    guidedq profile net.onnx --data images.npz --out phone.toml
    guidedq compile net.onnx --data images.npz --budget 4bits --activations static --max-latency 0.6x \
        --profile phone.toml
    """
    with working() as progress:
        from guidedq.api import profile as measure

        path, measured = measure(
            model,
            data=data or (),
            sequence_length=sequence_length,
            out=out,
            overwrite=overwrite,
            threads=threads,
            workspace=workspace,
            progress=progress,
        )
    if json:
        print_json({"file": str(path), **measured.content()})
        return
    operators = list(dict.fromkeys(kernel.operator for kernel in measured.seconds))
    print_table(["operator", "shapes", "fastest", "slowest", "at best"], [_row(measured, name) for name in operators])
    whole = [("model", f"{1e3 * seconds:.3g} ms for one sample") for seconds in measured.models.values()]
    threads_text = f"{threads} thread{'s' * (threads > 1)}"
    facts = [("machine", f"{measured.processor}, {threads_text}, {measured.runtime}"), *whole, ("file", str(path))]
    print_facts([("", ""), *facts])


def _row(measured: Profile, operator: str) -> Sequence[str]:
    """One operator: shapes, the fastest and the slowest call, and the most work in a second."""
    mine = {kernel: seconds for kernel, seconds in measured.seconds.items() if kernel.operator == operator}
    rate = max(kernel.work / seconds for kernel, seconds in mine.items())
    return operator, str(len(mine)), _time(min(mine.values())), _time(max(mine.values())), f"{rate / 1e9:.3g} G/s"


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-3 and math.isfinite(seconds) else f"{1e3 * seconds:.2f} ms"
