"""`guidedq compare`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guidedq.cli.console import print_facts, print_json, print_table, working
from guidedq.cli.options import (
    BudgetOption,
    JobOptions,
    JsonOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    PlotOption,
    with_job_options,
)
from guidedq.report.wording import bytes_text, loss_text, seconds_text, share_text, signed_text

if TYPE_CHECKING:
    from guidedq.checking.comparison import Compared


@with_job_options
def compare(
    model: ModelArgument,
    budget: BudgetOption,
    plot: PlotOption = None,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    *,
    options: JobOptions,
) -> None:
    r"""Guided against uniform quantization within the same bytes, measured on the same data.

    Uniform variants take the best single format that fits, of group sizes 32, 64 and 128: `nearest` rounds to nearest,
    `gptq` with the layers' own Hessians, `guided-uniform` with the end loss's. `guided` also chooses widths. Single
    formats rarely fill a budget: `guided-equal` chooses widths in the very bytes of the best of the first two.

    \b
    guidedq compare demo --budget 3.5bits
    guidedq compare ./smollm2 --budget 3.5bits --data wiki.txt --plot compare.png
    """
    with working(threads=options.threads) as progress:
        from guidedq.budget import parse_budget
        from guidedq.checking.comparison import compare_variants, comparison_facts
        from guidedq.report.drawing import check_picture, save_figure
        from guidedq.report.plots import comparison_figure
        from guidedq.request import make_job

        asked = parse_budget(budget)
        if plot is not None:
            check_picture(plot)
        job = make_job(model, progress=progress, **options.arguments())
        compared = compare_variants(job, asked, out=out, overwrite=overwrite)
        if plot is not None:
            points = [(one.name, one.report.size.bits_per_weight, one.report.measured.kl) for one in compared]
            save_figure(comparison_figure(points, job.model.name, job.model.objective.unit), plot)
    if json:
        print_json(comparison_facts(compared))
        return
    _print_compared(compared)


def _print_compared(compared: Sequence[Compared]) -> None:
    from guidedq.checking.comparison import EQUAL, GUIDED, best_uniform

    columns = ("variant", "format", "size", "bits/weight", "KL", "loss", "agree", "time")
    rows = [
        (
            one.name,
            one.formats,
            bytes_text(one.report.size.file_bytes),
            f"{one.report.size.bits_per_weight:.3f}",
            loss_text(one.report.measured.kl),
            signed_text(one.report.measured.loss_increase),
            share_text(one.report.measured.agreement),
            seconds_text(one.seconds),
        )
        for one in compared
    ]
    print_table(columns, rows, text_columns=2)
    print_facts([("", f"measured, in {compared[0].report.model.unit}")])
    rival = best_uniform(compared)
    if rival is None:
        print_facts([("", "no single format is small enough for the budget: guided is alone")])
        return
    wheres = {
        EQUAL: f"in the very bytes of {rival.name}, the best plain uniform file",
        GUIDED: f"in the whole budget, against {rival.name}",
    }
    ours = {one.name: one for one in compared if one.name in wheres}
    print_facts([("", f"{where}: {_change(ours[name], rival)}") for name, where in wheres.items() if name in ours])


def _change(guided: Compared, rival: Compared) -> str:
    ours, theirs = guided.report.measured.kl, rival.report.measured.kl
    if not (0 < theirs < math.inf and ours < math.inf):
        return f"KL {loss_text(ours)} instead of {loss_text(theirs)}"
    return f"{100 * abs(1 - ours / theirs):.0f}% {'less' if ours <= theirs else 'more'} KL"
