"""The page of `forecast.py`: errors, coverage, ranking and every case; and several records made one.

python benchmarks/forecast_page.py RECORD [RECORD ...]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import kendalltau

from guidedq.report.palette import ACCENT, INK, MEASURED, MUTED
from guidedq.report.plots import new_figure

OUT, PAGE = Path("benchmarks/results/forecast.json"), Path("docs/forecast.md")
PICTURE = Path("docs/pictures/forecast.png")
JUDGED_BITS = (2.5, 6.0)
"""Sizes for which the goals are set; what lies beyond is shown and not judged."""
INTERVAL_BITS = (3.0, 6.0)
"""Sizes at which an interval must say something: its half-width stays under a quarter of the forecast."""
RANKED_BITS = (2.5, 6.0)
"""Random allocations have a mean width drawn from here, and every site one within a bit of it."""
LEAST_TAU = 0.95
RANDOM = "random"
UNSEEN = ("PP-OCRv4-rec", "silero-vad")
"""Models that were first run when all that is believed of models had been chosen."""


def main() -> None:
    """Join records, the later ones' rows instead of the earlier ones', and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    arguments = parser.parse_args()
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    record: dict[str, Any] = {"measured": {}}
    for path in arguments.records:
        content = json.loads(path.read_text())
        record["measured"] |= content["measured"]
        record["machine"] = content["machine"]
        found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in content["rows"]:
            found.setdefault(tuple(str(row[key]) for key in ("model", "seed", "allocator")), []).append(row)
        rows |= found
    record["rows"] = [row for key in sorted(rows) for row in rows[key]]
    write(record, OUT, PAGE, PICTURE)


def error(row: dict[str, Any]) -> float:
    """Forecast minus measured divergence, relative to the measured one."""
    return row["forecast"]["kl"] / row["measured"]["kl"] - 1.0


def covered(row: dict[str, Any]) -> bool:
    """Whether the measured divergence lies in the interval."""
    return row["forecast"]["kl_low"] <= row["measured"]["kl"] <= row["forecast"]["kl_high"]


def half_width(row: dict[str, Any]) -> float:
    """Of the interval, relative to the forecast."""
    forecast = row["forecast"]
    return (forecast["kl_high"] - forecast["kl_low"]) / 2 / forecast["kl"]


def loss_covered(row: dict[str, Any]) -> bool:
    """Whether the measured loss increase lies in its interval."""
    forecast = row["forecast"]
    return forecast["loss_increase_low"] <= row["measured"]["loss_increase"] <= forecast["loss_increase_high"]


def loss_half_width(row: dict[str, Any]) -> float:
    """Of the loss increase's interval, relative to the forecast."""
    forecast = row["forecast"]
    spread = forecast["loss_increase_high"] - forecast["loss_increase_low"]
    return spread / 2 / max(abs(forecast["loss_increase"]), 1e-12)


def verdicts(inside: Sequence[dict[str, Any]], ranked: dict[str, list[dict[str, Any]]]) -> str:
    """The goals, what was found, and which models miss them."""
    if not inside:
        return "| none was judged: no case lies between these sizes | | |"
    by_model = {name: [row for row in inside if row["model"] == name] for name in names(inside)}
    told = {name: [row for row in rows if wide_enough(row)] for name, rows in by_model.items()}
    taus = {name: tau(found) for name, found in ranked.items() if len(found) > 1}
    median_error = {name: median(abs(error(row)) for row in rows) for name, rows in by_model.items()}
    worst = {name: max(abs(error(row)) for row in rows) for name, rows in by_model.items()}
    widest = {name: max(map(half_width, rows), default=0.0) for name, rows in told.items()}
    held, held_loss = (sum(map(by, inside)) / len(inside) for by in (covered, loss_covered))
    goals = (
        ("median error at most 10%", median(abs(error(row)) for row in inside), beyond(median_error, 0.1)),
        ("worst error at most 25%", max(worst.values()), beyond(worst, 0.25)),
        ("interval for KL holds 85% to 97% of all cases", held, "" if 0.85 <= held <= 0.97 else "all"),
        ("interval for loss holds 85% to 97% of all cases", held_loss, "" if 0.85 <= held_loss <= 0.97 else "all"),
        ("half-width for KL under 25% at 3 to 6 bits", max(widest.values()), beyond(widest, 0.25)),
    )
    table = [f"| {goal} | {100 * found:.0f}% | {who or 'nobody'} |" for goal, found, who in goals]
    if taus:
        low = ", ".join(f"{name} ({value:.3f})" for name, value in taus.items() if value < LEAST_TAU)
        table.append(f"| Kendall's tau at least {LEAST_TAU:g} | {min(taus.values()):.3f} | {low or 'nobody'} |")
    return "\n".join(table)


