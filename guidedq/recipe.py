"""Recipes: which stages, with which options, over which formats. A recipe is a value whose TOML text round-trips."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, final, get_args, get_type_hints

from guidedq.artifacts.report import read_report
from guidedq.errors import RecipeError
from guidedq.quant.formats import (
    ENTROPY_STEPS_PER_BIT,
    MAXIMUM_BITS,
    MINIMUM_BITS,
    MOST_ENTROPY_BITS,
    AffineFormat,
    EntropyCode,
    EntropyFormat,
    RoundedFormat,
)
from guidedq.registry import KINDS, build_stage, parse_stage, stage_text, with_options
from guidedq.stages import (
    AbstractAllocator,
    AbstractCorrector,
    AbstractForecaster,
    AbstractGuide,
    AbstractMeasurer,
    AbstractRange,
    AbstractRounder,
    AbstractTuner,
)

Scope = Literal["file", "linear"]
Coding = Literal["auto", "entropy", "fixed"]
LEAST_FIXED_BITS = 2
"""One bit per weight is a format of its own kind (signs); a grid of fixed width begins to make sense at two."""
FINE_BITS = 4
"""Widest codes for which small groups pay: another bit halves the error, smaller groups take some tenths off it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to compile.

    Attributes:
        guide: Measures which errors matter.
        measure: Makes curves of it.
        round: Chooses the codes.
        correct: Chooses what is rounded to.
        tune: Changes the codes of the whole model.
        range: Chooses the grids of activations, where the backend rounds these to integers.
        allocate: Chooses the formats.
        forecast: Predicts the loss.
        min_bits: Narrowest codes, on average where they are stored by their entropy; fixed widths begin at 2.
        max_bits: Widest codes.
        coding: `fixed` widths, or codes stored by their `entropy` where the backend can; `auto`: where it also pays.
        group_sizes: Candidates; 0 is one scale per row. Codes wider than 4 bits are offered with the last one alone.
        symmetric: Also offer formats without zero points.
        outliers: Candidates: weights per row that stay at 16 bits.
        scope: What the budget counts: the whole file, or only linear and convolution weights (the rest is left alone).
        keep: Shell patterns of sites to be left alone.
        activation_budget: Of the whole forecast, the share that one site may lose by being computed in integers;
            a site that would lose more stays in float.
        speed_budget: Of the forecast that would be best for a size, the share by which it may be higher where latency
            is the objective and no bound on it is set.
    """

    guide: AbstractGuide
    measure: AbstractMeasurer
    round: AbstractRounder
    correct: AbstractCorrector
    tune: AbstractTuner
    range: AbstractRange
    allocate: AbstractAllocator
    forecast: AbstractForecaster
    min_bits: int = MINIMUM_BITS
    max_bits: int = MAXIMUM_BITS
    coding: Coding = "auto"
    group_sizes: tuple[int, ...] = (32, 64, 128)
    symmetric: bool = False
    outliers: tuple[int, ...] = (0,)
    scope: Scope = "file"
    keep: tuple[str, ...] = ()
    activation_budget: float = 0.25
    speed_budget: float = 0.5

    def __post_init__(self) -> None:
        if not MINIMUM_BITS <= self.min_bits <= self.max_bits <= MAXIMUM_BITS:
            raise RecipeError(
                f"min-bits {self.min_bits} and max-bits {self.max_bits}: expected "
                f"{MINIMUM_BITS} <= min-bits <= max-bits <= {MAXIMUM_BITS}."
            )
        if not self.group_sizes or not self.outliers:
            raise RecipeError("a recipe needs at least one group size and one number of outliers (0 for none).")
        if self.coding not in get_args(Coding):
            raise RecipeError(f"coding {self.coding!r}: expected auto, entropy or fixed.")
        if not 0 <= self.activation_budget <= 1:
            raise RecipeError(f"activation-budget {self.activation_budget:g}: expected a share, 0 to 1.")
        if not self.speed_budget >= 0:
            raise RecipeError(f"speed-budget {self.speed_budget:g}: expected a share of at least 0.")
        if self.scope not in ("file", "linear"):
            raise RecipeError(f"scope {self.scope!r}: expected file or linear.")

    def formats(self, code: EntropyCode | None) -> tuple[RoundedFormat, ...]:
        """The candidates, narrowest first.

        Where codes can be stored by their entropy, in some code, such formats take the place of fixed widths up to
        their finest.

        Raises:
            RecipeError: there are no fixed widths of so few bits.
        """
        if self.coding == "fixed" or code is None:
            if self.max_bits < LEAST_FIXED_BITS:
                raise RecipeError(f"max-bits {self.max_bits}: fixed widths begin at {LEAST_FIXED_BITS}.")
            return self._fixed(max(self.min_bits, LEAST_FIXED_BITS))
        quarters = range(ENTROPY_STEPS_PER_BIT * self.min_bits, ENTROPY_STEPS_PER_BIT * self.max_bits + 1, 2)
        bits = [quarter / ENTROPY_STEPS_PER_BIT for quarter in quarters]
        entropy = [EntropyFormat(bits=width, code=code) for width in bits if width <= MOST_ENTROPY_BITS]
        return (*entropy, *self._fixed(max(self.min_bits, int(MOST_ENTROPY_BITS) + 1)))

    def idle_options(self, code: EntropyCode | None) -> tuple[str, ...]:
        """Options that were set and change little: those of fixed widths, where narrow codes have none."""
        if not any(isinstance(format, EntropyFormat) for format in self.formats(code)):
            return ()
        defaults = {field.name: field.default for field in fields(self)}
        return tuple(
            name.replace("_", "-")
            for name in ("group_sizes", "symmetric", "outliers")
            if getattr(self, name) != defaults[name]
        )

    def _fixed(self, narrowest: int) -> tuple[AffineFormat, ...]:
        return tuple(
            AffineFormat(bits=bits, group_size=group_size, symmetric=symmetric, outliers=outliers)
            for bits in range(narrowest, self.max_bits + 1)
            for group_size in (self.group_sizes if bits <= FINE_BITS else self.group_sizes[-1:])
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

        Applied in order; the recipe's own options (`min-bits=3`) last and together, for they limit one another.

        Raises:
            RecipeError: a setting names no stage or option, or its value does not fit.
        """
        recipe = self
        own: dict[str, str] = {}
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
                own[kind] = value
            else:
                raise RecipeError(f"--set {setting}: there is no stage {kind!r}. Stages: {', '.join(_STAGES)}.")
        return with_options(recipe, "the recipe", own)


