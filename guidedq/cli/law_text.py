"""What `guidedq law` prints: what was measured, what was fitted, what is answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guidedq.cli.console import console, print_facts, print_table
from guidedq.law.figures import lines_problem, shown_model
from guidedq.law.forms import Form
from guidedq.law.prediction import Prediction
from guidedq.law.record import AllocationLaw, FormResult, Law, SweptModel, measured_of
from guidedq.law.regression import growth, predicted
from guidedq.report.wording import loss_text, signed_text

TRAINED = {"beta": "D/N", "gamma_D": "D"}
"""The coefficients that say what training does."""


def print_law(law: Law, out: Path | None) -> None:
    """Tables of what was measured, the fitted parameters with their intervals, and what they come to."""
    for name, one in law.allocations.items():
        if len(law.models) > 1:
            _print_models(law, name)
        _print_widths(law, name, law.models[shown_model(law)])
        facts = [
            (label, text)
            for form, result in one.forms.items()
            for label, text in ((f"{form} law", _parameters(result)), ("", _held_out(result)))
        ]
        if one.effective is not None:
            ends = _interval(one.effective.g, one.effective.low, one.effective.high)
            facts.append(("N_eff", f"N (1 - exp(-b / g)), g {ends} bits"))
        if one.forms:
            facts.append(("better", f"the {one.best.fit.form} law, by its error on widths left out"))
            facts += _training_facts(law, name, one)
        print_facts([*facts, *(("not told", problem) for problem in one.problems)])
        console().print()
    print_facts(_training_law(law))
    if out is not None:
        told = any(one.forms for one in law.allocations.values())
        asking = f" (ask it: guidedq law --predict {out / 'law.toml'} --bits 3.5)" if told else ""
        print_facts([("files", f"{out}{asking}")])


def print_answer(
    law: Law,
    allocation: str,
    asked: Prediction,
    near: Sequence[Prediction],
    others: Sequence[Prediction],
    problems: Sequence[str],
) -> None:
    """What the law says of one model, of the same with other bits, and of others in the same bytes."""
    told = "" if asked.tokens is None else f", {_star(asked, 'tokens', f'{asked.tokens:,.0f}')} training tokens"
    size, width = _star(asked, "parameters", f"{asked.parameters:,.0f}"), _star(asked, "bits", f"{asked.bits:g}")
    by = "" if law.training is None else f" ({law.training.source} training law)"
    facts = [
        ("model", f"{size} parameters{told}, {width} bits per weight, {allocation}"),
        ("increase", f"{_increase(asked)} {law.unit}, by the {asked.form} law"),
    ]
    if asked.loss is not None:
        facts.append(("loss", f"{loss_text(asked.loss)} {law.unit}"))
    if asked.effective_share is not None:
        facts.append(("N_eff", f"{asked.effective_share * asked.parameters:,.0f} = {asked.effective_share:.1%} of N"))
    if asked.equivalent is not None:
        facts.append(("equal loss", f"{asked.equivalent:,.0f} unquantized parameters{by}"))
    if asked.extrapolated:
        nearest = ", ".join(
            f"{name} {value:.3g}" if name == "bits" else f"{name} {value:,.0f}"
            for name, value in asked.extrapolated.items()
        )
        facts.append(("*", f"outside of what was measured; nearest to it: {nearest}"))
    print_facts([*facts, *(("note", problem) for problem in problems)])
    if len(near) > 1:
        _print_others(law, near, f"with the same {asked.parameters:,.0f} parameters:")
    if not others:
        return
    _print_others(law, others, f"in the same {asked.bytes / 1e6:.3f} MB, after the same training:")
    best = min(others, key=lambda one: one.loss or 0.0)
    way = (
        "what was asked for" if best.bits == asked.bits else f"{best.parameters:,.0f} parameters at {best.bits:g} bits"
    )
    print_facts([("", f"least loss: {way}")])


def _print_others(law: Law, others: Sequence[Prediction], title: str) -> None:
    console().print()
    print_facts([("", title)])
    columns = ["bits", "parameters", "MB", f"increase, {law.unit}"]
    rows = [
        [
            _star(one, "bits", f"{one.bits:g}"),
            _star(one, "parameters", f"{one.parameters:,.0f}"),
            f"{one.bytes / 1e6:.4g}",
            _increase(one),
        ]
        for one in others
    ]
    if all(one.loss is not None for one in others):
        columns.append("loss")
        rows = [[*row, f"{one.loss:.4f}"] for row, one in zip(rows, others, strict=True)]
    print_table(columns, rows, text_columns=0)
    if any(one.extrapolated for one in others):
        print_facts([("*", "outside of what was measured")])


def _star(one: Prediction, name: str, text: str) -> str:
    return text + "*" * (name in one.extrapolated)


def _training_law(law: Law) -> list[tuple[str, str]]:
    """The law of the unquantized models with its intervals, and what is missing without one."""
    facts: list[tuple[str, str]] = []
    if (training := law.training) is None:
        facts.append(("training law", f"none: {law.training_problem}"))
    else:
        facts.append(("training law", f"{training.source}: L(N, D) = E + A / N^alpha + B / D^beta, {law.unit}"))
        numbers = [
            f"{shown} {_interval(value, *training.intervals[name])}"
            if name in training.intervals
            else f"{shown} {value:.3g}"
            for shown, name, value in training.numbers
        ]
        facts.append(("", ", ".join(numbers)))
    if (problem := lines_problem(law)) and law.training is not None:
        facts.append(("not drawn", f"lines of equal loss: {problem}"))
    elif problem:
        facts.append(("not drawn", "lines of equal loss, for want of a training law"))
    return facts


def _print_models(law: Law, allocation: str) -> None:
    widths = sorted({point.width for model in law.models for point in model.points}, reverse=True)
    rows: list[tuple[str, ...]] = []
    for model in law.models:
        found = {point.width: signed_text(point.increase) for point in model.points if point.allocation == allocation}
        tokens = model.tokens or 0.0
        facts = (model.name, f"{model.parameters:,}", f"{tokens:,.0f}", f"{tokens / model.parameters:.3g}")
        rows.append((*facts, loss_text(model.loss), *(found.get(width, "") for width in widths)))
    print_facts([(f"{allocation}:", f"loss increase, {law.unit}")])
    print_table(("model", "N", "D", "D/N", "loss", *(f"{width} bits" for width in widths)), rows)
    console().print()


def _print_widths(law: Law, allocation: str, model: SweptModel) -> None:
    one = law.allocations[allocation]
    measured, widths, _ = measured_of([model], allocation)
    size = np.array(float(model.parameters))
    columns = ["width", "bits/weight", "loss increase", "error"]
    cells = [
        [f"{width:.0f}" for width in widths],
        [f"{bits:.3f}" for bits in measured.cells.bits],
        [signed_text(float(increase)) for increase in measured.increase],
        [loss_text(float(error)) for error in measured.error],
    ]
    for form in Form:
        if form.value in one.forms:
            columns.append(f"{form} law")
            fitted = predicted(one.forms[form.value].fit, measured.cells)[0]
            cells.append([signed_text(float(increase)) for increase in fitted])
    if one.effective is not None:
        columns.append("N_eff")
        cells.append([f"{share * size:,.0f}" for share in one.effective.share(measured.cells.bits)])
    if law.training is not None:
        columns.append("costs parameters")
        lost = np.maximum(1 - law.training.equivalent(size, measured.increase) / size, 0.0)
        cells.append([f"{share * size:,.0f} = {share:.1%}" for share in lost])
    print_facts(
        [("", f"{allocation}, {model.name}: {model.parameters:,} parameters, loss {loss_text(model.loss)} {law.unit}")]
    )
    print_table(columns, list(zip(*cells, strict=True)), text_columns=0)
    console().print()


def _training_facts(law: Law, allocation: str, one: AllocationLaw) -> list[tuple[str, str]]:
    """What more training does to the increase: by both forms, and at each width alone."""
    facts: list[tuple[str, str]] = []
    for form, result in one.forms.items():
        for name, ends in result.fit.intervals().items():
            if name in TRAINED:
                facts.append(("training", f"increase grows as ({TRAINED[name]}) to the {_interval(*ends)}, {form} law"))
    measured, widths, _ = measured_of(law.models, allocation)
    for width in np.unique(widths) if facts else ():
        found = growth(measured.where(widths == width))
        if found is not None:
            facts.append(("", f"as (D/N) to the {_interval(*found)} at {width:.0f} bits alone"))
    return facts


def _parameters(result: FormResult) -> str:
    return ", ".join(f"{name} {_interval(*ends)}" for name, ends in result.fit.intervals().items())


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def _held_out(result: FormResult) -> str:
    widths = "unknown" if result.held_out_widths is None else f"{result.held_out_widths:.3f}"
    models = "" if result.held_out_models is None else f", {result.held_out_models:.3f} on models left out"
    return f"error of the logarithm {widths} on widths left out{models}"


def _increase(one: Prediction) -> str:
    return f"{signed_text(one.increase)} ({loss_text(one.low)} to {loss_text(one.high)})"
