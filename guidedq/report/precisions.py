"""What the page says of a nested artifact: each precision, and the schedules that were tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from guidedq.artifacts.report import PrecisionFacts, Report
from guidedq.report.drawing import Size, for_page
from guidedq.report.plots import PLOT_SIZE, precisions_figure, schedules_figure
from guidedq.report.wording import bytes_text, increase_text, interval_text, loss_text, share_text, signed_text


def nested_title(report: Report) -> str:
    """What the artifact was made for: `3, 4, 5 bits` if it is nested, else the budget as it was asked for."""
    if not report.precisions:
        return report.budget.asked
    return f"{', '.join(str(facts.bits) for facts in report.precisions)} bits"


def at_widest(report: Report) -> str:
    """Of what precision a headline number is: ` at 5 bits`; empty where there is but one."""
    return f" at {report.precisions[-1].bits} bits" if report.precisions else ""


def nested_plots(report: Report, wide: Size, small: Size) -> Mapping[str, str]:
    """Drawings of the precisions, and of the schedules if there are any, for a desktop and a phone."""
    curve = "Predicted and measured loss at each precision against the bits per weight that it reads."
    plots = for_page(partial(precisions_figure, report), "curve", curve, PLOT_SIZE, small)
    if not report.schedules:
        return plots
    tried = "KL of each schedule that was tried, with its interval."
    schedules = partial(schedules_figure, report.schedules, report.model.unit)
    return {**plots, **for_page(schedules, "schedules", tried, wide, small)}


def precision_table(report: Report) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Heads and rows, narrowest precision first."""
    heads = ["bits", "read", "bits per weight", "KL forecast", "measured", "loss forecast", "measured"]
    labelled = report.measured.accuracy_after is not None
    heads += [*(["accuracy"] * labelled), "agreement"]
    return heads, [_row(facts, report.model.parameters, labelled) for facts in report.precisions]


def schedule_table(report: Report) -> tuple[Sequence[str], Sequence[Mapping[str, Any]]]:
    """Heads and rows, in the order in which they were tried; the chosen one is marked."""
    heads = ("schedule", "bits of a token", "KL", "90% interval", "as text")
    rows = [
        {
            "chosen": facts.chosen,
            "cells": (
                facts.name,
                f"{facts.average_bits:.3f}",
                loss_text(facts.kl),
                f"{loss_text(facts.kl_low)} to {loss_text(facts.kl_high)}",
                facts.text,
            ),
        }
        for facts in report.schedules
    ]
    return heads, rows


def _row(facts: PrecisionFacts, parameters: int, labelled: bool) -> Sequence[str]:
    accuracy = facts.measured.accuracy_after
    return (
        str(facts.bits),
        bytes_text(round(facts.read_bits_per_weight * parameters / 8)),
        f"{facts.read_bits_per_weight:.3f}",
        interval_text(facts.forecast),
        loss_text(facts.measured.kl),
        increase_text(facts.forecast),
        signed_text(facts.measured.loss_increase),
        *([share_text(accuracy) if accuracy is not None else ""] * labelled),
        share_text(facts.measured.agreement),
    )
