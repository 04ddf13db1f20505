"""Samples from files: text for models with a tokenizer, arrays of named inputs for any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from guidedq.artifacts.samples import CalibrationSet, SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.model import Model, Objective
from guidedq.progress import Progress
from guidedq.stages import AbstractSampler

from .arrays import read_arrays, split_arrays, split_two_arrays
from .data_files import DataKind, check_apart, data_files
from .evaluation_data import evaluation_samples, read_texts
from .packing import pack, pack_two
from .sentences import split_lines, split_two
from .split import PROBE_TOKENS, Sizes, kept_apart, measured_samples
from .text_inputs import what_it_needs

SEQUENCES = (64, 2048)
"""Sequences for calibration and tuning of a language model: each is some hundred tokens."""
SINGLE_SAMPLES = (256, 1024)
"""The same for models whose sample is one unit of loss."""
SMALLEST_POOL = 3
"""One sample for each part."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FileSampler(AbstractSampler):
    """Draws from .txt, .jsonl, .npz and .safetensors files, or folders of these.

    Attributes:
        samples: Calibration samples, fewer if the data have fewer; 0 for 64 sequences of a language model, 256 samples
            of any other.
        sequence_length: Tokens of a sequence, at most what the model takes.
        tuning_samples: Samples for tuning and correction, those for calibration among them, as far as the data go;
            0 for 2048 sequences, or 1024 samples.
        probe_samples: Samples on which the forecast is calibrated; 0 for 8 sequences (24 of a small model), or 128
            samples (256). Of an array's short sequences so many more that they have 2048 tokens.
        evaluation_samples: Text samples on which the loss is measured; 0 for 16 sequences (64 of a small model),
            or 512 samples. Of arrays the whole tenth that is held back is taken, or all of the evaluation file, up to
            2000.
    """

    samples: int = 0
    sequence_length: int = 512
    tuning_samples: int = 0
    probe_samples: int = 0
    evaluation_samples: int = 0

    def sample(
        self, model: Model, data: Sequence[Path], evaluation_data: Sequence[Path], *, seed: int, progress: Progress
    ) -> CalibrationSet:
        """Draw without replacement; text for language models is packed, for others padded and masked."""
        if not data:
            raise CalibrationError(f"no data given. {what_it_needs(model)}")
        packed = model.objective is Objective.LANGUAGE_MODEL
        usual = (*(SEQUENCES if packed else SINGLE_SAMPLES), *measured_samples(model))
        sizes = Sizes(
            samples=self.samples or usual[0],
            tuning=self.tuning_samples or usual[1],
            probe=self.probe_samples or usual[2],
            evaluation=self.evaluation_samples or usual[3],
            sequence_length=self.sequence_length,
            probe_tokens=0 if self.probe_samples else PROBE_TOKENS,
        )
        files, kind = data_files(data)
        check_apart(files, data_files(evaluation_data)[0] if evaluation_data else ())
        progress.start("sample", 1)
        draw = _from_arrays if kind is DataKind.ARRAYS else _from_text
        calibration, tuning, probe, evaluation = draw(
            model, files, evaluation_data, sizes, seed=seed, progress=progress
        )
        progress.advance()
        return kept_apart(calibration, tuning, probe, evaluation, source=", ".join(path.name for path in data))


def _from_arrays(
    model: Model, files: Sequence[Path], evaluation_data: Sequence[Path], sizes: Sizes, *, seed: int, progress: Progress
) -> list[SampleSet]:
    pool = read_arrays(model, files)
    if not evaluation_data:
        return split_arrays(model, pool, sizes, seed=seed)
    held = evaluation_samples(model, evaluation_data, sizes, known=frozenset(), seed=seed, progress=progress)
    return [*split_two_arrays(model, pool, sizes, seed=seed), held]


def _from_text(
    model: Model, files: Sequence[Path], evaluation_data: Sequence[Path], sizes: Sizes, *, seed: int, progress: Progress
) -> list[SampleSet]:
    texts = read_texts(model, files, progress, at_least=SMALLEST_POOL)
    packed = model.objective is Objective.LANGUAGE_MODEL
    if not evaluation_data:
        if packed:
            return pack(model, texts, sizes, seed=seed, progress=progress)
        return split_lines(model, texts, sizes, seed=seed)
    known = frozenset(texts)
    held = evaluation_samples(model, evaluation_data, sizes, known=known, seed=seed, progress=progress)
    if packed:
        return [*pack_two(model, texts, sizes, seed=seed, progress=progress), held]
    return [*split_two(model, texts, sizes, seed=seed), held]
