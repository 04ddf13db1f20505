"""What a sweep measured and what was fitted to it, as values, and as TOML that can be read again."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, final

import numpy as np

from guidedq.errors import LawError
from guidedq.law.effective import EffectiveWidth
from guidedq.law.forms import Cells, Form
from guidedq.law.regression import Fit, Measured
from guidedq.law.training import PUBLISHED, TrainingLaw, misfit

UNIFORM, GUIDED = "uniform", "guided"
"""Allocations: one width everywhere, and the recipe's own mixture in the same bytes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One quantized model, measured on the evaluation samples.

    Attributes:
        allocation: `uniform` or `guided`.
        width: Bits of a code where it is uniform; a mixture has the bytes of this uniform model.
        bits: All bytes of the file over all parameters (under the scope `linear`, those of the linear sites).
        increase: Of the loss, in the model's unit.
        error: Its standard error over the samples.
        kl: Divergence from the original.
        loss: Of the quantized model, L_PTQ.
    """

    allocation: str
    width: int
    bits: float
    increase: float
    error: float
    kl: float
    loss: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SweptModel:
    """One model with everything that was measured of it.

    Attributes:
        name: For people.
        digest: Of its content.
        parameters: N.
        tokens: D, if it was given.
        loss: Of the original, L_base.
        points: Its quantized versions.
    """

    name: str
    digest: str
    parameters: int
    tokens: float | None
    loss: float
    points: tuple[Point, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FormResult:
    """A fitted form and how it does where it has not looked: root mean square of log(predicted / measured).

    Attributes:
        fit: The form fitted to everything.
        held_out_widths: Each width predicted from the others; `None` where the others do not tell the law.
        held_out_models: Each model predicted from the others; `None` as well where there is one.
    """

    fit: Fit
    held_out_widths: float | None
    held_out_models: float | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationLaw:
    """The law of one way to spend bits.

    Attributes:
        forms: By the form's name, those that could be fitted.
        effective: Of the effective parameters, where it could be fitted.
        problems: Why something could not.
    """

    forms: Mapping[str, FormResult]
    effective: EffectiveWidth | None
    problems: tuple[str, ...]

    @property
    def best(self) -> FormResult:
        """The form of least held-out error.

        Raises:
            LawError: none could be fitted.
        """
        if not self.forms:
            raise LawError(" ".join(self.problems))
        return min(self.forms.values(), key=lambda one: math.inf if (e := one.held_out_widths) is None else e)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Everything that `guidedq law` found.

    Attributes:
        unit: Of all losses.
        train_bits: b_train.
        training: The loss of unquantized models; `None` where none is known that holds for these.
        training_problem: Why it is `None`, else empty.
        allocations: By name.
        models: What was measured.
    """

    unit: str
    train_bits: float
    training: TrainingLaw | None
    training_problem: str
    allocations: Mapping[str, AllocationLaw]
    models: tuple[SweptModel, ...]