_STAGES = ("guide", "measure", "round", "correct", "tune", "range", "allocate", "forecast")
_PLAIN = ("correct=none", "tune=none", "coding=fixed")
_NAMED: Mapping[str, Sequence[str]] = {
    "default": (),
    "nearest": ("guide=none", "round=nearest{search=false}", "allocate=uniform", *_PLAIN),
    "gptq": ("guide=hessian", "allocate=uniform", *_PLAIN),
    "guided-uniform": ("allocate=uniform", *_PLAIN),
    "article": ("guide=article", "allocate=article", "correct=none", "tune=none"),
}
"""Recipes by name: the default, uniform PTQ as other tools do it, uniform with end-loss guidance, and the article's."""
EFFORTS: Mapping[str, Sequence[str]] = {
    "quick": ("correct=none", "tune=none"),
    "standard": ("correct=prefix", "tune=codes"),
    "thorough": ("correct=prefix", "tune=codes{steps=768 tokens=1024}"),
}
"""How much time may be spent on rounding, as settings. The default recipe is that of the standard effort."""


def effort_settings(name: str) -> Sequence[str]:
    """The settings that an effort stands for.

    Raises:
        RecipeError: no such effort.
    """
    if name not in EFFORTS:
        raise RecipeError(f"effort {name!r}: expected {', '.join(EFFORTS)}.")
    return EFFORTS[name]


def named_recipes() -> tuple[str, ...]:
    """The names that `load_recipe` knows."""
    return tuple(_NAMED)


def load_recipe(name_or_path: str = "default") -> Recipe:
    """A recipe by name, from a TOML file, or from a report.

    Raises:
        ArtifactError: a `.json` file is no report.
        RecipeError: no such recipe, or a malformed one.
    """
    if name_or_path in _NAMED:
        return _default().with_settings(_NAMED[name_or_path])
    path = Path(name_or_path)
    if not path.is_file():
        raise RecipeError(f"{name_or_path!r} is no recipe: neither a file nor one of {', '.join(_NAMED)}.")
    try:
        if path.suffix == ".json":
            return recipe_of(read_report(path).recipe)
        return parse_recipe(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no TOML: {error}.") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def parse_recipe(toml: str) -> Recipe:
    """A recipe from TOML, the inverse of `Recipe.toml`; what it does not say is as in the default recipe.

    Raises:
        RecipeError: unknown names or wrong types.
    """
    try:
        content = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"no TOML: {error}.") from error
    return recipe_of(content)


def recipe_of(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, the inverse of `Recipe.text`; what they do not say is as in the default recipe.

    Raises:
        RecipeError: unknown names or wrong types.
    """
    hints = get_type_hints(Recipe)
    known = [field.name for field in fields(Recipe)]
    values: dict[str, Any] = {}
    for spelled, value in content.items():
        name = spelled.replace("-", "_")
        if name not in known:
            names = ", ".join(known).replace("_", "-")
            raise RecipeError(f"a recipe has no {spelled!r}. It has: {names}.")
        if name in _STAGES and isinstance(value, str):
            values[name] = parse_stage(value, name)
        else:
            values[name] = _typed(value, hints[name], spelled)
    return replace(_default(), **values)


def _typed(value: Any, wanted: Any, spelled: str) -> Any:
    """A TOML value as the field's type; TOML has no tuples."""
    arguments = get_args(wanted)
    if isinstance(value, list) and arguments and arguments[-1] is Ellipsis:
        return tuple(_typed(item, arguments[0], spelled) for item in cast("list[Any]", value))
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if value in arguments or (wanted in (bool, int, str) and type(value) is wanted):
        return value
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    listed = "a list" if arguments[-1:] == (Ellipsis,) else " or ".join(map(str, arguments))
    raise RecipeError(f"{spelled} = {value!r}: expected {kinds.get(wanted) or listed or 'the text of a stage'}.")


def _default() -> Recipe:
    defaults = {
        "guide": "fisher",
        "measure": "rounded",
        "round": "gptq",
        "correct": "prefix",
        "tune": "codes",
        "range": "guided",
        "allocate": "lagrangian",
        "forecast": "projected",
    }
    return Recipe(**{kind: build_stage(name, kind, {}) for kind, name in defaults.items()})


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return (
        str(value)
        if isinstance(value, int | float)
        else json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    )
