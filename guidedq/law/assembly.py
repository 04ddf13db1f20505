"""From what was measured to the law: both forms for each allocation, their held-out errors, effective parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guidedq.errors import LawError
from guidedq.law.effective import PUBLISHED_LAW, TrainingLaw, fit_effective_width, fit_training_law
from guidedq.law.forms import Form
from guidedq.law.record import AllocationLaw, FormResult, Law, SweptModel, measured_of
from guidedq.law.regression import fit_form, held_out_error


def assemble_law(models: Sequence[SweptModel], unit: str, train_bits: float, *, language_models: bool) -> Law:
    """Fit everything that the measurements tell; what they do not tell is named.

    Args:
        models: What was measured; all with tokens, or none.
        unit: Of the losses.
        train_bits: b_train.
        language_models: Whether the training law speaks of such losses.
    """
    training = training_law(models) if language_models else None
    names = dict.fromkeys(point.allocation for model in models for point in model.points)
    return Law(
        unit=unit,
        train_bits=train_bits,
        training=training,
        allocations={name: _allocation_law(models, name, train_bits, training) for name in names},
        models=tuple(models),
    )


def training_law(models: Sequence[SweptModel]) -> TrainingLaw:
    """That of these models where they tell it, else the published one."""
    known = [(model.parameters, model.tokens, model.loss) for model in models if model.tokens is not None]
    table = np.array(known, dtype=np.float64).reshape(-1, 3)
    try:
        return fit_training_law(table[:, 0], table[:, 1], table[:, 2])
    except LawError:
        return PUBLISHED_LAW


def _allocation_law(
    models: Sequence[SweptModel], name: str, train_bits: float, training: TrainingLaw | None
) -> AllocationLaw:
    measured, widths, numbers = measured_of(models, name)
    forms: dict[str, FormResult] = {}
    problems: list[str] = []
    for form in Form:
        try:
            fit = fit_form(form, measured, train_bits)
        except LawError as error:
            problems.append(str(error))
            continue
        forms[form.value] = FormResult(
            fit=fit,
            held_out_widths=held_out_error(form, measured, widths, train_bits),
            held_out_models=held_out_error(form, measured, numbers, train_bits) if len(models) > 1 else None,
        )
    effective = None
    if training is not None and forms:
        try:
            effective = fit_effective_width(training, measured)
        except LawError as error:
            problems.append(str(error))
    return AllocationLaw(forms=forms, effective=effective, problems=tuple(dict.fromkeys(problems)))
