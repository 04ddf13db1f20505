"""A diagnostic: one named check of what a compile rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

Bound = Literal["at most", "at least"]
Verdict = Literal["fine", "warning"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """A number beside what it should be, and what to do where it is not.

    Attributes:
        name: Stays the same between versions.
        meaning: What the number is, in some words.
        number: What was found.
        bound: On which side of the threshold a number is fine.
        threshold: Itself fine.
        verdict: `fine`, or a `warning`.
        advice: What to do about a warning.
    """

    name: str
    meaning: str
    number: float
    bound: Bound
    threshold: float
    verdict: Verdict
    advice: str

    @property
    def warns(self) -> bool:
        """Whether it is a warning."""
        return self.verdict == "warning"


def at_most(name: str, number: float, threshold: float, *, meaning: str, advice: str) -> Diagnostic:
    """A check that warns of numbers above the threshold, and of what is no number."""
    return _checked(name, number, "at most", threshold, number <= threshold, meaning, advice)


def at_least(name: str, number: float, threshold: float, *, meaning: str, advice: str) -> Diagnostic:
    """A check that warns of numbers below the threshold, and of what is no number."""
    return _checked(name, number, "at least", threshold, number >= threshold, meaning, advice)


def _checked(
    name: str, number: float, bound: Bound, threshold: float, holds: bool, meaning: str, advice: str
) -> Diagnostic:
    return Diagnostic(
        name=name,
        meaning=meaning,
        number=number,
        bound=bound,
        threshold=threshold,
        verdict="fine" if holds else "warning",
        advice=advice,
    )
