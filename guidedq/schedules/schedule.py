"""A schedule: the prompt's precision and a rule for the tokens after it; its text, and its file in an artifact."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from guidedq.errors import FormatError, ScheduleError
from guidedq.schedules.rules import (
    SIGNALS,
    AbstractRule,
    ConstantRule,
    LinearRule,
    LossRule,
    StepRule,
    constant_rule,
)

SCHEDULE_NAME = "schedule.toml"
SCHEDULE_VERSION = 1
EXPECTED = (
    "Expected 4 or 3.5 (constant), prefill=5,decode=4,3@32 (3 from token 32 on), linear=5..3@256, "
    "entropy=3<0.8<4 (also margin, impurity), or a file"
)
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """At how many bits a prompt is read, and every token after it.

    Attributes:
        prefill: Bits of the prompt.
        rule: Of the tokens after it.
    """

    prefill: int
    rule: AbstractRule

    def check(self, widths: Sequence[int]) -> None:
        """See that a model has every precision.

        Raises:
            ScheduleError: it lacks one.
        """
        if lacking := sorted({self.prefill, *self.rule.bits_used} - set(widths)):
            raise ScheduleError(
                f"the schedule asks for {', '.join(map(str, lacking))} bits; the model has "
                f"{', '.join(map(str, widths))}."
            )


def parse_schedule(text: str, widths: Sequence[int]) -> Schedule:
    """Read a schedule as a user writes it, for a model of these widths.

    Raises:
        ScheduleError: it is none, or asks for other precisions.
    """
    parts = [part.strip() for part in text.split(",")]
    prefill = widths[-1]
    if match := re.fullmatch(r"prefill=([0-9]+)", parts[0]):
        prefill, parts = int(match[1]), parts[1:]
    schedule = Schedule(prefill=prefill, rule=_rule(parts, text, widths))
    schedule.check(widths)
    return schedule


def _rule(parts: Sequence[str], text: str, widths: Sequence[int]) -> AbstractRule:
    first = parts[0] if parts else ""
    if match := re.fullmatch(r"decode=([0-9]+)", first):
        later = [re.fullmatch(r"([0-9]+)@([0-9]+)", part) for part in parts[1:]]
        found = [(int(step[2]), int(step[1])) for step in later if step is not None]
        if len(found) == len(later):
            return StepRule(parts=((0, int(match[1])), *found))
    elif len(parts) == 1 and (match := re.fullmatch(rf"(?:constant=)?({_NUMBER})(?:bits?)?", first)):
        return constant_rule(float(match[1]), widths)
    elif len(parts) == 1 and (match := re.fullmatch(r"linear=([0-9]+)\.\.([0-9]+)@([0-9]+)", first)):
        return LinearRule(first=int(match[1]), last=int(match[2]), tokens=int(match[3]), widths=tuple(widths))
    elif len(parts) == 1 and (match := re.fullmatch(rf"({'|'.join(SIGNALS)})=([0-9]+(?:<{_NUMBER}<[0-9]+)*)", first)):
        numbers = match[2].split("<")
        edges, bits = tuple(map(float, numbers[1::2])), tuple(map(int, numbers[::2]))
        return LossRule(signal=match[1], edges=edges, table=(bits,))
    raise ScheduleError(f"{text!r} is no schedule. {EXPECTED}.")


def schedule_text(schedule: Schedule) -> str:
    """The schedule as a user would write it, if its rule has such a spelling; else what it is, in words."""
    rule, prefill = schedule.rule, f"prefill={schedule.prefill},"
    if isinstance(rule, ConstantRule):
        return f"{prefill}constant={rule.low + rule.share * (rule.high - rule.low):g}"
    if isinstance(rule, StepRule):
        later = "".join(f",{bits}@{start}" for start, bits in rule.parts[1:])
        return f"{prefill}decode={rule.parts[0][1]}{later}"
    if isinstance(rule, LinearRule):
        return f"{prefill}linear={rule.first}..{rule.last}@{rule.tokens}"
    assert isinstance(rule, LossRule)
    row, *others = rule.table
    if others:
        return f"{prefill}{len(rule.table)} classes of tokens" + (f" by {rule.signal}" if rule.signal else "")
    first, *later = row
    steps = "".join(f"<{edge:.6g}<{bits}" for edge, bits in zip(rule.edges, later, strict=True))
    return f"{prefill}{rule.signal or 'token'}={first}{steps}"


def schedule_toml(schedule: Schedule, weights_digest: str, facts: Mapping[str, float]) -> str:
    """The file `schedule.toml`.

    Args:
        schedule: What it holds.
        weights_digest: SHA-256 of the weights file that it was made for.
        facts: Numbers for people: average bits, predicted divergence.
    """
    lines = [f"version = {SCHEDULE_VERSION}", f'weights = "{weights_digest}"', f"prefill = {schedule.prefill}"]
    rule = schedule.rule
    if isinstance(rule, LossRule):
        lines += [
            f'signal = "{rule.signal}"',
            f"edges = {json.dumps(list(rule.edges))}",
            f"table = {json.dumps([list(row) for row in rule.table])}",
            f"classes = {json.dumps(list(rule.classes))}",
        ]
    else:
        lines.append(f'rule = "{schedule_text(replace(schedule)).partition(",")[2]}"')
    return "\n".join([*lines, "", "[facts]", *(f"{name} = {value!r}" for name, value in facts.items())]) + "\n"


def read_schedule(path: Path, widths: Sequence[int], weights_digest: str) -> Schedule:
    """Read `schedule.toml`.

    Args:
        path: The file.
        widths: Of the model that is to follow it.
        weights_digest: SHA-256 of that model's weights file.

    Raises:
        ScheduleError: it is damaged, of a newer version, another artifact's, or asks for precisions that it lacks.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScheduleError(f"{path} is no schedule: {error}. {EXPECTED}.") from error
    version = content.get("version")
    if type(version) is int and version > SCHEDULE_VERSION:
        raise ScheduleError(f"{path} has version {version}; this guidedq reads up to {SCHEDULE_VERSION}.")
    if content.get("weights") != weights_digest:
        raise ScheduleError(f"{path} was made for other weights. Run guidedq schedule on this artifact.")
    try:
        if "rule" in content:
            return parse_schedule(f"prefill={content['prefill']},{content['rule']}", widths)
        rule = LossRule(
            signal=str(content["signal"]),
            edges=tuple(map(float, content["edges"])),
            table=tuple(tuple(map(int, row)) for row in content["table"]),
            classes=tuple(map(int, content["classes"])),
        )
        schedule = Schedule(prefill=int(content["prefill"]), rule=rule)
    except (KeyError, TypeError, ValueError, FormatError) as error:
        raise ScheduleError(f"{path} is damaged: {error}. Run guidedq schedule anew.") from error
    schedule.check(widths)
    return schedule
