"""From token ids to whatever named inputs a model takes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from guidedq.artifacts.samples import SampleSet
from guidedq.errors import CalibrationError
from guidedq.ir.model import InputSpec, Model

TOKENS = "input_ids"
DERIVED = ("attention_mask", "token_type_ids", "position_ids")
"""Inputs that follow from the tokens and their mask."""
CACHE_NAMES = ("past", "cache")
"""Words in the names of inputs that hold keys and values of earlier tokens: a text begins with none."""


def reads_text(model: Model) -> bool:
    """Whether text alone fills all of the model's inputs."""
    return model.tokenizer is not None and token_spec(model) is not None


def token_spec(model: Model) -> InputSpec | None:
    """The input for token ids, `None` if the model has none or takes more than text can give."""
    rest = [spec for spec in model.inputs if spec.name not in DERIVED and not _is_cache(spec)]
    if len(rest) != 1 or rest[0].dtype not in (torch.int64, torch.int32) or len(rest[0].shape) != 2:
        return None
    return rest[0] if rest[0].name == TOKENS or model.vocabulary_size is not None else None


def longest_sequence(model: Model, asked: int) -> int:
    """The sequence length to use: the one that the graph fixes, else what was asked, within the model's context."""
    spec = token_spec(model)
    if spec is not None and spec.shape[1] is not None:
        return spec.shape[1]
    return min(asked, model.context_length or asked)


def from_tokens(
    model: Model, tokens: Int64[Tensor, "sample token"], mask: Bool[Tensor, "sample token"] | None = None
) -> SampleSet:
    """The model's inputs for these tokens, the tokens first; the set is masked only where something is padded.

    Raises:
        CalibrationError: a token id is beyond the vocabulary.
    """
    spec = token_spec(model)
    assert spec is not None, "checked by reads_text"
    check_token_ids(model, tokens, "the tokenizer's output")
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    derived = {
        "attention_mask": real,
        "token_type_ids": torch.zeros_like(tokens),
        "position_ids": (real.long().cumsum(1) - 1).clamp(min=0),
    }
    inputs = {spec.name: tokens.to(spec.dtype)}
    inputs |= {other.name: derived[other.name].to(other.dtype) for other in model.inputs if other.name in derived}
    inputs |= {other.name: _empty(other, len(tokens)) for other in model.inputs if _is_cache(other)}
    return SampleSet(inputs=inputs, mask=None if bool(real.all()) else real)


def _is_cache(spec: InputSpec) -> bool:
    """Whether an input holds what earlier tokens left: floats with one free axis, which counts them."""
    named = any(word in spec.name.lower() for word in CACHE_NAMES)
    return named and spec.dtype.is_floating_point and spec.shape[1:].count(None) == 1


def _empty(spec: InputSpec, samples: int) -> Tensor:
    return torch.zeros((samples, *(size or 0 for size in spec.shape[1:])), dtype=spec.dtype)


def check_token_ids(model: Model, tokens: Tensor, where: str) -> None:
    """Refuse ids that are negative or beyond the vocabulary.

    Raises:
        CalibrationError: as said, with the id found.
    """
    if tokens.numel() == 0 or model.vocabulary_size is None:
        return
    smallest, largest = int(tokens.min()), int(tokens.max())
    if smallest < 0 or largest >= model.vocabulary_size:
        found = smallest if smallest < 0 else largest
        raise CalibrationError(
            f"{where}: token id {found} is outside the vocabulary of {model.name}, 0 to {model.vocabulary_size - 1}. "
            "Tokenize with the model's own tokenizer."
        )


def what_it_needs(model: Model) -> str:
    """For messages: the inputs of the model, and what data can fill them."""
    inputs = ", ".join(f"{spec.name} {_dtype(spec)}{_shape(spec)}" for spec in model.inputs)
    text = "a .txt or .jsonl file, or " if reads_text(model) else ""
    return f"{model.name} takes {inputs}: give {text}an .npz or .safetensors file with these names (--data)."


def _dtype(spec: InputSpec) -> str:
    return str(spec.dtype).removeprefix("torch.")


def _shape(spec: InputSpec) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in spec.shape) + "]"
