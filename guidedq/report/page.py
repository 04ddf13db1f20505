"""The report as one self-contained page of HTML: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import accumulate, pairwise
from typing import Any, final

from guidedq.artifacts.report import Report, RunFacts
from guidedq.artifacts.runtime import RuntimeFacts
from guidedq.report.depth import depth_figure, row_shares
from guidedq.report.drawing import for_page
from guidedq.report.knee import knee
from guidedq.report.palette import WIDTH_COLOURS
from guidedq.report.parts import parts_table, with_parts
from guidedq.report.plots import PLOT_SIZE, curve_figure, parts_figure, promise_figure
from guidedq.report.precisions import at_widest, nested_plots, nested_title, precision_table, schedule_table
from guidedq.report.wording import (
    agreement_name,
    bytes_text,
    checked_text,
    folded_text,
    increase_text,
    interval_text,
    loss_text,
    memory_text,
    mixture_text,
    perplexity,
    seconds_text,
    share_text,
    signed_text,
    time_text,
    verdict,
)

WIDE = (10.2, 4.2)
NARROW = (4.0, 4.6)
"""Inches of the allocation's drawing on a desktop and on a phone."""
WIDE_PARTS = (10.2, 3.4)
SMALL = (3.7, 3.7)
"""Inches of the other drawings on a phone: shown some 300 pixels wide, their letters are no smaller than 10 pixels."""
HALF_PRECISION_BYTES = 2
"""A weight in 16 bits, what the size is compared with."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str


def page(report: Report) -> str:
    """The whole page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("guidedq.report") / "template.html").read_text(encoding="utf-8"))
    text = template.render(
        report=report,
        title=nested_title(report),
        precisions=precision_table(report),
        schedules=schedule_table(report),
        tiles=_tiles(report),
        verdict=verdict(report),
        parts=parts_table(report.curve),
        knee=knee(report.curve),
        plots=_plots(report),
        sites=[_row(site, report) for site in report.sites],
        checks=[(check, checked_text(check)) for check in report.diagnostics],
        stages=_stages(report.seconds),
        time=time_text(report),
        facts=_facts(report),
        runtime=_runtime(report.runtime),
    )
    return re.sub(r"\n\s*\n+", "\n", text)


def _tiles(report: Report) -> list[Tile]:
    size, measured, unit = report.size, report.measured, report.model.unit
    at = at_widest(report)
    smaller = HALF_PRECISION_BYTES * report.model.parameters / size.file_bytes
    tiles = [
        Tile(
            label="size",
            value=bytes_text(size.file_bytes),
            note=f"{size.bits_per_weight:.3f} bits per weight, all counted; {smaller:.1f} times smaller than fp16",
        ),
        Tile(
            label=f"KL forecast{at}",
            value=loss_text(report.forecast.kl),
            note=f"{_range(report)} {unit}, 90% interval",
        ),
        Tile(
            label=f"KL measured{at}",
            value=loss_text(measured.kl),
            note=f"{unit}, over {measured.tokens:,} {_units(report)}",
        ),
        Tile(
            label=f"loss{at}",
            value=signed_text(measured.loss_increase),
            note=f"{loss_text(measured.loss_before)} to {loss_text(measured.loss_after)} {unit}",
        ),
    ]
    if report.model.objective == "language_model":
        after = perplexity(measured.loss_after)
        before = perplexity(measured.loss_before)
        tiles.append(Tile(label=f"perplexity{at}", value=loss_text(after), note=f"was {loss_text(before)}"))
    if measured.accuracy_before is not None and measured.accuracy_after is not None:
        note = f"was {share_text(measured.accuracy_before)}"
        tiles.append(Tile(label=f"accuracy{at}", value=share_text(measured.accuracy_after), note=note))
    agreement = agreement_name(report.model.objective)
    tiles.append(Tile(label=f"{agreement}{at}", value=share_text(measured.agreement), note="with the original"))
    if (latency := report.latency) is not None:
        note = (
            f"times the original's; {latency.predicted_ratio:.3f} forecast, {latency.integer_sites} sites in integers"
        )
        tiles.append(Tile(label="latency", value=f"{latency.measured_ratio:.3f}", note=note))
    total = sum(report.seconds.values(), 0.0)
    tiles.append(Tile(label="time", value=seconds_text(total), note=f"memory {memory_text(report)}"))
    return tiles


def _range(report: Report) -> str:
    return f"{loss_text(report.forecast.kl_low)} to {loss_text(report.forecast.kl_high)}"


def _units(report: Report) -> str:
    return "tokens" if report.model.objective == "language_model" else "samples"


