"""Text for language models: one stream of tokens, cut into sequences without padding and without overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.model import Model
from guidedq.progress import Progress

from .split import HELD_BACK, Sizes
from .text_inputs import from_tokens, longest_sequence, token_spec

SHORTEST_SEQUENCE = 16
"""Tokens: in shorter sequences hardly any position has the context that the model was trained with."""
DOCUMENTS_AT_ONCE = 256
"""Documents tokenized in one call: enough for the tokenizer's threads, few enough to report progress."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Documents one after another.

    Attributes:
        tokens: `[token]`.
        starts: Where each document begins, ascending.
    """

    tokens: Int64[Tensor, "token"]
    starts: tuple[int, ...]


def pack(model: Model, documents: Sequence[str], sizes: Sizes, *, seed: int, progress: Progress) -> list[SampleSet]:
    """Calibration, probe and evaluation sequences from one text, of which a tenth (the end) is held back.

    Raises:
        CalibrationError: the text is shorter than one sequence, or three sequences of 16 tokens do not fit.
    """
    stream = tokenize(model, documents)
    payload = _payload(model, len(stream.tokens), 3, sizes, progress)
    cut = _cut(stream, payload)
    pool, tail = stream.tokens[:cut], stream.tokens[cut:]
    return [*_two_parts(model, pool, payload, sizes, seed), _one_part(model, tail, payload, sizes.evaluation, seed)]


def pack_two(model: Model, documents: Sequence[str], sizes: Sizes, *, seed: int, progress: Progress) -> list[SampleSet]:
    """Calibration and probe sequences, where the evaluation text is another.

    Raises:
        CalibrationError: the text is shorter than one sequence, or two sequences of 16 tokens do not fit.
    """
    tokens = tokenize(model, documents).tokens
    return _two_parts(model, tokens, _payload(model, len(tokens), 2, sizes, progress), sizes, seed)


def pack_evaluation(
    model: Model, documents: Sequence[str], sizes: Sizes, *, seed: int, progress: Progress
) -> SampleSet:
    """Evaluation sequences from a text of its own.

    Raises:
        CalibrationError: the text is shorter than one sequence.
    """
    tokens = tokenize(model, documents).tokens
    return _one_part(model, tokens, _payload(model, len(tokens), 1, sizes, progress), sizes.evaluation, seed)


def tokenize(model: Model, documents: Sequence[str]) -> Stream:
    """All documents as one stream, each led by the token that begins a text, else by the one that ends it."""
    separator = _separator(model)
    lead = [] if separator is None else [separator]
    tokens: list[int] = []
    starts: list[int] = []
    for first in range(0, len(documents), DOCUMENTS_AT_ONCE):
        part = list(documents[first : first + DOCUMENTS_AT_ONCE])
        for ids in model.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]:
            starts.append(len(tokens))
            tokens += [*lead, *ids]
    return Stream(tokens=torch.tensor(tokens, dtype=torch.int64), starts=tuple(starts))


def first_token(model: Model) -> int | None:
    """The token with which every sequence begins, if the model has one."""
    return getattr(model.tokenizer, "bos_token_id", None)


def _separator(model: Model) -> int | None:
    begin = first_token(model)
    return begin if begin is not None else getattr(model.tokenizer, "eos_token_id", None)


def _payload(model: Model, available: int, parts: int, sizes: Sizes, progress: Progress) -> int:
    """Text tokens in a sequence, shortened so that `parts` sequences fit."""
    length = longest_sequence(model, sizes.sequence_length)
    lead = int(first_token(model) is not None)
    payload = max(length - lead, 1)
    shorter = available // parts + lead
    spec = token_spec(model)
    fixed = spec is not None and spec.shape[1] is not None
    if available >= parts * payload:
        return payload
    if available < payload or fixed or shorter < SHORTEST_SEQUENCE:
        advice = f", or lower --sequence-length to {shorter}" if shorter >= SHORTEST_SEQUENCE and not fixed else ""
        what = "shorter than one sequence" if available < payload else f"too short for {parts} sequences"
        raise CalibrationError(
            f"the text is {what}: it has {available} tokens; {parts} sequences of {length} need {parts * payload}. "
            f"Give more text{advice}."
        )
    progress.notice(f"the text has only {available} tokens: sequences are shortened from {length} to {shorter} tokens.")
    return shorter - lead


def _cut(stream: Stream, payload: int) -> int:
    """Where the held-back end begins: at a document's start, if one is near."""
    total = len(stream.tokens)
    held = max(total // HELD_BACK, payload)
    cut = total - held
    near = [
        start
        for start in stream.starts
        if abs(start - cut) <= held // 2 and start >= 2 * payload and total - start >= payload
    ]
    return min(near, key=lambda start: abs(start - cut), default=cut)


def _two_parts(model: Model, tokens: Tensor, payload: int, sizes: Sizes, seed: int) -> list[SampleSet]:
    calibration, probe = sizes.shared_out(len(tokens) // payload)
    sequences = _sequences(model, tokens, payload, calibration + probe, seed)
    return [from_tokens(model, sequences[:calibration]), from_tokens(model, sequences[calibration:])]


def _one_part(model: Model, tokens: Tensor, payload: int, count: int, seed: int) -> SampleSet:
    return from_tokens(model, _sequences(model, tokens, payload, count, seed))


def _sequences(model: Model, tokens: Tensor, payload: int, count: int, seed: int) -> Int64[Tensor, "sequence token"]:
    """Up to `count` sequences at random places that do not overlap."""
    generator = torch.Generator().manual_seed(seed)
    slots = len(tokens) // payload
    phase = int(torch.randint(len(tokens) - slots * payload + 1, (), generator=generator))
    chosen = torch.randperm(slots, generator=generator)[:count]
    text = tokens[phase : phase + slots * payload].reshape(slots, payload)[chosen]
    begin = first_token(model)
    return text if begin is None else torch.cat((torch.full((len(text), 1), begin), text), dim=1)