def wide_enough(row: dict[str, Any]) -> bool:
    """Whether the row has a size at which an interval must say something."""
    return INTERVAL_BITS[0] <= row["bits"] <= INTERVAL_BITS[1]


def beyond(found: dict[str, float], bound: float) -> str:
    """Who is above the bound, and by what number."""
    return ", ".join(f"{name} ({100 * value:.0f}%)" for name, value in found.items() if value > bound)


def tau(rows: Sequence[dict[str, Any]]) -> float:
    """Kendall's tau-b of forecast against measured."""
    found: Any = kendalltau([r["forecast"]["kl"] for r in rows], [r["measured"]["kl"] for r in rows])
    return float(found.statistic)


def line(row: dict[str, Any]) -> str:
    """One row, for people."""
    forecast = row["forecast"]
    cells = (
        *(str(row[name]) for name in ("model", "allocator", "seed")),
        f"{row['bits']:.3f}",
        f"{forecast['kl']:.4g} ({forecast['kl_low']:.4g} to {forecast['kl_high']:.4g})",
        f"{row['measured']['kl']:.4g}",
        f"{100 * error(row):+.0f}%",
        "" if covered(row) else "outside",
    )
    return "| " + " | ".join(cells) + " |"


def summary(label: str, rows: Sequence[dict[str, Any]]) -> str:
    """Errors and coverage of some rows, as a line of a table."""
    errors = [error(row) for row in rows]
    judged_rows = [row for row in rows if wide_enough(row)]
    told, told_loss = ([width(row) for row in judged_rows] for width in (half_width, loss_half_width))
    cells = (
        label,
        str(len(rows)),
        f"{100 * median(map(abs, errors)):.1f}%",
        f"{100 * max(errors, key=abs):+.0f}%",
        f"{100 * math.expm1(median(math.log1p(value) for value in errors)):+.1f}%",
        f"{100 * sum(map(covered, rows)) / len(rows):.0f}%",
        f"{100 * sum(map(loss_covered, rows)) / len(rows):.0f}%",
        f"{100 * median(told):.0f}%, {100 * max(told):.0f}%" if told else "",
        f"{100 * median(told_loss):.0f}%" if told_loss else "",
    )
    return "| " + " | ".join(cells) + " |"


