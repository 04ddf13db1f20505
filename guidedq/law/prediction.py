"""Answers from a fitted law, without a model: what other sizes, trainings and widths lose."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np

from guidedq.errors import LawError
from guidedq.law.forms import Cells, regressors
from guidedq.law.record import FormResult, Law, SweptModel
from guidedq.law.regression import Fit, predicted
from guidedq.law.training import FITTED

SAME = 0.01
"""Relative difference below which a size or a token count is the one that was measured."""
NEAR = 2.0
"""Sizes and token counts up to this factor beyond the measured ones are not called extrapolated, where several were
measured: the laws are powers of them, with exponents known to some tenths, so a factor of two moves little."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the law says of one quantized model.

    Attributes:
        form: The law that answered: of those that can, the one of least held-out error.
        parameters: N.
        tokens: D, if the answer depends on it or it was given.
        bits: Stored bits per weight.
        bytes: Of its file.
        increase: Of the loss.
        low: End of the 90% interval of the curve.
        high: The other end.
        loss: Of the quantized model: over the training law's, where that was fitted, else over the original's, where
            this very model was measured; `None` without either.
        effective_share: N_eff / N.
        equivalent: Parameters of the unquantized model that loses as much.
        extrapolated: Which of `parameters`, `tokens` and `bits` lie outside of what was measured, each with the nearest
            value that was. The interval knows nothing of that.
    """

    form: str
    parameters: float
    tokens: float | None
    bits: float
    bytes: float
    increase: float
    low: float
    high: float
    loss: float | None
    effective_share: float | None
    equivalent: float | None
    extrapolated: Mapping[str, float]


def foretell(law: Law, allocation: str, parameters: float | None, tokens: float | None, bits: float) -> Prediction:
    """What a model of `parameters`, trained on `tokens`, loses at `bits`.

    Args:
        law: What was fitted.
        allocation: How the bits are spent.
        parameters: N; where all measured models have one size, that by default.
        tokens: D; likewise.
        bits: Stored bits per weight.

    Raises:
        LawError: the law cannot tell; the message says why.
    """
    if bits <= 0:
        raise LawError(f"{bits:g} bits per weight: expected more than 0.")
    if allocation not in law.allocations:
        raise LawError(f"{allocation!r} was not swept. There are: {', '.join(law.allocations)}.")
    size = _given(parameters, {float(model.parameters) for model in law.models}, "parameters")
    counts = {model.tokens for model in law.models if model.tokens is not None}
    known = tokens is not None or bool(counts)
    count = _given(tokens, counts, "tokens") if known else None
    tokens_or_nan = math.nan if count is None else count
    cells = Cells(parameters=np.array([size]), tokens=np.array([tokens_or_nan]), bits=np.array([float(bits)]))
    result = _able(law, allocation, cells)
    increase, low, high = (float(values[0]) for values in predicted(result.fit, cells))
    training, effective = law.training, law.allocations[allocation].effective
    return Prediction(
        form=result.fit.form.value,
        parameters=size,
        tokens=count,
        bits=float(bits),
        bytes=size * bits / 8,
        increase=increase,
        low=low,
        high=high,
        loss=None if (base := _base_loss(law, size, count)) is None else base + increase,
        effective_share=None if effective is None else float(effective.share(bits)),
        equivalent=None if training is None else float(training.equivalent(size, increase)),
        extrapolated=_outside(law, allocation, size, count, bits),
    )


def caveats(law: Law, asked: Prediction) -> tuple[str, ...]:
    """What the reader of an answer should know about it."""
    found: list[str] = []
    sizes = {model.parameters for model in law.models}
    if len(sizes) == 1 and "parameters" in asked.extrapolated:
        found.append(
            f"one size alone was measured ({next(iter(sizes)):,} parameters): that another loses as much after as many "
            f"tokens per parameter is what the {asked.form} law assumes."
        )
    if law.training is None:
        found.append(law.training_problem)
    return tuple(found)


def _outside(law: Law, allocation: str, parameters: float, tokens: float | None, bits: float) -> dict[str, float]:
    """What lies outside of what was measured, with the nearest measured value."""
    swept = {point.bits for model in law.models for point in model.points if point.allocation == allocation}
    counts = {model.tokens for model in law.models if model.tokens is not None}
    asked = {
        "parameters": (parameters, {float(model.parameters) for model in law.models}, NEAR),
        "tokens": (tokens, counts, NEAR),
        "bits": (bits, swept, 1.0),
    }
    found: dict[str, float] = {}
    for name, (value, measured, near) in asked.items():
        if value is not None and measured and not _is_near(value, measured, near if len(measured) > 1 else 1.0 + SAME):
            found[name] = min(measured, key=partial(_distance, value))
    return found


def _distance(value: float, measured: float) -> float:
    return abs(math.log(value / measured))


def _is_near(value: float, measured: Collection[float], factor: float) -> bool:
    return min(measured) / factor <= value <= max(measured) * factor


def _given(value: float | None, measured: set[float], name: str) -> float:
    if value is not None:
        if value <= 0:
            raise LawError(f"{value:g} {name}: expected more than 0.")
        return float(value)
    if len(measured) != 1:
        listed = ", ".join(f"{one:,.0f}" for one in sorted(measured))
        raise LawError(f"which {name}? The law was fitted to models of {listed}. Pass --{name}.")
    return next(iter(measured))


def _base_loss(law: Law, parameters: float, tokens: float | None) -> float | None:
    """L(N, D): by the fitted training law, so that sizes compare; else as measured of just this model."""
    if law.training is not None and law.training.source == FITTED and tokens is not None:
        return float(law.training.loss(parameters, tokens))
    for model in law.models:
        if math.isclose(model.parameters, parameters, rel_tol=SAME) and (
            tokens is None or (model.tokens is not None and math.isclose(model.tokens, tokens, rel_tol=SAME))
        ):
            return model.loss
    return None


def _able(law: Law, allocation: str, asked: Cells) -> FormResult:
    """Of the forms that tell of such a model the one of least held-out error."""
    one = law.allocations[allocation]
    best = one.best
    for result in sorted(one.forms.values(), key=lambda result: result is not best):
        if _tells(result.fit, asked, law.models[0]):
            return result
    sizes = ", ".join(f"{size:,}" for size in sorted({model.parameters for model in law.models}))
    raise LawError(
        f"this law was fitted to models of {sizes} parameters and does not tell how the loss depends on what you ask "
        "for: sweep models of several sizes or token counts (guidedq law A B C --tokens 1M,2M,4M), or ask for the "
        "model that was measured."
    )


def _tells(fit: Fit, asked: Cells, model: SweptModel) -> bool:
    """Whether all that has no coefficient, because it did not vary, is as it was measured."""
    tokens = math.nan if model.tokens is None else model.tokens
    measured = Cells(parameters=np.array([float(model.parameters)]), tokens=np.array([tokens]), bits=asked.bits)
    here, there = (regressors(fit.form, cells, fit.train_bits) for cells in (asked, measured))
    for name, value in here.items():
        away = float(np.abs(value - there[name])[0])
        unknown = math.isnan(away) and not math.isclose(asked.parameters[0], model.parameters, rel_tol=SAME)
        if math.isnan(float(value[0])) if name in fit.names else (unknown or away > SAME):
            return False
    return True
