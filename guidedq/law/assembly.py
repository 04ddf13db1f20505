"""From what was measured to the law: both forms for each allocation, their held-out errors, effective parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guidedq.errors import LawError
from guidedq.law.effective import fit_effective_width
from guidedq.law.forms import Form
from guidedq.law.record import AllocationLaw, FormResult, Law, SweptModel, measured_of, originals
from guidedq.law.regression import fit_form, held_out_error
from guidedq.law.training import PUBLISHED_LAW, TrainingLaw, fit_training_law, misfit


def assemble_law(models: Sequence[SweptModel], unit: str, train_bits: float, *, language_models: bool) -> Law:
    """Fit everything that the measurements tell; what they do not tell is named.

    Args:
        models: What was measured; all with tokens, or none.
        unit: Of the losses.
        train_bits: b_train.
        language_models: Whether the training law speaks of such losses.
    """
    training, problem = training_law(models) if language_models else (None, NO_LANGUAGE)
    names = dict.fromkeys(point.allocation for model in models for point in model.points)
    return Law(
        unit=unit,
        train_bits=train_bits,
        training=training,
        training_problem=problem,
        allocations={name: _allocation_law(models, name, train_bits, training) for name in names},
        models=tuple(models),
    )


def training_law(models: Sequence[SweptModel]) -> tuple[TrainingLaw | None, str]:
    """That of these models where they tell it, else the published one where it says what was measured.

    Returns:
        The law, or `None` and why there is none.
    """
    parameters, tokens, loss = originals(models)
    known = np.isfinite(tokens)
    try:
        return fit_training_law(parameters[known], tokens[known], loss[known]), ""
    except LawError:
        problem = misfit(PUBLISHED_LAW, parameters, tokens, loss)
        return (None if problem else PUBLISHED_LAW), problem


NO_LANGUAGE = "no size of equal loss and no N_eff are told: the training law is of language models' losses alone."


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