def page(record: dict[str, Any], picture: str) -> str:
    """The tables."""
    rows = [row for row in record["rows"] if row["measured"]["kl"] > 0]
    chosen = [row for row in rows if row["allocator"] != RANDOM]
    inside = [row for row in chosen if JUDGED_BITS[0] <= row["bits"] <= JUDGED_BITS[1]]
    groups: dict[str, list[dict[str, Any]]] = {"**all**": inside}
    for key in ("model", "allocator", "seed"):
        for value in dict.fromkeys(row[key] for row in inside):
            groups[f"{key} {value}"] = [row for row in inside if row[key] == value]
    groups["below 2.5 bits"] = [row for row in chosen if row["bits"] < JUDGED_BITS[0]]
    groups["above 6 bits"] = [row for row in chosen if row["bits"] > JUDGED_BITS[1]]
    tables = "\n".join(summary(label, found) for label, found in groups.items() if found)
    plans = "\n".join(
        summary(label, [row | {"forecast": row["planned"]} for row in found])
        for label, found in groups.items()
        if found and label.startswith(("**all**", "model", "below", "above"))
    )
    random = [row for row in rows if row["allocator"] == RANDOM]
    plans += "".join(
        "\n" + summary(f"random, {name}", [r for r in random if r["model"] == name]) for name in names(random)
    )
    ranked = {name: [r for r in rows if r["allocator"] == RANDOM and r["model"] == name] for name in names(rows)}
    rankings = "\n".join(
        f"| {name} | {len(found)} | {tau(found):.3f} | {100 * median(abs(error(row)) for row in found):.0f}% |"
        for name, found in ranked.items()
        if len(found) > 1
    )
    facts = record["machine"]
    (smallest, largest), (lowest, highest) = JUDGED_BITS, RANKED_BITS
    return f"""# How right is the forecast?

Predicted against measured KL from the original, at quick effort, sizes of {smallest:g} to {largest:g} bits a weight
(all bytes counted), as `guidedq compile` states it before it writes: the decided model is one of the probes, measured
on samples apart from those of the guidance. Judged on held-out data that neither of them has seen; every case run is
listed at the end. By `benchmarks/forecast.py` ({facts["cores"]} cores, {facts["system"]}).

What is believed beforehand of all models (the spreads in `passes/forecast/calibration.py` and `loss.py`) was chosen
with cases of demo and its checkpoints, stories260K, ResNet-20, SmolLM2-135M, MiniLM-L6, whisper-tiny.en and
PP-OCRv4-det in sight; at {" and ".join(UNSEEN)} nobody looked before. (A first run of
whisper-tiny.en had clips whose tokens were no words, and 7 of them as probes: its forecast was a quarter of what was
measured, and no interval held. Probes have 2048 tokens since.) The guidance was still by drawn labels, not by random
signs: with these ResNet-20 loses less, and language models as much.

*Error*: of the predicted KL, relative to the measured one, without sign;
*bias*: the median with its sign. *Coverage*: how often the 90% interval held the measured value. *Half-width*: of the
interval for KL at {INTERVAL_BITS[0]:g} to {INTERVAL_BITS[1]:g} bits, relative to the forecast, median and largest;
and of that for the loss on the data's labels, median: there the chance of finite labels counts, which no forecast can
know.

| goal | found | missed by |
|---|---|---|
{verdicts(inside, ranked)}

![predicted against measured]({picture})

| cases | number | median error | worst | bias | coverage, KL | coverage, loss | half-width | of loss |
|---|---|---|---|---|---|---|---|---|
{tables}

## Of plans

`guidedq plan` and the curve of a report read the forecast from probes of other sizes (3 bits, uniform 3 and 5 bits); so
does a budget for loss until it has found its size. The same cases by that forecast:

| cases | number | median error | worst | bias | coverage, KL | coverage, loss | half-width | of loss |
|---|---|---|---|---|---|---|---|---|
{plans}

## Ranking

Allocations at random, which no allocator would make: a mean width from {lowest:g} to {highest:g} bits, every site
within a bit of it. The probes are the usual ones. Kendall's tau of predicted against measured KL.

| model | allocations | tau | median error |
|---|---|---|---|
{rankings}

## Every case

| model | allocator | seed | bits | KL forecast | measured | error | |
|---|---|---|---|---|---|---|---|
""" + "".join(line(row) + "\n" for row in rows)


def names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The models, in order."""
    return list(dict.fromkeys(row["model"] for row in rows))


def write(record: dict[str, Any], out: Path, page_path: Path, picture: Path) -> None:
    """Record, page and plot."""
    for path in (out, page_path, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    page_path.write_text(page(record, picture.relative_to(page_path.parent).as_posix()))
    draw(record["rows"], picture)


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    """Predicted over measured against size, one panel a model."""
    models = names(rows)
    figure, made = new_figure((7.0, 0.6 + 2.1 * len(models)), rows=len(models), sharex=True)
    panels = [made] if len(models) == 1 else list(made)
    for axes, name in zip(panels, models, strict=True):
        for random, marker, colour in ((False, "o", ACCENT), (True, "x", MEASURED)):
            mine = [r for r in rows if r["model"] == name and (r["allocator"] == RANDOM) is random]
            label = "random allocations" if random else "allocated for a budget, 90% interval"
            low = [(r["forecast"]["kl"] - r["forecast"]["kl_low"]) / r["measured"]["kl"] for r in mine]
            high = [(r["forecast"]["kl_high"] - r["forecast"]["kl"]) / r["measured"]["kl"] for r in mine]
            axes.errorbar(
                [r["bits"] for r in mine],
                [1 + error(r) for r in mine],
                yerr=None if random else [low, high],
                fmt=marker,
                ms=4,
                color=colour,
                ecolor=colour,
                elinewidth=0.6,
                alpha=0.7,
                label=label,
            )
        axes.axhline(1.0, color=MUTED, linewidth=0.9)
        axes.axhspan(0.9, 1.1, color=MUTED, alpha=0.12, linewidth=0)
        axes.set_ylim(0.4, 1.8)
        axes.set_title(name, loc="left", color=INK, fontsize=10)
        axes.set_ylabel("predicted / measured")
    panels[-1].set_xlabel("bits per weight")
    panels[-1].legend(frameon=False, fontsize=8.5, labelcolor=INK)
    figure.savefig(picture, dpi=130, facecolor="white")


if __name__ == "__main__":
    main()
