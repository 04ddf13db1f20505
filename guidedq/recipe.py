"""Recipes: which stages, with which options, over which formats. A recipe is a value with a TOML text that round-trips."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, final

from guidedq.errors import RecipeError
from guidedq.quant.formats import MAXIMUM_BITS, AffineFormat
from guidedq.registry import KINDS, build_stage, parse_stage, stage_text, with_options
from guidedq.stages import (
    AbstractAllocator,
    AbstractCorrector,
    AbstractForecaster,
    AbstractGuide,
    AbstractMeasurer,
    AbstractRounder,
)

Scope = Literal["file", "linear"]
SMALLEST_WIDTH = 2
"""One bit per weight is a format of its own kind (signs); the affine grid begins to make sense at two."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to compile.

    Attributes:
        guide: Measures which errors matter.
        measure: Makes curves of it.
        round: Chooses the codes.
        correct: Chooses what is rounded to.
        allocate: Chooses the formats.
        forecast: Predicts the loss.
        min_bits: Narrowest codes.
        max_bits: Widest codes.
        group_sizes: Candidates; 0 is one scale per row.
        symmetric: Also offer formats without zero points.
        outliers: Candidates: weights per row that stay at 16 bits.
        scope: What the budget counts: the whole file, or only linear and convolution weights (the rest is left alone).
        keep: Shell patterns of sites to be left alone.
    """

    guide: AbstractGuide
    measure: AbstractMeasurer
    round: AbstractRounder
    correct: AbstractCorrector
    allocate: AbstractAllocator
    forecast: AbstractForecaster
    min_bits: int = SMALLEST_WIDTH
    max_bits: int = MAXIMUM_BITS
    group_sizes: tuple[int, ...] = (64,)
    symmetric: bool = False
    outliers: tuple[int, ...] = (0,)
    scope: Scope = "file"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not SMALLEST_WIDTH <= self.min_bits <= self.max_bits <= MAXIMUM_BITS:
            raise RecipeError(
                f"min-bits {self.min_bits} and max-bits {self.max_bits}: expected "
                f"{SMALLEST_WIDTH} <= min-bits <= max-bits <= {MAXIMUM_BITS}."
            )
        if not self.group_sizes or not self.outliers:
            raise RecipeError("a recipe needs at least one group size and one number of outliers (0 for none).")
        if self.scope not in ("file", "linear"):
            raise RecipeError(f"scope {self.scope!r}: expected file or linear.")

    @property
    def formats(self) -> tuple[AffineFormat, ...]:
        """The candidates, narrowest first."""
        return tuple(
            AffineFormat(bits=bits, group_size=group_size, symmetric=symmetric, outliers=outliers)
            for bits in range(self.min_bits, self.max_bits + 1)
            for group_size in self.group_sizes
            for symmetric in ((False, True) if self.symmetric else (False,))
            for outliers in self.outliers
        )

    def text(self) -> Mapping[str, Any]:
        """The recipe as plain values, stages as text: what TOML and the report show, and what keys are made of."""
        return {
            field.name: stage_text(getattr(self, field.name), field.name)
            if field.name in KINDS
            else list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in fields(self)
        }  # fmt: skip

    def toml(self) -> str:
        """The recipe as TOML."""
        return "".join(f"{name.replace('_', '-')} = {_toml(value)}\n" for name, value in self.text().items())

    def with_settings(self, settings: Sequence[str]) -> Recipe:
        """The recipe with settings spelled `stage.option=value` or `stage=name` or `option=value`.

        Raises:
            RecipeError: a setting names no stage or option, or its value does not fit.
        """
        recipe = self
        for setting in settings:
            path, separator, value = setting.partition("=")
            kind, dot, option = path.strip().partition(".")
            if not separator:
                raise RecipeError(f"--set {setting}: expected stage.option=value, such as round.damping-fraction=0.02.")
            if dot and kind in _STAGES:
                stage = with_options(getattr(recipe, kind), kind, {option: value})
                recipe = replace(recipe, **{kind: stage})
            elif not dot and kind in _STAGES:
                recipe = replace(recipe, **{kind: parse_stage(value, kind)})
            elif not dot:
                recipe = with_options(recipe, "the recipe", {kind: value})
            else:
                raise RecipeError(f"--set {setting}: there is no stage {kind!r}. Stages: {', '.join(_STAGES)}.")
        return recipe


_STAGES = ("guide", "measure", "round", "correct", "allocate", "forecast")
_NAMED: Mapping[str, Sequence[str]] = {
    "default": (),
    "nearest": ("guide=none", "round=nearest{search=false}", "allocate=uniform"),
    "gptq": ("guide=hessian", "round=gptq", "allocate=uniform"),
    "guided-uniform": ("allocate=uniform",),
    "article": ("guide=article", "allocate=article"),
}
"""Recipes by name: the default, uniform PTQ as other tools do it, uniform with end-loss guidance, and the article's."""


def named_recipes() -> tuple[str, ...]:
    """The names that `load_recipe` knows."""
    return tuple(_NAMED)


def load_recipe(name_or_path: str = "default") -> Recipe:
    """A recipe by name, or from a TOML file.

    Raises:
        RecipeError: no such recipe, or a malformed one.
    """
    if name_or_path in _NAMED:
        return _default().with_settings(_NAMED[name_or_path])
    path = Path(name_or_path)
    if not path.is_file():
        raise RecipeError(f"{name_or_path!r} is no recipe: neither a file nor one of {', '.join(_NAMED)}.")
    try:
        return parse_recipe(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no TOML: {error}.") from error


def parse_recipe(toml: str) -> Recipe:
    """A recipe from TOML, the inverse of `Recipe.toml`; what it does not say is as in the default recipe.

    Raises:
        RecipeError: unknown names or wrong types.
    """
    recipe = _default()
    known = {field.name: field for field in fields(Recipe)}
    for spelled, value in tomllib.loads(toml).items():
        name = spelled.replace("-", "_")
        if name not in known:
            raise RecipeError(f"a recipe has no {spelled!r}. It has: {', '.join(known).replace('_', '-')}.")
        text = (
            ",".join(map(str, value))
            if isinstance(value, list)
            else str(value).lower()
            if isinstance(value, bool)
            else str(value)
        )
        recipe = recipe.with_settings([f"{name if name in _STAGES else spelled}={text}"])
    return recipe


def _default() -> Recipe:
    defaults = {
        "guide": "fisher",
        "measure": "rounded",
        "round": "gptq",
        "correct": "none",
        "allocate": "lagrangian",
        "forecast": "projected",
    }
    return Recipe(**{kind: build_stage(name, kind, {}) for kind, name in defaults.items()})


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value) if isinstance(value, int) else '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
