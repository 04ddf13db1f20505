"""How right is the forecast? Models, budgets, allocators and draws of the calibration data; and a ranking.

    python benchmarks/forecast.py --model NAME=PATH --data NAME=FILE [--eval-data NAME=FILE]
        --budgets 2.25,2.5,3,3.5,4,5,6,8 --allocators uniform,article,lagrangian --seeds 0,1,2 --ranked 30

Everything is as `guidedq compile --effort quick` does it up to the file itself: the same evidence, probes (the decided
model's own among them), allocation and forecast, and the rounded model measured on the evaluation samples: the same
weights, without packing them. Measurements are kept in the record by what was measured: a changed forecast is judged on
those already made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from records import machine
from scipy.stats import kendalltau

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.forecast import Forecast, Measurement, Probe
from guidedq.budget import parse_budget
from guidedq.driver.decision import counted_size, decide, forecast_of, limit_of
from guidedq.driver.evidence import Evidence, gather
from guidedq.driver.job import Job
from guidedq.driver.probing import probed, probed_itself
from guidedq.driver.rounding import DequantizedOnUse, rounded
from guidedq.errors import BudgetError
from guidedq.evaluation import measure
from guidedq.passes.allocate.units import assemble, units_of
from guidedq.quant.formats import FloatFormat
from guidedq.report.palette import ACCENT, INK, MEASURED, MUTED
from guidedq.report.plots import new_figure
from guidedq.request import make_job

JUDGED_BITS = (2.5, 6.0)
"""Sizes for which the goals are set; what lies beyond is shown and not judged."""
INTERVAL_BITS = (3.0, 6.0)
"""Sizes at which an interval must say something: its half-width stays under a quarter of the forecast."""
RANKED_BITS = (2.5, 6.0)
"""Random allocations have a mean width drawn from here, and every site one within a bit of it."""
SITE_SPREAD = 1.0
RANDOM = "random"


def main() -> None:
    """Run what is missing; write record, page and plot after each model, seed and allocator."""
    arguments = parse_arguments()
    record: dict[str, Any] = {"rows": [], "measured": {}}
    if arguments.out.exists():
        record |= json.loads(arguments.out.read_text())
    record |= {"machine": machine()}
    for model in arguments.model:
        name, _, path = model.partition("=")
        for seed in map(int, arguments.seeds.split(",")):
            for allocator in (*arguments.allocators.split(","), *([RANDOM] if seed == 0 and arguments.ranked else [])):
                job = job_of(name, path, seed, "lagrangian" if allocator == RANDOM else allocator, arguments)
                same = {"model": name, "seed": seed, "allocator": allocator}
                rows = [same | row for row in judged(job, allocator, arguments, record["measured"])]
                kept = [row for row in record["rows"] if not same.items() <= row.items()]
                record["rows"] = sorted(kept + rows, key=lambda row: [str(row[key]) for key in (*same, "bits")])
                print("\n".join(map(line, rows)), flush=True)
                write(record, arguments)


def job_of(name: str, path: str, seed: int, allocator: str, arguments: argparse.Namespace) -> Job:
    """A compile at quick effort."""
    data, evaluation = (dict(item.split("=", 1) for item in given) for given in (arguments.data, arguments.eval_data))
    lengths = dict(item.split("=", 1) for item in arguments.sequence_length)
    return make_job(
        path,
        data=data.get(name, ()),
        eval_data=evaluation.get(name, ()),
        sequence_length=int(lengths[name]) if name in lengths else None,
        effort="quick",
        settings=[f"allocate={allocator}", *arguments.set],
        seed=seed,
        workspace=arguments.workspace,
    )


def judged(
    job: Job, allocator: str, arguments: argparse.Namespace, measurements: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Forecast and measurement of every allocation."""
    footprint = job.footprint()
    evidence = gather(job, footprint)
    probes = probed(job, evidence)
    if allocator == RANDOM:
        allocations = list(random_allocations(job, evidence, arguments.ranked))
        raws = job.recipe.forecast.raw(allocations, evidence.curves.stream(), evidence.guidance.units_per_sequence)
        told = [forecast_of(job, evidence, raw, probes) for raw in raws]
        cases = list(zip(allocations, told, told, strict=True))
    else:
        cases = list(budgeted(job, evidence, probes, arguments.budgets.split(",")))
    for allocation, planned, forecast in {case[0].digest: case for case in cases}.values():
        key = hashlib.sha256(f"{evidence.key} {allocation.digest} {evidence.calibration.digest}".encode()).hexdigest()
        if key not in measurements:
            found = measured(job, evidence, allocation)
            measurements[key] = {"kl": found.kl, "loss_increase": found.loss_increase, "units": found.units}
        yield {
            "bits": 8 * allocation.bytes / job.model.parameters,
            "planned": asdict(planned),
            "forecast": asdict(forecast),
            "measured": measurements[key],
        }


