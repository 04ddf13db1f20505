"""Is the data of the kind that the model knows?"""

from __future__ import annotations

from guidedq.artifacts.diagnostic import Diagnostic, at_most
from guidedq.artifacts.forecast import Measurement

MOST_EXCESS = 1.0
"""Nats: the truth is then on average less than half as likely as the model believes its guesses to be."""


def text_fit(measured: Measurement) -> Diagnostic | None:
    """By how much the original's loss on the evaluation data exceeds the entropy of its own output there.

    On data from its own distribution the two are equal. The guidance believes the output: labels are drawn from it.

    Returns:
        `None` if the output is no distribution.
    """
    if measured.entropy is None:
        return None
    return at_most(
        "text-fit",
        measured.loss_before - measured.entropy,
        MOST_EXCESS,
        meaning="nats by which the original's loss on the evaluation data exceeds the entropy of its own output",
        advice="Use data of the kind that the model was trained on; check tokenizer, preprocessing, labels.",
    )
