"""Nested artifacts: what each precision costs against models compiled for it alone, time by planes, and schedules.

    python benchmarks/nested.py --model demo=demo --model stories260K=PATH --data stories260K=TEXT

writes benchmarks/results/nested.json, docs/nested.md and docs/pictures/nested.png. Everything at quick effort, seed 0,
widths 3,4,5; what is in the record is not run again. `nested_decoding.py` has run before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nested_decoding
import torch
from records import Record, Row, options, pairs, write_page

import guidedq
from guidedq.artifacts.nested_segment import NestedSegment
from guidedq.artifacts.packed_weight import pack_weight
from guidedq.artifacts.quantized_weight import QuantizedWeight, affine_segment
from guidedq.backends.packed_torch.modules import PackedWeight
from guidedq.backends.packed_torch.native.library import library
from guidedq.backends.packed_torch.planes import PlaneWeight
from guidedq.driver.evidence import calibration_set
from guidedq.passes.round import nested as rounding
from guidedq.quant.formats import AffineFormat
from guidedq.quant.grid import Grid
from guidedq.quant.nested import NestedFormat
from guidedq.request import make_job
from guidedq.schedules.rules import constant_rule
from guidedq.schedules.schedule import Schedule
from guidedq.schedules.search import Candidate, candidates, costs_of, measured

WIDTHS = (3, 4, 5)
SIGNALS = ("entropy",)
SIZES = (2048, 4096)
REPEATS = 25
ALTERNATIVES = {
    "all widths together (what is done)": {},
    "the same without descent": {"ROUNDS": 0},
    "relative errors alike": {"BALANCE": 1.0},
    "top bits first, the next within their cells": {"BALANCE": -2.0},
    "finest first, then cut": {"BALANCE": 3.0},
}
AVERAGES = (3.25, 3.5, 3.75, 4.5)
TABLED = (3.5,)
SEQUENCE_LENGTH = 256
MOST_TEXTS = 16
"""Of each set, to fit, predict and measure schedules on."""


def compiled(model: str, data: Sequence[str], workspace: Path, out: Path, **asked: Any) -> Any:
    """Compile at quick effort and give the report."""
    more = {"sequence_length": SEQUENCE_LENGTH} if data else {}
    artifact = guidedq.compile(
        model, data=data, workspace=workspace, out=out, overwrite=True, effort="quick", **more, **asked
    )
    return artifact.report


def compare(record: Record, name: str, model: str, data: Sequence[str], workspace: Path) -> None:
    """Each precision against a uniform model of that width."""
    if not record.has(kind="precision", model=name):
        report = compiled(model, data, workspace, workspace / f"{name}-nested", nested=WIDTHS)
        for facts in report.precisions:
            separate = compiled(
                model,
                data,
                workspace,
                workspace / f"{name}-uniform",
                budget="8bits",
                settings=[f"allocate=uniform{{bits={facts.bits} group-size=64}}", "coding=fixed", "group-sizes=64"],
            )
            record.add(
                {
                    "kind": "precision",
                    "model": name,
                    "bits": facts.bits,
                    "file_bits": report.size.bits_per_weight,
                    "kl_forecast": facts.forecast.kl,
                    "kl_low": facts.forecast.kl_low,
                    "kl_high": facts.forecast.kl_high,
                    "kl": facts.measured.kl,
                    "separate_file_bits": separate.size.bits_per_weight,
                    "separate_kl": separate.measured.kl,
                }
            )


def alternatives(record: Record, name: str, model: str, data: Sequence[str], workspace: Path) -> None:
    """Other ways to choose the codes."""
    for what, constants in ALTERNATIVES.items():
        if record.has(kind="alternative", model=name, what=what):
            continue
        before = {constant: getattr(rounding, constant) for constant in constants}
        for constant, value in constants.items():
            setattr(rounding, constant, value)
        report = compiled(model, data, workspace, workspace / f"{name}-alternative", nested=WIDTHS)
        for constant, value in before.items():
            setattr(rounding, constant, value)
        kl = {str(facts.bits): facts.measured.kl for facts in report.precisions}
        record.add({"kind": "alternative", "model": name, "what": what, "kl": kl})


def fastest(work: Callable[[], object]) -> float:
    """Milliseconds of the fastest of some runs."""
    work()
    times: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def speed(record: Record) -> None:
    """One input times a square weight: nested planes, and packed codes of one width, on one thread."""
    torch.set_num_threads(1)
    for size in SIZES:
        if record.has(kind="speed", size=size):
            continue
        rows, groups, inputs = torch.arange(size), size // 64, torch.randn(1, size)
        scales = (torch.rand(size, groups) + 0.5).half()

        def grid(bits: int, scales: torch.Tensor = scales) -> Grid:
            return Grid(scales=scales, zero_points=torch.randint(0, 2**bits, scales.shape, dtype=torch.uint8))

        def codes(bits: int, size: int = size) -> torch.Tensor:
            return torch.randint(0, 2**bits, (size, size), dtype=torch.uint8)

        segment = NestedSegment(
            format=NestedFormat(widths=WIDTHS, precision=WIDTHS[-1]),
            rows=rows,
            codes=codes(WIDTHS[-1]),
            grid=grid(WIDTHS[-1]),
            ratios=torch.ones(len(WIDTHS) - 1).half(),
            shifts=torch.full((len(WIDTHS) - 1, size), 4, dtype=torch.uint8),
        )
        nested = PlaneWeight(weight(segment, size), (size, size), transposed=False)
        for bits in WIDTHS:
            nested.read_at(bits)
            plain_segment = affine_segment(AffineFormat(bits=bits), rows, codes(bits), grid(bits), None, None)
            plain = PackedWeight(pack_weight(weight(plain_segment, size)), "plain", (size, size), transposed=False)
            record.add(
                {
                    "kind": "speed",
                    "size": size,
                    "bits": bits,
                    "nested_ms": fastest(partial(nested.multiply, inputs)),
                    "plain_ms": fastest(partial(plain.multiply, inputs)),
                    "instructions": "none" if (kernels := library()) is None else kernels.instruction_sets[0],
                }
            )


def weight(segment: Any, size: int) -> QuantizedWeight:
    """A weight of one segment."""
    return QuantizedWeight(name="benchmark", shape=(size, size), segments=(segment,))


def schedules(record: Record, name: str, model: str, data: Sequence[str], workspace: Path) -> None:
    """Schedules fitted on the calibration texts, predicted on the probe texts, measured on the evaluation texts."""
    more: Row = {"sequence_length": SEQUENCE_LENGTH} if data else {}
    job = make_job(model, data=data, effort="quick", workspace=workspace, **more)
    drawn = calibration_set(job)
    nested = guidedq.load_quantized(workspace / f"{name}-nested")
    fit, probe, held_out = (part.inputs["input_ids"] for part in (drawn.calibration, drawn.probe, drawn.evaluation))

    def original(tokens: torch.Tensor) -> torch.Tensor:
        return job.model.program.predict({"input_ids": tokens}).float()

    for average in AVERAGES:
        if record.has(kind="schedule", model=name, average=average):
            continue
        costs = costs_of(nested, original, fit, WIDTHS, average)
        signals = SIGNALS if average in TABLED else ()
        found = candidates(nested, costs, average, nested.config.vocab_size, signals)
        predicted = {one.name: one for one in measured(nested, original, probe, found, seed=0)}
        kept = measured(nested, original, held_out, found, seed=0)
        equal = {
            f"{one.average_bits:.3f}": Schedule(prefill=WIDTHS[-1], rule=constant_rule(one.average_bits, WIDTHS))
            for one in kept
        }
        constants = {one.name: one for one in measured(nested, original, held_out, equal, seed=0)}
        for one in kept:
            constant = constants[f"{one.average_bits:.3f}"]
            record.add(schedule_row(name, average, predicted[one.name], one, constant))


def schedule_row(model: str, average: float, predicted: Candidate, kept: Candidate, constant: Candidate) -> Row:
    """A schedule on held-out text, beside its prediction and the constant of the very average that it kept."""
    return {
        "kind": "schedule",
        "model": model,
        "average": average,
        "name": kept.name,
        "bits": kept.average_bits,
        "kl_forecast": predicted.kl,
        "kl_low": predicted.kl_low,
        "kl_high": predicted.kl_high,
        "kl": kept.kl,
        "constant_kl": constant.kl,
    }


def plot(rows: Sequence[Row], path: Path) -> None:
    """Divergence over average bits, a panel for each model."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for kind in ("constant", "step", "linear", "token"):
            points = sorted((row["bits"], row["kl"]) for row in rows if row["model"] == name and row["name"] == kind)
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=kind)
        panel.set(title=name, xlabel="average bits of a code", ylabel="KL, nats per token", yscale="log")
        panel.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def page(record: Record) -> str:
    """docs/nested.md."""
    rows: Mapping[str, list[Row]] = {
        kind: [row for row in record.rows if row["kind"] == kind]
        for kind in ("precision", "alternative", "speed", "schedule")
    }
    lines = [HEAD, "| model | bits | KL forecast | KL measured | compiled alone | ratio |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['model']} | {row['bits']} | {row['kl_forecast']:.3g} ({row['kl_low']:.3g} to {row['kl_high']:.3g}) | "
        f"{row['kl']:.3g} | {row['separate_kl']:.3g} | {row['kl'] / row['separate_kl']:.2f} |"
        for row in rows["precision"]
    ]
    for name in dict.fromkeys(row["model"] for row in rows["precision"]):
        widest = [row for row in rows["precision"] if row["model"] == name][-1]
        more = widest["file_bits"] - widest["separate_file_bits"]
        lines.append(
            f"\n{name}: the nested file takes {widest['file_bits']:.3f} bits a weight, all counted, the "
            f"{widest['bits']}-bit file alone {widest['separate_file_bits']:.3f}: nesting costs {more:.3f} bits.\n"
        )
    lines += [
        CHOICE,
        "| codes chosen | " + " | ".join(f"KL at {width}" for width in WIDTHS) + " |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']}: {row['what']} | " + " | ".join(f"{row['kl'][str(width)]:.3g}" for width in WIDTHS) + " |"
        for row in rows["alternative"]
    ]
    lines += [
        SPEED,
        "| weight | bits | nested, ms | beside 5 bits | packed at this width alone, ms |",
        "|---|---|---|---|---|",
    ]
    for row in rows["speed"]:
        widest = next(one for one in rows["speed"] if one["size"] == row["size"] and one["bits"] == WIDTHS[-1])
        lines.append(
            f"| {row['size']} x {row['size']} | {row['bits']} | {row['nested_ms']:.2f} | "
            f"{row['nested_ms'] / widest['nested_ms']:.2f} | {row['plain_ms']:.2f} |"
        )
    lines.append(f"\n(One thread, one input, {rows['speed'][0]['instructions']}.)\n")
    lines.append(nested_decoding.section(Record(nested_decoding.OUT)))
    lines += [SCHEDULES]
    header = "| model | schedule | average | KL predicted | measured | constant at that average | change |"
    lines += [header, "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['model']} | {row['name']} | {row['bits']:.3f} | {row['kl_forecast']:.3g} ({row['kl_low']:.3g} to "
        f"{row['kl_high']:.3g}) | {row['kl']:.3g} | {row['constant_kl']:.3g} | {beside_constant(row) - 1:+.1%} |"
        for row in rows["schedule"]
        if row["average"] in TABLED
    ]
    machine = record.content["machine"]
    return "\n".join(
        [*lines, verdict(rows["schedule"]), PICTURE, f"Machine: {machine['system']}, Python {machine['python']}.\n"]
    )


