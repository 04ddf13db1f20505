"""Rules by which each decoded token gets its precision, by its place in the text or by what the model says of itself.

A rule sees what is known when a token is about to be read: its number since the prompt, the token itself, and the
logits that the model gave before it. So it can be followed token by token, and over a whole text at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from guidedq.errors import ScheduleError

SIGNALS = ("entropy", "margin", "impurity")


class AbstractRule(ABC):
    """Says at how many bits each token is read."""

    @property
    @abstractmethod
    def bits_used(self) -> tuple[int, ...]:
        """Every precision that it may ask for."""

    @property
    @abstractmethod
    def needs_logits(self) -> bool:
        """Whether it asks what the model said before the token."""

    @abstractmethod
    def bits(
        self, steps: Int64[Tensor, "*n"], tokens: Int64[Tensor, "*n"], signals: Float[Tensor, "*n"] | None
    ) -> Int64[Tensor, "*n"]:
        """The precision of each token.

        Args:
            steps: Tokens since the prompt, from 0.
            tokens: The tokens themselves.
            signals: What `signal_of` makes of the logits before them, NaN where there were none.
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantRule(AbstractRule):
    """The same bits for all tokens; a fraction takes two neighbouring widths in turn, spread as evenly as can be.

    Attributes:
        low: The narrower width.
        high: The wider one.
        share: Of the tokens that are read at `high`.
    """

    low: int
    high: int
    share: float

    @property
    def bits_used(self) -> tuple[int, ...]:
        """One width, or two."""
        return (self.low, self.high) if 0 < self.share < 1 else (self.high if self.share else self.low,)

    @property
    def needs_logits(self) -> bool:
        """No."""
        return False

    def bits(self, steps: Tensor, tokens: Tensor, signals: Tensor | None) -> Tensor:
        """By Bresenham's line: `high` where the running share passes a whole number."""
        passed = torch.floor((steps + 1) * self.share + 1e-9) > torch.floor(steps * self.share + 1e-9)
        return torch.where(passed, self.high, self.low)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepRule(AbstractRule):
    """Bits that change at certain tokens.

    Attributes:
        parts: First token, and bits from there on; rising from token 0.
    """

    parts: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.parts]
        if not starts or starts[0] != 0 or any(later <= start for start, later in pairwise(starts)):
            raise ScheduleError(f"steps begin at tokens {starts}: expected 0 first, then rising, as in decode=4,3@32.")

    @property
    def bits_used(self) -> tuple[int, ...]:
        """Of all parts."""
        return tuple(sorted({bits for _, bits in self.parts}))

    @property
    def needs_logits(self) -> bool:
        """No."""
        return False

    def bits(self, steps: Tensor, tokens: Tensor, signals: Tensor | None) -> Tensor:
        """Of the last part that has begun."""
        found = torch.full_like(steps, self.parts[0][1])
        for start, bits in self.parts[1:]:
            found[steps >= start] = bits
        return found


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRule(AbstractRule):
    """Bits that fall (or rise) with the tokens, each time to the nearest width.

    Attributes:
        first: At token 0.
        last: From token `tokens` on.
        tokens: Over how many.
        widths: Those of the model, rising.
    """

    first: int
    last: int
    tokens: int
    widths: tuple[int, ...]

    @property
    def bits_used(self) -> tuple[int, ...]:
        """All widths between the ends."""
        low, high = min(self.first, self.last), max(self.first, self.last)
        return tuple(sorted({self.first, self.last, *(width for width in self.widths if low <= width <= high)}))

    @property
    def needs_logits(self) -> bool:
        """No."""
        return False

    def bits(self, steps: Tensor, tokens: Tensor, signals: Tensor | None) -> Tensor:
        """The width nearest to the line."""
        line = self.first + (self.last - self.first) * (steps / max(self.tokens, 1)).clamp(max=1.0)
        widths = torch.tensor(self.widths, device=steps.device)
        return widths[(line[..., None] - widths).abs().argmin(-1)]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LossRule(AbstractRule):
    """Bits by what they are expected to save: for each class of tokens and each range of a signal.

    Attributes:
        signal: `entropy`, `margin` or `impurity` of the last logits; empty where only the token counts.
        edges: Between the ranges of the signal, rising.
        table: Bits of each class in each range; the last range also where there were no logits.
        classes: The class of every token of the vocabulary; empty where there is one class.
    """

    signal: str
    edges: tuple[float, ...]
    table: tuple[tuple[int, ...], ...]
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.signal not in ("", *SIGNALS):
            raise ScheduleError(f"signal {self.signal!r}: expected {', '.join(SIGNALS)}.")
        if any(not low < high for low, high in pairwise(self.edges)):
            raise ScheduleError(f"thresholds {list(self.edges)}: expected rising numbers.")
        if not self.table or any(len(row) != len(self.edges) + 1 for row in self.table):
            raise ScheduleError(
                f"{len(self.edges)} thresholds part {len(self.edges) + 1} ranges; the table has others."
            )
        if any(not 0 <= number < len(self.table) for number in self.classes):
            raise ScheduleError(f"tokens have classes beyond the table's {len(self.table)}.")

    @property
    def bits_used(self) -> tuple[int, ...]:
        """Of all cells."""
        return tuple(sorted({bits for row in self.table for bits in row}))

    @property
    def needs_logits(self) -> bool:
        """If there is a signal."""
        return bool(self.signal)

    def bits(self, steps: Tensor, tokens: Tensor, signals: Tensor | None) -> Tensor:
        """Of each token's cell."""
        table = torch.tensor(self.table, device=steps.device)
        return table[self.class_of(tokens), self.range_of(tokens, signals)]

    def class_of(self, tokens: Tensor) -> Tensor:
        """The class of each token.

        Raises:
            ScheduleError: a token lies beyond the vocabulary that the schedule was made for.
        """
        if not self.classes:
            return torch.zeros_like(tokens)
        if int(tokens.max()) >= len(self.classes):
            raise ScheduleError(
                f"token {int(tokens.max())} is beyond the schedule's {len(self.classes)}. It is another model's."
            )
        return torch.tensor(self.classes, device=tokens.device)[tokens]

    def range_of(self, tokens: Tensor, signals: Tensor | None) -> Tensor:
        """The range in which each token's signal lies."""
        if not self.signal or signals is None:
            return torch.full_like(tokens, len(self.edges))
        found = torch.bucketize(signals, torch.tensor(self.edges, device=signals.device), right=True)
        return torch.where(signals.isnan(), len(self.edges), found)


