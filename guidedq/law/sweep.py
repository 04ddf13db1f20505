"""Measure a model at several widths: the same format everywhere, and the recipe's own mixture in the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from guidedq.artifacts.allocation import Allocation
from guidedq.artifacts.forecast import Measurement
from guidedq.decision import counted_base, size_range
from guidedq.errors import BudgetError, LawError
from guidedq.evidence import Evidence, gather
from guidedq.ir.model import check_weights
from guidedq.job import Job
from guidedq.law.record import GUIDED, UNIFORM, Point, SweptModel
from guidedq.probing import measured_on, stored_bytes
from guidedq.quant.formats import MAXIMUM_BITS
from guidedq.recipe import LEAST_FIXED_BITS
from guidedq.registry import build_stage
from guidedq.rounding import rounded

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
    evidence = gather(uniform, uniform.footprint())
    _, largest = size_range(job.model.graph, evidence.footprint)
    points: list[Point] = []
    sizes: dict[int, int] = {}
    losses: list[float] = []
    for width in widths:
        allocator = build_stage("uniform", "allocate", {"bits": str(width)})
        mine = replace(uniform, recipe=replace(recipe, allocate=allocator))
        allocation, measured, size = _measured(mine, evidence, largest, f"uniform {width} bits")
        sizes[width] = allocation.bytes
        losses.append(measured.loss_before)
        points.append(_point(job, evidence, UNIFORM, width, size, measured))
    mixed = gather(job, job.footprint())
    low, high = size_range(job.model.graph, mixed.footprint)
    for width, limit in sizes.items():
        try:
            _, measured, size = _measured(job, mixed, min(max(limit, low), high), f"guided, as {width} bits")
        except BudgetError as error:  # an allocator of few formats
            job.progress.notice(f"no guided model in the bytes of {width} bits: {error}")
            continue
        points.append(_point(job, mixed, GUIDED, width, size, measured))
    model = job.model
    return SweptModel(
        name=model.name,
        digest=model.digest,
        parameters=model.parameters,
        tokens=tokens,
        loss=losses[0],
        points=tuple(points),
    )


def _measured(job: Job, evidence: Evidence, limit: int, name: str) -> tuple[Allocation, Measurement, int]:
    """The allocation for a limit, its measurement on the evaluation samples, and the bytes of its file."""
    with job.stopwatch.time("sweep"):
        (allocation,) = job.recipe.allocate.allocate(job.model.graph, evidence.distortions, evidence.footprint, [limit])
        weights = tuple(rounded(job, evidence, allocation, name))
        measured = measured_on(job, evidence.calibration.evaluation, weights)
        return allocation, measured, stored_bytes(evidence, allocation, weights)


def _point(job: Job, evidence: Evidence, allocation: str, width: int, size: int, measured: Measurement) -> Point:
    base, parameters = counted_base(job, evidence.footprint)
    by_sample = np.array(measured.loss_increase_by_sample)
    error = float(by_sample.std(ddof=1) / math.sqrt(len(by_sample))) if len(by_sample) > 1 else math.nan
    return Point(
        allocation=allocation,
        width=width,
        bits=8 * (size - base) / parameters,
        increase=measured.loss_increase,
        error=max(error, SMALLEST_ERROR),
        kl=measured.kl,
    )
