"""Was the model trained so long that every bit holds something?"""

from __future__ import annotations

from guidedq.artifacts.diagnostic import Diagnostic, at_most

MOST_TOKENS = 1000.0
"""Tokens per parameter. What post-training quantization costs grows with them as a power (Kumar et al. 2024, arXiv
2411.04330); a compute-optimal model has 20, Llama 2 7B some 290, Llama 3 8B, known to lose more, some 1,900."""


def over_training(training_tokens: float | None, parameters: int) -> Diagnostic | None:
    """Tokens that the model was trained on, per parameter; `None` if they are not known."""
    if training_tokens is None:
        return None
    return at_most(
        "over-training",
        training_tokens / parameters,
        MOST_TOKENS,
        meaning="tokens that the model was trained on, per parameter",
        advice="Expect more loss at few bits than from other models of this size: choose the budget by the curve.",
    )
