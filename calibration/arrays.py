"""Arrays of named model inputs: .npz and .safetensors files, checked against the model before anything runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.evaluation import token_input
from guidedq.ir.model import InputSpec, Model, Objective

from .apart import LONGEST_DOCUMENT, Spans, parted
from .split import HELD_BACK, Sizes, pick, shuffled
from .text_inputs import check_token_ids, what_it_needs

LABELS = "labels"
MASK = "attention_mask"
MOST_EVALUATION_SAMPLES = 2000
"""An accuracy near 0.8 then has a standard error of 0.009; more would only cost time."""
MOST_TUNING_BYTES = 64 << 20
"""Of samples beyond those for calibration: images are large."""


def read_arrays(model: Model, paths: Sequence[Path]) -> SampleSet:
    """All samples of these files, different ones only, as the model's inputs.

    Raises:
        CalibrationError: a file cannot be read, or its names, dtypes, shapes or values do not fit the model.
    """
    sets = [_checked(model, path) for path in paths]
    names = {LABELS: [part.labels for part in sets], MASK: [part.mask for part in sets]}
    for name, values in names.items():
        if any(value is None for value in values) and any(value is not None for value in values):
            raise CalibrationError(f"some of the files have {name!r} and some have not: {', '.join(map(str, paths))}.")
    inputs = {name: _joined(name, [part.inputs[name] for part in sets]) for name in sets[0].inputs}
    labels, masks = ([value for value in names[name] if value is not None] for name in (LABELS, MASK))
    return _unique(
        SampleSet(
            inputs=inputs,
            mask=_joined(MASK, masks) if masks else None,
            labels=_joined(LABELS, labels) if labels else None,
        )
    )


def split_arrays(model: Model, pool: SampleSet, sizes: Sizes, *, seed: int) -> list[SampleSet]:
    """Calibration, tuning, probe and evaluation samples; the last are a tenth of the pool.

    Raises:
        CalibrationError: there are fewer than three samples.
    """
    _need(pool, 3)
    order = torch.tensor(shuffled(len(pool), seed))
    held = max(1, len(pool) // HELD_BACK)
    evaluation = order[:held][:MOST_EVALUATION_SAMPLES]
    return [*_parts(model, pool, order[held:], evaluation, sizes), pool.pick(evaluation)]


def split_two_arrays(model: Model, pool: SampleSet, sizes: Sizes, *, seed: int) -> list[SampleSet]:
    """Calibration, tuning and probe samples.

    Raises:
        CalibrationError: there are fewer than two samples.
    """
    _need(pool, 2)
    order = torch.tensor(shuffled(len(pool), seed))
    return _parts(model, pool, order, order[:0], sizes)


def pick_arrays(pool: SampleSet, *, seed: int) -> SampleSet:
    """Evaluation samples from a pool of their own: all of them, or a draw if they are very many."""
    if len(pool) <= MOST_EVALUATION_SAMPLES:
        return pool
    return pick(pool, sorted(shuffled(len(pool), seed)[:MOST_EVALUATION_SAMPLES]))


def _parts(model: Model, pool: SampleSet, rest: Tensor, evaluation: Tensor, sizes: Sizes) -> list[SampleSet]:
    sample_bytes = max(1, sum(values[0].nbytes for values in pool.inputs.values()))
    affordable = replace(
        sizes,
        tuning=min(sizes.tuning, max(1, MOST_TUNING_BYTES // sample_bytes)),
        probe=max(sizes.probe, -(-sizes.probe_tokens // row_tokens(model, pool))),
    )
    return [pool.pick(part) for part in parted(_spans(model, pool), rest, evaluation, affordable)]


def _spans(model: Model, pool: SampleSet) -> Spans:
    """A language model's rows are taken for pages of one text, in order; any other sample stands for itself."""
    rows = torch.arange(len(pool)) * row_tokens(model, pool) // LONGEST_DOCUMENT
    return Spans(first=rows, last=rows)


def row_tokens(model: Model, pool: SampleSet) -> int:
    """Tokens of a language model's row; a whole document's for what does not read or write text."""
    tokens = token_input(pool.inputs) if model.objective is Objective.LANGUAGE_MODEL else None
    return LONGEST_DOCUMENT if tokens is None or tokens.dim() < 2 else tokens.shape[1]


