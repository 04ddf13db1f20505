"""What else the bytes could be spent on: half a bit more or less, or another size in the same file."""

from __future__ import annotations

from contextlib import suppress

from guidedq.errors import LawError
from guidedq.law.prediction import Prediction, foretell
from guidedq.law.record import Law
from guidedq.law.training import FITTED, LEAST_MODELS, LEAST_SIZES, LEAST_TOKEN_COUNTS

HALF = (-0.5, 0.0, 0.5)
"""Steps in bits per weight at the same size."""
TRADED_BITS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Steps in bits per weight of the models that are compared at equal bytes."""


def same_size(law: Law, allocation: str, asked: Prediction) -> tuple[Prediction, ...]:
    """The asked model with half a bit less, as it is, and with half a bit more; without what no law tells."""
    found: list[Prediction] = []
    for bits in (asked.bits + step for step in HALF):
        with suppress(LawError):  # no bits left, or as many as the model was trained in
            found.append(foretell(law, allocation, asked.parameters, asked.tokens, bits))
    return tuple(found)


def same_bytes(law: Law, allocation: str, asked: Prediction) -> tuple[Prediction, ...]:
    """Models of the same bytes as the one that was asked for, with fewer bits and more parameters and the reverse.

    Trained on the same tokens.

    Raises:
        LawError: the laws know nothing of other sizes; the message says why.
    """
    if problem := sizes_problem(law):
        raise LawError(problem)
    found: list[Prediction] = []
    for step in TRADED_BITS:
        bits = asked.bits + step
        if step == 0.0:
            found.append(asked)
        elif bits > 0:
            with suppress(LawError):
                found.append(foretell(law, allocation, asked.parameters * asked.bits / bits, asked.tokens, bits))
    if len(found) < 2:
        raise LawError(f"the laws of {allocation} quantization do not tell what other sizes lose.")
    return tuple(found)


def sizes_problem(law: Law) -> str:
    """Why it is not known which size, trained alike, loses as much as another; empty where it is."""
    if law.training is None:
        return law.training_problem
    if law.training.source == FITTED:
        return ""
    sizes, counts = ({getattr(model, name) for model in law.models} for name in ("parameters", "tokens"))
    return (
        f"what other sizes lose before they are quantized takes {LEAST_MODELS} models of {LEAST_SIZES} sizes and "
        f"{LEAST_TOKEN_COUNTS} token counts at least; this law was fitted to {len(law.models)} of {len(sizes)} and "
        f"{len(counts)}."
    )
