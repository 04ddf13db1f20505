"""Measure a model at several widths: the same format everywhere, and the recipe's own mixture in the same bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from guidedq.artifacts.allocation import Allocation
from guidedq.driver.decision import counted_base, size_range
from guidedq.driver.evidence import Evidence, gather
from guidedq.driver.job import Job
from guidedq.driver.probing import measured_on, stored_bytes
from guidedq.driver.rounding import rounded
from guidedq.errors import BudgetError, LawError
from guidedq.files import write_text
from guidedq.ir.model import check_weights
from guidedq.law.record import GUIDED, UNIFORM, Point, SweptModel
from guidedq.quant.formats import MAXIMUM_BITS
from guidedq.recipe import LEAST_FIXED_BITS
from guidedq.registry import build_stage, stage_text
from guidedq.workspace import finish, is_finished, storing

UNIFORM_SETTINGS = ("coding=fixed", "group-sizes=64", "symmetric=false", "outliers=0", "correct=none", "tune=none")
"""Codes of one width with a scale and a zero point for every 64 weights, the usual choice for language models."""
SMALLEST_ERROR = 1e-9
"""The standard error of an increase is never taken as less, in the unit of the loss: float32 logits have noise too."""


def check_widths(widths: Sequence[int]) -> None:
    """Refuse widths that cannot be swept, before any long work.

    Raises:
        LawError: fewer than four different ones, or one out of range.
    """
    if bad := [width for width in widths if not LEAST_FIXED_BITS <= width <= MAXIMUM_BITS]:
        raise LawError(f"width {bad[0]}: expected {LEAST_FIXED_BITS} to {MAXIMUM_BITS} bits. Try 8,6,5,4,3,2.")
    if len(set(widths)) < LEAST_WIDTHS:
        raise LawError(f"{len(set(widths))} different widths, expected {LEAST_WIDTHS} at least. Try 8,6,5,4,3,2.")


LEAST_WIDTHS = 4
"""Without one of them, to see how well it is predicted, there must be one more than a law has coefficients."""


def sweep(job: Job, widths: Sequence[int], tokens: float | None) -> SweptModel:
    """Quantize and measure at every width, on the evaluation samples; writes nothing but the workspace.

    Args:
        job: Its recipe is that of the mixtures; its rounding and guidance are used for the uniform models too.
        widths: Bits of the uniform models.
        tokens: That the model was trained on.

    Raises:
        GuidedQError: whatever is wrong with the model or its data.
    """
    check_weights(job.model, job.model.graph.quantizable)
    narrow, wide = min(widths), max(widths)
    recipe = job.recipe.with_settings([*UNIFORM_SETTINGS, f"min-bits={narrow}", f"max-bits={wide}"])
    uniform = replace(job, recipe=recipe)
    evidence, mixed = gather(uniform, uniform.footprint()), gather(job, job.footprint())
    entry = _entry(job, evidence, mixed, widths)
    if not is_finished(entry):
        sizes, points = _uniform_points(uniform, evidence, widths)
        points += _guided_points(job, mixed, sizes)
        loss = points[0].loss - points[0].increase
        with storing(job.workspace.root):
            write_text(entry / "sweep.json", json.dumps({"loss": loss, "points": list(map(asdict, points))}))
            finish(entry)
    kept = json.loads((entry / "sweep.json").read_text())
    model = job.model
    return SweptModel(
        name=model.name,
        digest=model.digest,
        parameters=model.parameters,
        tokens=tokens,
        loss=kept["loss"],
        points=tuple(Point(**point) for point in kept["points"]),
    )


def _entry(job: Job, evidence: Evidence, mixed: Evidence, widths: Sequence[int]) -> Path:
    """Where the sweep of one model is kept: everything that its measurements depend on is part of the name."""
    rules = tuple(stage_text(getattr(job.recipe, kind), kind) for kind in ("allocate", "correct"))
    digests = (evidence.key, mixed.key, evidence.calibration.evaluation.digest, evidence.calibration.tuning.digest)
    backend = (repr(evidence.rounding), repr(job.model.graph.fused), job.recipe.scope)
    return job.workspace.entry("sweep", *digests, *rules, *backend, ",".join(map(str, widths)))


def _uniform_points(job: Job, evidence: Evidence, widths: Sequence[int]) -> tuple[dict[int, int], list[Point]]:
    """The uniform models, and the bytes of each."""
    points: list[Point] = []
    sizes: dict[int, int] = {}
    _, largest = size_range(job.model.graph, evidence.footprint)
    for width in widths:
        allocator = build_stage("uniform", "allocate", {"bits": str(width)})
        mine = replace(job, recipe=replace(job.recipe, allocate=allocator))
        allocation, point = _measured(mine, evidence, largest, UNIFORM, width)
        sizes[width] = allocation.bytes
        points.append(point)
    return sizes, points


def _guided_points(job: Job, evidence: Evidence, sizes: Mapping[int, int]) -> list[Point]:
    """The recipe's own mixture in the bytes of each uniform model, where it has one."""
    points: list[Point] = []
    low, high = size_range(job.model.graph, evidence.footprint)
    for width, limit in sizes.items():
        try:
            points.append(_measured(job, evidence, min(max(limit, low), high), GUIDED, width)[1])
        except BudgetError as error:  # an allocator of few formats
            job.progress.notice(f"no guided model in the bytes of {width} bits: {error}")
    return points


def _measured(job: Job, evidence: Evidence, limit: int, name: str, width: int) -> tuple[Allocation, Point]:
    """The allocation for a limit, and what the model so rounded loses on the evaluation samples."""
    with job.stopwatch.time("sweep"):
        (allocation,) = job.recipe.allocate.allocate(job.model.graph, evidence.distortions, evidence.footprint, [limit])
        weights = tuple(rounded(job, evidence, allocation, f"{name}, {width} bits", corrected=True))
        measured = measured_on(job, evidence, evidence.calibration.evaluation, weights)
        size = stored_bytes(evidence, allocation, weights)
    base, parameters = counted_base(job, evidence.footprint)
    by_sample = np.array(measured.loss_increase_by_sample)
    error = float(by_sample.std(ddof=1) / math.sqrt(len(by_sample))) if len(by_sample) > 1 else math.inf
    return allocation, Point(
        allocation=name,
        width=width,
        bits=8 * (size - base) / parameters,
        increase=measured.loss_increase,
        error=max(error, SMALLEST_ERROR),
        kl=measured.kl,
        loss=measured.loss_after,
    )
