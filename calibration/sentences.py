"""Text for encoders: one sample a line, padded to the longest and masked."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.model import Model

from .split import HELD_BACK, Sizes, shuffled
from .text_inputs import from_tokens, longest_sequence, token_spec


def split_lines(model: Model, lines: Sequence[str], sizes: Sizes, *, seed: int) -> list[SampleSet]:
    """Calibration, tuning, probe and evaluation samples; a tenth of the lines is held back for the last.

    Raises:
        CalibrationError: there are fewer than three lines.
    """
    _need(lines, 3)
    order = shuffled(len(lines), seed)
    held = max(1, len(lines) // HELD_BACK)
    rest = [lines[index] for index in order[held:]]
    evaluation = [lines[index] for index in order[:held]][: sizes.evaluation]
    return [*split_two(model, rest, sizes, seed=seed), encode(model, evaluation, sizes)]


def split_two(model: Model, lines: Sequence[str], sizes: Sizes, *, seed: int) -> list[SampleSet]:
    """Calibration, tuning and probe samples.

    Raises:
        CalibrationError: there are fewer than two lines.
    """
    _need(lines, 2)
    order = shuffled(len(lines), seed)
    parts = sizes.shared_out(len(lines))
    return [encode(model, [lines[order[index]] for index in part], sizes) for part in parts]


def pick_lines(model: Model, lines: Sequence[str], sizes: Sizes, *, seed: int) -> SampleSet:
    """Evaluation samples from lines of their own.

    Raises:
        CalibrationError: there is no line.
    """
    _need(lines, 1)
    return encode(model, [lines[index] for index in shuffled(len(lines), seed)[: sizes.evaluation]], sizes)


def encode(model: Model, lines: Sequence[str], sizes: Sizes) -> SampleSet:
    """Tokenize with the model's special tokens, cut to the sequence length, pad on the right."""
    limit = longest_sequence(model, sizes.sequence_length)
    rows: list[list[int]] = model.tokenizer(list(lines), truncation=True, max_length=limit, verbose=False)["input_ids"]
    spec = token_spec(model)
    width = limit if spec is not None and spec.shape[1] is not None else max(len(row) for row in rows)
    padding = getattr(model.tokenizer, "pad_token_id", None) or 0
    tokens = torch.full((len(rows), width), padding, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = True
    return from_tokens(model, tokens, mask)


def _need(lines: Sequence[str], count: int) -> None:
    if len(lines) < count:
        raise CalibrationError(f"the text has {len(lines)} different lines, at least {count} are needed, one a sample.")
