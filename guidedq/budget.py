"""Budgets: what the user asks for, in bits, bytes or loss, and what that means in bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, final

from guidedq.errors import BudgetError

BYTES_PER_UNIT = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A size that is asked for.

    Attributes:
        text: As the user wrote it.
        kind: Bits per parameter, or bytes.
        amount: In that unit.
    """

    text: str
    kind: Literal["bits", "bytes"]
    amount: float

    def limit_bytes(self, parameters: int) -> int:
        """The most bytes that the weights may take, rounded down."""
        return int(self.amount) if self.kind == "bytes" else int(self.amount * parameters / 8)


def parse_budget(text: str) -> Budget:
    """Read `3.5bits`, `3.5` (bits) or `120MB` / `120MiB`.

    Raises:
        BudgetError: `text` is none of these, or not positive.
    """
    cleaned = text.strip().lower().replace(" ", "")
    if match := re.fullmatch(_NUMBER + r"(?:bits?|bpw)?", cleaned):
        budget = Budget(text=text, kind="bits", amount=float(match[1]))
    elif match := re.fullmatch(_NUMBER + r"([kmg]i?b|b)", cleaned):
        budget = Budget(text=text, kind="bytes", amount=float(match[1]) * BYTES_PER_UNIT[match[2]])
    else:
        raise BudgetError(f"{text!r} is no budget. Expected bits per weight, such as 3.5bits, or bytes, such as 120MB.")
    if budget.amount <= 0:
        raise BudgetError(f"{text!r} is no budget: it must be above zero.")
    return budget