def constant_rule(average: float, widths: Sequence[int]) -> ConstantRule:
    """The constant of an average: one width, or the two beside it in turn.

    Raises:
        ScheduleError: it lies beyond the widths.
    """
    if not widths[0] <= average <= widths[-1]:
        raise ScheduleError(f"{average:g} bits lie beyond the model's widths, {widths[0]} to {widths[-1]}.")
    high = next(width for width in widths if width >= average)
    low = max((width for width in widths if width < high), default=high)
    share = (average - low) / (high - low) if high > low else 1.0
    return ConstantRule(low=low, high=high, share=share)


def signal_of(name: str, logits: Float[Tensor, "*n vocabulary"]) -> Float[Tensor, "*n"]:
    """How unsure logits are: entropy in nats, one less the margin of the two likeliest tokens, or Gini impurity.

    The impurity, `1 - sum of p^2`, is the trace of the Fisher matrix of the logits: half of it times the variance of
    the logits' error is the divergence to second order, so of these it is the one that the guidance would take.
    """
    if name == "margin":
        top = torch.softmax(logits.float(), -1).topk(2, dim=-1).values
        return 1.0 - (top[..., 0] - top[..., 1])
    logarithms = torch.log_softmax(logits.float(), -1)
    if name == "entropy":
        return -(logarithms.exp() * logarithms).sum(-1)
    return 1.0 - (2.0 * logarithms).exp().sum(-1)
