"""A report made up by hand, for tests of what is made of reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from guidedq.artifacts.forecast import Forecast
from guidedq.artifacts.report import (
    BudgetFacts,
    LatencyFacts,
    MeasuredFacts,
    ModelFacts,
    PlanPart,
    PlanPoint,
    PrecisionFacts,
    ProbePoint,
    Report,
    ScheduleFacts,
    SiteFacts,
    SizeFacts,
)

UNIT = "nats/token"


def forecast(kl: float) -> Forecast:
    """A forecast with intervals around `kl`."""
    return Forecast(
        kl=kl,
        kl_low=0.8 * kl,
        kl_high=1.3 * kl,
        loss_increase=0.9 * kl,
        loss_increase_low=0.5 * kl,
        loss_increase_high=1.4 * kl,
        raw_kl=1.1 * kl,
    )


def latency_facts(measured: float) -> LatencyFacts:
    """A model that takes this share of the original's time, and was to take 0.6 of it."""
    return LatencyFacts(
        asked="0.6x",
        profile="onnxruntime 1.0 on a processor",
        threads=2,
        integer_sites=3,
        predicted_ratio=0.6,
        measured_ratio=measured,
        original_seconds=0.002,
        seconds=0.002 * measured,
    )


def plan_points() -> tuple[PlanPoint, ...]:
    """Three sizes with falling losses."""
    return tuple(
        PlanPoint(
            asked=f"{bits}bits",
            bytes=1000 * bits,
            bits_per_weight=float(bits),
            linear_bits_per_weight=bits - 0.1,
            forecast=forecast(4.0**-bits),
            parts=(
                PlanPart(name="embedding", bytes=300 * bits, bits_per_weight=bits - 0.5),
                PlanPart(name="first third", bytes=600 * bits, bits_per_weight=bits + 0.25),
                PlanPart(name="rest", bytes=100 * bits, bits_per_weight=0.0),
            ),
        )
        for bits in (3, 4, 6)
    )


def precisions() -> tuple[PrecisionFacts, ...]:
    """Of a nested file, the middle one measured beyond its interval."""
    measured = {3: 0.0161, 4: 0.0099, 5: 0.00098}
    return tuple(
        PrecisionFacts(
            bits=bits,
            read_bits_per_weight=bits + 0.25,
            forecast=forecast(4.0**-bits),
            measured=replace(sample_report().measured, kl=kl, loss_after=2.0 + kl),
        )
        for bits, kl in measured.items()
    )


def schedules() -> tuple[ScheduleFacts, ...]:
    """Two that were tried, of which the second was chosen."""
    return tuple(
        ScheduleFacts(name=name, text=text, average_bits=bits, kl=kl, kl_low=0.9 * kl, kl_high=1.2 * kl, chosen=chosen)
        for name, text, bits, kl, chosen in (
            ("constant", "prefill=5,constant=3.5", 3.5, 0.0172, False),
            ("entropy", "prefill=5,entropy=3<1.5<4", 3.487, 0.0147, True),
        )
    )


def sites(blocks: int = 3) -> tuple[SiteFacts, ...]:
    """An embedding and `blocks` blocks of two weights, one of them with rows in two formats."""
    narrow, wide = "affine{bits=3 group-size=64}", "affine{bits=5 group-size=64 symmetric outliers=2}"
    made = [_site("model.embed.weight", (100, 8), {narrow: 100})]
    for block in range(blocks):
        made.append(_site(f"model.layers.{block}.up.weight", (16, 8), {narrow: 12, wide: 4}))
        made.append(_site(f"model.layers.{block}.down.weight", (8, 16), {"fp16": 8}))
    return tuple(made)


def sample_report(**changes: Any) -> Report:
    """A report of a language model, with some fields changed."""
    report = Report(
        model=ModelFacts(
            name="tiny",
            digest="ab" * 32,
            source="hugging_face",
            objective="language_model",
            unit=UNIT,
            parameters=1568,
            sites=7,
        ),
        budget=BudgetFacts(asked="4bits", bytes=784, scope="file"),
        size=SizeFacts(file_bytes=780, bits_per_weight=3.98, linear_bits_per_weight=3.71),
        forecast=forecast(0.0123),
        measured=MeasuredFacts(
            kl=0.0119,
            loss_before=2.0,
            loss_after=2.5,
            agreement=0.932,
            accuracy_before=None,
            accuracy_after=None,
            tokens=4096,
        ),
        curve=plan_points(),
        probes=(ProbePoint(bytes=500, bits_per_weight=3.2, raw_kl=0.05, measured_kl=0.06),),
        seconds={"guidance": 2.0, "curves": 1.0},
        peak_memory_bytes=123_000_000,
        sites=sites(),
        backend="torch",
        recipe={"guide": "fisher", "min_bits": 2, "group_sizes": [64], "keep": []},
        data="a text",
        digests={"model": "ab" * 32},
        guidance={"units": 512.0},
        versions={"guidedq": "0.1.0"},
        seed=7,
        notices=("a notice",),
    )
    return replace(report, **changes)


def _site(name: str, shape: tuple[int, int], rows: dict[str, int]) -> SiteFacts:
    return SiteFacts(
        name=name,
        operator="Linear",
        shape=shape,
        format=" + ".join(rows),
        bits=3.5,
        bytes=shape[0] * shape[1] * 7 // 16,
        distortion=0.001 * shape[0],
        rows=rows,
    )