def _plots(report: Report) -> Mapping[str, str]:
    allocation = f"Bits per weight of {len(report.sites)} sites in the order of the data; the table below lists them."
    curve = "Predicted KL and loss increase against bits per weight, with the knee and the chosen point."
    promise = "Predicted against measured KL and loss increase."
    plots = {
        **for_page(partial(depth_figure, report), "depth", allocation, WIDE, NARROW),
        **for_page(partial(promise_figure, report), "promise", promise, PLOT_SIZE, SMALL),
    }
    if report.precisions:
        return {**plots, **nested_plots(report, WIDE, SMALL)}
    plots = {**plots, **for_page(partial(curve_figure, report), "curve", curve, PLOT_SIZE, SMALL)}
    if not with_parts(report.curve):
        return plots
    shares = "The parts of the model as shares of the file at each budget; the table below has the numbers."
    return {**plots, **for_page(partial(parts_figure, report.curve), "parts", shares, WIDE_PARTS, SMALL)}


def _row(site: Any, report: Report) -> Mapping[str, Any]:
    total = sum(other.distortion for other in report.sites)
    shares = row_shares(site)
    stops = [0.0, *accumulate(100 * share for share in shares.values())]
    return {
        "name": site.name,
        "operator": site.operator,
        "shape": " x ".join(map(str, site.shape)),
        "format": mixture_text(site.rows),
        "bits": f"{site.bits:.2f}",
        "bytes": f"{site.bytes:,}",
        "distortion": loss_text(site.distortion),
        "distortion_share": share_text(site.distortion / total) if total > 0 else "",
        "mix": [
            {"colour": WIDTH_COLOURS[bits], "start": f"{start:.2f}", "width": f"{stop - start:.2f}"}
            for bits, (start, stop) in zip(shares, pairwise(stops), strict=True)
        ],
    }


def _stages(seconds: Mapping[str, float]) -> list[Mapping[str, str]]:
    longest = max(seconds.values(), default=0.0)
    return [
        {"name": name, "seconds": seconds_text(value), "bar": f"{100 * value / longest:.1f}" if longest > 0 else "0"}
        for name, value in seconds.items()
    ]


def _runtime(facts: RuntimeFacts | None) -> Mapping[str, Any] | None:
    """The kinds of operators that read weights, and the sites of each."""
    if facts is None:
        return None
    states = {"codes": "read as codes", "folded": "dequantized at load", "stored": "as stored"}
    sites = {node: [name for name, nodes in facts.sites.items() if node in nodes] for node in facts.kinds}
    rows = [
        {
            "operator": node.operator,
            "bits": node.bits or "float",
            "block": node.block_size or "",
            "level": "" if node.accuracy_level is None else node.accuracy_level,
            "weight": states.get(node.weight, "dequantized at every call"),
            "count": count,
            "sites": sites[node][0] if len(sites[node]) == 1 else f"{len(sites[node])} sites",
        }
        for node, count in facts.kinds.items()
    ]
    return {"name": facts.name, "rows": rows, "folded": folded_text(facts)}


def _facts(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything else, under headings."""
    counted = "whole file" if report.budget.scope == "file" else "linear and convolution weights alone"
    return [
        (
            "Promise",
            [
                ("budget", f"{report.budget.asked}: {report.budget.bytes:,} bytes ({counted})"),
                ("file", f"{report.size.file_bytes:,} bytes"),
                ("linear layers", f"{report.size.linear_bits_per_weight:.3f} bits per weight"),
                ("KL forecast", interval_text(report.forecast)),
                ("loss forecast", increase_text(report.forecast)),
                ("KL before calibration by probes", loss_text(report.forecast.raw_kl)),
            ],
        ),
        ("Recipe", [(name, _spelled(value)) for name, value in report.recipe.items()] + [("backend", report.backend)]),
        (
            "Input",
            [
                ("model", f"{report.model.name} ({report.model.source})"),
                ("objective", report.model.objective.replace("_", " ")),
                ("calibration data", report.data),
                ("seed", str(report.seed)),
                *((name, f"{value:,.4g}") for name, value in report.guidance.items()),
            ],
        ),
        ("Digests (SHA-256)", [*report.digests.items(), ("report.json", report.digest)]),
        ("Versions", list(report.versions.items())),
        *([("Run", _run(report.run))] if report.run is not None else []),
    ]


def _run(run: RunFacts) -> list[tuple[str, str]]:
    """On what it was run, and what was asked besides a budget."""
    asked = {
        "bound on statistics": run.memory_bytes and bytes_text(run.memory_bytes),
        "training tokens": run.training_tokens and f"{run.training_tokens:,.4g}",
        "gate for the loss increase": run.max_loss_increase,
        "strict": run.strict or None,
    }
    machine = [("processor", run.processor), ("threads", str(run.threads)), ("system", run.system)]
    return [*machine, *((name, str(value)) for name, value in asked.items() if value is not None)]


def _spelled(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
