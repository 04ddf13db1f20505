"""Samples that a language model writes itself, so that no data are needed.

LLM-QAT (Liu et al. 2023, arXiv 2305.17888) showed that text sampled from the model calibrates as well as its training
data. Sampling is at temperature 1 from the whole distribution: anything narrower would leave rare activations unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from guidedq.artifacts.samples import CalibrationSet
from guidedq.errors import CalibrationError
from guidedq.ir.model import Model, Objective
from guidedq.ir.program import AbstractWriter, TorchProgram
from guidedq.progress import Progress
from guidedq.stages import AbstractSampler

from .evaluation_data import evaluation_samples
from .packing import first_token
from .split import SMALL_PARAMETERS, Sizes, kept_apart, measured_samples
from .text_inputs import from_tokens, longest_sequence, token_spec, what_it_needs

SEQUENCES_AT_ONCE = 16
"""A step costs hardly more for 16 sequences than for one, and their cache stays small beside the model."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedSampler(AbstractSampler):
    """Lets a language model write its own calibration text.

    Attributes:
        samples: Calibration sequences.
        sequence_length: Tokens of a sequence, at most what the model takes. Writing a token costs as much as a forward
            pass over it at low efficiency, so the default is half that of the other samplers.
        tuning_samples: Sequences for tuning and correction, those for calibration among them; a model of more than four
            million parameters writes none beyond those.
        probe_samples: Sequences on which the forecast is calibrated; 0 for 8, or 24 of a small model.
        evaluation_samples: Sequences on which the loss is measured; 0 for 16, or 64 of a small model.
    """

    samples: int = 64
    sequence_length: int = 256
    tuning_samples: int = 256
    probe_samples: int = 0
    evaluation_samples: int = 0

    def sample(
        self, model: Model, data: Sequence[Path], evaluation_data: Sequence[Path], *, seed: int, progress: Progress
    ) -> CalibrationSet:
        """Write all sequences, from the token that begins a text, or from a random one."""
        if data:
            raise CalibrationError(f"text that the model writes itself needs no data, found {data[0]}.")
        if model.objective is not Objective.LANGUAGE_MODEL or token_spec(model) is None:
            raise CalibrationError(f"only a language model can write its own calibration data. {what_it_needs(model)}")
        probes, evaluated = measured_samples(model)
        sizes = Sizes(
            samples=self.samples,
            tuning=self.tuning_samples if model.parameters <= SMALL_PARAMETERS else 1,
            probe=self.probe_samples or probes,
            evaluation=self.evaluation_samples or evaluated,
            sequence_length=self.sequence_length,
        )
        length = longest_sequence(model, sizes.sequence_length)
        held = 0 if evaluation_data else sizes.evaluation
        first = max(sizes.samples, sizes.tuning) + sizes.probe
        text = write(model, first + held, length, seed=seed, progress=progress)
        calibration, tuning, probe = (from_tokens(model, text[part]) for part in sizes.shared_out(first))
        if evaluation_data:
            nothing: frozenset[str] = frozenset()
            rest = evaluation_samples(model, evaluation_data, sizes, known=nothing, seed=seed, progress=progress)
        else:
            rest = from_tokens(model, text[first:])
        return kept_apart(calibration, tuning, probe, rest, source="written by the model itself")


def write(model: Model, count: int, length: int, *, seed: int, progress: Progress) -> Int64[Tensor, "sequence token"]:
    """`count` sequences of `length` tokens, sampled at temperature 1; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    progress.start("write", count)
    begin = first_token(model)
    parts: list[Tensor] = []
    for first in range(0, count, SEQUENCES_AT_ONCE):
        rows = min(SEQUENCES_AT_ONCE, count - first)
        if begin is not None:
            start = torch.full((rows, 1), begin, dtype=torch.int64)
        else:
            start = torch.randint(model.vocabulary_size or 1, (rows, 1), generator=generator)
        parts.append(_continued(model, start, length, generator))
        progress.advance(rows)
    return torch.cat(parts)


def _continued(model: Model, tokens: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Through the model's own cache where it has one, else by running the growing sequences again and again."""
    if isinstance(model.program, TorchProgram) and isinstance(model.program.module, AbstractWriter):
        return model.program.module.write(tokens, length, generator)
    spec = token_spec(model)
    fixed = spec is not None and spec.shape[1] is not None
    while tokens.shape[1] < length:
        place = tokens.shape[1] - 1
        padded = torch.nn.functional.pad(tokens, (0, length - tokens.shape[1])) if fixed else tokens
        chances = torch.softmax(model.program.predict(from_tokens(model, padded).inputs)[:, place], dim=-1)
        tokens = torch.cat((tokens, torch.multinomial(chances, 1, generator=generator)), dim=1)
    return tokens