def budgeted(
    job: Job, evidence: Evidence, probes: tuple[Probe, ...], budgets: Sequence[str]
) -> Iterator[tuple[Allocation, Forecast, Forecast]]:
    """The allocations for these budgets, as far as feasible, forecast by the usual probes, and by their own too."""
    for budget in budgets:
        try:
            limit = limit_of(parse_budget(budget), job, evidence.footprint)
            (decision,) = decide(job, evidence, probes, [counted_size(probes, limit)])
        except BudgetError:
            continue
        yield decision.allocation, decision.forecast, probed_itself(job, evidence, decision).forecast


def random_allocations(job: Job, evidence: Evidence, count: int) -> Iterator[Allocation]:
    """Allocations that no allocator would make: a mean width at random, and each site at random about it."""
    generator = np.random.default_rng(job.seed)
    units = units_of(job.model.graph, evidence.distortions, evidence.footprint)
    for _ in range(count):
        mean = generator.uniform(*RANKED_BITS)
        choices = []
        for unit in units:
            wanted = mean + generator.uniform(-SITE_SPREAD, SITE_SPREAD)
            rounded_formats = [(abs(f.bits - wanted), n) for n, f in enumerate(unit.formats) if not is_float(f)]
            choices.append(unit.single(min(rounded_formats)[1]))
        yield assemble(units, choices, job.model.graph, evidence.footprint)


def is_float(format: object) -> bool:
    """Whether a format leaves the weight as it is."""
    return isinstance(format, FloatFormat)


def measured(job: Job, evidence: Evidence, allocation: Allocation) -> Measurement:
    """The rounded model on the evaluation samples, as the backend's runtime would run it."""
    program, activations = job.model.program, evidence.rounding
    weights = {
        weight.name: (job.model.graph.site(weight.name), weight)
        for weight in rounded(job, evidence, allocation, "round")
    }
    return measure(
        evidence.calibration.evaluation,
        job.model.objective,
        predict_original=job.original.predict,
        predict_quantized=lambda batch: program.predict(
            batch, weights=DequantizedOnUse(weights), activations=activations
        ),
        progress=job.progress,
    )


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
    told = [half_width(row) for row in rows if INTERVAL_BITS[0] <= row["bits"] <= INTERVAL_BITS[1]]
    cells = (
        label,
        str(len(rows)),
        f"{100 * median(map(abs, errors)):.1f}%",
        f"{100 * max(errors, key=abs):+.0f}%",
        f"{100 * math.expm1(median(math.log1p(value) for value in errors)):+.1f}%",
        f"{100 * sum(map(covered, rows)) / len(rows):.0f}%",
        f"{100 * sum(map(loss_covered, rows)) / len(rows):.0f}%",
        f"{100 * median(told):.0f}%, {100 * max(told):.0f}%" if told else "",
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

What is believed beforehand of all models (the spreads in `passes/forecast/calibration.py`) was chosen with some
cases of demo, stories260K, ResNet-20 and SmolLM2-135M in sight; MiniLM-L6 and magika were not looked at before.

*Error*: of the predicted KL, relative to the measured one, without sign;
*bias*: the median with its sign. *Coverage*: how often the 90% interval held the measured value. *Half-width*: of the
interval for KL at {INTERVAL_BITS[0]:g} to {INTERVAL_BITS[1]:g} bits, relative to the forecast, median and largest.

![predicted against measured]({picture})

| cases | number | median error | worst | bias | coverage, KL | coverage, loss | half-width |
|---|---|---|---|---|---|---|---|
{tables}

## Of plans

`guidedq plan` and the curve of a report read the forecast from probes of other sizes (3 bits, uniform 3 and 5 bits); so
does a budget for loss until it has found its size. The same cases by that forecast:

| cases | number | median error | worst | bias | coverage, KL | coverage, loss | half-width |
|---|---|---|---|---|---|---|---|
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


def write(record: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Record, page and plot."""
    for path in (arguments.out, arguments.page, arguments.picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    arguments.page.write_text(page(record, arguments.picture.relative_to(arguments.page.parent).as_posix()))
    draw(record["rows"], arguments.picture)


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


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME=PATH")
    parser.add_argument("--data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--eval-data", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--sequence-length", action="append", default=[], help="NAME=TOKENS")
    parser.add_argument("--budgets", default="2.25,2.5,3,3.5,4,5,6,8")
    parser.add_argument("--allocators", default="uniform,article,lagrangian")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ranked", type=int, default=30, help="random allocations of each model, at seed 0")
    parser.add_argument("--set", action="append", default=[], help="STAGE.OPTION=VALUE, as guidedq's own")
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "guidedq-benchmark")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/forecast.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/forecast.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/forecast.png"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
