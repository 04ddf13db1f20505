"""Text for language models: one stream of tokens, cut into sequences without padding and without overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.model import Model
from guidedq.progress import Progress

from .apart import Spans, document_numbers, parted
from .split import HELD_BACK, Sizes
from .text_inputs import from_tokens, longest_sequence, token_spec

SHORTEST_SEQUENCE = 16
"""Tokens: in shorter sequences hardly any position has the context that the model was trained with."""
DOCUMENTS_AT_ONCE = 256
"""Documents tokenized in one call: enough for the tokenizer's threads, few enough to report progress."""


def pack(model: Model, documents: Sequence[str], sizes: Sizes, *, seed: int, progress: Progress) -> list[SampleSet]:
    """Calibration, tuning, probe and evaluation sequences from one text, of which one sequence in ten is held back.

    These are spread evenly over the text. Its last tenth would be of another kind more often than not, and what is
    measured on it would not be what was forecast.

    Raises:
        CalibrationError: the text is shorter than one sequence, or three sequences of 16 tokens do not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    text, spans = _sequences(model, documents, 3, sizes, generator, progress)
    held = _spread(len(text), generator)
    rest = torch.ones(len(text), dtype=torch.bool).index_fill_(0, held, value=False).nonzero()[:, 0]
    evaluation = _drawn(held, generator)[: sizes.evaluation]
    parts = parted(spans, _drawn(rest, generator), evaluation, sizes)
    return [from_tokens(model, text[part]) for part in (*parts, evaluation)]


def pack_two(model: Model, documents: Sequence[str], sizes: Sizes, *, seed: int, progress: Progress) -> list[SampleSet]:
    """Calibration, tuning and probe sequences, where the evaluation text is another.

    Raises:
        CalibrationError: the text is shorter than one sequence, or two sequences of 16 tokens do not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    text, spans = _sequences(model, documents, 2, sizes, generator, progress)
    drawn = _drawn(torch.arange(len(text)), generator)
    return [from_tokens(model, text[part]) for part in parted(spans, drawn, drawn[:0], sizes)]


def pack_evaluation(
    model: Model, documents: Sequence[str], sizes: Sizes, *, seed: int, progress: Progress
) -> SampleSet:
    """Evaluation sequences from a text of its own.

    Raises:
        CalibrationError: the text is shorter than one sequence.
    """
    generator = torch.Generator().manual_seed(seed)
    text, _ = _sequences(model, documents, 1, sizes, generator, progress)
    return from_tokens(model, text[_drawn(torch.arange(len(text)), generator)[: sizes.evaluation]])


def tokenize(model: Model, documents: Sequence[str]) -> list[list[int]]:
    """Each document's tokens, led by the token that begins a text, else by the one that ends it."""
    separator = _separator(model)
    lead = [] if separator is None else [separator]
    found: list[list[int]] = []
    for first in range(0, len(documents), DOCUMENTS_AT_ONCE):
        part = list(documents[first : first + DOCUMENTS_AT_ONCE])
        found += [[*lead, *ids] for ids in model.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]]
    return found


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


def _spread(count: int, generator: torch.Generator) -> Int64[Tensor, "held"]:
    """A tenth of so many sequences, at least one, at equal distances from a random start."""
    held = max(1, count // HELD_BACK)
    start = torch.rand((), generator=generator, dtype=torch.float64)
    return ((torch.arange(held) + start) * (count / held)).long()


def _drawn(indices: Int64[Tensor, "n"], generator: torch.Generator) -> Int64[Tensor, "n"]:
    return indices[torch.randperm(len(indices), generator=generator)]


def _sequences(
    model: Model,
    documents: Sequence[str],
    parts: int,
    sizes: Sizes,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[Int64[Tensor, "sequence token"], Spans]:
    """The text in sequences without overlap, from a random place on, each led by the first token if there is one.

    Raises:
        CalibrationError: so many `parts` of at least one sequence do not fit.
    """
    tokenized = tokenize(model, documents)
    tokens = torch.tensor([token for document in tokenized for token in document], dtype=torch.int64)
    payload = _payload(model, len(tokens), parts, sizes, progress)
    slots = len(tokens) // payload
    phase = int(torch.randint(len(tokens) - slots * payload + 1, (), generator=generator))
    both = torch.stack((tokens, document_numbers([len(document) for document in tokenized])))
    text, numbers = both[:, phase : phase + slots * payload].reshape(2, slots, payload)
    begin = first_token(model)
    led = text if begin is None else torch.cat((torch.full((slots, 1), begin), text), dim=1)
    return led, Spans(first=numbers[:, 0], last=numbers[:, -1])
