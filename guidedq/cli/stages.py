"""`guidedq stages`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from guidedq.cli.console import console, print_json, working
from guidedq.cli.options import JsonOption

ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
"""One entry of a docstring's section `Attributes`."""


def stages(json: JsonOption = False) -> None:
    r"""List the stages of every kind with their options, for --recipe and --set.

    \b
    guidedq stages
    guidedq compile demo --budget 3bits --set round.activation-order=true --set allocate=exact
    """
    with working():
        from guidedq.registry import KINDS, available

        found = {kind: {name: stage_facts(leaf) for name, leaf in available(kind).items()} for kind in KINDS}
    if json:
        print_json({"stages": found})
        return
    out = console()
    for kind, leaves in found.items():
        out.print(kind, style="bold")
        for name, facts in leaves.items():
            out.print(f"  {name:<12} {facts['summary']}", soft_wrap=True)
            for option in facts["options"]:
                default = f"={option['default']}" if option["default"] is not None else ""
                out.print(f"      {option['name']}{default}  {option['summary']}", soft_wrap=True, style="dim")


def stage_facts(leaf: type[Any]) -> Mapping[str, Any]:
    """The stage's first docstring line, and its options with defaults, spelled as on the command line."""
    text = inspect.getdoc(leaf) or ""
    described = {name: " ".join(words.split()) for name, words in ATTRIBUTE.findall(text.partition("Attributes:")[2])}
    return {
        "summary": text.partition("\n")[0],
        "options": [
            {
                "name": field.name.replace("_", "-"),
                "default": None if (default := _default(field)) is dataclasses.MISSING else _spelled(default),
                "summary": described.get(field.name, ""),
            }
            for field in dataclasses.fields(leaf)
        ],
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_spelled, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