def originals(models: Sequence[SweptModel]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D (NaN where it is not known) and the loss of each model before it was quantized."""
    rows = [(one.parameters, math.nan if one.tokens is None else one.tokens, one.loss) for one in models]
    parameters, tokens, loss = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return parameters, tokens, loss


def measured_of(models: Sequence[SweptModel], allocation: str) -> tuple[Measured, np.ndarray, np.ndarray]:
    """The measurements of one allocation as arrays, with the width and the model's number of each."""
    rows = [
        (
            model.parameters,
            math.nan if model.tokens is None else model.tokens,
            *(p.bits, p.increase, p.error, p.width, n),
        )
        for n, model in enumerate(models)
        for p in model.points
        if p.allocation == allocation
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    cells = Cells(parameters=table[:, 0], tokens=table[:, 1], bits=table[:, 2])
    return Measured(cells=cells, increase=table[:, 3], error=table[:, 4]), table[:, 5], table[:, 6]


def law_toml(law: Law) -> str:
    """The law as TOML: what `read_law` needs, and for people the parameters as the forms are written."""
    lines = [f"unit = {_spelled(law.unit)}", f"train-bits = {_spelled(law.train_bits)}"]
    if law.training_problem:
        lines += [f"training-problem = {_spelled(law.training_problem)}"]
    if law.training is not None:
        facts = {key: value for key, value in asdict(law.training).items() if key != "intervals"}
        lines += ["", "[training]", *_pairs(facts)]
        if law.training.intervals:
            lines += ["# the ends of 90% intervals", "[training.intervals]", *_pairs(law.training.intervals)]
    for name, one in law.allocations.items():
        for form, result in one.forms.items():
            fit = {key: value for key, value in asdict(result.fit).items() if key not in ("form", "train_bits")}
            errors = {"held_out_widths": result.held_out_widths, "held_out_models": result.held_out_models}
            lines += ["", f"[allocations.{name}.forms.{form}]", *_pairs({**fit, **errors})]
            intervals = {key: list(ends) for key, ends in result.fit.intervals().items()}
            lines += ["# value, and the ends of its 90% interval", f"[allocations.{name}.forms.{form}.parameters]"]
            lines += _pairs(intervals)
        if one.effective is not None:
            lines += ["", f"[allocations.{name}.effective]", *_pairs(asdict(one.effective))]
        if one.problems or not one.forms:
            lines += ["", f"[allocations.{name}]", *_pairs({"problems": list(one.problems)})]
    for model in law.models:
        facts = {key: value for key, value in asdict(model).items() if key != "points"}
        lines += ["", "[[models]]", *_pairs(facts), "points = ["]
        lines += [f"    {{ {', '.join(_pairs(asdict(point)))} }}," for point in model.points] + ["]"]
    return "\n".join(lines) + "\n"


def read_law(path: Path) -> Law:
    """Read what `law_toml` made, of older versions too.

    These kept the published training law whether it held for the models or not: where not, it is left out.

    Raises:
        LawError: it is no such file.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        law = Law(
            unit=content["unit"],
            train_bits=content["train-bits"],
            training=_training(content.get("training")),
            training_problem=content.get("training-problem", "" if "training" in content else UNKNOWN_TRAINING),
            allocations={name: _allocation(one, content["train-bits"]) for name, one in content["allocations"].items()},
            models=tuple(_model(one) for one in content["models"]),
        )
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise LawError(f"{path} is no law that guidedq law wrote ({error}). Name its law.toml.") from error
    if law.training is None or law.training.source != PUBLISHED:
        return law
    if not (problem := misfit(law.training, *originals(law.models))):
        return law
    allocations = {name: replace(one, effective=None) for name, one in law.allocations.items()}
    return replace(law, training=None, training_problem=problem, allocations=allocations)


UNKNOWN_TRAINING = "no training law is known for these models: no size of equal loss and no N_eff are told."


def _training(content: dict[str, Any] | None) -> TrainingLaw | None:
    if content is None:
        return None
    intervals = {name: (low, high) for name, (low, high) in content.pop("intervals", {}).items()}
    return TrainingLaw(**content, intervals=intervals)


def _allocation(content: Mapping[str, Any], train_bits: float) -> AllocationLaw:
    forms: dict[str, FormResult] = {}
    for name, one in content.get("forms", {}).items():
        fit = Fit(
            form=Form(name),
            train_bits=train_bits,
            names=tuple(one["names"]),
            values=tuple(one["values"]),
            covariance=tuple(map(tuple, one["covariance"])),
            freedom=one["freedom"],
        )
        widths, models = one.get("held_out_widths"), one.get("held_out_models")
        forms[name] = FormResult(fit=fit, held_out_widths=widths, held_out_models=models)
    effective = content.get("effective")
    return AllocationLaw(
        forms=forms,
        effective=None if effective is None else EffectiveWidth(**effective),
        problems=tuple(content.get("problems", ())),
    )


def _model(content: dict[str, Any]) -> SweptModel:
    return SweptModel(
        name=content["name"],
        digest=content["digest"],
        parameters=content["parameters"],
        tokens=content.get("tokens"),
        loss=content["loss"],
        points=tuple(Point(**point) for point in content["points"]),
    )


def _pairs(content: Mapping[str, Any]) -> list[str]:
    """`name = value`, one for each that has a value: TOML knows no null."""
    return [f"{name} = {_spelled(value)}" for name, value in content.items() if value is not None]


def _spelled(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_spelled, cast("Sequence[Any]", value))) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
