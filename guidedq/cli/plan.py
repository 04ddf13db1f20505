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
from guidedq.report.knee import knee
from guidedq.report.parts import part_text
from guidedq.report.wording import accuracy_text, bytes_text, increase_text, interval_text, loss_text

BudgetsOption = Annotated[
    str | None,
    typer.Option(
        "--budgets",
        "-b",
        metavar="BUDGETS",
        help="Comma-separated: 2.5,3,3.5,4 (bits), 80MB, +0.05nats, 1.02x, -0.5%, +0.01error. "
        "Default: from 2.25 to 8 bits.",
    ),
]
BAR_COLUMNS = 44
"""Characters of the longest bar of the plot on a terminal."""


@with_job_options
def plan(
    model: ModelArgument,
    budgets: BudgetsOption = None,
    plot: PlotOption = None,
    json: JsonOption = False,
    *,
    options: JobOptions,
) -> None:
    r"""Predict the loss at several sizes, or the size at several losses; nothing is written but --plot.

    \b
    guidedq plan demo
    guidedq plan demo --budgets 3,3.5,+0.05nats
    guidedq plan ./smollm2 --budgets 3,4,5 --plot plan.svg
    """
    with working(threads=options.threads) as progress:
        from guidedq.budget import parse_budget
        from guidedq.compiler import plan_model
        from guidedq.driver.refining import refines
        from guidedq.report.drawing import check_picture, save_figure
        from guidedq.report.plots import plan_figure
        from guidedq.request import make_job

        asked = [parse_budget(budget) for budget in (budgets or "").split(",") if budget.strip()]
        if plot is not None:
            check_picture(plot)
        job = make_job(model, progress=progress, **options.arguments())
        points = plan_model(job, asked)
        unit, refined = job.model.objective.unit, refines(job)
        if plot is not None:
            save_figure(plan_figure(points, job.model.name, unit), plot)
    if json:
        facts = {"name": job.model.name, "digest": job.model.digest, "unit": unit}
        bend = knee(points)
        found = {"model": facts, "points": [asdict(point) for point in points], "knee": bend and bend.asked}
        print_json({**found, "refined_after": refined})
        return
    _print_points(points, unit)
    if refined:
        print_facts([("", "before refining, which is done for one size: the file comes out better at this effort")])
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
    columns = ["budget", "size", "bits/weight", "linear", "KL (90% interval)", "loss (90% interval)"]
    labelled = all(point.forecast.accuracy_drop is not None for point in points)
    rows = [
        (
            point.asked,
            bytes_text(point.bytes),
            f"{point.bits_per_weight:.3f}",
            f"{point.linear_bits_per_weight:.3f}",
            interval_text(point.forecast),
            increase_text(point.forecast),
            *([accuracy_text(point.forecast)] if labelled else []),
        )
        for point in points
    ]
    print_table([*columns, *(["accuracy (90% interval)"] if labelled else [])], rows)
    print_facts([("", f"predicted, in {unit}; linear: bits per weight of the linear and convolution sites")])
    _print_parts(points)
    if (bend := knee(points)) is not None:
        where = f"{bend.asked} ({bend.bits_per_weight:.3f} bits): further bytes gain less than in proportion"
        print_facts([("knee", where)])


def _print_parts(points: Sequence[PlanPoint]) -> None:
    """Where the bits go: bits per weight and share of the file of each part of the model."""
    rows = [(point.asked, *(part_text(part, point.bytes) for part in point.parts)) for point in points]
    print_facts([("", ""), ("", "where the bits go: bits per weight, share of the file")])
    print_table(["budget", *(part.name for part in points[0].parts)], rows)
