"""Answers from a fitted law, without a model: what other sizes, trainings and widths lose, and what to trade."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import final

import numpy as np

from guidedq.errors import LawError
from guidedq.law.effective import FITTED
from guidedq.law.forms import Cells, regressors
from guidedq.law.record import FormResult, Law, SweptModel
from guidedq.law.regression import Fit, predicted

SAME = 0.01
"""Relative difference below which a size or a token count is the one that was measured."""
TRADED_BITS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Steps in bits per weight of the models that are compared at equal bytes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the law says of one quantized model.

    Attributes:
        form: The law that answered: of those that can, the one of least held-out error.
        parameters: N.
        tokens: D, if the answer depends on it or it was given.
        bits: Stored bits per weight.
        increase: Of the loss.
        low: End of the 90% interval of the curve.
        high: The other end.
        loss: Of the quantized model: over the training law's, where that was fitted, else over the original's, where
            this very model was measured; `None` without either.
        effective_share: N_eff / N.
        equivalent: Parameters of the unquantized model that loses as much.
        extrapolated: Whether the width lies outside of what was measured.
    """

    form: str
    parameters: float
    tokens: float | None
    bits: float
    increase: float
    low: float
    high: float
    loss: float | None
    effective_share: float | None
    equivalent: float | None
    extrapolated: bool


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
    swept = [point.bits for model in law.models for point in model.points if point.allocation == allocation]
    return Prediction(
        form=result.fit.form.value,
        parameters=size,
        tokens=count,
        bits=float(bits),
        increase=increase,
        low=low,
        high=high,
        loss=None if (base := _base_loss(law, size, count)) is None else base + increase,
        effective_share=None if effective is None else float(effective.share(bits)),
        equivalent=None if training is None else float(training.equivalent(size, increase)),
        extrapolated=not min(swept) <= bits <= max(swept),
    )


def trades(law: Law, allocation: str, asked: Prediction) -> tuple[Prediction, ...]:
    """Models of the same bytes as the one that was asked for, with fewer bits and more parameters and the reverse.

    Trained on the same tokens. Empty where the laws know nothing of other sizes.
    """
    if law.training is None or law.training.source != FITTED or asked.loss is None:
        return ()
    found: list[Prediction] = []
    for step in TRADED_BITS:
        bits = asked.bits + step
        if bits <= 0:
            continue
        with suppress(LawError):
            found.append(foretell(law, allocation, asked.parameters * asked.bits / bits, asked.tokens, bits))
    return tuple(found) if len(found) > 1 else ()


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
