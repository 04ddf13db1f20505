"""The evaluation samples from files of their own, whatever the others come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.model import Model, Objective
from guidedq.progress import Progress

from .arrays import pick_arrays, read_arrays
from .data_files import DataKind, data_files
from .documents import read_documents, read_lines
from .packing import pack_evaluation
from .sentences import pick_lines
from .split import Sizes
from .text_inputs import reads_text, what_it_needs


def evaluation_samples(
    model: Model, paths: Sequence[Path], sizes: Sizes, *, known: frozenset[str], seed: int, progress: Progress
) -> SampleSet:
    """Evaluation samples from these files.

    Args:
        model: What the samples are for.
        paths: Files or folders.
        sizes: How many, and how long.
        known: Texts that the other parts may use; they are left out.
        seed: Seeds the draw.
        progress: Told what the user should know.

    Raises:
        CalibrationError: the files do not fit the model, or all of their text is in `known`.
    """
    files, kind = data_files(paths)
    if kind is DataKind.ARRAYS:
        return pick_arrays(read_arrays(model, files), seed=seed)
    texts = [text for text in read_texts(model, files, progress, at_least=1) if text not in known]
    if not texts:
        raise CalibrationError(f"{paths[0]} holds no text that is not also in the calibration data.")
    if model.objective is Objective.LANGUAGE_MODEL:
        return pack_evaluation(model, texts, sizes, seed=seed, progress=progress)
    return pick_lines(model, texts, sizes, seed=seed)


def read_texts(model: Model, files: Sequence[Path], progress: Progress, *, at_least: int) -> list[str]:
    """Documents for a language model, short texts for any other.

    Raises:
        CalibrationError: the model does not read text, or a file cannot be read.
    """
    if not reads_text(model):
        lacking = "has no tokenizer" if model.tokenizer is None else "takes inputs that text cannot fill"
        raise CalibrationError(f"{files[0]} is text, but the model {lacking}. {what_it_needs(model)}")
    if model.objective is Objective.LANGUAGE_MODEL:
        return read_documents(files, progress)
    return read_lines(files, progress, at_least)
