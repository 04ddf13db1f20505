"""Samples for the demo model: the documentation and source of the running Python, which need not be shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from guidedq.artifacts.samples import CalibrationSet
from guidedq.demo import demo_text
from guidedq.errors import CalibrationError
from guidedq.ir.model import Model, Objective
from guidedq.progress import Progress
from guidedq.stages import AbstractSampler

from .evaluation_data import evaluation_samples
from .packing import pack, pack_two
from .split import Sizes, kept_apart, measured_samples
from .text_inputs import reads_text, what_it_needs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSampler(AbstractSampler):
    """Draws from the modules of the standard library that the demo model was not trained on.

    Attributes:
        samples: Calibration sequences.
        sequence_length: Tokens of a sequence, at most what the model takes.
        tuning_samples: Sequences for tuning and correction, those for calibration among them.
        probe_samples: Sequences on which the forecast is calibrated; 0 for 8, or 24 of a small model.
        evaluation_samples: Sequences on which the loss is measured; 0 for 16, or 64 of a small model.
    """

    samples: int = 64
    sequence_length: int = 512
    tuning_samples: int = 2048
    probe_samples: int = 0
    evaluation_samples: int = 0

    def sample(
        self, model: Model, data: Sequence[Path], evaluation_data: Sequence[Path], *, seed: int, progress: Progress
    ) -> CalibrationSet:
        """Draw from the demo's own text; `data` must be empty."""
        if data:
            raise CalibrationError(f"the demo's sampler reads no files, found {data[0]}. Use the sampler 'files'.")
        if not (reads_text(model) and model.objective is Objective.LANGUAGE_MODEL):
            raise CalibrationError(f"the demo's text is for a language model with a tokenizer. {what_it_needs(model)}")
        probes, evaluated = measured_samples(model)
        sizes = Sizes(
            samples=self.samples,
            tuning=self.tuning_samples,
            probe=self.probe_samples or probes,
            evaluation=self.evaluation_samples or evaluated,
            sequence_length=self.sequence_length,
        )
        progress.start("sample", 1)
        texts = [*demo_text("calibration"), *demo_text("evaluation")]
        if evaluation_data:
            calibration, tuning, probe = pack_two(model, texts, sizes, seed=seed, progress=progress)
            known = frozenset(texts)
            held = evaluation_samples(model, evaluation_data, sizes, known=known, seed=seed, progress=progress)
        else:
            calibration, tuning, probe, held = pack(model, texts, sizes, seed=seed, progress=progress)
        progress.advance()
        return kept_apart(
            calibration, tuning, probe, held, source="Python's standard library, modules held out from training"
        )
