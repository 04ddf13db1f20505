"""What a compile is held to beyond its budget: where a gate is missed, it stops, and nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from guidedq.artifacts.diagnostic import Diagnostic
from guidedq.errors import GateError
from guidedq.report.wording import warning_text


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """The gates of a compile; by default there are none.

    Attributes:
        largest_loss_increase: That forecast and measurement may have, in the model's unit; of a nested artifact at each
            precision.
        strict: No diagnostic may warn.
    """

    largest_loss_increase: float | None = None
    strict: bool = False

    def check_increase(self, what: str, loss_increase: float, unit: str) -> None:
        """Stop if a loss increase is too large.

        Raises:
            GateError: it is.
        """
        largest = self.largest_loss_increase
        if largest is not None and loss_increase > largest:
            raise GateError(
                f"{what} loss increase {loss_increase:.4f} {unit} exceeds the gate of {largest:g}. Nothing was written."
            )

    def check_diagnostics(self, diagnostics: Sequence[Diagnostic]) -> None:
        """Stop if a diagnostic warns, where none may.

        Raises:
            GateError: one does.
        """
        warnings = [f"{check.name}: {warning_text(check)}" for check in diagnostics if check.warns]
        if self.strict and warnings:
            said = "diagnostics warn, and the compile is strict. Nothing was written."
            raise GateError("\n".join((said, *warnings)))


NO_GATES = Gates()