def _checked(model: Model, path: Path) -> SampleSet:
    arrays = _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)
    wanted = [spec.name for spec in model.inputs]
    if missing := [name for name in wanted if name not in arrays]:
        raise CalibrationError(
            f"{path} has no array {missing[0]!r}; it has {', '.join(sorted(arrays)) or 'none'}. {what_it_needs(model)}"
        )
    if foreign := sorted(set(arrays) - {*wanted, LABELS}):
        raise CalibrationError(
            f"{path}: {foreign[0]!r} is no input of the model. Expected {', '.join(wanted)} and, if known, {LABELS}."
        )
    count = max((len(arrays[spec.name]) for spec in model.inputs if arrays[spec.name].dim()), default=1)
    inputs = {spec.name: _fitting(model, spec, arrays[spec.name], count, path) for spec in _tokens_first(model)}
    labels = arrays.get(LABELS)
    counts = {name: len(values) for name, values in {**inputs, LABELS: labels}.items() if values is not None}
    if len(set(counts.values())) > 1:
        raise CalibrationError(f"{path}: the arrays have different numbers of samples: {counts}.")
    if labels is not None:
        labels = _checked_labels(model, labels, path)
    mask = inputs[MASK].bool() if MASK in inputs else None
    return SampleSet(inputs=inputs, mask=None if mask is None or bool(mask.all()) else mask, labels=labels)


def _tokens_first(model: Model) -> list[InputSpec]:
    """The model's inputs, those of the tokens that it predicts before the others."""
    rank = {"decoder_input_ids": 0, "input_ids": 1}
    return sorted(model.inputs, key=lambda spec: rank.get(spec.name, 2))


def _fitting(model: Model, spec: InputSpec, values: Tensor, count: int, path: Path) -> Tensor:
    """The array in the dtype that the model takes, if it is of that kind and shape and its values can be used."""
    where = f"{path}: {spec.name!r}"
    if _kind(values.dtype) != _kind(spec.dtype):
        raise CalibrationError(f"{where} is {_spelled(values.dtype)}, expected {_spelled(spec.dtype)}. Convert it.")
    if spec.sample_axis is None and values.dim() == len(spec.shape) - 1:
        values = values.expand(count, *values.shape)
    fits = len(spec.shape) == values.dim() and all(
        size in (None, found) for size, found in zip(spec.shape, values.shape, strict=True)
    )
    if not fits:
        expected = ["any" if size is None else size for size in spec.shape]
        raise CalibrationError(
            f"{where} has shape {list(values.shape)}, expected {expected} (the first is the sample)."
        )
    if len(values) == 0 or (values.numel() == 0 and None not in spec.shape[1:]):
        raise CalibrationError(f"{where} holds no sample: its shape is {list(values.shape)}.")
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise CalibrationError(f"{where} holds NaN or infinite values.")
    if spec.name.endswith("input_ids"):
        check_token_ids(model, values, where)
    return values.to(spec.dtype)


def _checked_labels(model: Model, labels: Tensor, path: Path) -> Tensor:
    if _kind(labels.dtype) != "integer":
        raise CalibrationError(
            f"{path}: 'labels' is {_spelled(labels.dtype)}, expected whole numbers (the class's index)."
        )
    if model.objective is Objective.CLASSIFIER and labels.dim() != 1:
        raise CalibrationError(f"{path}: 'labels' has shape {list(labels.shape)}, expected one class a sample.")
    return labels.long()


def _read_npz(path: Path) -> Mapping[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _as_tensor(archive[name], f"{path}: {name!r}") for name in archive.files}
    except (ValueError, OSError, BadZipFile, EOFError, AttributeError) as error:
        raise CalibrationError(f"{path} cannot be read as .npz: {error}") from error


def _as_tensor(values: np.ndarray, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.asarray(values, order="C"))  # `ascontiguousarray` gives a scalar an axis
    except TypeError as error:
        raise CalibrationError(f"{where} is {values.dtype}, which no model takes. Expected numbers.") from error


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read as .safetensors: {error}. Write it again.") from error


def _joined(name: str, parts: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise CalibrationError(f"{name!r} has samples of different shapes in different files: {sorted(shapes)}.")
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _unique(samples: SampleSet) -> SampleSet:
    """The first of every group of samples with equal inputs, so that no two parts can share one."""
    first: dict[bytes, int] = {}
    for index in range(len(samples)):
        state = hashlib.sha256()
        for values in samples.inputs.values():
            state.update(values[index].flatten().contiguous().view(torch.uint8).numpy().tobytes())
        first.setdefault(state.digest(), index)
    return samples if len(first) == len(samples) else pick(samples, list(first.values()))


def _need(pool: SampleSet, count: int) -> None:
    if len(pool) < count:
        raise CalibrationError(f"the data have {len(pool)} different samples, at least {count} are needed.")


def _kind(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "integer"


def _spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
