"""`guidedq plan`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from guidedq.artifacts.report import PlanPoint
from guidedq.cli.console import console, print_facts, print_json, print_table, working
from guidedq.cli.options import JobOptions, JsonOption, ModelArgument, PlotOption, with_job_options
from guidedq.report.wording import bytes_text, interval_text, loss_text, signed_text

BudgetsOption = Annotated[
    str, typer.Option("--budgets", "-b", metavar="SIZES", help="Comma-separated: 2.5,3,3.5,4 (bits) or 80MB,120MB.")
]
BAR_COLUMNS = 44
"""Characters of the longest bar of the plot on a terminal."""


@with_job_options
def plan(
    model: ModelArgument,
    budgets: BudgetsOption,
    plot: PlotOption = None,
    json: JsonOption = False,
    *,
    options: JobOptions,
) -> None:
    r"""Predict the loss at several sizes; nothing is written but --plot.

    \b
    guidedq plan demo --budgets 2.5,3,3.5,4
    guidedq plan ./smollm2 --budgets 3,4,5 --plot plan.svg
    """
    with working(threads=options.threads) as progress:
        from guidedq.api import make_job
        from guidedq.budget import parse_budget
        from guidedq.compiler import plan_model
        from guidedq.report.drawing import check_picture, save_figure
        from guidedq.report.plots import plan_figure

        asked = [parse_budget(budget) for budget in budgets.split(",") if budget.strip()]
        if plot is not None:
            check_picture(plot)
        job = make_job(model, progress=progress, **options.arguments())
        points = plan_model(job, asked)
        unit = job.model.objective.unit
        if plot is not None:
            save_figure(plan_figure(points, job.model.name, unit), plot)
    if json:
        facts = {"name": job.model.name, "digest": job.model.digest, "unit": unit}
        print_json({"model": facts, "points": [asdict(point) for point in points]})
        return
    _print_points(points, unit)
    if console().is_terminal:
        console().print(text_plot(points), soft_wrap=True)


def text_plot(points: Sequence[PlanPoint]) -> str:
    """The predicted KL as bars on a logarithmic scale, one a line."""
    losses = [point.forecast.kl for point in points if 0 < point.forecast.kl < math.inf]
    if not losses:
        return ""
    low, high = math.log(min(losses)), math.log(max(losses))
    floor = low - max(0.15 * (high - low), 0.5)
    lines = ["", "predicted KL, logarithmic"]
    for point in points:
        loss = point.forecast.kl
        share = (math.log(loss) - floor) / (high - floor) if 0 < loss < math.inf else float(loss > 0)
        lines.append(f"{point.bits_per_weight:6.3f} bits {'█' * max(1, round(BAR_COLUMNS * share))} {loss_text(loss)}")
    return "\n".join(lines)


def _print_points(points: Sequence[PlanPoint], unit: str) -> None:
    columns = ("budget", "size", "bits/weight", "linear", "KL (90% interval)", "loss")
    rows = [
        (
            point.asked,
            bytes_text(point.bytes),
            f"{point.bits_per_weight:.3f}",
            f"{point.linear_bits_per_weight:.3f}",
            interval_text(point.forecast),
            signed_text(point.forecast.loss_increase),
        )
        for point in points
    ]
    print_table(columns, rows)
    print_facts([("", f"predicted, in {unit}; linear: bits per weight of the linear and convolution sites")])
