"""Budgets: what the user asks for, in bits, bytes or loss, and what that means in bytes or in loss."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, final

from guidedq.errors import BudgetError

BYTES_PER_UNIT = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
EXPECTED = (
    "Expected bits per weight, such as 3.5bits, bytes, such as 120MB, or what may be lost: +0.02nats of loss, "
    "1.02x the perplexity, -0.5% of accuracy, or, where the output is no distribution, +0.01error"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A size that is asked for, or a loss that may not be exceeded.

    Attributes:
        text: As the user wrote it.
        kind: Bits per parameter, bytes; increase of the loss, ratio of perplexities, fall of the accuracy; of an output
            that is no distribution its error, half the squared error over the squared output, as the report has it.
        amount: In that unit; of accuracy as a share, `-0.5%` (half a point) is 0.005.
    """

    text: str
    kind: Literal["bits", "bytes", "nats", "perplexity", "accuracy", "error"]
    amount: float

    @property
    def bounds_loss(self) -> bool:
        """Whether it bounds a loss and leaves the size open."""
        return self.kind not in ("bits", "bytes")

    def limit_bytes(self, parameters: int) -> int:
        """The most bytes that the weights may take, rounded down; of a budget for size alone."""
        return int(self.amount) if self.kind == "bytes" else int(self.amount * parameters / 8)

    @property
    def largest_change(self) -> float:
        """By how much the loss may rise, or the accuracy fall; of a budget for loss alone."""
        return math.log(self.amount) if self.kind == "perplexity" else self.amount


def parse_budget(text: str) -> Budget:
    """Read `3.5bits`, `3.5` (bits), `120MB` / `120MiB`, or a loss.

    Losses are `+0.02nats`, `1.02x` (perplexity), `-0.5%` (accuracy) or `+0.01error` (of what is no distribution).

    Raises:
        BudgetError: `text` is none of these, or allows nothing.
    """
    cleaned = text.strip().lower().replace(" ", "").replace("\N{MINUS SIGN}", "-")
    if match := re.fullmatch(_NUMBER + r"(?:bits?|bpw)?", cleaned):
        budget = Budget(text=text, kind="bits", amount=float(match[1]))
    elif match := re.fullmatch(_NUMBER + r"([kmg]i?b|b)", cleaned):
        budget = Budget(text=text, kind="bytes", amount=float(match[1]) * BYTES_PER_UNIT[match[2]])
    elif match := re.fullmatch(r"\+" + _NUMBER + "nats?", cleaned):
        budget = Budget(text=text, kind="nats", amount=float(match[1]))
    elif match := re.fullmatch(r"\+" + _NUMBER + "error", cleaned):
        budget = Budget(text=text, kind="error", amount=float(match[1]))
    elif match := re.fullmatch(_NUMBER + "x", cleaned):
        budget = Budget(text=text, kind="perplexity", amount=float(match[1]))
        if budget.amount <= 1:
            raise BudgetError(f"{text!r} is no budget: a ratio of perplexities must be above 1, such as 1.02x.")
    elif match := re.fullmatch("-" + _NUMBER + "%", cleaned):
        budget = Budget(text=text, kind="accuracy", amount=float(match[1]) / 100)
    else:
        raise BudgetError(f"{text!r} is no budget. {EXPECTED}.")
    if budget.amount <= 0:
        raise BudgetError(f"{text!r} is no budget: it must be above zero.")
    return budget
