"""Stages by name: found through entry points, so that other packages can add theirs; and their text form.

A stage's text is its name and the options that differ from the default: `gptq{damping-fraction=0.02}`. It round-trips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args, get_type_hints

from guidedq.errors import RecipeError

KINDS = (
    "rewrite",
    "sample",
    "guide",
    "measure",
    "round",
    "correct",
    "tune",
    "range",
    "allocate",
    "forecast",
    "backend",
)
"""The kinds of stage, each with an entry point group `guidedq.<kind>`."""


def available(kind: str) -> Mapping[str, type[Any]]:
    """All stages of a kind by name, sorted.

    Raises:
        RecipeError: there is no such kind.
    """
    if kind not in KINDS:
        raise RecipeError(f"{kind!r} is no kind of stage. Kinds: {', '.join(KINDS)}.")
    found = {point.name: point for point in _installed(f"guidedq.{kind}")}
    return {name: found[name].load() for name in sorted(found)}


@cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    """The group's entry points; looking through all installed packages takes a while, and they stay as they are."""
    return tuple(entry_points(group=group))


def name_of(stage: Any, kind: str) -> str:
    """The name under which the stage's class is registered."""
    for name, leaf in available(kind).items():
        if isinstance(stage, leaf):
            return name
    raise RecipeError(f"{type(stage).__name__} is not registered as a stage of kind {kind!r}.")


def stage_text(stage: Any, kind: str) -> str:
    """The stage as text: its name, and in braces the options that differ from the defaults."""
    words: list[str] = []
    for field in dataclasses.fields(stage):
        value = getattr(stage, field.name)
        default = field.default if field.default is not dataclasses.MISSING else None
        if value != default:
            words.append(f"{field.name.replace('_', '-')}={_spell(value)}")
    name = name_of(stage, kind)
    return f"{name}{{{' '.join(words)}}}" if words else name


def parse_stage(text: str, kind: str) -> Any:
    """Build a stage from its text, the inverse of `stage_text`.

    Raises:
        RecipeError: unknown name or option, or a value of the wrong type.
    """
    name, brace, rest = text.strip().partition("{")
    if brace and not rest.endswith("}"):
        raise RecipeError(f"{text!r}: the closing brace is missing.")
    words = (word.partition("=") for word in rest[:-1].split())
    return build_stage(name, kind, {option: value for option, _, value in words})


def build_stage(name: str, kind: str, options: Mapping[str, str]) -> Any:
    """Build a stage from its name and spelled options.

    Raises:
        RecipeError: unknown name or option, or a value of the wrong type.
    """
    stages = available(kind)
    if name not in stages:
        raise RecipeError(f"{name!r} is no {kind} stage. There are: {', '.join(stages) or 'none'}.")
    return with_options(stages[name](), name, options)


def with_options(stage: Any, name: str, options: Mapping[str, str]) -> Any:
    """The stage with some options set from text.

    Raises:
        RecipeError: unknown option, or a value of the wrong type.
    """
    types = get_type_hints(type(stage))
    known = [field.name for field in dataclasses.fields(stage)]
    values: dict[str, Any] = {}
    for option, spelled in options.items():
        field = option.replace("-", "_")
        if field not in known:
            spellings = ", ".join(name.replace("_", "-") for name in known) or "none"
            raise RecipeError(f"{name} has no option {option!r}. Its options: {spellings}.")
        values[field] = _read(spelled, types[field], f"{name}.{option}")
    return dataclasses.replace(stage, **values)


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_spell(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(spelled: str, wanted: Any, where: str) -> Any:
    arguments = get_args(wanted)
    try:
        if wanted is bool:
            return {"true": True, "false": False}[spelled.lower()]
        if wanted in (int, float, str):
            return wanted(spelled)
        if arguments and arguments[-1] is Ellipsis:
            return tuple(_read(item, arguments[0], where) for item in spelled.split(",") if item)
        if spelled in arguments:
            return spelled
    except (ValueError, KeyError) as error:
        raise RecipeError(f"{where}={spelled}: expected {getattr(wanted, '__name__', wanted)}.") from error
    raise RecipeError(f"{where}={spelled}: expected {' or '.join(map(str, arguments)) or wanted}.")
