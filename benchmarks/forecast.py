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
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from forecast_page import OUT, PAGE, PICTURE, RANDOM, RANKED_BITS, line, write
from records import machine

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
from guidedq.request import make_job

SITE_SPREAD = 1.0


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
                write(record, arguments.out, arguments.page, arguments.picture)


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
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    return parser.parse_args()


if __name__ == "__main__":
    main()