def beside_constant(row: Row) -> float:
    """A schedule's divergence over that of the constant of the average that it kept."""
    return row["kl"] / row["constant_kl"]


def verdict(rows: Sequence[Row]) -> str:
    """Whether the loss-aware schedule beat constant and linear, at every average that was tried."""
    sentences: list[str] = ["\nOver all averages in the picture, on held-out text:\n"]
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        token = [row for row in mine if row["name"] == "token"]
        gains = [1 - beside_constant(row) for row in token]
        linear = {row["average"]: beside_constant(row) for row in mine if row["name"] == "linear"}
        beats = sum(beside_constant(row) < min(1.0, linear[row["average"]]) for row in token)
        sentences.append(
            f"- {name}: the schedule by token loses {min(gains):.1%} to {max(gains):.1%} less than the constant of "
            f"equal average, and beats both constant and linear at {beats} of {len(token)} averages."
        )
    return "\n".join(sentences)


HEAD = """# Nested artifacts

    guidedq compile MODEL --nested 3,4,5
    guidedq schedule ARTIFACT --average 3.5bits
    guidedq generate ARTIFACT --prompt "Once upon a time" --schedule prefill=5,decode=4,3@32

One packed PyTorch folder whose top bit planes are a valid model at each width. A width reads its planes, the scales
and zero points of the widest, one ratio a weight for its scales and a shift of 3 bits a row for its zero points, both
fitted by least squares in the guided metric. In Python, `guidedq.set_precision(model, 4)`, or `with
guidedq.at_precision(model, 4):` for a block; a tensor of widths, one for each position, reads each at its own. `with
following(model, schedule):` (from `guidedq.schedules.following`) lets any call of `generate` follow a schedule.
`report.html` has each precision's size, forecast and measurement, and the schedules that were tried.

`benchmarks/nested.py` wrote this page: quick effort, seed 0, groups of 64, divergence (KL, nats per token) from the
original on held-out text. "Compiled alone" is GPTQ in the same guided metric, one width everywhere
(`--set allocate=uniform{bits=4 group-size=64} --set coding=fixed`).

## Each precision against a model of its own
"""
CHOICE = """
## How codes are chosen

Each width is rounded with the feedback of its own errors, and each code is the one that costs least at all widths
together; coordinate descent mends it. Other ways:
"""
SPEED = """
## Time by planes

Sixteen rows' bits of one plane lie side by side. Four columns' inputs have sixteen signed sums, and four bits choose
one of them, so each plane costs the same and unread planes cost nothing.
"""
SCHEDULES = """
## Schedules

Every token of the text counts as decoded. "constant" at a fraction takes the two widths beside it in turn; "step" reads
so many tokens of each text at the wider of the two, then the rest at the narrower ("late": the other way round; "widest
first": from 5 to 3); "linear" falls from 5 to 3. The others are loss-aware: "entropy", "margin" and "impurity" of the
logits before the token, "token" the token itself, whose class tells what the narrow widths were seen to lose behind
it. Fitted on the calibration texts, predicted on the probe texts, measured on the evaluation texts, each beside the
constant of the very average that it kept there.
"""
PICTURE = """
The model's doubt about a token (entropy, margin) tells less of what is lost there: by the time it is known,
its own logits are made. What is known beforehand is the token that is about to be read, and that tells more.

![divergence over average bits](pictures/nested.png)
"""


def main() -> None:
    """Run what is not yet in the record, then write the page."""
    arguments = options(__doc__, budgets="", out="nested.json").parse_args()
    models, data = pairs(arguments.model), pairs(arguments.data)
    record = Record(arguments.out, versions={"guidedq": guidedq.__version__, "torch": torch.__version__})
    speed(record)
    for name, model in models.items():
        files = [data[name]] if name in data else []
        compare(record, name, model, files, arguments.workspace)
        if name == next(iter(models)):
            alternatives(record, name, model, files, arguments.workspace)
        schedules(record, name, model, files, arguments.workspace)
    plot([row for row in record.rows if row["kind"] == "schedule"], Path("docs/pictures/nested.png"))
    write_page(Path("docs/nested.md"), page(record))


if __name__ == "__main__":
    main()
